"""The fields that training uses of records in any of the formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embed_jax.data.pairs import (
    KEYS,
    KINDS,
    PAIR_NAMES,
    SCORED_LIST,
    apply_to_record,
    kind_of,
    negative_columns,
    sampled_records,
)
from embed_jax.data.record_values import (
    clean_key,
    clean_label,
    clean_number,
    is_missing,
    label_names,
    to_python,
)
from embed_jax.data.records import check_scored
from embed_jax.errors import InputError
from embed_jax.types import Record

ReadColumns = Callable[[Record], tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """The fields that training uses of a record, as functions of it; None if records lack a field.

    Attributes:
        columns: the record's texts: anchor, positive, negatives; premise, hypothesis; query,
            passages; or a single text.
        label: the record's integer class.
        score: a tuple of the record's score, or the scores of its passages.
        keys: the record's id and group, or the one of the two that the data set has; None if this
            record lacks it.
        teacher: a teacher's embeddings of the record's texts, [C, T].
    """

    columns: ReadColumns
    label: Callable[[Record], int] | None = None
    score: Callable[[Record], Sequence[float]] | None = None
    keys: Callable[[Record], tuple[str | None, ...]] | None = None
    teacher: Callable[[Record], np.ndarray] | None = None


def record_fields(records: Sequence[Record]) -> RecordFields:
    """Returns the fields for training of records in any format.

    * pairs, triplets and so on: `anchor positive [negative_1 ...]`, or other names of a pair, with
      `score` or `label`
    * `premise hypothesis label`; labels are integers, or entailment (0), neutral (1) and
      contradiction (2)
    * `query passages scores`, the latter two lists: the columns are the query and its passages
    * `text label`; labels other than integers are numbered in their sorted order. The numbers
      depend on these records: use the same fields for validation data.

    All of them may have `id` and `group`. Numbers may be spelt as text.

    >>> records = [{"query": "a", "positive": "b", "label": "duplicate"}]
    >>> fields = record_fields(records)
    >>> fields.columns(records[0]), fields.label(records[0])
    (('a', 'b'), 1)

    Raises:
        InputError: the format is unknown; or a record lacks a label or score that others have, has
            an unknown label, or another number of scores than passages. The message gives the first
            such record's index.
    """
    names = {
        name
        for _, record in sampled_records(records)
        for name, value in record.items()
        if not is_missing(value)
    }
    kind = kind_of(records[0])
    columns: ReadColumns
    label: Callable[[Record], int] | None = None
    score: Callable[[Record], Sequence[float]] | None = None
    if kind == SCORED_LIST:
        columns, score = _list_columns, _list_scores
    elif kind == ("text",) and "label" in names:
        columns, label = _text_column, _class_label(records)
    elif len(kind) == 2:
        columns = _make_columns(*kind)
        label = _pair_label(kind) if "label" in names else None
        score = _pair_score if "score" in names else None
    else:
        accepted = "; ".join(
            " ".join(kind if kind != ("text",) else ("text", "label")) for kind in KINDS
        )
        raise InputError(
            f"records of no known format: found the fields {', '.join(records[0])}; accepted: "
            f"{accepted}"
        )
    for index, record in sampled_records(records):
        for field in (label, score):
            if field:
                apply_to_record(field, record, index)
    present = [key for key in KEYS if key in names]
    return RecordFields(
        columns, label, score, (lambda record: _keys(record, present)) if present else None
    )


def pair_columns(records: Sequence[Record]) -> ReadColumns:
    """Returns a function that gives a record's (anchor, positive, negatives ...).

    Raises:
        InputError: the records are not pairs; the message has the fields that were found and those
            that are accepted.
    """
    for names in PAIR_NAMES:
        if all(name in records[0] for name in names):
            return _make_columns(*names)
    accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
    raise InputError(
        f"no pairs: found the fields {', '.join(records[0])}; accepted: {accepted} (negative_1 ...)"
    )


def _make_columns(first: str, second: str) -> ReadColumns:
    def columns(record: Record) -> tuple[str | None, ...]:
        single = (record[name] or None for name in negative_columns(record))
        return record[first], record[second], *single, *(record.get("negatives") or ())

    return columns


def _list_columns(record: Record) -> tuple[str, ...]:
    return record["query"], *record["passages"]


def _list_scores(record: Record) -> list[float]:
    _require_field(record, "passages")
    scores = [_score(score, "scores") for score in _require_field(record, "scores")]
    check_scored(record)
    return scores


def _text_column(record: Record) -> tuple[str]:
    return (record["text"],)


def _pair_score(record: Record) -> tuple[float]:
    return (_score(_require_field(record, "score"), "score"),)


def _score(value: Any, name: str) -> float:
    score = clean_number(value, name)
    if score is None:
        raise InputError(f"{name}: expected a finite number, found {value!r}")
    return score


def _pair_label(kind: Sequence[str]) -> Callable[[Record], int]:
    names = label_names(kind)

    def label(record: Record) -> int:
        number = clean_label(_require_field(record, "label"), "label", names)
        return -1 if number is None else int(number)

    return label


def _class_label(records: Sequence[Record]) -> Callable[[Record], int]:
    def clean(record: Record) -> int | str | None:
        return clean_label(_require_field(record, "label"), "label", None)

    labels = {apply_to_record(clean, record, index) for index, record in enumerate(records)}
    if all(isinstance(label, int) for label in labels):
        return _whole_label
    numbers = {name: index for index, name in enumerate(sorted(map(str, labels)))}

    def label(record: Record) -> int:
        name = str(clean(record))
        if name not in numbers:
            raise InputError(
                f"label: expected one of the {len(numbers)} of the training data, found {name!r}"
            )
        return numbers[name]

    return label


def _whole_label(record: Record) -> int:
    number = clean_label(_require_field(record, "label"), "label", None)
    if not isinstance(number, int):
        raise InputError(f"label: expected an integer as in the training data, found {number!r}")
    return number


def _keys(record: Record, names: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(
        None if is_missing(record.get(name)) else clean_key(to_python(record[name]), name)
        for name in names
    )


def _require_field(record: Record, name: str) -> Any:
    if is_missing(record.get(name)):
        raise InputError(f"no {name}, which others have: found the fields {', '.join(record)}")
    return record[name]
