"""A weighted mean of the layers' token states, before they are pooled.

Sentence-transformers' WeightedLayerPooling.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.types import Params


@dataclasses.dataclass(frozen=True)
class WeightedLayers:
    r"""sum_l w_l x_l / sum_l w_l over the layers l from `start` on, with trained weights w.

    Layer 0 are the embeddings that the first layer reads; the last one's states are those after the
    backbone's final norm, if it has one, as transformers counts its `hidden_states`.

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
        """Equal weights, float32."""
        return {"weights": jnp.ones(self.num_layers + 1 - self.start)}

    def apply(self, params: Params, hidden: Float[Array, "L R T D"]) -> Float[Array, "R T D"]:
        """The states to pool, in float32, from those of the embeddings and of every layer."""
        weights = params["weights"].astype(jnp.float32)
        states = hidden[self.start :].astype(jnp.float32)
        return jnp.einsum("l,lrtd->rtd", weights, states, precision="highest") / weights.sum()
