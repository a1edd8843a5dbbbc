"""Data files in UTF-8: JSONL, TSV or CSV with a header, plain text; any of them also .gz.

Errors name file and line. Blank lines are errors except at the end of a file, and in plain text.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embed_jax.data.records import RawRecord, clean_record
from embed_jax.data.sources.base import Records
from embed_jax.errors import InputError

FORMATS = (".jsonl", ".tsv", ".csv", ".txt")
QUOTED = re.compile(r'"((?:[^"]|"")*)"')  # a field of RFC 4180


def open_source(rest: str, split: str) -> Records:
    """Reads the raw records of a file or of `DIRECTORY/SPLIT.jsonl` (or .tsv, .csv, .txt; .gz).

    Raises:
        InputError: there is no such file or split, or it cannot be read.
    """
    path = find_file(rest, split)
    lines, rows = [], []
    for line, row in iter_rows(path):
        lines.append(line)
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: empty, no records in it")
    return Records(rows, dict, range(len(rows)), place=lambda index: f"{path}:{lines[index]}")


def find_file(name: str, split: str) -> Path:
    """Finds the file of a split: that of its name in a directory, or a file itself for "train".

    Raises:
        InputError: there is no such split.
    """
    path = Path(name)
    if path.is_dir():
        files = {file.name: file for file in sorted(path.iterdir()) if file_format(file) in FORMATS}
        named = [
            files[f"{split}{end}{gz}"]
            for end in FORMATS
            for gz in ("", ".gz")
            if f"{split}{end}{gz}" in files
        ]
        if len(named) != 1:
            raise InputError(
                f"{path}: found {len(named)} files for the split {split!r}, expected one; "
                f"there are {', '.join(files) or 'no data files'}"
            )
        return named[0]
    if path.is_file() and split != "train":
        raise InputError(
            f"{path}: a file has no split {split!r}; name the file of that split, or a directory "
            "of files"
        )
    return path


def iter_rows(path: str | Path) -> Iterator[tuple[int, RawRecord]]:
    """Yields (line number, raw record); in a table and in plain text all values are strings.

    Raises:
        InputError: with the line: the file cannot be read.
    """
    path = Path(path)
    kind = file_format(path)
    if kind == ".txt":
        return ((line, {"text": text}) for line, text in _strip_end(_lines(path)))
    if kind == ".jsonl":
        return iter_json(path)
    if kind in (".tsv", ".csv"):
        return _table(path, _csv_rows(path) if kind == ".csv" else _tsv_rows(path))
    raise InputError(
        f"{path}: unknown file type; accepted are {', '.join(FORMATS)}, each also with .gz"
    )


def iter_lines(path: str | Path) -> Iterator[tuple[int, RawRecord]]:
    """Yields (line number, record), cleaned by `clean_record`; no record is left out."""
    for line, row in iter_rows(path):
        yield line, clean_record(row, f"{path}:{line}")


def iter_json(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of a JSONL file."""
    for line, text in _check_blank_lines(path, _lines(Path(path))):
        yield line, json_object(text, f"{path}:{line}")


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        InputError: "WHERE: invalid JSON ..." or "WHERE: expected a JSON object ..."
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: invalid JSON: {error}") from None
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(f"{where}: {half} is half of a surrogate pair, which is no text") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def file_format(path: Path) -> str:
    """Returns the file's ending without ".gz"."""
    return Path(path.name.removesuffix(".gz")).suffix


def parse_number(text: Any, where: str) -> float:
    """Returns the number that a text spells.

    Raises:
        InputError: "WHERE: expected a finite number, found ..."
    """
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, found {text!r}")
    return number


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end)."""
    for number, raw in raw_lines(path):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: invalid UTF-8 (byte {error.start + 1} of the line)"
            ) from None


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line with its end) of a file; one that ends in .gz is unpacked.

    Raises:
        InputError: the file is missing, cannot be read, or is damaged.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, raw
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}:{number + 1}: damaged or cut-off gzip data ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _check_blank_lines(
    path: str | Path, rows: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    """Yields the rows without blank ones at the end; other blank ones are errors."""
    blank = 0
    for line, row in rows:
        if row and blank:
            raise InputError(f"{path}:{blank}: blank line")
        if row:
            yield line, row
        else:
            blank = blank or line


def _strip_end(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yields the rows without empty ones at the end."""
    empty: list[tuple[int, str]] = []
    for row in rows:
        empty.append(row)
        if row[1]:
            yield from empty
            empty.clear()


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields rows of a TSV file; fields quoted as a whole, as by pandas, lose their quotes."""
    for line, text in _lines(path):
        fields = text.split("\t") if text else []
        yield line, [_unquote(field) for field in fields] if '"' in text else fields


def _unquote(field: str) -> str:
    match = QUOTED.fullmatch(field)
    return match[1].replace('""', '"') if match else field


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields rows of a CSV file; a quoted field may contain line breaks."""
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of 128 kB
    reader = csv.reader((text + "\n" for _, text in _lines(path)), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: invalid CSV: {error}") from None
        yield reader.line_num, row


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, RawRecord]]:
    """Yields records of rows under a header.

    Columns without a name, such as an index of pandas, are left out.
    """
    header: list[str] = []
    named: dict[str, int] = {}
    for line, row in _check_blank_lines(path, rows):
        if not header:
            header = [name.strip() for name in row]
            names = [name for name in header if name]
            named = {name: index for index, name in enumerate(header) if name}
            if len(named) < len(names) or not names:
                raise InputError(
                    f"{path}:{line}: the header's names must be different, found "
                    f"{', '.join(header)}"
                )
            least = max(named.values()) + 1
            continue
        # A comma at the end of each line makes one more, empty field.
        beyond = row[len(header) :]
        if len(row) < least or len(beyond) > 1 or any(field.strip() for field in beyond):
            raise InputError(
                f"{path}:{line}: found {len(row)} fields, expected {len(names)}: {', '.join(names)}"
            )
        yield line, {name: row[index] for name, index in named.items()}
