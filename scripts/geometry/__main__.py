"""Geometry of a model's embeddings, or of two models' side by side: before and after training.

Alignment and uniformity, average cosine, isotropy, effective rank, hubness, the ratio of nearest to
farthest distance, variances of the dimensions; see embed_jax/evals/geometry.py for formulas and
sources. Of more texts than --limit, or half as many pairs, a sample is drawn by --seed; both models
get the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError, exit_with_one_line, require

from ..commands import (
    PICTURES,
    Parser,
    check_picture,
    load_model,
    print_table,
    whole_file,
    write_json,
)

EXAMPLES = """data: a file (.tsv, .csv, .jsonl or .txt, each also .gz) with, a line,
  score, sentence1, sentence2   positive pairs are those above 0.8 of the highest score
  anchor, positive              or other names of a pair: all are positive pairs
  text                          no pairs, so no alignment

examples:
  python -m scripts.geometry --model sentence-transformers/all-MiniLM-L6-v2 --data stsb/test.tsv
  python -m scripts.geometry --model runs/simcse/model --against bert-base-uncased \\
      --data stsb/test.tsv \\
      --output geometry.json --plot geometry.png
"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.plot:
        require("matplotlib")
    with contextlib.ExitStack() as stack:
        output, plot = (
            stack.enter_context(whole_file(path)) if path else None
            for path in (args.output, args.plot)
        )
        content, spaces = measure(args)
        if output:
            write_json(output, content)
        if plot:
            from .plot import plot_geometry

            plot_geometry(spaces, plot, args.plot.suffix[1:], _title(args))


def _title(args: argparse.Namespace) -> str:
    """Returns a title that names the data and the models."""
    models = f"{args.against} (before), {args.model} (after)" if args.against else args.model
    return f"{args.data}: {models}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.geometry", __doc__, EXAMPLES)
    parser.add_argument("--model", required=True, help="directory or hub name")
    parser.add_argument(
        "--against", metavar="MODEL", help="the model before training, to compare with"
    )
    parser.add_argument("--data", required=True, type=Path, help="the texts; see below")
    parser.add_argument(
        "--prompt-name",
        help="which of the model's prompts to put before each text (default: its own)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=5000,
        help="embed at most N different texts (default: 5000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing texts (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON file for metrics, spectra and versions")
    parser.add_argument("--plot", type=Path, help=f"picture of both spaces ({', '.join(PICTURES)})")
    args = parser.parse_args(argv)
    if args.limit < 2:
        parser.error(f"--limit: expected 2 or more, found {args.limit}")
    if args.seed < 0:
        parser.error(f"--seed: expected 0 or more, found {args.seed}")
    check_picture(parser, "--plot", args.plot)
    return args


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prints a table; returns the content of --output, and embeddings by "before" and "after"."""
    from embed_jax.evals.geometry import embed_texts_and_pairs, geometry_metrics, sample
    from embed_jax.runtime import environment

    texts, pairs = sample(*read_texts(args.data), args.limit, args.seed)
    models = (
        {"before": args.against, "after": args.model} if args.against else {"after": args.model}
    )
    spaces, metrics = {}, {}
    for when, name in models.items():
        encode = functools.partial(
            load_model(name).encode, prompt_name=args.prompt_name, show_progress=sys.stderr.isatty()
        )
        spaces[when] = embed_texts_and_pairs(encode, texts, pairs)
        metrics[when] = geometry_metrics(*spaces[when])
    print(f"{args.data}: {len(texts)} texts, {len(pairs)} positive pairs")
    print_table(
        ["metric", *models.values()],
        [
            [metric, *(f"{values[metric]:.4g}" for values in metrics.values())]
            for metric in metrics["after"]
        ],
    )
    content = {
        "model": args.model,
        "data": str(args.data),
        "texts": len(texts),
        "pairs": len(pairs),
        "metrics": metrics["after"],
        **spectra(spaces["after"][0]),
    }
    if args.against:
        content["against"] = {
            "model": args.against,
            "metrics": metrics["before"],
            **spectra(spaces["before"][0]),
        }
    return content | {"versions": environment()}, spaces


def read_texts(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Reads the texts of a data file and its positive pairs.

    Raises:
        InputError: for a file that cannot be read.
    """
    from embed_jax.data.sources import pair_columns, read_table
    from embed_jax.evals.geometry import sts_texts

    records = read_table(path)
    if "text" in records[0]:
        return [record["text"] for record in records], []
    try:
        columns = pair_columns(records)
        first, second = zip(*(columns(record)[:2] for record in records), strict=True)
        if "score" in records[0]:
            return sts_texts(first, second, [float(record["score"]) for record in records])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return [*first, *second], list(zip(first, second, strict=True))


def spectra(embeddings: np.ndarray) -> dict[str, Any]:
    """Returns the values behind the metrics: singular values, variances, distances by dimension."""
    from embed_jax.evals.geometry import (
        dimension_variances,
        distance_concentration,
        singular_values,
    )

    return {
        "singular_values": singular_values(embeddings).tolist(),
        "variances": dimension_variances(embeddings).tolist(),
        "nearest_to_farthest_by_dimension": distance_concentration(embeddings),
    }


if __name__ == "__main__":
    exit_with_one_line(main)
