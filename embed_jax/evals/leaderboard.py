"""Models side by side: results of many tasks as a table, a ranking and a picture."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from embed_jax.atomic import replaced
from embed_jax.errors import InputError
from embed_jax.evals.report import format_score
from embed_jax.evals.results import TaskResult, read_results
from embed_jax.evals.significance import seed_summary
from embed_jax.pictures import picture_style

SEED = re.compile(r"[-_/. ]?seed[-_= ]?\d+", re.IGNORECASE)
Board = Mapping[str, Mapping[str, TaskResult]]  # model -> task's name -> result


@dataclasses.dataclass(frozen=True)
class LeaderboardRow:
    """A model's place.

    Attributes:
        model: its name; of several seeds, what their names have in common.
        average: mean main score over the tasks that all models have; of several seeds, their mean.
        by_kind: the same over the tasks of each kind.
        spread: standard deviation of the average over seeds; nan for one.
        seeds: how many there are.
    """

    model: str
    average: float
    by_kind: Mapping[str, float]
    spread: float
    seeds: int


def read_board(folder: Path) -> dict[str, dict[str, TaskResult]]:
    """Reads the results in a folder with a directory for each model.

    A folder with the results of one model is read as a board of one.

    Raises:
        InputError: for a folder without results, or two directories of one model.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory of results")
    directories = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.json"))
    ]
    board: dict[str, dict[str, TaskResult]] = {}
    for directory in directories or [folder]:
        results = read_results(directory)
        model = next(iter(results.values())).model
        if model in board:
            raise InputError(f"{directory}: a second directory of results of {model!r}")
        board[model] = results
    return board


def common_tasks(board: Board) -> list[str]:
    """Returns the tasks that all models have, in the first one's order."""
    first, *others = board.values()
    return [name for name in first if all(name in results for results in others)]


def ranking(board: Board) -> list[LeaderboardRow]:
    """Ranks the models, best first, by the mean over the tasks that all have.

    Models whose names differ only in a seed are one model.

    Raises:
        InputError: if no task is common to all, or models have other main scores or numbers of
            items in one of them.
    """
    tasks = common_tasks(board)
    if not tasks:
        raise InputError(f"no task is common to all {len(board)} models: {', '.join(board)}")
    for name in tasks:
        of = {
            (results[name].outcome.main, len(results[name].outcome.items))
            for results in board.values()
        }
        if len(of) > 1:
            variants = ", ".join(f"{main} of {n}" for main, n in sorted(of))
            raise InputError(f"{name}: the models were scored on different things: {variants}")
    kinds: dict[str, list[str]] = {}
    for name in tasks:
        kinds.setdefault(next(iter(board.values()))[name].task, []).append(name)
    groups: dict[str, list[Mapping[str, TaskResult]]] = {}
    for model, results in board.items():
        groups.setdefault(SEED.sub("", model) or model, []).append(results)
    rows = []
    for model, seeds in groups.items():
        means = [_mean(results, tasks) for results in seeds]
        defined = all(map(math.isfinite, means))
        summary = seed_summary(means) if defined else None
        by_kind = {
            kind: float(np.mean([_mean(results, names) for results in seeds]))
            for kind, names in kinds.items()
        }
        average, spread = (summary.mean, summary.sd) if summary else (math.nan, math.nan)
        rows.append(LeaderboardRow(model, average, by_kind, spread, len(seeds)))
    return sorted(
        rows, key=lambda row: (-row.average if math.isfinite(row.average) else math.inf, row.model)
    )


def task_table(board: Board, baseline: str = "") -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the main scores with 95 % intervals.

    A task is a row, a model is a column; the last row is the average.
    """
    names = list(dict.fromkeys(name for results in board.values() for name in results))
    rows = []
    for name in names:
        some = next(results[name] for results in board.values() if name in results)
        cells = [cell(results[name]) if name in results else "" for results in board.values()]
        rows.append([name, some.task, some.outcome.main, str(len(some.outcome.items)), *cells])
    tasks = common_tasks(board)
    if len(tasks) > 1:
        averages = [_mean(results, tasks) for results in board.values()]
        what = (
            "average" if len(tasks) == len(names) else f"average of the {len(tasks)} common tasks"
        )
        rows.append([what, "", "", "", *(f"{value:.4f}" for value in averages)])
    return ["task", "kind", "score", "n", *board], rows


def ranking_table(
    rows: Sequence[LeaderboardRow], published: Mapping[str, str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of `ranking`.

    Args:
        rows: see `ranking`.
        published: published figures, by the model's name.
    """
    kinds = list(rows[0].by_kind)
    header = ["", "model", "average", *kinds] + (["published"] if published else [])
    table = []
    for place, row in enumerate(rows, 1):
        average = f"{row.average:.4f}" + (
            f" +- {row.spread:.4f} ({row.seeds} seeds)" if row.seeds > 1 else ""
        )
        cells = [str(place), row.model, average, *(f"{row.by_kind[kind]:.4f}" for kind in kinds)]
        table.append(cells + ([published.get(row.model, "")] if published else []))
    return header, table


def cell(result: TaskResult) -> str:
    """Formats a main score with its interval, such as "0.8203 [0.801, 0.838]"."""
    outcome = result.outcome
    if math.isnan(outcome.score):
        return "undefined"
    low, high = outcome.intervals.get(outcome.main, (math.nan, math.nan))
    return format_score(outcome.score, None if math.isnan(low) else (low, high))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |\n" for line in lines
    )


@picture_style()
def plot(board: Board, path: Path) -> None:
    """Plots main scores with their intervals: tasks from top to bottom, a colour a model."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for results in board.values() for name in results))
    height = max(0.22, 0.13 * len(board))
    figure, axes = pyplot.subplots(
        figsize=(8, 1.4 + 1.25 * height * len(names)), layout="constrained"
    )
    for place, (model, results) in enumerate(board.items()):
        offset = (place - (len(board) - 1) / 2) * 0.7 / len(board)
        points = [
            (number + offset, results[name].outcome)
            for number, name in enumerate(names)
            if name in results
        ]
        points = [(at, outcome) for at, outcome in points if math.isfinite(outcome.score)]
        scores = np.array([outcome.score for _, outcome in points])
        ends = np.array(
            [outcome.intervals.get(outcome.main, (outcome.score,) * 2) for _, outcome in points]
        )
        ends = ends.reshape(-1, 2)
        errors = np.nan_to_num(np.abs(ends.T - scores))
        axes.errorbar(
            scores,
            [at for at, _ in points],
            xerr=errors,
            fmt="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            label=model,
        )
    some = [next(results[name] for results in board.values() if name in results) for name in names]
    labels = [f"{result.name} ({result.outcome.main})" for result in some]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for number in range(1, len(names), 2):
        axes.axhspan(number - 0.5, number + 0.5, color="0.95", zorder=0)
    axes.grid(axis="x", color="0.85", zorder=0)
    axes.set(xlabel="main score, 95 % bootstrap interval over items")
    figure.legend(loc="outside upper center", ncols=min(len(board), 3))
    with replaced(path) as beside:
        figure.savefig(beside, format="png")
    pyplot.close(figure)


def _mean(results: Mapping[str, TaskResult], tasks: Sequence[str]) -> float:
    return float(np.mean([results[name].outcome.score for name in tasks]))
