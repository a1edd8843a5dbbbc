"""Opens data sets by name: records for training, and raw records for evaluations."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.records import Cleaner, RawRecord
from embed_jax.data.sources.base import Located, Records
from embed_jax.data.sources.files import file_format, find_file, iter_rows
from embed_jax.errors import InputError, warn
from embed_jax.registry import OWN, REGISTRY, lookup, unknown


def open_records(
    name: str, split: str = "train", columns: Sequence[str] = ()
) -> Sequence[dict[str, Any]]:
    """Opens a data set for training; README.md in `embed_jax.data` lists how values are cleaned.

    Records that lack a text, or are marked to have no gold label, are left out, and a warning
    counts them. Data in memory are checked as a whole; in other data, a record with a bad value is
    an error when it is read.

    Args:
        name: "python_docs"; one of `recipes.recipes()`, such as "snli";
            "tfds:NAME[/CONFIG][:VERSION]"; "hf:NAME[:CONFIG][@REVISION]" or "hf:DIRECTORY";
            "array_record:PATTERN" or "parquet:PATTERN" for sharded files, or their directory; else
            a file (.jsonl, .tsv, .csv, .txt, each also .gz) or a directory of files SPLIT.jsonl and
            so on. A directory with the name of a data set is "./snli". "MODULE:FUNCTION[:REST]" is
            the sequence of dicts that `FUNCTION(REST, split)` of any importable module returns.
        split: the split of the data set.
        columns: the names of the columns that are the anchor, the positive and the negatives, or of
            the only text; empty: the usual names. Case does not matter.

    Returns:
        Records with random access.

    Raises:
        InputError: the name, the split or a file cannot be used.
    """
    kind, rest = _source(name)
    if kind == "file":
        return [record for _, record in read_file(find_file(rest, split), columns)]
    raw = open_raw(name, split, columns)
    return clean_records(raw, f"{name}, split {split!r}", columns)


def iter_records(
    name: str, split: str = "train", columns: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields the records of `open_records` one by one.

    A file or a data set of the hub may be larger than memory, the latter also than the disk.
    """
    kind, rest = _source(name)
    if kind == "file":
        return (record for _, record in read_file(find_file(rest, split), columns))
    if kind != "hf":
        return iter(open_records(name, split, columns))
    from embed_jax.data.sources.hf import iter_source

    rows, class_names = iter_source(rest, split)
    numbered = ((f"{name}, record {index}", row) for index, row in enumerate(rows))
    cleaner = Cleaner(columns, class_names)
    return (record for _, record in iter_clean(numbered, cleaner, f"{name}, split {split!r}"))


def open_raw(name: str, split: str = "train", columns: Sequence[str] = ()) -> Records:
    """Opens the raw records of a data set, for readers with their own fields.

    Raises:
        InputError: the name, the split or a file cannot be used, or the split is empty.
    """
    kind, rest = _source(name)
    extra = (columns,) if kind == "parquet" else ()
    raw = lookup("source", kind)(rest, split, *extra)
    if not isinstance(raw, Records):
        raw = Records(raw, dict, range(len(raw)))
    if raw.place is None:
        raw = dataclasses.replace(raw, place=(name + ", record {}").format)
    if not len(raw):
        raise InputError(f"{name}: the split {split!r} is empty")
    return raw


def clean_records(raw: Records, name: str, columns: Sequence[str] = ()) -> Sequence[RawRecord]:
    """Cleans records: at once if they are a list, else when they are read.

    Args:
        raw: the raw records.
        name: their name in the warning about records that are left out.
        columns: see `open_records`.

    Raises:
        InputError: the kind of the first record is unknown, or no record is left.
    """
    cleaner = Cleaner(columns, raw.class_names)
    if isinstance(raw.source, list):
        rows = ((raw.where(index), raw[index]) for index in range(len(raw)))
        return [record for _, record in iter_clean(rows, cleaner, name)]
    cleaner(raw[0], raw.where(0))  # decides on the kind
    cleaner.left_out.clear()
    positions = np.asarray(raw.indices)
    suspects = positions
    if raw.suspects is not None:
        texts = list(columns[:2] or cleaner.required)
        suspects = np.intersect1d(positions, raw.suspects(texts))
    out = [
        position
        for position in suspects.tolist()
        if cleaner(raw.decode(raw.source[position]), raw.place_of(position)) is None
    ]
    _report(cleaner, name, len(positions))
    return Records(
        Located(raw.source),
        functools.partial(_clean_at, cleaner, raw),
        positions[~np.isin(positions, out)],
        place=raw.place,
    )


def _clean_at(cleaner: Cleaner, raw: Records, item: tuple[int, Any]) -> RawRecord:
    position, value = item
    where = raw.place_of(position)
    record = cleaner(raw.decode(value), where)
    if record is None:  # the search for suspects has missed it
        raise InputError(f"{where}: without a text or label")
    return record


def iter_clean(
    rows: Iterable[tuple[str, Mapping[str, Any]]], cleaner: Cleaner, name: str, header: str = ""
) -> Iterator[tuple[int, RawRecord]]:
    """Yields (position, record) of the rows that are not left out, and warns at the end.

    Args:
        rows: (place, raw record) pairs.
        cleaner: the cleaner of these rows.
        name: the name of the data set in messages.
        header: the place where the fields are named, if it is another one.

    Raises:
        InputError: a record is bad, there are no records, or no record is left.
    """
    total = 0
    for total, (where, raw) in enumerate(rows, 1):
        record = cleaner(raw, where, header)
        if record is not None:
            yield total - 1, record
    if not total:
        raise InputError(f"{name}: empty, no records in it")
    _report(cleaner, name, total)


def _report(cleaner: Cleaner, name: str, total: int) -> None:
    if sum(cleaner.left_out.values()) == total:
        raise InputError(f"{name}: no record is left, {cleaner.report(total)}")
    if cleaner.left_out:
        warn(f"{name}: {cleaner.report(total)}")


def read_file(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, RawRecord]]:
    """Yields (line, record) of a file, for training.

    Raises:
        InputError: the file, its fields or a line is not valid.
    """
    lines: list[int] = []

    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for line, row in iter_rows(path):
            lines[:] = [line]
            yield f"{path}:{line}", row

    table = file_format(Path(path)) in (".tsv", ".csv")  # the fields are named in its header
    header = f"{path}:1" if table else ""
    for _, record in iter_clean(rows(), Cleaner(columns), str(path), header):
        yield lines[0], record


def read_table(path: str | Path) -> list[RawRecord]:
    """Reads all records of a file, for training."""
    return [record for _, record in read_file(path)]


def place_in_file(name: str, split: str, index: int, columns: Sequence[str] = ()) -> str:
    """Returns "FILE:LINE" of a record of `open_records` by its position; "" if it has no file."""
    kind, rest = _source(name)
    path = find_file(rest, split) if kind == "file" else Path()
    if not path.is_file():
        return ""
    line, _ = next(itertools.islice(read_file(path, columns), index, None))
    return f"{path}:{line}"


def _source(name: str) -> tuple[str, str]:
    from embed_jax.data.sources.recipes import recipes

    kind, _, rest = name.partition(":")
    if kind in REGISTRY["source"] and kind != "file":
        return kind, rest
    there = Path(name).exists()
    if not there and (own := re.match(rf"({OWN.pattern})(?::(.*))?$", name)):
        return own[1], own[2] or ""
    if name not in recipes():
        if not there and name.isidentifier():
            raise InputError(
                unknown(
                    "data set or file", name, {*recipes(), *REGISTRY["source"]} - {"file", "recipe"}
                )
            )
        return "file", name
    if there:
        warn(f"{name} is the data set of that name; write ./{name} for the local file or directory")
    return "recipe", name
