"""Heads that may follow the pooling: Dense (also SimCSE's MLP), LayerNorm, Normalize and Truncate.

They are sentence-transformers' modules of these names, and its `truncate_dim`.
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

    >>> head = Dense(4, 2)
    >>> head.apply(head.init(jax.random.key(0)), jnp.ones((3, 4))).shape
    (3, 2)

    Attributes:
        in_features: I, the size of the input vectors.
        out_features: O, the size of the output vectors.
        bias: whether a bias is added.
        activation: one of layers.ACTIVATIONS.
        residual: whether x is added, through a linear map without bias if the two sizes differ.
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
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
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
    """Layer normalisation of the vectors; sentence-transformers' LayerNorm.

    >>> head = LayerNorm(2)
    >>> head.apply(head.init(jax.random.key(0)), jnp.array([[1.0, 3.0]])).round(2).tolist()
    [[-1.0, 1.0]]

    Attributes:
        dimension: D, the size of the vectors.
    """

    dimension: int

    def init(self, key: PRNGKeyArray) -> Params:
        return {"scale": jnp.ones(self.dimension), "bias": jnp.zeros(self.dimension)}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        # torch's eps, which no file changes
        return layers.apply_module(layers.LayerNorm(1e-5, jnp.float32), params, x)

    def dim(self, _: int) -> int:
        return self.dimension


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Scales vectors to length 1; a zero vector stays zero, with a zero gradient.

    >>> Normalize().apply({}, jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """

    def init(self, key: PRNGKeyArray) -> Params:
        return {}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    def dim(self, dim: int) -> int:
        return dim


@dataclasses.dataclass(frozen=True)
class Truncate:
    """Keeps the first numbers of the vectors; sentence-transformers' `truncate_dim`, always last.

    >>> Truncate(2).apply({}, jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0]]

    Attributes:
        out_features: how many numbers are kept.
    """

    out_features: int

    def init(self, key: PRNGKeyArray) -> Params:
        return {}

    def apply(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S O"]:
        return x[:, : self.out_features]

    def dim(self, dim: int) -> int:
        return min(dim, self.out_features)


Head = Dense | LayerNorm | Normalize | Truncate
