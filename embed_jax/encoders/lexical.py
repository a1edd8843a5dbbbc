"""A head that gives each token of a text a weight: BGE-M3's sparse embeddings.

Unlike `vocabulary.Splade` it adds no words that the text lacks, and needs no language model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.types import AnyArray, Params, TokenBatch


@dataclasses.dataclass(frozen=True)
class LexicalWeights:
    """w_j = max of relu(state_i w + b) over the text's tokens i that are token j, else 0.

    Chen et al. (2024), "M3-Embedding", section 3.2 (arXiv 2402.03216).

    Attributes:
        unused: tokens without a weight: special ones, as in FlagEmbedding.
    """

    unused: tuple[int, ...] = ()

    def init(self, config: Any, key: PRNGKeyArray) -> Params:
        """Returns a random kernel [H, 1] and a bias of zeros."""
        return {
            "kernel": 0.02 * jax.random.normal(key, (config.hidden_size, 1)),
            "bias": jnp.zeros(1),
        }

    def of_tokens(
        self, params: Params, states: Float[AnyArray, "R T H"], tokens: TokenBatch
    ) -> Float[Array, "R T"]:
        """Computes the weight of each slot; 0 for unused tokens and those that do not count."""
        states, kernel = jnp.asarray(states).astype(jnp.float32), params["kernel"]
        weights = jnp.matmul(states, kernel.astype(jnp.float32), precision="highest")
        weights = jax.nn.relu(weights[..., 0] + params["bias"].astype(jnp.float32)[0])
        counts = jnp.asarray(tokens.pooled)
        if self.unused:
            counts &= ~jnp.isin(jnp.asarray(tokens.token_ids), jnp.array(self.unused))
        return jnp.where(counts, weights, 0.0)

    def apply(
        self,
        params: Params,
        config: Any,
        states: Float[AnyArray, "R T H"],
        table: Float[AnyArray, "V W"],
        tokens: TokenBatch,
        dtype: str = "float32",
    ) -> Float[Array, "S V"]:
        """Computes the weights of one group's sentences, float32; see `Splade.apply`.

        Of equal largest weights of a token, the first one has the gradient.
        """
        weights = self.of_tokens(params, states, tokens).reshape(-1)
        sentence = jnp.asarray(tokens.sentence).reshape(-1)
        ids = jnp.asarray(tokens.token_ids).reshape(-1)
        # Which slot has the largest weight of its token: maxima are taken without gradient.
        shape = (tokens.sentences + 1, config.vocab_size)
        fixed = lax.stop_gradient(weights)
        zero = jnp.where(jnp.zeros((), bool), fixed[0], 0.0)  # varies over the mesh as they do
        largest = (jnp.zeros(shape) + zero).at[sentence, ids].max(fixed)
        reached = fixed == largest[sentence, ids]
        slot = jnp.arange(len(ids), dtype=jnp.int32)
        last = len(ids) + zero.astype(jnp.int32)
        first = (
            (jnp.zeros(shape, jnp.int32) + last)
            .at[sentence, ids]
            .min(jnp.where(reached, slot, len(ids)))
        )
        chosen = jnp.where(first[sentence, ids] == slot, weights, 0.0)
        return (jnp.zeros(shape) + zero).at[sentence, ids].add(chosen)[:-1]
