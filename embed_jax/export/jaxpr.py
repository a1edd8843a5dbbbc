"""Translates a traced JAX function to an ONNX graph, primitive by primitive, with loops unrolled.

Dimensions may be symbolic (`jax.export.symbolic_shape`), and stay so. Values that depend on known
arrays only are computed here. Broadcast arrays stay small as long as ONNX's own broadcasting gives
the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from embed_jax.errors import InputError
from embed_jax.export.onnx_graph import Graph, Size, Tensor, constant
from embed_jax.export.onnx_rules import RULES

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat",
)
INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters with the function of a call


def to_graph(
    function: Callable,
    inputs: Mapping[str, tuple[Any, Sequence[Size]]],
    *leading: Any,
    int8_tables: bool = False,
) -> tuple[Graph, Any]:
    """Traces a function and translates it to a graph.

    >>> graph, result = to_graph(jax.numpy.tanh, {"x": (np.float32, (2, 3))})
    >>> [node.op for node in graph.nodes.values()], result.sizes
    (['Tanh'], (2, 3))

    Args:
        function: called as `(*leading, *inputs)`.
        inputs: dtype and shape of each input by name; int32 inputs are int64 in the graph.
        *leading: trees of known arrays, such as parameters.
        int8_tables: see `Graph`.

    Returns:
        The graph, and the function's result with tensors in place of arrays.

    Raises:
        InputError: the function has a primitive, or a use of one, that is not supported.
    """
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for dtype, shape in inputs.values()]
    traced = jax.jit(function).trace(*leading, *shapes)
    wide = {np.dtype(np.int32): np.dtype(np.int64)}
    widened = {
        name: (wide.get(np.dtype(dtype), dtype), shape) for name, (dtype, shape) in inputs.items()
    }
    graph = Graph(widened, int8_tables)
    arguments = [constant(leaf) for leaf in jax.tree.leaves(leading)]
    arguments += [graph.cast(graph.inputs[name], dtype) for name, (dtype, _) in inputs.items()]
    outputs = [graph.expand(tensor) for tensor in inline(graph, traced.jaxpr, arguments)]
    return graph, jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)


def inline(graph: Graph, closed: ClosedJaxpr, arguments: Sequence[Tensor]) -> list[Tensor]:
    """Adds the nodes of a jaxpr to the graph, and returns its outputs for these arguments."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(variable: Any) -> Tensor:
        return (
            constant(variable.val, cast(Any, variable.aval).dtype)  # JAX's type of it lacks dtype
            if isinstance(variable, Literal)
            else values[variable]
        )

    for equation in jaxpr.eqns:
        outputs = _equation(graph, equation, [read(variable) for variable in equation.invars])
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        inside = next(params[key] for key in INSIDE if key in params)
        closed = inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())
        return inline(graph, closed, inputs)
    if name == "scan":
        return _scan(graph, params, inputs)
    shapes = [variable.aval.shape for variable in equation.outvars]
    sizes = [size for shape in shapes for size in shape]
    if (
        inputs
        and all(tensor.is_known and tensor.is_whole for tensor in inputs)
        and all(type(n) is int for n in sizes)
    ):
        if name not in RULES or not RULES[name].views:
            results = equation.primitive.bind(*(tensor.data for tensor in inputs), **params)
            return [
                constant(result)
                for result in (results if equation.primitive.multiple_results else [results])
            ]
    if name not in RULES:
        raise InputError(f"ONNX export: the JAX primitive {name!r} is not supported")
    outputs = RULES[name].apply(graph, equation, inputs)
    return [tensor.with_shape(shape) for tensor, shape in zip(outputs, shapes, strict=True)]


def _scan(graph: Graph, params: Mapping[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    """Unrolls a loop of a known length."""
    constants, carries, length = params["num_consts"], params["num_carry"], params["length"]
    shared, carry, each = (
        inputs[:constants],
        inputs[constants : constants + carries],
        inputs[constants + carries :],
    )
    stacks: list[list[Tensor]] = [[] for _ in params["jaxpr"].jaxpr.outvars[carries:]]
    for step in reversed(range(length)) if params["reverse"] else range(length):
        own = [graph.row(tensor, step) for tensor in each]
        results = inline(graph, params["jaxpr"], [*shared, *carry, *own])
        carry = results[:carries]
        for stack, result in zip(stacks, results[carries:], strict=True):
            stack.append(result)
    ordered = [stack[::-1] if params["reverse"] else stack for stack in stacks]
    return [*carry, *(graph.stack(stack) for stack in ordered)]
