"""Chooses the best of the evaluated models of a run, which is its result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from embed_jax.config import Experiment
from embed_jax.errors import InputError


@dataclasses.dataclass
class Best:
    """The state of model selection between evaluations; saved in every checkpoint.

    Attributes:
        value, step: the best evaluation so far; of equal ones the latest.
        last_value, last_step: the latest evaluation.
        stale: evaluations since the last gain of at least `eval.min_gain`.
        losses: mean training loss before each evaluation since that gain, for the warning about
            overfitting.
        stopped: whether patience ran out.
    """

    value: float = -math.inf
    step: int = -1
    last_value: float = -math.inf
    last_step: int = -1
    stale: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    stopped: bool = False
    warned: bool = False


def judge_evaluation(
    best: Best,
    value: float,
    step: int,
    losses: list[float],
    config: Experiment,
    say: Callable[[str], None],
) -> tuple[bool, Best]:
    """Decides whether an evaluation's model is the best, and updates the state of the selection.

    A gain is at least `eval.min_gain`. An equal value is not a gain, but of two equally good models
    the later one is kept. A value that is not a number says nothing about the model: it is neither.
    `losses` are the training losses since the evaluation before.
    """
    metric = config.eval.metric
    if math.isnan(value):
        if step == 0:
            raise InputError(
                f"config.eval.metric: {metric!r} is not a number at step 0{_measured_on(config)}: "
                "where all expected scores or all similarities are equal, it is not defined"
            )
        say(f"warning: {metric} is not a number at step {step}: this evaluation chooses nothing")
        return False, best
    best = dataclasses.replace(best, last_value=value, last_step=step)
    if value > best.value and value >= best.value + config.eval.min_gain:
        return True, dataclasses.replace(best, value=value, step=step, stale=0, losses=[])
    tie = value == best.value
    best = dataclasses.replace(best, stale=best.stale + 1, losses=[*best.losses, *losses])
    best = warn_of_overfitting(best, metric, say)
    best.stopped = bool(config.eval.patience) and best.stale >= config.eval.patience
    return tie, dataclasses.replace(best, step=step) if tie else best


def _measured_on(config: Experiment) -> str:
    """The field and file that `eval.metric` is measured on, as far as a config says it."""
    evaluator = config.eval.metric.split("/")[0]
    fields = {"sts": ("eval.sts", config.eval.sts), "validation": ("data.train", config.data.train)}
    fields["retrieval"] = ("eval.retrieval", config.eval.retrieval)
    fields["geometry"] = fields["sts"] if config.eval.sts else fields["retrieval"]
    if not fields.get(evaluator, ("", ""))[1] and config.data.holdout:
        fields[evaluator] = ("data.train", config.data.train)
    field, file = fields.get(evaluator, ("", ""))
    return f", on config.{field}={file}" if file else ""


def warn_of_overfitting(best: Best, metric: str, say: Callable[[str], None]) -> Best:
    """Warns once when the training loss falls while the metric gains nothing.

    Three evaluations are looked at.
    """
    recent = best.losses[-3:]
    if best.warned or len(recent) < 3 or not recent[0] > recent[1] > recent[2]:
        return best
    say(
        f"warning: the training loss falls ({recent[0]:.4f} to {recent[2]:.4f}) while {metric} has "
        "not improved since "
        f"step {best.step}: overfitting, or the negatives are too easy"
    )
    return dataclasses.replace(best, warned=True)
