"""An index of sparse embeddings on disk, searched exactly through scipy's products."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError
from embed_jax.retrieval.document_chunks import Chunk, IndexEntry, encode_chunks, load_chunks
from embed_jax.retrieval.document_index import (
    DocumentIndex,
    IndexDocument,
    IndexState,
    build_documents,
)
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import ShowProgress, check_counts, make_entry, no_progress

QUERY_BLOCK = 128  # queries whose scores are held at a time
CHUNK_WEIGHTS = 2**22  # of a chunk, at most, unless a single document has more
WORDS, WEIGHTS = "words", "weights"  # arrays of a chunk
PAIR = np.dtype([(WORDS, np.int32), (WEIGHTS, np.float32)])


def build_sparse_index(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any],
    store_texts: bool = False,
    replace: bool = False,
    progress: ShowProgress = no_progress,
) -> SparseIndex:
    """Builds an index; memory holds one chunk of weights. A document without words is never found.

    Args:
        path: a folder, which is created.
        documents: (id, row of scipy's CSR over a vocabulary), and perhaps text and fields, in any
            order; see `build_vector_index`.
        identity: what the embeddings depend on, as JSON: model, prompts, ...
        store_texts: store the texts, for `texts`.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no document; ids are not
            strings, or not distinct; rows are not finite, or of several sizes.
        RunError: the files can't be written.
    """
    documents = iter(documents)
    first = list(itertools.islice(documents, 1))
    dim = first[0][1].shape[-1] if first and hasattr(first[0][1], "tocsr") else 0
    return build_documents(
        SparseIndex,
        path,
        itertools.chain(first, documents),
        SparseState({"dim": dim, "stores_texts": store_texts}, Path(path), ()),
        identity=identity,
        replace=replace,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SparseState(IndexState):
    """A snapshot of an index of sparse embeddings, opened."""

    @functools.cached_property
    def by_word(self) -> list[Any]:
        """Returns CSR [V, n] of each chunk: for each word the documents that have it."""
        import scipy.sparse

        parts = []
        for chunk in self.chunks:
            ends = np.concatenate([[0], np.cumsum(chunk.lengths)])
            content = chunk.arrays[WEIGHTS], chunk.arrays[WORDS], ends
            shape = len(chunk.ids), self.description["dim"]
            parts.append(scipy.sparse.csr_array(content, shape=shape).T.tocsr())
        return parts


class SparseIndex(DocumentIndex):
    """An open index of sparse embeddings; made by `build_sparse_index` and `open_index`.

    Attributes:
        path: the folder.
    """

    kind = "sparse"
    _state: SparseState

    def search(
        self,
        queries: Any,
        k: int,
        *,
        allowed: Collection[str] | None = None,
        where: Filter | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents with the largest products, best first; exact.

        Of equal scores larger ids come first. Documents that share no word with the query are not
        found.

        Args:
            queries: scipy's CSR [Q, V].
            k: how many documents; fewer are returned where fewer are found.
            allowed: ids that may be returned; None: all.
            where: a filter on fields; see `filters`.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for a k below 1, or queries over another vocabulary.
        """
        check_counts(k=k)
        state, mask = self._state, self._state.mask(allowed, where)
        rows = _csr("queries", queries, state.description["dim"])
        results: list[dict[str, float]] = []
        for start in range(0, rows.shape[0], QUERY_BLOCK):
            some = rows[start : start + QUERY_BLOCK]
            products, first = [], 0
            for chunk, by_word in zip(state.chunks, state.by_word, strict=True):
                products.append((first, (some @ by_word).tocsr()))
                first += len(chunk.ids)
            for row in range(some.shape[0]):
                results.append(self._best(products, row, k, mask))
        return results

    def _best(
        self, products: Sequence[tuple[int, Any]], row: int, k: int, mask: np.ndarray | None
    ) -> dict[str, float]:
        """Returns the best documents of a query, of its products with each chunk."""
        positions, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for first, matrix in products:
            own = slice(matrix.indptr[row], matrix.indptr[row + 1])
            positions.append(matrix.indices[own].astype(np.int64) + first)
            scores.append(matrix.data[own])
        every, values = np.concatenate(positions), np.concatenate(scores)
        chosen = values > 0 if mask is None else (values > 0) & mask[every]
        return self._state.best(every[chosen], values[chosen], k)

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document.

        Returns:
            "documents"; "words", "weights", "ids", "texts" in bytes; "bytes per document" of all.
        """
        files = {name: f"*.{name}.npy" for name in (WORDS, WEIGHTS)} | {"ids": "doc*.json"}
        return self.file_sizes(files)

    @classmethod
    def load(cls, description: Mapping[str, Any], folder: Path) -> SparseState:
        """Opens a snapshot; its large files are mapped, not read."""
        chunks = load_chunks(folder, description["chunks"], (WORDS, WEIGHTS))
        return SparseState(description, folder, chunks)

    @classmethod
    def checked(
        cls, documents: Iterable[IndexDocument], state: SparseState
    ) -> Iterator[IndexEntry]:
        """Yields documents with their words and weights."""
        dim = state.description["dim"]
        for document in documents:
            row = _csr(f"document {document[0]!r}", document[1], dim)
            if row.shape[0] != 1:
                shape = list(row.shape)
                raise InputError(f"document {document[0]!r}: expected a single row, found {shape}")
            pairs = np.empty(row.nnz, PAIR)
            pairs[WORDS], pairs[WEIGHTS] = row.indices, row.data
            yield make_entry(document, pairs, bool(state.description.get("stores_texts")))

    @classmethod
    def encoded(
        cls, entries: Iterable[IndexEntry], state: SparseState, folder: Path, numbers: Iterator[int]
    ) -> Iterator[Chunk]:
        """Writes documents in chunks."""

        def encode(pairs: np.ndarray) -> dict[str, np.ndarray]:
            return {name: np.ascontiguousarray(pairs[name]) for name in (WORDS, WEIGHTS)}

        return encode_chunks(entries, encode, folder, numbers, CHUNK_WEIGHTS)

    @classmethod
    def finish(cls, folder: Path, chunks: Sequence[Chunk], state: SparseState) -> dict[str, Any]:
        """Returns the size of the vocabulary."""
        return {"dim": state.description["dim"]}

    @property
    def chunk_limit(self) -> int:
        """Returns the weights of a chunk, at most."""
        return CHUNK_WEIGHTS


def _csr(where: str, rows: Any, dim: int) -> Any:
    """Returns rows over the index' vocabulary as CSR [n, V], float32.

    Raises:
        InputError: they are not a sparse matrix, of another vocabulary, or not finite.
    """
    if not hasattr(rows, "tocsr"):
        kind = type(rows).__name__
        raise InputError(f"{where}: expected rows of a sparse matrix of scipy, found {kind}")
    rows = (rows if rows.ndim == 2 else rows.reshape(1, -1)).tocsr().astype(np.float32)
    if rows.shape[1] != dim:
        raise InputError(f"{where}: over {rows.shape[1]} words, the index has {dim}")
    if not np.isfinite(rows.data).all():
        raise InputError(f"{where}: a number that is not finite")
    rows.sum_duplicates()
    return rows
