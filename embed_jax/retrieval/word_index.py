"""An index for BM25 on disk, by bm25s.

A chunk has the words of its documents as hashes, so that adding needs no vocabulary. The weights of
BM25 depend on all documents: each write makes bm25s' matrix anew, from the hashes and not from the
texts. A search maps it from the disk.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from embed_jax.errors import InputError, require
from embed_jax.retrieval.bm25 import K1, B, empty_bm25, text_words
from embed_jax.retrieval.document_chunks import (
    Chunk,
    IndexEntry,
    encode_chunks,
    load_chunks,
    read_array,
)
from embed_jax.retrieval.document_index import (
    DocumentIndex,
    IndexDocument,
    IndexState,
    build_documents,
)
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import ShowProgress, check_counts, make_entry, no_progress

CHUNK_WORDS = 2**22  # of a chunk, at most, unless a single document has more
TEXTS_AT_ONCE = 1024  # whose words are found at a time
WORDS, VOCABULARY = "words", "vocabulary.npy"


def build_word_index(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any] | None = None,
    k1: float = K1,
    b: float = B,
    store_texts: bool = False,
    replace: bool = False,
    progress: ShowProgress = no_progress,
) -> WordIndex:
    """Builds an index for BM25; for words and scores see `bm25_searcher`.

    Memory holds the hashes of all words while the matrix is made: 8 bytes each.

    Args:
        path: a folder, which is created.
        documents: (id, text), or (id, text, text, fields) with fields for filters; in any order.
        identity: what else the words depend on, as JSON.
        k1: how soon repeated words stop counting.
        b: how much long documents are marked down, 0 to 1.
        store_texts: store the texts, for `texts`.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no document; ids are not
            strings, or not distinct; a document is not a text; bm25s is not installed.
        RunError: the files can't be written.
    """
    options = {"k1": k1, "b": b, "stores_texts": store_texts}
    return build_documents(
        WordIndex,
        path,
        documents,
        WordState(options, Path(path), (), None, np.zeros(0, np.int64)),
        identity=identity or {},
        replace=replace,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class WordState(IndexState):
    """A snapshot of an index for BM25; `matrix` is bm25s', None without any word."""

    matrix: Any
    vocabulary: Int64[np.ndarray, " V"]

    def word_ids(self, text: str) -> list[int]:
        """Returns the columns of the words of a text that the index knows."""
        (words,) = text_words([text])
        hashes = _hashes(words)
        ids = np.searchsorted(self.vocabulary, hashes)
        known = np.append(self.vocabulary, 0)[ids] == hashes
        return ids[known & (ids < len(self.vocabulary))].tolist()


class WordIndex(DocumentIndex):
    """An open index for BM25; made by `build_word_index` and `open_index`.

    Attributes:
        path: the folder.
    """

    kind = "bm25"
    _state: WordState

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        allowed: Collection[str] | None = None,
        where: Filter | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents with the largest scores, best first; of equal ones larger ids first.

        Documents that share no word with the query are not found.

        Args:
            queries: texts.
            k: how many documents; fewer are returned where fewer are found.
            allowed: ids that may be returned; None: all.
            where: a filter on fields; see `filters`.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for a k below 1.
        """
        check_counts(k=k)
        state, mask = self._state, self._state.mask(allowed, where)
        results: list[dict[str, float]] = []
        for query in queries:
            words = state.word_ids(query)
            if not words:
                results.append({})
                continue
            scores = np.asarray(state.matrix.get_scores_from_ids(words))
            matches = scores > 0 if mask is None else (scores > 0) & mask
            positions = np.flatnonzero(matches)
            results.append(state.best(positions, scores[positions], k))
        return results

    def word_scores(self, query: str, documents: Sequence[str]) -> list[dict[str, float]]:
        """Returns what each word of a query adds to the scores of documents, the largest first.

        Words that add nothing are left out. A word that comes twice in the query counts twice.

        Args:
            query: a text.
            documents: ids of documents in the index.
        """
        (words,) = text_words([query])
        state = self._state
        positions = [state.positions[document] for document in documents]
        scores: list[dict[str, float]] = [{} for _ in documents]
        for word, count in collections.Counter(words).items():
            ids = state.word_ids(word)
            if not ids:
                continue
            values = count * np.asarray(state.matrix.get_scores_from_ids(ids))[positions]
            for own, value in zip(scores, values.tolist(), strict=True):
                own |= {word: value} if value > 0 else {}
        return [dict(sorted(own.items(), key=lambda item: -item[1])) for own in scores]

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document.

        Returns:
            "documents"; "matrix", "words", "ids", "texts" in bytes; "bytes per document" of all.
        """
        files = {"matrix": "*.index.*", "words": f"*.{WORDS}.npy", "ids": "doc*.json"}
        return self.file_sizes(files)

    @classmethod
    def load(cls, description: Mapping[str, Any], folder: Path) -> WordState:
        """Opens a snapshot; words and matrix are mapped."""
        require("bm25s")
        import bm25s

        matrix = None
        if (folder / "params.index.json").exists():
            matrix = bm25s.BM25.load(folder, mmap=True, load_vocab=False, show_progress=False)
        chunks = load_chunks(folder, description["chunks"], (WORDS,))
        return WordState(description, folder, chunks, matrix, read_array(folder / VOCABULARY))

    @classmethod
    def checked(cls, documents: Iterable[IndexDocument], state: WordState) -> Iterator[IndexEntry]:
        """Yields documents with the hashes of their words."""
        documents = iter(documents)
        stores_texts = bool(state.description.get("stores_texts"))
        while block := list(itertools.islice(documents, TEXTS_AT_ONCE)):
            for document in block:
                if not isinstance(document[1], str):
                    other = type(document[1]).__name__
                    raise InputError(f"document {document[0]!r}: expected a text, found {other}")
            words = text_words([document[1] for document in block])
            for document, own in zip(block, words, strict=True):
                yield make_entry(document, _hashes(own), stores_texts)

    @classmethod
    def encoded(
        cls, entries: Iterable[IndexEntry], state: WordState, folder: Path, numbers: Iterator[int]
    ) -> Iterator[Chunk]:
        """Writes documents in chunks."""
        return encode_chunks(entries, lambda words: {WORDS: words}, folder, numbers, CHUNK_WORDS)

    @classmethod
    def finish(cls, folder: Path, chunks: Sequence[Chunk], state: WordState) -> dict[str, Any]:
        """Makes the matrix of scores."""
        details = {name: state.description[name] for name in ("k1", "b")}
        every = [np.zeros(0, np.int64), *(chunk.arrays[WORDS] for chunk in chunks)]
        vocabulary, ids = np.unique(np.concatenate(every), return_inverse=True)
        np.save(folder / VOCABULARY, vocabulary)
        if len(vocabulary):
            lengths = np.concatenate([chunk.lengths for chunk in chunks])
            words = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
            matrix = empty_bm25(details["k1"], details["b"])
            names = {str(number): number for number in range(len(vocabulary))}
            matrix.index((words, names), show_progress=False, create_empty_token=False)
            matrix.save(folder, show_progress=False)
        return details

    @property
    def chunk_limit(self) -> int:
        """Returns the words of a chunk, at most."""
        return CHUNK_WORDS


def _hashes(words: Sequence[str]) -> Int64[np.ndarray, " n"]:
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, np.int64)
