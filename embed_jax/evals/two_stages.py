"""Two-stage search: a first stage's results, and the same ones in the order of a reranker."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.evals.report import scores_by_name
from embed_jax.evals.results import TaskResult
from embed_jax.evals.retrieval import RetrievalTask
from embed_jax.evals.search import SearchTexts
from embed_jax.evals.significance import PairedDifference, compare_items, verdict
from embed_jax.evals.suite import Entry, make_result
from embed_jax.evals.task import NamedEvaluator, Outcome
from embed_jax.pair_scores import PairScorer
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.rerank import add_positives, rerank

METRICS = ("ndcg@10", "mrr@10", "map@100")  # while training


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The results of a first stage on a retrieval task, which a reranker orders anew.

    Attributes:
        task: the task.
        run: {query id: {document id: score}} of the first stage, best first.
        first_stage: its name, for tables.
        depth: how many results of each query are reranked.
        seconds: how long the search took.
    """

    task: RetrievalTask
    run: Run
    first_stage: str
    depth: int
    seconds: float = 0.0

    def rerank(self, score: PairScorer) -> Outcome:
        """Scores the first `depth` results of each query in the order of the reranker.

        Later results follow in the order of the first stage.

        Raises:
            InputError, RunError: see `rerank`.
        """
        reranked = rerank(score, self.run, self.task.corpus, self.task.queries, depth=self.depth)
        for query, results in self.run.items():
            for document, first_score in list(results.items())[self.depth :]:
                reranked[query][document] = first_score
        return self.task.score(reranked)

    def evaluator(self) -> NamedEvaluator:
        """Returns an evaluator for training: `score -> {"ndcg@10": ..., "mrr@10": ..., ...}`."""

        def evaluate(score: PairScorer) -> dict[str, float]:
            metrics = self.rerank(score).metrics
            return {name: metrics[name] for name in METRICS}

        return NamedEvaluator(evaluate, METRICS)


def make_shortlist(
    task: RetrievalTask,
    search: SearchTexts,
    first_stage: str,
    *,
    depth: int = 100,
    with_positives: bool = False,
) -> Shortlist:
    """Searches a task for the shortlist of each judged query.

    Args:
        task: a task that `retrieval.open_task` or `make_retrieval_task` made.
        search: the first stage, such as `bm25_search`, or `task.search_by(embed)` of a model.
        first_stage: its name, for tables.
        depth: results of a query that are reranked.
        with_positives: put every relevant document into the shortlist, and leave out what is beyond
            `depth`, so that only the reranker is measured; the first stage's name says so.
    """
    began = time.perf_counter()
    run = task.search(search, depth)
    if with_positives:
        run = add_positives(run, task.qrels, task.corpus, depth=depth)
        first_stage = f"{first_stage} with positives"
    return Shortlist(task, run, first_stage, depth, time.perf_counter() - began)


@dataclasses.dataclass(frozen=True)
class TwoStages:
    """Results of the same queries before and after reranking.

    Attributes:
        first: of the search.
        reranked: of both stages.
        depth: how many results of each query were reranked.
    """

    first: TaskResult
    reranked: TaskResult
    depth: int

    @functools.cached_property
    def difference(self) -> PairedDifference:
        """The paired difference of the main score, reranked less first stage."""
        return compare_items(self.reranked.outcome.items, self.first.outcome.items)

    def verdict(self) -> str:
        """Says in one sentence whether the reranker is better."""
        difference = self.difference
        return verdict(
            difference.difference,
            difference.p_value,
            difference.interval,
            a="reranked",
            b="first stage",
        )

    def summary(self) -> str:
        """Returns a line with the verdict on the main score and what reranking costs."""
        took = self.reranked.details["rerank_ms_per_query"]
        main = self.reranked.outcome.main
        return f"{self.reranked.name}: {main}: {self.verdict()} Reranking: {took:.1f} ms a query."

    def write(self, path: Path) -> None:
        """Writes the result of both stages, with `stages_as_json`."""
        details = {**self.reranked.details, **stages_as_json([self])}
        dataclasses.replace(self.reranked, details=details).write(path)


def compare_stages(
    entry: Entry,
    shortlist: Shortlist,
    score: PairScorer,
    reranker: str,
    *,
    training: Callable[[], Any] | None = None,
) -> TwoStages:
    """Reranks a shortlist, and returns the results before and after.

    Args:
        entry: describes the shortlist's task.
        shortlist: the results of the first stage.
        score: the second stage: scores pairs of query and document.
        reranker: its name, for tables.
        training: see `suite.evaluate`.

    Raises:
        InputError, RunError: see `rerank`.
    """
    task, first_stage = shortlist.task, shortlist.first_stage
    began = time.perf_counter()
    outcome = shortlist.rerank(score)
    seconds = time.perf_counter() - began
    before = task.score(shortlist.run)
    first = make_result(entry, task, first_stage, before, seconds=shortlist.seconds)
    reranked = make_result(
        entry,
        task,
        f"{first_stage} + {reranker}",
        outcome,
        seconds=shortlist.seconds + seconds,
        training=training,
        details={"rerank_ms_per_query": round(1000 * seconds / len(task.item_texts), 3)},
    )
    return TwoStages(first, reranked, shortlist.depth)


def stages_as_json(stages: Sequence[TwoStages]) -> dict[str, Any]:
    """Returns what a file of results has beside the scores of both stages.

    Args:
        stages: of each data set.

    Returns:
        "depth", "first_stage" with its "model", "metrics" and "intervals", and "differences" by
        data set: "metric", "difference", "interval", "p" and "verdict".
    """
    first = [each.first for each in stages]
    return {
        "depth": stages[0].depth,
        "first_stage": {"model": first[0].model, **scores_by_name(first)},
        "differences": {
            each.reranked.name: {
                "metric": each.reranked.outcome.main,
                "difference": each.difference.difference,
                "interval": each.difference.interval,
                "p": each.difference.p_value,
                "verdict": each.verdict(),
            }
            for each in stages
        },
    }
