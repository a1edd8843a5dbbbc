"""Pools token states to one vector per sentence.

A sentence stands in one row, so sums over its tokens are computed as products within rows (by
`[R, T, T]` weights, like attention's mask), and taken from one of its slots. This is linear in the
number of sentences, and gives the same bits each time, which a scatter-add of floats does not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray, TokenBatch


def pool(name: str, hidden: Float[AnyArray, "*L R T D"], tokens: TokenBatch) -> Float[Array, "S E"]:
    """Computes the sentence vectors of one group, float32.

    A sentence without a pooled token gets zeros.

    >>> ids = jnp.array([[5, 6, 7]])  # two sentences: of two tokens, and of one
    >>> sentence, position = jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 0]])
    >>> tokens = TokenBatch(ids, sentence, position, ids > 0, sentences=2)
    >>> pool("mean+max", jnp.array([[[1.0], [3.0], [5.0]]]), tokens).tolist()
    [[2.0, 3.0], [5.0, 5.0]]

    Args:
        name: one of POOLINGS, or several joined by "+", whose vectors are concatenated.
        hidden: the last layer's token states, of any float dtype; every layer's if
            `needs_every_layer(name)`.
        tokens: the group, which says which slots belong to which sentence and are pooled.
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
    """Checks that `name` is a pooling, or several joined by "+".

    Raises:
        InputError: it is not; the message lists the known ones.
    """
    for part in name.split("+"):
        _pooling(part)


def needs_every_layer(name: str) -> bool:
    """Tells whether a pooling reads more layers than the last one.

    >>> needs_every_layer("mean"), needs_every_layer("cls+first_last_mean")
    (False, True)
    """
    return "first_last_mean" in name.split("+")


def needs_one_slot(name: str) -> bool:
    """Tells whether a pooling reads the state of a single slot of each sentence.

    >>> needs_one_slot("cls"), needs_one_slot("cls+mean")
    (True, False)
    """
    return name in RANKS


def pooled_slots(name: str, tokens: TokenBatch) -> Int[Array, " S"]:
    """Returns the slot that a pooling reads of each sentence; -1 if no token is pooled.

    Args:
        name: a pooling for which `needs_one_slot`.
        tokens: the group.
    """
    return _slots(tokens, RANKS[name] * jnp.asarray(tokens.position))


def _pooling(name: str):
    if name not in POOLINGS:
        raise InputError(unknown("pooling", name, POOLINGS))
    return POOLINGS[name]


def mean(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Computes the mean over a sentence's pooled tokens."""
    sums, total = _sums(tokens.pooled.astype(jnp.float32), hidden, tokens)
    return sums / jnp.maximum(total, 1.0)


def mean_sqrt_len(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Computes the sum over a sentence's pooled tokens, divided by the root of their number."""
    sums, total = _sums(tokens.pooled.astype(jnp.float32), hidden, tokens)
    return sums / jnp.sqrt(jnp.maximum(total, 1.0))


def weighted_mean(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Computes the mean with weights 1, 2, 3, ... by position in the sentence (SGPT, 2022)."""
    sums, total = _sums(jnp.where(tokens.pooled, tokens.position + 1.0, 0.0), hidden, tokens)
    return sums / jnp.maximum(total, 1.0)


def cls(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Returns the state of the first pooled token: [CLS], or the first after an unpooled prompt."""
    return _take(hidden, pooled_slots("cls", tokens))


def last_token(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Returns the state of the last pooled token."""
    return _take(hidden, pooled_slots("last_token", tokens))


def maximum(hidden: Float[AnyArray, "R T D"], tokens: TokenBatch) -> Float[Array, "S D"]:
    """Computes the largest value over a sentence's pooled tokens, by dimension.

    Tokens with equal largest values share the gradient.
    """
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
    segment = jnp.where(tokens.pooled, tokens.sentence, tokens.sentences).reshape(-1)
    count = tokens.sentences + 1
    # The maximum only says which tokens are chosen; their sum below has the gradient, shared
    # by ties.
    highest = lax.stop_gradient(jax.ops.segment_max(lax.stop_gradient(flat), segment, count))
    # -inf where a sentence has no pooled token.
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    chosen = (flat == highest[segment]).astype(jnp.float32)
    ties = jax.ops.segment_sum(chosen, segment, count)
    total = jax.ops.segment_sum(flat * chosen, segment, count)
    return (total / jnp.maximum(ties, 1.0))[:-1]


def separate(vectors: Float[Array, "R T D"], tokens: TokenBatch, length: int) -> dict[str, Array]:
    """Returns the vectors of each sentence's tokens, instead of pooling them.

    >>> ids = jnp.array([[5, 6, 7]])  # two sentences: of two tokens, and of one
    >>> sentence, position = jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 0]])
    >>> tokens = TokenBatch(ids, sentence, position, ids < 7, sentences=2)
    >>> parts = separate(jnp.array([[[1.0], [3.0], [5.0]]]), tokens, length=2)
    >>> parts["tokens"][..., 0].tolist(), parts["mask"].astype(int).tolist()
    ([[1.0, 3.0], [5.0, 0.0]], [[1, 1], [0, 0]])

    Args:
        vectors: of every slot.
        tokens: the group, which says where tokens belong and which are pooled.
        length: L, at least the tokens of the longest sentence.

    Returns:
        {"tokens": [S, L, D], "mask": [S, L]}; the mask tells which tokens are pooled.
    """
    count = tokens.sentences * length
    place = jnp.where(
        jnp.asarray(tokens.sentence) < tokens.sentences,
        jnp.asarray(tokens.sentence) * length + tokens.position,
        count,
    ).reshape(-1)
    nowhere = place.size  # a slot beyond the last one
    slots = jnp.full(count, nowhere).at[place].set(jnp.arange(place.size), mode="drop")
    flat = vectors.reshape(-1, vectors.shape[-1])
    states = jnp.take(flat, slots, axis=0, mode="fill", fill_value=0)
    pooled = jnp.asarray(tokens.pooled).reshape(-1)
    mask = jnp.take(pooled, slots, mode="fill", fill_value=False)
    shape = (tokens.sentences, length)
    return {"tokens": states.reshape(*shape, -1), "mask": mask.reshape(shape)}


def _sums(
    weights: Float[AnyArray, "R T"], hidden: Float[AnyArray, "R T D"], tokens: TokenBatch
) -> tuple[Float[Array, "S D"], Float[Array, "S 1"]]:
    """Computes each sentence's weighted sum of its token states, and the sum of the weights."""
    same = tokens.sentence[:, :, None] == tokens.sentence[:, None, :]
    spread = jnp.where(same, weights[:, None, :], 0.0)
    # Without "highest", float32 products are rounded on GPU and TPU.
    sums = jnp.matmul(spread, hidden.astype(jnp.float32), precision="highest")
    slots = _slots(tokens, tokens.position)
    return _take(sums, slots), _take(spread.sum(-1, keepdims=True), slots)


def _slots(tokens: TokenBatch, rank: Int[AnyArray, "R T"]) -> Int[Array, " S"]:
    """Returns the slot of each sentence's pooled token of highest rank; -1 if none is pooled."""
    segment = jnp.where(tokens.pooled, tokens.sentence, tokens.sentences).reshape(-1)
    # Tokens that are not pooled go to one more segment, which is cut off.
    rank, count = rank.reshape(-1), tokens.sentences + 1
    highest = jax.ops.segment_max(rank, segment, count)
    slot = jnp.where(rank == highest[segment], jnp.arange(rank.size), -1)
    return jax.ops.segment_max(slot, segment, count)[:-1]


RANKS = {"cls": -1, "last_token": 1}  # poolings of one slot: the sign of its rank by position


def _take(states: Float[AnyArray, "R T D"], slots: Int[Array, " S"]) -> Float[Array, "S D"]:
    flat = states.reshape(-1, states.shape[-1])
    return jnp.where(slots[:, None] >= 0, flat[jnp.maximum(slots, 0)].astype(jnp.float32), 0.0)


POOLINGS: dict[str, Callable[[Float[Array, "R T D"], TokenBatch], Float[Array, "S D"]]] = {
    "cls": cls,
    "mean": mean,
    "max": maximum,
    "mean_sqrt_len": mean_sqrt_len,
    "weighted_mean": weighted_mean,
    "last_token": last_token,
    "first_last_mean": mean,  # of the mean of two layers' states; the mean is linear
}
