"""What a loss says about itself, so that data and parameters can be prepared for it and wrong use refused.

A loss is a function `(own: Columns, world: World, params, *, arguments ...) -> (values, weights, metrics)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from embed_jax.types import Params

NEEDS = ("label", "score", "scores", "guide", "teacher")


@dataclasses.dataclass(frozen=True)
class About:
    """What a loss needs.

    Attributes:
        needs: some of NEEDS. "label": an integer class with every example; "score": one target with every pair;
            "scores": one with every candidate; "guide", "teacher": embeddings of the same texts by a frozen model.
        columns: the fewest and the most texts of an example; most 0: any number.
        init: `(dim: int, key: PRNGKeyArray, **arguments) -> params`: the loss's own parameters at the start; it is
            given those of the loss's arguments, defaults included, that it takes by name. None: it has none.
        tiled: whether its memory stays linear in the batch when the world is tiled or a ring.
        queue: whether positives of earlier batches (`Columns.queue`) are further negatives.
        classes: labels must be below this number; 0: any. With its arguments settled, the loss's `num_labels`.
        prefixes: whether it compares several prefixes of the embeddings in one pass (`Columns.prefixes`).
        dims: the sizes to which embeddings trained with it may be cut; none: they were trained as a whole.
        layers: how many earlier layers' embeddings it is given a step (`Columns.layers`); -1: all of them.
    """

    needs: tuple[str, ...] = ()
    columns: tuple[int, int] = (2, 0)
    init: Callable[..., Params] | None = None
    tiled: bool = False
    classes: int = 0
    queue: bool = False
    prefixes: bool = False
    dims: tuple[int, ...] = ()
    layers: int = 0


def loss(
    *,
    needs: tuple[str, ...] = (),
    columns: tuple[int, int] = (2, 0),
    init: Callable[..., Params] | None = None,
    tiled: bool = False,
    queue: bool = False,
    classes: int = 0,
    prefixes: bool = False,
) -> Callable[[Callable], Callable]:
    """Marks a function as a loss; see `About`."""

    def mark(function: Callable) -> Callable:
        function.about = About(tuple(needs), columns, init, tiled, classes, queue, prefixes)
        return function

    return mark


def about(function: Any) -> About:
    """What a loss says about itself."""
    return getattr(function, "about", About())
