"""Embeddings as vectors: at length 1, cut, and compared, all pairs of them or those at one place.

The four similarities are those that models name as theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Num

from embed_jax.errors import InputError
from embed_jax.registry import unknown

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
BLOCK = 2**24  # numbers of a temporary array

Vectors = Num[np.ndarray, "N D"] | Num[np.ndarray, " D"]
Others = Num[np.ndarray, "M D"] | Num[np.ndarray, " D"]


def unit_length(embeddings: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
    """Each embedding divided by its Euclidean length, float32; a zero vector stays zero."""
    embeddings = np.asarray(embeddings, np.float32)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)


def truncate(embeddings: Float[np.ndarray, "*N D"], dim: int) -> Float[np.ndarray, "*N d"]:
    """The first `dim` numbers of each embedding, made length 1 again (Kusupati et al. 2022); a zero vector stays zero.

    Raises:
        InputError: for a dimension that is not from 1 to D.
    """
    if not 1 <= dim <= embeddings.shape[-1]:
        raise InputError(
            f"dim: expected 1 to {embeddings.shape[-1]}, the size of the embeddings, found {dim}"
        )
    return unit_length(embeddings[..., :dim])


def similarity_matrix(a: Vectors, b: Others, name: str = "cosine") -> Float[np.ndarray, "_ _"]:
    """The similarity of each vector with each of the others, float32 `[N, M]`; a single vector counts as one row.

    "cosine": a b / (|a| |b|), 0 for a zero vector; "dot": a b; "euclidean": -|a - b|; "manhattan": -sum_d |a_d - b_d|.
    Distances are negated, so that more is nearer always, as sentence-transformers has it. Memory beside the result is
    bounded: the differences of all pairs are never there at once.

    Raises:
        InputError: for an unknown similarity, or vectors of different sizes.

    >>> similarity_matrix(np.array([3.0, 4.0]), np.array([[3.0, 4.0], [0.0, 4.0]]), "manhattan")
    array([[-0., -3.]], dtype=float32)
    """
    a, b = _rows(a, name), _rows(b, name)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"similarity: expected vectors of one size, found {a.shape[1]} and {b.shape[1]} numbers"
        )
    if name in ("cosine", "dot"):
        a, b = (unit_length(a), unit_length(b)) if name == "cosine" else (a, b)
        return a @ b.T
    found = np.empty((len(a), len(b)), np.float32)
    rows = max(BLOCK // max(len(b) * (a.shape[1] if name == "manhattan" else 1), 1), 1)
    b = b.astype(np.float64) if name == "euclidean" else b
    for start in range(0, len(a), rows):
        block = a[start : start + rows]
        distances = (
            _euclidean(block.astype(np.float64), b)
            if name == "euclidean"
            else _manhattan(block[:, None], b)
        )
        found[start : start + rows] = -distances
    return found


def pairwise_similarity(a: Vectors, b: Vectors, name: str = "cosine") -> Float[np.ndarray, " _"]:
    """The similarity of each vector with the one at the same place, float32 `[N]`, as `similarity_matrix` defines it.

    Raises:
        InputError: for an unknown similarity, or arrays of different shapes.
    """
    a, b = _rows(a, name), _rows(b, name)
    if a.shape != b.shape:
        raise InputError(
            f"similarity: expected as many vectors on both sides, of one size, found {a.shape}, {b.shape}"
        )
    if name == "cosine":
        a, b = unit_length(a), unit_length(b)
    if name in ("cosine", "dot"):
        return np.einsum("nd,nd->n", a, b)
    return -np.linalg.norm(a - b, axis=1) if name == "euclidean" else -_manhattan(a, b)


def _rows(vectors: Any, name: str) -> np.ndarray:
    """As a matrix in float32."""
    if name not in SIMILARITIES:
        raise InputError(unknown("similarity", name, SIMILARITIES))
    found = np.asarray(vectors, np.float32)
    if found.ndim not in (1, 2):
        raise InputError(
            f"similarity: expected vectors [N, D] or one vector [D], found the shape {found.shape}"
        )
    return np.atleast_2d(found)


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By |a|^2 + |b|^2 - 2 a b, which float32 would leave no digit of where vectors are near each other."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))


def _manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).sum(axis=-1)
