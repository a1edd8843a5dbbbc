"""A raw record of an evaluation's data, whose values are read by name and type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import PAIR_LABELS
from embed_jax.data.record_values import (
    check_text,
    clean_label,
    clean_number,
    is_missing,
    to_python,
)
from embed_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """A record and its place.

    Each method returns the value of the first of the named fields that the record has, or raises
    an InputError that names the place and the field.

    Attributes:
        where: the record's place, such as "FILE:LINE".
        fields: the record's values by name.
        class_names: the meaning of 0, 1, ... in fields of integer classes, from the data set.
    """

    where: str
    fields: Mapping[str, Any]
    class_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def value(self, *names: str) -> Any:
        """Returns the value of the first of these fields that the record has."""
        for name in names:
            if not is_missing(value := to_python(self.fields.get(name))):
                return value
        field_names = ", ".join(
            name for name, value in self.fields.items() if not is_missing(value)
        )
        raise InputError(
            f"{self.where}: no field {' or '.join(map(repr, names))}: found {field_names or 'none'}"
        )

    def text(self, *names: str) -> str:
        """Returns a string."""
        return self._text(self.value(*names), names)

    def texts(self, *names: str) -> list[str]:
        """Returns a list of strings."""
        return [
            self._text(value, names, "a list of strings, found one with")
            for value in self.values(*names)
        ]

    def values(self, *names: str) -> list[Any]:
        """Returns a list."""
        value = self.value(*names)
        if not isinstance(value, list):
            raise self.refusal(names, f"expected a list, found {type(value).__name__} {value!r}")
        return value

    def label(self, *names: str) -> str:
        """Returns a string or number, as text without white space around it."""
        return self.as_label(self.value(*names), names)

    def as_label(self, value: Any, names: Sequence[str]) -> str:
        """Returns a value as a label; see `label`."""
        blank = isinstance(value, str) and not value.strip()
        if is_missing(value) or blank or not isinstance(value, str | int | float):
            raise self.refusal(names, f"expected a string or number, found {value!r}")
        return str(clean_label(value, f"{self.where}: field {names[0]!r}", None))

    def binary(self, value: Any, names: Sequence[str]) -> int:
        """Returns the 0 or 1 that a value means."""
        name = next((name for name in names if name in self.class_names), None)
        meaning = value
        if name is not None and isinstance(value, int) and 0 <= value < len(self.class_names[name]):
            meaning = self.class_names[name][value]
        number = None
        if isinstance(meaning, str | int | float):
            number = clean_label(meaning, self.where, None)
            number = PAIR_LABELS.get(str(number).lower(), number)
        if number not in (0, 1):
            raise self.refusal(names, f"expected 0 or 1, found {meaning!r}")
        return number

    def score(self, *names: str) -> float:
        """Returns a finite number, which may be spelt as text."""
        value = self.value(*names)
        number = clean_number(value, f"{self.where}: {names[0]}")
        if number is None:
            raise InputError(f"{self.where}: {names[0]}: expected a finite number, found {value!r}")
        return number

    def numbers(self, *names: str) -> list[float]:
        """Returns a list of finite numbers."""
        values = self.values(*names)
        for value in values:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise self.refusal(names, f"expected finite numbers, found {value!r}")
        return [float(value) for value in values]

    def refusal(self, names: Sequence[str], what: str) -> InputError:
        """Returns an error with a message about the first of these fields that the record has."""
        name = next((name for name in names if name in self.fields), names[0])
        return InputError(f"{self.where}: field {name!r}: {what}")

    def _text(self, value: Any, names: Sequence[str], expected: str = "a string, found") -> str:
        if not isinstance(value, str):
            raise self.refusal(names, f"expected {expected} {type(value).__name__} {value!r}")
        check_text(value, f"{self.where}: field {names[0]!r}")
        return value
