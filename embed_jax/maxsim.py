"""Scores of token embeddings: each token of a query looks for its best match in a document.

Embeddings are {"tokens": [n, L, d], "mask": [n, L]}, where the mask tells which tokens count. A
document of which none counts scores 0. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from embed_jax.errors import InputError
from embed_jax.scores import BLOCK, Score, pair_score

SIMILARITIES_OF_TOKENS = ("maxsim", "mean_maxsim")
TILE = 2**20  # products of tokens that are held at once: 4 MiB


def best_matches(
    query: Float[Array, "q K d"], document: Float[Array, "n L d"], mask: Bool[Array, "n L"]
) -> Float[Array, "n q K"]:
    """Computes the largest product of each query token with a token of each document.

    Products are computed for a few documents at a time, and only the positions of the largest ones
    are kept for the backward pass: memory never holds queries x documents x tokens x tokens.

    Args:
        query: the queries' token embeddings.
        document: the documents'.
        mask: which tokens of the documents count; 0 is the result for a document without any.
    """
    return _best(query, document, mask)


@jax.custom_vjp
def _best(query: Array, document: Array, mask: Array) -> Array:
    return _search(query, document, mask)[0]


def _search(query: Array, document: Array, mask: Array) -> tuple[Array, Integer[Array, "n q K"]]:
    """Returns the largest products and the positions where they are reached, the first of equals.

    The position is L for a document without tokens.
    """
    length = document.shape[1]
    flat = query.reshape(-1, query.shape[-1])

    def search(one_document: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens, counts = one_document
        products = jnp.matmul(flat, tokens.T, precision="highest")
        products = jnp.where(counts, products, -jnp.inf)
        largest = jnp.max(products, axis=-1)
        # Faster on a CPU than argmax, which is not vectorised there.
        reached = (products == largest[:, None]) & counts
        index = jnp.min(jnp.where(reached, jnp.arange(length), length), axis=-1)
        small = jnp.uint16 if length < 2**16 else jnp.int32
        return jnp.where(index < length, largest, 0.0), index.astype(small)

    tile = max(TILE // (flat.shape[0] * length), 1)
    largest, index = lax.map(search, (document, mask), batch_size=tile)
    shape = (document.shape[0], *query.shape[:2])
    return largest.reshape(shape), index.reshape(shape)


def _best_forward(query: Array, document: Array, mask: Array) -> tuple[Array, Any]:
    largest, index = _search(query, document, mask)
    return largest, (query, document, index)


def _best_backward(residuals: Any, cotangent: Array) -> tuple[Array, Array, None]:
    query, document, index = residuals
    flat = query.reshape(-1, query.shape[-1])

    def back(d_flat: Array, one_document: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        tokens, index, weight = one_document
        # A sparse matrix [q * K, L] of one number a row; as products it is fast everywhere.
        here = index.reshape(-1, 1) == jnp.arange(len(tokens))
        chosen = jnp.where(here, weight.reshape(-1, 1), 0.0)
        d_tokens = jnp.matmul(chosen.T, flat, precision="highest")
        return d_flat + jnp.matmul(chosen, tokens, precision="highest"), d_tokens

    # Not zeros_like, which would lose over which mesh axes the leaf varies.
    start = jnp.where(jnp.zeros((), bool), flat, 0.0)
    d_flat, d_document = lax.scan(back, start, (document, index, cotangent))
    return d_flat.reshape(query.shape), d_document, None


_best.defvjp(_best_forward, _best_backward)


# ---- scores --------------------------------------------------------------------------------------


def _token_score(
    name: str, join: Callable[[Array, Any], Float[Array, "n q"]], limits: Any = None
) -> Score:
    """Makes a score of a function of best matches [n, q, K] and queries."""

    def matrix(queries: Any, documents: Any) -> Float[Array, "q n"]:
        matches = best_matches(queries["tokens"], documents["tokens"], documents["mask"])
        return join(matches, queries).T

    def pair(query: Any, document: Any) -> Float[Array, ""]:
        return matrix(*jax.tree.map(lambda leaf: leaf[None], (query, document)))[0, 0]

    return pair_score(
        name,
        pair,
        matrix=matrix,
        prepare=_tokens,
        numbers=lambda queries, documents: queries["mask"].shape[1],
        limits=limits,
    )


def _tokens(embeddings: Any) -> Any:
    """Returns embeddings in float32, checked to be those of tokens."""
    if not isinstance(embeddings, dict) or not embeddings.keys() >= {"tokens", "mask"}:
        raise InputError("maxsim: expected embeddings of tokens, found one vector for each text")
    return {**embeddings, "tokens": embeddings["tokens"].astype(jnp.float32)}


def _sum(matches: Float[Array, "n q K"], queries: Any) -> Float[Array, "n q"]:
    return jnp.sum(jnp.where(queries["mask"], matches, 0.0), axis=-1)


def _mean(matches: Float[Array, "n q K"], queries: Any) -> Float[Array, "n q"]:
    return _sum(matches, queries) / jnp.maximum(jnp.sum(queries["mask"], axis=-1), 1)


# sum_k max_l q_k d_l (Khattab and Zaharia 2020, "ColBERT", eq. 3), and its mean over the K tokens.
MAXSIM = _token_score("maxsim", _sum)
MEAN_MAXSIM = _token_score("mean_maxsim", _mean, limits=(-1.0, 1.0))


# ---- of encoded texts ----------------------------------------------------------------------------


def maxsim_matrix(
    queries: Sequence[Float[np.ndarray, "_ d"]],
    documents: Sequence[Float[np.ndarray, "_ d"]],
    *,
    mean: bool = False,
) -> Float[np.ndarray, "Q N"]:
    """Computes MaxSim of each query with each document in NumPy, float32; nothing is padded.

    >>> query, document = np.eye(2, dtype=np.float32), np.array([[0.93, 0.2], [0.1, 0.91]])
    >>> maxsim_matrix([query], [document]).round(2).tolist()
    [[1.840000033378601]]

    Args:
        queries: the vectors of each query's tokens.
        documents: those of each document's; one without any scores 0.
        mean: whether a score is divided by the query's number of tokens.
    """
    scores = np.zeros((len(queries), len(documents)), np.float32)
    lengths = np.array([len(query) for query in queries], np.int64)
    present = np.flatnonzero(lengths)
    if not len(present):
        return scores
    tokens = np.concatenate([query for query in queries if len(query)]).astype(np.float32)
    starts = np.cumsum(lengths[present]) - lengths[present]
    sizes = np.array([len(document) for document in documents], np.int64)
    some = np.flatnonzero(sizes)
    # Documents of about BLOCK products at a time.
    part = np.cumsum(sizes[some]) * len(tokens) // BLOCK
    for number in np.unique(part):
        block = some[part == number]
        vectors = np.concatenate([documents[index] for index in block.tolist()]).astype(np.float32)
        best = np.maximum.reduceat(vectors @ tokens.T, np.cumsum(sizes[block]) - sizes[block])
        scores[np.ix_(present, block)] = np.add.reduceat(best, starts, axis=1).T
    return scores / np.maximum(lengths, 1)[:, None].astype(np.float32) if mean else scores
