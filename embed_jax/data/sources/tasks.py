"""Data of evaluations: labelled texts and pairs, candidates of queries, translations, summaries.

`data` is a file, used whatever the split; a directory with a file called SPLIT.jsonl, .tsv or .csv
(each also .gz); or "tfds:NAME", "hf:NAME[:CONFIG][@REVISION]" and other sources with a prefix,
whose fields are those of mteb's data sets. Lists are in JSONL only. In a file an `_id` or `id`
stands once. Errors say the file and line, or the number of the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_jax.data.records import is_missing, key_text, plain
from embed_jax.data.sources.files import find_file, iter_rows
from embed_jax.data.sources.opening import open_raw
from embed_jax.data.sources.rows import Row
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY

IDS = ("_id", "id")


def read_rows(data: str, split: str) -> list[Row]:
    """All records of a split, one at least.

    Raises:
        InputError: for data that cannot be read, an empty split, or an id of a file that stands
            twice.
    """
    rows = list(_file_rows(data, split) if _is_file(data) else _source_rows(data, split))
    if not rows:
        raise InputError(f"{describe_split(data, split)}: empty, no records in it")
    return rows


def describe_split(data: str, split: str) -> str:
    """Returns the name of a split in messages: its file, or "hf:NAME, split 'test'"."""
    return str(_path(data, split)) if _is_file(data) else f"{data}, split {split!r}"


def read_labelled_texts(data: str, split: str, label: str = "label") -> tuple[list[str], list[str]]:
    """Texts and their labels: fields `text` and `label`, or the one named.

    Labels are texts, also where numbers are.
    """
    rows = read_rows(data, split)
    return _solid([row.text("text") for row in rows], data, split), [
        row.label(label) for row in rows
    ]


def read_text_sets(
    data: str, split: str, label: str = ""
) -> tuple[list[list[str]], list[list[tuple[str, ...]]]]:
    """Sets of texts, and each text's labels from the coarsest level to the finest.

    Fields `text` (or `sentences`) and `label` (or `labels`), or the one named. Where the first
    record's text is a list, each record is a set, with a list of labels; else all records are one
    set, and a list is the labels of one text.
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
        texts = _solid([row.text(*names) for row in rows], data, split)
        return [texts], [[levels(row, row.value(*kinds)) for row in rows]]
    texts = [row.texts(*names) for row in rows]
    labels = [[levels(row, value) for value in row.values(*kinds)] for row in rows]
    for row, members, row_labels in zip(rows, texts, labels, strict=True):
        if len(members) != len(row_labels) or not members:
            raise row.refusal(
                kinds,
                f"expected as many as texts, 1 or more, found {len(members)} and {len(row_labels)}",
            )
    return texts, labels


def read_labelled_pairs(data: str, split: str) -> tuple[list[str], list[str], list[int]]:
    """First texts, second texts, and labels 1 (a pair) or 0, some of each.

    `sentence1`, `sentence2`, `label`.

    Or records of lists of them; `labels` is read too.
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
    return _solid(first, data, split), second, labels


def read_reranking(
    data: str, split: str
) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Each record's queries (one, or several that mean the same), positives and negatives, which may be none.

    Fields `query` (a string or a list), and the lists `positive` and `negative`.
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
    """Sentences and their translations, from the columns named.

    Without names: `sentence1` and `sentence2`, or else the two columns that there are.
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
    return _solid([row.text(source) for row in rows], data, split), [
        row.text(target) for row in rows
    ]


def read_summaries(
    data: str, split: str
) -> tuple[list[str], list[list[str]], list[list[str]], list[list[float]]]:
    """Texts, each one's summaries by people and by machines, and a rating of each of the latter.

    Fields `text`, and the lists `human_summaries`, `machine_summaries` and `relevance`.
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
    path, lines = _path(data, split), {}
    for line, record in iter_rows(path):
        row = Row(f"{path}:{line}", record)
        key = next((record[key] for key in IDS if not is_missing(plain(record.get(key)))), None)
        if key is not None:
            key = key_text(key, f"{row.where}: id")
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


def _solid(texts: list[str], data: str, split: str) -> list[str]:
    """The texts, not all of which may be empty."""
    if not any(text.strip() for text in texts):
        raise InputError(f"{describe_split(data, split)}: all of {len(texts)} texts are empty")
    return texts
