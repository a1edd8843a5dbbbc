"""Bench of a suite of tasks, by us and by mteb with sentence-transformers, task by task in turn."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measure import print_json, print_row, result

DESCRIPTION = """Time of evaluating a model on each task of a suite, by us and by mteb.

Both read the same data and load the same directory before the clock starts, and each encodes some
texts first, so that nothing is compiled or allocated on the clock; the two take turns, the first
one changing from task to task. Ours keeps the embedding of each text for later tasks, as a suite
does, and includes the bootstrap intervals, which mteb does not have. Tasks of kinds that mteb lacks
are left out, and those with options that it lacks."""
EXAMPLES = """examples:
  python -m scripts.bench suite --suite configs/suites/english.yaml --data DIRECTORY \\
      --model sentence-transformers/all-MiniLM-L6-v2 --against mteb"""
WIDTHS = (20, 10, 10, 10, 10, 8)
SHARED = {"samples_per_label"}  # options that a local task of mteb has too, by that name
WARM_UP = [" ".join(["word"] * length) for length in (1, 2, 4, 8, 16, 32, 64, 128, 256)] * 32


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--suite", type=Path, required=True, help="YAML or Python file with a list of tasks"
    )
    command.add_argument(
        "--data", type=Path, help="directory of relative paths (default: the suite's)"
    )
    command.add_argument("--model", required=True, help="directory or hub name")
    command.add_argument("--only", help="names of tasks, separated by commas (default: all)")
    command.add_argument(
        "--against", choices=["mteb"], help="run mteb with sentence-transformers too"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Checks nothing: opening data and model reports what is wrong."""
    return None


def bench_suite(args: argparse.Namespace) -> None:
    """Prints a line per task, and one for all tasks."""
    from embed_jax.errors import InputError, require
    from embed_jax.evals import mteb_tasks
    from embed_jax.evals.embedder import Embedder, prompt_options
    from embed_jax.evals.suite import read_suite
    from embed_jax.registry import unknown

    from ..commands import load_model

    if args.against:
        require("mteb")
    entries = read_suite(args.suite, args.data)
    entries = [
        entry
        for entry in entries
        if entry.task in mteb_tasks.KINDS and entry.options.keys() <= SHARED
    ]
    names = [entry.name for entry in entries]
    for name in args.only.split(",") if args.only else ():
        if name not in names:
            raise InputError("--only: " + unknown("task", name, names))
    entries = [entry for entry in entries if not args.only or entry.name in args.only.split(",")]
    model = load_model(args.model)
    model.encode(WARM_UP)
    embed = Embedder(
        args.model, model.encode, prompt_options(model), similarity=model.similarity_fn_name
    )
    peer = _peer(args.model) if args.against else None
    rows: list[dict[str, Any]] = []
    if not args.json:
        print_row(("task", "ours", "mteb", "ours s", "mteb s", "ratio"), WIDTHS)
    for position, entry in enumerate(entries):
        task = entry.open()
        peer_task = peer and mteb_tasks.local_task(
            entry.task, entry.data, name=entry.name, split=entry.split
        )
        sides: dict[str, Callable[[], float]] = {
            "ours": functools.partial(_our_score, entry, args.model, embed, task)
        }
        if peer:
            for option in entry.options:
                setattr(peer_task, option, entry.options[option])
            sides["mteb"] = functools.partial(_score, peer_task, peer, entry.split)
        results = {}
        for side in sorted(sides, reverse=position % 2 == 0):
            began = time.perf_counter()
            results[side] = sides[side](), time.perf_counter() - began
        rows.append({"name": entry.name, "found": results})
        _print(args, entry.name, results, 1)
    total = {
        side: (float("nan"), sum(row["found"][side][1] for row in rows))
        for side in rows[0]["found"]
    }
    _print(args, "all", total, len(rows))


def _print(
    args: argparse.Namespace, name: str, results: dict[str, tuple[float, float]], n: int
) -> None:
    (score, our_seconds), (their_score, mteb_seconds) = (
        results["ours"],
        results.get("mteb", (None, None)),
    )
    ratio = mteb_seconds / our_seconds if mteb_seconds else None
    if args.json:
        print_json(
            result(
                f"suite/{name}",
                "s",
                our_seconds,
                mteb_seconds,
                ratio,
                n,
                score=score,
                their_score=their_score,
            )
        )
        return
    scores = [
        None if value is None or value != value else round(value, 4)
        for value in (score, their_score)
    ]
    print_row((name, *scores, our_seconds, mteb_seconds, ratio), WIDTHS)


def _peer(name: str) -> Any:
    """Loads sentence-transformers' model of that name, as mteb wraps it."""
    import datasets
    import transformers
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    from embed_jax.encoders.hub import resolve

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    model = SentenceTransformer(str(resolve(name)), device="cpu")
    model.encode(WARM_UP)
    return SentenceTransformerEncoderWrapper(model)


def _our_score(entry: Any, model: str, embed: Any, task: Any) -> float:
    from embed_jax.evals.suite import evaluate

    return evaluate(entry, model, embed, task=task).outcome.score


def _score(task: Any, model: Any, split: str) -> float:
    (result,) = task.evaluate(model, split, encode_kwargs={"show_progress_bar": False}).values()
    return float(result["main_score"])
