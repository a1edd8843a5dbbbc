"""Masked language modelling: hides tokens, and predicts them (Devlin et al. 2019, section 3.1).

The head is BERT's `cls.predictions` (RoBERTa's `lm_head`): a linear map, activation and norm, then
the product with the table of token embeddings, which it shares with the encoder, and a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from embed_jax.encoders.layers import LayerNormalization, Linear, activation, apply_module
from embed_jax.types import AnyArray, Params, TokenBatch

# Shares of the chosen tokens that become the mask token, and a random token; the others stay.
MASKED, RANDOM = 0.8, 0.1
WITHOUT_BIAS = ("modernbert",)  # families whose linear map and norm have none


class MlmTransform(nn.Module):
    """Maps token states to vectors that are multiplied with the table of token embeddings."""

    config: Any

    @nn.compact
    def __call__(self, x: Float[Array, "K H"], width: int) -> Float[Array, "K W"]:
        config, bias = self.config, self.config.family not in WITHOUT_BIAS
        x = Linear(width, jnp.float32, config.initializer_range, bias, name="dense")(x)
        return LayerNormalization(config.layer_norm_eps, jnp.float32, bias, name="norm")(
            activation(config.activation)(x)
        )


def init_head(config: Any, key: PRNGKeyArray) -> Params:
    """Returns the head's initial parameters.

    They are "dense" (kernel [H, W], bias [W]), "norm" (scale, bias [W]) and "bias" [V]. Hugging
    Face's names for these are `transform.dense`, `transform.LayerNorm` and `bias` in
    `cls.predictions`, and `dense`, `layer_norm` and `bias` in `lm_head`. A weight there is the
    transposed kernel. ModernBERT's has the last bias only.

    Args:
        config: the backbone's: hidden size H, embedding size W (the same except for ELECTRA),
            vocabulary size V.
        key: the key of the linear map.
    """
    states = jnp.zeros((1, config.hidden_size))
    params = MlmTransform(config).init(key, states, config.embedding_size)["params"]
    return {**params, "bias": jnp.zeros(config.vocab_size)}


def transform_states(
    config: Any, params: Params, states: Float[Array, "K H"], width: int
) -> Float[Array, "K W"]:
    """Computes the vectors whose products with the table of token embeddings are the logits.

    Args:
        config: the backbone's.
        params: the head's parameters; see `init_head`.
        states: the tokens' states after the last layer.
        width: W, of the table.
    """
    return apply_module(MlmTransform(config), params, states, width)


def head_logits(
    config: Any, params: Params, states: Float[Array, "K H"], table: Float[AnyArray, "V W"]
) -> Float[Array, "K V"]:
    """Computes each token's logits from the last layer's states.

    Args:
        config: the backbone's.
        params: the head's parameters; see `init_head`.
        states: the tokens' states after the last layer.
        table: the encoder's token embeddings.
    """
    return transform_states(config, params, states, table.shape[1]) @ table.T + params["bias"]


def mask_tokens(
    tokens: TokenBatch,
    key: PRNGKeyArray,
    *,
    mask_id: int,
    special_ids: Sequence[int],
    vocab_size: int,
    rate: float = 0.15,
    mask: float = MASKED,
    random: float = RANDOM,
    first: int = 0,
) -> tuple[TokenBatch, Int[Array, " K"], Bool[Array, " K"]]:
    """Hides a share of one group's tokens.

    Of the n tokens that may be hidden, round(rate * n) are chosen at random. Each chosen token
    independently becomes the mask token or a random token, or stays.

    >>> ids = jnp.array([[1, 8, 7, 9, 6, 2]])  # [CLS], four words, [SEP]
    >>> tokens = TokenBatch(ids, 0 * ids, jnp.arange(6)[None], ids > 0, sentences=1)
    >>> ids_of = {"mask_id": 3, "special_ids": [1, 2], "vocab_size": 10}
    >>> masked, _, chosen = mask_tokens(tokens, jax.random.key(0), **ids_of, rate=0.5, mask=1.0)
    >>> int((masked.token_ids == 3).sum()), int(chosen.sum())  # half of the words
    (2, 2)

    Args:
        tokens: the group, with leaves `[R, T]`.
        key: the key of the choice.
        mask_id: the mask token's id.
        special_ids: tokens that are never chosen ([CLS], [SEP], ...).
        vocab_size: V; random tokens are drawn from all of the vocabulary.
        rate: the share of the tokens that are chosen.
        mask: the probability of a chosen token to become the mask token.
        random: the probability of a chosen token to become a random token.
        first: tokens before this position of their sentence are never chosen either.

    Returns:
        The group with other `token_ids`; K = ceil(rate * R * T) slots to predict, as indices into
        the flat [R * T]; and a mask of those that were chosen. The other slots are there only so
        that the shape does not depend on the texts.
    """
    ids = jnp.asarray(tokens.token_ids).reshape(-1)
    order_key, kind_key, random_key = jax.random.split(key, 3)
    maskable = ((tokens.sentence < tokens.sentences) & (tokens.position >= first)).reshape(-1)
    maskable &= ~jnp.isin(ids, jnp.asarray(special_ids, ids.dtype))
    order = jnp.where(maskable, jax.random.uniform(order_key, ids.shape), -1.0)
    _, slots = jax.lax.top_k(order, math.ceil(rate * ids.size))
    # By NumPy, since in float32 some halves would be rounded to the other side.
    counts = np.rint(rate * np.arange(ids.size + 1)).astype(np.int32)
    chosen = jnp.arange(slots.size) < jnp.asarray(counts)[jnp.sum(maskable)]
    kind = jax.random.uniform(kind_key, slots.shape)
    old = ids[slots]
    anything = jax.random.randint(random_key, slots.shape, 0, vocab_size, old.dtype)
    new = jnp.where(kind < mask, mask_id, jnp.where(kind < mask + random, anything, old))
    ids = ids.at[slots].set(jnp.where(chosen, new, old), unique_indices=True)
    return tokens.replace(token_ids=ids.reshape(tokens.token_ids.shape)), slots, chosen
