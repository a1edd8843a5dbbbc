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

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        for option in ("k", "baseline", "ignore_identical_ids"):
            if args.task != "retrieval" and getattr(args, option) != parser.get_default(option):
                parser.error(f"--{option.replace('_', '-')} is for --task retrieval")

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
    embed = embedders.open_embedder(args.model, model_options, show_progress=True)
    line = embedders.published_line(args.model)
    if line:
        print(f"published: {line}")
    results = [
        evaluate(entry, args.model, embed, task=task, training=training)
        for entry, task in zip(entries, tasks, strict=True)
    ]
    baseline = None
    if args.baseline:
        baseline = bm25_results(args.data, args.split, args.k, args.ignore_identical_ids)
    if len(results) == 1:
        print_one(results[0], args.model, args.data, baseline)
    else:
        print_several(results)
    for result in results:
        for caution in result.cautions():
            print(f"{result.name}: {caution}")
    about = describe_evaluation(args.task, args.model, args.data, args.split, model_options)
    return as_json(about, results, baseline)


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


def print_one(result: TaskResult, model: str, data: str, baseline: Any) -> None:
    """Prints a table with a row per metric and a column per system."""
    outcome = result.outcome
    systems = {model: (outcome.metrics, outcome.intervals)}
    if baseline:
        systems["bm25"] = baseline.metrics, baseline.intervals()
    print(f"{data}: {len(outcome.items)} {result.unit}")
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
        flat: dict[str, Mapping[str, Any]] = {
            part: {
                f"{result.name}/{metric}": value
                for result in results
                for metric, value in getattr(result.outcome, part).items()
            }
            for part in ("metrics", "intervals")
        }
        flat["metrics"] = {
            **flat["metrics"],
            **{f"average/{name}": value for name, value in averages(results).items()},
        }
        content |= flat | {"n": sum(len(result.outcome.items) for result in results)}
    if baseline:
        content["baseline"] = {
            "name": "bm25",
            "metrics": baseline.metrics,
            "intervals": baseline.intervals(),
        }
    return content
