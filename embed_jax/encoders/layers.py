"""The small parts that encoders share: linear maps, layer norm, activations, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.registry import unknown

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
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
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


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


def dropout(x: Float[Array, "*B"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*B"]:
    """Zeroes each element with probability `rate` and scales the rest so that the mean stays; key None: `x`."""
    if key is None or rate == 0.0:
        return x
    keep, probability = keep_mask(key, rate, x.shape)
    return jnp.where(keep, x * jnp.asarray(1 / probability, x.dtype), jnp.zeros((), x.dtype))


def keep_mask(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> tuple[Bool[Array, "*B"], float]:
    """Which elements a dropout of `rate` keeps, and the exact probability of that.

    A mask needs few bits an element, so they are cut out of 32-bit words: 8 bits, or 16 below a rate of 0.05,
    where rounding the rate to 1/256 would be coarse. The words come from XLA's own generator ("rbg"), which
    costs a fraction of threefry; its key is drawn from `key`, so the same key gives the same mask.

    Returns:
        The mask, and the probability of True: 1 - rate, rounded to 1/256 or 1/65536.
    """
    bits = 8 if rate >= 0.05 else 16
    levels, dtype = 1 << bits, jnp.uint8 if bits == 8 else jnp.uint16
    threshold = min(max(round(rate * levels), 0), levels - 1)
    size = 1
    for n in shape:
        size *= n
    words = -(-size * bits // 32)
    fast_key = jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="rbg")
    random = lax.bitcast_convert_type(jax.random.bits(fast_key, (words,), jnp.uint32), dtype)
    keep = random.reshape(-1)[:size].reshape(shape) >= jnp.asarray(threshold, dtype)
    return keep, 1.0 - threshold / levels
