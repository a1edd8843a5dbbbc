"""Heads that may follow the pooling.

Sentence-transformers' Dense, LayerNorm, Normalize and `truncate_dim`, SimCSE's MLP.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders import layers
from embed_jax.encoders.layers import activation
from embed_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Dense:
    """activation(x @ kernel + bias), to which a residual adds x; sentence-transformers' Dense.

    SimCSE's MLP (Gao et al. 2021) is `Dense(d, d)`: linear and tanh on the [CLS] vector.

    Attributes:
        residual: whether x is added, by way of a linear map without bias if the two sizes differ.
    """

    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "tanh"
    residual: bool = False

    def init(self, key: PRNGKeyArray) -> Params:
        shape = (self.in_features, self.out_features)
        params = {"kernel": 0.02 * jax.random.normal(key, shape)}
        params |= {"bias": jnp.zeros(self.out_features)} if self.bias else {}
        if self.residual and self.in_features != self.out_features:
            params["residual"] = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), shape)
        return params

    def apply(self, params: Params, x: Float[Array, "S I"]) -> Float[Array, "S O"]:
        params = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32), params
        )  # from whatever they are stored in
        out = jnp.matmul(x, params["kernel"], precision="highest")
        out = activation(self.activation)(out + params["bias"] if self.bias else out)
        if not self.residual:
            return out
        return out + (
            jnp.matmul(x, params["residual"], precision="highest") if "residual" in params else x
        )

    def dim(self, _: int) -> int:
        return self.out_features


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of the vectors; sentence-transformers' LayerNorm."""

    dimension: int

    def init(self, key: PRNGKeyArray) -> Params:
        return {"scale": jnp.ones(self.dimension), "bias": jnp.zeros(self.dimension)}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        return layers.LayerNorm(1e-5, jnp.float32).apply(
            {"params": params}, x
        )  # torch's eps, which no file changes

    def dim(self, _: int) -> int:
        return self.dimension


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Vectors of length 1; a zero vector stays zero, with a zero gradient."""

    def init(self, key: PRNGKeyArray) -> Params:
        return {}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    def dim(self, dim: int) -> int:
        return dim


@dataclasses.dataclass(frozen=True)
class Truncate:
    """The first numbers of the vectors, as they are.

    Sentence-transformers' `truncate_dim`, which comes last.
    """

    out_features: int

    def init(self, key: PRNGKeyArray) -> Params:
        return {}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S O"]:
        return x[:, : self.out_features]

    def dim(self, dim: int) -> int:
        return min(dim, self.out_features)


Head = Dense | LayerNorm | Normalize | Truncate
