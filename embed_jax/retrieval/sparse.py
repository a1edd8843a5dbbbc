"""Search by sparse embeddings: exact, through scipy's products of sparse matrices.

A product of CSR queries with the transposed corpus reads, for each word of a query, the documents
that have it: scipy's form of an inverted index. `write_word_weights` exports to engines on Lucene.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from embed_jax.atomic import write_whole
from embed_jax.errors import InputError
from embed_jax.retrieval.sparse_index import QUERY_BLOCK
from embed_jax.types import SparseRows

EncodeSparse = Callable[[Sequence[str]], SparseRows]


def sparse_top_k(
    queries: SparseRows, corpus: SparseRows | Iterable[SparseRows], k: int
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Finds the k rows of `corpus` of the largest products with each query; exact.

    Args:
        queries: scipy's CSR [Q, V].
        corpus: CSR [N, V], or an iterable of blocks of rows.
        k: the most results of a query.

    Returns:
        Scores, largest first, and numbers of rows. Equal scores keep the corpus' order. Rows that
        share no word with the query are not found: score -inf, row -1.

    Raises:
        InputError: for queries over another vocabulary than the corpus.

    >>> import scipy.sparse
    >>> rows = scipy.sparse.csr_array(np.array([[1, 0], [0, 1], [2, 0]], np.float32))
    >>> sparse_top_k(rows[:1], rows, k=3)[1]
    array([[ 2,  0, -1]], dtype=int32)
    """
    query_rows = queries.tocsr()
    scores = np.full((query_rows.shape[0], k), -np.inf, np.float32)
    rows = np.full((query_rows.shape[0], k), -1, np.int32)
    seen = 0
    for block in [corpus] if isinstance(corpus, SparseRows) else corpus:
        check_vocabulary(query_rows, block)
        transposed = block.tocsr().T.tocsr()  # by word: the documents that have it
        for start in range(0, query_rows.shape[0], QUERY_BLOCK):
            products = (query_rows[start : start + QUERY_BLOCK] @ transposed).tocsr()
            products.sort_indices()
            for number, (left, right) in enumerate(
                zip(products.indptr, products.indptr[1:], strict=False), start
            ):
                new = products.data[left:right], products.indices[left:right] + seen
                scores[number], rows[number] = _best(scores[number], rows[number], *new, k)
        seen += block.shape[0]
    return scores, rows


def _best(
    scores: np.ndarray, rows: np.ndarray, new_scores: np.ndarray, new_rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the k best so far with those of a block; of equal scores the earlier come first."""
    if len(new_scores) > k:  # only those that may be among the best
        limit = np.partition(new_scores, -k)[-k]
        chosen = new_scores >= limit
        new_scores, new_rows = new_scores[chosen], new_rows[chosen]
    positive = new_scores > 0.0
    scores = np.concatenate([scores, new_scores[positive]])
    rows = np.concatenate([rows, new_rows[positive]])
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


def check_vocabulary(queries: SparseRows, corpus: SparseRows) -> None:
    """Refuses queries over another vocabulary than the corpus.

    Raises:
        InputError: naming both sizes.
    """
    if queries.shape[1] != corpus.shape[1]:
        raise InputError(
            f"queries: expected embeddings over the corpus' {corpus.shape[1]} words, found "
            f"{queries.shape[1]}"
        )


def sparse_searcher(
    encode_queries: EncodeSparse, encode_corpus: EncodeSparse, corpus: Sequence[str]
) -> SparseSearcher:
    """Embeds a corpus for exact search by `sparse_top_k`.

    Raises:
        InputError: for an empty corpus.
    """
    if not corpus:
        raise InputError("the corpus is empty: nothing to search in")
    return SparseSearcher(encode_queries, encode_corpus(corpus))


class SparseSearcher:
    """Searches sparse embeddings of a corpus; made by `sparse_searcher`.

    Attributes:
        embeddings: scipy's CSR [N, V].
    """

    def __init__(self, encode_queries: EncodeSparse, embeddings: SparseRows):
        self.embeddings = embeddings
        self._encode_queries = encode_queries

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Returns scores and rows of each query's k best documents; see `sparse_top_k`."""
        return sparse_top_k(self._encode_queries(list(queries)), self.embeddings, k)

    def score(
        self, queries: Sequence[str], rows: Int[np.ndarray, "Q p"]
    ) -> Float[np.ndarray, "Q p"]:
        """Computes the score of each query with its own rows; -inf for row -1."""
        embedded = self._encode_queries(list(queries)).tocsr()
        check_vocabulary(embedded, self.embeddings)
        scores = np.full(rows.shape, -np.inf, np.float32)
        documents: Any = self.embeddings.tocsr()
        for number, row in enumerate(rows):
            own = row >= 0
            products = documents[row[own]] @ embedded[[number]].T
            scores[number, own] = products.toarray()[:, 0]
        return scores


def write_word_weights(
    path: str | os.PathLike,
    ids: Sequence[str],
    texts: Sequence[str],
    embeddings: SparseRows,
    words: Sequence[str],
    *,
    scale: float = 100.0,
) -> None:
    """Writes sparse embeddings as JSONL for engines on Lucene, such as Anserini.

    A line is {"id", "contents", "vector": {word: weight}}, with whole numbers as weights: rounded,
    after they are multiplied by `scale`; words whose weight rounds to 0 are left out. The file is
    written as a whole, or not at all.

    Args:
        path: the file.
        ids: of the texts.
        texts: to be shown with a result.
        embeddings: scipy's CSR [N, V].
        words: see `SparseEncoder.words`.
        scale: see above.

    Raises:
        InputError: for unequal numbers of ids, texts and rows, or another number of words.
    """
    rows = embeddings.tocsr()
    if not len(ids) == len(texts) == rows.shape[0] or len(words) != rows.shape[1]:
        raise InputError(
            f"word weights: expected as many ids and texts as rows, and a word for each column, "
            f"found {len(ids)}, {len(texts)} and {len(words)} for the shape {rows.shape}"
        )
    lines = []
    for name, text, start, stop in zip(ids, texts, rows.indptr, rows.indptr[1:], strict=False):
        weights = np.rint(rows.data[start:stop] * scale).astype(int).tolist()
        pairs = zip(rows.indices[start:stop], weights, strict=True)
        vector = {words[index]: weight for index, weight in pairs if weight}
        record = {"id": name, "contents": text, "vector": vector}
        lines.append(json.dumps(record, ensure_ascii=False))
    write_whole(Path(path), "".join(f"{line}\n" for line in lines))
