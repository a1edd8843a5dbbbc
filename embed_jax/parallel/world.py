"""The world of all devices' examples (`types.World`), with or without gathering them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from embed_jax.parallel.tiled import largest_tiled, reduce_ring, reduce_tiled
from embed_jax.types import TREES, Block, Columns
from embed_jax.world import Candidates, LocalWorld, Sums, join_sums, largest_dense, reduce_dense

FORMS = ("auto", "dense", "tiled", "ring")
# "auto": numbers of one reduction on a device up to which all are held at once, and bytes of
# gathered embeddings, of every leaf, from which they are passed in a ring instead.
DENSE_NUMBERS = 2**22
RING_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class OneWorld(LocalWorld):
    """A world of `types.World` on a mesh.

    Attributes:
        columns: those that reductions start from: everybody's, or with "ring" this device's own.
        form: "dense" holds all pairs, "tiled" a block of them at a time, "ring" besides holds no
            more candidates than two devices have; "auto": by size.
        axes: the mesh axes to gather over; empty: this device is the world.
        tile: candidates of a block; 0: by size.
    """

    columns: Columns
    form: str = "auto"
    axes: tuple[str, ...] = ()
    tile: int = 0

    def gather(self, values: Shaped[Array, "b *x"]) -> Shaped[Array, "B *x"]:
        return lax.all_gather(values, self.axes, tiled=True) if self.axes else values

    def total(self, value: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return lax.psum(value, self.axes) if self.axes else value

    def largest(
        self, block: Block, rows: Any, candidates: Candidates, count: int
    ) -> Float[Array, "M b count"]:
        arguments = block, rows, candidates(self.columns)
        axes = self.axes if self.form == "ring" else ()
        if not axes and self._form(*arguments, None, 1) == "dense":
            return largest_dense(*arguments, count)
        return largest_tiled(*arguments, count, tile=self.tile, axis=axes)

    def _reduce(
        self,
        kind: str,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any,
        extra_candidates: Any,
        numbers: int,
    ) -> Sums:
        arguments = (kind, block, rows, candidates(self.columns), shared)
        if self.form == "ring" and self.axes:
            sums = reduce_ring(*arguments, self.axes, tile=self.tile, numbers=numbers)
        else:
            sums = self._reduce_here(*arguments, numbers)
        if extra_candidates is None:
            return sums
        return join_sums(
            kind, sums, self._reduce_here(kind, block, rows, extra_candidates, shared, numbers)
        )

    def _reduce_here(
        self, kind: str, block: Block, rows: Any, candidates: Any, shared: Any, numbers: int
    ) -> Sums:
        """Reduces over candidates that this device has."""
        if self._form(block, rows, candidates, shared, numbers) == "dense":
            return reduce_dense(kind, block, rows, candidates, shared)
        return reduce_tiled(kind, block, rows, candidates, shared, tile=self.tile, numbers=numbers)

    def _form(self, block: Block, rows: Any, candidates: Any, shared: Any, numbers: int) -> str:
        """Returns how candidates that this device has are held: "dense", or in tiles."""
        if self.form != "auto":
            return self.form
        pairs = math.prod(jax.eval_shape(block, rows, candidates, shared).shape)
        return "dense" if pairs * numbers <= DENSE_NUMBERS else "tiled"


def local_world(columns: Columns, form: str = "auto", tile: int = 0) -> OneWorld:
    """Makes the world of one device.

    `loss(columns, local_world(columns), params)` is the loss of these examples.
    """
    return OneWorld(columns, form, (), tile)


def device_world(own: Columns, form: str, axes: tuple[str, ...]) -> OneWorld:
    """Makes the world of all devices, seen from one of them.

    Call it inside `shard_map`.

    Args:
        own: the device's own columns.
        form: one of FORMS.
        axes: the mesh axes over which the batch is split.
    """
    devices = lax.axis_size(axes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(own.embeddings))
    if form == "ring" or (form == "auto" and devices > 1 and size * devices > RING_BYTES):
        return OneWorld(own, "ring", axes)
    return OneWorld(gather_columns(own, axes), form, axes)


def gather_columns(own: Columns, axes: tuple[str, ...]) -> Columns:
    """Gathers every device's columns, joined in the order of the devices.

    Call it inside `shard_map`.
    """

    def gather(leaf: Array, axis: int) -> Array:
        return lax.all_gather(leaf, axes, axis=axis, tiled=True)

    def gather_alike(leaves: list[Array]) -> list[Array]:
        """Gathers leaves of one shape and type, such as all columns' embeddings, at once."""
        return list(gather(jnp.stack(leaves), 1)) if len(leaves) > 1 else [gather(leaves[0], 0)]

    gathered = own.replace(**dict.fromkeys(TREES)).map_examples(gather)
    trees = {}
    for name in TREES:
        leaves, structure = jax.tree.flatten(getattr(own, name))
        alike: dict[tuple, list[int]] = {}
        for i, leaf in enumerate(leaves):
            alike.setdefault((leaf.shape, leaf.dtype), []).append(i)
        for indices in alike.values():
            everybodys = gather_alike([leaves[i] for i in indices])
            for i, leaf in zip(indices, everybodys, strict=True):
                leaves[i] = leaf
        trees[name] = jax.tree.unflatten(structure, leaves)
    return gathered.replace(**trees)
