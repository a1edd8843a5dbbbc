"""Terms that make the embeddings of a sparse model sparse, beside a task's loss.

info_nce() + 'quadratic(0, 3e-4, 50000)' * flops(side='query')
    + 'quadratic(0, 1e-4, 50000)' * flops(side='document')

Each is one number over the texts of one side of the whole batch of all devices, so that it depends
neither on groups nor on devices. Where all of a text's weights are 0, it has no gradient: too large
a factor from the first step on makes embeddings that stay empty, which the metrics show.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from embed_jax.errors import InputError
from embed_jax.losses.base import loss
from embed_jax.registry import unknown
from embed_jax.scores import dense
from embed_jax.types import Columns, LossResult, Params, World
from embed_jax.vectors import add_arrays

SIDES = ("query", "document", "both")


@loss(columns=(1, 0), tiled=True)
def flops(
    own: Columns, world: World, params: Params, *, side: str = "document", threshold: int = 0
) -> LossResult:
    """sum_j (mean_i |w_ij|)^2 over the texts i of one side of the world.

    Paria et al. (2020), "Minimizing FLOPs to Learn Efficient Sparse Representations", eq. 4: a
    smooth bound of the products that a search computes for a pair of texts.

    Args:
        side: the texts that count: "query" for anchors, "document" for all others, or "both".
        threshold: texts of at most this number of weights other than 0 count as empty; 0: none do.

    Returns:
        The same value everywhere; metric `active_SIDE`, the mean number of weights other than 0.

    >>> print(flops(jnp.array([[2.0, 0.0], [0.0, 4.0]]), side="query"))  # 1^2 + 2^2
    [5. 5.]
    """
    texts, active, number = _weights(own, world, side, threshold)
    means = world.total(add_arrays(jnp.sum(part, axis=0) for part in texts)) / number
    return _everywhere(jnp.sum(means**2), own, side, active)


@loss(columns=(1, 0), tiled=True)
def l1(
    own: Columns, world: World, params: Params, *, side: str = "document", threshold: int = 0
) -> LossResult:
    """mean_i sum_j |w_ij| over the texts i of one side of the world.

    Args:
        side: see `flops`.
        threshold: see `flops`.

    Returns:
        The same value everywhere; metric `active_SIDE`, see `flops`.

    >>> print(l1(jnp.array([[2.0, 0.0], [0.0, 4.0]]), side="query"))
    [3. 3.]
    """
    texts, active, number = _weights(own, world, side, threshold)
    return _everywhere(
        world.total(add_arrays(jnp.sum(part) for part in texts)) / number, own, side, active
    )


def _columns(own: Columns, side: str) -> list[int]:
    """Returns the columns of a side's texts.

    Raises:
        InputError: for an unknown side.
    """
    if side not in SIDES:
        raise InputError(unknown("side", side, SIDES))
    columns = range(len(own.embeddings))
    return [column for column in columns if side in ("both", _side_of(own, column))]


def _side_of(own: Columns, column: int) -> str:
    return "query" if column == own.query else "document"


def _weights(
    own: Columns, world: World, side: str, threshold: int
) -> tuple[list[Float[Array, "b V"]], Float[Array, ""], Float[Array, ""]]:
    """Returns a side's weights, 0 where they do not count, their mean number, and that of texts."""
    texts, counts = [], [jnp.zeros(2)]
    for column in _columns(own, side):
        weights = jnp.abs(dense(own.embeddings[column], "a sparsity term").astype(jnp.float32))
        present = own.present[column]
        active = jnp.where(present, jnp.sum(weights > 0.0, axis=-1, dtype=jnp.float32), 0.0)
        counted = present & (active > threshold) if threshold else present
        texts.append(jnp.where(counted[:, None], weights, 0.0))
        counts.append(jnp.stack([jnp.sum(active), jnp.sum(present.astype(jnp.float32))]))
    if not texts:
        raise InputError(f"side {side!r}: expected texts of that side, found none")
    active, number = world.total(add_arrays(counts))
    number = jnp.maximum(number, 1.0)
    return texts, jax.lax.stop_gradient(active / number), number


def _everywhere(
    value: Float[Array, ""], own: Columns, side: str, active: Float[Array, ""]
) -> LossResult:
    """Gives a value of the whole world to every example that has a text of the side."""
    there: Bool[Array, " b"] = jnp.any(own.present[jnp.array(_columns(own, side))], axis=0)
    weights = there.astype(jnp.float32)
    metrics = {f"active_{side}": jnp.broadcast_to(active, weights.shape)}
    return jnp.broadcast_to(value, weights.shape), weights, metrics
