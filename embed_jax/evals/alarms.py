"""Alarms of a release gate: how often they are false, and how often a loss raises one.

The gate's test is one-sided: is the new system worse than the baseline on the same queries? Its
p-value is half the two-sided one of `paired_difference`, whose null distribution is symmetric.

What must not be concluded: no alarm does not show that nothing was lost; `detection_power` says how
often a loss of a given size would be noticed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.randomization import mean_gaps, randomization_test
from embed_jax.evals.significance import PairedDifference

RESAMPLES = 500  # exchanges of a simulated test
# The share of its nDCG that a query loses when its one relevant document falls from rank 1 to 2.
RANK_DROP = 1 - 1 / np.log2(3)


def loss_p_value(difference: float, two_sided: float) -> float:
    """Returns the one-sided p-value of "the new system is worse".

    Args:
        difference: the new system's score minus the baseline's.
        two_sided: the p-value of a symmetric test of "there is no difference".

    >>> loss_p_value(-0.02, 0.06), loss_p_value(0.02, 0.06)
    (0.03, 0.97)
    """
    return two_sided / 2 if difference < 0 else 1 - two_sided / 2


def is_alarm(test: PairedDifference, level: float) -> bool:
    """Tells whether a gate of this level reports a loss."""
    return loss_p_value(test.difference, test.p_value) <= level


def raises_alarm(
    new: Float[np.ndarray, " Q"],
    baseline: Float[np.ndarray, " Q"],
    level: float,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> bool:
    """Tells whether a gate of this level reports a loss, without an interval, which takes longer.

    Args:
        new: scores of the new system, query by query.
        baseline: those of the baseline.
        level: the share of alarms where there is no loss, at most.
        resamples: the largest number of exchanges that the test tries.
        seed: of random exchanges.
    """
    p_value, _ = randomization_test(mean_gaps(new, baseline), resamples, seed)
    return loss_p_value(float(np.mean(new) - np.mean(baseline)), p_value) <= level


def false_alarms(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    level: float,
    *,
    runs: int = 200,
    seed: int = 0,
) -> int:
    """Counts alarms of A/A runs, in which neither system is better.

    Each run takes a random half of the queries, and exchanges the two scores of each at random.

    Args:
        a: scores of one system, query by query.
        b: those of another, such as one trained with another seed.
        level: of the gate; about `level * runs` alarms are to be expected, or fewer.
        runs: how many.
        seed: of halves and exchanges.
    """
    rng = np.random.default_rng(seed)
    count = 0
    for run in range(runs):
        half = rng.permutation(len(a))[: -(-len(a) // 2)]
        count += raises_alarm(*_exchanged(a[half], b[half], rng), level, seed=seed + run)
    return count


def detection_power(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    loss: float,
    level: float,
    *,
    runs: int = 200,
    seed: int = 0,
) -> float:
    """Computes how often a loss that is planted into one of two equal systems raises an alarm.

    Each run draws as many queries as there are, with replacement, exchanges the two scores of each
    at random, so that the systems are equal but not the same, and plants the loss into one.

    Args:
        a: scores of one system, query by query, from 0 to 1.
        b: those of another.
        loss: of the mean score.
        level: of the gate.
        runs: how many.
        seed: of draws.

    Returns:
        The share of runs with an alarm.

    Raises:
        InputError: the mean scores are below the loss.
    """
    rng = np.random.default_rng(seed)
    count = 0
    for run in range(runs):
        rows = rng.integers(len(a), size=len(a))
        new, baseline = _exchanged(a[rows], b[rows], rng)
        new = plant_loss(new, loss, rng)
        count += raises_alarm(new, baseline, level, seed=seed + run)
    return count / runs


def plant_loss(
    values: Float[np.ndarray, " Q"], loss: float, rng: np.random.Generator
) -> Float[np.ndarray, " Q"]:
    """Lowers the scores of random queries until their mean has fallen by the loss.

    Each loses 37 %, as when its one relevant document falls from the first rank to the second; the
    last one less.

    Args:
        values: scores by query, from 0 to 1.
        loss: of the mean.
        rng: chooses the queries.

    Raises:
        InputError: all queries together cannot lose as much.

    >>> scores = plant_loss(np.ones(100), 0.01, np.random.default_rng(0))
    >>> round(float(1 - scores.mean()), 6), int((scores < 1).sum())
    (0.01, 3)
    """
    left = loss * len(values)
    values = np.array(values, np.float64)
    if left > RANK_DROP * values.sum() * (1 + 1e-9):
        raise InputError(
            f"loss: expected at most {RANK_DROP * values.mean():.3f}, as the mean score is "
            f"{values.mean():.3f}, found {loss}"
        )
    order = rng.permutation(len(values))
    before = np.cumsum(RANK_DROP * values[order]) - RANK_DROP * values[order]
    values[order] -= np.clip(left - before, 0, RANK_DROP * values[order])
    return values


def _exchanged(
    a: Float[np.ndarray, " Q"], b: Float[np.ndarray, " Q"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    swap = rng.integers(2, size=len(a), dtype=bool)
    return np.where(swap, b, a), np.where(swap, a, b)
