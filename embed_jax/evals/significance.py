"""Paired comparisons of two systems on the same items, and what may be said of them.

What must not be concluded: a large p-value does not show that two systems are equal; a small one
says nothing about the size of the difference, for which there is the interval; and both speak of
other items like these, not of another seed of the training (for which see `seed_summary`) nor of
another task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.metrics import percentile_interval
from embed_jax.evals.randomization import exchanged, gaps_of, randomization_test
from embed_jax.evals.task import Items


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The difference between system A and system B.

    Attributes:
        difference: A's score minus B's.
        interval: lower and upper end of its percentile bootstrap interval, over items.
        p_value: of a two-sided randomisation test of "which system is which makes no difference".
        exact: whether the test went through all assignments, not through a sample of them.
        n: how many items there are.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    exact: bool
    n: int


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """Mean, standard deviation (n - 1) and interval of the mean of one score over n seeds."""

    mean: float
    sd: float
    n: int
    interval: tuple[float, float]


def paired_difference(
    per_item_a: Sequence[float] | Float[np.ndarray, " N"],
    per_item_b: Sequence[float] | Float[np.ndarray, " N"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Computes the mean difference of two systems' scores on the same items, such as nDCG by query.

    The test is Fisher's randomisation test, which Smucker, Allan and Carterette (2007) advise for
    retrieval: were the systems alike, then each item's two scores could as well be exchanged, which
    turns the sign of their difference. The p-value is the share of sign patterns with |mean| at
    least as large as observed: of all 2^m, where m items differ and 2^m <= resamples; else of a
    random sample, (1 + count) / (1 + resamples) (Phipson and Smyth 2010), never 0. It is at least
    2^(1-m): fewer than six items that differ never reach 0.05.

    Args:
        per_item_a: scores of the first system.
        per_item_b: scores of the second system, of the same items in the same order.
        confidence: of the interval, which is `bootstrap_interval`'s; below some thirty items it is
            too narrow.
        resamples: the largest number of exchanges that the test tries.
        seed: of random exchanges and resamples.

    Raises:
        InputError: if the lengths differ, there are fewer than two items, or a score is not finite.
    """
    a, b = _columns(A=per_item_a, B=per_item_b)
    return _compared(Items(a), Items(b), confidence, resamples, seed)


def paired_spearman(
    similarities_a: Sequence[float] | Float[np.ndarray, " N"],
    similarities_b: Sequence[float] | Float[np.ndarray, " N"],
    scores: Sequence[float] | Float[np.ndarray, " N"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Computes the difference of two systems' Spearman correlations with the same gold scores.

    A correlation is not a mean of items. The test exchanges the two systems'
    values item by item and recomputes the statistic: the paired permutation test of correlations of
    Deutsch, Dror and Roth (2021, "A Statistical Analysis of Summarization Evaluation Metrics Using
    Resampling Methods", their PERM-INPUTS), who standardise each system's values first, since
    values of different scales cannot be exchanged. Here each system's similarities are replaced by
    their ranks (ties share their mean rank), so only the order counts, as for Spearman's
    correlation itself. Then for each assignment of exchanges

        T = rho(x, scores) - rho(y, scores),  x_i, y_i = rank_a_i, rank_b_i, or exchanged,

    where rho ranks x and y again, and is 0 where an exchange leaves one constant. The p-value is
    the share of |T| at least as large as observed, exact or sampled as in `paired_difference`. As
    the ranks are taken before the exchange, the test is exact only for systems that share a scale
    up to rank, and otherwise approximate in N; it tests that the systems' ranks are exchangeable,
    not only that their correlations are equal.

    Args:
        similarities_a: of the first system, on any scale.
        similarities_b: of the second system, for the same pairs in the same order, on any scale.
        scores: gold scores.
        confidence: of the interval, from 0 to 1.
        resamples: the largest number of exchanges that the test tries.
        seed: of random exchanges and resamples.

    Raises:
        InputError: see `paired_difference`; and if similarities or scores are constant.
    """
    a, b, gold = _columns(A=similarities_a, B=similarities_b, gold=scores)
    items = Items(a, gold, "spearman"), Items(b, gold, "spearman")
    return _compared(*items, confidence, resamples, seed)


def paired_average_precision(
    similarities_a: Sequence[float] | Float[np.ndarray, " N"],
    similarities_b: Sequence[float] | Float[np.ndarray, " N"],
    labels: Sequence[float] | Float[np.ndarray, " N"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Computes the difference of two systems' average precisions on the same labelled pairs.

    The test is `paired_spearman`'s. Of equal ranks, which exchanges make, those of label 0 come
    first, for both systems alike.

    Args:
        similarities_a: of the first system, on any scale.
        similarities_b: of the second system, for the same pairs in the same order, on any scale.
        labels: 1 or 0.
        confidence: of the interval, from 0 to 1.
        resamples: the largest number of exchanges that the test tries.
        seed: of random exchanges and resamples.

    Raises:
        InputError: see `paired_spearman`.
    """
    a, b, gold = _columns(A=similarities_a, B=similarities_b, gold=labels)
    items = Items(a, gold, "ap"), Items(b, gold, "ap")
    return _compared(*items, confidence, resamples, seed)


def compare_items(a: Items, b: Items, *, confidence: float = 0.95) -> PairedDifference:
    """Computes the difference of two systems' scores on the items of one task.

    The statistic is that of the items.

    Raises:
        InputError: if they are not of the same items; see the functions above.
    """
    if a.gold is None or b.gold is None:
        same_gold = a.gold is b.gold
    else:
        same_gold = np.array_equal(a.gold, b.gold)
    if a.statistic != b.statistic or len(a) != len(b) or not same_gold:
        raise InputError(f"expected scores of the same items, found {len(a)} ({a.statistic}) and "
                         f"{len(b)} "
                         f"({b.statistic}){'' if same_gold else ', and other gold'}")  # fmt: skip
    if a.statistic == "mean":
        return paired_difference(a.values, b.values, confidence=confidence)
    assert a.gold is not None, "the statistics below compare values with gold"
    of = {"spearman": paired_spearman, "ap": paired_average_precision}[a.statistic]
    return of(a.values, b.values, a.gold, confidence=confidence)


def overall_difference(
    tasks: Sequence[tuple[Items, Items]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Computes the difference of two systems' mean scores over tasks.

    Test and interval are those of each task with the draws of all tasks joined: items are
    exchanged, and resampled, within each task and independently of the others. So it speaks of
    other items of these tasks, not of other tasks.

    Args:
        tasks: the two systems' items of each task.
        confidence: of the interval, from 0 to 1.
        resamples: how many random exchanges the test tries.
        seed: of random exchanges and resamples.

    Returns:
        `n` is the number of tasks; the p-value is always sampled.

    Raises:
        InputError: without a task; see `compare_items`.
    """
    if not tasks:
        raise InputError("expected one task or more that both systems were scored on, found none")
    null, drawn, observed = np.zeros(resamples), np.zeros(1000), 0.0
    for number, (a, b) in enumerate(tasks):
        gaps = gaps_of(a, b)
        null += np.concatenate(list(exchanged(gaps, resamples, seed + number)))
        observed += gaps.statistics(np.zeros((1, gaps.m), bool))[0]
        drawn += a.resampled(seed=seed + number) - b.resampled(seed=seed + number)
    count = int(np.count_nonzero(np.abs(null) >= abs(observed) - 1e-10 * len(tasks)))
    difference = float(np.mean([a.score() - b.score() for a, b in tasks]))
    interval = percentile_interval(drawn / len(tasks), confidence)
    return PairedDifference(difference, interval, (1 + count) / (1 + resamples), False, len(tasks))


def holm(p_values: Sequence[float] | Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Adjusts p-values for T comparisons, such as T tasks, in their order (Holm 1979).

    With p sorted, adjusted_i = max over j <= i of min(1, (T - j + 1) p_j). If those up to alpha are
    called different, the probability of any false call is at most alpha, however the comparisons
    depend on each other. Pass all comparisons made, not only those that came out well.

    Raises:
        InputError: if a p-value is not between 0 and 1.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1:
        raise InputError(f"p-values: expected one list, found {p.ndim} dimensions")
    wrong = np.flatnonzero(~((p >= 0) & (p <= 1)))  # also nan
    if len(wrong):
        raise InputError(
            f"p-values: found {p[wrong[0]]} at place {wrong[0]}, expected numbers from 0 to 1"
        )
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def seed_summary(scores: Sequence[float], *, confidence: float = 0.95) -> SeedSummary:
    """Computes mean, standard deviation and Student's t interval of one score over seeds.

    The interval is mean +- t_(n-1) sd / sqrt(n). It is an interval of the mean over seeds on these
    very test items, and takes the scores to be roughly normal. With one seed the spread is unknown:
    sd and interval are nan.

    Raises:
        InputError: if there is no score, or one is not finite.
    """
    from scipy.stats import t

    (values,) = _columns(at_least=1, seeds=scores)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return SeedSummary(mean, math.nan, 1, (math.nan, math.nan))
    sd = float(values.std(ddof=1))
    margin = float(t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return SeedSummary(mean, sd, n, (mean - margin, mean + margin))


def verdict(
    difference: float,
    p_value: float,
    interval: tuple[float, float],
    *,
    a: str = "A",
    b: str = "B",
    alpha: float = 0.05,
) -> str:
    """Describes a comparison in one sentence.

    It calls a system better only if test and interval agree.

    Args:
        difference: A's score minus B's; higher scores are better.
        p_value: adjusted, where there are several comparisons (`holm`).
        interval: of the difference, at 1 - alpha.
        a: the first system's name.
        b: the second system's name.
        alpha: the largest p-value that counts as a difference.

    Raises:
        InputError: if one of the numbers is nan.
    """
    low, high = interval
    if any(map(math.isnan, (difference, p_value, low, high))):
        raise InputError(
            f"no verdict on difference {difference}, p {p_value}, interval {low} to {high}: nan"
        )
    p = f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"
    range_of_difference = f"{100 * (1 - alpha):g} % interval {low:+.4f} to {high:+.4f}"
    numbers = f"{a} - {b} = {difference:+.4f}, {range_of_difference}, {p}"
    excludes_zero = low > 0 or high < 0
    if p_value < alpha and excludes_zero:
        better, worse = (a, b) if difference > 0 else (b, a)
        return f"{better} is better than {worse}: {numbers}."
    if p_value < alpha:
        return (
            f"{a} and {b} are not clearly told apart: {numbers}; the test tells them apart, the "
            "interval does not."
        )
    if excludes_zero:
        return (
            f"{a} and {b} are not told apart: {numbers}; the interval excludes 0, the (corrected) "
            "test does not."
        )
    return f"{a} and {b} are not told apart: {numbers}; which does not show that they are equal."


def _compared(a: Items, b: Items, confidence: float, resamples: int, seed: int) -> PairedDifference:
    p_value, exact = randomization_test(gaps_of(a, b), resamples, seed)
    interval = percentile_interval(a.resampled(seed=seed) - b.resampled(seed=seed), confidence)
    return PairedDifference(a.score() - b.score(), interval, p_value, exact, len(a))


def _columns(
    at_least: int = 2, **columns: Sequence[float] | Float[np.ndarray, " N"]
) -> list[Float[np.ndarray, " N"]]:
    """Returns the columns as arrays, checked to be of one length and finite."""
    arrays = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or len(array) < at_least:
            raise InputError(
                f"scores of {name}: expected a list of {at_least} or more, found shape "
                f"{array.shape}"
            )
        wrong = np.flatnonzero(~np.isfinite(array))
        if len(wrong):
            raise InputError(
                f"scores of {name}: found {array[wrong[0]]} at item {wrong[0]}, expected finite "
                "numbers"
            )
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
        raise InputError(f"expected scores of the same items, found {lengths}")
    return list(arrays.values())
