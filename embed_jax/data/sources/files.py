"""Data files of the user: JSONL, TSV or CSV with a header, plain text; any of them gzip-compressed; UTF-8.

Errors name file and line. Nothing is skipped silently; blank lines count as errors except at the end of a file.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import KINDS, SCORED_LIST, kind_of
from embed_jax.errors import InputError

FORMATS = (".jsonl", ".tsv", ".csv", ".txt")
# These may be numbers in JSON; all others of a record are texts, but for the lists of SCORED_LIST.
VALUES = {"id", "_id", "group", "score", "label", "fine_label"}
LISTS = {"passages": "strings", "scores": "finite numbers"}
TEXTS = {name for kind in KINDS for name in kind} - LISTS.keys()
Record = dict[str, Any]


def open_source(rest: str, split: str, fields: Sequence[str] = ()) -> list[Record]:
    """The records of a file, or of `DIRECTORY/SPLIT.jsonl` (or .tsv, .csv, .txt; .gz); `fields` as of `read_table`.

    Raises:
        InputError: no such file or split; see also `read_table`.
    """
    return read_table(find_file(rest, split), fields)


def find_file(name: str, split: str) -> Path:
    """The file of a split: the one so called in a directory, or the file itself for "train".

    Raises:
        InputError: no such split.
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
            f"{path}: a file has no split {split!r}; name the file of that split, or a directory of files"
        )
    return path


def place_in_file(name: str, split: str, number: int) -> str:
    """ "FILE:LINE" of a record by its number; "" if the records are not a file's."""
    path = find_file(name, split)
    if not path.is_file():
        return ""
    line, _ = next(itertools.islice(iter_lines(path), number, None))
    return f"{path}:{line}"


def read_table(path: str | Path, required: Sequence[str] = ()) -> list[Record]:
    """All records of a file: texts are strings, and so are numbers; `passages` and `scores` are lists.

    Args:
        required: fields that each record must have; none: those of one of KINDS.

    Raises:
        InputError: for anything that is wrong with the file, its fields or a line; also if it, or all text, is empty.
    """
    return list(iter_table(path, required))


def iter_table(path: str | Path, required: Sequence[str] = ()) -> Iterator[Record]:
    """`read_table` record by record, for files that do not fit into memory; that all is empty shows at the end."""
    required = tuple(required)
    table = file_format(Path(path)) != ".jsonl"  # whose fields are those of its header
    count, solid = 0, False
    for line, record in iter_lines(path):
        count += 1
        required = required or kind_of(record)
        check_fields(record, required, f"{path}:{1 if table else line}")
        if "score" in record:
            finite(record["score"], f"{path}:{line}: score")
        texts = [name for name in required if name not in VALUES | LISTS.keys()]
        solid = solid or not texts or any(record[name].strip() for name in texts)
        yield record
    if not count:
        raise InputError(f"{path}: empty, no records in it")
    if not solid:
        raise InputError(f"{path}: all texts are empty ({', '.join(texts)} of {count} records)")


def check_fields(record: Record, required: Sequence[str], where: str) -> None:
    """Checks that a record has the fields, of which there is at least one.

    Raises:
        InputError: "WHERE: no field ..." or "WHERE: unknown fields ...", with what was found and is accepted.
    """
    missing = [name for name in required if name not in record]
    if missing or not required:
        accepted = " ".join(required) if required else "; ".join(" ".join(kind) for kind in KINDS)
        lacks = f"no field {missing[0]!r}" if missing else "unknown fields"
        raise InputError(
            f"{where}: {lacks}: found {', '.join(record) or 'none'}; accepted: {accepted}"
        )


def read_sts(path: str | Path) -> tuple[list[str], list[str], list[float], list[str]]:
    """A file of sentence pairs with similarity: `score sentence1 sentence2 [subset]`.

    Returns:
        First sentences, second sentences, scores, and the name of the subset of each pair ("" if there are none).
    """
    records = read_table(path, ("score", "sentence1", "sentence2"))
    columns = [[record[name] for record in records] for name in ("sentence1", "sentence2")]
    scores = [float(record["score"]) for record in records]
    return *columns, scores, [record.get("subset", "") for record in records]


def iter_lines(path: str | Path) -> Iterator[tuple[int, Record]]:
    """(line number, record). `negatives`, a JSON list, becomes negative_1, negative_2, ...; no negative is empty.

    The `passages` and `scores` of a scored list are lists, in a table from JSON text.
    """
    path = Path(path)
    kind = file_format(path)
    if kind == ".txt":
        rows: Iterable = ((line, {"text": text}) for line, text in _solid(path, _lines(path)))
    elif kind == ".jsonl":
        rows = ((line, from_json(record, f"{path}:{line}")) for line, record in iter_json(path))
    elif kind in (".tsv", ".csv"):
        rows = _table(path, _csv_rows(path) if kind == ".csv" else _tsv_rows(path))
    else:
        raise InputError(
            f"{path}: unknown file type; accepted are {', '.join(FORMATS)}, each also with .gz"
        )
    for line, record in rows:
        yield line, record if kind == ".jsonl" else _with_lists(record, f"{path}:{line}")


def from_json(record: dict[str, Any], where: str) -> Record:
    """The record that a JSON object stands for, as `iter_lines` gives it.

    Raises:
        InputError: "WHERE: field ..." for a value that is none for its field.
    """
    return _with_lists(_strings(record, where), where)


def iter_json(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file."""
    for line, text in _solid(path, _lines(Path(path))):
        yield line, json_object(text, f"{path}:{line}")


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The object that JSON text spells.

    Raises:
        InputError: "WHERE: invalid JSON ..." or "WHERE: expected a JSON object ..."
    """
    try:
        record = json.loads(text)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: invalid JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def file_format(path: Path) -> str:
    """The file's ending without ".gz"."""
    return Path(path.name.removesuffix(".gz")).suffix


def finite(text: str, where: str) -> float:
    """The number that a text spells.

    Raises:
        InputError: "WHERE: expected a finite number, found ..." if it spells none.
    """
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, found {text!r}")
    return number


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end)."""
    for number, raw in raw_lines(path):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: invalid UTF-8 (byte {error.start + 1} of the line)"
            ) from None


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its end) of a file, gzip-compressed if its name says so.

    Raises:
        InputError: if it is missing, cannot be read, or is damaged.
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


def _solid(path: str | Path, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The rows without blank ones at the end; others are errors."""
    blank = 0
    for line, row in rows:
        if row and blank:
            raise InputError(f"{path}:{blank}: blank line")
        if row:
            yield line, row
        else:
            blank = blank or line


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    return ((line, text.split("\t") if text else []) for line, text in _lines(path))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file; a quoted field may hold line breaks."""
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


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Record]]:
    """Records of rows under a header."""
    header: list[str] = []
    for line, row in _solid(path, rows):
        if not header:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header) or "" in header:
                raise InputError(
                    f"{path}:{line}: the header's names must be different, found {', '.join(header)}"
                )
        elif len(row) != len(header):
            raise InputError(
                f"{path}:{line}: found {len(row)} fields, expected {len(header)}: {', '.join(header)}"
            )
        else:
            yield line, dict(zip(header, row, strict=True))


def _strings(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with numbers spelt out; null is absent; fields of no use here that hold no string are dropped."""
    lists = {"negatives", *(LISTS if kind_of(record) == SCORED_LIST else ())}
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, str) or name in lists:
            found[name] = value
        elif name in VALUES and isinstance(value, int | float):
            found[name] = repr(value)
        elif value is not None and (name in TEXTS or name in VALUES or name.startswith("negative")):
            accepted = "a string or a number" if name in VALUES else "a string"
            raise InputError(
                f"{where}: field {name!r} must be {accepted}, found {type(value).__name__}"
            )
    return found


def _with_lists(record: Record, where: str) -> Record:
    """The record with single negatives, and with the lists of a scored list."""
    if any(name.startswith("negative") for name in record):
        record = _flatten_negatives(record, where)
    if kind_of(record) == SCORED_LIST:
        record = record | {name: _json_list(record[name], name, where) for name in LISTS}
        check_scored(record, f"{where}: ")
    return record


def _flatten_negatives(record: dict[str, Any], where: str) -> Record:
    negatives = _json_list(record.pop("negatives", None) or [], "negatives", where)
    kept = {
        name: text
        for name, text in record.items()
        if text.strip() or not name.startswith("negative")
    }
    taken = sum(name.startswith("negative") for name in kept)
    negatives = [negative for negative in negatives if negative.strip()]
    return kept | {
        f"negative_{number}": negative for number, negative in enumerate(negatives, taken + 1)
    }


def check_scored(record: Record, where: str = "") -> None:
    """Checks that a scored list has a score for each passage.

    Raises:
        InputError: "WHEREfound 3 passages and 2 scores, ..."
    """
    passages, scores = (len(record[name]) for name in LISTS)
    if passages != scores or not passages:
        raise InputError(
            f"{where}found {passages} passages and {scores} scores, expected as many, and at least one"
        )


def _json_list(value: Any, name: str, where: str) -> list[Any]:
    """A list of strings or, called `scores`, of finite numbers, which in TSV and CSV is JSON text."""
    kind = LISTS.get(name, "strings")
    if isinstance(value, str):
        try:
            value = json.loads(value)
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError):
            value = None

    def fits(one: Any) -> bool:
        if kind == "strings":
            return isinstance(one, str)
        return isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)

    if not isinstance(value, list) or not all(map(fits, value)):
        raise InputError(f"{where}: field {name!r} must be a JSON list of {kind}")
    return value
