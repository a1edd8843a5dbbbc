"""Suites, leaderboards and comparisons of evaluate: many tasks, several models, what may be said of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.errors import InputError

from . import embedders
from .commands import Parser, print_table

TABLE, PICTURE = "table.md", "scores.png"


def add_arguments(parser: Parser) -> Any:
    """The options of suites and of what is made of their results."""
    group = parser.add_argument_group("suites")
    group.add_argument("--suite", type=Path, help="YAML or Python file with a list of tasks")
    group.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="directories or files of results; with --suite: two models, evaluated first",
    )
    group.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="a difference that does not count, such as between seeds of one training (default: %(default)s)",
    )
    group.add_argument(
        "--leaderboard", type=Path, metavar="DIR", help="the folder of a suite's results"
    )
    return group


def check_arguments(args: argparse.Namespace, parser: Parser) -> None:
    """Ends with one line for what is missing, or goes not together."""
    if args.margin < 0:
        parser.error(f"--margin: expected 0 or more, found {args.margin:g}")
    if args.suite:
        if args.output is None:
            parser.error("--suite needs --output, a directory for its results")
        if bool(args.model) == bool(args.compare):
            parser.error("--suite needs --model, or --compare with two models")
    elif args.compare or args.leaderboard:
        for option in ("model", "data", "training"):
            if getattr(args, option):
                mode = "--compare" if args.compare else "--leaderboard"
                parser.error(f"--{option} does not go with {mode}, which reads results")


def run(args: argparse.Namespace) -> None:
    """Evaluates each model on each task that is not done yet; prints and writes a table and a picture of all."""
    from embed_jax.evals.leaderboard import read_board
    from embed_jax.evals.suite import read_suite

    entries = read_suite(args.suite, Path(args.data) if args.data else None)
    names = args.compare or args.model.split(",")
    if len(set(names)) < len(names):
        raise InputError(f"expected different models, found {', '.join(names)}")
    directories = [args.output / _directory_name(name) for name in names]
    if len(set(directories)) < len(directories):
        raise InputError(
            f"the results of {', '.join(names)} would lie in one directory: name them otherwise"
        )
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"{args.output}: is a file; a directory is wanted")
    for name, directory in zip(names, directories, strict=True):
        _run_model(name, directory, entries, args)
    board = read_board(args.output)
    wanted = [entry.name for entry in entries]
    shown = {name: {task: board[name][task] for task in wanted} for name in names}
    _show(shown, args.output)
    if args.compare:
        print()
        _compare(args, *(shown[name] for name in names), tuple(names))


def leaderboard(args: argparse.Namespace) -> dict[str, Any]:
    """Ranks the models of a folder; prints the tables, and returns the ranking."""
    import dataclasses

    from embed_jax.evals.leaderboard import ranking, read_board

    board = read_board(args.leaderboard)
    _show(board, args.leaderboard)
    return {"ranking": [dataclasses.asdict(row) for row in ranking(board)]}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Compares two models' results; prints a table and returns what it says."""
    from embed_jax.evals.results import read_results

    a, b = (read_results(Path(path)) for path in args.compare)
    labels = tuple(next(iter(found.values())).model for found in (a, b))
    return _compare(args, a, b, labels if len(set(labels)) == 2 else tuple(args.compare))


def training_texts(args: argparse.Namespace) -> Callable[[], Iterator[str]] | None:
    """Gives the texts of --training, one by one; None without it."""
    if not args.training:
        return None
    from embed_jax.data.sources import iter_records

    def texts() -> Iterator[str]:
        for name in args.training.split(","):
            for record in iter_records(name):
                for value in record.values():
                    yield from (
                        (value,)
                        if isinstance(value, str)
                        else value
                        if isinstance(value, list)
                        else ()
                    )

    return lambda: (text for text in texts() if isinstance(text, str))


def _run_model(name: str, directory: Path, entries: list[Any], args: argparse.Namespace) -> None:
    from embed_jax.evals.leaderboard import cell
    from embed_jax.evals.suite import evaluate, result_file, unfinished
    from embed_jax.runtime import environment

    key = embedders.model_fingerprint(name, args)
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
    training = training_texts(args)
    directory.mkdir(parents=True, exist_ok=True)
    embed = embedders.open_embedder(name, args, directory / "vectors.cache")
    versions = environment()
    for number, entry in enumerate(left, 1):
        details = {"fingerprint": [key, entry.fingerprint()], "versions": versions}
        details |= {
            option: getattr(args, option) for option in embedders.OPTIONS if getattr(args, option)
        }
        result = evaluate(entry, name, embed, training=training, details=details)
        result.write(result_file(directory, entry.name))
        seconds = result.details["seconds"]
        print(
            f"  {number}/{len(left)} {entry.name}: {result.outcome.main} {cell(result)}, {seconds:.1f} s",
            flush=True,
        )
    print(
        f"{name}: {time.perf_counter() - began:.1f} s, {embed.embedded} texts embedded", flush=True
    )


def _show(board: Mapping[str, Any], directory: Path) -> None:
    """Prints the tables of results, and writes them with their picture."""
    from embed_jax.evals.leaderboard import markdown, plot, ranking, ranking_table, task_table

    header, rows = task_table(board)
    print_table(header, rows)
    text = markdown(header, rows)
    if len(board) > 1:
        published = {name: embedders.published_line(name) for name in board}
        ranked = ranking_table(ranking(board), published if any(published.values()) else None)
        print()
        print_table(*ranked)
        text = markdown(*ranked) + "\n" + text
    said = [
        f"{name}: {one}" for name in next(iter(board.values())) for one in _cautions(board, name)
    ]
    for line in said:
        print(line)
    notes = "".join(f"- {line}\n" for line in said)
    write_whole(
        directory / TABLE, text + (f"\nWhat must not be overlooked:\n\n{notes}" if notes else "")
    )
    plot(board, directory / PICTURE)
    print(f"{directory / TABLE}, {directory / PICTURE}")


def _cautions(board: Mapping[str, Any], name: str) -> list[str]:
    """What must not be concluded from a task's scores, each once for all models of which it holds."""
    of: dict[str, list[str]] = {}
    for model, results in board.items():
        for caution in results[name].cautions() if name in results else ():
            of.setdefault(caution, []).append(model)
    return [
        one if len(models) == len(board) else f"{', '.join(models)}: {one}"
        for one, models in of.items()
    ]


def _compare(
    args: argparse.Namespace, a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]
) -> dict[str, Any]:
    from embed_jax.evals.head_to_head import LIMITS, head_to_head

    found = head_to_head(a, b, names, margin=args.margin)
    rows = [
        [
            name,
            f"{a[name].outcome.score:.4f}",
            f"{b[name].outcome.score:.4f}",
            f"{one.difference:+.4f} [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]",
            f"{one.p_value:.4f}",
            f"{found.adjusted[name]:.4f}",
            found.outcome(name),
        ]
        for name, one in found.tasks.items()
    ]
    print(f"A: {names[0]}\nB: {names[1]}")
    print_table(["task", "A", "B", "A - B [95 %]", "p", "p (Holm)", "better"], rows)
    print(f"mean over {len(rows)} tasks: {found.verdict()}")
    print(
        f"same: they differ by less than {args.margin:g} (--margin); open: these items cannot tell."
    )
    for line in LIMITS:
        print(line)
    if found.left_out:
        print(f"not compared, since only one has them: {', '.join(found.left_out)}")
    tasks = {
        name: {
            "a": a[name].outcome.score,
            "b": b[name].outcome.score,
            "difference": one.difference,
            "interval": one.interval,
            "p": one.p_value,
            "p_holm": found.adjusted[name],
            "better": found.outcome(name),
        }
        for name, one in found.tasks.items()
    }
    overall = {
        "difference": found.overall.difference,
        "interval": found.overall.interval,
        "p": found.overall.p_value,
    }
    overall |= {"p_over_tasks": found.over_tasks, "margin": found.margin}
    return {
        "a": names[0],
        "b": names[1],
        "tasks": tasks,
        "overall": overall,
        "verdict": found.verdict(),
    }


def _directory_name(model: str) -> str:
    from embed_jax.evals.suite import file_name

    return file_name(model)
