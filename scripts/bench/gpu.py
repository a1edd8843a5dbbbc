"""Bench of an accelerator: everything that it can show, in one table and a set time."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import EmbedJaxWarning, InputError, RunError, one_line

from .gpu_table import SIZES, Row, list_rows
from .measure import count, print_json, print_row, result, share_device

DESCRIPTION = """Measures an accelerator, and prints each row of a table once it is measured.

The rows come in the order of their worth, until the time is up: small runs of each experiment
(trained, ended by SIGTERM, resumed; their first losses beside the CPU's), then tokens per second,
MFU and memory of encoding and training, the tests that need a GPU, sentence-transformers on the
same card, losses with many negatives, MaxSim, cross-encoders. Weights are random, computed in
bfloat16; every text has the length of its row. MFU is the products of tokens with parameters and of
tokens that see each other, over the peak of the card; where that is not known, over the peak that
is measured first. Memory is the compiler's plan. Nothing is installed; what a package is missing
for is left out, with its reason. --size tiny shows on a CPU that all of it runs."""
EXAMPLES = """examples:
  python -m scripts.bench gpu --minutes 8
  python -m scripts.bench gpu --minutes 15 --json
  python -m scripts.bench gpu --rows train --slots 16384
  python -m scripts.bench gpu --size tiny --rows encode,train,loss"""
WIDTHS = (52, 11, 9, 10, 7, 9)
LEAST_LEFT = 5.0  # seconds in which no row is begun


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--minutes", type=float, default=8.0, help="time in all (default: %(default)s)"
    )
    command.add_argument(
        "--rows", default="", help="only rows of these kinds, separated by commas (default: all)"
    )
    command.add_argument(
        "--slots", type=count, default=0, help="slots of a training step (default: by --size)"
    )
    command.add_argument(
        "--size", choices=tuple(SIZES), default="full", help="(default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if not args.minutes > 0:
        return f"--minutes: expected more than 0, found {args.minutes:g}"
    args.rows = [kind.strip() for kind in args.rows.split(",") if kind.strip()]
    return None


def bench_gpu(args: argparse.Namespace) -> None:
    began = time.monotonic()
    share_device()
    warnings.simplefilter("ignore", EmbedJaxWarning)
    with tempfile.TemporaryDirectory() as folder:
        rows = list_rows(SIZES[args.size], Path(folder), args.slots)
        kinds = list(dict.fromkeys(row.kind for row in rows))
        for kind in args.rows:
            if kind not in kinds:
                raise InputError(f"--rows: expected some of {', '.join(kinds)}, found {kind!r}")
        rows = [row for row in rows if not args.rows or row.kind in args.rows]
        if not args.json:
            import jax

            devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            print(f"{devices}, jax {jax.__version__}", flush=True)
            print_row(("", "a second", "unit", "ms", "MFU", "GiB"), WIDTHS)
        left, failed = measure_rows(rows, began + 60 * args.minutes, args.json)
    if left and not args.json:
        print("not measured, the time is up: " + "; ".join(row.name for row in left))
    if failed:
        raise RunError(f"failed: {'; '.join(row.name for row in failed)}")


def measure_rows(rows: Sequence[Row], end: float, as_json: bool) -> tuple[list[Row], list[Row]]:
    """Measures and prints rows until the time is up.

    A row is left out where the longest one of its kind has taken more than what is left.

    Args:
        rows: in the order of their worth.
        end: in the time of `time.monotonic`.
        as_json: an object a line instead of a table.

    Returns:
        The rows that the time was too short for, and those whose checks failed.
    """
    longest: dict[str, float] = {}
    left, failed = [], []
    for row in rows:
        began = time.monotonic()
        if end - began < max(LEAST_LEFT, longest.get(row.kind, 0.0)):
            left.append(row)
            continue
        try:
            figures = row.measure()
        except Exception as error:  # of one row; the others are still worth their time
            figures = {"note": _reason(error)}
        taken = time.monotonic() - began
        longest[row.kind] = max(longest.get(row.kind, 0.0), taken)
        if figures.pop("failed", False):
            failed.append(row)
        _print_figures(row.name, figures, taken, as_json)
    return left, failed


def _reason(error: Exception) -> str:
    text = one_line(error)
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return "out of memory"
    return f"{type(error).__name__}: {text[:160]}"


def _print_figures(name: str, figures: dict[str, Any], taken: float, as_json: bool) -> None:
    rate, unit = figures.pop("rate", None), figures.pop("unit", "")
    if as_json:
        print_json(result(f"gpu/{name}", unit, rate, None, None, 1, **figures, took=taken))
        return
    mfu = figures.get("mfu")
    share = None if mfu is None else f"{100 * mfu:.1f}%"
    cells = (name, rate, unit, figures.get("ms"), share, figures.get("gib"))
    first, *others = figures.get("note", "").splitlines() or [""]
    if rate is None:
        print(f"{name.rjust(WIDTHS[0])}  {first}", flush=True)
    else:
        print_row(cells, WIDTHS)
        others = [first, *others]
    for line in filter(None, others):
        print(f"{'':{WIDTHS[0]}}  {line}", flush=True)
