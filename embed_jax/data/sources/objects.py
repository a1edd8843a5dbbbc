"""Makes records of Python objects: tuples, dicts, a DataFrame, a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import kind_of
from embed_jax.data.record_values import describe
from embed_jax.data.records import VALUES, Cleaner, RawRecord, usual_names
from embed_jax.data.sources.base import class_names
from embed_jax.data.sources.opening import iter_clean
from embed_jax.errors import InputError


def python_records(rows: Any, columns: Sequence[str] = (), name: str = "pairs") -> list[RawRecord]:
    """Makes records for training, the same as `open_records` of a file with these rows.

    >>> python_records([("a question", "its answer")])
    [{'anchor': 'a question', 'positive': 'its answer'}]

    Args:
        rows: (anchor, positive[, negative, ...]) tuples, dicts, a pandas DataFrame or a
            `datasets.Dataset`. The texts of dicts have the usual names, or those of `columns`; else
            they are all fields in their order.
        columns: see `open_records`.
        name: the name of the rows in errors.

    Raises:
        InputError: a row cannot be used; the message gives the index of the first one.
    """
    classes = class_names(getattr(rows, "features", None))
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a DataFrame
        rows = rows.to_dict("records")
    raw = [_as_mapping(row, f"{name}[{index}]") for index, row in enumerate(rows)]
    if raw and not columns and not _is_known(raw[0]):
        texts = [str(field) for field in raw[0] if str(field).lower() not in VALUES]
        columns = texts if len(texts) > 1 else ()
    cleaner = Cleaner(columns, classes)
    numbered = ((f"{name}[{index}]", row) for index, row in enumerate(raw))
    return [record for _, record in iter_clean(numbered, cleaner, name)]


def _as_mapping(row: Any, where: str) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if not isinstance(row, tuple | list) or len(row) < 2:
        raise InputError(
            f"{where}: expected an anchor, a positive and negatives, or a dict, found "
            f"{describe(row)}"
        )
    return dict(zip(usual_names(len(row)), row, strict=True))


def _is_known(row: Mapping[str, Any]) -> bool:
    return bool(kind_of({str(name).strip().lower(): None for name in row}))
