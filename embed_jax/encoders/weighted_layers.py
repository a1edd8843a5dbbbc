"""A weighted mean of the layers' token states; sentence-transformers' WeightedLayerPooling."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.types import Params


@dataclasses.dataclass(frozen=True)
class WeightedLayers:
    """Computes sum_l w_l x_l / sum_l w_l over the layers l from `start` on, with trained weights w.

    Layer 0 is the embeddings that the first layer reads; the last layer's states are those after
    the backbone's final norm, if it has one, as in transformers' `hidden_states`.

    >>> head = WeightedLayers(width=2, num_layers=2, start=1)
    >>> hidden = jnp.stack([jnp.full((1, 1, 2), x) for x in (9.0, 1.0, 3.0)])
    >>> head.apply(head.init(jax.random.key(0)), hidden).tolist()
    [[[2.0, 2.0]]]

    Attributes:
        width: D, of the token states.
        num_layers: L, of the backbone.
        start: the first layer that counts, 0 to L.
    """

    width: int
    num_layers: int
    start: int = 4

    def __post_init__(self):
        if not 0 <= self.start <= self.num_layers:
            raise InputError(
                f"weighted layers: start: expected 0 to {self.num_layers}, found {self.start}"
            )

    def init(self, key: PRNGKeyArray) -> Params:
        """Returns equal weights, float32."""
        return {"weights": jnp.ones(self.num_layers + 1 - self.start)}

    def apply(self, params: Params, hidden: Float[Array, "L R T D"]) -> Float[Array, "R T D"]:
        """Returns the states to pool, float32, from those of the embeddings and of every layer."""
        weights = params["weights"].astype(jnp.float32)
        states = hidden[self.start :].astype(jnp.float32)
        return jnp.einsum("l,lrtd->rtd", weights, states, precision="highest") / weights.sum()
