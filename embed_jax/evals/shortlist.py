"""A fixed shortlist of a search task, ordered by a reranker."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import write_whole
from embed_jax.errors import InputError
from embed_jax.evals.retrieval import Qrels, RetrievalResult, TextsById, score_run, search_task
from embed_jax.evals.significance import paired_difference, verdict
from embed_jax.evals.task import NamedEvaluator
from embed_jax.pair_scores import PairScorer
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.rerank import add_positives, rerank
from embed_jax.retrieval.topk import Run

METRICS = ("ndcg@10", "mrr@10", "map@100")


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The results of a first stage, which a reranker orders anew.

    Attributes:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: relevance}}.
        run: {query id: {document id: score}} of the first stage, best first.
        first_stage: its name, for tables.
    """

    corpus: TextsById
    queries: TextsById
    qrels: Qrels
    run: Run
    first_stage: str = "first stage"

    def measure(self, score: PairScorer) -> RetrievalResult:
        """Orders the shortlists by `score`, and measures them at 10 and 100."""
        return self._metrics(rerank(score, self.run, self.corpus, self.queries, depth=self.depth))

    def first(self) -> RetrievalResult:
        """Measures the order of the first stage."""
        return self._metrics(self.run)

    @property
    def depth(self) -> int:
        """The length of the longest shortlist."""
        return max(map(len, self.run.values()), default=0)

    def evaluator(self) -> NamedEvaluator:
        """Returns an evaluator for training: `score -> {"ndcg@10": ..., "mrr@10": ..., ...}`."""

        def evaluate(score: PairScorer) -> dict[str, float]:
            metrics = self.measure(score).metrics
            return {name: metrics[name] for name in METRICS}

        return NamedEvaluator(evaluate, METRICS)

    def report(self, score: PairScorer) -> dict[str, object]:
        """Compares the reranker with the first stage.

        Returns:
            "queries", "depth", "ms_per_query" of the reranker, for each of METRICS the mean and its
            95 % interval of both stages, and the paired difference "gain" of nDCG@10 with interval,
            p-value and verdict.
        """
        began = time.monotonic()
        after = self.measure(score)
        took = time.monotonic() - began
        before = self.first()
        gain = paired_difference(after.per_query["ndcg@10"], before.per_query["ndcg@10"])
        content: dict[str, object] = {
            "task": "reranking",
            "queries": len(self.qrels),
            "depth": self.depth,
            "ms_per_query": 1000 * took / max(len(self.run), 1),
        }
        for name, result in ((self.first_stage, before), ("reranked", after)):
            intervals = result.intervals()
            content[name] = {
                metric: [result.metrics[metric], *intervals[metric]] for metric in METRICS
            }
        content["gain"] = {
            "ndcg@10": gain.difference,
            "interval": list(gain.interval),
            "p_value": gain.p_value,
            "verdict": verdict(
                gain.difference, gain.p_value, gain.interval, a="reranked", b=self.first_stage
            ),
        }
        return content

    def _metrics(self, run: Run) -> RetrievalResult:
        return score_run(run, self.qrels, ks=(10, 100))


def make_shortlist(
    task: tuple[TextsById, TextsById, Qrels],
    *,
    depth: int = 100,
    search: Callable[[TextsById, TextsById, int], Run] = bm25_search,
    name: str = "bm25",
    with_positives: bool = False,
    ignore_identical_ids: bool = False,
) -> Shortlist:
    """Searches a task for the shortlist of each judged query.

    Args:
        task: corpus, queries and relevance judgements.
        depth: results of a query.
        search: the first stage, `(corpus, queries, k) -> run`.
        name: of the first stage, for tables.
        with_positives: put every relevant document into the shortlist, so that only the reranker is
            measured.
        ignore_identical_ids: see `evaluate_retrieval`.

    Raises:
        InputError: see `check_qrels`.
    """
    corpus, queries, qrels = task
    run = search_task(
        search, corpus, queries, qrels, ks=(depth,), ignore_identical_ids=ignore_identical_ids
    )
    if with_positives:
        run = add_positives(run, qrels, corpus, depth=depth)
    return Shortlist(corpus, queries, qrels, run, name)


def format_report(content: dict) -> str:
    """Returns the table of `Shortlist.report`."""
    names = [name for name, value in content.items() if isinstance(value, dict) and name != "gain"]
    lines = [
        f"{content['queries']} queries, {content['depth']} candidates each, "
        f"{content['ms_per_query']:.1f} ms a query"
    ]
    lines.append(f"{'':12}" + "".join(f"{metric:>26}" for metric in METRICS))
    for name in names:
        cells = (
            f"{value:.4f} [{low:.3f}, {high:.3f}]"
            for value, low, high in (content[name][metric] for metric in METRICS)
        )
        lines.append(f"{name:12}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join([*lines, content["gain"]["verdict"]])


def write_report(content: dict, directory: Path) -> None:
    """Writes `reranking.json`."""
    write_whole(directory / "reranking.json", json.dumps(content, indent=1) + "\n")


def calibration_error(
    probabilities: Sequence[float] | Float[np.ndarray, " N"],
    labels: Sequence[int] | Float[np.ndarray, " N"],
    *,
    bins: int = 15,
) -> float:
    """Computes the expected calibration error of scores that are to be probabilities.

    sum_b (n_b / N) |mean label - mean probability| over `bins` bins of equal width (Guo et al.
    2017, "On Calibration of Modern Neural Networks", eq. 3).

    Args:
        probabilities: from 0 to 1.
        labels: 0 or 1.
        bins: number of bins.

    Raises:
        InputError: for unequal lengths, no item, or a value outside 0 to 1.

    >>> calibration_error([0.9, 0.9, 0.1, 0.1], [1, 1, 0, 0])
    0.1
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if p.shape != y.shape or p.ndim != 1 or not len(p):
        raise InputError(
            f"calibration: expected as many labels as scores, found {p.shape} and {y.shape}"
        )
    for name, values in (("scores", p), ("labels", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"calibration: expected {name} from 0 to 1, found others")
    index = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=y - p, minlength=bins)
    return round(float(np.abs(gaps).sum() / len(p)), 12)
