"""A suite of tasks for one or several models: evaluate suite."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError

from ..commands import OneLineParser
from . import embedders
from .data import training_texts
from .results import add_margin, check_margin, compare, show


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them."""
    parser.add_argument("suite", type=Path, help="YAML or Python file with a list of tasks")
    parser.add_argument(
        "--model", required=True, help="the models, separated by commas, see evaluate --help"
    )
    parser.add_argument(
        "--data", help="directory of the suite's relative paths (default: its folder)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="directory for the results of each model"
    )
    parser.add_argument(
        "--training",
        help="training data, separated by commas: test items that share 8 words in a row with "
        "them are counted, and "
        "the score without them is shown",
    )
    parser.add_argument(
        "--compare", action="store_true", help="compare the two models of --model afterwards"
    )
    add_margin(parser)
    embedders.add_arguments(parser)

    def check(args: argparse.Namespace) -> None:
        check_margin(args.margin, parser)
        embedders.check_arguments(args, parser)
        names = args.model.split(",")
        if args.compare and len(names) != 2:
            parser.error(f"--compare: expected two models in --model, found {len(names)}")

    return check


def run(args: argparse.Namespace) -> None:
    """Evaluates each model on each task that is not done yet; writes a table and a picture."""
    from embed_jax.evals.leaderboard import read_board
    from embed_jax.evals.suite import file_name, read_suite

    entries = read_suite(args.suite, Path(args.data) if args.data else None)
    names = args.model.split(",")
    if len(set(names)) < len(names):
        raise InputError(f"expected different models, found {', '.join(names)}")
    directories = [args.output / file_name(name) for name in names]
    if len(set(directories)) < len(directories):
        raise InputError(
            f"the results of {', '.join(names)} would be in one directory; give the models "
            "different names"
        )
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"{args.output}: expected a directory, found a file")
    options = embedders.read_options(args)
    for name, directory in zip(names, directories, strict=True):
        evaluate_model(name, directory, entries, options, args.training)
    board = read_board(args.output)
    tasks = [entry.name for entry in entries]
    shown = {name: {task: board[name][task] for task in tasks} for name in names}
    show(shown, args.output)
    if args.compare:
        print()
        a, b = names
        compare(shown[a], shown[b], (a, b), args.margin)


def evaluate_model(
    name: str,
    directory: Path,
    entries: Sequence[Any],
    options: embedders.ModelOptions,
    training: str | None,
) -> None:
    """Evaluates a model on the tasks whose results are not in the directory yet.

    Args:
        name: of the model.
        directory: where its results are.
        entries: the tasks.
        options: how the model embeds.
        training: training data, see `training_texts`.
    """
    from embed_jax.evals.leaderboard import cell
    from embed_jax.evals.suite import evaluate, result_file, unfinished
    from embed_jax.runtime import environment

    key = embedders.model_fingerprint(name, options)
    left = unfinished(entries, directory, key)
    for entry in left:
        entry.open()  # what is wrong with the data shows before any work
    line = embedders.published_line(name)
    print(
        f"{name}: {len(left)} of {len(entries)} tasks to do"
        + (f"; published: {line}" if line else ""),
        flush=True,
    )
    if not left:
        return
    began = time.perf_counter()
    read_training = training_texts(training)
    directory.mkdir(parents=True, exist_ok=True)
    system = embedders.open_system(name, options, directory / "vectors.cache")
    versions = environment()
    for position, entry in enumerate(left, 1):
        details = {"fingerprint": [key, entry.fingerprint()], "versions": versions}
        details |= options.chosen()
        result = evaluate(entry, name, system, training=read_training, details=details)
        result.write(result_file(directory, entry.name))
        seconds = result.details["seconds"]
        print(
            f"  {position}/{len(left)} {entry.name}: {result.outcome.main} {cell(result)}, "
            f"{seconds:.1f} s",
            flush=True,
        )
    print(f"{name}: {time.perf_counter() - began:.1f} s, {system.describe_work()}", flush=True)
