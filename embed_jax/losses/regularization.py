"""Terms that shape the embedding space beside a task's loss, over the whole batch of all devices.

A term that is not a mean over examples is every example's value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from embed_jax.losses.base import loss
from embed_jax.scores import dense
from embed_jax.types import AnyArray, Block, Columns, LossResult, Number, Params, World
from embed_jax.vectors import (
    add_arrays,
    cosine_matrix,
    euclidean,
    normalize,
    squared_distance_matrix,
)


@loss(columns=(1, 0), tiled=True)
def uniformity(
    own: Columns, world: World, params: Params, *, t: float = 2.0, columns: int = 1
) -> LossResult:
    """log mean over i != j of exp(-t |x_i - x_j|^2), embeddings normalised; lower is more uniform.

    Wang and Isola (2020), "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", section 4.1.2. Over the world, of each of the first columns,
    their mean.

    Args:
        t: how fast pairs count less with their distance.
        columns: how many columns: 1 is the anchors, 2 anchors and positives, 0 all.

    >>> print(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))  # -2 |x - y|^2
    [-8. -8.]
    """

    def exponent(texts, others):
        return -t * squared_distance_matrix(normalize(texts), normalize(others))

    rows, _ = world.logsumexp(*_within_columns(own, columns, exponent, -jnp.inf))
    pairs = _pairs(own, columns, world)
    values = [
        _log_mean_exp(world.gather(row), number) for row, number in zip(rows, pairs, strict=True)
    ]
    return _everywhere(add_arrays(values) / len(values), own, columns)


def alignment_loss(
    first: Float[AnyArray, "*n D"], second: Float[AnyArray, "*n D"], *, alpha: float = 2.0
) -> Float[Array, "*n"]:
    """|x - y|^alpha, embeddings normalised.

    Wang and Isola (2020), section 4.1.1.

    Args:
        first: embeddings x.
        second: embeddings y.
        alpha: at least 1.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(alignment_loss(first, second))
    [0.     0.5858]
    """
    return euclidean(normalize(first), normalize(second)) ** alpha


@loss(columns=(2, 0), tiled=True)
def alignment(own: Columns, world: World, params: Params, *, alpha: float = 2.0) -> LossResult:
    """Computes the mean of `alignment_loss` over anchors and positives.

    Args:
        alpha: at least 1.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(alignment(first, second))
    [0.     0.5858]
    """
    values = alignment_loss(*dense(own.embeddings[:2], "alignment"), alpha=alpha)
    return values, jnp.all(own.present[:2], axis=0).astype(jnp.float32), {}


@loss(columns=(1, 0), tiled=True)
def global_orthogonal(
    own: Columns,
    world: World,
    params: Params,
    *,
    mean_weight: Number = 1.0,
    second_moment_weight: Number = 1.0,
    columns: int = 0,
) -> LossResult:
    """mean_weight M1^2 + second_moment_weight max(0, M2 - 1/D), the moments of the cosines.

    M1 and M2 are the means over i != j of cos and cos^2; those of vectors spread evenly over the
    sphere are 0 and 1/D. Zhang et al. (2017), "Learning Spread-out Local Feature Descriptors". Over
    the world, of each of the first columns, their mean.

    Args:
        mean_weight: of the first term.
        second_moment_weight: of the second term.
        columns: how many columns: 1 is the anchors, 2 anchors and positives, 0 all.

    Returns:
        The same value everywhere; metrics `orthogonal_mean` and `orthogonal_second_moment`, the two
        terms unweighted.

    >>> print(global_orthogonal(jnp.array([[1.0, 0.0], [1.0, 1.0]])))  # 1/2 + (1/2 - 1/2)
    [0.5 0.5]
    """
    block, rows, candidates = _within_columns(own, columns, cosine_matrix, 0.0)

    def moments(rows, candidates, shared):
        cosines = block(rows, candidates, shared)
        return jnp.concatenate([cosines, cosines**2])

    sums = world.total(jnp.sum(world.sum(moments, rows, candidates), axis=1)).reshape(2, -1)
    first, second = sums / jnp.maximum(_pairs(own, columns, world), 1.0)[None]
    mean, second_moment = map(
        jnp.mean, _orthogonal_terms(first, second, own.embeddings[0].shape[-1])
    )
    values, weights, _ = _everywhere(
        mean_weight * mean + second_moment_weight * second_moment, own, columns
    )
    terms = {"orthogonal_mean": mean, "orthogonal_second_moment": second_moment}
    return (
        values,
        weights,
        {name: jnp.broadcast_to(term, values.shape) for name, term in terms.items()},
    )


@loss(columns=(1, 0), tiled=True)
def variance(
    own: Columns,
    world: World,
    params: Params,
    *,
    gamma: Number = 1.0,
    epsilon: Number = 1e-4,
    columns: int = 1,
) -> LossResult:
    """Mean over dimensions of max(0, gamma - sqrt(Var + epsilon)), Var over the world with B - 1.

    Bardes, Ponce, LeCun (2022), "VICReg: Variance-Invariance-Covariance Regularization", eqs. 1 and
    2. Of each of the first columns, their mean.

    Args:
        gamma: the spread of each dimension to reach; vectors of length 1 have about 1 / sqrt(D) at
            most.
        epsilon: added to the variance, so that the root has a gradient at 0.
        columns: how many columns: 1 is the anchors, 2 anchors and positives, 0 all.

    >>> print(variance(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))  # the second dimension is constant
    [0.495 0.495]
    """
    terms = _variance_terms(*_first(own, columns), world.total, gamma, epsilon)
    return _everywhere(jnp.mean(terms), own, columns)


@loss(columns=(1, 0), tiled=True)
def covariance(own: Columns, world: World, params: Params, *, columns: int = 1) -> LossResult:
    """Sum over i != j of Cov_ij^2, divided by D, with the D x D covariance over the world (B - 1).

    Bardes, Ponce, LeCun (2022), eqs. 3 and 4. Of each of the first columns, their mean.

    Args:
        columns: how many columns: 1 is the anchors, 2 anchors and positives, 0 all.

    >>> print(covariance(jnp.array([[1.0, 1.0], [-1.0, -1.0]])))
    [4. 4.]
    """
    return _everywhere(
        jnp.mean(_covariance_terms(*_first(own, columns), world.total)), own, columns
    )


Total = Callable[[Array], Array]


def _first(own: Columns, columns: int) -> tuple[Float[Array, "C b D"], Bool[Array, "C b"]]:
    """Returns the first columns' embeddings, and which are there; 0: all columns."""
    last = columns or len(own.embeddings)
    embeddings = jnp.stack(dense(own.embeddings[:last], "a regulariser"))
    return embeddings, own.present[:last]


def _everywhere(value: Float[Array, ""], own: Columns, columns: int) -> LossResult:
    """Gives a value of the whole world to every example that has a text in it."""
    weights = jnp.any(_first(own, columns)[1], axis=0).astype(jnp.float32)
    return jnp.broadcast_to(value, weights.shape), weights, {}


def _within_columns(
    own: Columns, columns: int, pair: Callable[[Array, Array], Float[Array, "b n"]], nothing: float
) -> tuple[Block, Any, Callable[[Columns], Any]]:
    """Returns block, rows and candidates of a reduction over pairs of one column's texts.

    The pairs are of different examples. `pair` computes the number of each pair of texts; `nothing`
    stands where there is no such pair.
    """

    def texts(of: Columns) -> Any:
        embeddings, present = _first(of, columns)
        return tuple(embeddings), tuple(present), of.example

    def block(rows, candidates, _):
        different = rows[2][:, None] != candidates[2][None, :]
        by_column = zip(*rows[:2], *candidates[:2], strict=True)
        return jnp.stack(
            [
                jnp.where(different & here[:, None] & there[None, :], pair(text, others), nothing)
                for text, here, others, there in by_column
            ]
        )

    return block, texts(own), texts


def _pairs(own: Columns, columns: int, world: World) -> Float[Array, " C"]:
    """Counts the ordered pairs of different examples' texts of each column in the world."""
    number = world.total(jnp.sum(_first(own, columns)[1].astype(jnp.float32), axis=1))
    return number * jnp.maximum(number - 1.0, 0.0)


def _log_mean_exp(exponents: Float[Array, "*n"], number: Float[Array, ""]) -> Float[Array, ""]:
    """Computes log(sum exp / number), where -inf does not count; 0 for number 0."""
    exponents = jnp.where(number > 0.0, exponents, 0.0)
    mean = jax.nn.logsumexp(exponents) - jnp.log(jnp.maximum(number, 1.0))
    return jnp.where(number > 0.0, mean, 0.0)


def _orthogonal_terms(first: Array, second: Array, dim: int) -> tuple[Array, Array]:
    """Computes the two terms of given first and second moments of the cosines."""
    return first**2, jax.nn.relu(second - 1.0 / dim)


def _centred(
    embeddings: Float[Array, "C b D"], present: Bool[Array, "C b"], total: Total
) -> tuple[Float[Array, "C b D"], Float[Array, " C"]]:
    """Centres embeddings by column (zero where absent); also returns their number less 1."""
    there = present[..., None]
    number = total(jnp.sum(present.astype(jnp.float32), axis=1))
    mean = total(
        jnp.sum(jnp.where(there, embeddings.astype(jnp.float32), 0.0), axis=1, keepdims=True)
    )
    mean = mean / jnp.maximum(number, 1.0)[:, None, None]
    return jnp.where(there, embeddings.astype(jnp.float32) - mean, 0.0), jnp.maximum(
        number - 1.0, 1.0
    )


def _variance_terms(
    embeddings: Float[Array, "C b D"],
    present: Bool[Array, "C b"],
    total: Total,
    gamma: Number,
    epsilon: Number,
) -> Float[Array, " C"]:
    centred, freedom = _centred(embeddings, present, total)
    variances = total(jnp.sum(centred**2, axis=1)) / freedom[:, None]
    return jnp.mean(jax.nn.relu(gamma - jnp.sqrt(variances + epsilon)), axis=1)


def _covariance_terms(
    embeddings: Float[Array, "C b D"], present: Bool[Array, "C b"], total: Total
) -> Float[Array, " C"]:
    centred, freedom = _centred(embeddings, present, total)
    products = jnp.einsum("cbi,cbj->cij", centred, centred, precision=jax.lax.Precision.HIGHEST)
    covariances = total(products) / freedom[:, None, None]
    size = embeddings.shape[-1]
    off_diagonal = jnp.where(jnp.eye(size, dtype=bool)[None], 0.0, covariances)
    return jnp.sum(off_diagonal**2, axis=(1, 2)) / size
