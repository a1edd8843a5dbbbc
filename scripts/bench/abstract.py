"""Sizes of the arguments that a training step is compiled for."""

from __future__ import annotations

import math
from typing import Any


def local_bytes(tree: Any) -> int:
    """Returns the bytes of a device's shards of all leaves."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
