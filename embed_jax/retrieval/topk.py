"""Exact search by dot product or cosine, block by block: memory does not grow with the corpus."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from embed_jax.errors import InputError

Encode = Callable[[Sequence[str]], Float[np.ndarray, "N D"]]
Run = dict[str, dict[str, float]]  # query id -> {document id: score}, best first

QUERY_BLOCK = 512  # with CORPUS_BLOCK: 16 MB of scores at a time
CORPUS_BLOCK = 8192
ENCODE_BLOCK = 65_536  # documents whose embeddings are held at a time; a multiple of CORPUS_BLOCK


def top_k(
    queries: Float[np.ndarray, "Q D"], corpus: Float[np.ndarray, "N D"] | Iterable[Float[np.ndarray, "n D"]], k: int
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """The k rows of `corpus` with the largest dot products with each query; exact, in float32.

    Args:
        queries: embeddings.
        corpus: embeddings, or an iterable of blocks of them, best of multiples of 8,192 rows.
        k: cut to the corpus' size if larger.

    Returns:
        Scores, largest first, and row numbers. Equal scores keep the corpus' order.
    """
    queries = np.asarray(queries, np.float32)
    blocks = [corpus] if isinstance(corpus, np.ndarray) else corpus
    starts = range(0, len(queries), QUERY_BLOCK)
    padded = [_pad(queries[start : start + QUERY_BLOCK], QUERY_BLOCK) for start in starts]
    best = [_nothing(len(block), k) for block in padded]
    seen = 0
    for block in blocks:
        block = np.asarray(block, np.float32)
        for start in range(0, len(block), CORPUS_BLOCK):
            part = block[start : start + CORPUS_BLOCK]
            device_part = jnp.asarray(_pad(part, CORPUS_BLOCK))
            best = [_merge(*one, query, device_part, seen, len(part)) for one, query in zip(best, padded, strict=True)]
            seen += len(part)
    if not best:
        return np.zeros((0, min(k, seen)), np.float32), np.zeros((0, min(k, seen)), np.int32)
    scores, rows = (np.concatenate([np.asarray(leaf) for leaf in leaves]) for leaves in zip(*best, strict=True))
    return scores[: len(queries), : min(k, seen)], rows[: len(queries), : min(k, seen)]


def dense_search(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    k: int,
    *,
    similarity: str = "cosine",
) -> Run:
    """Embeds queries and corpus and finds each query's k nearest documents.

    Holds the embeddings of at most 65,536 documents at a time.

    Args:
        corpus, queries: texts by id.
        similarity: "cosine" or "dot".

    Returns:
        {query id: {document id: score}}, best first; equal scores in the corpus' order.
    """
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity: expected 'cosine' or 'dot', found {similarity!r}")
    finish = unit_rows if similarity == "cosine" else np.asarray
    blocks = (finish(encode_corpus(texts)) for texts in _chunks(corpus.values(), ENCODE_BLOCK))
    scores, rows = top_k(finish(encode_queries(list(queries.values()))), blocks, k)
    names = list(corpus)
    return {
        query: {names[row]: score for row, score in zip(found, values, strict=True)}
        for query, found, values in zip(queries, rows.tolist(), scores.tolist(), strict=True)
    }


def prompted(encode: Encode, *prompts: str) -> tuple[Encode, ...]:
    """`encode` with each of the prompts: called as `encode(texts, prompt=...)`, or bare if all of them are empty."""
    return tuple(functools.partial(encode, prompt=prompt) if any(prompts) else encode for prompt in prompts)


def unit_rows(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Embeddings of length 1; a zero vector stays zero."""
    embeddings = np.asarray(embeddings, np.float32)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


@jax.jit
def _merge(
    scores: Float[Array, "Q k"],
    rows: Int[Array, "Q k"],
    queries: Float[Array, "Q D"],
    block: Float[Array, "N D"],
    start: Int[Array, ""],
    count: Int[Array, ""],
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The best of what was found so far and of `count` rows of a block that begins at row `start` of the corpus.

    `lax.top_k` puts the earlier of equal values first, and what was found so far stands first.
    """
    # Accelerators round float32 products to fewer bits unless told not to.
    found = jnp.matmul(queries, block.T, precision="highest", preferred_element_type=jnp.float32)
    found = jnp.where(jnp.arange(block.shape[0]) < count, found, -jnp.inf)
    k = scores.shape[1]
    found, number = jax.lax.top_k(found, min(k, block.shape[0]))
    scores, place = jax.lax.top_k(jnp.concatenate([scores, found], axis=1), k)
    return scores, jnp.take_along_axis(jnp.concatenate([rows, number + start], axis=1), place, axis=1)


def _nothing(queries: int, k: int) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    return jnp.full((queries, k), -jnp.inf, jnp.float32), jnp.full((queries, k), -1, jnp.int32)


def _pad(block: Float[np.ndarray, "n D"], limit: int) -> Float[np.ndarray, "m D"]:
    """Zero rows up to the next power of two, or `limit`: few shapes, so few compilations."""
    size = min(limit, 1 << max(len(block) - 1, 0).bit_length())
    return np.pad(block, ((0, size - len(block)), (0, 0)))


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, size)):
        yield chunk
