"""Two models on the same tasks: which differences the data can tell from chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from embed_jax.errors import InputError
from embed_jax.evals.results import TaskResult
from embed_jax.evals.significance import (
    PairedDifference,
    compare_items,
    holm,
    overall_difference,
    paired_difference,
    verdict,
)

# Seeds of one training differ by as much, and with enough items any two sets of weights are told
# apart
MARGIN = 0.01
LIMITS = (
    "Intervals and p-values speak of other items like these, for these weights: not of another "
    "seed of the training.",
    "Not told apart does not mean equal, and a small p-value does not mean a large difference.",
)
A, B, SAME, OPEN = "A", "B", "same", "open"


@dataclasses.dataclass(frozen=True)
class HeadToHead:
    """A compared with B.

    Attributes:
        tasks: the difference of the main scores, A's minus B's, by task.
        adjusted: its p-value, adjusted for as many tests as there are tasks (Holm).
        overall: the difference of the means over tasks; its test exchanges items within each task.
        over_tasks: p-value of the same difference with the tasks taken as a sample of tasks: each
            task's difference may as well have had the other sign. Never below 2^(1 - tasks).
        margin: a difference that does not count.
        left_out: tasks that only one of them has.
    """

    a: str
    b: str
    tasks: Mapping[str, PairedDifference]
    adjusted: Mapping[str, float]
    overall: PairedDifference
    over_tasks: float
    margin: float = MARGIN
    left_out: tuple[str, ...] = ()

    def outcome(self, task: str) -> str:
        """Returns A or B if this one is better on the task, SAME or OPEN.

        A or B: the adjusted test, at 0.05, and the 95 % interval agree on it, and the interval is
        not all within the margin. SAME: the interval is all within the margin. OPEN: the data
        cannot tell.
        """
        return self._decided(self.tasks[task], self.adjusted[task])

    def verdict(self) -> str:
        """Describes the overall difference in one or two sentences."""
        overall = self.overall
        low, high = overall.interval
        if self._decided(overall, overall.p_value) == SAME:
            return (
                f"{self.a} and {self.b} are not told apart: {overall.difference:+.4f}, 95 % "
                f"interval {low:+.4f} to {high:+.4f}, which is within {self.margin:g}."
            )
        sentence = verdict(
            overall.difference, overall.p_value, overall.interval, a=self.a, b=self.b
        )
        if len(self.tasks) < 2:
            return sentence
        return (
            f"{sentence} As a sample of tasks, p = {self.over_tasks:.3f} ({len(self.tasks)} tasks)."
        )

    def _decided(self, difference: PairedDifference, p_value: float) -> str:
        low, high = difference.interval
        if -self.margin <= low and high <= self.margin:
            return SAME
        if p_value < 0.05 and (low > 0 or high < 0):
            return A if low > 0 else B
        return OPEN


def compare_results(
    a: Mapping[str, TaskResult],
    b: Mapping[str, TaskResult],
    labels: tuple[str, str],
    *,
    margin: float = MARGIN,
) -> HeadToHead:
    """Compares the results of two models, task by task and over all tasks.

    Args:
        a: results of the first model, by the task's name.
        b: results of the second model.
        labels: the models' names in the verdict.
        margin: the largest difference that does not count.

    Raises:
        InputError: if no task is common to both, or one's items, main scores or data differ.
    """
    names = [name for name in a if name in b]
    first, second = labels
    if not names:
        raise InputError(
            f"{first} and {second} have no task in common: {', '.join(a)}; {', '.join(b)}"
        )
    for name in names:
        results = a[name], b[name]
        scored = {result.outcome.main for result in results}
        data = {result.details.get("fingerprint", [None, None])[1] for result in results}
        if len(scored) > 1 or len(data) > 1:
            raise InputError(
                f"{name}: {first} and {second} were not scored on the same data by the same options"
            )
    differences, pairs = {}, []
    for name in names:
        items = a[name].outcome.items, b[name].outcome.items
        try:
            differences[name] = compare_items(*items)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        pairs.append(items)
    p_values = [difference.p_value for difference in differences.values()]
    adjusted = dict(zip(names, holm(p_values).tolist(), strict=True))
    left_out = tuple(name for name in {**a, **b} if name not in names)
    over_tasks = 1.0
    if len(names) > 1:
        scores = ([results[name].outcome.score for name in names] for results in (a, b))
        over_tasks = paired_difference(*scores).p_value
    return HeadToHead(
        first,
        second,
        differences,
        adjusted,
        overall_difference(pairs),
        over_tasks,
        margin,
        left_out,
    )
