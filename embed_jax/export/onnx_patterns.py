"""Replaces several nodes by one ONNX operator: softmax, layer norm, GELU.

A pattern is matched when its last node is about to be added.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from embed_jax.export.onnx_graph import Graph, Tensor, constant

COMMUTATIVE = ("Add", "Mul")
Pattern = Any  # a name for any tensor, a number, or (operator, pattern of each input)
Found = dict[str, Tensor]

MAXIMUM = ("ReduceMax", "scores", "axes")
EXP = ("Exp", ("Sub", "scores", MAXIMUM))
TOTAL = ("ReduceSum", EXP, "axes")


def _mean(x: Pattern) -> Pattern:
    return "Div", ("ReduceSum", x, "axes"), "count"


CENTERED = ("Sub", "x", _mean("x"))
DEVIATION = ("Sqrt", ("Add", _mean(("Mul", CENTERED, CENTERED)), "eps"))
LAYER_NORM = ("Mul", CENTERED, ("Mul", ("Reciprocal", DEVIATION), "scale"))
GELU = ("Mul", ("Mul", 0.5, "x"), ("Add", 1.0, ("Erf", ("Mul", "x", 0.5**0.5))))


def match(graph: Graph, pattern: Pattern, tensor: Tensor, names: Found) -> Found | None:
    """Matches a pattern: returns the tensors of its names, or None; equal names are one tensor."""
    if isinstance(pattern, str):
        same = pattern not in names or tensor.is_same(names[pattern])
        return {**names, pattern: tensor} if same else None
    if isinstance(pattern, float):
        number = (
            tensor.is_known
            and tensor.array.size == 1
            and tensor.array == tensor.dtype.type(pattern)
        )
        return names if number else None
    maker = graph.maker(tensor)
    return None if maker is None else match_node(graph, pattern, maker.op, maker.inputs, names)


def match_node(
    graph: Graph, pattern: Pattern, op: str, inputs: Sequence[Tensor], names: Found
) -> Found | None:
    """Matches a pattern to a node that is not in the graph yet; see `match`."""
    if pattern[0] != op or len(pattern) - 1 != len(inputs):
        return None
    orders = itertools.permutations(inputs) if op in COMMUTATIVE else [inputs]
    for order in orders:
        result: Found | None = names
        for part, tensor in zip(pattern[1:], order, strict=True):
            result = match(graph, part, tensor, result) if result is not None else None
        if result is not None:
            return result
    return None


def _softmax(graph: Graph, names: Found) -> Tensor | None:
    scores = names["scores"]
    if names["axes"].array.tolist() != [len(scores.sizes) - 1]:
        return None
    return graph.node("Softmax", [scores], scores.sizes, scores.dtype, axis=-1)


def _weighted(graph: Graph, names: Found) -> Tensor | None:
    """Makes a softmax and a product of attention, which divides by the sum after the product."""
    weights, value = _softmax(graph, names), names["value"]
    if weights is None:
        return None
    return graph.node(
        "MatMul", [weights, value], (*weights.sizes[:-1], value.sizes[-1]), weights.dtype
    )


def _layer_norm(graph: Graph, names: Found) -> Tensor | None:
    x, scale, count = names["x"], names["scale"], names["count"]
    width = x.sizes[-1]
    last = (
        names["axes"].array.tolist() == [len(x.sizes) - 1]
        and count.is_known
        and count.array.tolist() == width
    )
    if not (last and scale.is_known and scale.array.size == width and names["eps"].is_known):
        return None
    inputs = [x, constant(scale.array.reshape(-1))]
    return graph.node(
        "LayerNormalization", inputs, x.sizes, x.dtype, axis=-1, epsilon=names["eps"].array.item()
    )


def _layer_norm_bias(graph: Graph, names: Found) -> Tensor | None:
    maker, bias = graph.maker(names["norm"]), names["bias"]
    assert maker is not None, "the pattern of a norm is a node"
    x = maker.inputs[0]
    if len(maker.inputs) > 2 or not (bias.is_known and bias.array.size == x.sizes[-1]):
        return None
    inputs = [*maker.inputs, constant(bias.array.reshape(-1))]
    return graph.node(maker.op, inputs, x.sizes, x.dtype, **maker.attributes)


def _gelu(graph: Graph, names: Found) -> Tensor | None:
    return graph.node("Gelu", [names["x"]], names["x"].sizes, names["x"].dtype)


PATTERNS: tuple[tuple[Pattern, Callable[[Graph, Found], Tensor | None]], ...] = (
    (("Div", EXP, TOTAL), _softmax),
    (("Div", ("MatMul", EXP, "value"), TOTAL), _weighted),
    (LAYER_NORM, _layer_norm),
    (GELU, _gelu),
)


def simplify_node(graph: Graph, op: str, inputs: Sequence[Tensor]) -> Tensor | None:
    """Returns a simpler equivalent of a node that is about to be made, or None."""
    for pattern, made in PATTERNS:
        names = match_node(graph, pattern, op, inputs, {})
        if names is not None and (tensor := made(graph, names)) is not None:
            return tensor
    if op == "Add":
        for norm, bias in (inputs, inputs[::-1]):
            maker = graph.maker(norm)
            if maker is not None and maker.op == "LayerNormalization":
                return _layer_norm_bias(graph, {"norm": norm, "bias": bias})
    return None
