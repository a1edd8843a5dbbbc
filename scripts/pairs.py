"""Makes training pairs from clicks on search results, groups of duplicates or paraphrases.

Every row that does not become a pair is counted under its reason, and listed with --dropped. With
--holdout the output is a directory of train.jsonl, validation.jsonl and test.jsonl in which no text
stands on two sides, be it an anchor here and a positive there. Read them for training as any other
data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from embed_jax.data import positives
from embed_jax.data.pairs import TextRecord, split_pairs
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.pair_scores import PairScorer, check_ranks

from .commands import Parser, load_model, whole_file

EXAMPLES = """files are JSONL, TSV or CSV with a header, each also as .gz:
  clicks       query doc_id clicks, and a corpus _id text [title]; a pair has the document's id and
               the query's group
  groups       text group; a pair has the group
  paraphrases  sentence1 sentence2

Records that share an id or a group are never each other's negatives.

examples:
  python -m scripts.pairs clicks --input clicks.tsv --corpus corpus.jsonl --min-clicks 3 \\
      --top 5 --output pairs.jsonl
  python -m scripts.pairs groups --input questions.csv --text-field question \\
      --group-field group_id \\
      --holdout 0.1 --output duplicates
  python -m scripts.pairs paraphrases --input candidates.tsv \\
      --model sentence-transformers/all-MiniLM-L6-v2 \\
      --threshold 0.8 --dropped dropped.jsonl --output paraphrases.jsonl
"""


def main() -> None:
    args = parse(sys.argv[1:])
    with contextlib.ExitStack() as stack:
        output = stack.enter_context((whole_directory if args.holdout else whole_file)(args.output))
        listing = None
        if args.dropped:
            beside = stack.enter_context(whole_file(args.dropped))
            listing = stack.enter_context(beside.open("w", encoding="utf-8"))
        dropped = Dropped(listing)
        pairs = args.make(args, dropped)
        sides = split(pairs, args.holdout, args.seed) if args.holdout else {"": pairs}
        for name, side in sides.items():
            write_lines(output / f"{name}.jsonl" if name else output, side)
    counts = ", ".join(f"{name} {len(side)}" for name, side in sides.items() if name)
    print(f"{args.output}: {len(pairs)} pairs{f' ({counts})' if counts else ''}")
    reasons = ", ".join(f"{why} {count}" for why, count in dropped.counts.items())
    print(f"dropped: {reasons or 'nothing'}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.pairs", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, text: str, columns: str, make: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument(
            "--input",
            required=True,
            type=Path,
            help=f"JSONL, TSV or CSV file with a header, or any of them .gz; columns: {columns}",
        )
        added.add_argument(
            "--output", required=True, type=Path, help=".jsonl file; with --holdout a new directory"
        )
        added.add_argument(
            "--holdout",
            type=float,
            default=0.0,
            help="share for validation, and the same for test (default: no split)",
        )
        added.add_argument(
            "--seed",
            type=int,
            default=0,
            help="seed of the split and of the pairs in a group (default: 0)",
        )
        added.add_argument(
            "--dropped", type=Path, help="JSONL file for rows that became no pair, with reasons"
        )
        added.set_defaults(make=make)
        return added

    clicks = command(
        "clicks",
        "pairs of a query and a document clicked for it",
        "query, doc_id, clicks",
        make_clicks,
    )
    clicks.add_argument(
        "--corpus",
        required=True,
        type=Path,
        help="file of the documents; columns: _id (or id), text and optionally title",
    )
    clicks.add_argument(
        "--min-clicks", type=int, default=1, help="clicks that a pair needs (default: 1)"
    )
    clicks.add_argument(
        "--top",
        type=int,
        default=0,
        help="keep the N most clicked documents of a query (default: all)",
    )

    groups = command(
        "groups",
        "pairs of texts of the same group, such as questions resolved as duplicates",
        "text, group (see --text-field and --group-field)",
        make_groups,
    )
    groups.add_argument("--text-field", default="text", help="default: text")
    groups.add_argument("--group-field", default="group", help="default: group")
    groups.add_argument(
        "--max-per-group",
        type=int,
        default=10,
        help="at most N pairs per group, 0: all (default: 10)",
    )

    paraphrases = command(
        "paraphrases",
        "candidate paraphrases that a model accepts",
        "sentence1, sentence2",
        make_paraphrases,
    )
    scorer = paraphrases.add_mutually_exclusive_group(required=True)
    scorer.add_argument(
        "--model", help="embedding model whose cosine is the score: a directory or hub name"
    )
    scorer.add_argument(
        "--cross-encoder", help="cross-encoder that gives the score: a directory or hub name"
    )
    paraphrases.add_argument(
        "--threshold", type=float, required=True, help="lowest score of a pair"
    )
    paraphrases.add_argument(
        "--prompt-name", help="with --model: its prompt before each text (default: its own)"
    )

    args = parser.parse_args(argv)
    for name, least in (("min_clicks", 1), ("top", 0), ("max_per_group", 0), ("seed", 0)):
        if getattr(args, name, least) < least:
            parser.error(
                f"--{name.replace('_', '-')}: expected {least} or more, found {getattr(args, name)}"
            )
    if not 0 <= args.holdout < 0.5:
        parser.error(f"--holdout: expected at least 0 and less than 0.5, found {args.holdout}")
    if not args.holdout and args.output.suffix != ".jsonl":
        parser.error(f"--output: expected a name that ends in .jsonl, found {str(args.output)!r}")
    if args.dropped and args.dropped == args.output:
        parser.error(f"--dropped and --output are the same file {str(args.output)!r}")
    if getattr(args, "prompt_name", None) is not None and not args.model:
        parser.error("--prompt-name needs --model")
    if not np.isfinite(getattr(args, "threshold", 0.0)):
        parser.error(f"--threshold: expected a finite number, found {args.threshold}")
    return args


class Dropped:
    """Counts rows that became no pair by reason, and lists them in a file, if there is one."""

    def __init__(self, listing: IO[str] | None):
        self.listing = listing
        self.counts: Counter[str] = Counter()

    def __call__(self, why: str, row: Mapping[str, Any]) -> None:
        self.counts[why] += 1
        if self.listing:
            self.listing.write(json.dumps({"why": why, **row}, ensure_ascii=False) + "\n")


def make_clicks(args: argparse.Namespace, drop: Dropped) -> list[positives.PositivePair]:
    return positives.click_pairs(
        args.input, args.corpus, drop, min_clicks=args.min_clicks, top=args.top
    )


def make_groups(args: argparse.Namespace, drop: Dropped) -> list[positives.PositivePair]:
    return positives.group_pairs(
        args.input,
        drop,
        text_field=args.text_field,
        group_field=args.group_field,
        max_per_group=args.max_per_group,
        seed=args.seed,
    )


def make_paraphrases(args: argparse.Namespace, drop: Dropped) -> list[positives.PositivePair]:
    score = (
        cosine_scorer(args.model, args.prompt_name)
        if args.model
        else cross_encoder_scorer(args.cross_encoder)
    )
    return positives.paraphrase_pairs(args.input, score, args.threshold, drop)


def cosine_scorer(name: str, prompt_name: str | None) -> PairScorer:
    """Scores pairs by the cosine of their embeddings."""
    from embed_jax.scores import unit_length

    model = load_model(name)

    def score(first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, " n"]:
        a, b = (
            unit_length(model.encode(texts, prompt_name=prompt_name)) for texts in (first, second)
        )
        return np.einsum("nd,nd->n", a, b)

    return score


def cross_encoder_scorer(name: str) -> PairScorer:
    """Scores pairs by a cross-encoder."""
    from embed_jax.cross_encoder import load_cross_encoder
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    model = load_cross_encoder(name)
    check_ranks(model, f"--cross-encoder: {name}")
    return model.score


def split(
    pairs: Sequence[positives.PositivePair], holdout: float, seed: int
) -> dict[str, list[TextRecord]]:
    try:
        return split_pairs(pairs, holdout, seed)
    except InputError as error:  # which names the option of a config
        raise InputError(str(error).replace("config.data.holdout=", "--holdout ")) from None


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields a directory beside `path` that gets its name when the block ends without an error.

    Raises:
        InputError: at once, before any work, if there is something of that name or nothing can be
            written there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    if path.exists():
        raise InputError(f"{path}: exists already; name a new directory")
    try:
        beside.mkdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield beside
        os.rename(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    exit_with_one_line(main)
