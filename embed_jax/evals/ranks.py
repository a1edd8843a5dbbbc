"""Ranks of the relevant documents of each query, and the metrics that they decide."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError
from embed_jax.evals import metrics
from embed_jax.evals.search import Qrels, TextsById, check_qrels
from embed_jax.scores import similarity_matrix, unit_length

BLOCK = 2**24  # similarities held at a time


@dataclasses.dataclass(frozen=True)
class Judged:
    """The right documents of each query, by rows: J judgements of Q queries.

    Attributes:
        query, document, grade: of each judgement above 0 of a document in the corpus.
        ideal: each query's grades, largest first, padded with 0.
        own: the row of the document that is no result of a query, its own text; -1 for none.
        place: of each of the N documents by id, the largest first: so equal scores rank, see
            `evaluate_search`.
    """

    query: Int[np.ndarray, " J"]
    document: Int[np.ndarray, " J"]
    grade: Int[np.ndarray, " J"]
    ideal: Int[np.ndarray, "Q W"]
    own: Int[np.ndarray, " Q"]
    place: Int[np.ndarray, " N"]


def judged_rows(
    corpus: TextsById, queries: TextsById, qrels: Qrels, *, ignore_identical_ids: bool = False
) -> Judged:
    """Returns the judgements by row; queries are in the order of `qrels`.

    Args:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: grade}}.
        ignore_identical_ids: see `search.evaluate_retrieval`.

    Raises:
        InputError: see `check_qrels`; or no document is relevant to any query.
    """
    check_qrels(corpus, queries, qrels, ignore_identical_ids=ignore_identical_ids)
    row_of = {name: row for row, name in enumerate(corpus)}
    judgements = [
        (row, row_of[document], grade)
        for row, judged in enumerate(qrels.values())
        for document, grade in judged.items()
        if grade > 0 and document in row_of
    ]
    if not judgements:
        raise InputError(f"qrels: none of {len(qrels)} queries has a relevant document")
    query, document, grade = np.array(judgements, np.int64).T
    grades = [
        sorted((g for g in judged.values() if g > 0), reverse=True) for judged in qrels.values()
    ]
    ideal = np.zeros((len(qrels), max(map(len, grades))), np.int64)
    for row, best in enumerate(grades):
        ideal[row, : len(best)] = best
    own = np.array([row_of.get(name, -1) if ignore_identical_ids else -1 for name in qrels])
    place = np.empty(len(corpus), np.int64)
    place[[row_of[name] for name in sorted(corpus, reverse=True)]] = np.arange(len(corpus))
    return Judged(query, document, grade, ideal, own, place)


def relevant_ranks(
    queries: Float[np.ndarray, "Q D"],
    corpus: Float[np.ndarray, "N D"],
    judged: Judged,
    similarity: str = "cosine",
) -> Int[np.ndarray, " J"]:
    """Computes the rank of each relevant document, from 1.

    A document that is not a result, such as the query's own text, has rank N + 1.
    """
    if similarity == "cosine":
        queries, corpus, similarity = unit_length(queries), unit_length(corpus), "dot"
    ranks = np.empty(len(judged.query), np.int64)
    rows = max(BLOCK // len(corpus), 1)
    for start in range(0, len(queries), rows):
        scores = similarity_matrix(queries[start : start + rows], corpus, similarity)
        own = judged.own[start : start + rows]
        scores[own >= 0, own[own >= 0]] = -np.inf
        for place in np.flatnonzero((judged.query >= start) & (judged.query < start + len(scores))):
            document, query_scores = judged.document[place], scores[judged.query[place] - start]
            before = judged.place < judged.place[document]
            above = np.sum(query_scores > query_scores[document]) + np.sum(
                before & (query_scores == query_scores[document])
            )
            ranks[place] = 1 + above if query_scores[document] > -np.inf else 1 + len(corpus)
    return ranks


def ndcg_of_ranks(
    ranks: Int[np.ndarray, " J"], judged: Judged, k: int = 10
) -> Float[np.ndarray, " Q"]:
    """Computes nDCG@k of each query; see `metrics.ndcg`."""
    gains = np.zeros((len(judged.ideal), k))
    in_top = ranks <= k
    gains[judged.query[in_top], ranks[in_top] - 1] = judged.grade[in_top]
    return metrics.ndcg(gains, judged.ideal, k)


def recall_of_ranks(
    ranks: Int[np.ndarray, " J"], judged: Judged, k: int
) -> Float[np.ndarray, " Q"]:
    """Computes recall@k of each query; see `metrics.recall`."""
    hits = np.bincount(judged.query[ranks <= k], minlength=len(judged.ideal))
    return hits / np.maximum((judged.ideal > 0).sum(axis=1), 1)
