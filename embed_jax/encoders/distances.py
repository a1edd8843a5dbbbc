"""Products of tokens with vectors of their distances, without a gather of each pair's."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from embed_jax.types import AnyArray


@struct.dataclass
class DistanceRows:
    """Rows of a table of distances for the offsets -T to T - 1 of one slot from another.

    Attributes:
        forward: the row of each offset.
        backward: the row of each offset with its sign changed.
    """

    forward: Int[Array, " O"]
    backward: Int[Array, " O"]


def find_distance_rows(
    table_rows: int, limit: int, slots: Any, bucketed: bool
) -> tuple[int, int, DistanceRows]:
    """Finds the rows of a table of distances that rows of T slots reach.

    Args:
        table_rows: see `distance_buckets`.
        limit: see `distance_buckets`.
        slots: T; all rows of the table are taken if it is a symbolic size.
        bucketed: see `distance_buckets`.

    Returns:
        The first row that is reached, one more than the last one, and the rows by offset, counted
        from the first one.
    """
    fixed = isinstance(slots, int)
    number = np if fixed else jnp
    buckets = number.asarray(distance_buckets(table_rows, limit, bucketed))
    offset = number.clip(number.arange(2 * slots) - slots, -limit, limit)
    forward, backward = buckets[limit + offset], buckets[limit - offset]
    start, stop = (int(forward[0]), int(backward[0]) + 1) if fixed else (0, table_rows)
    return start, stop, DistanceRows(forward - start, backward - start)


@functools.lru_cache
def distance_buckets(table_rows: int, limit: int, bucketed: bool) -> Int[np.ndarray, " N"]:
    """Returns the row of a table of distances for each distance from -limit to limit.

    >>> distance_buckets(8, 4, False)
    array([0, 1, 2, 3, 4, 5, 6, 7, 7])
    >>> distance_buckets(8, 10, True)[10:]
    array([4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7])

    Args:
        table_rows: an even number, distance 0 being in the middle.
        limit: the distance from which on all are one.
        bucketed: whether distances beyond a quarter of the table share rows, more of them the
            farther they are (He et al. 2021, as published in code); else each has its own.
    """
    span = table_rows // 2
    distance = np.arange(-limit, limit + 1)
    bucket = distance
    if bucketed:
        middle = span // 2
        far = np.maximum(np.abs(distance), middle)
        log = np.log(far / middle) / math.log((limit - 1) / middle)
        wide = np.sign(distance) * (np.ceil(log * (middle - 1)).astype(int) + middle)
        bucket = np.where(np.abs(distance) <= middle, distance, wide)
    return np.clip(bucket + span, 0, table_rows - 1)


def multiply_by_distance(
    states: Float[AnyArray, "R T H d"], vectors: Float[AnyArray, "2*T H d"]
) -> Float[Array, "R H T T"]:
    """Returns the product of each slot i with the vector of its offset j - i to each slot j.

    The tokens of a sentence lie in consecutive slots, so that their distance is that of their
    slots, wherever in a row the sentence lies.

    Args:
        states: a vector for each slot.
        vectors: a vector for each offset from -T to T - 1.
    """
    products = jnp.einsum("rthd,ohd->rhto", states, vectors, preferred_element_type=jnp.float32)
    return shift_rows(products)


def shift_rows(x: Shaped[Array, "*B T 2*T"]) -> Shaped[Array, "*B T T"]:
    """Returns y with y[i, j] = x[i, T + j - i].

    The same numbers are cut into rows that are shorter by one (Dai et al. 2019, appendix B); unlike
    that of a gather, the gradient is not a scatter.

    >>> shift_rows(jnp.arange(8).reshape(2, 4)).tolist()
    [[2, 3], [5, 6]]
    """
    slots = x.shape[-2]
    flat = x.reshape(*x.shape[:-2], -1)
    if isinstance(slots, int):
        # Each row starts one number later than the row above it: that is the shift by i.
        shorter = flat[..., slots:].reshape(*x.shape[:-1], 2 * slots - 1)
        return shorter[..., :slots]
    # In the graph of an ONNX file, which is for any length, slices have known sizes only.
    index = jnp.arange(slots)
    index = 2 * slots * index[:, None] + slots + index - index[:, None]
    return flat.at[..., index].get(mode="promise_in_bounds", wrap_negative_indices=False)
