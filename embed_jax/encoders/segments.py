"""Attention on CPU that multiplies only slots that can see each other.

Queries are taken in blocks, and a block's keys from the first slot that one of its queries sees to
the last: neither other sentences of a long row nor slots outside a sliding window cost anything,
and neither does padding. Keys come in chunks, with a softmax whose maximum and sum are corrected
from chunk to chunk, and the backward pass computes the weights again from the sums ("FlashAttention
2", Dao 2023, algorithms 1 and 2). So memory is linear in the slots.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention_mask import MASKED, AttentionMask, sees
from embed_jax.encoders.layers import MaskPositions, keep_indices, mask_words
from embed_jax.types import AnyArray

QUERIES, KEYS = 128, 256  # slots of a block of queries, and of a chunk of keys


class Slots(struct.PyTreeNode):
    """The numbers of slots by which masks are made.

    Attributes:
        sentence, key_sentence, position: as in `AttentionMask`.
        example, place: the numbers of a slot, as a query, by which its dropout mask differs from
            other slots': its row and its place there, or those of `MaskPositions`.
        start, stop: the range of slots that each block of queries sees.
        window: as in `AttentionMask`; None: tokens are seen at any distance.
        words: the two words of the dropout mask; None: there is no dropout.
        row_slots: T, the slots of a row without those that fill its last block (static).
        causal, rate, softcap: as in `attention.attention` (static).
    """

    sentence: Int[AnyArray, "*R T"]
    key_sentence: Int[AnyArray, "*R T"]
    position: Int[AnyArray, "*R T"]
    example: Int[Array, "*R T"]
    place: Int[Array, "*R T"]
    start: Int[Array, "*R N"]
    stop: Int[Array, "*R N"]
    window: Any = None
    words: Any = None
    row_slots: int = struct.field(pytree_node=False, default=0)
    causal: bool = struct.field(pytree_node=False, default=False)
    rate: float = struct.field(pytree_node=False, default=0.0)
    softcap: float = struct.field(pytree_node=False, default=0.0)


def segment_attention(
    query: Float[Array, "R T H d"],
    key: Float[Array, "R T H d"],
    value: Float[Array, "R T H d"],
    mask: AttentionMask,
    softcap: float = 0.0,
    places: MaskPositions | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "R T H d"]:
    """Computes attention of scaled queries; see `attention.attention` for the arguments.

    A query that sees no slot gives zeros, and so may padding.
    """
    rows, slots = mask.sentence.shape
    extra = -slots % QUERIES  # slots that fill the last block, which neither see nor are seen

    def fill(x: Any, value: Any = 0) -> Any:
        widths = [(0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, widths, constant_values=value) if extra else x

    if extra:
        mask = mask.replace(
            sentence=fill(mask.sentence, -1),
            key_sentence=fill(mask.key_sentence, -2),
            position=fill(mask.position),
            first=fill(mask.first, slots + extra),
            last=fill(mask.last, -1),
            bias=None,
        )
    start, stop = mask.key_ranges(QUERIES)
    places = places or MaskPositions.of_slots(rows, slots)
    about = Slots(
        mask.sentence,
        mask.key_sentence,
        mask.position,
        fill(places.example),
        fill(places.position),
        start,
        stop,
        None if mask.window is None else jnp.asarray(mask.window),
        None if dropout_key is None else mask_words(dropout_key),
        row_slots=slots,
        causal=mask.causal,
        rate=dropout_rate,
        softcap=softcap,
    )
    mixed = _attend(fill(query), *(fill(x).swapaxes(1, 2) for x in (key, value)), about)
    return mixed[:, :slots]


@jax.custom_vjp
def _attend(query, key, value, about):
    """Returns attention `[R, T, H, d]` of queries `[R, T, H, d]` and keys `[R, H, T, d]`."""
    return _forward(query, key, value, about)[0]


def _forward(query, key, value, about):
    """Returns the attention, and log(sum(exp(scores))) of each query `[R, N, H, Q]`."""

    def attend_row(query, key, value, about):
        def attend_block(number):
            block = _Block(query, about, number)

            def attend_chunk(state):
                at, highest, total, mixed = state
                chunk = _Chunk(block, key, value, about, at)
                raised = jnp.maximum(highest, jnp.max(chunk.scores, axis=-1))
                weights = jnp.exp(chunk.scores - raised[..., None])
                fade = jnp.exp(highest - raised)
                total = total * fade + jnp.sum(weights, axis=-1)
                if chunk.keep is not None:
                    weights = jnp.where(chunk.keep, weights * (1 / (1 - about.rate)), 0.0)
                products = _multiply(weights.astype(value.dtype), chunk.value)
                return at + chunk.size, raised, total, mixed * fade[..., None] + products

            zero = _zeros(block.query, (key, value, about))
            state = (block.start, zero[..., 0] + MASKED, zero[..., 0], zero)
            state = lax.while_loop(lambda state: state[0] < block.stop, attend_chunk, state)
            _, highest, total, mixed = state
            sees_any = highest > MASKED / 2
            total = jnp.where(sees_any, total, 1.0)
            mixed = jnp.where(sees_any[..., None], mixed / total[..., None], 0.0)
            # The sum 0 makes the weights of a query that sees nothing exp(MASKED): 0 too.
            sums = jnp.where(sees_any, highest + jnp.log(total), 0.0)
            return mixed.astype(value.dtype).swapaxes(0, 1), sums

        mixed, sums = lax.map(attend_block, jnp.arange(about.start.shape[0]))
        return mixed.reshape(query.shape), sums

    return _map_rows(attend_row, about, query, key, value)


def _save(query, key, value, about):
    mixed, sums = _forward(query, key, value, about)
    return mixed, (query, key, value, about, mixed, sums)


def _backward(saved, gradient):
    query, key, value, about, mixed, sums = saved
    # The part of a score's gradient that the division by the sum makes, the same for all keys.
    shared = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1)

    def differentiate_row(gradient, shared, sums, query, key, value, about):
        def differentiate_block(totals, number):
            block = _Block(query, about, number)
            own, own_shared = block.take(gradient), block.take(shared)[..., None]

            def differentiate_chunk(state):
                at, of_query, of_key, of_value = state
                chunk = _Chunk(block, key, value, about, at)
                weights = jnp.exp(chunk.scores - sums[number][..., None])
                through = _multiply(own, chunk.value.swapaxes(1, 2))
                remaining = weights
                if chunk.keep is not None:
                    factor = jnp.where(chunk.keep, 1 / (1 - about.rate), 0.0)
                    through, remaining = through * factor, weights * factor
                scores = weights * (through - own_shared)
                if about.softcap:
                    scores = scores * (1 - (chunk.scores / about.softcap) ** 2)
                scores = scores.astype(query.dtype)
                of_key = chunk.add(of_key, _multiply(scores.swapaxes(1, 2), block.query))
                of_value = chunk.add(
                    of_value, _multiply(remaining.astype(value.dtype).swapaxes(1, 2), own)
                )
                return (
                    at + chunk.size,
                    of_query + _multiply(scores, chunk.key),
                    of_key,
                    of_value,
                )

            state = (block.start, _zeros(block.query, arrays), *totals)
            state = lax.while_loop(lambda state: state[0] < block.stop, differentiate_chunk, state)
            _, of_query, of_key, of_value = state
            return (of_key, of_value), of_query.swapaxes(0, 1).astype(query.dtype)

        arrays = gradient, shared, sums, key, value, about
        zeros = _zeros(key, (query, *arrays))
        totals, of_query = lax.scan(
            differentiate_block, (zeros, zeros), jnp.arange(about.start.shape[0])
        )
        return of_query.reshape(query.shape), *(x.astype(key.dtype) for x in totals)

    arrays = gradient, shared, sums, query, key, value
    return *_map_rows(differentiate_row, about, *arrays), None


_attend.defvjp(_save, _backward)


class _Block:
    """A block of a row's queries.

    Attributes:
        number: its index in the row.
        query: `[H, Q, d]`.
        sentence, position, example, place: see `Slots`, of these queries `[Q]`.
        start, stop: the range of slots that they see.
    """

    def __init__(self, query, about: Slots, number):
        self.number = number
        self.query = self.take(query)
        self.sentence, self.position, self.example, self.place = (
            lax.dynamic_slice_in_dim(x, number * QUERIES, QUERIES)
            for x in (about.sentence, about.position, about.example, about.place)
        )
        self.start, self.stop = about.start[number], about.stop[number]

    def take(self, x: Float[Array, "T H *d"]) -> Float[Array, "H Q *d"]:
        """Returns the block's part of a row's array, heads first."""
        return lax.dynamic_slice_in_dim(x, self.number * QUERIES, QUERIES).swapaxes(0, 1)


class _Chunk:
    """Some of the keys that a block of queries sees, and their scores.

    Attributes:
        first: the first slot; at a row's end one before the slot asked for, so that the chunk is
            whole.
        size: K, the number of keys.
        key, value: `[H, K, d]`.
        scores: float32, MASKED for slots that are not seen or before the slot asked for.
        keep: the weights that dropout keeps; None: all.
    """

    def __init__(self, block: _Block, key, value, about: Slots, at):
        heads, slots, _ = key.shape
        self.size = min(KEYS, slots)
        self.first = jnp.minimum(at, slots - self.size)
        self.key, self.value = self.take(key, 1), self.take(value, 1)
        sentence, position = self.take(about.key_sentence), self.take(about.position)
        seen = sees(
            (block.sentence[:, None], block.position[:, None]),
            (sentence, position),
            about.causal,
            about.window,
        )
        seen &= self.first + jnp.arange(self.size) >= at
        scores = _multiply(block.query, self.key.swapaxes(1, 2))
        if about.softcap:
            scores = about.softcap * jnp.tanh(scores / about.softcap)
        self.scores = jnp.where(seen, scores, MASKED)
        self.keep: Bool[Array, "H Q K"] | None = None
        if about.words is not None:
            head = jnp.arange(heads)[:, None]
            index = (block.example * heads + head) * about.row_slots + block.place
            index = (index * about.row_slots)[..., None] + self.take(about.place)
            self.keep = keep_indices(about.words, about.rate, index.astype(jnp.uint32))

    def take(self, x: AnyArray, axis: int = 0) -> Array:
        """Returns the chunk's slots of a row's array."""
        return lax.dynamic_slice_in_dim(x, self.first, self.size, axis)

    def add(self, total: Float[Array, "H T d"], part: Float[Array, "H K d"]) -> Array:
        """Adds to the chunk's slots of a row's array."""
        return lax.dynamic_update_slice_in_dim(total, self.take(total, 1) + part, self.first, 1)


def _map_rows(function, about: Slots, *arrays: Any) -> Any:
    """Applies a function to one row after the other; window and words are those of all rows."""
    shared = {"window": about.window, "words": about.words}

    def of_row(inputs):
        about, *own = inputs
        return function(*own, about.replace(**shared))

    return lax.map(of_row, (about.replace(window=None, words=None), *arrays))


def _zeros(x: Float[Array, "*B"], others: Any) -> Float[Array, "*B"]:
    """Returns float32 zeros of x's shape, which vary over a mesh as it and other arrays do.

    A loop's state has to vary from the start as it does after a round.
    """
    zeros = jnp.where(False, x, 0).astype(jnp.float32)
    for leaf in jax.tree.leaves(others):
        zeros = zeros + jnp.where(False, leaf.ravel()[0], 0).astype(jnp.float32)
    return zeros


def _multiply(a: Float[Array, "H n k"], b: Float[Array, "H k m"]) -> Float[Array, "H n m"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
