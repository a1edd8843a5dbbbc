"""Scores that losses differentiate, and similarities of vectors in NumPy.

A loss compares embeddings by a `Score`: `COSINE` and `DOT` of dense embeddings, or one made by
`pair_score` from a function of one query's and one document's embedding, whatever trees of arrays
those are. The NumPy functions compare embeddings in search and evaluation; the four similarities
are those that models name as theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.types import AnyArray, Columns, SparseRows, World
from embed_jax.vectors import dot_matrix, normalize

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
BLOCK = 2**24  # numbers of a temporary array
SUM = "embed_jax.head_scores:sum_score"  # needs scores of other files, and is on a higher step

Numbers = Sequence[float] | Sequence[Sequence[float]]
Vectors = Num[AnyArray, "N D"] | Num[AnyArray, " D"] | Numbers | SparseRows
Others = Num[AnyArray, "M D"] | Num[AnyArray, " D"] | Numbers | SparseRows


def unit_length(embeddings: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
    """Divides each embedding by its Euclidean length, float32; a zero vector stays zero."""
    embeddings = np.asarray(embeddings, np.float32)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)


def truncate(embeddings: Float[np.ndarray, "*N D"], dim: int) -> Float[np.ndarray, "*N d"]:
    """Keeps the first `dim` numbers of each embedding, made length 1 again (Kusupati et al. 2022).

    A zero vector stays zero.

    Raises:
        InputError: for a dimension that is not from 1 to D.
    """
    if not 1 <= dim <= embeddings.shape[-1]:
        raise InputError(
            f"dim: expected 1 to {embeddings.shape[-1]}, the size of the embeddings, found {dim}"
        )
    return unit_length(embeddings[..., :dim])


def similarity_matrix(a: Vectors, b: Others, name: str = "cosine") -> Float[np.ndarray, "_ _"]:
    """Computes the similarity of each vector with each of the others, float32 `[N, M]`.

    A single vector counts as one row.

    * "cosine": a b / (|a| |b|), 0 for a zero vector
    * "dot": a b
    * "euclidean": -|a - b|
    * "manhattan": -sum_d |a_d - b_d|

    Sparse embeddings, scipy's CSR, are compared by dot product. Distances are negated, so that
    larger always means nearer, as in sentence-transformers. Memory beside the result is bounded:
    the differences of all pairs are never held at once.

    Raises:
        InputError: for an unknown similarity, or vectors of different sizes.

    >>> similarity_matrix(np.array([3.0, 4.0]), np.array([[3.0, 4.0], [0.0, 4.0]]), "manhattan")
    array([[-0., -3.]], dtype=float32)
    """
    if isinstance(a, SparseRows) or isinstance(b, SparseRows):
        first, second = _sparse_rows(a, b, name)
        return (first @ second.T).toarray()
    a, b = _rows(a, name), _rows(b, name)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"similarity: expected vectors of one size, found {a.shape[1]} and {b.shape[1]} numbers"
        )
    if name in ("cosine", "dot"):
        a, b = (unit_length(a), unit_length(b)) if name == "cosine" else (a, b)
        return a @ b.T
    values = np.empty((len(a), len(b)), np.float32)
    rows = max(BLOCK // max(len(b) * (a.shape[1] if name == "manhattan" else 1), 1), 1)
    b = b.astype(np.float64) if name == "euclidean" else b
    for start in range(0, len(a), rows):
        block = a[start : start + rows]
        distances = (
            _euclidean(block.astype(np.float64), b)
            if name == "euclidean"
            else _manhattan(block[:, None], b)
        )
        values[start : start + rows] = -distances
    return values


def pairwise_similarity(a: Vectors, b: Vectors, name: str = "cosine") -> Float[np.ndarray, " _"]:
    """Computes the similarity of each vector with the one at the same place, float32 `[N]`.

    See `similarity_matrix` for the similarities.

    Raises:
        InputError: for an unknown similarity, or arrays of different shapes.
    """
    if isinstance(a, SparseRows) or isinstance(b, SparseRows):
        first, second = _sparse_rows(a, b, name, pairwise=True)
        return np.asarray(first.multiply(second).sum(axis=1), np.float32).ravel()
    a, b = _rows(a, name), _rows(b, name)
    if a.shape != b.shape:
        raise InputError(
            f"similarity: expected as many vectors on both sides, of one size, found {a.shape}, "
            f"{b.shape}"
        )
    if name == "cosine":
        a, b = unit_length(a), unit_length(b)
    if name in ("cosine", "dot"):
        return np.einsum("nd,nd->n", a, b)
    return -np.linalg.norm(a - b, axis=1) if name == "euclidean" else -_manhattan(a, b)


def _rows(vectors: Any, name: str) -> np.ndarray:
    """Returns vectors as a matrix in float32."""
    if name not in SIMILARITIES:
        raise InputError(unknown("similarity", name, SIMILARITIES))
    values = np.asarray(vectors, np.float32)
    if values.ndim not in (1, 2):
        raise InputError(
            f"similarity: expected vectors [N, D] or one vector [D], found the shape {values.shape}"
        )
    return np.atleast_2d(values)


def _sparse_rows(a: Any, b: Any, name: str, *, pairwise: bool = False) -> tuple[Any, Any]:
    """Returns two matrices of scipy, checked to be comparable."""
    for rows in (a, b):
        if not isinstance(rows, SparseRows):
            raise InputError(
                "similarity: expected sparse embeddings on both sides, found dense ones"
            )
    if name != "dot":
        raise InputError(f"similarity: sparse embeddings are compared by 'dot', found {name!r}")
    if a.shape[1] != b.shape[1] or pairwise and a.shape != b.shape:
        raise InputError(
            f"similarity: expected sparse embeddings over one vocabulary, found {a.shape} and "
            f"{b.shape}"
        )
    return a.tocsr(), b.tocsr()


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes distances by |a|^2 + |b|^2 - 2 a b, in float64.

    In float32 the difference would keep no digit where vectors are near each other.
    """
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0))


def _manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).sum(axis=-1)


# ---- scores --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A way to compare the embedding of a query with that of a document.

    Embeddings are trees of arrays whose leading axis counts texts. With `dims` a score compares M
    prefixes of them (Matryoshka, each prefix of length 1), else the whole: M = 1.

    Attributes:
        name: for messages.
        prepare: `(embeddings [n, ...], dims) -> tree [n, ...]`: what can be done for each text by
            itself.
        matrix: `(prepared queries, prepared documents, dims) -> [M, q, n]`, all pairs.
        pairs: `(prepared queries, prepared documents, dims) -> [M, n]`, the n-th with the n-th.
        numbers: `(embeddings of queries, of documents) -> count`: how many numbers a pair is
            computed from, by the shapes; 1 for a product of vectors, L_q * L_d for one of all
            tokens. It decides how many pairs are held.
        symmetric: whether two queries, or two documents, can be compared as well.
        limits: the least and the largest score, or None.
        in_world: `(own columns, world) -> the same two`, with what a query's scores depend on
            besides the pair, such as all documents of the batch. Losses call it first.
    """

    name: str
    prepare: Callable[[Any, tuple[int, ...]], Any]
    matrix: Callable[[Any, Any, tuple[int, ...]], Float[Array, "M q n"]]
    pairs: Callable[[Any, Any, tuple[int, ...]], Float[Array, "M n"]]
    numbers: Callable[[Any, Any], int] = lambda queries, documents: 1
    symmetric: bool = False
    limits: tuple[float, float] | None = None
    in_world: Callable[[Columns, World], tuple[Columns, World]] = lambda own, world: (own, world)

    def of_lists(self, queries: Any, documents: Sequence[Any]) -> Float[Array, "K n"]:
        """Computes the score of each query with its own K documents.

        Args:
            queries: embeddings, leaves `[n, ...]`.
            documents: the K-th documents of all queries, K trees of leaves `[n, ...]`.
        """
        queries, joined = self.prepare(queries, ()), self.prepare(join_columns(documents), ())
        by_list = jax.tree.map(
            lambda leaf: leaf.reshape(len(documents), -1, *leaf.shape[1:]), joined
        )
        return jax.vmap(lambda each: self.pairs(queries, each, ())[0])(by_list)


def pair_score(
    name: str,
    pair: Callable[[Any, Any], Float[Array, ""]],
    *,
    matrix: Callable[[Any, Any], Float[Array, "q n"]] | None = None,
    prepare: Callable[[Any], Any] = lambda embeddings: embeddings,
    numbers: Callable[[Any, Any], int] = lambda queries, documents: 1,
    symmetric: bool = False,
    limits: tuple[float, float] | None = None,
) -> Score:
    """Makes a score from a function of one query's and one document's embedding.

    Args:
        name: for messages.
        pair: `(query, document) -> scalar`, the trees without the axis of texts. It must be finite,
            with a finite gradient, for any texts, those without tokens too.
        matrix: `(queries, documents) -> scores` of all pairs; None: `pair` is mapped over them.
        prepare: `embeddings [n, ...] -> tree [n, ...]`, such as tokens made length 1.
        numbers: see `Score`.
        symmetric: see `Score`.
        limits: see `Score`.

    >>> def overlap(query, document):
    ...     return jnp.sum(jnp.minimum(query, document))
    >>> score = pair_score("overlap", overlap)
    >>> print(score.of_lists(jnp.eye(2), [jnp.ones((2, 2)), jnp.zeros((2, 2))]))
    [[1. 1.]
     [0. 0.]]
    """
    all_pairs = matrix or jax.vmap(jax.vmap(pair, in_axes=(None, 0)), in_axes=(0, None))

    def prepare_prefixes(embeddings: Any, dims: tuple[int, ...]) -> tuple[Any, ...]:
        if not dims:
            return (prepare(embeddings),)
        return tuple(prepare(cut_prefix(embeddings, dim)) for dim in dims)

    def over_prefixes(function: Callable) -> Callable:
        return lambda queries, documents, dims: jnp.stack(
            [function(*sides) for sides in zip(queries, documents, strict=True)]
        )

    return Score(
        name,
        prepare_prefixes,
        over_prefixes(all_pairs),
        over_prefixes(jax.vmap(pair)),
        numbers,
        symmetric,
        limits,
    )


def find_score(score: str | Score) -> Score:
    """Returns the score of that name in the registry, or "module:attribute"; a Score is itself.

    "dense + 0.3 * sparse" is the weighted sum of scores of heads, see `head_scores.sum_score`.

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    if isinstance(score, Score):
        return score
    try:
        if "+" in score or "*" in score:
            return lookup("score", SUM)(score)
        return lookup("score", score)
    except InputError as error:
        raise InputError(f"similarity: {error}") from None


def join_columns(trees: Sequence[Any]) -> Any:
    """Joins the embeddings of several columns, one column after the other.

    Shorter axes are filled up with zeros and False.
    """

    def joined(*leaves: AnyArray) -> AnyArray:
        shape = [max(sizes) for sizes in zip(*(leaf.shape[1:] for leaf in leaves), strict=True)]
        missing = [
            [(0, 0), *((0, size - own) for size, own in zip(shape, leaf.shape[1:], strict=True))]
            for leaf in leaves
        ]
        return jnp.concatenate(
            [
                jnp.pad(leaf, widths) if any(map(sum, widths)) else leaf
                for leaf, widths in zip(leaves, missing, strict=True)
            ]
        )

    return jax.tree.map(joined, *trees)


def cut_prefix(embeddings: Any, size: int, to_length_one: bool = True) -> Any:
    """Keeps the first `size` numbers of each vector, made length 1.

    Vectors are the last axis of each leaf of floats.
    """

    def cut(leaf: AnyArray) -> AnyArray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return normalize(leaf[..., :size]) if to_length_one else leaf[..., :size]

    return jax.tree.map(cut, embeddings)


def dense(embeddings: Any, what: str = "the loss") -> Any:
    """Returns embeddings of one or several columns, checked to be arrays of vectors.

    Raises:
        InputError: for embeddings of another kind, such as those of tokens.
    """
    columns = embeddings if isinstance(embeddings, tuple) else (embeddings,)
    for column in columns:
        if not hasattr(column, "ndim") or column.ndim != 2:
            shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(column)]
            raise InputError(
                f"{what}: expected one vector for each text, found arrays of shape {shapes} for "
                "each"
            )
    return embeddings


def _prepare_dense(vectors: Any, dims: tuple[int, ...], unit: bool) -> Any:
    """Returns vectors, of length 1 for the cosine and for one prefix.

    Several prefixes have (vectors, 1 / each one's length).
    """
    vectors = dense(vectors, "cosine and dot product").astype(jnp.float32)
    if len(dims) > 1:
        squares = [jnp.sum(vectors[:, :dim] ** 2, axis=-1) for dim in dims]
        return vectors, jax.lax.rsqrt(jnp.maximum(jnp.stack(squares, axis=-1), 1e-24))
    vectors = vectors[:, : dims[0]] if dims else vectors
    return normalize(vectors) if unit or dims else vectors


def _dense_matrix(queries: Any, documents: Any, dims: tuple[int, ...]) -> Float[Array, "M q n"]:
    """Computes all pairs; prefixes share the products, as each adds its own dimensions."""
    if len(dims) < 2:
        return dot_matrix(queries, documents)[None]
    (queries, inverse), (documents, other_inverse) = queries, documents
    parts = [
        dot_matrix(queries[:, start:stop], documents[:, start:stop])
        for start, stop in itertools.pairwise((0, *dims))
    ]
    dots = itertools.accumulate(parts, jnp.add)
    return jnp.stack(list(dots)) * (inverse.T[:, :, None] * other_inverse.T[:, None, :])


def _dense_pairs(queries: Any, documents: Any, dims: tuple[int, ...]) -> Float[Array, "M n"]:
    if len(dims) < 2:
        return jnp.sum(queries * documents, axis=-1)[None]
    (queries, inverse), (documents, other_inverse) = queries, documents
    products = queries * documents
    dots = jnp.stack([jnp.sum(products[:, :dim], axis=-1) for dim in dims])
    return dots * inverse.T * other_inverse.T


def _dense_score(name: str, unit: bool, limits: tuple[float, float] | None) -> Score:
    prepare = functools.partial(_prepare_dense, unit=unit)
    return Score(name, prepare, _dense_matrix, _dense_pairs, symmetric=True, limits=limits)


COSINE = _dense_score("cosine", True, (-1.0, 1.0))
DOT = _dense_score("dot", False, None)


def _logits(logits: Any, dims: tuple[int, ...]) -> Float[AnyArray, "n L"]:
    if dims:
        raise InputError("similarity 'logit': the logits of a pair have no prefixes (Matryoshka)")
    return jnp.asarray(dense(logits, "a cross-encoder's loss"), jnp.float32)


def _no_matrix(queries: Any, documents: Any, dims: tuple[int, ...]) -> Any:
    raise InputError(
        "similarity 'logit': a cross-encoder reads each pair, so that it has no score of a query "
        "with the whole batch; batch.in_batch_negatives adds passages of other examples"
    )


# The model has read query and passage together: column k holds the logits of the query with
# passage k, and the query's own column nothing.
LOGIT = Score("logit", _logits, _no_matrix, lambda queries, logits, dims: logits[:, 0][None])
