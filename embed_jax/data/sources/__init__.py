"""Data sets by name: `open_records` for training data, `open_retrieval_task` for search with known answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import PAIR_NAMES, Task, negative_columns
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, lookup


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """A random-access source as a sequence of dicts, read record by record; slices are views."""

    source: Any
    decode: Callable[[Any], dict[str, Any]]
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        return self.decode(self.source[self.indices[index]])


def open_records(name: str, split: str = "train") -> Sequence[dict[str, Any]]:
    """Opens a data set for training.

    Args:
        name: "python_docs"; "tfds:NAME[/CONFIG]"; "hf:NAME[:CONFIG]" or "hf:DIRECTORY"; else a file (.jsonl, .tsv,
            .csv, .txt, each also .gz) or a directory of files called SPLIT.jsonl and so on.
        split: which part of it.

    Returns:
        Records with random access; texts are strings.

    Raises:
        InputError: a name, a split or a file that cannot be used.
    """
    kind, _, rest = name.partition(":")
    if kind not in REGISTRY["source"] or kind == "file":
        kind, rest = "file", name
    records = lookup("source", kind)(rest, split)
    if not len(records):
        raise InputError(f"{name}: the split {split!r} is empty")
    return records


def open_retrieval_task(name: str, split: str = "test") -> Task:
    """Corpus, queries and relevance judgements of "python_docs" or of a directory in BEIR layout."""
    if name == "python_docs":
        from embed_jax.data.sources.python_docs import retrieval_task

        return retrieval_task(split)
    from embed_jax.data.sources.beir import read_beir

    return read_beir(name, split)


def pair_columns(records: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], tuple[str | None, ...]]:
    """The function that gives a record's (anchor, positive, negatives ...) for the names that these records use.

    Raises:
        InputError: if they are no pairs; says which fields were found and are accepted.
    """
    for first, second in PAIR_NAMES:
        if first in records[0] and second in records[0]:
            break
    else:
        accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
        raise InputError(f"no pairs: found the fields {', '.join(records[0])}; accepted: {accepted} (negative_1 ...)")

    def columns(record: Mapping[str, Any]) -> tuple[str | None, ...]:
        single = (record[name] or None for name in negative_columns(record))
        return record[first], record[second], *single, *(record.get("negatives") or ())

    return columns
