"""Our numbers beside a paper's: intervals, rank correlation of the rows, verdicts on claims.

Few seeds say little, and the intervals show it: with two, Student's factor is 12.7.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from embed_jax.train.ablation_table import Table

RESAMPLES = 2000
Values = Mapping[str, Mapping[int, float]]  # {row: {seed: value}}, larger is better


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and the number of values; ends are nan for a single value."""

    mean: float
    low: float
    high: float
    n: int


def student_interval(values: Sequence[float]) -> Interval:
    """Computes Student's 95 % interval of a mean (Student 1908).

    >>> round(student_interval([1.0, 2.0, 3.0]).high, 3)
    4.484
    """
    from scipy.stats import t

    mean, n = math.fsum(values) / len(values), len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Our runs' answer to a claim of the paper.

    Attributes:
        claim: the claim.
        verdict: "holds", "does not hold", or "cannot tell".
        gain: by how much the row that should be better is better, over the seeds that both have.
    """

    claim: str
    verdict: str
    gain: Interval | None


def judge(table: Table, values: Values) -> list[Verdict]:
    """Judges each claim by the differences of two rows, seed by seed.

    A claim holds if the 95 % interval of the mean difference is above 0, and does not if it is
    below.
    """
    verdicts = []
    for claim, (left, sign, right) in table.claims.items():
        better, worse = (left, right) if sign == ">" else (right, left)
        shared = sorted(values.get(better, {}).keys() & values.get(worse, {}).keys())
        if not shared:
            verdicts.append(Verdict(claim, "cannot tell", None))
            continue
        gain = student_interval([values[better][seed] - values[worse][seed] for seed in shared])
        verdict = "holds" if gain.low > 0 else "does not hold" if gain.high < 0 else "cannot tell"
        verdicts.append(Verdict(claim, verdict, gain))
    return verdicts


def rank_correlation(table: Table, values: Values) -> Interval | None:
    """Computes Kendall's tau-b of our rows' means with the paper's numbers.

    Its interval is that of a bootstrap over seeds: each resample draws as many seeds as there are,
    the same for all rows. Source: Kendall (1945); Efron (1979).

    Returns:
        None with fewer than three rows that have a number of the paper, or if all are equal.
    """
    from scipy.stats import kendalltau

    rows = [row for row in table.paper if values.get(row)]
    seeds = sorted(set.intersection(*(set(values[row]) for row in rows))) if rows else []
    if len(rows) < 3 or not seeds:
        return None
    ours = np.array([[values[row][seed] for seed in seeds] for row in rows])
    paper = [table.paper[row] for row in rows]
    tau = float(kendalltau(ours.mean(1), paper).statistic)
    if math.isnan(tau):
        return None
    draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    taus = [kendalltau(ours[:, draw].mean(1), paper).statistic for draw in np.unique(draws, axis=0)]
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    low, high = np.nanquantile(np.repeat(taus, counts), [0.025, 0.975])
    return Interval(tau, float(low), float(high), len(seeds))
