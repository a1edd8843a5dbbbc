"""From token states to one vector a sentence.

Every pooling but the maximum is a weighted sum of token states, so it is one matrix of weights `[S, R * T]`
and one product: quick on every backend, backwards too, and the same bits each time where a scatter is not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import TokenBatch


def pool(name: str, hidden: Float[Array, "*L R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Sentence vectors of one group, float32; a sentence without a pooled token gets zeros.

    Args:
        name: one of POOLINGS, or several joined by "+", whose vectors are concatenated.
        hidden: the last layer's token states, of any float dtype; every layer's if `needs_every_layer(name)`.
    """
    vectors = []
    for part in name.split("+"):
        if not needs_every_layer(name):
            states = hidden
        elif part == "first_last_mean":
            states = (hidden[0] + hidden[-1]) / 2
        else:
            states = hidden[-1]
        vectors.append(_pooling(part)(states, tokens))
    return jnp.concatenate(vectors, axis=-1) if len(vectors) > 1 else vectors[0]


def check_pooling(name: str) -> None:
    """Raises an InputError, listing the known ones, if `name` is not a pooling or several joined by "+"."""
    for part in name.split("+"):
        _pooling(part)


def needs_every_layer(name: str) -> bool:
    """Whether a pooling reads more layers than the last."""
    return "first_last_mean" in name.split("+")


def _pooling(name: str):
    if name not in POOLINGS:
        raise InputError(unknown("pooling", name, POOLINGS))
    return POOLINGS[name]


def mean(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The mean over a sentence's pooled tokens."""
    member, _ = _members(tokens)
    return _weighted_sum(_normalised(member), hidden)


def mean_sqrt_len(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The sum over a sentence's pooled tokens divided by the square root of their number."""
    member, _ = _members(tokens)
    return _weighted_sum(member / jnp.sqrt(jnp.maximum(member.sum(1, keepdims=True), 1.0)), hidden)


def weighted_mean(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The mean with weights 1, 2, 3, ... by position in the sentence (SGPT, Muennighoff 2022)."""
    member, position = _members(tokens)
    return _weighted_sum(_normalised(member * (position + 1)), hidden)


def cls(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The first pooled token: [CLS], or the first after a prompt that is not pooled, as sentence-transformers does."""
    member, position = _members(tokens)
    first = jnp.where(member > 0, position, jnp.inf).min(1, keepdims=True)
    return _weighted_sum(member * (position == first), hidden)


def last_token(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The last pooled token."""
    member, position = _members(tokens)
    last = jnp.where(member > 0, position, -jnp.inf).max(1, keepdims=True)
    return _weighted_sum(member * (position == last), hidden)


def maximum(hidden: Float[Array, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """The largest value over a sentence's pooled tokens, by dimension; equal ones share the gradient."""
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
    segment = jnp.where(tokens.pooled, tokens.sentence, tokens.sentences).reshape(-1)
    count = tokens.sentences + 1
    highest = lax.stop_gradient(jax.ops.segment_max(lax.stop_gradient(flat), segment, count))
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    chosen = (flat == highest[segment]).astype(jnp.float32)
    ties = jax.ops.segment_sum(chosen, segment, count)
    total = jax.ops.segment_sum(flat * chosen, segment, count)
    return (total / jnp.maximum(ties, 1.0))[:-1]


def _members(tokens: TokenBatch) -> tuple[Float[Array, "S N"], Float[Array, " N"]]:
    """Which slots count for which sentence (1.0 or 0.0), and every slot's position."""
    own: Bool[Array, "S N"] = tokens.sentence.reshape(-1) == jnp.arange(tokens.sentences)[:, None]
    return (own & tokens.pooled.reshape(-1)).astype(jnp.float32), tokens.position.reshape(-1).astype(jnp.float32)


def _normalised(weights: Float[Array, "S N"]) -> Float[Array, "S N"]:
    total = weights.sum(1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def _weighted_sum(weights: Float[Array, "S N"], hidden: Float[Array, "R T D"]) -> Float[Array, "S D"]:
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
    return jnp.matmul(weights, flat, precision="highest")  # else float32 products are rounded on GPU and TPU


POOLINGS: dict[str, Callable[[Float[Array, "R T D"], TokenBatch], Float[Array, "S D"]]] = {
    "cls": cls,
    "mean": mean,
    "max": maximum,
    "mean_sqrt_len": mean_sqrt_len,
    "weighted_mean": weighted_mean,
    "last_token": last_token,
    "first_last_mean": mean,  # of the mean of two layers' states; the mean is linear
}
