"""Frozen linear maps in eight bits: integers with one scale per output.

Only the weights are quantized, not the activations that they multiply.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from jaxtyping import Int8 as Integers

from embed_jax.types import AnyArray, Params


class Int8(struct.PyTreeNode):
    """A kernel in eight bits, `values * scale`; it takes the kernel's place in a parameter tree."""

    values: Integers[Array, "*L I O"]
    scale: Float[Array, "*L 1 O"]


def quantize_kernel(kernel: Float[AnyArray, "*L I O"]) -> Int8:
    """Rounds each weight to the nearest of 255 evenly spaced numbers around zero.

    scale_o = max_i |w_io| / 127, values = round(w / scale): symmetric, so that |w - values * scale|
    <= scale / 2.

    >>> quantize_kernel(np.array([[1.0, -4.0], [-2.0, 2.0]])).values.tolist()
    [[64, -127], [-127, 64]]

    Args:
        kernel: the weights; a NumPy array gives NumPy arrays.
    """
    numpy = np if isinstance(kernel, np.ndarray) else jnp
    kernel = kernel.astype(np.float32)
    scale = numpy.abs(kernel).max(axis=-2, keepdims=True) / np.float32(127)
    # An output whose weights are all 0: any scale gives 0 back, and 0 / 0 is avoided.
    scale = numpy.where(scale > 0, scale, np.float32(1))
    return Int8(numpy.round(kernel / scale).astype(np.int8), scale)


def dequantize_params(tree: Params, dtype: Any = np.float32) -> Params:
    """Returns the tree with `Int8` kernels as arrays of that dtype; other leaves stay the same.

    >>> params = {"kernel": quantize_kernel(np.array([[0.5, -2.0]]))}
    >>> dequantize_params(params)["kernel"].tolist()
    [[0.5, -2.0]]
    """

    def plain(leaf: Any) -> Any:
        return (
            (leaf.values.astype(np.float32) * leaf.scale).astype(dtype)
            if isinstance(leaf, Int8)
            else leaf
        )

    return jax.tree.map(plain, tree, is_leaf=_is_int8)


def quantize_layers(params: Params) -> Params:
    """Returns an encoder's parameters with all kernels of the backbone's layers in eight bits."""
    layers = flatten_dict(params["backbone"]["layers"])
    layers = {
        path: quantize_kernel(leaf) if path[-1] == "kernel" else leaf
        for path, leaf in layers.items()
    }
    return {**params, "backbone": {**params["backbone"], "layers": unflatten_dict(layers)}}


def has_int8(tree: Params) -> bool:
    """Tells whether some leaf is in eight bits."""
    return any(_is_int8(leaf) for leaf in jax.tree.leaves(tree, is_leaf=_is_int8))


def _is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8)
