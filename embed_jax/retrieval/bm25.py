"""BM25 by bm25s: the baseline that a dense model has to beat."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import numpy as np

from embed_jax.errors import require
from embed_jax.retrieval.topk import Run

K1, B = 1.5, 0.75  # bm25s' own defaults
WORD = r"[^\W_]+"  # the parts of an identifier are words: a fair baseline on code, and no loss on text


def bm25_search(corpus: Mapping[str, str], queries: Mapping[str, str], k: int, *, k1: float = K1, b: float = B) -> Run:
    """Each query's k best documents by BM25 (Robertson and Zaragoza 2009) with Lucene's idf.

    Words are runs of letters and digits in lower case, bm25s' English stop words removed, no stemming.

    Args:
        corpus, queries: texts by id.
        k1: how soon repeated words stop counting.
        b: how much long documents are marked down, 0 to 1.

    Returns:
        {query id: {document id: score}}, best first; equal scores in the corpus' order. Documents that share no word
        with the query are not found, so there may be fewer than k.

    Raises:
        InputError: if bm25s is not installed.
    """
    require("bm25s", "search")
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each index it builds
    cut = functools.partial(bm25s.tokenize, token_pattern=WORD, stopwords="en", return_ids=False, show_progress=False)
    words, asked = cut(list(corpus.values())), cut(list(queries.values()))
    if not any(words):
        return {query: {} for query in queries}
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(words, show_progress=False)
    names = list(corpus)
    run: Run = {}
    for query, query_words in zip(queries, asked, strict=True):
        # bm25s' own selection breaks ties at random; ours keeps the corpus' order.
        known = [word for word in query_words if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(names), np.float32)
        kth = np.partition(scores, -k)[-k] if k < len(names) else 0
        candidates = np.flatnonzero((scores >= kth) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
        run[query] = {names[row]: float(scores[row]) for row in best}
    return run
