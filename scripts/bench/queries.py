"""Bench of queries: how long a search waits for the embedding of its query."""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .measure import alternate, count, make_texts, print_json, print_row, result

if TYPE_CHECKING:
    from embed_jax import EmbeddingModel

DESCRIPTION = """Time to embed queries, one at a time and 32 at once, of one model or of two.

The models take turns, and medians are printed. A model with towers embeds queries with that of
queries: a table of vectors against a transformer, say."""
EXAMPLES = """examples:
  python -m scripts.bench queries --model runs/two_towers,runs/quickstart
  python -m scripts.bench queries --model sentence-transformers/all-MiniLM-L6-v2 --json"""
WIDTHS = (24, 20, 20, 8)
SIZES = (1, 32)  # queries at once
WORDS = 9.0  # median words of a query


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", required=True, help="directory, run or hub name; or two, separated by a comma"
    )
    command.add_argument(
        "--repeats", type=count, default=100, help="timed calls of each kind (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    names = args.model.split(",")
    if len(names) > 2 or not all(names):
        return f"--model: expected one model or two, found {args.model!r}"
    return None


def bench_queries(args: argparse.Namespace) -> None:
    from embed_jax.loading import load_embedding_model

    names = args.model.split(",")
    models = [load_embedding_model(name) for name in names]
    if not args.json:
        print_row(("ms", *names, "ratio" if names[1:] else ""), WIDTHS)
    for size in SIZES:
        times = time_queries(models, size, args.repeats)
        ratio = times[1] / times[0] if times[1:] else None
        if args.json:
            other = times[1] if times[1:] else None
            print_json(result(f"queries/{size}", "ms", times[0], other, ratio, args.repeats))
        else:
            print_row((f"{size} at once", *times, ratio), WIDTHS)


def time_queries(models: Sequence[EmbeddingModel], size: int, repeats: int) -> list[float]:
    """Returns each model's median milliseconds for a number of queries at once, in turns."""
    texts = make_texts(size * repeats, WORDS)
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]

    def side(model: EmbeddingModel) -> Callable[[], Any]:
        for batch in batches:  # compiles the shapes
            model.encode_query(batch)
        turns = itertools.cycle(batches)
        return lambda: model.encode_query(next(turns))

    seconds = alternate([side(model) for model in models], repeats, warm_up=0)
    return [1000 * statistics.median(own) for own in seconds]
