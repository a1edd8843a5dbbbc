"""Randomisation tests: differences of two systems when each item's two values may be exchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float

from embed_jax.errors import InputError
from embed_jax.evals.task import Items

BLOCK = 1 << 20  # numbers of resampled data at a time


@dataclasses.dataclass(frozen=True)
class Gaps:
    """The differences that a randomisation test exchanges.

    Attributes:
        statistics: A's score minus B's for each row of exchanges, one of which is "none".
        m: how many items an exchange changes.
        width: how many numbers a row takes, if not m.
        scale: the statistic's largest size; values equal except for rounding count as equal.
    """

    statistics: Callable[[Bool[np.ndarray, "R m"]], Float[np.ndarray, " R"]]
    m: int
    width: int
    scale: float


def gaps_of(a: Items, b: Items) -> Gaps:
    """Returns the exchanges of two systems' items of one task, by the items' statistic."""
    if a.statistic == "mean":
        return mean_gaps(a.values, b.values)
    assert a.gold is not None, "the statistics below compare values with gold"
    rows = {"spearman": spearman_rows, "ap": average_precision_rows}[a.statistic]
    return rank_gaps(a.values, b.values, a.gold, rows)


def mean_gaps(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> Gaps:
    """Returns the exchanges of values whose mean is the score, such as nDCG by query."""
    differences = np.asarray(a, np.float64) - b
    n = len(differences)
    nonzero = differences[
        differences != 0
    ]  # the sign of 0 changes nothing, and each item less halves the patterns

    def means(turned: Bool[np.ndarray, "R m"]) -> Float[np.ndarray, " R"]:
        return (nonzero.sum() - 2 * (turned @ nonzero)) / n

    return Gaps(means, len(nonzero), 0, float(np.abs(nonzero).sum() / n))


def rank_gaps(
    a: Float[np.ndarray, " N"],
    b: Float[np.ndarray, " N"],
    gold: Float[np.ndarray, " N"],
    of_rows: Callable[[Float[np.ndarray, "R N"], Float[np.ndarray, " N"]], Float[np.ndarray, " R"]],
) -> Gaps:
    """Returns the exchanges of values whose ranks are compared with gold.

    `of_rows` computes the score of each row of ranks.

    Raises:
        InputError: for a constant column.
    """
    from scipy.stats import rankdata

    for name, column in zip(("A", "B", "gold"), (a, b, gold), strict=True):
        if np.ptp(column) == 0:
            raise InputError(
                f"scores of {name}: all {len(column)} are {column[0]:g}, so there is no ranking"
            )
    a, b = (rankdata(column) for column in (a, b))
    different = np.flatnonzero(a != b)

    def statistics(exchanged: Bool[np.ndarray, "R m"]) -> Float[np.ndarray, " R"]:
        swap = np.zeros((len(exchanged), len(a)), bool)
        swap[:, different] = exchanged
        return of_rows(np.where(swap, b, a), gold) - of_rows(np.where(swap, a, b), gold)

    return Gaps(statistics, len(different), len(a), 1.0)


def spearman_rows(
    rows: Float[np.ndarray, "R N"], gold: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " R"]:
    """Computes Spearman's correlation of each row with gold; 0 for a constant row."""
    from scipy.stats import rankdata

    middle = (len(gold) + 1) / 2
    gold = rankdata(gold) - middle
    ranks = rankdata(rows, axis=1) - middle
    norms = np.linalg.norm(ranks, axis=1)
    return np.divide(
        ranks @ (gold / np.linalg.norm(gold)), norms, out=np.zeros(len(rows)), where=norms > 0
    )


def average_precision_rows(
    rows: Float[np.ndarray, "R N"], labels: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " R"]:
    """Computes the average precision of each row of ranks against labels 0 and 1."""
    order = np.argsort(
        labels / 2 - 2 * rows, axis=1
    )  # ranks are halves at the finest: equal ones by label, 0 first
    right = labels[order]
    precision = np.cumsum(right, axis=1) / np.arange(1, rows.shape[1] + 1)
    return (precision * right).sum(axis=1) / labels.sum()


def exchanged(gaps: Gaps, resamples: int, seed: int) -> Iterator[Float[np.ndarray, " r"]]:
    """Yields the difference after `resamples` random exchanges, block by block."""
    for block in _random_exchanges(
        gaps.m, max(BLOCK // max(gaps.m, gaps.width, 1), 1), resamples, seed
    ):
        yield gaps.statistics(block)


def randomization_test(gaps: Gaps, resamples: int, seed: int) -> tuple[float, bool]:
    """Returns the p-value of |score of A - score of B|, and whether it is exact.

    The observed difference is compared with those after exchanging items in all ways, or in
    `resamples` random ways where there are more.
    """
    if resamples < 1:
        raise InputError(f"resamples: expected 1 or more, found {resamples}")
    m = gaps.m
    observed = abs(gaps.statistics(np.zeros((1, m), bool))[0]) - 1e-10 * gaps.scale
    exact = m < 63 and 2**m <= resamples
    blocks = exchanged(gaps, resamples, seed)
    if exact:
        blocks = map(gaps.statistics, _all_exchanges(m, max(BLOCK // max(m, gaps.width, 1), 1)))
    count = sum(int(np.count_nonzero(np.abs(block) >= observed)) for block in blocks)
    return (count / 2**m if exact else (1 + count) / (1 + resamples)), exact


def _all_exchanges(m: int, rows: int) -> Iterator[Bool[np.ndarray, "R m"]]:
    for start in range(0, 2**m, rows):
        yield (np.arange(start, min(start + rows, 2**m))[:, None] >> np.arange(m)) & 1 > 0


def _random_exchanges(
    m: int, rows: int, resamples: int, seed: int
) -> Iterator[Bool[np.ndarray, "R m"]]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        yield rng.integers(2, size=(min(rows, resamples - start), m), dtype=bool)
