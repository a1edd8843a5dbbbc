"""The world of examples that are all on one device: for losses on plain arrays, without a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from embed_jax.types import TREES, AnyArray, Block, Columns

Sums = tuple[Float[Array, "M b"], Float[Array, "M b"]]
Candidates = Callable[[Columns], Any]


@dataclasses.dataclass(frozen=True)
class LocalWorld:
    """A `types.World` of one device, which holds all pairs at once.

    Attributes:
        columns: the examples.
    """

    columns: Columns

    def logsumexp(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> Sums:
        return self._reduce("logsumexp", block, rows, candidates, shared, extra_candidates, numbers)

    def sum(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> Array:
        return self._reduce("sum", block, rows, candidates, shared, extra_candidates, numbers)[0]

    def max(
        self,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> Array:
        return self._reduce("max", block, rows, candidates, shared, extra_candidates, numbers)[0]

    def largest(
        self, block: Block, rows: Any, candidates: Candidates, count: int
    ) -> Float[Array, "M b count"]:
        return largest_dense(block, rows, candidates(self.columns), count)

    def gather(self, values: Shaped[Array, "b *x"]) -> Shaped[Array, "B *x"]:
        return values

    def total(self, value: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return value

    def view(self, change: Callable[[Columns], Columns]) -> LocalWorld:
        return dataclasses.replace(self, columns=change(self.columns))

    def _reduce(
        self,
        kind: str,
        block: Block,
        rows: Any,
        candidates: Candidates,
        shared: Any,
        extra_candidates: Any,
        numbers: int,
    ) -> Sums:
        sums = reduce_dense(kind, block, rows, candidates(self.columns), shared)
        if extra_candidates is None:
            return sums
        return join_sums(kind, sums, reduce_dense(kind, block, rows, extra_candidates, shared))


def reduce_dense(kind: str, block: Block, rows: Any, candidates: Any, shared: Any) -> Sums:
    """The textbook form, which holds all pairs.

    Returns:
        "logsumexp": (log sum_j exp, max_j without gradient); "sum": (sum_j, same); "max": (max_j,
            same).
    """
    values = block(rows, candidates, shared)
    if kind == "sum":
        total = jnp.sum(values, axis=-1)
        return total, total
    largest = lax.stop_gradient(jnp.max(values, axis=-1))
    if kind == "max":
        # One of them, if several are the largest.
        reached = jnp.argmax(values, axis=-1, keepdims=True)
        return jnp.take_along_axis(values, reached, axis=-1)[..., 0], largest
    shift = finite_shift(largest)
    total = jnp.sum(jnp.exp(values - shift[..., None]), axis=-1)
    return safe_log(total) + shift, largest


def largest_dense(
    block: Block, rows: Any, candidates: Any, count: int
) -> Float[Array, "M b count"]:
    """Finds the `count` largest numbers of each row, which holds all pairs."""
    values = block(*lax.stop_gradient((rows, candidates)), None)
    missing = max(count - values.shape[-1], 0)
    values = jnp.pad(values, ((0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf)
    return lax.top_k(values, count)[0]


def join_sums(kind: str, first: Sums, second: Sums) -> Sums:
    """Joins the reductions over two parts of the candidates."""
    (value, largest), (other, other_largest) = first, second
    if kind == "sum":
        return value + other, value + other
    if kind == "max":
        return jnp.maximum(value, other), jnp.maximum(largest, other_largest)
    nothing = (value == -jnp.inf) & (other == -jnp.inf)  # logaddexp has no gradient there
    total = jnp.logaddexp(jnp.where(nothing, 0.0, value), jnp.where(nothing, 0.0, other))
    return jnp.where(nothing, -jnp.inf, total), jnp.maximum(largest, other_largest)


def finite_shift(x: Array) -> Array:
    """Returns x with -inf as 0: a shift that is always finite."""
    return jnp.where(x == -jnp.inf, 0.0, x)


def safe_log(x: Array) -> Array:
    """log x with a zero gradient at 0, where it is -inf."""
    return jnp.where(x == 0.0, -jnp.inf, jnp.log(jnp.where(x == 0.0, 1.0, x)))


def make_columns(embeddings: Sequence[Any] | Float[AnyArray, "C B D"], **leaves: Any) -> Columns:
    """Columns of embeddings, all present and all of different texts, for losses without a data set.

    Args:
        embeddings: one tree of arrays with leading axis B for each column, or `[C, B, D]`.
        leaves: further fields of Columns; guide, teacher and layers by column as well.
    """
    trees = {"embeddings": embeddings, **{n: leaves.pop(n) for n in TREES if n in leaves}}
    trees = {name: None if tree is None else tuple(tree) for name, tree in trees.items()}
    columns = len(trees["embeddings"])
    batch = jax.tree.leaves(trees["embeddings"][0])[0].shape[0]
    text_hash = jnp.arange(1, 2 * columns * batch + 1, dtype=jnp.uint32)
    defaults = {
        "present": jnp.ones((columns, batch), bool),
        "text_hash": text_hash.reshape(columns, batch, 2),
        "example": jnp.arange(batch),
    }
    return Columns(**trees, **defaults | leaves)
