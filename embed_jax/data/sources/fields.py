"""The fields that training takes from records of any of the formats."""

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
    kind_of,
    negative_columns,
    of_record,
    sampled_records,
)
from embed_jax.data.records import (
    check_scored,
    clean_label,
    is_missing,
    key_text,
    label_names,
    number_or_missing,
    plain,
)
from embed_jax.errors import InputError
from embed_jax.types import Record

ReadColumns = Callable[[Record], tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """The fields that training takes from a record, as functions of it.

    None for what the records lack.

    Attributes:
        columns: its texts: anchor, positive, negatives; premise, hypothesis; query, passages; or a
            single text.
        label: its integer class.
        score: only its score, or those of its passages.
        keys: its id and group, or the one of the two that there is; None where it has none.
        teacher: a teacher's embeddings of its texts, [C, T].
    """

    columns: ReadColumns
    label: Callable[[Record], int] | None = None
    score: Callable[[Record], Sequence[float]] | None = None
    keys: Callable[[Record], tuple[str | None, ...]] | None = None
    teacher: Callable[[Record], np.ndarray] | None = None


def record_fields(records: Sequence[Record]) -> RecordFields:
    """The fields of records in any format for training.

    * pairs, triplets and so on: `anchor positive [negative_1 ...]`, or other names of a pair, with
      `score` or `label`
    * `premise hypothesis label`; labels are integers, or entailment (0), neutral (1) and
      contradiction (2)
    * `query passages scores`, two lists: the columns are the query and its passages
    * `text label`; labels that are no integers are numbered in their sorted order. The numbers are
      those of these records: use the same fields for validation data.

    and with any of them `id` and `group`. Numbers may be spelt as text.

    Raises:
        InputError: for records of no known format; or naming the first record without a label or
            score that others have, with a label that is no integer and no known name, or with
            another number of scores than passages.
    """
    names = {
        name
        for _, record in sampled_records(records)
        for name, value in record.items()
        if not is_missing(value)
    }
    kind, label, score = kind_of(records[0]), None, None
    if kind == SCORED_LIST:
        columns, score = _list_columns, _list_scores
    elif kind == ("text",) and "label" in names:
        columns, label = _text_column, _class_label(records)
    elif len(kind) == 2:
        columns = _columns_named(*kind)
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
                of_record(field, record, index)
    present = [key for key in KEYS if key in names]
    return RecordFields(
        columns, label, score, (lambda record: _keys(record, present)) if present else None
    )


def pair_columns(records: Sequence[Record]) -> ReadColumns:
    """The function that gives a record's (anchor, positive, negatives ...) for the names that these records use.

    Raises:
        InputError: if they are not pairs; says which fields were found and are accepted.
    """
    for names in PAIR_NAMES:
        if all(name in records[0] for name in names):
            return _columns_named(*names)
    accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
    raise InputError(
        f"no pairs: found the fields {', '.join(records[0])}; accepted: {accepted} (negative_1 ...)"
    )


def _columns_named(first: str, second: str) -> ReadColumns:
    def columns(record: Record) -> tuple[str | None, ...]:
        single = (record[name] or None for name in negative_columns(record))
        return record[first], record[second], *single, *(record.get("negatives") or ())

    return columns


def _list_columns(record: Record) -> tuple[str, ...]:
    return record["query"], *record["passages"]


def _list_scores(record: Record) -> list[float]:
    _required(record, "passages")
    scores = [_score(score, "scores") for score in _required(record, "scores")]
    check_scored(record)
    return scores


def _text_column(record: Record) -> tuple[str]:
    return (record["text"],)


def _pair_score(record: Record) -> tuple[float]:
    return (_score(_required(record, "score"), "score"),)


def _score(value: Any, name: str) -> float:
    score = number_or_missing(value, name)
    if score is None:
        raise InputError(f"{name}: expected a finite number, found {value!r}")
    return score


def _pair_label(kind: Sequence[str]) -> Callable[[Record], int]:
    names = label_names(kind)

    def label(record: Record) -> int:
        number = clean_label(_required(record, "label"), "label", names)
        return -1 if number is None else int(number)

    return label


def _class_label(records: Sequence[Record]) -> Callable[[Record], int]:
    def clean(record: Record) -> int | str | None:
        return clean_label(_required(record, "label"), "label", None)

    labels = {of_record(clean, record, index) for index, record in enumerate(records)}
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
    number = clean_label(_required(record, "label"), "label", None)
    if not isinstance(number, int):
        raise InputError(f"label: expected an integer as in the training data, found {number!r}")
    return number


def _keys(record: Record, names: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(
        None if is_missing(record.get(name)) else key_text(plain(record[name]), name)
        for name in names
    )


def _required(record: Record, name: str) -> Any:
    if is_missing(record.get(name)):
        raise InputError(f"no {name}, which others have: found the fields {', '.join(record)}")
    return record[name]
