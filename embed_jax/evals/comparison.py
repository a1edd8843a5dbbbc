"""Was the fine-tuning worth it? A model before and after, and BM25, on one retrieval task."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embed_jax.atomic import replaced, write_whole
from embed_jax.evals.metrics import mean_interval
from embed_jax.evals.report import format_score, format_table
from embed_jax.evals.search import (
    Qrels,
    RetrievalResult,
    SearchTexts,
    TextsById,
    score_run,
    search_task,
    small_corpus,
)
from embed_jax.pictures import picture_style
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.topk import Encode, dense_search

SHOWN = ("ndcg@10", "mrr@10", "recall@10")
DEPTH = 10


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Three searches of one task, query by query.

    Attributes:
        corpus, queries, qrels: the task.
        runs: {"bm25" | "before" | "after": rankings}, ten documents a query.
        results: their scores.
        data: names the task in the picture.
        unchanged: says why the model after is the model before, if it is; else "".
    """

    corpus: TextsById
    queries: TextsById
    qrels: Qrels
    runs: dict[str, Run]
    results: dict[str, RetrievalResult]
    data: str = ""
    unchanged: str = ""

    @functools.cached_property
    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Computes 95 % bootstrap intervals of each search's scores."""
        return {name: result.intervals() for name, result in self.results.items()}

    def gain(self, other: str = "before", metric: str = "ndcg@10") -> tuple[float, float, float]:
        """Returns the mean difference, after - other, with its 95 % bootstrap interval.

        The difference is paired by query.
        """
        difference = self.results["after"].per_query[metric] - self.results[other].per_query[metric]
        low, high = mean_interval(difference)
        return float(difference.mean()), low, high

    def table(self) -> str:
        """Formats means with 95 % intervals, a row for each search."""
        rows = [
            [
                name,
                *(
                    format_score(result.metrics[metric], self.intervals[name][metric])
                    for metric in SHOWN
                ),
            ]
            for name, result in self.results.items()
        ]
        lines = [f"{len(self.queries)} queries, {len(self.corpus)} documents"]
        lines += [format_table(["", *SHOWN], rows)]
        return "\n".join([*lines, *filter(None, [small_corpus(len(self.corpus), DEPTH)])])

    def verdict(self) -> str:
        """Says in one sentence: adopt the new model or not, and why."""
        if self.unchanged:
            return f"Do not adopt it: {self.unchanged}."
        gain, low, high = self.gain()
        interval = f"{gain:+.4f} nDCG@10 (95 % interval {low:+.4f} to {high:+.4f})"
        over_bm25 = self.gain("bm25")[0]
        if low <= 0:
            reason = "worse than" if high < 0 else "not shown to be better than"
            return f"Do not adopt it: the new model is {reason} the old one, {interval}."
        if over_bm25 < 0:
            return (
                f"Do not adopt it yet: better than the old model, {interval}, but BM25 is ahead by "
                f"{-over_bm25:.4f}."
            )
        return (
            f"Adopt it: the new model is better than the old one, {interval}, and ahead of BM25 by "
            f"{over_bm25:.4f}."
        )

    def examples(self, count: int = 3) -> str:
        """Shows searches of queries evenly spread over the task, not chosen by their outcome.

        * marks relevant documents.
        """
        lines = []
        searched = list(self.qrels)
        for query in searched[:: max(len(searched) // count, 1)][:count]:
            lines.append(f"query: {_one_line(self.queries[query])}")
            for name in ("before", "after"):
                for rank, document in enumerate(list(self.runs[name][query])[:3], 1):
                    mark = "*" if self.qrels[query].get(document, 0) > 0 else " "
                    lines.append(f"  {name:6} {rank} {mark} {_one_line(self.corpus[document])}")
        return "\n".join(lines)

    def write(self, directory: Path) -> None:
        """Writes comparison.json and comparison.png."""
        names = ("gain", "low", "high")
        content = {
            "task": "retrieval",
            "n": len(self.qrels),
            "metrics": {name: result.metrics for name, result in self.results.items()},
            "intervals": self.intervals,
            "ndcg@10 after - before": dict(zip(names, self.gain(), strict=True)),
            "ndcg@10 after - bm25": dict(zip(names, self.gain("bm25"), strict=True)),
            "verdict": self.verdict(),
            "unchanged": bool(self.unchanged),
        }
        write_whole(directory / "comparison.json", json.dumps(content, indent=1) + "\n")
        self._plot(directory / "comparison.png")

    @picture_style()
    def _plot(self, output: Path) -> None:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        width = 0.8 / len(self.results)
        for place, (name, result) in enumerate(self.results.items()):
            means = np.array([result.metrics[metric] for metric in SHOWN])
            intervals = np.array([self.intervals[name][metric] for metric in SHOWN])
            spread = np.abs(intervals.T - means)
            at = np.arange(len(SHOWN)) + (place - (len(self.results) - 1) / 2) * width
            bars = axes.bar(at, means, width * 0.95, yerr=spread, capsize=3, label=name)
            axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
        axes.set_xticks(range(len(SHOWN)), SHOWN)
        axes.set(
            ylabel="score",
            ylim=(0, 1.12),
            title=f"{self.data or 'Held-out test'}: {len(self.qrels)} queries, 95 % intervals",
        )
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        with replaced(output) as beside:
            figure.savefig(beside, format="png")
        pyplot.close(figure)


def compare(
    before: tuple[Encode, Encode],
    after: tuple[Encode, Encode],
    task: tuple[TextsById, TextsById, Qrels],
    *,
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
    data: str = "",
    unchanged: str = "",
) -> Comparison:
    """Searches the task with BM25, the model before and the model after.

    Args:
        before: the functions of the old model that embed queries and documents.
        after: those of the new model.
        task: corpus, queries, relevance judgements.
        similarity: "cosine" or "dot", of both models.
        ignore_identical_ids: see `evaluate_retrieval`.
        data: names the task in the picture.
        unchanged: why the model after is the model before, if it is.

    Raises:
        InputError: as `check_qrels`, or if bm25s is missing.
    """
    corpus, queries, qrels = task
    searches: dict[str, SearchTexts] = {"bm25": bm25_search}
    for name, (encode_queries, encode_corpus) in {"before": before, "after": after}.items():
        searches[name] = functools.partial(
            dense_search, encode_queries, encode_corpus, similarity=similarity
        )
    runs, results = {}, {}
    for name, search in searches.items():
        runs[name] = search_task(
            search, corpus, queries, qrels, ks=(DEPTH,), ignore_identical_ids=ignore_identical_ids
        )
        results[name] = score_run(runs[name], qrels, ks=(DEPTH,))
    judged = {query: queries[query] for query in qrels}
    return Comparison(corpus, judged, qrels, runs, results, data, unchanged)


def _one_line(text: str, length: int = 100) -> str:
    words: Sequence[str] = text.split()
    line = " ".join(words)
    return line if len(line) <= length else line[: length - 3] + "..."
