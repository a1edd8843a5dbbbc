"""Attention over packed rows: one signature, a body for each kind of backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.layers import MaskPositions, Queries, dropout
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray

IMPLEMENTATIONS = ("auto", "xla", "blocks", "cudnn")
BLOCK = 2**20  # attention weights of one block: 4 MiB in float32
MASKED = -1e9  # exp of it is exactly 0 in float32, and it stays finite when two of them are added


def sentence_bias(
    sentence: Int[AnyArray, "R T"],
    position: Int[AnyArray, "R T"] | None = None,
    *,
    key_sentence: Int[AnyArray, "R T"] | None = None,
    causal: bool = False,
    window: int = 0,
) -> Float[Array, "R 1 T T"]:
    """Returns a bias for the scores with which a token sees only tokens of the same sentence.

    The bias is 0 where a token sees another, and MASKED elsewhere. Padding has its own sentence id,
    so padding sees padding: every row of the softmax has a slot to look at and none becomes NaN;
    the results at padding are never pooled.

    >>> bias = sentence_bias(jnp.array([[0, 0, 1]]))  # sentences of two tokens and of one
    >>> (bias[0, 0] == 0).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]

    Args:
        sentence: each slot's sentence id.
        position: each token's position in its sentence; needed for `causal` and `window`.
        key_sentence: the sentence whose tokens see each slot, see TokenBatch; None: `sentence`.
        causal: whether a token sees only itself and the tokens before it.
        window: a token sees only tokens at a distance below this; 0: at any distance.
    """
    keys = sentence if key_sentence is None else key_sentence
    seen = sentence[:, :, None] == keys[:, None, :]
    if causal or window:
        assert position is not None, "`causal` and `window` need the positions"
        back = position[:, :, None] - position[:, None, :]
        seen &= back >= 0 if causal else True
        seen &= jnp.abs(back) < window if window else True
    return jnp.where(seen, 0.0, MASKED)[:, None]


def attention(
    query: Float[Array, "*Q H d"],
    key: Float[Array, "R T G d"],
    value: Float[Array, "R T G d"],
    bias: Float[Array, "R K T T"],
    queries: Queries | None = None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    implementation: str = "auto",
) -> Float[Array, "*Q H d"]:
    """Computes softmax(query key^T / sqrt(d) + bias) value (Vaswani et al. 2017, equation 1).

    Keys and values may have fewer heads G than the H of queries, if G divides H: each head then
    serves H / G consecutive heads of queries (grouped-query attention, Ainslie et al. 2023).

    >>> x = jnp.eye(2).reshape(1, 2, 1, 2)  # two tokens, one head of size 2
    >>> bias = sentence_bias(jnp.array([[0, 1]]))  # of two sentences: each token sees only itself
    >>> attention(x, x, x, bias)[0, :, 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Args:
        query: the queries, of H heads of size d: of all slots [R, T], or of one slot of each
            sentence [S].
        key: the keys, of G heads.
        value: the values, of G heads.
        bias: float32, added to the scores: the mask, and a relative position bias where there is
            one; K is H or 1.
        queries: the slots of the queries, and those that share a dropout mask; None: all slots,
            each with its own mask.
        scale: the factor of the scores; None: 1 / sqrt(d).
        softcap: c > 0: scores s become c tanh(s / c) before the bias (Gemma 2, 2024, section 2).
        dropout_rate: the share of the softmax's weights that becomes 0.
        dropout_key: None means no dropout. The same key gives the same mask in every
            implementation.
        implementation: "xla": batched matrix products; "blocks": the same, a few rows at a time;
            "cudnn": flash attention, for 16-bit inputs without dropout; "auto": blocks on CPU,
            cuDNN on a GPU where its restrictions allow it, else xla.
    """
    if dropout_rate == 0.0:
        dropout_key = None
    places = None if queries is None else queries.places
    if implementation not in IMPLEMENTATIONS:
        raise InputError(unknown("attention", implementation, IMPLEMENTATIONS))
    if queries is not None and queries.slots is not None:
        key, value = (jnp.repeat(x, query.shape[1] // x.shape[2], axis=2) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        query = query * jnp.asarray(scale, query.dtype)
        return _one_query(query, key, value, bias, softcap, queries, dropout_rate, dropout_key)
    if implementation == "auto":
        backend = jax.default_backend()
        flash = (
            backend == "gpu" and query.dtype == jnp.bfloat16 and dropout_key is None and not softcap
        )
        implementation = "blocks" if backend == "cpu" else "cudnn" if flash else "xla"
    if implementation == "cudnn":
        if dropout_key is not None:
            raise InputError(
                "attention 'cudnn' has no dropout: use 'auto' or 'xla', or attention_dropout 0"
            )
        if softcap:
            raise InputError("attention 'cudnn' has no soft-capping: use 'auto' or 'xla'")
        # cuDNN computes with a bias of the inputs' type; MASKED is finite in bfloat16 too.
        mask = bias.astype(query.dtype)
        return jax.nn.dot_product_attention(
            query, key, value, mask, scale=scale, implementation="cudnn"
        )
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    # Scaling the queries touches [T, d] numbers, scaling the scores would touch [T, T].
    query = query * jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, query.dtype)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    body = _blocks if implementation == "blocks" else _products
    return body(query, key, value, bias, softcap, places, dropout_rate, dropout_key).transpose(
        0, 2, 1, 3
    )


def _products(query, key, value, bias, softcap, places, dropout_rate, dropout_key, start=0):
    """Computes attention by matrix products batched over [R, H].

    The division by the row sum comes last, on [T, d] and not on [T, T]. On CPU this form takes a
    seventh of the time of einsum, softmax, einsum, since XLA fuses all of it.
    """
    scores = jnp.matmul(query, key.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores + bias
    # The maximum keeps exp from overflowing and cancels in the quotient: it needs no gradient.
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Dropout follows the softmax: the sum above is of all weights, dropped ones too.
    if places is not None:
        start = _starts(places, *weights.shape[1:3])
    weights = dropout(weights, dropout_rate, dropout_key, start).astype(value.dtype)
    return (jnp.matmul(weights, value, preferred_element_type=jnp.float32) / total).astype(
        value.dtype
    )


def _starts(places: MaskPositions, heads: int, slots: int) -> Int[Array, "R H T T"]:
    """Returns each attention weight's index in its dropout mask.

    The index depends on the example, the head and both tokens' positions only.
    """
    example, position = (leaf[:, None, :, None] for leaf in (places.example, places.position))
    head = jnp.arange(heads)[:, None, None]
    return ((example * heads + head) * slots + position) * slots + places.position[:, None, None, :]


def _blocks(query, key, value, bias, softcap, places, dropout_rate, dropout_key):
    """Applies `_products` to a few rows at a time, so that their [T, T] weights fit the cache.

    The weights are computed again in the backward pass. On CPU a training step is about a tenth
    faster than with all rows at once, in two thirds of the memory.
    """
    rows, heads, slots, _ = query.shape
    block = max(
        n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * heads * slots**2 <= BLOCK)
    )
    if block == rows:
        return _products(query, key, value, bias, softcap, places, dropout_rate, dropout_key)

    @jax.checkpoint
    def attend_block(inputs):
        index, (query, key, value, bias, places) = inputs
        # The block's place in the mask of all rows, so that the size of a block changes no mask.
        start = index * (block * heads * slots**2)
        return _products(query, key, value, bias, softcap, places, dropout_rate, dropout_key, start)

    cut = jax.tree.map(
        lambda x: x.reshape(rows // block, block, *x.shape[1:]), (query, key, value, bias, places)
    )
    return lax.map(attend_block, (jnp.arange(rows // block), cut)).reshape(query.shape)


def _one_query(query, key, value, bias, softcap, queries, dropout_rate, dropout_key):
    """Computes the attention of one query of each sentence, in work linear in the slots.

    Each slot is multiplied with its sentence's query. Sums over a sentence go from its first token
    to its last, so that they do not depend on where in a row it lies.
    """
    _, slots, heads, _ = key.shape
    sentence, count = queries.sentence, query.shape[0]

    def spread(x):  # [S, ...] -> [R, T, ...], of each slot's sentence; any at padding
        # Padding has the id S, one beyond the last query.
        return x[jnp.minimum(sentence, count - 1)]

    column = spread(queries.slots % slots)
    scores = jnp.sum(spread(query).astype(jnp.float32) * key.astype(jnp.float32), axis=-1)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    own_bias = jnp.take_along_axis(bias, column[:, None, None, :], axis=2)[:, :, 0]
    scores = scores + own_bias.transpose(0, 2, 1)
    highest = jax.ops.segment_max(
        lax.stop_gradient(scores).reshape(-1, heads), sentence.reshape(-1), count + 1
    )
    weights = jnp.exp(scores - highest[sentence])

    def sums(x: Float[Array, "R T *x"]) -> Float[Array, "S *x"]:
        return jax.ops.segment_sum(x.reshape(-1, *x.shape[2:]), sentence.reshape(-1), count + 1)[
            :-1
        ]

    total = sums(weights)
    if dropout_key is not None:
        start = _one_query_starts(queries, column, heads)
        weights = dropout(weights, dropout_rate, dropout_key, start)
    # Rounded as `_products` rounds them, so that both give the same state of a slot.
    weights = weights.astype(value.dtype).astype(jnp.float32)
    # A sentence without tokens sums to 0: 0 / 1 instead of 0 / 0, also in the gradient.
    mixed = sums(weights[..., None] * value) / jnp.where(total > 0, total, 1.0)[..., None]
    return mixed.astype(value.dtype)


def _one_query_starts(queries, column, heads):
    """Returns the index in the whole mask of the weight of each slot and head `[R, T, H]`."""
    rows, slots = queries.sentence.shape
    row, asking, seen = jnp.arange(rows)[:, None], column, jnp.arange(slots)
    if queries.places is not None:
        row, seen = queries.places.example, queries.places.position
        asking = jnp.take_along_axis(seen, column, axis=1)
    row, asking, seen = (x[..., None] for x in (row, asking, seen))
    return ((row * heads + jnp.arange(heads)) * slots + asking) * slots + seen
