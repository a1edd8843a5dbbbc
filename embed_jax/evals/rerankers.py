"""Several rerankers over the shortlists of several first stages, and samples for them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from embed_jax.data.pairs import SearchTask
from embed_jax.errors import InputError
from embed_jax.evals.metrics import calibration_error
from embed_jax.evals.retrieval import TextsById, make_retrieval_task
from embed_jax.evals.significance import compare_items
from embed_jax.evals.task import Outcome
from embed_jax.evals.two_stages import METRICS, Shortlist
from embed_jax.pair_scores import ACTIVATIONS, PairScorer, score_pairs
from embed_jax.retrieval.fusion import Run


def compare_rerankers(
    data: SearchTask,
    runs: Mapping[str, Run],
    rerankers: Mapping[str, PairScorer],
    probabilistic: Collection[str] = (),
) -> dict[str, Any]:
    """Compares rerankers with no reranker, over several shortlists of the same queries.

    Args:
        data: corpus, queries and relevance judgements.
        runs: the shortlist of each first stage by its name, best first; a query that is in one of
            them counts for all, with 0 where its shortlist is empty.
        rerankers: scorers of pairs by name, for which logits are best; see
            `retrieval.score_store.read_score_file`.
        probabilistic: names of the rerankers whose scores are the logits of probabilities.

    Returns:
        "queries", "depth", "ms_per_query" (empty, see the function of this name), and
        "first_stages": for each first stage and reranker, with "none" first, the mean and its 95 %
        interval of each of METRICS; except for "none" the paired difference "gain" of nDCG@10 with
        "interval" and "p"; and "calibration_error" of probabilities.

    Raises:
        InputError: for a run with an unknown query or document, or without a judged query.
    """
    corpus, queries, qrels = data
    searched = set(itertools.chain(*runs.values()))
    judged = {query: grades for query, grades in qrels.items() if query in searched}
    documents = {name for run in runs.values() for names in run.values() for name in names}
    unknown = (searched - judged.keys()) | (documents - corpus.keys())
    if unknown or not judged:
        raise InputError(
            f"expected runs of this task, found {len(unknown)} ids that it lacks, such as "
            f"{min(unknown, default='none')!r}"
        )
    task = make_retrieval_task((corpus, queries, judged))
    depth = max(len(results) for run in runs.values() for results in run.values())
    first_stages: dict[str, dict[str, Any]] = {}
    for first_stage, run in runs.items():
        shortlist, before = Shortlist(task, run, first_stage, depth), task.score(run)
        first_stages[first_stage] = {"none": _means(before)}
        for name, score in rerankers.items():
            after = shortlist.rerank(score)
            gain = compare_items(after.items, before.items)
            figures = first_stages[first_stage][name] = _means(after)
            figures["gain"] = {
                "ndcg@10": gain.difference,
                "interval": gain.interval,
                "p": gain.p_value,
            }
            if name in probabilistic:
                figures["calibration_error"] = shortlist_calibration(shortlist, score)
    sizes = {"queries": len(judged), "depth": depth}
    return {**sizes, "ms_per_query": {}, "first_stages": first_stages}


def _means(outcome: Outcome) -> dict[str, Any]:
    return {metric: [outcome.metrics[metric], *outcome.intervals[metric]] for metric in METRICS}


def shortlist_calibration(shortlist: Shortlist, logits: PairScorer) -> float:
    """Computes the calibration error of a reranker's probabilities over shortlists.

    See `metrics.calibration_error`. Documents without a judgement are not relevant.

    Args:
        shortlist: the shortlists.
        logits: gives the logits of the probabilities.
    """
    task = shortlist.task
    labels = [
        int(task.qrels[query].get(document, 0) > 0)
        for query, results in shortlist.run.items()
        for document in results
    ]
    scores = score_pairs(logits, _pairs(shortlist.run, task.corpus, task.queries))
    return calibration_error(ACTIVATIONS["sigmoid"](scores), labels)


def _pairs(run: Run, corpus: TextsById, queries: TextsById) -> list[tuple[str, str]]:
    return [
        (queries[query], corpus[document]) for query, results in run.items() for document in results
    ]


def ms_per_query(score: PairScorer, data: SearchTask, run: Run, number: int) -> float:
    """Measures the mean time in which a reranker scores a query's shortlist, in milliseconds.

    Shortlists are scored one after the other, all of them once before, to compile.

    Args:
        score: scores pairs.
        data: corpus, queries and relevance judgements.
        run: the shortlists.
        number: how many queries are used, the first ones.
    """
    corpus, queries, _ = data
    lists = [
        _pairs({query: results}, corpus, queries)
        for query, results in itertools.islice(run.items(), number)
    ]
    for _ in range(2):
        began = time.perf_counter()
        for pairs in lists:
            score_pairs(score, pairs)
        seconds = time.perf_counter() - began
    return 1000 * seconds / len(lists)


def sample_queries(data: SearchTask, number: int, seed: int = 0) -> SearchTask:
    """Returns a task with a random sample of its judged queries, in the order of the judgements.

    Of the same seed, a larger sample contains the smaller ones.

    Args:
        data: corpus, queries and relevance judgements.
        number: how many queries; all of them if there are not more.
        seed: of the sample.
    """
    corpus, queries, qrels = data
    names = list(qrels)
    rows = np.random.default_rng(seed).permutation(len(names))[:number]
    judged: dict[str, dict[str, int]] = {names[row]: qrels[names[row]] for row in sorted(rows)}
    return corpus, {name: queries[name] for name in judged}, judged
