"""Two models on the same tasks: which differences the data can tell from chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from embed_jax.errors import InputError
from embed_jax.evals.results import Result
from embed_jax.evals.significance import PairedDifference, compare_items, holm, overall_difference, verdict

LIMITS = (
    "An interval and a test speak of other items like these, not of other tasks, nor of another seed of training.",
    "Not told apart does not mean equal; a small p-value does not mean a large difference.",
)


@dataclasses.dataclass(frozen=True)
class HeadToHead:
    """A compared with B.

    Attributes:
        tasks: the difference of the main scores, A's minus B's, by task.
        adjusted: its p-value, adjusted for as many tests as there are tasks (Holm).
        overall: the difference of the means over tasks.
        left_out: tasks that only one of them has.
    """

    a: str
    b: str
    tasks: Mapping[str, PairedDifference]
    adjusted: Mapping[str, float]
    overall: PairedDifference
    left_out: tuple[str, ...] = ()

    def verdict(self) -> str:
        """One sentence on the overall difference."""
        overall = self.overall
        return verdict(overall.difference, overall.p_value, overall.interval, a=self.a, b=self.b)

    def told_apart(self, task: str) -> bool:
        """Whether the adjusted test, at 0.05, and the interval tell the two apart on a task."""
        low, high = self.tasks[task].interval
        return self.adjusted[task] < 0.05 and (low > 0 or high < 0)


def head_to_head(a: Mapping[str, Result], b: Mapping[str, Result], labels: tuple[str, str]) -> HeadToHead:
    """Compares the results of two models, by task's name; `labels` are what the models are called.

    Raises:
        InputError: if no task is common to both, or one's items, main scores or data differ.
    """
    names = [name for name in a if name in b]
    first, second = labels
    if not names:
        raise InputError(f"{first} and {second} have no task in common: {', '.join(a)}; {', '.join(b)}")
    for name in names:
        one, other = a[name], b[name]
        prints = [result.details.get("fingerprint", [None, None])[1] for result in (one, other)]
        if one.outcome.main != other.outcome.main or prints[0] != prints[1]:
            raise InputError(f"{name}: {first} and {second} were not scored on the same data by the same options")
    found, pairs = {}, []
    for name in names:
        items = a[name].outcome.items, b[name].outcome.items
        try:
            found[name] = compare_items(*items)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        pairs.append(items)
    adjusted = dict(zip(names, holm([one.p_value for one in found.values()]).tolist(), strict=True))
    left_out = tuple(name for name in {**a, **b} if name not in names)
    return HeadToHead(first, second, found, adjusted, overall_difference(pairs), left_out)
