"""Compares the results of two models, and ranks those of many."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole

from ..commands import OneLineParser, print_table
from . import embedders

TABLE, PICTURE = "table.md", "scores.png"


def add_compare_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of `compare`, and returns a function that checks them."""
    parser.add_argument("a", type=Path, metavar="A", help="a directory or file of results")
    parser.add_argument("b", type=Path, metavar="B", help="those of another model")
    parser.add_argument("--output", type=Path, help="JSON file for the comparison")
    add_margin(parser)
    return lambda args: check_margin(args.margin, parser)


def add_leaderboard_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of `leaderboard`, and returns a function that checks them."""
    parser.add_argument("directory", type=Path, help="the folder of a suite's results")
    parser.add_argument("--output", type=Path, help="JSON file for the ranking")
    return lambda args: None


def add_margin(parser: OneLineParser) -> None:
    parser.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="a difference that does not count, such as between seeds of one training (default: "
        "%(default)s)",
    )


def check_margin(margin: float, parser: OneLineParser) -> None:
    if not margin >= 0:
        parser.error(f"--margin: expected 0 or more, found {margin:g}")


def run_compare(args: argparse.Namespace) -> dict[str, Any]:
    """Compares two models' results; prints a table and returns what it says."""
    from embed_jax.evals.results import read_results

    a, b = (read_results(path) for path in (args.a, args.b))
    name_a, name_b = (next(iter(results.values())).model for results in (a, b))
    names = (name_a, name_b) if name_a != name_b else (str(args.a), str(args.b))
    return compare(a, b, names, args.margin)


def run_leaderboard(args: argparse.Namespace) -> dict[str, Any]:
    """Ranks the models of a folder; prints the tables, and returns the ranking."""
    import dataclasses

    from embed_jax.evals.leaderboard import ranking, read_board

    board = read_board(args.directory)
    show(board, args.directory)
    return {"ranking": [dataclasses.asdict(row) for row in ranking(board)]}


def show(board: Mapping[str, Any], directory: Path) -> None:
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
    cautions = [
        f"{name}: {caution}"
        for name in next(iter(board.values()))
        for caution in _cautions(board, name)
    ]
    for line in cautions:
        print(line)
    notes = "".join(f"- {line}\n" for line in cautions)
    write_whole(
        directory / TABLE, text + (f"\nWhat must not be overlooked:\n\n{notes}" if notes else "")
    )
    plot(board, directory / PICTURE)
    print(f"{directory / TABLE}, {directory / PICTURE}")


def _cautions(board: Mapping[str, Any], name: str) -> list[str]:
    """Returns what must not be concluded from a task's scores, each caution once for its models."""
    of: dict[str, list[str]] = {}
    for model, results in board.items():
        for caution in results[name].cautions() if name in results else ():
            of.setdefault(caution, []).append(model)
    return [
        caution if len(models) == len(board) else f"{', '.join(models)}: {caution}"
        for caution, models in of.items()
    ]


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], margin: float
) -> dict[str, Any]:
    """Prints a table of two models' results on the same tasks, and returns what it says."""
    from embed_jax.evals.head_to_head import LIMITS, compare_results

    comparison = compare_results(a, b, names, margin=margin)
    rows = [
        [
            name,
            f"{a[name].outcome.score:.4f}",
            f"{b[name].outcome.score:.4f}",
            f"{task.difference:+.4f} [{task.interval[0]:+.4f}, {task.interval[1]:+.4f}]",
            f"{task.p_value:.4f}",
            f"{comparison.adjusted[name]:.4f}",
            comparison.outcome(name),
        ]
        for name, task in comparison.tasks.items()
    ]
    print(f"A: {names[0]}\nB: {names[1]}")
    print_table(["task", "A", "B", "A - B [95 %]", "p", "p (Holm)", "better"], rows)
    print(f"mean over {len(rows)} tasks: {comparison.verdict()}")
    print(f"same: they differ by less than {margin:g} (--margin); open: these items cannot tell.")
    for line in LIMITS:
        print(line)
    if comparison.left_out:
        print(f"not compared, since only one has them: {', '.join(comparison.left_out)}")
    tasks = {
        name: {
            "a": a[name].outcome.score,
            "b": b[name].outcome.score,
            "difference": task.difference,
            "interval": task.interval,
            "p": task.p_value,
            "p_holm": comparison.adjusted[name],
            "better": comparison.outcome(name),
        }
        for name, task in comparison.tasks.items()
    }
    overall = {
        "difference": comparison.overall.difference,
        "interval": comparison.overall.interval,
        "p": comparison.overall.p_value,
    }
    overall |= {"p_over_tasks": comparison.over_tasks, "margin": comparison.margin}
    return {
        "a": names[0],
        "b": names[1],
        "tasks": tasks,
        "overall": overall,
        "verdict": comparison.verdict(),
    }
