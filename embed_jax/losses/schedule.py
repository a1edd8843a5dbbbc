"""Arguments of a loss that follow the steps of a run: temperature='cosine(0.1, 0.02, 1000)'."""

from __future__ import annotations

import ast
import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from embed_jax.errors import InputError
from embed_jax.registry import unknown

SHAPES = {  # the share of the way from start to end after a share of the steps
    "linear": lambda share: share,
    "cosine": lambda share: 0.5 - 0.5 * jnp.cos(jnp.pi * share),
    "quadratic": lambda share: share * share,
    "switch": lambda share: jnp.floor(share),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` within the first `steps` steps, and then stays.

    Attributes:
        shape: of SHAPES.
    """

    shape: str
    start: float
    end: float
    steps: int

    def __call__(self, step: Real[Array, ""] | None) -> Float[Array, ""]:
        """Returns the number at a step, counted from 0; None: outside a run, where it starts."""
        if step is None:
            return jnp.float32(self.start)
        share = jnp.clip(step.astype(jnp.float32) / self.steps, 0.0, 1.0)
        return self.start + (self.end - self.start) * SHAPES[self.shape](share)


def read_schedule(text: str) -> Schedule:
    """Reads a schedule that "SHAPE(start, end, steps)" names.

    Raises:
        InputError: for anything else, saying what is accepted.

    >>> read_schedule("linear(0, 0.5, 100)")
    Schedule(shape='linear', start=0.0, end=0.5, steps=100)
    """
    try:
        match ast.parse(text.strip(), mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=nodes, keywords=[]):
                values = [ast.literal_eval(node) for node in nodes]
            case _:
                raise ValueError
        start, end, steps = values
        if not all(type(value) in (int, float) for value in values):
            raise ValueError
    except (SyntaxError, ValueError):
        raise InputError(
            f"expected a number, or a schedule such as 'cosine(0.1, 0.02, 1000)', found {text!r}"
        ) from None
    if name not in SHAPES:
        raise InputError(unknown("schedule", name, SHAPES))
    if type(steps) is not int or steps < 1:
        raise InputError(f"schedule {text!r}: expected 1 or more steps, found {steps!r}")
    if not (math.isfinite(start) and math.isfinite(end)):
        raise InputError(f"schedule {text!r}: expected finite numbers, found {start} and {end}")
    return Schedule(name, float(start), float(end), steps)


def times(factor: float | Schedule, other: float | Schedule) -> float | Schedule:
    """Multiplies two numbers, one of which may be a schedule.

    Raises:
        InputError: for two schedules.
    """
    if isinstance(other, Schedule):
        factor, other = other, factor
    if isinstance(other, Schedule):
        raise InputError("expected one schedule for each loss, found two")
    if isinstance(factor, Schedule):
        return dataclasses.replace(factor, start=factor.start * other, end=factor.end * other)
    return factor * other
