"""Exact search by any of SIMILARITIES, block by block: memory does not grow with the corpus."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from embed_jax.errors import InputError
from embed_jax.head_scores import check_similarity, read_sum, sum_matrix
from embed_jax.registry import unknown
from embed_jax.scores import SIMILARITIES, unit_length
from embed_jax.types import AnyArray, SparseRows

Encode = Callable[[Sequence[str]], Float[np.ndarray, "N D"]]
QueryId = TypeVar("QueryId", bound=Hashable)

QUERY_BLOCK = 512  # with CORPUS_BLOCK: 16 MB of scores at a time
CORPUS_BLOCK = 8192
MATRIX_BLOCK = 1024  # documents at a time whose embeddings may be those of tokens
ENCODE_BLOCK = 65_536  # documents whose embeddings are held at a time; a multiple of CORPUS_BLOCK


def top_k(
    queries: Float[np.ndarray, "Q D"] | SparseRows,
    corpus: Float[np.ndarray, "N D"] | SparseRows | Iterable[Any],
    k: int,
    *,
    similarity: str = "dot",
    owner: Int[np.ndarray, " N"] | None = None,
    recall_target: float = 1.0,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Finds the k rows of `corpus` most similar to each query; exact, in float32.

    Sparse embeddings are searched by `sparse_top_k`.

    Args:
        queries: embeddings.
        corpus: embeddings, or an iterable of blocks of them, best of multiples of 8,192 rows. JAX's
            blocks are taken as they are: float32, for "cosine" of length 1.
        k: cut to the corpus' size if larger.
        similarity: one of SIMILARITIES.
        owner: 0, 0, 0, 1, 2, 2, ...: the document that each row is a part of. The results are then
            documents, by their best row.
        recall_target: below 1: the share of the k best that is expected to be found, by
            `lax.approx_max_k` (Chern et al. 2022), which is faster on TPUs and exact on CPUs.

    Returns:
        Scores, largest first, and numbers of rows, or of documents. Equal scores keep the corpus'
        order.

    Raises:
        InputError: for an unknown similarity, or a recall that is not above 0 and at most 1.
    """
    if similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    if not 0 < recall_target <= 1:
        raise InputError(f"recall_target: expected above 0, at most 1, found {recall_target}")
    if isinstance(queries, SparseRows):
        from embed_jax.retrieval.sparse import sparse_top_k

        if similarity != "dot" or owner is not None:
            raise InputError(
                f"sparse embeddings are searched by 'dot', by whole documents, found {similarity!r}"
            )
        return sparse_top_k(queries, cast(Any, corpus), k)
    finish = (
        unit_length if similarity == "cosine" else functools.partial(np.asarray, dtype=np.float32)
    )
    queries = finish(queries)
    blocks: Iterable[Any] = [corpus] if isinstance(corpus, np.ndarray) else cast(Any, corpus)
    starts = range(0, len(queries), QUERY_BLOCK)
    padded = [_pad(queries[start : start + QUERY_BLOCK], QUERY_BLOCK) for start in starts]
    best = [_nothing(len(block), k) for block in padded]
    seen = 0
    for block in blocks:
        if not isinstance(block, jax.Array):  # one that is on a device already is float32, finished
            block = finish(block)
        for start in range(0, len(block), CORPUS_BLOCK):
            part = block[start : start + CORPUS_BLOCK]
            parts_of = (
                None
                if owner is None
                else _pad(owner[seen : seen + len(part)], CORPUS_BLOCK, mode="edge")
            )
            # On a CPU, unlike jnp.asarray, this makes no copy of an aligned block, mapped or not.
            searched = jax.tree.map(
                jax.device_put, (_pad(part, CORPUS_BLOCK), seen, len(part), parts_of)
            )
            best = [
                _merge(*row, query, *searched, similarity, recall_target)
                for row, query in zip(best, padded, strict=True)
            ]
            seen += len(part)
    k = min(k, seen if owner is None else len(np.unique(owner)))
    if not best:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    scores, rows = (
        np.concatenate([np.asarray(leaf) for leaf in leaves]) for leaves in zip(*best, strict=True)
    )
    return scores[: len(queries), :k], rows[: len(queries), :k]


def dense_search(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: Mapping[str, str],
    queries: Mapping[QueryId, str],
    k: int,
    *,
    similarity: str = "cosine",
) -> dict[QueryId, dict[str, float]]:
    """Embeds queries and corpus and finds each query's k nearest documents.

    Holds the embeddings of at most 65,536 documents at a time.

    Args:
        encode_queries: embeds queries.
        encode_corpus: embeds passages.
        corpus: documents by id.
        queries: queries by id.
        k: the number of documents for a query.
        similarity: one of SIMILARITIES; of several heads a sum, see `head_scores.read_sum`.

    Returns:
        {query id: {document id: score}}, best first; equal scores in the corpus' order.

    Raises:
        InputError: for an unknown similarity.
    """
    check_similarity(similarity)
    if similarity not in SIMILARITIES:
        matrices = {similarity: functools.partial(sum_matrix, text=read_sum(similarity))}
        return search_by_matrices(encode_queries, encode_corpus, matrices, corpus, queries, k)[
            similarity
        ]
    query_vectors = encode_queries(list(queries.values()))
    results = top_k(
        query_vectors, encoded(encode_corpus, corpus.values()), k, similarity=similarity
    )
    return as_run(*results, list(queries), list(corpus))


def search_by_matrices(
    encode_queries: Callable[[Sequence[str]], Any],
    encode_documents: Callable[[Sequence[str]], Any],
    matrices: Mapping[str, Callable[[Any, Any], Float[np.ndarray, "Q n"]]],
    corpus: Mapping[str, str],
    queries: Mapping[QueryId, str],
    k: int,
    *,
    block: int = MATRIX_BLOCK,
) -> dict[str, dict[QueryId, dict[str, float]]]:
    """Finds each query's k best documents by each of several scores of all pairs; exact.

    Texts are encoded once, whatever their embeddings are.

    >>> encode = lambda texts: np.array([[float(text)] for text in texts])
    >>> products = {"dot": lambda queries, documents: queries @ documents.T}
    >>> search_by_matrices(encode, encode, products, {"d1": "3", "d2": "5"}, {"q": "2"}, k=1)
    {'dot': {'q': {'d2': 10.0}}}

    Args:
        encode_queries: embeds queries.
        encode_documents: embeds documents.
        matrices: by name, the scores of queries with documents, by their embeddings.
        corpus: documents by id.
        queries: queries by id.
        k: the number of documents for a query.
        block: documents whose embeddings are held at a time.

    Returns:
        By name {query id: {document id: score}}, best first; equal scores in the corpus' order.
    """
    of_queries = encode_queries(list(queries.values()))
    nothing = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    best: dict[str, tuple[np.ndarray, np.ndarray]] = dict.fromkeys(matrices, nothing)
    texts, start = iter(corpus.values()), 0
    while chunk := list(itertools.islice(texts, block)):
        of_documents = encode_documents(chunk)
        for name, matrix in matrices.items():
            new = matrix(of_queries, of_documents)
            numbers = np.broadcast_to(start + np.arange(len(chunk)), new.shape)
            scores, rows = (
                np.hstack(pair) for pair in zip(best[name], (new, numbers), strict=True)
            )
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best[name] = (
                np.take_along_axis(scores, order, axis=1),
                np.take_along_axis(rows, order, axis=1),
            )
        start += len(chunk)
    return {name: as_run(*result, list(queries), list(corpus)) for name, result in best.items()}


def encoded(encode: Encode, texts: Iterable[str]) -> Iterator[Float[np.ndarray, "n D"]]:
    """Yields the texts' embeddings, of 65,536 at a time."""
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, ENCODE_BLOCK)):
        yield encode(chunk)


def as_run(
    scores: Float[np.ndarray, "Q k"],
    numbers: Int[np.ndarray, "Q k"],
    queries: Sequence[QueryId],
    documents: Sequence[str],
) -> dict[QueryId, dict[str, float]]:
    """Returns the results of `top_k` by the ids of queries and documents; row -1 is nothing."""
    return {
        query: {
            documents[number]: score
            for number, score in zip(rows_of_query, values, strict=True)
            if number >= 0
        }
        for query, rows_of_query, values in zip(
            queries, numbers.tolist(), scores.tolist(), strict=True
        )
    }


def prompted(
    encode: Encode, query_prompt: str = "", document_prompt: str = ""
) -> tuple[Encode, Encode]:
    """Returns the functions that embed queries and documents, each with its prompt.

    Args:
        encode: called as `encode(texts, prompt=...)`, or as `encode(texts)` if both prompts are
            empty. If it has the methods `query` and `document`, as a `TextEncoder` has, these are
            called instead.
        query_prompt: stands before queries.
        document_prompt: stands before documents.
    """
    query: Callable[..., np.ndarray] = getattr(encode, "query", encode)
    document: Callable[..., np.ndarray] = getattr(encode, "document", encode)
    if not (query_prompt or document_prompt):
        return query, document
    return (
        functools.partial(query, prompt=query_prompt),
        functools.partial(document, prompt=document_prompt),
    )


def _dot(queries: Float[Array, "Q D"], block: Float[Array, "N D"]) -> Float[Array, "Q N"]:
    # Accelerators round float32 products to fewer bits unless told not to.
    return jnp.matmul(queries, block.T, precision="highest", preferred_element_type=jnp.float32)


def _summed(
    of_difference: Callable[[Array], Array], queries: Array, block: Array
) -> Float[Array, "Q N"]:
    """Sums over dimensions, a few at a time: there is no array [Q, N, D].

    The form |a|^2 + |b|^2 - 2ab would be a single product of matrices, but differences of near
    points would be lost in it.
    """

    def add(total, dimension):
        a, b = dimension
        return total + of_difference(a[:, None] - b[None, :]), None

    nothing = jnp.zeros((queries.shape[0], block.shape[0]), jnp.float32)
    return jax.lax.scan(add, nothing, (queries.T, block.T), unroll=16)[0]


_SCORES: Mapping[str, Callable[[Array, Array], Float[Array, "Q N"]]] = {
    "cosine": _dot,  # of what `top_k` brings to length 1
    "dot": _dot,
    "euclidean": lambda queries, block: -jnp.sqrt(_summed(jnp.square, queries, block)),
    "manhattan": lambda queries, block: -_summed(jnp.abs, queries, block),
}


@functools.partial(jax.jit, static_argnames=("similarity", "recall_target"))
def _merge(
    scores: Float[Array, "Q k"],
    rows: Int[Array, "Q k"],
    queries: Float[Array, "Q D"],
    block: Float[Array, "N D"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    owner: Int[Array, " N"] | None,
    similarity: str,
    recall_target: float = 1.0,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Merges the best so far with `count` rows of a block that begins at row `start` of the corpus.

    `lax.top_k` puts the earlier of equal values first, and the best so far stand first.
    """
    block_scores = _SCORES[similarity](queries, block)
    block_scores = jnp.where(jnp.arange(block.shape[0]) < count, block_scores, -jnp.inf)
    if owner is not None:
        start = owner[0]
        block_scores = jax.ops.segment_max(
            block_scores.T, owner - start, block.shape[0], indices_are_sorted=True
        ).T
        begun = rows == start  # the block's first document, if it began in the block before
        block_scores = block_scores.at[:, 0].max(
            jnp.max(scores, axis=1, where=begun, initial=-jnp.inf)
        )
        scores = jnp.where(begun, -jnp.inf, scores)
    k = scores.shape[1]
    best = min(k, block.shape[0])
    if recall_target < 1:
        block_scores, number = jax.lax.approx_max_k(block_scores, best, recall_target=recall_target)
    else:
        block_scores, number = jax.lax.top_k(block_scores, best)
    scores, place = jax.lax.top_k(jnp.concatenate([scores, block_scores], axis=1), k)
    return scores, jnp.take_along_axis(
        jnp.concatenate([rows, number + start], axis=1), place, axis=1
    )


def _nothing(queries: int, k: int) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    return jnp.full((queries, k), -jnp.inf, jnp.float32), jnp.full((queries, k), -1, jnp.int32)


def _pad(
    block: Shaped[AnyArray, "n ..."], limit: int, mode: Literal["constant", "edge"] = "constant"
) -> Shaped[AnyArray, "m ..."]:
    """Pads rows, by default with zeros, up to the next power of two, or `limit`.

    Few shapes, hence few compilations.
    """
    size = min(limit, 1 << max(len(block) - 1, 0).bit_length())
    if size == len(block):
        return block
    pad = jnp.pad if isinstance(block, jax.Array) else np.pad
    return pad(block, [(0, size - len(block)), *[(0, 0)] * (block.ndim - 1)], mode=mode)
