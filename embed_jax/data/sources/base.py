"""A random-access source as a sequence of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """A random-access source as a sequence of dicts, read record by record; slices are views.

    Attributes:
        source: the undecoded records, with random access.
        decode: makes a dict of an undecoded record.
        indices: the positions of the records in the source, in order.
        class_names: the meaning of 0, 1, ... in fields with integer classes.
        place: returns the place of position i of the source, for errors; None: "record i".
        suspects: finds the positions of records that may have to be left out, without decoding the
            others; None: all positions.
    """

    source: Any
    decode: Callable[[Any], dict[str, Any]]
    indices: Sequence[int] | np.ndarray
    class_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    place: Callable[[int], str] | None = None
    suspects: Callable[[Sequence[str]], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        return self.decode(self.source[int(self.indices[index])])

    def where(self, index: int) -> str:
        """Returns the place of a record, for errors."""
        return self.place_of(int(self.indices[index]))

    def place_of(self, position: int) -> str:
        """Returns what a position of the source is called in errors."""
        return self.place(position) if self.place else f"record {position}"


@dataclasses.dataclass(frozen=True)
class Located:
    """A raw source with items (position, undecoded record), so that errors have the position."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.source[index]


def class_names(features: Any) -> dict[str, Sequence[str]]:
    """Returns the meaning of the integers of ClassLabel columns, and of lists of them."""
    by_column: dict[str, Sequence[str]] = {}
    for name, feature in (features or {}).items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            by_column[name] = list(names)
    return by_column
