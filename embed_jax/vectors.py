"""Products, cosines and distances of vectors in float32, with finite gradients everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray


def normalize(vectors: Float[AnyArray, "*n D"]) -> Float[Array, "*n D"]:
    """Vectors of length 1, float32; a zero vector stays zero, with a zero gradient."""
    vectors = _float(vectors)
    square = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jnp.where(square > 0.0, jax.lax.rsqrt(jnp.maximum(square, 1e-24)), 0.0)


def add_arrays(arrays: Iterable[Array]) -> Array:
    """Adds one or more arrays, which the built-in `sum` would add to the number 0."""
    return functools.reduce(jnp.add, arrays)


def dot(first: Float[AnyArray, "*#n D"], second: Float[AnyArray, "*#n D"]) -> Float[Array, "*#n"]:
    """Dot products row by row."""
    return jnp.sum(_float(first) * _float(second), axis=-1)


def cosine(
    first: Float[AnyArray, "*#n D"], second: Float[AnyArray, "*#n D"]
) -> Float[Array, "*#n"]:
    """Cosines row by row; 0 where a vector is zero."""
    return dot(normalize(first), normalize(second))


def euclidean(
    first: Float[AnyArray, "*#n D"], second: Float[AnyArray, "*#n D"]
) -> Float[Array, "*#n"]:
    """Euclidean distances row by row; the gradient at distance 0 is 0."""
    return _root(jnp.sum((_float(first) - _float(second)) ** 2, axis=-1))


def manhattan(
    first: Float[AnyArray, "*#n D"], second: Float[AnyArray, "*#n D"]
) -> Float[Array, "*#n"]:
    """Sums of absolute differences row by row; the gradient at a difference of 0 is 0."""
    return jnp.sum(jnp.abs(_float(first) - _float(second)), axis=-1)


def cosine_distance(
    first: Float[AnyArray, "*#n D"], second: Float[AnyArray, "*#n D"]
) -> Float[Array, "*#n"]:
    """1 - cosine, row by row."""
    return 1.0 - cosine(first, second)


DISTANCES = {"euclidean": euclidean, "manhattan": manhattan, "cosine": cosine_distance}


def named_distance(name: str) -> Callable[..., Float[Array, "..."]]:
    """The row-by-row distance of that name.

    Raises:
        InputError: for a name that is not in DISTANCES.
    """
    if name not in DISTANCES:
        raise InputError(unknown("distance of a loss", name, DISTANCES))
    return DISTANCES[name]


def dot_matrix(
    first: Float[AnyArray, "b D"], second: Float[AnyArray, "n D"]
) -> Float[Array, "b n"]:
    """Dot products of all pairs, float32."""
    return jnp.matmul(_float(first), _float(second).T, precision=jax.lax.Precision.HIGHEST)


def cosine_matrix(
    first: Float[AnyArray, "b D"], second: Float[AnyArray, "n D"]
) -> Float[Array, "b n"]:
    """Cosines of all pairs, float32."""
    return dot_matrix(normalize(first), normalize(second))


def squared_distance_matrix(
    anchors: Float[AnyArray, "b D"], candidates: Float[AnyArray, "N D"]
) -> Float[Array, "b N"]:
    """Squared Euclidean distances of all pairs as |x|^2 + |y|^2 - 2 x.y, not below 0, float32."""
    anchors, candidates = _float(anchors), _float(candidates)
    square = dot(anchors, anchors)[:, None] + dot(candidates, candidates)[None, :]
    return jnp.maximum(square - 2.0 * dot_matrix(anchors, candidates), 0.0)


def distance_matrix(
    anchors: Float[AnyArray, "b D"], candidates: Float[AnyArray, "N D"], distance: str = "euclidean"
) -> Float[Array, "b N"]:
    """Distances of all pairs, "euclidean" or "cosine" (1 - cosine), float32.

    Raises:
        InputError: for another name of a distance.
    """
    if distance == "cosine":
        return 1.0 - cosine_matrix(anchors, candidates)
    if distance != "euclidean":
        raise InputError(
            unknown("distance of all pairs in a loss", distance, ("cosine", "euclidean"))
        )
    return _root(squared_distance_matrix(anchors, candidates))


def _root(square: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The square root, whose gradient at 0 is 0 and not infinite."""
    return jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0)


def _float(vectors: AnyArray) -> Float[Array, "*n D"]:
    return jnp.asarray(vectors, jnp.float32)
