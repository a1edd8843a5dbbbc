"""BM25 by bm25s: the baseline of dense models, and a first source of hard negatives."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import require
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.words import bigrams, word_pattern

K1, B = 1.5, 0.75  # bm25s' own defaults


def bm25_search(
    corpus: Mapping[str, str], queries: Mapping[str, str], k: int, *, k1: float = K1, b: float = B
) -> Run:
    """Finds each query's k best documents by BM25; see `BM25Searcher`.

    Args:
        corpus: documents by id.
        queries: queries by id.
        k: the largest number of documents for a query.
        k1: how soon repeated words stop counting.
        b: how much long documents are marked down, 0 to 1.

    Returns:
        {query id: {document id: score}}, best first; equal scores in the corpus' order. Documents
        that share no word with the query are not found, so there may be fewer than k.

    Raises:
        InputError: if bm25s is not installed.
    """
    names = list(corpus)
    scores, rows = bm25_searcher(list(corpus.values()), k1=k1, b=b).search(
        list(queries.values()), k
    )
    return {
        query: {names[row]: score for row, score in zip(documents, values, strict=True) if row >= 0}
        for query, documents, values in zip(queries, rows.tolist(), scores.tolist(), strict=True)
    }


def bm25_searcher(corpus: Sequence[str], *, k1: float = K1, b: float = B) -> BM25Searcher:
    """Indexes a corpus for BM25 (Robertson and Zaragoza 2009) with Lucene's idf.

    Words are runs of letters and digits in lower case, bm25s' English stop words removed, no
    stemming. The parts of an identifier are words: a fair baseline on code, and no loss on text. In
    scripts without blanks, such as Chinese and Thai, pairs of neighbouring characters are words;
    see `retrieval.words`.

    Args:
        corpus: documents.
        k1: how soon repeated words stop counting.
        b: how much long documents are marked down, 0 to 1.

    Raises:
        InputError: if bm25s is not installed.
    """
    words = text_words(corpus)
    index = empty_bm25(k1, b)
    if any(words):
        index.index(words, show_progress=False)
    return BM25Searcher(index if any(words) else None, len(corpus))


def empty_bm25(k1: float, b: float) -> Any:
    """Returns bm25s' index before it is given documents.

    Raises:
        InputError: bm25s is not installed.
    """
    require("bm25s")
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each index it builds
    return bm25s.BM25(k1=k1, b=b, method="lucene")


class BM25Searcher:
    """A corpus' index, made by `bm25_searcher`.

    Documents that share no word with a query are not found.
    """

    def __init__(self, index, size: int):
        self._index, self._size = index, size  # no index: no document has a word

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Returns scores and rows of each query's k best documents, best first.

        Equal scores are in the corpus' order. Where fewer are found: score -inf, row -1.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int32)
        for number, words in enumerate(text_words(queries)):
            # bm25s' own selection breaks ties at random; ours keeps the corpus' order.
            every = self._scores(words)
            kth = np.partition(every, -k)[-k] if k < self._size else 0
            candidates = np.flatnonzero((every >= kth) & (every > 0))
            best = candidates[np.argsort(-every[candidates], kind="stable")[:k]]
            scores[number, : len(best)], rows[number, : len(best)] = every[best], best
        return scores, rows

    def score(
        self, queries: Sequence[str], rows: Int[np.ndarray, "Q p"]
    ) -> Float[np.ndarray, "Q p"]:
        """Computes the score of each query with its own rows; -inf for row -1."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        for query_scores, row, words in zip(scores, rows, text_words(queries), strict=True):
            query_scores[row >= 0] = self._scores(words)[row[row >= 0]]
        return scores

    def _scores(self, words: Sequence[str]) -> Float[np.ndarray, " N"]:
        known = [
            word for word in words if self._index is not None and word in self._index.vocab_dict
        ]
        return self._index.get_scores(known) if known else np.zeros(self._size, np.float32)


def text_words(texts: Sequence[str]) -> list[list[str]]:
    """Returns the words of each text, as BM25 counts them; see `bm25_searcher`.

    Raises:
        InputError: bm25s is not installed.
    """
    require("bm25s")
    import bm25s

    tokens = bm25s.tokenize(
        [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts],
        token_pattern=word_pattern(),
        stopwords="en",
        return_ids=False,
        show_progress=False,
    )
    return [
        words if text.isascii() else [part for word in words for part in bigrams(word)]
        for text, words in zip(texts, tokens, strict=True)
    ]
