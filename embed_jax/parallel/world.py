"""What losses ask about the examples of all devices (`types.World`), answered with or without gathering them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from embed_jax.parallel.tiled import Sums, reduce_dense, reduce_ring, reduce_tiled
from embed_jax.types import BY_COLUMN, Block, Columns

FORMS = ("auto", "dense", "tiled", "ring")
# "auto": pairs on a device (numbers of one reduction) up to which they are all held at once, and bytes of gathered
# embeddings from which they are passed round instead.
DENSE_PAIRS = 2**22
RING_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class OneWorld:
    """A world of `types.World`.

    Attributes:
        columns: those that reductions start from: everybody's, or with "ring" this device's own.
        form: "dense" holds all pairs, "tiled" a block of them at a time, "ring" besides holds no more candidates than
            two devices have; "auto": by size.
        axes: the mesh axes to ask over; none: this device is the world.
        tile: candidates of a block; 0: by size.
    """

    columns: Columns
    form: str = "auto"
    axes: tuple[str, ...] = ()
    tile: int = 0

    def logsumexp(self, block: Block, rows: Any, candidates: Callable[[Columns], Any], shared: Any = None) -> Sums:
        return self._reduce("logsumexp", block, rows, candidates, shared)

    def sum(self, block: Block, rows: Any, candidates: Callable[[Columns], Any], shared: Any = None) -> Array:
        return self._reduce("sum", block, rows, candidates, shared)[0]

    def max(self, block: Block, rows: Any, candidates: Callable[[Columns], Any], shared: Any = None) -> Array:
        return self._reduce("max", block, rows, candidates, shared)[0]

    def gather(self, values: Float[Array, b * x]) -> Float[Array, B * x]:
        return lax.all_gather(values, self.axes, tiled=True) if self.axes else values

    def total(self, value: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return lax.psum(value, self.axes) if self.axes else value

    def view(self, change: Callable[[Columns], Columns]) -> OneWorld:
        return dataclasses.replace(self, columns=change(self.columns))

    def _reduce(self, kind: str, block: Block, rows: Any, candidates: Callable, shared: Any) -> Sums:
        arguments = (kind, block, rows, candidates(self.columns), shared)
        if self.form == "ring" and self.axes:
            return reduce_ring(*arguments, self.axes, tile=self.tile)
        form = self.form
        if form == "auto":
            pairs = math.prod(jax.eval_shape(*arguments[1:]).shape)
            form = "dense" if pairs <= DENSE_PAIRS else "tiled"
        return reduce_dense(*arguments) if form == "dense" else reduce_tiled(*arguments, tile=self.tile)


def local_world(columns: Columns, form: str = "auto", tile: int = 0) -> OneWorld:
    """The world of one device: `loss(columns, local_world(columns), params)` is the loss of these examples."""
    return OneWorld(columns, form, (), tile)


def device_world(own: Columns, form: str, axes: tuple[str, ...]) -> OneWorld:
    """The world of all devices, seen from one of them. Call it inside `shard_map`.

    Args:
        own: the device's own columns.
        form: one of FORMS.
        axes: the mesh axes over which the batch is split.
    """
    devices = lax.axis_size(axes)
    if form == "ring" or (form == "auto" and devices > 1 and own.embeddings.nbytes * devices > RING_BYTES):
        return OneWorld(own, "ring", axes)
    return OneWorld(gather_columns(own, axes), form, axes)


def gather_columns(own: Columns, axes: tuple[str, ...]) -> Columns:
    """Every device's columns, joined in the order of the devices. Call it inside `shard_map`."""

    def gather(name: str) -> Any:
        return jax.tree.map(
            lambda leaf: lax.all_gather(leaf, axes, axis=int(name in BY_COLUMN), tiled=True), getattr(own, name)
        )

    return Columns(**{field.name: gather(field.name) for field in dataclasses.fields(Columns)})


def make_columns(embeddings: Float[Array, "C B D"], **leaves: Any) -> Columns:
    """Columns of embeddings alone, all present and all of different texts, for losses without a data set.

    Args:
        leaves: further fields of Columns.
    """
    columns, batch, _ = embeddings.shape
    return Columns(
        **{
            "embeddings": embeddings,
            "present": jnp.ones((columns, batch), bool),
            "text_hash": jnp.arange(1, 2 * columns * batch + 1, dtype=jnp.uint32).reshape(columns, batch, 2),
            "example": jnp.arange(batch),
        }
        | leaves
    )
