"""Shapes to compile a training step for, with nothing allocated."""

from __future__ import annotations

import math
from typing import Any


def abstract_batch(groups: int, columns: int, examples: int, rows: int, row_length: int) -> Any:
    """A `types.Batch` of shapes: G groups of E examples with C texts each, packed into rows."""
    import jax
    import jax.numpy as jnp

    from embed_jax.types import Batch, TokenBatch

    slots = [
        jax.ShapeDtypeStruct((groups, rows, row_length), dtype)
        for dtype in (*(jnp.int32,) * 3, bool)
    ]
    return Batch(
        {"encoder": TokenBatch(*slots, sentences=columns * examples)},
        present=jax.ShapeDtypeStruct((groups, columns, examples), bool),
        text_hash=jax.ShapeDtypeStruct((groups, columns, examples, 2), jnp.uint32),
        record=jax.ShapeDtypeStruct((groups, examples), jnp.int32),
    )


def placed(leaf: Any, sharding: Any) -> Any:
    """The shape of an array that lies so."""
    import jax

    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def local_bytes(tree: Any) -> int:
    """Bytes of a device's shards of all leaves."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
