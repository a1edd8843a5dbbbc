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


Candidates = Callable[[Columns], Any]


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

    def logsumexp(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        further: Any = None,
    ) -> Sums:
        return self._reduce("logsumexp", block, rows, candidates, shared, further)

    def sum(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        further: Any = None,
    ) -> Array:
        return self._reduce("sum", block, rows, candidates, shared, further)[0]

    def max(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        further: Any = None,
    ) -> Array:
        return self._reduce("max", block, rows, candidates, shared, further)[0]

    def gather(self, values: Float[Array, b * x]) -> Float[Array, B * x]:
        return lax.all_gather(values, self.axes, tiled=True) if self.axes else values

    def total(self, value: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return lax.psum(value, self.axes) if self.axes else value

    def view(self, change: Callable[[Columns], Columns]) -> OneWorld:
        return dataclasses.replace(self, columns=change(self.columns))

    def _reduce(
        self, kind: str, block: Block, rows: Any, candidates: Candidates, shared: Any, further: Any
    ) -> Sums:
        arguments = (kind, block, rows, candidates(self.columns), shared)
        if self.form == "ring" and self.axes:
            found = reduce_ring(*arguments, self.axes, tile=self.tile)
        else:
            found = self._reduce_here(*arguments)
        return (
            found
            if further is None
            else _joined(kind, found, self._reduce_here(kind, block, rows, further, shared))
        )

    def _reduce_here(
        self, kind: str, block: Block, rows: Any, candidates: Any, shared: Any
    ) -> Sums:
        """The reduction over candidates that this device has."""
        form = self.form
        if form == "auto":
            pairs = math.prod(jax.eval_shape(block, rows, candidates, shared).shape)
            form = "dense" if pairs <= DENSE_PAIRS else "tiled"
        if form == "dense":
            return reduce_dense(kind, block, rows, candidates, shared)
        return reduce_tiled(kind, block, rows, candidates, shared, tile=self.tile)


def _joined(kind: str, one: Sums, two: Sums) -> Sums:
    """The reduction over two lots of candidates, from each one's."""
    (value, largest), (other, other_largest) = one, two
    if kind == "sum":
        return value + other, value + other
    if kind == "max":
        return jnp.maximum(value, other), jnp.maximum(largest, other_largest)
    nothing = (value == -jnp.inf) & (other == -jnp.inf)  # logaddexp has no gradient there
    total = jnp.logaddexp(jnp.where(nothing, 0.0, value), jnp.where(nothing, 0.0, other))
    return jnp.where(nothing, -jnp.inf, total), jnp.maximum(largest, other_largest)


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
    if form == "ring" or (
        form == "auto" and devices > 1 and own.embeddings.nbytes * devices > RING_BYTES
    ):
        return OneWorld(own, "ring", axes)
    return OneWorld(gather_columns(own, axes), form, axes)


def gather_columns(own: Columns, axes: tuple[str, ...]) -> Columns:
    """Every device's columns, joined in the order of the devices. Call it inside `shard_map`."""

    def gather(name: str) -> Any:
        return jax.tree.map(
            lambda leaf: lax.all_gather(leaf, axes, axis=int(name in BY_COLUMN), tiled=True),
            getattr(own, name),
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
            "text_hash": jnp.arange(1, 2 * columns * batch + 1, dtype=jnp.uint32).reshape(
                columns, batch, 2
            ),
            "example": jnp.arange(batch),
        }
        | leaves
    )
