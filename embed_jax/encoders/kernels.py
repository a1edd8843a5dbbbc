"""Attention as Pallas kernels for GPU and TPU, which skip blocks of slots that see nothing.

The algorithm is that of `segments`, with one program for each block of queries (and in the backward
pass one for each block of keys), whose loop goes over the other side's blocks in its range only.
JAX's own kernels know no ranges that depend on the data, no dropout whose mask another body can
repeat, and cannot be called in `jax.shard_map` with `check_vma`, on which training steps rely.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention_mask import MASKED, AttentionMask, sees
from embed_jax.encoders.layers import MaskPositions, keep_indices, mask_words
from embed_jax.types import AnyArray

BLOCKS = {"gpu": 64, "tpu": 128, "cpu": 16}  # slots of a block
BlockRanges = tuple[Int[Array, "R N"], Int[Array, "R N"]]


class Marks(struct.PyTreeNode):
    """The numbers by which the kernels mask.

    Attributes:
        asking: of slots as queries: sentence, position, and the numbers of their dropout masks.
        seen: of slots as keys: sentence, position, and the number of their dropout masks.
        key_ranges: the first block of keys of each block of queries, and the one after the last.
        query_ranges: the same of each block of keys.
        numbers: the window, and the two words of the dropout mask.
        block: slots of a block (static).
        windowed: whether there is a window (static).
        causal, rate, softcap: as in `attention.attention` (static).
    """

    asking: tuple[Int[AnyArray, "R T"], ...]
    seen: tuple[Int[AnyArray, "R T"], ...]
    key_ranges: BlockRanges
    query_ranges: BlockRanges
    numbers: Int[Array, "1 3"]
    block: int = struct.field(pytree_node=False, default=128)
    windowed: bool = struct.field(pytree_node=False, default=False)
    causal: bool = struct.field(pytree_node=False, default=False)
    rate: float = struct.field(pytree_node=False, default=0.0)
    softcap: float = struct.field(pytree_node=False, default=0.0)


def kernel_attention(
    query: Float[Array, "R T H d"],
    key: Float[Array, "R T G d"],
    value: Float[Array, "R T G d"],
    mask: AttentionMask,
    softcap: float = 0.0,
    places: MaskPositions | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "R T H d"]:
    """Computes attention of scaled queries; see `attention.attention` for the arguments.

    T is a multiple of a block's slots. On CPU the kernels are interpreted, which only serves tests.
    """
    rows, slots, _, size = query.shape
    block = BLOCKS[jax.default_backend()]
    places = places or MaskPositions.of_slots(rows, slots)
    words = jnp.zeros(2, jnp.int32)
    if dropout_key is not None:
        words = lax.bitcast_convert_type(mask_words(dropout_key), jnp.int32)
    window = 0 if mask.window is None else mask.window

    def in_blocks(ranges: BlockRanges) -> BlockRanges:
        start, stop = ranges
        return start // block, (stop + block - 1) // block

    marks = Marks(
        (mask.sentence, mask.position, places.example, places.position),
        (mask.key_sentence, mask.position, places.position),
        in_blocks(mask.key_ranges(block)),
        in_blocks(mask.query_ranges(block)),
        jnp.concatenate([jnp.asarray(window, jnp.int32)[None], words])[None],
        block=block,
        windowed=mask.window is not None,
        causal=mask.causal,
        rate=0.0 if dropout_key is None else dropout_rate,
        softcap=softcap,
    )
    # Triton multiplies sizes that are powers of 2 only.
    widths = [(0, 0)] * 3 + [(0, pl.next_power_of_2(size) - size)]

    def split(x: Float[Array, "R T h d"]) -> Float[Array, "R h N B D"]:
        x = jnp.pad(x, widths).swapaxes(1, 2)
        return x.reshape(*x.shape[:2], -1, block, x.shape[-1])

    mixed = _attend(split(query), split(key), split(value), marks)
    return mixed.reshape(rows, mixed.shape[1], slots, -1).swapaxes(1, 2)[..., :size]


@jax.custom_vjp
def _attend(query, key, value, marks):
    return _forward(query, key, value, marks)[0]


def _forward(query, key, value, marks):
    """Returns the attention, and log(sum(exp(scores))) of each query `[R, H, N, B, 1]`."""
    own, whole = _own_block(query), _whole_row(key, query)
    call = _call(
        _attend_kernel,
        marks,
        query,
        in_specs=(_columns(marks.asking, marks), _rows(marks.seen, marks), own, whole, whole),
        out_shape=(query, query[..., :1].astype(jnp.float32)),
    )
    asking, seen = _as_columns(marks.asking, marks), _as_rows(marks.seen, marks)
    return call(*marks.key_ranges, marks.numbers, asking, seen, query, key, value)


def _save(query, key, value, marks):
    mixed, sums = _forward(query, key, value, marks)
    return mixed, (query, key, value, marks, mixed, sums)


def _backward(saved, gradient):
    query, key, value, marks, mixed, sums = saved
    shared = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    own, whole = _own_block(query), _whole_row(key, query)
    number = _own_block(sums)
    call = _call(
        _query_kernel,
        marks,
        query,
        in_specs=(_columns(marks.asking, marks), _rows(marks.seen, marks))
        + (own, whole, whole, own, number, number),
        out_shape=(query,),
    )
    asking, seen = _as_columns(marks.asking, marks), _as_rows(marks.seen, marks)
    arrays = query, key, value, gradient, sums, shared
    (of_query,) = call(*marks.key_ranges, marks.numbers, asking, seen, *arrays)

    # Of each head of queries; their sum is the gradient of the keys that they share.
    per_head = query.astype(jnp.float32)
    own, whole = _own_block(key, query), _whole_row(query, query)
    in_rows = sums.swapaxes(-1, -2)
    call = _call(
        _key_kernel,
        marks,
        query,
        in_specs=(_rows(marks.asking, marks), _columns(marks.seen, marks))
        + (whole, own, own, whole, _whole_row(in_rows, query), _whole_row(in_rows, query)),
        out_shape=(per_head, per_head),
    )
    asking, seen = _as_rows(marks.asking, marks), _as_columns(marks.seen, marks)
    arrays = query, key, value, gradient, in_rows, shared.swapaxes(-1, -2)
    gradients = call(*marks.query_ranges, marks.numbers, asking, seen, *arrays)
    of_key, of_value = (
        jnp.sum(x.reshape(x.shape[0], key.shape[1], -1, *x.shape[2:]), axis=2).astype(key.dtype)
        for x in gradients
    )
    return of_query, of_key, of_value, None


_attend.defvjp(_save, _backward)


# ---- kernels -------------------------------------------------------------------------------------


def _attend_kernel(
    starts, stops, numbers, asking, seen, query, key, value, mixed, sums, *, marks, heads, slots
):
    """Computes the attention of one block of queries."""
    row, head, own = (pl.program_id(axis) for axis in range(3))
    own_query, own_marks = query[...], [x[...] for x in asking]

    def attend_block(index, state):
        highest, total, mixed = state
        others, values = [x[index] for x in seen], value[index]
        scores = _multiply(own_query, key[index].T)
        scores = _mask(scores, own_marks, others, numbers, marks)
        raised = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
        weights, fade = jnp.exp(scores - raised), jnp.exp(highest - raised)
        total = total * fade + jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights * _factor(own_marks, others, numbers, marks, head, heads, slots)
        return raised, total, mixed * fade + _multiply(weights.astype(values.dtype), values)

    zeros = jnp.zeros(own_query.shape, jnp.float32)
    column = jnp.zeros((own_query.shape[0], 1), jnp.float32)
    state = (column + MASKED, column, zeros)
    state = lax.fori_loop(starts[row, own], stops[row, own], attend_block, state)
    highest, total, result = state
    sees_any = highest > MASKED / 2
    total = jnp.where(sees_any, total, 1.0)
    mixed[...] = jnp.where(sees_any, result / total, 0.0).astype(mixed.dtype)
    # The sum 0 makes the weights of a query that sees nothing exp(MASKED): 0 too.
    sums[...] = jnp.where(sees_any, highest + jnp.log(total), 0.0)


def _query_kernel(
    starts, stops, numbers, asking, seen, query, key, value, gradient, sums, shared, of_query,
    *, marks, heads, slots,
):  # fmt: skip
    """Computes the gradient of one block of queries."""
    row, head, own = (pl.program_id(axis) for axis in range(3))
    own_query, own_gradient, own_sums = query[...], gradient[...], sums[...]
    own_shared, own_marks = shared[...], [x[...] for x in asking]

    def differentiate_block(index, total):
        others, keys = [x[index] for x in seen], key[index]
        scores = _mask(_multiply(own_query, keys.T), own_marks, others, numbers, marks)
        factor = _factor(own_marks, others, numbers, marks, head, heads, slots)
        through = _multiply(own_gradient, value[index].T) * factor
        of_scores = jnp.exp(scores - own_sums) * (through - own_shared)
        of_scores = _through_softcap(of_scores, scores, marks)
        return total + _multiply(of_scores.astype(keys.dtype), keys)

    zeros = jnp.zeros(own_query.shape, jnp.float32)
    total = lax.fori_loop(starts[row, own], stops[row, own], differentiate_block, zeros)
    of_query[...] = total.astype(of_query.dtype)


def _key_kernel(
    starts, stops, numbers, asking, seen, query, key, value, gradient, sums, shared, of_key,
    of_value, *, marks, heads, slots,
):  # fmt: skip
    """Computes the gradients of one block of keys and values; scores have the queries last."""
    row, head, own = (pl.program_id(axis) for axis in range(3))
    own_key, own_value, own_marks = key[...], value[...], [x[...] for x in seen]

    def differentiate_block(index, totals):
        others, queries, gradients = [x[index] for x in asking], query[index], gradient[index]
        scores = _mask(_multiply(own_key, queries.T), others, own_marks, numbers, marks)
        factor = _factor(others, own_marks, numbers, marks, head, heads, slots)
        weights = jnp.exp(scores - sums[index])
        through = _multiply(own_value, gradients.T) * factor
        of_scores = _through_softcap(weights * (through - shared[index]), scores, marks)
        remaining = (weights * factor).astype(gradients.dtype)
        return (
            totals[0] + _multiply(of_scores.astype(queries.dtype), queries),
            totals[1] + _multiply(remaining, gradients),
        )

    zeros = jnp.zeros(own_key.shape, jnp.float32)
    totals = lax.fori_loop(starts[row, own], stops[row, own], differentiate_block, (zeros, zeros))
    of_key[...], of_value[...] = totals


def _multiply(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _mask(scores, asking, seen, numbers, marks):
    """Returns the scores, capped, and MASKED where a query does not see a key."""
    if marks.softcap:
        scores = marks.softcap * jnp.tanh(scores / marks.softcap)
    window = numbers[0, 0] if marks.windowed else None
    return jnp.where(sees(asking[:2], seen[:2], marks.causal, window), scores, MASKED)


def _through_softcap(of_scores, scores, marks):
    if not marks.softcap:
        return of_scores
    return of_scores * (1 - (scores / marks.softcap) * (scores / marks.softcap))


def _factor(asking, seen, numbers, marks, head, heads, slots):
    """Returns the factors of dropout: 0, or what makes up for it; without dropout 1."""
    if not marks.rate:
        return 1.0
    index = ((asking[2] * heads + head) * slots + asking[3]) * slots + seen[2]
    words = [numbers[0, number].astype(jnp.uint32) for number in (1, 2)]
    keep = keep_indices(words, marks.rate, index.astype(jnp.uint32))
    return jnp.where(keep, 1 / (1 - marks.rate), 0.0)


# ---- calls ---------------------------------------------------------------------------------------


def _call(kernel: Any, marks: Marks, query: Any, in_specs: tuple, out_shape: tuple) -> Any:
    """Returns a call of a kernel for each row, head and block, which is first given the ranges.

    Args:
        kernel: the kernel.
        marks: see `Marks`.
        query: `[R, H, N, B, d]`.
        in_specs: of the inputs after ranges and numbers.
        out_shape: arrays of the results' shapes, whose blocks `[B, ...]` are the programs' own.
    """
    backend = jax.default_backend()
    scalars = pl.BlockSpec()
    params: Any = None
    if backend == "gpu":
        from jax.experimental.pallas import triton

        params = triton.CompilerParams(num_warps=4, num_stages=2)
    elif backend == "tpu":
        from jax.experimental.pallas import tpu

        scalars = pl.BlockSpec(memory_space=tpu.SMEM)
        params = tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))
    _, heads, blocks, block, _ = query.shape
    return pl.pallas_call(
        functools.partial(kernel, marks=marks, heads=heads, slots=blocks * block),
        grid=query.shape[:3],
        in_specs=(scalars, scalars, scalars, *in_specs),
        out_specs=tuple(_own_block(x) for x in out_shape),
        # Results vary over the mesh axes over which the queries do.
        out_shape=tuple(
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=jax.typeof(x).mat)
            for x in out_shape
        ),
        interpret=backend == "cpu",
        name=kernel.__name__.strip("_"),
        compiler_params=params,
    )


def _own_block(x: Float[Array, "R h N B d"], query: Any = None) -> Any:
    """Returns the spec of a program's block, of its head of queries or the keys' that serves it."""
    shared = 1 if query is None else query.shape[1] // x.shape[1]
    return pl.BlockSpec(
        (None, None, None, *x.shape[3:]), lambda r, h, i: (r, lax.div(h, shared), i, 0, 0)
    )


def _whole_row(x: Float[Array, "R h N B d"], query: Any) -> Any:
    """Returns the spec of all blocks of a program's row and head."""
    shared = query.shape[1] // x.shape[1]
    return pl.BlockSpec(
        (None, None, *x.shape[2:]), lambda r, h, i: (r, lax.div(h, shared), 0, 0, 0)
    )


def _as_columns(arrays: tuple, marks: Marks) -> tuple:
    return tuple(x.reshape(x.shape[0], -1, marks.block, 1) for x in arrays)


def _as_rows(arrays: tuple, marks: Marks) -> tuple:
    return tuple(x.reshape(x.shape[0], -1, 1, marks.block) for x in arrays)


def _columns(arrays: tuple, marks: Marks) -> tuple:
    """Returns the specs of a program's own block of marks, one below the other."""
    spec = pl.BlockSpec((None, None, marks.block, 1), lambda r, h, i: (r, i, 0, 0))
    return (spec,) * len(arrays)


def _rows(arrays: tuple, marks: Marks) -> tuple:
    """Returns the specs of all blocks of marks of a program's row, each side by side."""
    blocks = arrays[0].shape[1] // marks.block
    spec = pl.BlockSpec((None, blocks, 1, marks.block), lambda r, h, i: (r, 0, 0, 0))
    return (spec,) * len(arrays)
