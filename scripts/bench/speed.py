"""Shared parts of the benches of speed: options of the model and its texts, printed rates."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError

from .measure import (
    count,
    count_or_none,
    make_texts,
    median_ratio,
    print_json,
    print_row,
    random_model,
    result,
)

if TYPE_CHECKING:
    from embed_jax.sentence import SentenceEncoder

RANDOM_LENGTH = 128  # tokens of a text for a model of random weights
OURS = "embed-jax"


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that name a model, and how it computes."""
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--model", help="directory or hub name")
    weights.add_argument(
        "--init", choices=["random"], default="random", help="random weights of --shape (default)"
    )
    command.add_argument(
        "--shape", default="minilm-l6", help="shape of random weights (default: %(default)s)"
    )
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype"
    )
    command.add_argument(
        "--repeat",
        type=count,
        default=5,
        help="timed repetitions of each side (default: %(default)s)",
    )


def add_text_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that name texts."""
    command.add_argument(
        "--data", help="python_docs, or a file of texts or pairs (default: generated text)"
    )
    command.add_argument(
        "--words",
        type=float,
        default=10.0,
        help="median words of generated text (default: %(default)s)",
    )
    command.add_argument(
        "--max-length",
        type=count_or_none,
        default=0,
        help=f"tokens per text (default: the model's; random: {RANDOM_LENGTH})",
    )


def open_model(name: str | None, shape: str, max_length: int, dtype: str) -> SentenceEncoder:
    """Loads the named model, or makes random weights with a tokenizer of whole words."""
    if not name:
        return random_model(shape, max_length or RANDOM_LENGTH, dtype)
    from embed_jax.sentence import load_sentence_encoder

    return load_sentence_encoder(name, max_length=max_length, compute_dtype=dtype)


def read_texts(
    data: str | None, number: int, words: float, *, documents_only: bool = False
) -> list[str]:
    """Returns texts of a data set, repeated if there are fewer, or generated ones.

    Args:
        data: its name or file; None: texts are generated.
        number: how many.
        words: median words of generated text.
        documents_only: leave out the queries of python_docs.

    Raises:
        InputError: for data without texts.
    """
    if not data:
        return make_texts(number, words)
    from embed_jax.data.sources import open_records

    texts: list[str] = []
    for record in open_records(data, "train"):
        fields = [
            record[name]
            for name in ("text", "sentence1", "sentence2", "anchor", "positive")
            if name in record
        ]
        texts += fields[1:] if data == "python_docs" and documents_only else fields
        if len(texts) >= number:
            break
    if not texts:
        raise InputError(f"{data}: expected a field text, sentence1, sentence2, anchor or positive")
    return [texts[index % len(texts)] for index in range(number)]


def print_rates(
    name: str,
    unit: str,
    ours: Sequence[float],
    others: Mapping[str, Sequence[float]],
    *,
    as_json: bool,
    **details: Any,
) -> None:
    """Prints the rates of a bench; higher is better.

    The text is a table with a row for each side: its median, and the median and quartiles of the
    ratios of ours to it over the alternations.

    Args:
        name: of the bench.
        unit: of the rates.
        ours: our rate in each alternation.
        others: rates of the other sides by name.
        as_json: an object for each other side, or one, instead of a table.
        **details: further figures of ours.
    """
    mine = statistics.median(ours)
    if as_json:
        if not others:
            print_json(result(name, unit, mine, None, None, len(ours), **details))
        for side, rates in others.items():
            ratio, other = median_ratio(ours, rates), statistics.median(rates)
            line = result(name, unit, mine, other, ratio, len(ours), against=side, **details)
            print_json(line)
        return
    print(f"{name}: {mine:,.1f} {unit}" + "".join(f", {key} {details[key]}" for key in details))
    if not others:
        return
    widths = (max(map(len, (OURS, *others))), 12, 8, 16)
    print_row(("", unit, "ratio", "quartiles"), widths)
    print_row((OURS, mine, None, None), widths)
    for side, rates in others.items():
        ratios = [a / b for a, b in zip(ours, rates, strict=True)]
        low, high = quartiles(ratios)
        cells = (side, statistics.median(rates), statistics.median(ratios))
        print_row((*cells, f"[{low:.2f}, {high:.2f}]"), widths)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Returns the first and the third quartile.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 4.0)
    """
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
