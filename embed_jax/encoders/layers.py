"""The small parts that encoders share: linear maps, layer norm, activations, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.registry import unknown

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + lax.erf(x * 0.5**0.5)),  # jax.nn.gelu's erfc takes twice the time on CPU
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation of that name.

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise InputError(unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


class Linear(nn.Module):
    """`x @ kernel + bias`; parameters float32, the product in `dtype`."""

    features: int
    dtype: Any
    stddev: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Two-dimensional, since the kernel's gradient is up to three times slower on CPU from [R, T, I].
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        return (flat @ kernel.astype(self.dtype) + bias.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016); statistics in float32 whatever the dtype."""

    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        return (x * (lax.rsqrt(variance + self.eps) * scale) + bias).astype(self.dtype)


@struct.dataclass
class Places:
    """Where dropout masks are the same: at the same position of the same example.

    Attributes:
        example: whose mask a slot shares.
        position: the token's place in its sentence.
    """

    example: Int[Array, "R T"]
    position: Int[Array, "R T"]

    def starts(self, size: int) -> Int[Array, "R T"]:
        """The index in its mask of the first of each slot's `size` numbers."""
        return (self.example * self.example.shape[-1] + self.position) * size


def dropout(
    x: Float[Array, "*A *B"],
    rate: float,
    key: PRNGKeyArray | None,
    start: int | Int[Array, ""] | Int[Array, "*A"] = 0,
) -> Float[Array, "*A *B"]:
    """Zeroes each element with probability `rate` and scales the rest so that the mean stays; key None: `x`.

    Args:
        start: the index of the first element, where `x` is a piece of a larger array with one mask; or of the first
            element of each of its parts `[*B]`, which have equal masks where it is equal.
    """
    if key is None or rate == 0.0:
        return x
    keep = keep_mask(key, rate, x.shape, start)
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def keep_mask(
    key: PRNGKeyArray, rate: float, shape: tuple[int, ...], start: int | Int[Array, ""] | Int[Array, "*A"] = 0
) -> Bool[Array, "*A *B"]:
    """Which elements a dropout of `rate` keeps: True with probability 1 - rate, the same for the same key.

    An integer hash (Wellons's lowbias32, 2018) of the element's index and of two words drawn from the key:
    a handful of vectorised operations, fused into what uses the mask, where threefry or XLA's own generator
    would take as long on CPU as the attention itself. At most 2^32 elements.

    Args:
        start: the index of the first element, or of each part's first.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    x, stride = words[0] + jnp.asarray(start, jnp.uint32), 1
    given = x.ndim  # leading axes whose indices `start` has
    x = x.reshape(*x.shape, *[1] * (len(shape) - given)) if given else x
    for axis in reversed(range(given, len(shape))):
        x = x + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ words[1]) * jnp.uint32(0x846CA68B)
    return (x ^ (x >> 16)) >= jnp.uint32(round(rate * 2**32))
