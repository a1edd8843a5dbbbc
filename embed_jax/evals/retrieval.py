"""Retrieval like BEIR's: search a corpus, score rankings by graded judgements."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.data.pairs import SearchTask, normal_form
from embed_jax.data.sources import open_retrieval_task
from embed_jax.errors import InputError, warn
from embed_jax.evals.metrics import RANKING_METRICS, mean_interval
from embed_jax.evals.task import (
    DOCUMENT,
    QUERY,
    Embed,
    NamedEvaluator,
    Outcome,
    Task,
    Use,
    mean_outcome,
)
from embed_jax.registry import unknown
from embed_jax.retrieval.passages import passage_search
from embed_jax.retrieval.topk import Encode, Run, dense_search, prompted
from embed_jax.scores import SIMILARITIES

SMALL_CORPUS = 10  # times the cut-off: a corpus with fewer documents is small
TextsById = Mapping[str, str]  # by id
SearchTexts = Callable[[TextsById, TextsById, int], Run]  # (corpus, queries, k) -> best first
Qrels = Mapping[str, Mapping[str, int]]  # query id -> {document id: relevance}


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    k: str = "10,100",
    similarity: str = "",
    ignore_identical_ids: bool = False,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> RetrievalTask:
    """Opens a retrieval task by BEIR's and mteb's protocol.

    The main score is nDCG at the cut-off 10, or at the lowest without it.

    Args:
        data: a file, a directory or a data set of the hub; see `open_retrieval_task`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        k: cut-offs, separated by commas.
        similarity: one of SIMILARITIES; the model's own if empty.
        ignore_identical_ids: see `evaluate_retrieval`.
        passage_words: cut documents into passages of this many words and take each document's best;
            0: whole documents, of which a model reads no more than its limit.
        passage_overlap: how many words a passage shares with the one before it.

    Raises:
        InputError: for data that cannot be read, judgements of unknown ids, or options out of
            range.
    """
    ks = cut_offs(k)
    if similarity and similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    if passage_words < 0 or not 0 <= passage_overlap < max(passage_words, 1):
        sizes = f"{passage_words} and {passage_overlap}"
        raise InputError(
            f"passage_words, passage_overlap: expected 0 or more, and less than it, found {sizes}"
        )
    return make_retrieval_task(
        open_retrieval_task(data, split),
        name=name,
        ks=ks,
        similarity=similarity,
        ignore_identical_ids=ignore_identical_ids,
        passage_words=passage_words,
        passage_overlap=passage_overlap,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalTask(Task):
    """A retrieval task, whose results can be reranked between search and scores.

    Attributes:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: relevance}}.
        search: finds each judged query's best documents, `(search, depth) -> run`: at least as many
            as the largest cut-off.
        search_by: makes the search of a model from its embeddings.
        score: scores a run.
    """

    corpus: TextsById
    queries: TextsById
    qrels: Qrels
    search: Callable[[SearchTexts, int], Run]
    search_by: Callable[[Embed], SearchTexts]
    score: Callable[[Run], Outcome]


def make_retrieval_task(
    data: SearchTask,
    *,
    name: str = "",
    ks: Sequence[int] = (10, 100),
    similarity: str = "",
    ignore_identical_ids: bool = False,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> RetrievalTask:
    """Makes a task of data that are read; see `open_task`.

    Args:
        data: corpus, queries and relevance judgements.
        name: the task's name, in tables and for prompts made for it.
        ks: cut-offs.
        similarity: one of SIMILARITIES; the model's own if empty.
        ignore_identical_ids: see `evaluate_retrieval`.
        passage_words: see `open_task`.
        passage_overlap: see `open_task`.

    Raises:
        InputError: see `check_qrels`.
    """
    corpus, queries, qrels = data
    check_qrels(corpus, queries, qrels)

    def search(search_texts: SearchTexts, depth: int) -> Run:
        return search_task(
            search_texts,
            corpus,
            queries,
            qrels,
            ks=[*ks, depth],
            ignore_identical_ids=ignore_identical_ids,
        )

    def search_by(embed: Embed) -> SearchTexts:
        return search_with(
            embed,
            functools.partial(Use, name, "Retrieval"),
            similarity=similarity or embed.similarity,
            passage_words=passage_words,
            passage_overlap=passage_overlap,
        )

    def score(run: Run) -> Outcome:
        main = 10 if 10 in ks else min(ks)
        notes = list(filter(None, [small_corpus(len(corpus), main)]))
        return mean_outcome(f"ndcg@{main}", score_run(run, qrels, ks=ks).per_query, notes=notes)

    return RetrievalTask(
        name,
        "Retrieval",
        "queries",
        [(queries[query],) for query in qrels],
        lambda embed: score(search(search_by(embed), max(ks))),
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        search=search,
        search_by=search_by,
        score=score,
    )


def search_with(
    embed: Embed,
    use: Callable[[str], Use],
    *,
    similarity: str,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> SearchTexts:
    """Returns the search for whole documents, or for their best passages, by embeddings.

    Args:
        embed: embeds texts.
        use: what it is told of texts of a side.
        similarity: one of SIMILARITIES.
        passage_words: see `open_task`.
        passage_overlap: see `open_task`.
    """
    embed_queries = functools.partial(embed, use=use(QUERY))
    embed_documents = functools.partial(embed, use=use(DOCUMENT))
    if not passage_words:
        return functools.partial(
            dense_search, embed_queries, embed_documents, similarity=similarity
        )
    return functools.partial(
        passage_search,
        embed_queries,
        embed_documents,
        similarity=similarity,
        words=passage_words,
        overlap=passage_overlap,
    )


def cut_offs(text: str) -> list[int]:
    """Reads cut-offs in a text, such as [10, 100] of "100,10".

    Raises:
        InputError: for a number that is not from 1 up.
    """
    numbers = str(text).split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise InputError(f"k: expected numbers from 1 up, separated by commas, found {text!r}")
    return sorted({int(number) for number in numbers})


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
