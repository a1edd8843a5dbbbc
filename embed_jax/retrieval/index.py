"""A corpus embedded once and searched many times: exactly on the device, or through FAISS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError, RunError, one_line, require
from embed_jax.retrieval.topk import CORPUS_BLOCK, Encode, top_k
from embed_jax.scores import unit_length

TRAINING_ROWS = 100_000  # that a FAISS index learns its clusters or codes from


def dense_searcher(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: Sequence[str],
    *,
    similarity: str = "cosine",
    store: Path | None = None,
) -> DenseSearcher:
    """Embeds the corpus for exact search by `top_k`.

    Args:
        encode_queries: embeds queries.
        encode_corpus: embeds passages.
        corpus: passages.
        similarity: "cosine" or "dot".
        store: an .npy file to write the embeddings to and read them from, block by block, so that
            memory does not grow with the corpus; None: they stay in memory.

    Raises:
        InputError: for another similarity, an empty corpus, or a `store` that cannot be written.
    """
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity: expected 'cosine' or 'dot', found {similarity!r}")
    if not corpus:
        raise InputError("the corpus is empty: nothing to search in")
    unit = similarity == "cosine"
    return DenseSearcher(encode_queries, _embed(encode_corpus, corpus, unit, store), unit)


def faiss_searcher(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: Sequence[str],
    *,
    similarity: str = "cosine",
    store: Path | None = None,
    factory: str = "Flat",
    parameters: str = "",
) -> FaissSearcher:
    """Embeds the corpus for search through a FAISS index (Douze et al. 2024).

    The index finds the candidates; their scores and order come from the embeddings themselves, so
    scores are exact also where the index is not.

    Args:
        encode_queries: embeds queries.
        encode_corpus: embeds passages.
        corpus: passages.
        similarity: "cosine" or "dot".
        store: an .npy file to write the embeddings to and read them from, block by block, so that
            memory does not grow with the corpus; None: they stay in memory.
        factory: FAISS's index factory string: "Flat" (exact), "IVF256,Flat", "HNSW32", ...
        parameters: FAISS's search-time settings: "nprobe=16", "efSearch=128", ...

    Raises:
        InputError: see `dense_searcher`; if FAISS is not installed, does not know `factory` or
            `parameters`, or cannot train the index on this corpus.
    """
    require("faiss")
    import faiss

    dense = dense_searcher(
        encode_queries, encode_corpus, corpus, similarity=similarity, store=store
    )
    embeddings = dense.embeddings
    try:
        index = faiss.index_factory(embeddings.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            step = -(-len(corpus) // TRAINING_ROWS)
            index.train(embeddings.rows(np.arange(0, len(corpus), step)))
        for block in embeddings.blocks():
            index.add(block)
        if parameters:
            # FAISS's types know the overload of a number only.
            faiss.ParameterSpace().set_index_parameters(index, cast(Any, parameters))
    except RuntimeError as error:
        reason = one_line(error).split("Error: ")[-1]
        described = f"{factory!r}{f' with {parameters!r}' if parameters else ''}"
        raise InputError(
            f"FAISS cannot make the index {described} of {len(corpus)} passages: {reason}"
        ) from None
    return FaissSearcher(dense, index)


class DenseSearcher:
    """Searches embedded passages by dot product; made by `dense_searcher`."""

    def __init__(self, encode_queries: Encode, embeddings: CorpusEmbeddings, unit: bool):
        self.embeddings = embeddings
        self._encode_queries, self._unit = encode_queries, unit
        self._last: tuple[list[str], np.ndarray] | None = None

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Returns scores and rows of each query's k best passages, best first.

        Equal scores are in the corpus' order. Where the corpus has fewer: score -inf, row -1.
        """
        scores, rows = top_k(self.embed(queries), self.embeddings.blocks(), k)
        missing = ((0, 0), (0, k - scores.shape[1]))
        return np.pad(scores, missing, constant_values=-np.inf), np.pad(
            rows, missing, constant_values=-1
        )

    def score(
        self, queries: Sequence[str], rows: Int[np.ndarray, "Q p"]
    ) -> Float[np.ndarray, "Q p"]:
        """Computes the similarity of each query with its own rows; -inf for row -1."""
        embedded = self.embed(queries)
        passages_of_queries = [
            self.embeddings.rows(row) @ query for row, query in zip(rows, embedded, strict=True)
        ]
        return np.where(rows >= 0, np.reshape(passages_of_queries, rows.shape), np.float32(-np.inf))

    def embed(self, queries: Sequence[str]) -> Float[np.ndarray, "Q D"]:
        """Embeds the queries.

        The embeddings of the last call are remembered, as `search` and `score` take turns.
        """
        queries = list(queries)
        if self._last is None or self._last[0] != queries:
            self._last = queries, _finished(self._encode_queries(queries), self._unit)
        return self._last[1]


class FaissSearcher:
    """Searches embedded passages through a FAISS index; made by `faiss_searcher`."""

    def __init__(self, dense: DenseSearcher, index):
        self._dense, self._index = dense, index
        self.score = dense.score

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Searches among the passages that the index finds, which may be fewer than k."""
        _, rows = self._index.search(np.ascontiguousarray(self._dense.embed(queries)), k)
        rows.sort(axis=1)  # so that equal scores come in the corpus' order
        scores = self.score(queries, rows)
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


class CorpusEmbeddings:
    """Embeddings of a corpus `[N, D]`, in memory or in an .npy file."""

    def __init__(self, source: Float[np.ndarray, "N D"] | Path):
        self._source = source
        self._size, self.dim = self._open().shape

    def _open(self) -> Float[np.ndarray, "N D"]:
        # Mapped anew each time: pages of a mapping that was let go no longer count as this process'
        # memory.
        return (
            np.load(self._source, mmap_mode="r") if isinstance(self._source, Path) else self._source
        )

    def blocks(self) -> Iterator[Float[np.ndarray, "n D"]]:
        """Yields all rows, 8,192 at a time."""
        for start in range(0, self._size, CORPUS_BLOCK):
            yield np.asarray(self._open()[start : start + CORPUS_BLOCK])

    def rows(self, numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        """Returns some rows; any row for -1."""
        return np.asarray(self._open()[numbers])


def _embed(
    encode: Encode, corpus: Sequence[str], unit: bool, store: Path | None
) -> CorpusEmbeddings:
    blocks = (
        _finished(encode(corpus[start : start + CORPUS_BLOCK]), unit)
        for start in range(0, len(corpus), CORPUS_BLOCK)
    )
    first = next(blocks)
    shape = len(corpus), first.shape[1]
    if store is None:
        embeddings, done = np.empty(shape, np.float32), 0
        for block in itertools.chain([first], blocks):
            embeddings[done : done + len(block)] = block
            done += len(block)
        return CorpusEmbeddings(embeddings)
    try:
        file = store.open("wb")
    except OSError as error:
        raise InputError(f"{store}: cannot be written: {error.strerror}") from None
    with file:
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for block in itertools.chain([first], blocks):
            file.write(block.data)
    return CorpusEmbeddings(store)


def _finished(embeddings: Float[np.ndarray, "n D"], unit: bool) -> Float[np.ndarray, "n D"]:
    if not np.isfinite(embeddings).all():
        raise RunError("the model gives embeddings with numbers that are not finite")
    return np.ascontiguousarray(unit_length(embeddings) if unit else embeddings, np.float32)
