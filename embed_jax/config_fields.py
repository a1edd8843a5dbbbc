"""A config field's default, accepted values and help text, written once where the field is defined.

    learning_rate: float = option(3e-5, "Peak of the learning rate.", more_than=0)
    temperature: float = option(-1.0, "Temperature of the loss.", unset="the loss's own",
        more_than=0)

A field that may be left out says with `unset` what happens then. Its value is then the one of
`UNSET` for its type, in every field alike; None, an empty value and "none" mean the same in files
and on the command line.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from embed_jax.errors import InputError

UNSET: dict[type, Any] = {str: "", int: 0, float: -1.0}
TYPES = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclasses.dataclass(frozen=True)
class FieldRule:
    """The values that a field accepts, and its help text.

    Attributes:
        kind: type of its values.
        help: a sentence or two for `--help`.
        unset: what happens when the field is not set; "": it always has a value.
        choices: all accepted values; empty: any within the limits.
        at_least, more_than, at_most: limits of numbers; None: no limit.
        special: further accepted numbers outside the limits, with their meaning.
        pattern: of further accepted texts beside the choices, and what it stands for in words.
    """

    kind: type
    help: str
    unset: str = ""
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    special: tuple[tuple[Any, str], ...] = ()
    pattern: tuple[str, str] = ("", "")

    def describe(self, kind: bool = True) -> str:
        """Returns in words what is accepted: "a number, more than 0, or unset (the loss's own)".

        Args:
            kind: name the type too, if there are limits.
        """
        if self.choices:
            text = "one of " + ", ".join(repr(choice) for choice in self.choices)
            text += f", {self.pattern[1]}" if self.pattern[0] else ""
        else:
            limits = [
                phrase.format(limit)
                for phrase, limit in (
                    ("at least {}", self.at_least),
                    ("more than {}", self.more_than),
                    ("at most {}", self.at_most),
                )
                if limit is not None
            ]
            words = [] if limits and not kind else [TYPES[self.kind]]
            text = ", ".join([*words, *([" and ".join(limits)] if limits else [])])
        text += "".join(f", or {value} ({meaning})" for value, meaning in self.special)
        return f"{text}, or unset ({self.unset})" if self.unset else text

    def check(self, value: Any, field: str) -> Any:
        """Returns the value in the field's type, with None as unset.

        Args:
            value: from a config file, JSON, or Python.
            field: the whole name, for the message.

        Raises:
            InputError: naming field, value and what is accepted.
        """
        if value is None and self.unset:
            return UNSET[self.kind]
        whole = self.kind is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not self.kind and not whole:
            raise InputError(
                f"{field}: expected {self.describe()}, found {type(value).__name__} {value!r}"
            )
        if self._accepts(value):
            return value
        raise InputError(f"{field}: expected {self.describe(kind=False)}, found {value!r}")

    def _accepts(self, value: Any) -> bool:
        if (self.unset and value == UNSET[self.kind]) or value in dict(self.special):
            return True
        if self.choices:
            pattern = self.pattern[0]
            return value in self.choices or bool(pattern and re.fullmatch(pattern, value))
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
        )

    def read(self, text: str, field: str) -> Any:
        """Returns the value that a command line's text means.

        Raises:
            InputError: naming field, text and what is accepted.
        """
        if self.unset and text.lower() in ("", "none", "unset"):
            return UNSET[self.kind]
        if self.kind is str:
            return self.check(text, field)
        try:
            value = TRUTH[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise InputError(f"{field}: expected {self.describe()}, found {text!r}") from None
        return self.check(value, field)

    def show(self, value: Any) -> str:
        """Returns a value as `--help` prints it."""
        if self.unset and value == UNSET[self.kind]:
            return "unset"
        return str(value)


def option(default: Any, help: str, **accepted: Any) -> Any:
    """Declares a field of a config dataclass.

    Args:
        default: its type is the field's. With `unset`, the default may be `UNSET`'s value of its
            type.
        help: a sentence or two for `--help`.
        accepted: further attributes of `FieldRule`.
    """
    rule = FieldRule(type(default), help, **accepted)
    if not rule._accepts(default):
        raise ValueError(f"the default {default!r} is not {rule.describe()}")
    return dataclasses.field(default=default, metadata={"rule": rule})


def rules_of(kind: type) -> dict[str, FieldRule]:
    """Returns the rules of a config dataclass's own fields by name, in order."""
    return {
        field.name: field.metadata["rule"]
        for field in dataclasses.fields(kind)
        if "rule" in field.metadata
    }
