"""Pairs of any origin whose passage a search finds again: synthesize filter."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import PAIR_NAMES, kind_of
from embed_jax.data.sources.files import file_format, iter_json, iter_lines
from embed_jax.data.synthesize import read_passages
from embed_jax.errors import InputError

from ..commands import OneLineParser
from .round_trip import Item, open_search, write_kept

DESCRIPTION = """Keeps the pairs whose passage (second text) is among the K best for their query.

Searched are the passages of all pairs and of --corpus. With K = 2 and a corpus of a million
passages it is E5's consistency filter of weak pairs."""

EXAMPLES = """examples:
  python -m scripts.synthesize filter --pairs weak.jsonl.gz --corpus passages.jsonl --keep-top 2 \\
      --model runs/first/model --output kept.jsonl
  python -m scripts.synthesize filter --pairs pairs.tsv --keep-top 10 --bm25 --output kept.jsonl
"""


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], str | None]:
    """Adds the options of the command, and returns a function that checks them."""
    parser.add_argument("--pairs", required=True, type=Path, help="file of pairs, as for training")
    parser.add_argument("--corpus", type=Path, help="file of extra passages to search")
    parser.add_argument(
        "--field",
        default="text",
        help="its field with the text; several are joined (default: text)",
    )
    return lambda args: None


def run(args: argparse.Namespace) -> int:
    corpus = (
        [passage.text for passage in read_passages(args.corpus, args.fields)] if args.corpus else []
    )
    texts = dict.fromkeys(
        itertools.chain(corpus, (positive.strip() for _, (_, positive) in read_pairs(args.pairs)))
    )
    count, outcome = write_kept(
        args.output,
        read_pairs(args.pairs),
        list(texts),
        args.keep_top,
        open_search(args.model, args.bm25),
    )
    print(f"{args.output}: {count} pairs, {len(texts)} passages{outcome}")
    return 0


def read_pairs(path: Path) -> Iterator[Item]:
    """Yields the records of a file of pairs, of JSONL with all fields, and their two texts."""
    if file_format(path) == ".jsonl":
        for (_, record), (line, texts) in zip(iter_json(path), iter_lines(path), strict=True):
            yield record, pair_texts(texts, f"{path}:{line}")
    else:
        for line, record in iter_lines(path):
            yield record, pair_texts(record, f"{path}:{line}")


def pair_texts(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    names = kind_of(record)
    if names not in PAIR_NAMES:
        accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
        raise InputError(
            f"{where}: expected a pair with the fields {accepted}; found "
            f"{', '.join(record) or 'no field'}"
        )
    return record[names[0]], record[names[1]]
