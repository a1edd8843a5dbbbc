"""One kind of task on one or several data sets: evaluate run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError, require
from embed_jax.registry import REGISTRY

from ..commands import OneLineParser, check_picture, print_table
from . import embedders, pipelines
from .data import add_data_arguments, describe_evaluation, training_texts

if TYPE_CHECKING:
    from embed_jax.evals.results import TaskResult


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them."""
    parser.add_argument(
        "--task", required=True, choices=list(REGISTRY["task"]), help="the kind of task"
    )
    add_data_arguments(parser, needs_model=False)
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
    retrieval.add_argument(
        "--with-positives",
        action="store_true",
        help="put every relevant document among those that --rerank orders",
    )

    pipelines.add_arguments(parser)

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        if bool(args.model) == bool(args.pipeline):
            parser.error("expected --model, or --pipeline for --task retrieval")
        if args.pipeline and (args.task != "retrieval" or args.rerank or args.baseline):
            parser.error("--pipeline: for --task retrieval, without --rerank and --baseline")
        for option in ("models", "scores", "indexes", "costs", "sample", "table", "plot"):
            if getattr(args, option) and not args.pipeline:
                parser.error(f"--{option}: for --pipeline")
        for option in ("k", "ignore_identical_ids", "training", *embedders.OPTIONS):
            if args.pipeline and getattr(args, option) != parser.get_default(option):
                parser.error(f"--{option.replace('_', '-')}: not for --pipeline")
        if args.sample < 0 or args.sample == 1:
            parser.error(f"--sample: expected 2 or more, or 0 for all, found {args.sample}")
        if args.timed_queries < 0:
            parser.error(f"--timed-queries: expected 0 or more, found {args.timed_queries}")
        check_picture(parser, "--plot", args.plot)
        for option in ("k", "baseline", "ignore_identical_ids", "rerank"):
            if args.task != "retrieval" and getattr(args, option) != parser.get_default(option):
                parser.error(f"--{option.replace('_', '-')} is for --task retrieval")
        for option in ("depth", "with_positives"):
            if getattr(args, option) != parser.get_default(option) and not args.rerank:
                parser.error(f"--{option.replace('_', '-')} is for --rerank")
        if args.depth < 1:
            parser.error(f"--depth: expected 1 or more, found {args.depth}")

    return check


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates on each data set; prints a table and returns the results."""
    from embed_jax.evals.report import data_sets_table, systems_table
    from embed_jax.evals.suite import evaluate
    from embed_jax.evals.two_stages import compare_stages, make_shortlist, stages_as_json

    options = dict(option(setting) for setting in args.set)
    if args.task == "retrieval":
        options = {"k": args.k, "ignore_identical_ids": args.ignore_identical_ids} | options
    entries = task_entries(args.task, args.data, args.split, options)
    tasks = [entry.open() for entry in entries]
    if args.pipeline:
        return pipelines.evaluate_pipelines(
            pipelines.pipeline_files(args.pipeline),
            {entry.name: task for entry, task in zip(entries, tasks, strict=True)},
            models=pipelines.roles(args.models, "models"),
            score_files=pipelines.roles(args.scores, "scores"),
            costs=args.costs,
            sample=args.sample,
            seed=args.seed,
            indexes=args.indexes,
            timed_queries=args.timed_queries,
            table=args.table,
            plot=args.plot,
            compute_dtype=args.compute_dtype,
        )
    training = training_texts(args.training)
    model_options = embedders.read_options(args)
    scores_pairs = all(task.evaluate_pairs is not None for task in tasks)
    open_model = embedders.open_system if scores_pairs else embedders.open_embedder
    reranker = embedders.open_reranker(args.rerank, model_options) if args.rerank else None
    system = open_model(args.model, model_options, show_progress=True)
    for model in filter(None, (args.model, args.rerank)):
        if line := embedders.published_line(model):
            print(f"published: {line}")
    about = describe_evaluation(args.task, args.model, args.data, args.split, model_options)
    stages = []
    if reranker is None:
        results = [
            evaluate(entry, args.model, system, task=task, training=training)
            for entry, task in zip(entries, tasks, strict=True)
        ]
    else:
        for entry, task in zip(entries, tasks, strict=True):
            shortlist = make_shortlist(
                task,
                task.search_by(system),
                system.name,
                depth=args.depth,
                with_positives=args.with_positives,
            )
            stages.append(
                compare_stages(entry, shortlist, reranker, reranker.name, training=training)
            )
        results = [each.reranked for each in stages]
        about |= {"model": results[0].model, "reranker": args.rerank}
    first_stage = [each.first for each in stages]
    baseline = None
    if args.baseline:
        if len(tasks) > 1:
            raise InputError("--baseline: expected a single data set")
        baseline = bm25_result(entries[0], tasks[0])
    if len(results) == 1:
        print(f"{args.data}: {len(results[0].outcome.items)} {results[0].unit}")
        print_table(*systems_table([*first_stage, *results, *filter(None, [baseline])]))
    else:
        for several in filter(None, (first_stage, results)):
            if first_stage:
                print(several[0].model)
            print_table(*data_sets_table(several))
    for result in results:
        for caution in result.cautions():
            print(f"{result.name}: {caution}")
    for each in stages:
        print(each.summary())
    return as_json(about, results, baseline) | (stages_as_json(stages) if stages else {})


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


def bm25_result(entry: Any, task: Any) -> TaskResult:
    """Returns the result of BM25 on a retrieval task."""
    from embed_jax.evals.suite import make_result
    from embed_jax.retrieval.bm25 import bm25_search

    require("bm25s")
    began = time.perf_counter()
    outcome = task.score(task.search(bm25_search, 0))
    return make_result(entry, task, "bm25", outcome, seconds=time.perf_counter() - began)


def as_json(
    about: dict[str, Any], results: Sequence[TaskResult], baseline: TaskResult | None
) -> dict[str, Any]:
    """Returns the content of --output.

    Scores are fractions, n counts items; metrics of several data sets are named DATA/METRIC.
    """
    from embed_jax.evals.report import scores_by_name

    content = about
    if len(results) == 1:
        content = results[0].to_json() | content
    else:
        content |= scores_by_name(results) | {
            "n": sum(len(result.outcome.items) for result in results)
        }
        seen = {result.name: result.details.get("overlap") for result in results}
        content |= {"overlap": seen} if any(seen.values()) else {}
    if baseline:
        content["baseline"] = {"name": baseline.model, **scores_by_name([baseline])}
    return content
