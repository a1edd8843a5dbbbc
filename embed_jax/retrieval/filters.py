"""Filters on the fields of documents, as plain data.

    {"year": 2020}                        equal; of a field with a list: contains it
    {"year": [2019, 2020]}                one of these
    {"year": {"min": 2019, "max": 2024}}  in a range, both ends included
    {"lang": {"not": "de"}}               anything else, also documents without the field

Several fields must all match. Except for "not", a document without the field does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from embed_jax.errors import InputError
from embed_jax.registry import unknown

Filter = Mapping[str, Any]
_PLAIN = (str, int, float, bool)


def check_metadata(where: str, fields: Any) -> None:
    """Raises an InputError unless fields are plain values, or lists of them, by name."""
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise InputError(f"{where}: expected fields by name, found {fields!r}")
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(each is None or isinstance(each, _PLAIN) for each in values):
            raise InputError(
                f"{where}: field {name!r}: expected text, a number, true or false, or a list of "
                f"them, found {type(value).__name__}"
            )


def select_documents(fields: Sequence[Mapping[str, Any]], where: Filter) -> Bool[np.ndarray, " N"]:
    """Marks the documents that a filter selects.

    Args:
        fields: of each document.
        where: the filter.

    Raises:
        InputError: for a field that no document has, or a condition of another form.

    >>> select_documents([{"year": 2019}, {"year": 2021}, {}], {"year": {"min": 2020}})
    array([False,  True, False])
    """
    known = dict.fromkeys(name for each in fields for name in each)
    mask = np.ones(len(fields), bool)
    for name, condition in where.items():
        if name not in known:
            raise InputError(unknown("field", name, tuple(known)))
        _check_condition(name, condition)
        mask &= np.fromiter((_matches(each.get(name), condition) for each in fields), bool)
    return mask


def _check_condition(name: str, condition: Any) -> None:
    if isinstance(condition, Mapping):
        bounds = [condition[key] for key in ("min", "max") if key in condition]
        is_range = condition.keys() <= {"min", "max"} and len({type(b) is str for b in bounds}) == 1
        if not is_range and condition.keys() != {"not"}:
            raise InputError(
                f"filter on {name!r}: expected a value, a list, {{'min': ..., 'max': ...}} or "
                f"{{'not': ...}}, found {dict(condition)!r}"
            )


def _matches(value: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        if "not" in condition:
            return not _matches(value, condition["not"])
        return any(_in_range(each, condition) for each in _several(value))
    accepted = _several(condition)
    return any(each in accepted for each in _several(value))


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)


def _in_range(value: Any, bounds: Mapping[str, Any]) -> bool:
    for name, bound in bounds.items():
        if isinstance(value, str) != isinstance(bound, str):
            return False
        if value < bound if name == "min" else value > bound:
            return False
    return True
