"""One kind of task on one or several data sets: evaluate run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError, require
from embed_jax.registry import REGISTRY

from ..commands import OneLineParser, print_table
from . import embedders
from .data import add_data_arguments, describe_evaluation, training_texts

if TYPE_CHECKING:
    from embed_jax.evals.results import TaskResult


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them."""
    parser.add_argument(
        "--task", required=True, choices=list(REGISTRY["task"]), help="the kind of task"
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, such as seed=1; repeatable",
    )
    parser.add_argument(
        "--training",
        help="training data, separated by commas: test items that share 8 words in a row with "
        "them are counted, and "
        "the score without them is shown",
    )
    embedders.add_arguments(parser)
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument(
        "--k", default="10,100", help="cut-offs, separated by commas (default: 10,100)"
    )
    retrieval.add_argument("--baseline", choices=["bm25"], help="a baseline to compare with")
    retrieval.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out a document with the query's own id, as BEIR does: for ArguAna and Quora",
    )
    retrieval.add_argument(
        "--rerank",
        default="",
        metavar="CROSS_ENCODER",
        help="rerank the first results by this model: scores before, after, and the difference",
    )
    retrieval.add_argument(
        "--depth",
        type=int,
        default=100,
        help="how many results of a query --rerank orders (default: 100)",
    )

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        for option in ("k", "baseline", "ignore_identical_ids", "rerank"):
            if args.task != "retrieval" and getattr(args, option) != parser.get_default(option):
                parser.error(f"--{option.replace('_', '-')} is for --task retrieval")
        if args.depth != parser.get_default("depth") and not args.rerank:
            parser.error("--depth is for --rerank")
        if args.depth < 1:
            parser.error(f"--depth: expected 1 or more, found {args.depth}")

    return check


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates on each data set; prints a table and returns the results."""
    from embed_jax.evals.suite import evaluate

    options = dict(option(setting) for setting in args.set)
    if args.task == "retrieval":
        options = {"k": args.k, "ignore_identical_ids": args.ignore_identical_ids} | options
    entries = task_entries(args.task, args.data, args.split, options)
    tasks = [entry.open() for entry in entries]
    training = training_texts(args.training)
    model_options = embedders.read_options(args)
    scores_pairs = all(task.evaluate_pairs is not None for task in tasks)
    open_model = embedders.open_system if scores_pairs else embedders.open_embedder
    reranker = embedders.open_reranker(args.rerank, args.batch_tokens) if args.rerank else None
    system = open_model(args.model, model_options, show_progress=True)
    for model in filter(None, (args.model, args.rerank)):
        if line := embedders.published_line(model):
            print(f"published: {line}")
    about = describe_evaluation(args.task, args.model, args.data, args.split, model_options)
    first_stage = []
    if reranker is None:
        results = [
            evaluate(entry, args.model, system, task=task, training=training)
            for entry, task in zip(entries, tasks, strict=True)
        ]
    else:
        first_stage, results = two_stage_results(
            entries, tasks, system, reranker, depth=args.depth, training=training
        )
        about |= {"model": results[0].model, "reranker": args.rerank, "depth": args.depth}
    baseline = None
    if args.baseline:
        baseline = bm25_results(args.data, args.split, args.k, args.ignore_identical_ids)
    if len(results) == 1:
        print_one([*first_stage, *results], args.data, baseline)
    else:
        for several in filter(None, (first_stage, results)):
            if first_stage:
                print(several[0].model)
            print_several(several)
    for result in results:
        for caution in result.cautions():
            print(f"{result.name}: {caution}")
    content = as_json(about, results, baseline)
    if first_stage:
        content["first_stage"] = {"model": args.model, **scores_by_name(first_stage)}
        content["differences"] = compare_stages(first_stage, results)
    return content


def two_stage_results(
    entries: Sequence[Any],
    tasks: Sequence[Any],
    embed: Any,
    reranker: Any,
    *,
    depth: int,
    training: Callable[[], Any] | None,
) -> tuple[list[TaskResult], list[TaskResult]]:
    """Returns the results of each task by the first stage, and by both stages.

    Args:
        entries: the tasks' descriptions.
        tasks: the tasks.
        embed: the Embedder of the first stage.
        reranker: the Reranker of the second.
        depth: how many results of a query are reranked.
        training: returns training texts.
    """
    from embed_jax.evals.suite import make_result
    from embed_jax.evals.two_stages import evaluate_two_stages

    first_stage, results = [], []
    for entry, task in zip(entries, tasks, strict=True):
        stages = evaluate_two_stages(task, embed, reranker, depth=depth)
        search, reranking = stages.seconds
        first_stage.append(make_result(entry, task, embed.name, stages.first, seconds=search))
        details = {"rerank_ms_per_query": round(1000 * reranking / len(task.item_texts), 3)}
        results.append(
            make_result(
                entry,
                task,
                f"{embed.name} + {reranker.name}",
                stages.reranked,
                seconds=search + reranking,
                training=training,
                details=details,
            )
        )
    return first_stage, results


def compare_stages(
    first_stage: Sequence[TaskResult], results: Sequence[TaskResult]
) -> dict[str, Any]:
    """Prints the paired difference of each task's main score, and returns the figures by task."""
    from embed_jax.evals.significance import compare_items, verdict

    differences = {}
    for before, after in zip(first_stage, results, strict=True):
        difference = compare_items(after.outcome.items, before.outcome.items)
        sentence = verdict(
            difference.difference,
            difference.p_value,
            difference.interval,
            a="reranked",
            b="first stage",
        )
        took = after.details["rerank_ms_per_query"]
        print(f"{after.name}: {after.outcome.main}: {sentence} Reranking: {took:.1f} ms a query.")
        differences[after.name] = {
            "metric": after.outcome.main,
            "difference": difference.difference,
            "interval": difference.interval,
            "p": difference.p_value,
        }
    return differences


def task_entries(task: str, data: str, split: str, options: Mapping[str, Any]) -> list[Any]:
    """Returns the tasks of a kind on each of the data sets, with these options.

    Args:
        task: the kind of task.
        data: names separated by commas; for passkey, lengths.
        split: of each data set.
        options: of the tasks.
    """
    from embed_jax.evals.suite import Entry, named

    sets = data.split(",") if task != "passkey" else [data]
    names = [named(task, data_set, split) for data_set in sets]
    if len(set(names)) < len(names):
        names = sets
    if len(set(names)) < len(names):
        raise InputError(f"--data: expected different data sets, found {data}")
    return [
        Entry(task, data_set, split, name, "", dict(options))
        for data_set, name in zip(sets, names, strict=True)
    ]


def option(text: str) -> tuple[str, Any]:
    """Reads "seed=1" as ("seed", 1); values are read as in a suite's YAML."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set: expected NAME=VALUE, found {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def print_one(results: Sequence[TaskResult], data: str, baseline: Any) -> None:
    """Prints a table with a row per metric and a column per system, all on one data set."""
    outcome = results[0].outcome
    systems = {
        result.model: (result.outcome.metrics, result.outcome.intervals) for result in results
    }
    if baseline:
        systems["bm25"] = baseline.metrics, baseline.intervals()
    print(f"{data}: {len(outcome.items)} {results[0].unit}")
    print_table(
        ["metric", *systems],
        [
            [
                metric,
                *(
                    cell(metrics[metric], intervals.get(metric))
                    for metrics, intervals in systems.values()
                ),
            ]
            for metric in outcome.metrics
        ],
    )


def print_several(results: Sequence[TaskResult]) -> None:
    """Prints a row per data set, a column per metric with an interval, and the average."""
    columns = list(
        dict.fromkeys(metric for result in results for metric in result.outcome.intervals)
    )
    rows = [
        [
            result.name,
            str(len(result.outcome.items)),
            *(
                cell(result.outcome.metrics.get(metric), result.outcome.intervals.get(metric))
                for metric in columns
            ),
        ]
        for result in results
    ]
    average = averages(results)
    rows.append(["average", "", *(cell(average.get(metric), None) for metric in columns)])
    print_table(["data", results[0].unit, *columns], rows)


def averages(results: Sequence[TaskResult]) -> dict[str, float]:
    """Returns means over data sets of the metrics for which all have an interval."""
    import numpy as np

    common = [
        name
        for name in results[0].outcome.intervals
        if all(name in result.outcome.intervals for result in results)
    ]
    return {
        name: float(np.mean([result.outcome.metrics[name] for result in results]))
        for name in common
    }


def bm25_results(data: str, split: str, k: str, ignore_identical_ids: bool) -> Any:
    """Returns the RetrievalResult of BM25 on the same data."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.evals.retrieval import cut_offs, evaluate_search
    from embed_jax.retrieval.bm25 import bm25_search

    require("bm25s")
    if "," in data:
        raise InputError("--baseline: expected a single data set")
    task = open_retrieval_task(data, split)
    return evaluate_search(
        bm25_search, *task, ks=cut_offs(k), ignore_identical_ids=ignore_identical_ids
    )


def cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{value:.4f}"


def as_json(about: dict[str, Any], results: Sequence[TaskResult], baseline: Any) -> dict[str, Any]:
    """Returns the content of --output.

    Scores are fractions, n counts items; metrics of several data sets are named DATA/METRIC.
    """
    content = about
    if len(results) == 1:
        content = results[0].to_json() | content
    else:
        content |= scores_by_name(results) | {
            "n": sum(len(result.outcome.items) for result in results)
        }
    if baseline:
        content["baseline"] = {
            "name": "bm25",
            "metrics": baseline.metrics,
            "intervals": baseline.intervals(),
        }
    return content


def scores_by_name(results: Sequence[TaskResult]) -> dict[str, dict[str, Any]]:
    """Returns "metrics" and "intervals": those of one data set, or DATA/METRIC with the average."""
    if len(results) == 1:
        outcome = results[0].outcome
        return {"metrics": dict(outcome.metrics), "intervals": dict(outcome.intervals)}
    scores: dict[str, dict[str, Any]] = {
        part: {
            f"{result.name}/{metric}": value
            for result in results
            for metric, value in getattr(result.outcome, part).items()
        }
        for part in ("metrics", "intervals")
    }
    scores["metrics"] |= {f"average/{name}": value for name, value in averages(results).items()}
    return scores
