"""Reads data of evaluations: labelled texts and pairs, reranking, translations, summaries.

`data` is a file, used whatever the split; a directory with a file SPLIT.jsonl, .tsv or .csv (each
also .gz); or "tfds:NAME", "hf:NAME[:CONFIG][@REVISION]" and other sources with a prefix, whose
fields are those of mteb's data sets. Lists are in JSONL only. In a file each `_id` or `id` must be
unique. Errors have the file and line, or the record's index.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_jax.data.record_values import clean_key, is_missing, to_python
from embed_jax.data.sources.files import find_file, iter_rows
from embed_jax.data.sources.opening import open_raw
from embed_jax.data.sources.rows import Row
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY

IDS = ("_id", "id")


def read_rows(data: str, split: str) -> list[Row]:
    """Reads all records of a split.

    Raises:
        InputError: the data cannot be read, the split is empty, or a file has an id twice.
    """
    rows = list(_file_rows(data, split) if _is_file(data) else _source_rows(data, split))
    if not rows:
        raise InputError(f"{describe_split(data, split)}: empty, no records in it")
    return rows


def describe_split(data: str, split: str) -> str:
    """Returns the name of a split in messages: its file, or "hf:NAME, split 'test'"."""
    return str(_path(data, split)) if _is_file(data) else f"{data}, split {split!r}"


def read_labelled_texts(data: str, split: str, label: str = "label") -> tuple[list[str], list[str]]:
    """Reads texts and their labels, from the fields `text` and `label` (or another name).

    Labels are returned as texts, numbers too.
    """
    rows = read_rows(data, split)
    return _check_texts([row.text("text") for row in rows], data, split), [
        row.label(label) for row in rows
    ]


def read_text_sets(
    data: str, split: str, label: str = ""
) -> tuple[list[list[str]], list[list[tuple[str, ...]]]]:
    """Reads sets of texts, and each text's labels from the coarsest level to the finest.

    The fields are `text` (or `sentences`) and `label` (or `labels`, or another name). If the first
    record's text is a list, each record is a set, with a list of labels; else all records are one
    set, and a list has the labels of one text.
    """
    rows, names, kinds = (
        read_rows(data, split),
        ("text", "sentences"),
        (label,) if label else ("label", "labels"),
    )

    def levels(row: Row, value: Any) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise row.refusal(kinds, "expected a label or more, found an empty list")
        return tuple(row.as_label(label, kinds) for label in values)

    if not isinstance(rows[0].value(*names), list):
        texts = _check_texts([row.text(*names) for row in rows], data, split)
        return [texts], [[levels(row, row.value(*kinds)) for row in rows]]
    sets = [row.texts(*names) for row in rows]
    labels = [[levels(row, value) for value in row.values(*kinds)] for row in rows]
    for row, members, row_labels in zip(rows, sets, labels, strict=True):
        if len(members) != len(row_labels) or not members:
            raise row.refusal(
                kinds,
                f"expected as many as texts, 1 or more, found {len(members)} and {len(row_labels)}",
            )
    return sets, labels


def read_labelled_pairs(data: str, split: str) -> tuple[list[str], list[str], list[int]]:
    """Reads first texts, second texts, and labels 1 (a pair) or 0, some of each.

    The fields are `sentence1`, `sentence2` and `label` (or `labels`); a record may also have lists
    of them.
    """
    first: list[str] = []
    second: list[str] = []
    labels: list[int] = []
    kinds = ("label", "labels")
    for row in read_rows(data, split):
        if isinstance(row.value("sentence1"), list):
            columns = row.texts("sentence1"), row.texts("sentence2"), row.values(*kinds)
            if len(set(map(len, columns))) > 1:
                raise row.refusal(
                    kinds, f"expected lists of one length, found lengths {[*map(len, columns)]}"
                )
        else:
            columns = [row.text("sentence1")], [row.text("sentence2")], [row.value(*kinds)]
        first += columns[0]
        second += columns[1]
        labels += [row.binary(value, kinds) for value in columns[2]]
    if len(set(labels)) != 2:
        raise InputError(
            f"{describe_split(data, split)}: expected labels 0 and 1, some of each, found only "
            f"{set(labels)}"
        )
    return _check_texts(first, data, split), second, labels


def read_reranking(
    data: str, split: str
) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Reads each record's queries, positives and negatives; the latter two may be empty.

    The fields are `query` (a string, or a list of queries that mean the same), and the lists
    `positive` and `negative`.
    """
    rows = read_rows(data, split)
    queries = [
        row.texts("query") if isinstance(row.value("query"), list) else [row.text("query")]
        for row in rows
    ]
    for row, query in zip(rows, queries, strict=True):
        if not query:
            raise row.refusal(["query"], "expected a query or more, found an empty list")
    return queries, [row.texts("positive") for row in rows], [row.texts("negative") for row in rows]


def read_bitext(
    data: str, split: str, source: str = "", target: str = ""
) -> tuple[list[str], list[str]]:
    """Reads sentences and their translations from two columns.

    Without names these are `sentence1` and `sentence2`, or else the only two columns.
    """
    rows = read_rows(data, split)
    if bool(source) != bool(target) or (source and source == target):
        raise InputError(
            f"source, target: expected two names of columns or none, found {source!r} and "
            f"{target!r}"
        )
    if not source:
        field_names = [name for name in rows[0].fields if name not in IDS]
        default = ["sentence1", "sentence2"]
        names = default if set(default) <= set(field_names) else field_names
        if len(names) != 2:
            raise InputError(
                f"{describe_split(data, split)}: expected two columns, or the options source and "
                f"target with two of their names, found {', '.join(field_names) or 'none'}"
            )
        source, target = names
    return _check_texts([row.text(source) for row in rows], data, split), [
        row.text(target) for row in rows
    ]


def read_summaries(
    data: str, split: str
) -> tuple[list[str], list[list[str]], list[list[str]], list[list[float]]]:
    """Reads texts, their summaries by people and by machines, and a rating of each of the latter.

    The fields are `text`, and the lists `human_summaries`, `machine_summaries` and `relevance`.
    """
    rows = read_rows(data, split)
    human, machine = (
        [row.texts(name) for row in rows] for name in ("human_summaries", "machine_summaries")
    )
    ratings = [row.numbers("relevance") for row in rows]
    for row, written, made, row_ratings in zip(rows, human, machine, ratings, strict=True):
        if not written or not made:
            lacking = ["machine_summaries" if written else "human_summaries"]
            raise row.refusal(lacking, "expected a summary or more, found an empty list")
        if len(made) != len(row_ratings):
            raise row.refusal(
                ["relevance"],
                f"expected a rating for each of {len(made)} summaries, found {len(row_ratings)}",
            )
    return [row.text("text") for row in rows], human, machine, ratings


def _is_file(data: str) -> bool:
    kind, colon, _ = data.partition(":")
    return not colon or kind == "file" or kind not in REGISTRY["source"]


def _path(data: str, split: str) -> Path:
    return find_file(data, split) if Path(data).is_dir() else Path(data)


def _file_rows(data: str, split: str) -> Iterator[Row]:
    if not Path(data).exists():
        sources = ", ".join(f"{name}:NAME" for name in ("tfds", "hf"))
        raise InputError(f"{data}: no such file or directory; accepted beside them: {sources}")
    path = _path(data, split)
    lines: dict[str, int] = {}
    for line, record in iter_rows(path):
        row = Row(f"{path}:{line}", record)
        key = next((record[key] for key in IDS if not is_missing(to_python(record.get(key)))), None)
        if key is not None:
            key = clean_key(key, f"{row.where}: id")
            if lines.setdefault(key, line) != line:
                raise InputError(
                    f"{row.where}: the id {key!r} stands twice, also in line {lines[key]}"
                )
        yield row


def _source_rows(data: str, split: str) -> Iterator[Row]:
    raw = open_raw(data, split)
    for index in range(len(raw)):
        where = f"{describe_split(data, split)}, record {index}"
        yield Row(where, raw[index], raw.class_names)


def _check_texts(texts: list[str], data: str, split: str) -> list[str]:
    """Checks that not all texts are empty, and returns them."""
    if not any(text.strip() for text in texts):
        raise InputError(f"{describe_split(data, split)}: all of {len(texts)} texts are empty")
    return texts
