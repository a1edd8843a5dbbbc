"""Search in stages: retrievers, fusion, a reranker, a final cut. All of them are functions.

    pipeline = Pipeline(
        {"dense": index_retriever(index, model.encode_query), "bm25": index_retriever(words)},
        texts=index.texts,
        reranker=cross_encoder.score,
        shortlist=50,
    )
    search(pipeline, ["a query"], k=10).results        # [{id: score}], best first

What may be served is decided once, by ids and by a filter on fields, and holds at every stage: a
document outside is not returned even by a retriever that finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.fusion import Ranking, reciprocal_rank_fusion
from embed_jax.retrieval.indexes import Index
from embed_jax.retrieval.rerank import rerank

FUSED, RERANKED = "fused", "reranked"  # stages, beside the retrievers' names
Fusion = Callable[[Sequence[Mapping[str, float]]], Ranking]


@dataclasses.dataclass(frozen=True)
class Retriever:
    """A search in two steps, so that each can be timed.

    Attributes:
        find: `(encoded queries, k, allowed ids or None) -> [{id: score}]`, best first; that of an
            index takes options of its search too.
        encode: makes of texts what `find` takes, such as a model's `encode_query`.
    """

    find: Callable[..., list[Ranking]]
    encode: Callable[[Sequence[str]], Any] = list


def index_retriever(
    index: Index, encode: Callable[[Sequence[str]], Any] = list, **options: Any
) -> Retriever:
    """Returns the search in an index.

    Args:
        index: of any kind.
        encode: embeds queries; for BM25 they stay texts.
        **options: of the index' `search`, such as `candidates` and `probes`.
    """

    def find(queries: Any, k: int, allowed: Collection[str] | None, **own: Any) -> list[Ranking]:
        return index.search(queries, k, allowed=allowed, **{**options, **own})

    return Retriever(find, encode)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Stages of a search.

    Attributes:
        retrievers: by name.
        texts: returns the texts of ids, for the reranker, such as an index' `texts`.
        fusion: fuses the results of several retrievers.
        reranker: scores pairs of query and text, such as a cross-encoder's `score`, `score` of a
            late-interaction model, an API or a score file; None: no reranking.
        shortlist: how many documents each retriever finds and the reranker scores.
        select: returns the ids that a filter on fields selects, such as an index' `select`.
    """

    retrievers: Mapping[str, Retriever]
    texts: Callable[[Sequence[str]], Sequence[str]] | None = None
    fusion: Fusion = reciprocal_rank_fusion
    reranker: PairScorer | None = None
    shortlist: int = 100
    select: Callable[[Filter], Collection[str]] | None = None

    def __post_init__(self):
        if not self.retrievers:
            raise InputError("retrievers: expected one or more, found none")
        if self.shortlist < 1:
            raise InputError(f"shortlist: expected 1 or more, found {self.shortlist}")
        if self.reranker is not None and self.texts is None:
            raise InputError("reranker: needs texts, the function that returns the texts of ids")


@dataclasses.dataclass(frozen=True)
class SearchResults:
    """Ranking of a search.

    Attributes:
        results: {id: score} of each query, best first.
        stages: what each stage returned for each query: the retrievers by name, FUSED of several
            ones, RERANKED.
        seconds: of the whole call, by stage: "encode NAME", "search NAME", FUSED, RERANKED.
    """

    results: list[Ranking]
    stages: Mapping[str, list[Ranking]]
    seconds: Mapping[str, float]


def search(
    pipeline: Pipeline,
    queries: Sequence[str],
    k: int = 10,
    *,
    allowed: Collection[str] | None = None,
    where: Filter | None = None,
) -> SearchResults:
    """Searches with all stages.

    Without a reranker each retriever finds as many documents as `k` or the shortlist, whichever is
    more. With one, documents beyond the shortlist follow the scored ones in their order, with
    scores below the last.

    Args:
        pipeline: the stages.
        queries: texts.
        k: how many documents; fewer are returned where fewer are found.
        allowed: ids of the documents that may be returned; None: all.
        where: a filter on fields; see `filters`.

    Raises:
        InputError: for an empty query or one with a NUL, a k below 1, a filter on an unknown field
            or for a pipeline without `select`.
        InputError, RunError: by a stage.

    >>> find = lambda queries, k, allowed: [{"d1": 0.9, "d2": 0.8} for _ in queries]
    >>> texts = {"d1": "long text", "d2": "short"}
    >>> shorter = lambda queries, passages: [-len(text) for text in passages]
    >>> look_up = lambda ids: [texts[name] for name in ids]
    >>> pipeline = Pipeline({"any": Retriever(find)}, texts=look_up, reranker=shorter)
    >>> search(pipeline, ["a query"], k=1).results
    [{'d2': -5.0}]
    """
    check_queries(queries)
    if k < 1:
        raise InputError(f"k: expected 1 or more, found {k}")
    ids = _allowed(pipeline, allowed, where)
    seconds: dict[str, float] = {}
    stages: dict[str, list[Ranking]] = {}
    depth = max(k, pipeline.shortlist)
    for name, retriever in pipeline.retrievers.items():
        with _timed(seconds, f"encode {name}"):
            encoded = retriever.encode(list(queries))
        with _timed(seconds, f"search {name}"):
            rankings = retriever.find(encoded, depth, ids)
        stages[name] = [_only(ranking, ids) for ranking in rankings]
    results = next(iter(stages.values()))
    if len(stages) > 1:
        with _timed(seconds, FUSED):
            of_queries = zip(*stages.values(), strict=True)
            results = [pipeline.fusion(several) for several in of_queries]
        stages[FUSED] = results
    if pipeline.reranker is not None:
        with _timed(seconds, RERANKED):
            results = _reranked(pipeline, queries, results)
        stages[RERANKED] = results
    return SearchResults([dict(list(each.items())[:k]) for each in results], stages, seconds)


def check_queries(queries: Sequence[str]) -> None:
    """Raises an InputError for a query that is no text, is empty or contains a NUL character."""
    if isinstance(queries, str):
        raise InputError("queries: expected a list of texts, found a single text")
    for number, query in enumerate(queries):
        if not isinstance(query, str):
            raise InputError(f"query {number}: expected a text, found {type(query).__name__}")
        if not query.strip():
            raise InputError(f"query {number}: empty")
        if "\0" in query:
            raise InputError(f"query {number}: contains a NUL character")


def _allowed(
    pipeline: Pipeline, allowed: Collection[str] | None, where: Filter | None
) -> Collection[str] | None:
    """Returns the ids that may be returned; None: all."""
    if isinstance(allowed, str):
        raise InputError("allowed: expected a collection of ids, found a single text")
    ids = None if allowed is None else frozenset(allowed)
    if not where:
        return ids
    if pipeline.select is None:
        raise InputError("where: this pipeline has no fields to filter by, its select is not set")
    selected = frozenset(pipeline.select(where))
    return selected if ids is None else ids & selected


def _only(results: Ranking, ids: Collection[str] | None) -> Ranking:
    """Keeps what may be returned, whatever a retriever returns."""
    if ids is None:
        return results
    return {document: score for document, score in results.items() if document in ids}


def _reranked(
    pipeline: Pipeline, queries: Sequence[str], results: Sequence[Ranking]
) -> list[Ranking]:
    assert pipeline.reranker is not None and pipeline.texts is not None, "checked when it was made"
    run = {str(number): ranking for number, ranking in enumerate(results)}
    ids = list(dict.fromkeys(d for ranking in results for d in list(ranking)[: pipeline.shortlist]))
    corpus = dict(zip(ids, pipeline.texts(ids), strict=True))
    texts = dict(zip(run, queries, strict=True))
    scored = rerank(pipeline.reranker, run, corpus, texts, depth=pipeline.shortlist)
    for number, ranking in run.items():
        last = min(scored[number].values(), default=0.0)
        for rank, document in enumerate(list(ranking)[pipeline.shortlist :], 1):
            scored[number][document] = last - rank
    return [scored[number] for number in run]


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
