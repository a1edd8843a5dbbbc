"""Translations of JAX's primitives to ONNX's operators; `RULES` has them by primitive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embed_jax.encoders.int8 import quantize_kernel
from embed_jax.errors import InputError
from embed_jax.export.onnx_graph import Graph, Size, Tensor, constant
from embed_jax.export.onnx_patterns import simplify_node


@dataclasses.dataclass(frozen=True)
class Rule:
    """A translation of a primitive into nodes.

    Attributes:
        apply: `(graph, equation, inputs) -> outputs`.
        views: whether known inputs give a known output without a copy, so that the rule is used for
            known inputs too, instead of computing the primitive.
    """

    apply: Callable[[Graph, Any, list[Tensor]], list[Tensor]]
    views: bool = False


RULES: dict[str, Rule] = {}


def rule(*names: str, views: bool = False):
    """Registers a function `(graph, params, *inputs) -> output` for primitives with one output."""

    def register(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
        for name in names:
            RULES[name] = Rule(
                lambda graph, equation, inputs: [made(graph, equation.params, *inputs)], views
            )
        return made

    return register


def elementwise(graph: Graph, op: str, inputs: Sequence[Tensor], dtype: Any = None) -> Tensor:
    """Adds a node that broadcasts like NumPy; `dtype`: the result's, if not the inputs'."""
    rank = max(len(tensor.sizes) for tensor in inputs)
    filled = [(1,) * (rank - len(tensor.sizes)) + tensor.sizes for tensor in inputs]
    sizes = [
        next((size for size in at if not _is_one(size)), 1) for at in zip(*filled, strict=True)
    ]
    trimmed = [_strip_leading_ones(tensor) for tensor in inputs]
    if dtype is None and (tensor := simplify_node(graph, op, trimmed)) is not None:
        return tensor
    return graph.node(op, trimmed, sizes, dtype or inputs[-1].dtype)


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


def _strip_leading_ones(tensor: Tensor) -> Tensor:
    """Removes a constant's leading ones; runtimes then recognise it as a bias or as a number."""
    if not tensor.is_known:
        return tensor
    first = next((axis for axis, size in enumerate(tensor.sizes) if size != 1), len(tensor.sizes))
    return constant(tensor.array.reshape(tensor.sizes[first:])) if first else tensor


def _is_constant(tensor: Tensor, number: float) -> bool:
    return tensor.is_known and tensor.array.size == 1 and tensor.array.item() == number


# ---- element by element --------------------------------------------------------------------------

UNARY = {
    "neg": "Neg",
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "sqrt": "Sqrt",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "not": "Not",
}
BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "and": "And",
    "or": "Or",
    "xor": "Xor",
}
COMPARE = {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
NEUTRAL = {
    "add": 0,
    "sub": 0,
    "mul": 1,
    "div": 1,
    "and": True,
    "or": False,
    "max": -math.inf,
    "min": math.inf,
}

for _name, _op in UNARY.items():
    rule(_name)(lambda graph, params, x, op=_op: elementwise(graph, op, [x]))
for _name, _op in COMPARE.items():
    rule(_name)(lambda graph, params, x, y, op=_op: elementwise(graph, op, [x, y], np.bool_))


@rule("ne")
def _not_equal(graph: Graph, params: Any, x: Tensor, y: Tensor) -> Tensor:
    return elementwise(graph, "Not", [elementwise(graph, "Equal", [x, y], np.bool_)])


def _binary(name: str) -> Callable[..., Tensor]:
    def made(graph: Graph, params: Any, x: Tensor, y: Tensor) -> Tensor:
        if name in ("and", "or", "xor") and x.dtype != np.bool_:
            raise InputError(
                f"ONNX export: the JAX primitive {name!r} is supported for booleans only"
            )
        if name in NEUTRAL and _is_constant(y, NEUTRAL[name]):
            return x
        if name in NEUTRAL and name not in ("sub", "div") and _is_constant(x, NEUTRAL[name]):
            return y
        return elementwise(graph, BINARY[name], [x, y])

    return made


for _name in BINARY:
    rule(_name)(_binary(_name))


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision", views=True)
def _identity(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return x


@rule("rsqrt")
def _rsqrt(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return elementwise(graph, "Reciprocal", [elementwise(graph, "Sqrt", [x])])


@rule("square")
def _square(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return elementwise(graph, "Mul", [x, x])


@rule("integer_pow")
def _integer_pow(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return elementwise(graph, "Pow", [x, constant(params["y"], x.dtype)])


@rule("is_finite")
def _is_finite(graph: Graph, params: Any, x: Tensor) -> Tensor:
    wrong = [elementwise(graph, op, [x], np.bool_) for op in ("IsInf", "IsNaN")]
    return elementwise(graph, "Not", [elementwise(graph, "Or", wrong)])


@rule("convert_element_type", views=True)
def _convert(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return graph.cast(x, params["new_dtype"])


@rule("select_n", views=True)
def _select(graph: Graph, params: Any, which: Tensor, *cases: Tensor) -> Tensor:
    if which.is_known and which.array.size == 1:
        return cases[int(which.array.item())]
    if which.dtype != np.bool_:
        raise InputError(f"ONNX export: a choice by {which.dtype} is not supported")
    if all(tensor.is_known for tensor in (which, *cases)):
        return constant(np.where(which.data, cases[1].data, cases[0].data))
    return elementwise(graph, "Where", [which, cases[1], cases[0]])


# ---- shapes --------------------------------------------------------------------------------------


@rule("reshape", views=True)
def _reshape(graph: Graph, params: Any, x: Tensor) -> Tensor:
    new = tuple(params["new_sizes"])
    if x.is_whole:
        return graph.reshape(x, new)
    ones = [size for size in x.shape if not _is_one(size)] == [
        size for size in new if not _is_one(size)
    ]
    if not ones:
        return graph.reshape(graph.expand(x), new)
    remaining = iter(
        [size for size, full in zip(x.sizes, x.shape, strict=True) if not _is_one(full)]
    )
    return graph.reshape(x, [1 if _is_one(size) else next(remaining) for size in new])


@rule("squeeze", views=True)
def _squeeze(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return graph.reshape(
        x, [size for axis, size in enumerate(x.sizes) if axis not in params["dimensions"]]
    )


@rule("broadcast_in_dim", views=True)
def _broadcast(graph: Graph, params: Any, x: Tensor, *sizes: Tensor) -> Tensor:
    placed = dict(zip(params["broadcast_dimensions"], x.sizes, strict=True))
    return graph.reshape(x, [placed.get(axis, 1) for axis in range(len(params["shape"]))])


@rule("transpose", views=True)
def _transpose(graph: Graph, params: Any, x: Tensor) -> Tensor:
    return graph.transpose(x, params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, params: Any, *parts: Tensor) -> Tensor:
    return graph.concatenate(parts, params["dimension"])


@rule("stack")
def _stack(graph: Graph, params: Any, *parts: Tensor) -> Tensor:
    return graph.stack(parts, params["axis"])


@rule("slice", views=True)
def _slice(graph: Graph, params: Any, x: Tensor) -> Tensor:
    strides = params["strides"] or (1,) * len(x.sizes)
    for axis, (start, stop, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        x = graph.slice(x, axis, start, stop, step)
    return x


def _split(graph: Graph, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    ends = np.cumsum([0, *equation.params["sizes"]]).tolist()
    return [
        graph.slice(inputs[0], equation.params["axis"], *ends[n : n + 2])
        for n in range(len(ends) - 1)
    ]


RULES["split"] = Rule(_split, views=True)


@rule("iota")
def _iota(graph: Graph, params: Any, *sizes: Tensor) -> Tensor:
    shape, axis = params["shape"], params["dimension"]
    placed = [shape[axis] if n == axis else 1 for n in range(len(shape))]
    if isinstance(shape[axis], int):
        return constant(np.arange(shape[axis]).reshape(placed), params["dtype"])
    stop = graph.reshape(graph.dimensions([shape[axis]]), ())
    counted = graph.node(
        "Range", [constant(0, np.int64), stop, constant(1, np.int64)], [shape[axis]], np.int64
    )
    return graph.reshape(graph.cast(counted, params["dtype"]), placed)


@rule("dim_as_value")
def _dim_as_value(graph: Graph, params: Any) -> Tensor:
    return graph.cast(graph.reshape(graph.dimensions([params["dim"]]), ()), np.int32)


# ---- along axes ----------------------------------------------------------------------------------


def _reduce(op: str) -> Callable[..., Tensor]:
    def made(graph: Graph, params: Any, x: Tensor) -> Tensor:
        if op == "ReduceSum":
            x = graph.expand(x)
        axes = sorted(params["axes"])
        sizes = [size for axis, size in enumerate(x.sizes) if axis not in axes]
        return graph.node(op, [x, constant(axes, np.int64)], sizes, x.dtype, keepdims=0)

    return made


for _name, _op in (
    ("reduce_sum", "ReduceSum"),
    ("reduce_max", "ReduceMax"),
    ("reduce_min", "ReduceMin"),
):
    rule(_name)(_reduce(_op))


@rule("cumsum")
def _cumsum(graph: Graph, params: Any, x: Tensor) -> Tensor:
    x, axis = graph.expand(x), constant(params["axis"], np.int64)
    return graph.node("CumSum", [x, axis], x.sizes, x.dtype, reverse=int(params["reverse"]))


@rule("gather", views=True)
def _gather(graph: Graph, params: Any, table: Tensor, index: Tensor) -> Tensor:
    """Gathers a slice of known position, or whole rows along one axis (indexing with an array)."""
    numbers, cut = params["dimension_numbers"], params["slice_sizes"]
    axes, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    if index.is_known and len(index.sizes) == 1 and not numbers.operand_batching_dims:
        for axis, start in zip(axes, index.array.tolist(), strict=True):
            if cut[axis] != table.shape[axis]:
                table = graph.slice(table, axis, start, start + cut[axis])
        return graph.reshape(
            table, [size for axis, size in enumerate(table.sizes) if axis not in gone]
        )
    axis, rank = axes[0], len(index.sizes) - 1
    whole = [size for n, size in enumerate(cut) if n != axis] == [
        s for n, s in enumerate(table.shape) if n != axis
    ]
    offsets = tuple(n if n < axis else n + rank for n in range(len(cut) - 1))
    if len(axes) > 1 or not whole or gone != (axis,) or numbers.offset_dims != offsets:
        raise InputError(
            "ONNX export: the JAX primitive 'gather' is supported for whole rows along one "
            "axis only"
        )
    index = graph.reshape(index, index.sizes[:-1])
    if table.is_known and index.is_known:
        return constant(table.array.take(index.array, axis))
    sizes = (*table.sizes[:axis], *index.sizes, *table.sizes[axis + 1 :])
    if graph.int8_tables and table.is_known and len(table.sizes) == 2 and axis == 0:
        small = quantize_kernel(table.array.astype(np.float32).T)
        values = graph.node("Gather", [constant(small.values.T), index], sizes, np.int8, axis=0)
        scale = graph.node(
            "Gather", [constant(small.scale.T), index], (*index.sizes, 1), np.float32, axis=0
        )
        return graph.cast(
            elementwise(graph, "Mul", [graph.cast(values, np.float32), scale]), table.dtype
        )
    return graph.node("Gather", [table, index], sizes, table.dtype, axis=axis)


# ---- products ------------------------------------------------------------------------------------


@rule("dot_general")
def _dot_general(graph: Graph, params: Any, left: Tensor, right: Tensor) -> Tensor:
    """Adds a MatMul of `[batch, rows, k]` and `[batch, k, columns]`, with axes moved as needed.

    Products with constants stay in 16 bits, and their results are cast; other products are computed
    in the requested dtype.
    """
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    result_dtype = np.dtype(params["preferred_element_type"] or left.dtype)
    if not right.is_known and not left.is_known:
        left, right = graph.cast(left, result_dtype), graph.cast(right, result_dtype)
    left_free, right_free = (
        [axis for axis in range(len(tensor.sizes)) if axis not in (*batch, *summed)]
        for tensor, batch, summed in ((left, left_batch, left_sum), (right, right_batch, right_sum))
    )
    left = _expand_last(
        graph, graph.transpose(left, [*left_batch, *left_free, *left_sum]), len(left_sum)
    )
    right = graph.transpose(right, [*right_batch, *right_sum, *right_free])
    right = _expand_last(graph, right, len(right_sum) + len(right_free))
    batch, shared = len(left_batch), len(left_sum)
    rows, columns = left.sizes[batch : len(left.sizes) - shared], right.sizes[batch + shared :]
    if batch or len(rows) == 0 or shared != 1:  # else MatMul takes any number of axes of rows
        left = graph.reshape(
            left, (*left.sizes[:batch], math.prod(rows), math.prod(left.sizes[batch + len(rows) :]))
        )
    if len(columns) != 1 or shared != 1:
        right = graph.reshape(
            right,
            (
                *right.sizes[:batch],
                math.prod(right.sizes[batch : batch + shared]),
                math.prod(columns),
            ),
        )
    outer = [
        b if _is_one(a) else a for a, b in zip(left.sizes[:batch], right.sizes[:batch], strict=True)
    ]
    product = graph.node(
        "MatMul", [left, right], (*outer, *left.sizes[batch:-1], right.sizes[-1]), left.dtype
    )
    return graph.cast(graph.reshape(product, (*outer, *rows, *columns)), result_dtype)


def _expand_last(graph: Graph, tensor: Tensor, last: int) -> Tensor:
    """Expands the last axes to the shape that they stand for; MatMul broadcasts the others."""
    if tensor.sizes[len(tensor.sizes) - last :] == tensor.shape[len(tensor.shape) - last :]:
        return tensor
    return graph.expand(tensor)
