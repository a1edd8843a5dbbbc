"""Metrics of rankings and of graded similarity, and bootstrap intervals; numpy in, numpy out.

Ranking metrics are those of trec_eval, as BEIR and mteb report them. They share one signature,
`(gains [Q, K], ideal [Q, J], k) -> [Q]`: `gains` holds the relevance of what was retrieved, best
first, 0 where nothing was judged or nothing retrieved; `ideal` holds all judged relevances of the
query, largest first, padded with 0. Relevance above 0 is relevant; a query without relevant
documents scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from embed_jax.errors import InputError


def pearson(a: Num[np.ndarray, " N"], b: Num[np.ndarray, " N"]) -> float:
    """Pearson's correlation; nan if one side is constant or there are fewer than two values."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def spearman(a: Num[np.ndarray, " N"], b: Num[np.ndarray, " N"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank.

    nan where `pearson` is.
    """
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b))


def ndcg(
    gains: Num[np.ndarray, "Q K"], ideal: Num[np.ndarray, "Q J"], k: int
) -> Float[np.ndarray, " Q"]:
    """nDCG@k with the relevance itself as gain.

    sum_i rel_i / log2(i + 1), over the same sum of the best ranking: Järvelin and Kekäläinen 2002
    as in trec_eval's ndcg_cut; not the variant with 2^rel - 1.
    """
    best = _dcg(ideal, k)
    return np.divide(_dcg(gains, k), best, out=np.zeros(len(best)), where=best > 0)


def mrr(
    gains: Num[np.ndarray, "Q K"], ideal: Num[np.ndarray, "Q J"], k: int
) -> Float[np.ndarray, " Q"]:
    """Reciprocal rank of the first relevant document among the first k; 0 if none is relevant."""
    relevant = gains[:, :k] > 0
    return np.where(relevant.any(axis=1), 1 / (1 + np.argmax(relevant, axis=1)), 0.0)


def recall(
    gains: Num[np.ndarray, "Q K"], ideal: Num[np.ndarray, "Q J"], k: int
) -> Float[np.ndarray, " Q"]:
    """Share of all relevant documents that are among the first k."""
    return (gains[:, :k] > 0).sum(axis=1) / np.maximum((ideal > 0).sum(axis=1), 1)


def average_precision(
    gains: Num[np.ndarray, "Q K"], ideal: Num[np.ndarray, "Q J"], k: int
) -> Float[np.ndarray, " Q"]:
    """The mean over *all* relevant documents of the precision at their rank.

    The precision is 0 for documents that are not among the first k (map_cut). sentence-transformers
    divides by min(k, number of relevant documents) instead.
    """
    relevant = gains[:, :k] > 0
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(axis=1) / np.maximum((ideal > 0).sum(axis=1), 1)


RANKING_METRICS: Mapping[str, Callable[..., np.ndarray]] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "recall": recall,
    "map": average_precision,
}


def calibration_error(
    probabilities: Sequence[float] | Float[np.ndarray, " N"],
    labels: Sequence[int] | Float[np.ndarray, " N"],
    *,
    bins: int = 15,
) -> float:
    """Computes the expected calibration error of scores that are to be probabilities.

    sum_b (n_b / N) |mean label - mean probability| over `bins` bins of equal width (Guo et al.
    2017, "On Calibration of Modern Neural Networks", eq. 3).

    Args:
        probabilities: from 0 to 1.
        labels: 0 or 1.
        bins: number of bins.

    Raises:
        InputError: for unequal lengths, no item, or a value outside 0 to 1.

    >>> calibration_error([0.9, 0.9, 0.1, 0.1], [1, 1, 0, 0])
    0.1
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if p.shape != y.shape or p.ndim != 1 or not len(p):
        raise InputError(
            f"calibration: expected as many labels as scores, found {p.shape} and {y.shape}"
        )
    for name, values in (("scores", p), ("labels", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"calibration: expected {name} from 0 to 1, found others")
    index = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=y - p, minlength=bins)
    return round(float(np.abs(gaps).sum() / len(p)), 12)


def bootstrap_interval(
    n: int,
    statistic: Callable[[Int[np.ndarray, " N"]], float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic.

    The statistic is computed on n indices drawn with replacement, again and again.

    Args:
        n: how many examples (queries, pairs) there are.
        statistic: of the examples with these indices, e.g. `lambda i: spearman(a[i], b[i])`.
        confidence: the probability that the interval stands for, from 0 to 1.
        resamples: how often indices are drawn.
        seed: of the draws.

    Returns:
        Lower and upper end. Resamples where the statistic is nan are left out.
    """
    return percentile_interval(bootstrap(n, statistic, resamples=resamples, seed=seed), confidence)


def mean_interval(
    values: Float[np.ndarray, " N"], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Computes `bootstrap_interval` of the values' mean."""
    return bootstrap_interval(
        len(values), lambda rows: float(values[rows].mean()), confidence=confidence
    )


def bootstrap(
    n: int,
    statistic: Callable[[Int[np.ndarray, " N"]], float | Sequence[float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "R *m"]:
    """Computes a statistic, or m of them, on n indices drawn with replacement, again and again.

    The indices are the same for the same n and seed.
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])


def percentile_interval(
    values: Float[np.ndarray, " R"], confidence: float = 0.95
) -> tuple[float, float]:
    """Lower and upper end of the middle of resampled values.

    nan values are left out; without any other value both ends are nan.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def metric_intervals(
    n: int, metrics: Callable[[Int[np.ndarray, " N"]], Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
    """Computes `bootstrap_interval` of several metrics of the same n items.

    Each resample serves them all.

    Args:
        n: how many items there are.
        metrics: of the items with these indices, by name.
    """
    names = list(metrics(np.arange(n)))
    resampled = bootstrap(n, lambda rows: list(metrics(rows).values()))
    return {
        name: percentile_interval(values) for name, values in zip(names, resampled.T, strict=True)
    }


def spearman_of(
    a: Num[np.ndarray, " N"], b: Num[np.ndarray, " N"]
) -> Callable[[Int[np.ndarray, " M"]], float]:
    """Returns `lambda i: spearman(a[i], b[i])` for `bootstrap`, faster.

    Ranks come from counting, so that no resample is sorted.
    """
    levels = [np.unique(side, return_inverse=True)[1] for side in (a, b)]

    def ranks(level: Int[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        counts = np.bincount(level)
        return (np.cumsum(counts) - (counts - 1) / 2)[level]

    return lambda i: pearson(ranks(levels[0][i]), ranks(levels[1][i]))


def _dcg(gains: Num[np.ndarray, "Q K"], k: int) -> Float[np.ndarray, " Q"]:
    gains = np.maximum(gains[:, :k], 0)
    return gains @ (1 / np.log2(np.arange(2, gains.shape[1] + 2)))
