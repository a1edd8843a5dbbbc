"""Lists the false negatives of a data file of pairs, triplets or n-tuples.

Every other row's positive is a negative of a row when they meet in a batch. It is a false one where the two rows share
a text (the anchor or positive of one is the anchor or positive of the other, after Unicode NFKC and with single
blanks), an id or a group; with a model, also where their positives are more similar than a threshold. A hard negative
is a false one of every row whose anchor or positive it is, its own row included, and of every row with the same anchor
whose positive it contains or is part of, such as the positive with its title: the rule by which scripts.mine leaves out
candidates.

Rows are numbered from 0 in the order of the file. The file is read several times and not held in memory, except the
positives of anchors that stand in several rows with hard negatives; what rows share is counted exactly without listing
it.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from embed_jax.data.pairs import Places, count_sharing, normal_form, text_hash
from embed_jax.data.sources import iter_records, pair_columns
from embed_jax.errors import InputError, RunError, exit_with_one_line
from embed_jax.retrieval.copies import contains

from .commands import Parser, load_model, print_table, written_whole

EXAMPLES = """--output has an object a line, one for a pair of rows even if they share several things:
  {"row": 0, "negative": 1, "why": "group", "value": "g1", "column": "positive"}
  row        whose negative it is not
  negative   whose text it is; its column is "positive", or "negative_1" and so on for a hard negative
  why        text, id, group or similarity; value is what the two share, or how similar they are

examples:
  python -m scripts.audit --data pairs.jsonl
  python -m scripts.audit --data hf:my_pairs --split validation --by id,group --batch-size 256
  python -m scripts.audit --data pairs.tsv --model sentence-transformers/all-MiniLM-L6-v2 --threshold 0.95 \\
      --output audit.jsonl
"""
REASONS = ("text", "id", "group")
SHOWN = 20  # lines on the terminal
WIDTH = 60  # characters of a value there
ROW_BLOCK, COLUMN_BLOCK = 1024, 8192  # similarities at a time: 32 MB


def main() -> None:
    args = parse(sys.argv[1:])
    with contextlib.ExitStack() as stack:
        output = None
        if args.output:
            beside = stack.enter_context(written_whole(args.output))
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
        "--limit", type=int, default=0, help="audit the first so many rows only (default: all)"
    )
    parser.add_argument("--by", help=f"what rows may not share (default: {','.join(REASONS)})")
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
    parser.add_argument("--output", type=Path, help="JSONL file for the list")
    parser.add_argument(
        "--lines",
        type=int,
        default=1_000_000,
        help="write at most so many lines to it, 0: all (default: 1000000)",
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
    rows = read_rows(args)
    affected = rows.affected()
    for finding in find_shared(args, rows):
        if listing.full:
            break
        listing.add(finding)
    counts = {name: count_sharing({name: codes}) for name, codes in rows.codes.items()}
    pairs = count_sharing(rows.codes)
    if model:
        counts["similarity"] = 0
        for first, second, values in find_similar(args, model, rows.count):
            counts["similarity"] += 2 * len(first)
            new = ~rows.share(first, second)
            pairs += 2 * int(new.sum())
            affected[first] = affected[second] = True
            if listing.full:
                continue
            for i, j, value in zip(
                first[new].tolist(), second[new].tolist(), values[new].tolist(), strict=True
            ):
                listing.add(Finding(i, j, "similarity", round(value, 4)))
                listing.add(Finding(j, i, "similarity", round(value, 4)))
    summarize(args, rows, listing, pairs, counts, affected)


def summarize(
    args, rows: Rows, listing: Listing, pairs: int, counts: dict[str, int], affected
) -> None:
    listed = pairs + rows.own + rows.others
    if listing.first:
        header = ("rows", "column", "why", "value")
        print_table(header, [finding.cells() for finding in listing.first])
        more = listed - len(listing.first)
        print(f"and {more} more\n" if more else "")
    if listing.output and listing.count < listed:
        print(f"{args.output}: the first {listing.count} of {listed} (see --lines)")
    n = rows.count
    b = min(args.batch_size, n)
    both = b * (b - 1) / (n * (n - 1)) if n > 1 else 0.0  # the chance of two rows to be in a batch
    print(
        f"{n} rows, {pairs} pairs of rows ({', '.join(f'{name} {count}' for name, count in counts.items())}), "
        f"{100 * float(np.mean(affected)):.2f} % of rows affected; "
        f"expected number of false negatives in a batch of {b}: {pairs * both:.4g}"
    )
    if rows.num_hard:
        print(
            f"{rows.num_hard} hard negatives: {rows.own} times their own row's anchor or positive, {rows.others} times "
            f"another row's (or with it in them, or part of it); expected in a batch of {b}: {rows.own * b / n + rows.others * both:.4g}"
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """A text of row `negative`, in `column`, that is no negative of row `row`."""

    row: int
    negative: int
    why: str
    value: str | float
    column: str = "positive"

    def cells(self) -> tuple[str, str, str, str]:
        value = " ".join(str(self.value).split())
        value = value if len(value) <= WIDTH else value[: WIDTH - 3] + "..."
        return f"{self.row}->{self.negative}", self.column, self.why, value


class Listing:
    """Keeps the first findings for the terminal and writes at most `most` (0: all) to a file, if there is one."""

    def __init__(self, output: IO[str] | None, most: int):
        self.output, self.most = output, most
        self.first: list[Finding] = []
        self.count = 0  # written

    @property
    def full(self) -> bool:
        written = self.output is None or 0 < self.most <= self.count
        return written and len(self.first) == SHOWN

    def add(self, finding: Finding) -> None:
        if len(self.first) < SHOWN:
            self.first.append(finding)
        if self.output is not None and not 0 < self.most <= self.count:
            self.output.write(json.dumps(dataclasses.asdict(finding), ensure_ascii=False) + "\n")
            self.count += 1


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the audit keeps of a data set of n rows.

    Attributes:
        codes: by reason, `[n, 2]` (text) or `[n, 1]`: numbers that are equal where the things are, -1 for none. A row
            whose anchor is its positive has that text once.
        num_hard: how many hard negatives there are.
        hard: those that are the anchor or positive of some row: (row, k) for column negative_k.
        hard_places: which of `hard` are the text of a code.
        contained: by row, the (row, k) of hard negatives that contain its positive or are part of it.
        own, others: how many times a hard negative is a false one of its own row, and of another.
    """

    count: int
    codes: dict[str, Int[np.ndarray, "n w"]]
    num_hard: int
    hard: Int[np.ndarray, "h 2"]
    hard_places: Places
    contained: Mapping[int, Sequence[tuple[int, int]]]
    own: int
    others: int

    def affected(self) -> Bool[np.ndarray, " n"]:
        """The rows that have a false negative."""
        affected = np.zeros(self.count, bool)
        for name, codes in self.codes.items():
            false = Places(codes).sizes > 1
            if name == "text":
                false[: len(self.hard_places.sizes)] |= self.hard_places.sizes > 0
            affected |= np.append(false, False)[codes].any(1)  # code -1 finds the appended one
        affected[list(self.contained)] = True
        return affected

    def share(
        self, first: Int[np.ndarray, " m"], second: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, " m"]:
        """Whether two rows share a text, an id or a group."""
        shared = np.zeros(len(first), bool)
        for codes in self.codes.values():
            mine, theirs = codes[first][:, :, None], codes[second][:, None, :]
            shared |= ((mine == theirs) & (mine >= 0)).any((1, 2))
        return shared


def records(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Sequence[str | None]]]:
    """Each row's record and texts."""
    columns = None
    for number, record in enumerate(
        itertools.islice(iter_records(args.data, args.split), args.limit or None)
    ):
        columns = columns or pair_columns([record])
        texts = columns(record)
        if not isinstance(texts[0], str) or not isinstance(texts[1], str):
            raise InputError(
                f"{args.data}: row {number}: anchor and positive are needed, one is missing"
            )
        yield record, texts


def read_rows(args: argparse.Namespace) -> Rows:
    """Reads the data once and keeps 64 bits of each text, id and group."""

    def bits(text: str | None) -> int:
        high, low = text_hash(text)
        return high << 32 | low

    def form_bits(text: str) -> int:
        return bits(normal_form(text))

    hashes = {name: array.array("Q") for name in ("hard", *REASONS)}
    hard = array.array("q")  # row, k, row, k, ...
    for number, (record, columns) in enumerate(records(args)):
        hashes["text"].extend(map(form_bits, columns[:2]))
        for name in REASONS[1:]:
            key = record.get(name)
            hashes[name].append(bits(None if key is None else str(key).strip() or None))
        for place, text in enumerate(columns[2:], 1):
            if text is not None and "text" in args.by:
                hashes["hard"].append(form_bits(text))
                hard.extend((number, place))

    anchors = np.frombuffer(hashes["text"], np.uint64)[::2]
    codes, texts = {}, np.zeros(0, np.uint64)
    for name in args.by:
        values, found = np.unique(np.frombuffer(hashes[name], np.uint64), return_inverse=True)
        if name == "text":
            texts, codes[name] = values, found.reshape(-1, 2)
            codes[name][codes[name][:, 0] == codes[name][:, 1], 1] = -1
        else:
            codes[name] = np.where(values == 0, -1, np.arange(len(values)))[found][:, None]
            if args.named and not values.any():
                raise InputError(f"{args.data}: --by {name}: no row has the field {name!r}")

    wanted = np.frombuffer(hashes["hard"], np.uint64)
    known = np.isin(wanted, texts)
    code, where = (
        np.searchsorted(texts, wanted[known]),
        np.frombuffer(hard, np.int64).reshape(-1, 2)[known],
    )
    own = others = 0
    if len(code):
        own = int((codes["text"][where[:, 0]] == code[:, None]).any(1).sum())
        others = int(Places(codes["text"]).sizes[code].sum()) - own
    contained = find_contained(args, anchors) if len(wanted) else {}
    mine = sum(row == other for row, negatives in contained.items() for other, _ in negatives)
    own, others = own + mine, others + sum(map(len, contained.values())) - mine
    hard_places = Places(code[:, None])
    return Rows(len(anchors), codes, len(wanted), where, hard_places, contained, own, others)


def find_contained(
    args: argparse.Namespace, anchors: Int[np.ndarray, " n"]
) -> dict[int, list[tuple[int, int]]]:
    """By row, the (row, k) of hard negatives of the same anchor that contain its positive or are part of it.

    Negatives that are equal to the row's anchor or positive are left out: their hashes tell.

    Args:
        anchors: what is equal for equal anchors.
    """
    _, code, counts = np.unique(anchors, return_inverse=True, return_counts=True)
    shared: dict[int, list[tuple[int, str]]] = {}  # (row, positive) by anchor
    if (counts > 1).any():
        for row, (_, columns) in enumerate(records(args)):
            if row < len(code) and counts[code[row]] > 1:
                shared.setdefault(int(code[row]), []).append((row, normal_form(columns[1])))
    contained: dict[int, list[tuple[int, int]]] = {}
    for row, (_, columns) in enumerate(records(args)):
        anchor, own, *negatives = (text and normal_form(text) for text in columns)
        if not negatives or row >= len(code):
            continue
        for other, positive in shared.get(int(code[row]), [(row, own)]):
            for place, negative in enumerate(negatives, 1):
                if negative and negative not in (anchor, positive):
                    if contains(negative.casefold(), positive.casefold()):
                        contained.setdefault(other, []).append((row, place))
    return contained


def find_shared(args: argparse.Namespace, rows: Rows) -> Iterator[Finding]:
    """What rows share, row by row, from a second reading of the data."""
    affected, number = rows.affected(), -1
    places = {name: Places(codes) for name, codes in rows.codes.items()}
    for number, (record, columns) in enumerate(records(args)):
        if number >= rows.count:
            break
        if not affected[number]:
            continue
        seen = np.array([number])
        for why, codes in rows.codes.items():
            for place, code in enumerate(codes[number].tolist()):
                if code < 0:
                    continue
                value = (columns[place] if why == "text" else str(record[why])).strip()
                new = np.setdiff1d(places[why][code], seen, assume_unique=True)
                yield from (Finding(number, negative, why, value) for negative in new.tolist())
                seen = np.concatenate([seen, new])
                if why == "text":
                    for row, k in rows.hard[rows.hard_places[code]].tolist():
                        yield Finding(number, row, why, value, f"negative_{k}")
        for row, k in rows.contained.get(number, ()):
            yield Finding(number, row, "text", columns[1].strip(), f"negative_{k}")
    if number + 1 != rows.count:
        raise RunError(
            f"{args.data}: changed while it was read: {rows.count} rows at first, now others"
        )


def find_similar(
    args: argparse.Namespace, model: Any, count: int
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Row i, row j > i and the cosine of their positives where it is above the threshold, a block at a time.

    The embeddings lie in a temporary file.
    """
    import jax

    from embed_jax.scores import unit_length

    positives = (columns[1] for _, columns in records(args))
    # Accelerators round float32 products to fewer bits unless told not to.
    cosines = jax.jit(lambda first, second: jax.numpy.matmul(first, second.T, precision="highest"))
    with tempfile.TemporaryDirectory() as directory:
        shape = (count, model.dim)
        units = np.lib.format.open_memmap(
            Path(directory) / "units.npy", mode="w+", dtype=np.float32, shape=shape
        )
        done = 0
        for block in model.encode_blocks(
            positives, prompt_name=args.prompt_name, show_progress=sys.stderr.isatty()
        ):
            units[done : done + len(block)] = unit_length(block)[: max(count - done, 0)]
            done += len(block)
        if done != count:
            raise RunError(
                f"{args.data}: changed while it was read: {count} rows at first, then {done}"
            )
        for top in range(0, count, ROW_BLOCK):
            block = units[top : top + ROW_BLOCK]
            for left in range(top // COLUMN_BLOCK * COLUMN_BLOCK, count, COLUMN_BLOCK):
                found = np.asarray(cosines(block, units[left : left + COLUMN_BLOCK]))
                first, second = np.nonzero(found > args.threshold)
                upper = top + first < left + second
                first, second = first[upper], second[upper]
                yield top + first, left + second, found[first, second]


if __name__ == "__main__":
    exit_with_one_line(main)
