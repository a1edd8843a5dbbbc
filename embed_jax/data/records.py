"""Rules by which a record means the same from a file, the hub, TFDS or Python objects.

README.md beside this file has the rules as a table. A `Cleaner` applies them to the raw records of
one data set.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import KINDS, SCORED_LIST, kind_of
from embed_jax.data.record_values import (
    LISTS,
    _class_name,
    check_text,
    clean_key,
    clean_label,
    clean_number,
    describe,
    is_missing,
    label_names,
    parse_list,
    to_python,
)
from embed_jax.errors import InputError

RawRecord = dict[str, Any]
KEY_FIELDS = ("id", "_id", "group")
LABEL_FIELDS = ("label", "fine_label")
VALUES = {*KEY_FIELDS, *LABEL_FIELDS, "score"}
TEXTS = {name for kind in KINDS for name in kind} - LISTS.keys()
KNOWN = TEXTS | VALUES | LISTS.keys() | {"negative", "negatives", "title"}
NO_LABEL = "no gold label (-1 or '-')"


@dataclasses.dataclass
class Cleaner:
    """Makes the raw records of one data set into records for training.

    Attributes:
        columns: names of the columns that are the anchor, the positive and the negatives (or the
            only text), for data with other names than KINDS; empty: one of KINDS.
        class_names: the meaning of 0, 1, ... in a field of integers; from the data set.
        required: the fields that each record must have; set by the first record.
        left_out: the number of records that were left out, by reason.
    """

    columns: Sequence[str] = ()
    class_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    required: tuple[str, ...] = ()
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __call__(self, raw: Mapping[str, Any], where: str, header: str = "") -> RawRecord | None:
        """Cleans a record.

        Args:
            raw: the record as it was read.
            where: the record's place for errors, such as "FILE:LINE".
            header: the place where the fields are named, if it is another one.

        Returns:
            The known fields for which the record has a value, or None if it is left out.

        Raises:
            InputError: a field is missing, or a value is not valid for its field.
        """
        record = self._rename_fields(raw, header or where)
        self.required = self.required or kind_of(record)
        check_required_fields(record, self.required, header or where)
        field = find_name("label", self.class_names)
        if field is not None and not is_missing(record.get("label")):
            name = _class_name(record["label"], self.class_names[field], f"{where}: label")
            # For a single text the number serves as well as the name; other readers give it too.
            if len(self.required) == 2:
                record["label"] = name
            elif name == "-1":
                self.left_out[NO_LABEL] += 1
                return None
        record = clean_record(record, where, self.required)
        for name in self.required:
            if name in LISTS and name not in record:
                raise InputError(f"{where}: field {name!r} is missing")
            if name in TEXTS and not record.get(name, "").strip():
                self.left_out[f"no text in {name!r}"] += 1
                return None
        if len(self.required) == 2 and record.get("label", "") is None:
            self.left_out[NO_LABEL] += 1
            return None
        return {
            name: value
            for name, value in record.items()
            if name in KNOWN or name.startswith("negative_")
        }

    def report(self, total: int) -> str:
        """Returns a sentence on how many records were left out, and why; "" if none were."""
        count = sum(self.left_out.values())
        reasons = ", ".join(f"{number} with {reason}" for reason, number in self.left_out.items())
        return f"{count} of {total} records are left out: {reasons}" if count else ""

    def _rename_fields(self, raw: Mapping[str, Any], where: str) -> RawRecord:
        """Returns the record with our names of fields."""
        if not self.columns:
            return {_known_name(name, raw): value for name, value in raw.items()}
        record = {
            name: raw[actual] for name in VALUES if (actual := find_name(name, raw)) is not None
        }
        for ours, column in zip(usual_names(len(self.columns)), self.columns, strict=True):
            actual = find_name(column, raw)
            if actual is None:
                field_names = ", ".join(map(str, raw)) or "none"
                raise InputError(f"{where}: no field {column!r}: found {field_names}")
            record[ours] = raw[actual]
        return record


def usual_names(count: int) -> tuple[str, ...]:
    """Returns the names of `count` texts of a record.

    >>> usual_names(1), usual_names(3)
    (('text',), ('anchor', 'positive', 'negative_1'))
    """
    if count == 1:
        return ("text",)
    return ("anchor", "positive", *(f"negative_{index}" for index in range(1, count - 1)))


def find_name(name: str, record: Mapping[str, Any]) -> str | None:
    """Finds the field of this name in a record, or else the first that differs in case only."""
    if name in record:
        return name
    folded = name.strip().lower()
    return next((field for field in record if str(field).strip().lower() == folded), None)


def _known_name(name: str, record: Mapping[str, Any]) -> str:
    """Returns our name of a field, regardless of case, unless the record has that field already."""
    folded = str(name).strip().lower()
    known = folded in KNOWN or folded.startswith("negative_")
    return folded if known and (folded == name or folded not in record) else name


def check_required_fields(record: Mapping[str, Any], required: Sequence[str], where: str) -> None:
    """Checks that a record has the required fields, and that there are any.

    Raises:
        InputError: "WHERE: no field ..." or "WHERE: unknown fields ...", with the fields that were
            found and those that are accepted.
    """
    missing = [name for name in required if name not in record]
    if missing or not required:
        accepted = " ".join(required) if required else "; ".join(" ".join(kind) for kind in KINDS)
        hint = "" if required else "; or name the columns with data.columns=ANCHOR,POSITIVE"
        lacks = f"no field {missing[0]!r}" if missing else "unknown fields"
        raise InputError(
            f"{where}: {lacks}: found {', '.join(map(str, record)) or 'none'}; accepted: "
            f"{accepted}{hint}"
        )


def clean_record(raw: Mapping[str, Any], where: str, kind: Sequence[str] = ()) -> RawRecord:
    """Returns the record without missing values, and with each value in its field's type.

    Texts, ids and groups are strings; a score is a float, a label an integer or a name (None for
    "no gold label"); negatives are single strings that are not blank. Other fields stay if they are
    strings.

    >>> clean_record({"anchor": "a", "positive": "b", "negatives": '["c"]', "id": 7.0}, "line 1")
    {'anchor': 'a', 'positive': 'b', 'id': '7', 'negative_1': 'c'}

    Args:
        raw: the record as it was read.
        where: the record's place, for errors.
        kind: one of KINDS; empty: found by the record's fields.

    Raises:
        InputError: "WHERE: field ...": a value is not valid for its field.
    """
    kind = tuple(kind) or kind_of(raw)
    lists = LISTS if kind == SCORED_LIST else {}
    record: RawRecord = {}
    negatives: list[str] = []
    for name, value in raw.items():
        value = to_python(value)
        if is_missing(value):
            continue
        if name in lists or name == "negatives":
            if isinstance(value, str) and not value.strip():
                continue
            items = parse_list(value, name, where)
            if name in lists:
                record[name] = items
            else:
                negatives = [item for item in items if item.strip()]
        elif name == "score":
            score = clean_number(value, f"{where}: {name}")
            if score is not None:
                record[name] = score
        elif name in LABEL_FIELDS:
            if isinstance(value, str) and not value.strip():
                continue
            record[name] = clean_label(value, f"{where}: {name}", label_names(kind))
        elif name in KEY_FIELDS:
            key = clean_key(value, f"{where}: {name}")
            if key.strip():
                record[name] = key
        elif isinstance(value, str):
            check_text(value, f"{where}: field {name!r}")
            if value.strip() or not name.startswith("negative"):
                record[name] = value
        elif name in kind or name.startswith("negative") or (not kind and name in TEXTS):
            raise InputError(f"{where}: field {name!r} must be a string, found {describe(value)}")
    free = (f"negative_{index}" for index in range(1, 2**31))
    taken = sum(name.startswith("negative") for name in record)
    for _ in range(taken):
        next(free)
    for text in negatives:
        name = next(name for name in free if name not in record)
        record[name] = text
    if kind == SCORED_LIST and all(name in record for name in LISTS):
        check_scored(record, f"{where}: ")
    return record


def check_scored(record: Mapping[str, Any], where: str = "") -> None:
    """Checks that a scored list has a score for each passage.

    Raises:
        InputError: "{where}found 3 passages and 2 scores, ..."
    """
    passages, scores = (len(record[name]) for name in LISTS)
    if passages != scores or not passages:
        raise InputError(
            f"{where}found {passages} passages and {scores} scores, expected as many, and at least "
            "one"
        )
