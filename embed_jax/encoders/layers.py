"""Parts that encoders share: linear maps, norms, activations, rotary positions, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray, Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # jax.nn.gelu's erfc takes twice the time on CPU.
    "gelu": lambda x: 0.5 * x * (1 + lax.erf(x * 0.5**0.5)),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the activation of that name, which computes in float32 and returns x's dtype.

    Where a bfloat16 is rounded after each of its operations, GELU takes twice the time on CPU.

    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise InputError(unknown("activation", name, ACTIVATIONS))
    function = ACTIVATIONS[name]
    return lambda x: function(x.astype(jnp.float32)).astype(x.dtype)


class Linear(nn.Module):
    """Computes `x @ kernel + bias` in `dtype`, whatever the dtype of the parameters.

    Attributes:
        features: the size of the output.
        dtype: of the product and the result.
        stddev: standard deviation of the initial kernel.
        use_bias: whether there is a bias.
    """

    features: int
    dtype: Any
    stddev: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        kernel = self.param(
            "kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features)
        )
        # In two dimensions, since from [R, T, I] the kernel's gradient takes up to three times as
        # long on CPU.
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        product = matrix_product(flat, kernel.astype(self.dtype))
        if self.use_bias:
            product = product + self.param("bias", nn.initializers.zeros, (self.features,)).astype(
                self.dtype
            )
        return product.reshape(*x.shape[:-1], self.features)


def matrix_product(
    x: Float[AnyArray, "N I"], kernel: Float[AnyArray, "I O"]
) -> Float[Array, "N O"]:
    """Computes `x @ kernel`, both of one dtype, with sums in float32.

    On CPU, XLA multiplies bfloat16 matrices with the processor's instructions for them (AMX,
    AVX512-BF16) only if the result is float32; for a bfloat16 result it converts both to float32.
    With AMX the former is four times as fast. On GPU and TPU the two take the same time.

    >>> matrix_product(jnp.ones((1, 300), jnp.bfloat16), jnp.ones((300, 2), jnp.bfloat16)).tolist()
    [[300.0, 300.0]]
    """
    if not _is_half_on_cpu(x):
        return jnp.matmul(x, kernel)
    # A kernel that is the same on all devices gets its gradient's sum over them where it is made to
    # vary like x: by adding a zero that does.
    zero = jnp.where(False, lax.stop_gradient(x[0, 0]), 0)
    return _half_product(x, kernel + zero)


def _is_half_on_cpu(x: Float[AnyArray, "n m"]) -> bool:
    return x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


@jax.custom_vjp
def _half_product(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    return _product_in_float32(x, kernel).astype(x.dtype)


def _half_product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_product(x, kernel), (x, kernel)


def _half_product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return (
        _product_in_float32(gradient, transposed(kernel)).astype(x.dtype),
        _product_in_float32(transposed(x), gradient).astype(kernel.dtype),
    )


def transposed(x: Float[AnyArray, "n m"]) -> Float[Array, "m n"]:
    """Returns a transposed matrix for a product with sums in float32.

    Of bfloat16 on CPU it is a copy, row by row in memory. XLA would multiply by a transposed view,
    which the processor's instructions for bfloat16 can't: it would convert it to float32.

    >>> transposed(jnp.ones((2, 3), jnp.bfloat16)).shape
    (3, 2)
    """
    if not _is_half_on_cpu(x):
        return jnp.asarray(x).T
    return with_layout_constraint(lax.optimization_barrier(x.T), Layout((0, 1)))


def _product_in_float32(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


_half_product.defvjp(_half_product_forward, _half_product_backward)


class LayerNormalization(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), with statistics in float32."""

    eps: float
    dtype: Any
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
        x = jnp.asarray(x, jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        x = x * (lax.rsqrt(variance + self.eps) * scale)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(jnp.float32)
        return x.astype(self.dtype)


class RMSNorm(nn.Module):
    """Computes `x / sqrt(mean(x^2) + eps) * (offset + scale)` (Zhang and Sennrich 2019).

    The mean is computed in float32.

    Attributes:
        eps: added to the mean of the squares.
        dtype: of the result.
        offset: added to the parameter `scale`: 1 for Gemma, whose scales start at 0.
    """

    eps: float
    dtype: Any
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), x.shape[-1:])
        x, scale = x.astype(jnp.float32), scale.astype(jnp.float32)
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return (x * (lax.rsqrt(mean_square + self.eps) * (self.offset + scale))).astype(self.dtype)


def take_rows(table: Float[AnyArray, "V D"], ids: Int[AnyArray, "*B"]) -> Float[Array, "*B D"]:
    """Returns rows of a table in float32, so that their sums are not rounded to the table's dtype.

    An id beyond the table gives NaN: a plain index would be clamped, and another token's row taken
    without notice.

    >>> take_rows(jnp.array([[1.0], [2.0]]), jnp.array([1, 2])).tolist()
    [[2.0], [nan]]
    """
    rows = jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan)
    return rows.astype(jnp.float32)


def type_vectors(
    table: Float[AnyArray, "K D"], segment: Int[AnyArray, "R T"] | None
) -> Float[AnyArray, "*B D"]:
    """Returns the row of a small table for each token's type; without segments, row 0 `[D]`.

    It is computed as a product with a one-hot matrix, whose gradient is a product too and not a
    scatter into few rows.

    >>> type_vectors(jnp.array([[1.0], [2.0]]), jnp.array([[0, 1, 1]])).tolist()
    [[[1.0], [2.0], [2.0]]]
    """
    if segment is None:
        return table[0].astype(jnp.float32)
    one_hot = jax.nn.one_hot(segment, table.shape[0], dtype=jnp.float32)
    return jnp.matmul(one_hot, table.astype(jnp.float32), precision="highest")


class Rotation(struct.PyTreeNode):
    """Cosine and sine, float32, of the angles by which rotary positions turn queries and keys."""

    cos: Float[Array, "*B h"]
    sin: Float[Array, "*B h"]


def rotate(x: Float[AnyArray, "*B H d"], by: Rotation) -> Float[Array, "*B H d"]:
    """Turns the pairs (x_i, x_{i + d/2}) by a token's angles.

    Products of queries and keys then depend on the tokens' distance only. The two numbers of a pair
    are half the head's size apart, as in Hugging Face's checkpoints, and not neighbours as in the
    paper. It is computed in float32.

    >>> quarter = Rotation(cos=jnp.zeros((1, 1, 1)), sin=jnp.ones((1, 1, 1)))  # a quarter turn
    >>> rotate(jnp.array([[[[1.0, 0.0]]]]), quarter).tolist()
    [[[[0.0, 1.0]]]]
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def apply_module(module: nn.Module, params: Params, *inputs: Any) -> Array:
    """Applies a module whose result is an array.

    Flax's type of `apply` has a pair besides, which only its argument `mutable` gives.
    """
    return cast(Array, module.apply({"params": params}, *inputs))


class MaskPositions(struct.PyTreeNode):
    """The positions by which slots share dropout masks: one mask for a position of an example.

    Attributes:
        example: the index of each slot's example.
        position: each token's position in its sentence.
    """

    example: Int[Array, "R T"]
    position: Int[Array, "R T"]

    @classmethod
    def of_slots(cls, rows: int, slots: int) -> MaskPositions:
        """Returns positions by which every slot has its own mask: its row and its slot."""
        index = lax.broadcasted_iota
        return cls(index(jnp.int32, (rows, slots), 0), index(jnp.int32, (rows, slots), 1))

    def starts(self, size: int) -> Int[AnyArray, "R T"]:
        """Returns the index in the mask of the first of each slot's `size` numbers."""
        return (self.example * self.example.shape[-1] + self.position) * size


class Queries(struct.PyTreeNode):
    """The slots whose next states a layer computes: all of them, or one of each sentence.

    A layer takes queries, residuals and dropout masks from here, and computes keys and values of
    all slots. The states of one slot are the same as if all were computed, dropout included.

    Attributes:
        sentence: the sentence of each slot, S at padding.
        places: the positions by which slots share dropout masks; None: every slot has its own.
        slots: the slot of each sentence, counted through all rows; None: all slots.
    """

    sentence: Int[AnyArray, "R T"]
    places: MaskPositions | None = None
    slots: Int[Array, " S"] | None = None

    def take(self, x: Any) -> Any:
        """Returns the chosen slots `[S, ...]` of the leaves `[R, T, ...]`, or all as they are."""
        if self.slots is None:
            return x
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[self.slots], x)

    def starts(self, size: int) -> int | Int[AnyArray, "*B"]:
        """Returns the index in a dropout mask of the first of each slot's `size` numbers."""
        if self.places is not None:
            return self.take(self.places.starts(size))
        return 0 if self.slots is None else self.slots * size


def dropout(
    x: Float[Array, "*A *B"],
    rate: float,
    key: PRNGKeyArray | None,
    start: int | Int[Array, ""] | Int[AnyArray, "*A"] = 0,
) -> Float[Array, "*A *B"]:
    """Zeroes each element with probability `rate` and scales the rest so that the mean stays.

    >>> sorted(set(dropout(jnp.ones(20), 0.75, jax.random.key(0)).tolist()))
    [0.0, 4.0]

    Args:
        x: the array.
        rate: the probability of an element to become 0.
        key: None means no dropout.
        start: the index of the first element in its mask, if `x` is a piece of a larger array with
            one mask; or the index of the first element of each part `[*B]`: parts with equal
            indices have equal masks.
    """
    if key is None or rate == 0.0:
        return x
    keep = keep_mask(key, rate, x.shape, start)
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def keep_mask(
    key: PRNGKeyArray,
    rate: float,
    shape: tuple[int, ...],
    start: int | Int[Array, ""] | Int[AnyArray, "*A"] = 0,
) -> Bool[Array, "*A *B"]:
    """Returns a mask that is True with probability 1 - rate, the same for the same key.

    It is an integer hash (Wellons's lowbias32, 2018) of the element's index and of two words drawn
    from the key: a handful of vectorised operations, fused into the computation that uses the mask.
    Threefry or XLA's own generator would take as long on CPU as the attention itself. The index has
    32 bits, so a mask has at most 2^32 elements.

    Args:
        key: the key of the mask.
        rate: the probability of False.
        shape: the mask's shape.
        start: the index of the first element, or of the first of each part; see `dropout`.
    """
    index, stride = jnp.asarray(start, jnp.uint32), 1
    start_axes = index.ndim  # leading axes whose indices `start` has
    index = index.reshape(*index.shape, *[1] * (len(shape) - start_axes))
    # An index of iotas is made where it is used; an arange would be read from memory.
    for axis in reversed(range(start_axes, len(shape))):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return keep_indices(mask_words(key), rate, index)


def mask_words(key: PRNGKeyArray) -> UInt[Array, "2"]:
    """Returns the two words by which the mask of a key differs from other keys' masks.

    With only one, masks of two keys would be the same sequence, shifted.
    """
    return jax.random.bits(key, (2,), jnp.uint32)


def keep_indices(words: Any, rate: float, index: UInt[Array, "*B"]) -> Bool[Array, "*B"]:
    """Returns the elements of a mask at any indices.

    Args:
        words: see `mask_words`.
        rate: the probability of False.
        index: of each element in its mask.
    """
    x = words[0] + index
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ words[1]) * jnp.uint32(0x846CA68B)
    return (x ^ (x >> 16)) >= jnp.uint32(round(rate * 2**32))
