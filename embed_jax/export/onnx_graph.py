"""An ONNX graph under construction: equal nodes are one node, and known values are constants."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.atomic import replaced
from embed_jax.errors import InputError

OPSET, IR_VERSION = 20, 10  # of 2024; runtimes of the last years read them
EXTERNAL_FROM = 2**31 - 2**24  # bytes; protobuf's files are limited to 2 GiB
EXTERNAL_TENSOR = 1024  # bytes: smaller tensors stay in the model's own file
SAME_BYTES = 4096  # constants up to this size are compared by their content
RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")

Size = Any  # an int, or jax.export's symbolic dimension


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph, which may stand for a larger one that it is broadcast to.

    Attributes:
        data: the values if they are known, else the name of a node's output.
        sizes: the shape that it has.
        shape: the shape that it stands for; in dimensions where the two differ, the size is 1.
        dtype: the dtype of the values.
    """

    data: np.ndarray | str
    sizes: tuple[Size, ...]
    shape: tuple[Size, ...]
    dtype: np.dtype

    @property
    def is_known(self) -> bool:
        """Tells whether the values are known."""
        return isinstance(self.data, np.ndarray)

    @property
    def array(self) -> np.ndarray:
        """The values, which must be known."""
        assert isinstance(self.data, np.ndarray), "the values come from a node"
        return self.data

    @property
    def is_whole(self) -> bool:
        """Tells whether the tensor stands for itself."""
        return self.sizes == self.shape

    def with_shape(self, shape: Sequence[Size]) -> Tensor:
        """Returns the tensor standing for another shape, to which it can be broadcast."""
        return dataclasses.replace(self, shape=tuple(shape))

    def is_same(self, other: Tensor) -> bool:
        """Tells whether both are the same value."""
        if self.is_known and other.is_known:
            return self.data is other.data or (
                self.sizes == other.sizes and np.array_equal(self.data, other.data)
            )
        return not self.is_known and not other.is_known and self.data == other.data


def constant(value: Any, dtype: Any = None) -> Tensor:
    """Makes a tensor of known values.

    >>> constant([1, 2]).sizes
    (2,)
    """
    array = np.asarray(value, dtype)
    return Tensor(array, array.shape, array.shape, array.dtype)


@dataclasses.dataclass(frozen=True)
class Node:
    """An ONNX operator with its inputs and attributes; dtypes are written as ONNX's numbers."""

    op: str
    inputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]


class Graph:
    """Nodes in order, whose outputs are named by operator and index.

    >>> graph = Graph({"x": (np.float32, (2, 3))})
    >>> graph.transpose(graph.inputs["x"], (1, 0)).sizes
    (3, 2)

    Attributes:
        inputs: the graph's inputs, by name.
        nodes: the node of each output, by the output's name.
        initializers: the constants, by name.
        int8_tables: whether known tables from which rows are gathered are stored in eight bits.
    """

    def __init__(self, inputs: Mapping[str, tuple[Any, Sequence[Size]]], int8_tables: bool = False):
        """Makes a graph without nodes.

        Args:
            inputs: dtype and shape by name. The size of a symbolic dimension is taken from the
                first input that has it.
            int8_tables: see the attribute.
        """
        self.int8_tables = int8_tables
        self.inputs = {
            name: Tensor(name, tuple(shape), tuple(shape), np.dtype(dtype))
            for name, (dtype, shape) in inputs.items()
        }
        self.nodes: dict[str, Node] = {}
        self._names: dict[Any, str] = {}
        self._constants: dict[Any, str] = {}
        self.initializers: dict[str, np.ndarray] = {}

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor],
        sizes: Sequence[Size],
        dtype: Any,
        **attributes: Any,
    ) -> Tensor:
        """Returns the output of a node with one output, and adds the node unless it is there."""
        sizes = tuple(sizes)
        key = (op, tuple(self.name(tensor) for tensor in inputs), tuple(sorted(attributes.items())))
        if key not in self._names:
            self._names[key] = f"{op}_{len(self.nodes)}"
            self.nodes[self._names[key]] = Node(op, tuple(inputs), attributes)
        return Tensor(self._names[key], sizes, sizes, np.dtype(dtype))

    def name(self, tensor: Tensor) -> str:
        """Returns the name by which nodes refer to a tensor; a known one becomes a constant."""
        if isinstance(tensor.data, str):
            return tensor.data
        small = tensor.array.nbytes <= SAME_BYTES
        key = (
            (tensor.array.tobytes(), tensor.sizes, tensor.dtype.str) if small else id(tensor.array)
        )
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers[self._constants[key]] = tensor.array
        return self._constants[key]

    def maker(self, tensor: Tensor) -> Node | None:
        """Returns the node whose output a tensor is, or None."""
        return self.nodes.get(tensor.data) if isinstance(tensor.data, str) else None

    # ---- shapes ----------------------------------------------------------------------------------

    def dimensions(self, sizes: Sequence[Size]) -> Tensor:
        """Returns a shape as a tensor of int64."""
        if all(isinstance(size, int) for size in sizes):
            return constant(sizes, np.int64)
        return self._join([self._dimension(size) for size in sizes])

    def _join(self, parts: list[Tensor]) -> Tensor:
        return (
            parts[0]
            if len(parts) == 1
            else self.node("Concat", parts, (len(parts),), np.int64, axis=0)
        )

    def _dimension(self, size: Size) -> Tensor:
        """Returns a size as a tensor of one number.

        A size is a number, the name of an input's dimension, or a product of these.
        """
        factors = [self._factor(factor) for factor in str(size).split("*")]
        return functools.reduce(lambda a, b: self.node("Mul", [a, b], (1,), np.int64), factors)

    def _factor(self, factor: str) -> Tensor:
        if factor.isdigit():
            return constant([int(factor)], np.int64)
        for tensor in self.inputs.values():
            for axis, size in enumerate(tensor.sizes):
                if str(size) == factor:
                    return self.node("Shape", [tensor], (1,), np.int64, start=axis, end=axis + 1)
        raise InputError(f"ONNX export: the size {factor!r} is not a product of the inputs' sizes")

    def expand(self, tensor: Tensor) -> Tensor:
        """Returns the tensor expanded to the shape that it stands for."""
        if tensor.is_whole:
            return tensor
        if tensor.is_known and all(isinstance(size, int) for size in tensor.shape):
            return constant(np.broadcast_to(tensor.data, tensor.shape))
        return self.node(
            "Expand", [tensor, self.dimensions(tensor.shape)], tensor.shape, tensor.dtype
        )

    def reshape(self, tensor: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Returns a tensor's values in another shape."""
        sizes = tuple(sizes)
        if tensor.is_known and all(isinstance(size, int) for size in sizes):
            return constant(tensor.array.reshape(sizes))
        while (maker := self.maker(tensor)) is not None and maker.op in RESHAPES:
            tensor = maker.inputs[0]
        if tensor.sizes == sizes:
            return tensor.with_shape(sizes)
        if (axes := _find_ones(tensor.sizes, sizes)) is not None:
            return self._with_ones(tensor, sizes, axes)
        if (axes := _find_ones(sizes, tensor.sizes)) is not None:
            return self.node("Squeeze", [tensor, constant(axes, np.int64)], sizes, tensor.dtype)
        return self.node(
            "Reshape", [tensor, self._new_shape(tensor.sizes, sizes)], sizes, tensor.dtype
        )

    def _with_ones(self, tensor: Tensor, sizes: tuple[Size, ...], axes: list[int]) -> Tensor:
        maker = self.maker(tensor)
        if (
            maker is not None
            and maker.op.startswith("Reduce")
            and maker.inputs[1].array.tolist() == axes
        ):
            return self.node(maker.op, maker.inputs, sizes, tensor.dtype, keepdims=1)
        return self.node("Unsqueeze", [tensor, constant(axes, np.int64)], sizes, tensor.dtype)

    def _new_shape(self, old: tuple[Size, ...], new: tuple[Size, ...]) -> Tensor:
        """Returns the shape input of a Reshape, where 0 means the old size and -1 the rest."""
        nodes = [
            n
            for n, size in enumerate(new)
            if not isinstance(size, int) and n < len(old) and old[n] == size
        ]
        left = [n for n, size in enumerate(new) if not isinstance(size, int) and n not in nodes]
        if len(left) > 1:
            return self.dimensions(new)
        return constant(
            [0 if n in nodes else -1 if n in left else size for n, size in enumerate(new)], np.int64
        )

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """Returns a tensor with its axes in another order."""
        shape = tuple(tensor.shape[axis] for axis in order)
        if tensor.is_known:
            return constant(tensor.array.transpose(order)).with_shape(shape)
        maker = self.maker(tensor)
        if maker is not None and maker.op == "Transpose":
            tensor, order = maker.inputs[0], [maker.attributes["perm"][axis] for axis in order]
        sizes = tuple(tensor.sizes[axis] for axis in order)
        if list(order) == sorted(order):
            return tensor.with_shape(shape)
        moved = self.node("Transpose", [tensor], sizes, tensor.dtype, perm=tuple(order))
        return moved.with_shape(shape)

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        """Returns a tensor in another dtype; float32 via float16 to float32 stays unrounded."""
        dtype, maker = np.dtype(dtype), self.maker(tensor)
        if tensor.dtype == dtype:
            return tensor
        if tensor.is_known:
            return dataclasses.replace(tensor, data=tensor.array.astype(dtype), dtype=dtype)
        floating = dtype == np.float32 and tensor.dtype == np.float16
        if floating and maker is not None and maker.op == "Cast" and maker.inputs[0].dtype == dtype:
            return maker.inputs[0].with_shape(tensor.shape)
        return self.node("Cast", [tensor], tensor.sizes, dtype, to=dtype).with_shape(tensor.shape)

    # ---- parts -----------------------------------------------------------------------------------

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Concatenates tensors along an axis."""
        sizes = {tensor.sizes[:axis] + tensor.sizes[axis + 1 :] for tensor in parts}
        if len(sizes) > 1 or any(tensor.sizes[axis] != tensor.shape[axis] for tensor in parts):
            parts = [self.expand(tensor) for tensor in parts]
        total = sum(tensor.sizes[axis] for tensor in parts)
        new = (*parts[0].sizes[:axis], total, *parts[0].sizes[axis + 1 :])
        return self.node("Concat", parts, new, parts[0].dtype, axis=axis)

    def stack(self, parts: Sequence[Tensor], axis: int = 0) -> Tensor:
        """Stacks tensors along a new axis."""

        def with_axis(shape: tuple[Size, ...]) -> tuple[Size, ...]:
            return (*shape[:axis], 1, *shape[axis:])

        cut = [
            self.reshape(tensor, with_axis(tensor.sizes)).with_shape(with_axis(tensor.shape))
            for tensor in parts
        ]
        stacked = self.concatenate(cut, axis)
        return stacked.with_shape((*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:]))

    def row(self, tensor: Tensor, number: int, axis: int = 0) -> Tensor:
        """Returns the slice with an index along an axis, without this axis."""
        sizes, shape = (
            values[:axis] + values[axis + 1 :] for values in (tensor.sizes, tensor.shape)
        )
        if tensor.is_known:
            return constant(
                tensor.array.take(min(number, tensor.sizes[axis] - 1), axis)
            ).with_shape(shape)
        maker = self.maker(tensor)
        if maker is not None and maker.op == "Concat" and len(maker.inputs) == tensor.sizes[axis]:
            if maker.attributes["axis"] == axis:
                return self.reshape(maker.inputs[number], sizes).with_shape(shape)
        if tensor.sizes[axis] == 1:
            return self.reshape(tensor, sizes).with_shape(shape)
        return self.node(
            "Gather", [tensor, constant(number, np.int64)], sizes, tensor.dtype, axis=axis
        ).with_shape(shape)

    def slice(self, tensor: Tensor, axis: int, start: int, stop: Size, step: int = 1) -> Tensor:
        """Slices a tensor from `start` to `stop` along an axis.

        Where a size of 1 stands for a larger one, only the latter changes.
        """
        size, full = tensor.sizes[axis], tensor.shape[axis]
        if start == 0 and stop == full and step == 1:
            return tensor
        if not isinstance(stop, int):
            raise InputError(f"ONNX export: a slice to {stop} is not supported")
        new = len(range(start, stop, step))
        shape = (*tensor.shape[:axis], new, *tensor.shape[axis + 1 :])
        if size != full:
            return tensor.with_shape(shape)
        if tensor.is_known:
            cut = [slice(None)] * axis + [slice(start, stop, step)]
            return constant(tensor.array[tuple(cut)]).with_shape(shape)
        if new == 1:
            row = self.row(tensor, start, axis)
            return self.reshape(row, (*row.sizes[:axis], 1, *row.sizes[axis:])).with_shape(shape)
        limits = [constant([number], np.int64) for number in (start, stop, axis, step)]
        sizes = (*tensor.sizes[:axis], new, *tensor.sizes[axis + 1 :])
        return self.node("Slice", [tensor, *limits], sizes, tensor.dtype).with_shape(shape)

    # ---- the model -------------------------------------------------------------------------------

    def model(
        self,
        outputs: Mapping[str, Tensor],
        producer: str,
        version: str,
        metadata: Mapping[str, str],
    ):
        """Returns the `onnx.ModelProto` with the nodes that the outputs need."""
        import onnx
        from onnx import helper, numpy_helper

        needed = {tensor.data for tensor in outputs.values()}
        for name, node in reversed(self.nodes.items()):
            if name in needed:
                needed |= {self.name(tensor) for tensor in node.inputs}
        nodes = [
            _node_proto(self, name, node) for name, node in self.nodes.items() if name in needed
        ]
        nodes += [
            helper.make_node("Identity", [tensor.data], [name]) for name, tensor in outputs.items()
        ]

        def info(name: str, tensor: Tensor):
            shape = [size if isinstance(size, int) else str(size) for size in tensor.sizes]
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape
            )

        graph = helper.make_graph(
            nodes,
            "embedding",
            [info(name, tensor) for name, tensor in self.inputs.items()],
            [info(name, tensor) for name, tensor in outputs.items()],
            [
                numpy_helper.from_array(np.asarray(array, order="C"), name)
                for name, array in self.initializers.items()
                if name in needed
            ],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        model.producer_name, model.producer_version = producer, version
        helper.set_model_props(model, dict(metadata))
        assert isinstance(model, onnx.ModelProto)
        return model


def _node_proto(graph: Graph, name: str, node: Node):
    from onnx import helper

    attributes = {
        key: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for key, value in node.attributes.items()
    }
    return helper.make_node(
        node.op, [graph.name(tensor) for tensor in node.inputs], [name], name=name, **attributes
    )


def _find_ones(few: Sequence[Size], many: Sequence[Size]) -> list[int] | None:
    """Returns the positions of ones in `many` that `few` lacks, if the two differ only by those."""
    axes, place = [], 0
    for axis, size in enumerate(many):
        if place < len(few) and few[place] == size:
            place += 1
        elif isinstance(size, int) and size == 1:
            axes.append(axis)
        else:
            return None
    return axes if axes and place == len(few) else None


def data_file(path: Path) -> Path:
    """Returns the file of the tensors of a model that is too large for one file.

    >>> data_file(Path("model.onnx")).name
    'model.onnx.data'
    """
    return path.with_name(f"{path.name}.data")


def write_proto(model: Any, path: Path) -> None:
    """Writes an `onnx.ModelProto`, whole or not at all; the same model gives the same bytes.

    The tensors of a model of 2 GiB or more are written to `path`.data beside it.
    """
    tensors = [
        tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= EXTERNAL_TENSOR
    ]
    if sum(len(tensor.raw_data) for tensor in tensors) < EXTERNAL_FROM:
        with replaced(path) as beside:
            beside.write_bytes(model.SerializeToString(deterministic=True))
        return
    data = data_file(path)
    with replaced(path) as beside, replaced(data) as data_beside:
        with open(data_beside, "wb") as file:
            for tensor in tensors:
                file.write(bytes(-file.tell() % 4096))  # pages, so that runtimes can map the file
                place = {
                    "location": data.name,
                    "offset": file.tell(),
                    "length": len(tensor.raw_data),
                }
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = tensor.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
        beside.write_bytes(model.SerializeToString(deterministic=True))
