"""Options that several commands of evaluate share: model, data, split, training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..commands import OneLineParser
from .embedders import ModelOptions


def add_data_arguments(parser: OneLineParser, *, needs_model: bool = True) -> None:
    """Adds --model, --data, --split and --output."""
    parser.add_argument("--model", required=needs_model, help="model, see evaluate --help")
    parser.add_argument("--data", required=True, help="data sets, separated by commas")
    parser.add_argument(
        "--split", default="test", help="which split of a directory or data set (default: test)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def add_search_arguments(parser: OneLineParser) -> None:
    """Adds the options of a command that is for retrieval only."""
    add_data_arguments(parser)
    parser.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out a document with the query's own id, as BEIR does: for ArguAna and Quora",
    )


def training_texts(names: str | None) -> Callable[[], Iterator[str]] | None:
    """Gives the texts of training data, one by one; None without any.

    Args:
        names: files and data sets, separated by commas.
    """
    if not names:
        return None
    from embed_jax.data.sources import iter_records

    def texts() -> Iterator[str]:
        for name in names.split(","):
            for record in iter_records(name):
                for value in record.values():
                    if isinstance(value, str):
                        yield value
                    elif isinstance(value, list):
                        yield from (text for text in value if isinstance(text, str))

    return texts


def describe_evaluation(
    task: str, model: str, data: str, split: str, options: ModelOptions
) -> dict[str, Any]:
    """Returns what a results file says about how it was made."""
    from embed_jax.evals.suite import known_split
    from embed_jax.runtime import environment

    return {
        "task": task,
        "model": model,
        "data": data,
        "split": known_split(data.split(",")[0], split),
        "dim": options.dim or None,
        "layers": options.layers or None,
        "instruction": options.instruction,
        "compute_dtype": options.compute_dtype,
        "versions": environment(),
    }
