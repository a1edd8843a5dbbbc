"""Whole pipelines on a retrieval task: quality, what each stage lost, and what each costs.

1 - nDCG@10 has two parts: documents that retrieval missed, which no reranker can bring back, and
the order of those that it found:

    missed = 1 - nDCG of the shortlist in the best order        order = that - nDCG of the results
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.evals.budget import Costs, StageTimes, time_stages
from embed_jax.evals.metrics import mean_interval
from embed_jax.evals.retrieval import RetrievalTask
from embed_jax.evals.search import Qrels, score_run
from embed_jax.evals.significance import PairedDifference, compare_items
from embed_jax.evals.task import Items, Outcome
from embed_jax.pair_scores import PairScorer
from embed_jax.pictures import picture_style
from embed_jax.retrieval.fusion import Ranking
from embed_jax.retrieval.search import FUSED, RERANKED, Pipeline, search

CUT_OFF, DEPTH = 10, 100


@dataclasses.dataclass(frozen=True)
class PipelineOutcome:
    """A pipeline's scores on a task, and the share of each stage.

    Attributes:
        outcome: of the final results.
        shares: mean and 95 % interval of: "missed" and "order", see the module; "recall NAME", the
            share of relevant documents that each retriever, or FUSED, brings into the shortlist.
        gain: of the reranker, in nDCG@10; None without one.
        times: of the queries that were timed; None for none.
        costs: to add to the times, of a stage whose scores were read.
        bytes_per_document: of the indexes.
    """

    outcome: Outcome
    shares: Mapping[str, tuple[float, float, float]]
    gain: PairedDifference | None
    times: StageTimes | None
    costs: Costs
    bytes_per_document: float

    @property
    def milliseconds(self) -> tuple[float, float] | None:
        """Returns p50 and p95 of a query, of all stages."""
        if self.times is None:
            return None
        p50, p95 = np.percentile(self.times.totals, (50, 95)).tolist()
        extra = self.costs.total(self.times.shortlist)
        return p50 + extra, p95 + extra

    def to_json(self) -> dict[str, Any]:
        """Returns what a results file has."""
        return {
            "metrics": dict(self.outcome.metrics),
            "intervals": {name: list(pair) for name, pair in self.outcome.intervals.items()},
            "shares": {name: list(values) for name, values in self.shares.items()},
            "gain": self.gain
            and {
                "difference": self.gain.difference,
                "interval": list(self.gain.interval),
                "p": self.gain.p_value,
            },  # fmt: skip
            "milliseconds": self.milliseconds,
            "stages": self.times and self.times.percentiles(),
            "bytes_per_document": self.bytes_per_document,
        }


def evaluate_pipeline(
    pipeline: Pipeline,
    task: RetrievalTask,
    *,
    reranker: PairScorer | None = None,
    timed_queries: int = 20,
    costs: Costs | None = None,
    bytes_per_document: float = 0.0,
) -> PipelineOutcome:
    """Searches a task's queries with a pipeline over its corpus, and scores every stage.

    Args:
        pipeline: the stages.
        task: by `make_retrieval_task` or `retrieval.open_task`.
        reranker: gives the same scores as the pipeline's, and takes its place wherever time is not
            measured, such as `RememberedScores`; None: the pipeline's.
        timed_queries: the first ones are timed, one after the other; 0: none.
        costs: added to the times: of a reranker whose scores are read from a file.
        bytes_per_document: of the indexes, for tables.

    Raises:
        InputError, RunError: see `search`.
    """
    queries = {name: task.queries[name] for name in task.qrels}
    # A reranker that remembers nothing yet has the length 0.
    untimed = pipeline if reranker is None else dataclasses.replace(pipeline, reranker=reranker)
    searched = search(untimed, list(queries.values()), DEPTH)

    def run_of(results: Sequence[Ranking]) -> dict[str, Ranking]:
        return dict(zip(queries, results, strict=True))

    outcome = task.score(run_of(searched.results))
    last = FUSED if FUSED in searched.stages else next(iter(searched.stages))
    shortlist = run_of([first(each, pipeline.shortlist) for each in searched.stages[last]])
    best = score_run(in_best_order(shortlist, task.qrels), task.qrels, ks=[CUT_OFF])
    final = score_run(run_of(searched.results), task.qrels, ks=[CUT_OFF])
    name = f"ndcg@{CUT_OFF}"
    ideal, reached = best.per_query[name], final.per_query[name]
    shares = {"missed": _mean(1 - ideal), "order": _mean(ideal - reached)}
    for stage, results in searched.stages.items():
        if stage != RERANKED:
            recall = score_run(run_of(results), task.qrels, ks=[pipeline.shortlist])
            shares[f"recall {stage}"] = _mean(recall.per_query[f"recall@{pipeline.shortlist}"])
    gain = None
    if pipeline.reranker is not None:
        before = score_run(shortlist, task.qrels, ks=[CUT_OFF]).per_query[name]
        gain = compare_items(Items(np.asarray(reached)), Items(np.asarray(before)))
    timed = list(queries.values())[:timed_queries]
    times = time_stages(pipeline, timed, CUT_OFF) if timed else None
    return PipelineOutcome(outcome, shares, gain, times, costs or Costs(), bytes_per_document)


def first(results: Ranking, count: int) -> Ranking:
    """Returns the first results."""
    return dict(list(results.items())[:count])


def in_best_order(run: Mapping[str, Ranking], qrels: Qrels) -> dict[str, Ranking]:
    """Returns each query's results with those of the highest grades first."""
    return {
        query: {
            document: float(qrels[query].get(document, 0))
            for document in sorted(results, key=lambda name: -qrels[query].get(name, 0))
        }
        for query, results in run.items()
    }


def _mean(values: Float[np.ndarray, " Q"]) -> tuple[float, float, float]:
    return (float(values.mean()), *mean_interval(values))


# ---- tables and pictures -------------------------------------------------------------------------


def pipelines_table(
    outcomes: Mapping[str, PipelineOutcome],
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a table with a pipeline in each row.

    Args:
        outcomes: by the pipelines' names.
    """
    header = ["pipeline", "nDCG@10", "recall@100", "missed", "order", "p50 ms", "p95 ms", "bytes"]
    rows = []
    for name, each in outcomes.items():
        times = each.milliseconds or ("", "")
        metrics, intervals = each.outcome.metrics, each.outcome.intervals
        rows.append(
            [
                name,
                *(
                    "{:.3f} [{:.3f}, {:.3f}]".format(metrics[metric], *intervals[metric])
                    for metric in (f"ndcg@{CUT_OFF}", f"recall@{DEPTH}")
                ),
                f"{each.shares['missed'][0]:.3f}",
                f"{each.shares['order'][0]:.3f}",
                *(f"{value:,.1f}" if value != "" else "" for value in times),
                f"{each.bytes_per_document:,.0f}",
            ]
        )
    return header, rows


@picture_style()
def plot_pipelines(data: Mapping[str, Mapping[str, PipelineOutcome]], output: Any) -> None:
    """Draws nDCG@10 with its interval against the median milliseconds of a query.

    Args:
        data: the outcomes by pipeline, by data set: a panel for each.
        output: the file to write, .png, .pdf or .svg.
    """

    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(data), figsize=(8 * len(data), 6), layout="constrained", squeeze=False
    )
    for axes, (title, outcomes) in zip(panels[0], data.items(), strict=True):
        axes.set(title=title, xlabel="ms per query, median (log scale)", ylabel="nDCG@10")
        axes.set_xscale("log")
        timed = {
            name: (each.milliseconds[0], each.outcome.metrics["ndcg@10"], each)
            for name, each in outcomes.items()
            if each.milliseconds
        }
        # Labels in a column beside the panel, in the order of the points: none covers another.
        by_height = sorted(timed, key=lambda name: (timed[name][1], name))
        heights = dict(zip(by_height, np.linspace(0.02, 0.98, max(len(timed), 2)), strict=False))
        for name, (x, y, each) in timed.items():
            low, high = each.outcome.intervals["ndcg@10"]
            color, marker = ("C0", "o") if each.gain is None else ("C3", "s")
            axes.errorbar(x, y, [[y - low], [high - y]], fmt=marker, color=color, capsize=2)
            axes.annotate(
                name,
                (x, y),
                (1.03, heights[name]),
                textcoords="axes fraction",
                va="center",
                fontsize=9,
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "alpha": 0.35,
                    "linewidth": 0.8,
                    "relpos": (0, 0.5),
                },
            )
    figure.legend(
        handles=[
            pyplot.Line2D([], [], color="C0", marker="o", linestyle="", label="retrieval"),
            pyplot.Line2D([], [], color="C3", marker="s", linestyle="", label="reranked"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.savefig(output, dpi=120)
    pyplot.close(figure)
