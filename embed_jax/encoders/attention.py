"""Attention over packed rows: one signature, a body for each kind of backend."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention_mask import MASKED, AttentionMask, sees
from embed_jax.encoders.layers import MaskPositions, Queries, dropout
from embed_jax.encoders.segments import segment_attention
from embed_jax.errors import InputError
from embed_jax.registry import unknown

IMPLEMENTATIONS = ("auto", "xla", "blocks", "segments", "pallas", "cudnn")
WHOLE_ROWS = ("xla", "cudnn")  # bodies that multiply all slots of a row with all
SKIPPING = ("segments", "pallas")  # bodies that skip slots that cannot see each other
KERNEL_BLOCK = 128  # a kernel's rows have a multiple of this many slots
# Bytes of a row's keys and values of one head, twice, that a TPU's core has room for.
KERNEL_MEMORY = 12 * 2**20
SHORT = 512  # slots of rows in which skipping slots costs as much as it saves
# Attention weights of one block: on CPU 16 MiB in float32, to stay near the cache (with 4 MiB few
# rows keep few cores busy, and attention takes 1.6 times as long when encoding); elsewhere 1 GiB,
# to bound the memory.
BLOCK, LARGE_BLOCK = 2**22, 2**28


def needs_bias(implementation: str, slots: Any) -> bool:
    """Tells whether bodies add a bias of whole rows, which is then made once for all layers.

    Args:
        implementation: see `attention`.
        slots: of a row, a number; a symbol in export, which asks for "xla".
    """
    return implementation in WHOLE_ROWS or slots <= SHORT


def attention(
    query: Float[Array, "*Q H d"],
    key: Float[Array, "R T G d"],
    value: Float[Array, "R T G d"],
    mask: AttentionMask,
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

    >>> from embed_jax.encoders.attention_mask import make_mask
    >>> from embed_jax.types import TokenBatch
    >>> sentence = jnp.array([[0, 1]])  # two sentences of a token: each token sees only itself
    >>> tokens = TokenBatch(sentence, sentence, 0 * sentence, sentence >= 0, sentences=2)
    >>> x = jnp.eye(2).reshape(1, 2, 1, 2)  # two tokens, one head of size 2
    >>> attention(x, x, x, make_mask(tokens, dense=True))[0, :, 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Args:
        query: the queries, of H heads of size d: of all slots [R, T], or of one slot of each
            sentence [S].
        key: the keys, of G heads.
        value: the values, of G heads.
        mask: which slots see each other, and what is added to the scores.
        queries: the slots of the queries, and those that share a dropout mask; None: all slots,
            each with its own mask.
        scale: the factor of the scores; None: 1 / sqrt(d).
        softcap: c > 0: scores s become c tanh(s / c) before the bias (Gemma 2, 2024, section 2).
        dropout_rate: the share of the softmax's weights that becomes 0.
        dropout_key: None means no dropout. The same key gives the same mask in every
            implementation.
        implementation: "xla": batched matrix products of whole rows; "blocks": the same, a few rows
            or some queries of a row at a time; "segments": for each block of queries only the slots
            that they can see, in memory linear in the slots; "pallas": the same as a kernel for GPU
            and TPU; "cudnn": flash attention of whole rows, for 16-bit inputs without dropout. The
            results at padding differ, and are finite. "auto" takes segments (CPU) or pallas for
            long rows without more in the bias than the mask, else blocks, or cuDNN on a GPU where
            its restrictions allow it.
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
        return _one_query(query, key, value, mask, softcap, queries, dropout_rate, dropout_key)
    if implementation == "auto":
        implementation = _choose(query, mask, softcap, dropout_key)
    if implementation in SKIPPING:
        if mask.relative:
            raise InputError(
                f"attention {implementation!r} adds no bias by distance: use 'auto', 'blocks' or "
                "'xla'"
            )
        mask = mask.with_ranges()
    if implementation == "cudnn":
        if dropout_key is not None:
            raise InputError(
                "attention 'cudnn' has no dropout: use 'auto' or 'xla', or attention_dropout 0"
            )
        if softcap:
            raise InputError("attention 'cudnn' has no soft-capping: use 'auto' or 'xla'")
        # cuDNN computes with a bias of the inputs' type; MASKED is finite in bfloat16 too.
        bias = jnp.asarray(mask.dense_bias()).astype(query.dtype)
        return jax.nn.dot_product_attention(
            query, key, value, bias, scale=scale, implementation="cudnn"
        )
    # Scaling the queries touches [T, d] numbers, scaling the scores would touch [T, T].
    query = query * jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, query.dtype)
    if implementation == "pallas":
        # Slow to import
        from embed_jax.encoders.kernels import kernel_attention

        return kernel_attention(query, key, value, mask, softcap, places, dropout_rate, dropout_key)
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    if implementation == "segments":
        return segment_attention(
            query, key, value, mask, softcap, places, dropout_rate, dropout_key
        )
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    if implementation == "blocks":
        mixed = _blocks(query, key, value, mask, softcap, places, dropout_rate, dropout_key)
    else:
        start = 0 if places is None else _starts(places, places.position, query.shape[1])
        whole = mask.dense_bias()
        mixed = _products(query, key, value, whole, softcap, start, dropout_rate, dropout_key)
    return mixed.transpose(0, 2, 1, 3)


def _choose(
    query: Float[Array, "R T H d"],
    mask: AttentionMask,
    softcap: float,
    dropout_key: PRNGKeyArray | None,
) -> str:
    """Returns the implementation that suits the backend and the inputs."""
    backend, slots = jax.default_backend(), query.shape[1]
    if mask.relative:
        return "blocks"
    if slots > SHORT:
        if backend == "cpu":
            return "segments"
        memory = 4 * slots * max(query.shape[-1], 128) * query.dtype.itemsize
        fits = backend != "tpu" or memory <= KERNEL_MEMORY
        return "pallas" if fits and slots % KERNEL_BLOCK == 0 else "blocks"
    flash = query.dtype == jnp.bfloat16 and dropout_key is None and not softcap
    # A program for a GPU may be lowered on a machine without a GPU and its cuDNN.
    return "cudnn" if flash and jax.devices()[0].platform == "gpu" else "blocks"


def _products(query, key, value, bias, softcap, start, dropout_rate, dropout_key):
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
    weights = dropout(weights, dropout_rate, dropout_key, start).astype(value.dtype)
    return (jnp.matmul(weights, value, preferred_element_type=jnp.float32) / total).astype(
        value.dtype
    )


def _starts(places: MaskPositions, seen: Int[Array, "R T"], heads: int) -> Int[Array, "R H Q T"]:
    """Returns each attention weight's index in its dropout mask.

    The index depends on the example, the head and both tokens' positions only.

    Args:
        places: of the queries.
        seen: the positions of all slots.
        heads: H.
    """
    example, position = (leaf[:, None, :, None] for leaf in (places.example, places.position))
    head, slots = jnp.arange(heads)[:, None, None], seen.shape[1]
    return ((example * heads + head) * slots + position) * slots + seen[:, None, None, :]


def _blocks(query, key, value, mask, softcap, places, dropout_rate, dropout_key):
    """Applies `_products` to a few rows at a time, so that their weights fit the cache.

    Of rows that are too long for it, each is cut into pieces of its queries. The weights are
    computed again in the backward pass. On CPU a training step is about a tenth faster than with
    all rows at once, in two thirds of the memory.
    """
    rows, heads, slots, _ = query.shape
    limit = BLOCK if jax.default_backend() == "cpu" else LARGE_BLOCK
    block = max(
        n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * heads * slots**2 <= limit)
    )
    # A row whose weights are a few times the limit is multiplied whole, as short rows are.
    cut = block * heads * slots**2 > limit and slots > SHORT
    piece = max(
        n for n in range(1, slots + 1) if slots % n == 0 and (n == 1 or n * heads * slots <= limit)
    )
    if block == rows and not cut:
        start = 0 if places is None else _starts(places, places.position, heads)
        bias = mask.dense_bias()
        return _products(query, key, value, bias, softcap, start, dropout_rate, dropout_key)
    kind, mask = mask.kind, mask.replace(kind=None)

    @jax.checkpoint
    def attend_block(inputs):
        index, (query, key, value, mask, places) = inputs
        mask = mask.replace(kind=kind)
        # The block's place in the mask of all rows, so that the size of a block changes no mask.
        start = index * (block * heads * slots**2)
        if not cut:
            if places is not None:
                start = _starts(places, places.position, heads)
            bias = mask.dense_bias()
            return _products(query, key, value, bias, softcap, start, dropout_rate, dropout_key)

        @jax.checkpoint
        def attend_piece(inputs):
            number, query, asking, bias, own_places = inputs
            if bias is None:
                bias = mask.dense_bias(*asking)
            if places is None:
                head = jnp.arange(heads)[None] * slots**2
                first = start + head + number * (piece * slots)
            else:
                first = _starts(own_places, places.position, heads)
            return _products(query, key, value, bias, softcap, first, dropout_rate, dropout_key)

        pieces = slots // piece

        def split(x: Any, axis: int) -> Any:  # the slots of `axis` into pieces, which come first
            shape = (*x.shape[:axis], pieces, piece, *x.shape[axis + 1 :])
            return jnp.moveaxis(x.reshape(shape), axis, 0)

        asking = split(mask.sentence, 1), split(mask.position, 1)
        own_bias = None if mask.bias is None else split(mask.bias, 2)
        own_places = jax.tree.map(lambda x: split(x, 1), places)
        inputs = (jnp.arange(pieces), split(query, 2), asking, own_bias, own_places)
        mixed = lax.map(attend_piece, inputs)
        return jnp.moveaxis(mixed, 0, 2).reshape(query.shape)

    blocks = jax.tree.map(
        lambda x: x.reshape(rows // block, block, *x.shape[1:]), (query, key, value, mask, places)
    )
    return lax.map(attend_block, (jnp.arange(rows // block), blocks)).reshape(query.shape)


def _one_query(query, key, value, mask, softcap, queries, dropout_rate, dropout_key):
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
    if mask.relative:
        own_bias = jnp.take_along_axis(mask.bias, column[:, None, None, :], axis=2)[:, :, 0]
        scores = scores + own_bias.transpose(0, 2, 1)
    else:
        asking = jnp.take_along_axis(mask.position, column, axis=1)
        keys = mask.key_sentence, mask.position
        seen = sees((mask.sentence, asking), keys, mask.causal, mask.window)
        scores = jnp.where(seen[..., None], scores, MASKED)
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
