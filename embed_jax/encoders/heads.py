"""Heads that may follow the pooling, of which an encoder's last one gives embeddings or logits.

They are sentence-transformers' modules of these names, and its `truncate_dim`. Each has `init`,
`apply` and `dim`, the size of its output by that of its input. A dropout key is given in training
only; the others than Dropout ignore it. Where there is no pooling, heads are applied to the vector
of each token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders import layers
from embed_jax.encoders.layers import activation
from embed_jax.types import AnyArray, Params


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

    def apply(
        self, params: Params, x: Float[AnyArray, "*S I"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S O"]:
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
        eps: added to the variance.
        bias: whether a bias is added.
    """

    dimension: int
    eps: float = 1e-5  # torch's
    bias: bool = True

    def init(self, key: PRNGKeyArray) -> Params:
        params = {"scale": jnp.ones(self.dimension)}
        return params | ({"bias": jnp.zeros(self.dimension)} if self.bias else {})

    def apply(
        self, params: Params, x: Float[AnyArray, "*S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S D"]:
        norm = layers.LayerNormalization(self.eps, jnp.float32, use_bias=self.bias)
        return layers.apply_module(norm, params, x)

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

    def apply(
        self, params: Params, x: Float[AnyArray, "*S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S D"]:
        x = jnp.asarray(x)
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

    def apply(
        self, params: Params, x: Float[AnyArray, "*S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S O"]:
        return jnp.asarray(x)[..., : self.out_features]

    def dim(self, dim: int) -> int:
        return min(dim, self.out_features)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Zeroes numbers of the vectors at random in training; see `layers.dropout`.

    Attributes:
        rate: the probability of a number to become 0.
    """

    rate: float

    def init(self, key: PRNGKeyArray) -> Params:
        return {}

    def apply(
        self, params: Params, x: Float[Array, "*S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S D"]:
        return layers.dropout(x, self.rate, key)

    def dim(self, dim: int) -> int:
        return dim


@dataclasses.dataclass(frozen=True)
class LogitScore:
    """A language model's logit of one token less another's; sentence-transformers' LogitScore.

    Only these rows of the model's output layer are parameters; logits of other tokens are never
    computed.

    >>> head = LogitScore(2, true_token_id=7, false_token_id=9)
    >>> rows = jnp.array([[1.0, 2.0], [0.0, 1.0]])  # of "yes" and "no"
    >>> head.apply({"rows": rows}, jnp.array([[3.0, 4.0]])).tolist()
    [[7.0]]

    Attributes:
        in_features: D, the size of the vectors.
        true_token_id: the token whose logit counts for the pair, such as "yes".
        false_token_id: the token whose logit counts against it, such as "no"; None: no token does.
        softcap: c: logits s become c tanh(s / c) (Gemma 2); 0: they stay as they are.
    """

    in_features: int
    true_token_id: int
    false_token_id: int | None = None
    softcap: float = 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the rows, in their order."""
        ids = (self.true_token_id, self.false_token_id)
        return tuple(token_id for token_id in ids if token_id is not None)

    def init(self, key: PRNGKeyArray) -> Params:
        return {"rows": 0.02 * jax.random.normal(key, (len(self.token_ids), self.in_features))}

    def apply(
        self, params: Params, x: Float[AnyArray, "*S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*S 1"]:
        rows = params["rows"].astype(jnp.float32)
        logits = jnp.matmul(x, rows.T, precision="highest")
        if self.softcap:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        return logits[..., :1] - logits[..., 1:] if len(self.token_ids) > 1 else logits

    def dim(self, _: int) -> int:
        return 1


Head = Dense | LayerNorm | Normalize | Truncate | Dropout | LogitScore
