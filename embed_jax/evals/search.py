"""Searches and their scores: rankings of a corpus for queries, against graded judgements."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.data.pairs import normal_form
from embed_jax.errors import InputError, warn
from embed_jax.evals.metrics import RANKING_METRICS, mean_interval
from embed_jax.evals.task import NamedEvaluator
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.topk import Encode, dense_search, prompted

SMALL_CORPUS = 10  # times the cut-off: a corpus with fewer documents is small
TextsById = Mapping[str, str]  # by id
SearchTexts = Callable[[TextsById, TextsById, int], Run]  # (corpus, queries, k) -> best first
Qrels = Mapping[str, Mapping[str, int]]  # query id -> {document id: relevance}


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """Scores of a run, as fractions.

    Attributes:
        query_ids: the judged queries, in the order of the judgements.
        per_query: {"ndcg@10": [Q], ...}, in the order of `query_ids`.
    """

    query_ids: Sequence[str]
    per_query: Mapping[str, Float[np.ndarray, " Q"]]

    @property
    def metrics(self) -> dict[str, float]:
        """Computes the means over queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def intervals(self, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
        """Computes bootstrap intervals of the means, over queries.

        The resamples are the same for each metric.
        """
        return {
            name: mean_interval(values, confidence=confidence)
            for name, values in self.per_query.items()
        }


def evaluate_retrieval(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: TextsById,
    queries: TextsById,
    qrels: Qrels,
    *,
    ks: Sequence[int] = (10,),
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
) -> RetrievalResult:
    """Searches the corpus with each judged query and scores the rankings; see `score_run`.

    Args:
        encode_queries: embeds queries.
        encode_corpus: embeds documents.
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: relevance}}; queries without judgements are not searched.
        ks: cut-offs.
        similarity: one of SIMILARITIES.
        ignore_identical_ids: a document with the query's own id is not a result, as BEIR has it for
            ArguAna and Quora, whose queries are documents. BEIR does so by default, which is wrong
            where ids coincide by chance.

    Raises:
        InputError: see `check_qrels`.
    """
    search = functools.partial(dense_search, encode_queries, encode_corpus, similarity=similarity)
    return evaluate_search(
        search, corpus, queries, qrels, ks=ks, ignore_identical_ids=ignore_identical_ids
    )


def evaluate_search(
    search: Callable[[TextsById, TextsById, int], Run],
    corpus: TextsById,
    queries: TextsById,
    qrels: Qrels,
    *,
    ks: Sequence[int] = (10,),
    ignore_identical_ids: bool = False,
) -> RetrievalResult:
    """Evaluates any `search(corpus, queries, k)`, such as `bm25_search`.

    See `evaluate_retrieval` for the other arguments.
    """
    run = search_task(
        search, corpus, queries, qrels, ks=ks, ignore_identical_ids=ignore_identical_ids
    )
    return score_run(run, qrels, ks=ks)


def search_task(
    search: SearchTexts,
    corpus: TextsById,
    queries: TextsById,
    qrels: Qrels,
    *,
    ks: Sequence[int] = (10,),
    ignore_identical_ids: bool = False,
) -> Run:
    """Searches the judged queries' best documents, as many as the largest cut-off.

    See `evaluate_retrieval` for the arguments. The corpus is searched from the largest id to the
    smallest: where a search keeps that order for equal scores, as ours do, the larger id comes
    first, as trec_eval has it.
    """
    check_qrels(corpus, queries, qrels, ignore_identical_ids=ignore_identical_ids)
    judged = {query: queries[query] for query in qrels}
    corpus = dict(sorted(corpus.items(), reverse=True))
    run = search(corpus, judged, max(ks) + ignore_identical_ids)
    if ignore_identical_ids:
        run = {
            query: dict(
                itertools.islice(((d, s) for d, s in ranking.items() if d != query), max(ks))
            )
            for query, ranking in run.items()
        }
    return run


def score_run(run: Run, qrels: Qrels, *, ks: Sequence[int] = (10,)) -> RetrievalResult:
    """Computes nDCG, MRR, recall and MAP at each cut-off, defined as trec_eval's.

    See `embed_jax.evals.metrics`.

    Args:
        run: {query id: {document id: score}}, *best first*: the order counts, not the scores, so
            ties are the search's business. A judged query that is missing scores 0 (pytrec_eval
            leaves it out).
        qrels: judgements; documents without a judgement are not relevant.
        ks: cut-offs.
    """
    if not qrels or min(ks, default=0) < 1:
        raise InputError(
            f"expected judged queries and cut-offs from 1 up, found {len(qrels)} queries, cut-offs "
            f"{ks}"
        )
    depth = max(ks)
    gains = np.zeros((len(qrels), depth))
    ideal = np.zeros((len(qrels), max(1, *(len(judged) for judged in qrels.values()))))
    for row, (query, judged) in enumerate(qrels.items()):
        grades = [judged.get(document, 0) for document in list(run.get(query, ()))[:depth]]
        gains[row, : len(grades)] = grades
        ideal[row, : len(judged)] = sorted(judged.values(), reverse=True)
    scores = {
        f"{name}@{k}": metric(gains, ideal, k)
        for name, metric in RANKING_METRICS.items()
        for k in ks
    }
    return RetrievalResult(list(qrels), scores)


def small_corpus(documents: int, k: int = 10) -> str | None:
    """Returns a line if a corpus is so small that differences show nothing.

    In a small corpus most searches score high.
    """
    if documents >= SMALL_CORPUS * k:
        return None
    share = min(k / max(documents, 1), 1.0)
    return (
        f"only {documents} documents: in random order {100 * share:.0f} % of the relevant ones are "
        f"among the first {k}; such a search can't show that a model is good, or better than "
        "another"
    )


def check_qrels(
    corpus: TextsById, queries: TextsById, qrels: Qrels, *, ignore_identical_ids: bool = True
) -> None:
    """Checks that the judgements match queries and corpus.

    A judged document that is not in the corpus is one that no search finds.

    Args:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: relevance}}.
        ignore_identical_ids: False warns if queries would find themselves.

    Raises:
        InputError: nothing is judged, a query is unknown, or none of the judged documents is in the
            corpus.
    """
    if not qrels:
        raise InputError("qrels: no judgement")
    for query in qrels:
        if query not in queries:
            raise InputError(f"qrels: query {query!r} is not among the {len(queries)} queries")
    if not any(document in corpus for judged in qrels.values() for document in judged):
        raise InputError(
            f"qrels: none of the judged documents is among the {len(corpus)} documents"
        )
    if not ignore_identical_ids and (line := self_matches(corpus, queries, qrels)):
        warn(line)


def self_matches(corpus: TextsById, queries: TextsById, qrels: Qrels) -> str | None:
    """Returns a line if queries are documents that would find themselves.

    These have equal ids and equal texts, and are not judged relevant to themselves.
    """
    count = sum(
        query in corpus
        and judged.get(query, 0) <= 0
        and normal_form(queries[query])
        in (normal_form(corpus[query]), normal_form(getattr(corpus[query], "body", corpus[query])))
        for query, judged in qrels.items()
    )
    if not count:
        return None
    return (
        f"{count} of {len(qrels)} queries are documents of the corpus, with the same id and text, "
        "and find themselves first: leave them out of the results with --ignore-identical-ids, "
        "config.eval.ignore_identical_ids or ignore_identical_ids=True"
    )


def retrieval_evaluator(
    corpus: TextsById,
    queries: TextsById,
    qrels: Qrels,
    *,
    ks: Sequence[int] = (10,),
    similarity: str = "cosine",
    query_prompt: str = "",
    corpus_prompt: str = "",
    ignore_identical_ids: bool = False,
) -> NamedEvaluator:
    """Returns an evaluator for training: `encode -> {"ndcg@10": ..., "mrr@10": ..., ...}`.

    See `evaluate_retrieval`. With a prompt for either, `encode` is called as `encode(texts,
    prompt=...)` for both. The evaluator's attribute `metrics` lists the names of its metrics.

    Raises:
        InputError: at once, see `check_qrels`.
    """
    check_qrels(corpus, queries, qrels, ignore_identical_ids=ignore_identical_ids)

    def evaluate(encode: Encode) -> dict[str, float]:
        result = evaluate_retrieval(
            *prompted(encode, query_prompt, corpus_prompt),
            corpus,
            queries,
            qrels,
            ks=ks,
            similarity=similarity,
            ignore_identical_ids=ignore_identical_ids,
        )
        return result.metrics

    return NamedEvaluator(evaluate, tuple(f"{name}@{k}" for name in RANKING_METRICS for k in ks))
