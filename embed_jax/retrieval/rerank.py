"""Reranking: the first results of a search in the order of a slower, better scorer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embed_jax.errors import InputError, warn
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.retrieval.fusion import Run


def rerank(
    score: PairScorer,
    run: Run,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    *,
    depth: int = 100,
) -> Run:
    """Orders the first results of each query by the scores of query and document.

    All pairs are scored in one call, so that the scorer can pack them by length. Of equal scores
    the larger document id comes first, as trec_eval has it. A warning says if the scores tell no
    query's documents apart, as those of a model whose training failed.

    Args:
        score: scores pairs of texts, higher is better.
        run: {query id: {document id: score}}, best first.
        corpus: documents by id.
        queries: queries by id.
        depth: how many results of each query are scored; later ones are left out.

    Returns:
        {query id: {document id: new score}}, best first.

    Raises:
        InputError: for a depth below 1.
        InputError, RunError: see `score_pairs`.

    >>> import numpy as np
    >>> run = {"q": {"d1": 0.9, "d2": 0.8}}
    >>> texts = {"d1": "long text", "d2": "short"}
    >>> shorter = lambda queries, passages: -np.array([len(text) for text in passages])
    >>> rerank(shorter, run, texts, {"q": "?"})
    {'q': {'d2': -5.0, 'd1': -9.0}}
    """
    if depth < 1:
        raise InputError(f"depth: expected 1 or more, found {depth}")
    pairs = [(query, document) for query in run for document in list(run[query])[:depth]]
    texts = [(queries[query], corpus[document]) for query, document in pairs]
    scores = score_pairs(score, texts, "rerank")
    by_query: dict[str, dict[str, float]] = {query: {} for query in run}
    for (query, document), value in zip(pairs, scores.tolist(), strict=True):
        by_query[query][document] = value
    _warn_of_equal_scores(by_query)
    return {
        query: dict(
            sorted(sorted(results.items(), reverse=True), key=lambda item: item[1], reverse=True)
        )
        for query, results in by_query.items()
    }


def _warn_of_equal_scores(run: Run) -> None:
    several = [list(results.values()) for results in run.values() if len(results) > 1]
    # Packing rounds the scores of one pair differently by this much.
    if several and all(np.ptp(scores) <= 1e-6 * max(map(abs, [1, *scores])) for scores in several):
        warn(
            f"rerank: the scores of all documents are equal for each of {len(several)} queries, so "
            "that this reranker cannot order them"
        )


def add_positives(
    run: Run, qrels: Mapping[str, Mapping[str, int]], corpus: Mapping[str, str], *, depth: int
) -> Run:
    """Puts every relevant document into its query's shortlist, in the place of the last others.

    A reranker is then measured by itself, without the documents that the first stage missed.

    Args:
        run: {query id: {document id: score}}, best first.
        qrels: {query id: {document id: relevance}}.
        corpus: documents by id; relevant ones that it lacks stay out.
        depth: results of a query, at least.
    """
    complete = {}
    for query, judged in qrels.items():
        results = list(run.get(query, ()))[:depth]
        missing = [
            document
            for document, relevance in judged.items()
            if relevance > 0 and document in corpus and document not in results
        ]
        relevant = {document for document, relevance in judged.items() if relevance > 0}
        room = max(depth - len(missing), 0)
        documents = results[:room] + [
            document for document in results[room:] if document in relevant
        ]
        complete[query] = {
            document: -float(rank) for rank, document in enumerate(documents + missing)
        }
    return complete
