"""Lists the false negatives of a data file of pairs, triplets or n-tuples.

Every other row's positive is a negative of a row when they meet in a batch. It is a false one where
the two rows share a text (the anchor or positive of one is the anchor or positive of the other,
after Unicode NFKC and with single blanks), an id or a group; with a model, also where their
positives are more similar than a threshold. A hard negative is a false one of every row whose
anchor or positive it is, its own row included, and of every row with the same anchor
whose positive it contains or is part of, such as the positive with its title: the rule by which
scripts.mine leaves out candidates.

Rows are numbered from 0 in the order of the file. The file is read several times and not held in
memory, except the positives of anchors that stand in several rows with hard negatives; what rows
share is counted exactly without listing it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from embed_jax.data.pairs import count_sharing
from embed_jax.errors import exit_with_one_line
from embed_jax.retrieval.audit import (
    REASONS,
    AuditedRows,
    FalseNegative,
    PairFile,
    find_shared,
    find_similar,
    read_audited,
)

from .commands import Parser, load_model, print_table, whole_file

EXAMPLES = """--output has one object per line, one for each pair of rows that share something:
  {"row": 0, "negative": 1, "why": "group", "value": "g1", "column": "positive"}
  row        whose negative it is not
  negative   whose text it is; its column is "positive", or "negative_1" and so on for a hard
             negative
  why        text, id, group or similarity; value is what the two share, or how similar they are

examples:
  python -m scripts.audit --data pairs.jsonl
  python -m scripts.audit --data hf:my_pairs --split validation --by id,group --batch-size 256
  python -m scripts.audit --data pairs.tsv --model sentence-transformers/all-MiniLM-L6-v2 \\
      --threshold 0.95 \\
      --output audit.jsonl
"""
SHOWN = 20  # lines on the terminal
WIDTH = 60  # characters of a value there


def main() -> None:
    args = parse(sys.argv[1:])
    with contextlib.ExitStack() as stack:
        output = None
        if args.output:
            beside = stack.enter_context(whole_file(args.output))
            output = stack.enter_context(beside.open("w", encoding="utf-8"))
        audit(args, Listing(output, args.lines))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.audit", __doc__, EXAMPLES)
    parser.add_argument(
        "--data",
        required=True,
        help="file, directory, tfds:NAME, hf:NAME or python_docs, as for training",
    )
    parser.add_argument("--split", default="train", help="which split of it (default: train)")
    parser.add_argument(
        "--limit", type=int, default=0, help="audit only the first N rows (default: all)"
    )
    parser.add_argument("--by", help=f"what rows must not share (default: {','.join(REASONS)})")
    parser.add_argument(
        "--model", help="directory or hub name of a model whose similarities count too"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="with --model: cosine above which two positives are one (0.9)",
    )
    parser.add_argument(
        "--prompt-name", help="with --model: its prompt before each positive (default: its own)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="size of the batch whose false negatives are expected (default: 64)",
    )
    parser.add_argument("--output", type=Path, help="JSONL file for the findings")
    parser.add_argument(
        "--lines",
        type=int,
        default=1_000_000,
        help="write at most N lines to it, 0: all (default: 1000000)",
    )
    args = parser.parse_args(argv)
    args.named = args.by is not None
    args.by = (
        list(dict.fromkeys(name.strip() for name in args.by.split(",")))
        if args.named
        else list(REASONS)
    )
    for name in args.by:
        if name not in REASONS:
            parser.error(f"--by: expected some of {','.join(REASONS)}, found {name!r}")
    for name, least in (("limit", 0), ("batch_size", 2), ("lines", 0)):
        if getattr(args, name) < least:
            parser.error(
                f"--{name.replace('_', '-')}: expected {least} or more, found {getattr(args, name)}"
            )
    for name in ("threshold", "prompt_name"):
        if getattr(args, name) is not None and not args.model:
            parser.error(f"--{name.replace('_', '-')} needs --model")
    args.threshold = 0.9 if args.threshold is None else args.threshold
    if not -1 <= args.threshold <= 1:
        parser.error(f"--threshold: expected a cosine from -1 to 1, found {args.threshold}")
    return args


def audit(args: argparse.Namespace, listing: Listing) -> None:
    model = None
    if args.model:
        model = load_model(args.model)
    file = PairFile(args.data, args.split, args.limit)
    rows = read_audited(file, args.by, required=args.named)
    affected = rows.affected()
    for finding in find_shared(file, rows):
        if listing.full:
            break
        listing.add(finding)
    counts = {name: count_sharing({name: codes}) for name, codes in rows.codes.items()}
    pairs = count_sharing(rows.codes)
    if model:
        counts["similarity"] = 0
        encode_blocks = functools.partial(
            model.encode_blocks,
            prompt_name=args.prompt_name,
            show_progress=sys.stderr.isatty(),
        )
        for first, second, values in find_similar(
            file, encode_blocks, model.dim, rows.count, args.threshold
        ):
            counts["similarity"] += 2 * len(first)
            new = ~rows.share(first, second)
            pairs += 2 * int(new.sum())
            affected[first] = affected[second] = True
            if listing.full:
                continue
            for i, j, value in zip(
                first[new].tolist(), second[new].tolist(), values[new].tolist(), strict=True
            ):
                listing.add(FalseNegative(i, j, "similarity", round(value, 4)))
                listing.add(FalseNegative(j, i, "similarity", round(value, 4)))
    summarize(args, rows, listing, pairs, counts, affected)


def summarize(
    args: argparse.Namespace,
    rows: AuditedRows,
    listing: Listing,
    pairs: int,
    counts: dict[str, int],
    affected,
) -> None:
    listed = pairs + rows.own + rows.others
    if listing.first:
        header = ("rows", "column", "why", "value")
        print_table(header, [cells(finding) for finding in listing.first])
        unlisted = listed - len(listing.first)
        print(f"and {unlisted} more\n" if unlisted else "")
    if listing.output and listing.count < listed:
        print(f"{args.output}: the first {listing.count} of {listed} (see --lines)")
    n = rows.count
    b = min(args.batch_size, n)
    both = b * (b - 1) / (n * (n - 1)) if n > 1 else 0.0  # the chance of two rows to be in a batch
    print(
        f"{n} rows, {pairs} pairs of rows "
        f"({', '.join(f'{name} {count}' for name, count in counts.items())}), "
        f"{100 * float(np.mean(affected)):.2f} % of rows affected; "
        f"expected number of false negatives in a batch of {b}: {pairs * both:.4g}"
    )
    if rows.num_hard:
        print(
            f"{rows.num_hard} hard negatives: {rows.own} times their own row's anchor or "
            f"positive, {rows.others} times "
            f"another row's (or with it in them, or part of it); expected in a batch of {b}: "
            f"{rows.own * b / n + rows.others * both:.4g}"
        )


def cells(finding: FalseNegative) -> tuple[str, str, str, str]:
    """Returns a row of the table on the terminal."""
    value = " ".join(str(finding.value).split())
    value = value if len(value) <= WIDTH else value[: WIDTH - 3] + "..."
    return f"{finding.row}->{finding.negative}", finding.column, finding.why, value


class Listing:
    """A list of findings: the first for the terminal, `most` (0: all) for a file, if any."""

    def __init__(self, output: IO[str] | None, most: int):
        self.output, self.most = output, most
        self.first: list[FalseNegative] = []
        self.count = 0  # written

    @property
    def full(self) -> bool:
        written = self.output is None or 0 < self.most <= self.count
        return written and len(self.first) == SHOWN

    def add(self, finding: FalseNegative) -> None:
        if len(self.first) < SHOWN:
            self.first.append(finding)
        if self.output is not None and not 0 < self.most <= self.count:
            self.output.write(json.dumps(dataclasses.asdict(finding), ensure_ascii=False) + "\n")
            self.count += 1


if __name__ == "__main__":
    exit_with_one_line(main)
