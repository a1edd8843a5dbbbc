"""Values of records as files have them: checked, and made what readers expect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.data.pairs import NLI, NLI_LABELS, PAIR_LABELS, parse_whole_number
from embed_jax.errors import InputError

LISTS = {"passages": "strings", "scores": "finite numbers"}
NO_GOLD_LABEL = ("-1", "-")  # the annotators did not agree: in data sets, and in SNLI's files
BOOLEANS = {"false": 0, "true": 1}


def is_missing(value: Any) -> bool:
    """Tells whether a value is missing: None, NaN, or pandas' NA and NaT."""
    if value is None or isinstance(value, float | np.floating) and math.isnan(value):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def to_python(value: Any) -> Any:
    """Converts scalars and arrays of NumPy to Python's types, and tuples to lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def describe(value: Any) -> str:
    """Returns a value's type and its first 60 characters, for errors."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def check_text(text: str, where: str) -> None:
    """Checks that a text has no half of a surrogate pair, which no encoding can express.

    Raises:
        InputError: "WHERE: character 3 is half of a surrogate pair ..."
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start + 1} is half of a surrogate pair "
            f"({text[error.start]!a}), which is no text"
        ) from None


def clean_key(value: Any, where: str) -> str:
    """Returns an id or group as text; whole numbers have no decimal point.

    Raises:
        InputError: the value is neither a string nor a number.
    """
    value = to_python(value)
    if isinstance(value, str):
        check_text(value, where)
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: expected a string or a number, found {describe(value)}")
    return str(int(value)) if float(value).is_integer() else repr(value)


def clean_number(value: Any, where: str) -> float | None:
    """Returns the finite number that a value is or spells; None for blanks and NaN.

    Raises:
        InputError: "WHERE: expected a finite number, found ..."
    """
    number = math.inf
    if isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, str) and value.strip().lower() in BOOLEANS:
        number = BOOLEANS[value.strip().lower()]
    elif isinstance(value, str | int | float):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.inf
    if math.isnan(number):
        return None
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, found {value!r}")
    return float(number)


def label_names(kind: Sequence[str]) -> Mapping[str, int] | None:
    """Returns the names of labels, with their numbers, that are valid for this kind of record.

    It is None for a single text, whose label may have any name.
    """
    if len(kind) != 2:
        return None
    return NLI_LABELS if tuple(kind) == NLI else NLI_LABELS | PAIR_LABELS


def clean_label(value: Any, where: str, names: Mapping[str, int] | None) -> int | str | None:
    """Returns a label as an integer or a name.

    The label of two texts is always an integer, or None for "no gold label". True is 1 and False is
    0, also as text.

    >>> clean_label("entailment", "line 1", NLI_LABELS), clean_label(" sport", "line 2", None)
    (0, 'sport')

    Args:
        value: the label as it was read.
        where: the label's place, for errors.
        names: see `label_names`.

    Raises:
        InputError: the value is of another type, or an unknown label of two texts.
    """
    value = to_python(value)
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: expected a string or a number, found {describe(value)}")
    if isinstance(value, str):
        check_text(value, where)
        value = BOOLEANS.get(value.strip().lower(), value.strip())
    number = parse_whole_number(value)
    if names is None:
        return str(value) if number is None else number
    if number == -1 or value in NO_GOLD_LABEL:
        return None
    number = names.get(str(value).lower(), number)
    if number is None:
        raise InputError(
            f"{where}: expected an integer or one of {', '.join(names)}, found {value!r}"
        )
    return number


def parse_list(value: Any, name: str, where: str) -> list[Any]:
    """Reads a list of strings, or of finite numbers for `scores`; in a table it is JSON text.

    Missing negatives are left out; other lists need every item.

    Raises:
        InputError: "WHERE: field ... must be a JSON list of ..."
    """
    kind = LISTS.get(name, "strings")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, list):
        value = [to_python(item) for item in value]
        if name == "negatives":
            value = [item for item in value if not is_missing(item)]
    if not isinstance(value, list) or not all(_fits(item, kind) for item in value):
        raise InputError(f"{where}: field {name!r} must be a JSON list of {kind}")
    for item in value if kind == "strings" else ():
        check_text(item, f"{where}: field {name!r}")
    return value if kind == "strings" else [float(item) for item in value]


def _fits(item: Any, kind: str) -> bool:
    if kind == "strings":
        return isinstance(item, str)
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def _class_name(value: Any, names: Sequence[str], where: str) -> Any:
    """Returns the name of a class number; -1 is not a class."""
    value = to_python(value)
    if isinstance(value, str):
        return value
    if value == -1:
        return "-1"
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(f"{where}: expected a class from 0 to {len(names) - 1}, found {value!r}")
    return names[value]
