"""Two-stage retrieval: a search by embeddings, whose first results a cross-encoder reranks."""

from __future__ import annotations

import dataclasses
import time

from embed_jax.evals.retrieval import RetrievalTask
from embed_jax.evals.task import Embed, Outcome
from embed_jax.pair_scores import PairScorer
from embed_jax.retrieval.rerank import rerank


@dataclasses.dataclass(frozen=True)
class TwoStages:
    """Scores of the same queries before and after reranking.

    Attributes:
        first: of the search.
        reranked: of both stages.
        seconds: of the search and of the reranking.
    """

    first: Outcome
    reranked: Outcome
    seconds: tuple[float, float]


def evaluate_two_stages(
    task: RetrievalTask, embed: Embed, score: PairScorer, *, depth: int = 100
) -> TwoStages:
    """Searches a task, and scores the results as they are and reranked.

    Results beyond `depth` follow the reranked ones in the order of the search.

    Args:
        task: a task that `retrieval.open_task` opened.
        embed: the first stage; see `embedder.Embedder`.
        score: the second stage: scores pairs of query and document.
        depth: how many results of each query are reranked.

    Raises:
        InputError: for a depth below 1; see also `rerank`.
    """
    began = time.perf_counter()
    run = task.search(embed, depth)
    searched = time.perf_counter()
    reranked = rerank(score, run, task.corpus, task.queries, depth=depth)
    finished = time.perf_counter()
    for query, results in run.items():
        for document, first_score in list(results.items())[depth:]:
            reranked[query][document] = first_score
    seconds = searched - began, finished - searched
    return TwoStages(task.score(run), task.score(reranked), seconds)
