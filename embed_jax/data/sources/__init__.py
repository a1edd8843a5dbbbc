"""Data sets by name: `open_records` for training data, `open_retrieval_task` for search with known answers.

`record_fields` says what training takes from records of any of the formats, `pair_columns` what it takes from pairs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.pairs import (
    KEYS,
    KINDS,
    NLI_LABELS,
    PAIR_NAMES,
    SCORED_LIST,
    Task,
    kind_of,
    label_number,
    looked_at,
    negative_columns,
    of_record,
    whole_number,
)
from embed_jax.data.sources.files import check_scored, find_file, finite, iter_table
from embed_jax.errors import InputError, warn
from embed_jax.registry import OWN, REGISTRY, lookup, unknown

Record = Mapping[str, Any]
Columns = Callable[[Record], tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """A random-access source as a sequence of dicts, read record by record; slices are views."""

    source: Any
    decode: Callable[[Any], dict[str, Any]]
    indices: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        return self.decode(self.source[int(self.indices[index])])


def open_records(
    name: str, split: str = "train", fields: Sequence[str] = ()
) -> Sequence[dict[str, Any]]:
    """Opens a data set for training.

    Args:
        name: "python_docs"; one of `recipes.recipes()`, such as "snli"; "tfds:NAME[/CONFIG][:VERSION]";
            "hf:NAME[:CONFIG][@REVISION]" or "hf:DIRECTORY"; "array_record:PATTERN" or "parquet:PATTERN" for sharded
            files, or their directory; else a file (.jsonl, .tsv, .csv, .txt, each also .gz) or a directory of files
            called SPLIT.jsonl and so on. A directory called like a data set is "./snli". Or "MODULE:FUNCTION[:REST]": what
            `FUNCTION(REST, split)` of your own module returns, a sequence of dicts.
        split: which part of it.
        fields: what each line of a file must have; none: those of one of KINDS.

    Returns:
        Records with random access; texts are strings.

    Raises:
        InputError: a name, a split or a file that cannot be used.
    """
    kind, rest = _source(name)
    more = (fields,) if kind == "file" else ()
    records = lookup("source", kind)(rest, split, *more)
    if not len(records):
        raise InputError(f"{name}: the split {split!r} is empty")
    return records


def iter_records(name: str, split: str = "train") -> Iterator[dict[str, Any]]:
    """The records of `open_records` one by one; a file or data set of the hub may be larger than memory and disk."""
    kind, rest = _source(name)
    if kind == "hf":
        from embed_jax.data.sources.hf import iter_source

        return iter_source(rest, split)
    return iter_table(find_file(rest, split)) if kind == "file" else iter(open_records(name, split))


def _source(name: str) -> tuple[str, str]:
    from embed_jax.data.sources.recipes import recipes

    kind, _, rest = name.partition(":")
    if kind in REGISTRY["source"] and kind != "file":
        return kind, rest
    there = Path(name).exists()
    if not there and (own := re.match(rf"({OWN.pattern})(?::(.*))?$", name)):
        return own[1], own[2] or ""
    if name not in recipes():
        if not there and name.isidentifier():
            raise InputError(
                unknown(
                    "data set or file", name, {*recipes(), *REGISTRY["source"]} - {"file", "recipe"}
                )
            )
        return "file", name
    if there:
        warn(f"{name} is the data set of that name; write ./{name} for what is called so here")
    return "recipe", name


def open_retrieval_task(name: str, split: str = "test") -> Task:
    """Corpus, queries and relevance judgements of "python_docs", a directory in BEIR's layout, or "hf:NAME".

    Raises:
        InputError: for what cannot be read, and judgements of unknown ids.
    """
    if name == "python_docs":
        from embed_jax.data.sources.python_docs import retrieval_task

        return retrieval_task(split)
    from embed_jax.data.sources.beir import read_beir, read_hub

    return (
        read_hub(name.removeprefix("hf:"), split)
        if name.startswith("hf:")
        else read_beir(name, split)
    )


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """What training takes from a record, as the arguments of `training_batches`; None for what the records lack.

    Attributes:
        columns: its texts: anchor, positive, negatives; premise, hypothesis; query, passages; or a single text.
        label: its integer class.
        score: its score alone, or those of its passages.
        keys: its id and group, or the one of the two that there is; None where it has none.
    """

    columns: Columns
    label: Callable[[Record], int] | None = None
    score: Callable[[Record], Sequence[float]] | None = None
    keys: Callable[[Record], tuple[str | None, ...]] | None = None


def record_fields(records: Sequence[Record]) -> RecordFields:
    """The fields of records in any format for training.

    * pairs, triplets and so on: `anchor positive [negative_1 ...]`, or other names of a pair, with `score` or `label`
    * `premise hypothesis label`; labels are integers, or entailment (0), neutral (1) and contradiction (2)
    * `query passages scores`, two lists: the columns are the query and its passages
    * `text label`; labels that are no integers are numbered in their sorted order. The numbers are those of these
      records: use the same fields for validation data.

    and with any of them `id` and `group`. Numbers may be spelt as text.

    Raises:
        InputError: for records of no known format; or naming the first record without a label or score that others
            have, with a label that is no integer and no known name, or with another number of scores than passages.
    """
    names = {
        name
        for _, record in looked_at(records)
        for name, value in record.items()
        if value is not None
    }
    kind, label, score = kind_of(records[0]), None, None
    if kind == SCORED_LIST:
        columns, score = _list_columns, _list_scores
    elif kind == ("text",) and "label" in names:
        columns, label = _text_column, _class_label(records)
    elif len(kind) == 2:
        columns = _columns_named(*kind)
        label = _pair_label if "label" in names else None
        score = _pair_score if "score" in names else None
    else:
        accepted = "; ".join(
            " ".join(kind if kind != ("text",) else ("text", "label")) for kind in KINDS
        )
        raise InputError(
            f"records of no known format: found the fields {', '.join(records[0])}; accepted: {accepted}"
        )
    for number, record in looked_at(records):
        for field in (label, score):
            if field:
                of_record(field, record, number)
    present = [key for key in KEYS if key in names]
    return RecordFields(
        columns, label, score, (lambda record: _keys(record, present)) if present else None
    )


def pair_columns(records: Sequence[Record]) -> Columns:
    """The function that gives a record's (anchor, positive, negatives ...) for the names that these records use.

    Raises:
        InputError: if they are no pairs; says which fields were found and are accepted.
    """
    for names in PAIR_NAMES:
        if all(name in records[0] for name in names):
            return _columns_named(*names)
    accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
    raise InputError(
        f"no pairs: found the fields {', '.join(records[0])}; accepted: {accepted} (negative_1 ...)"
    )


def _columns_named(first: str, second: str) -> Columns:
    def columns(record: Record) -> tuple[str | None, ...]:
        single = (record[name] or None for name in negative_columns(record))
        return record[first], record[second], *single, *(record.get("negatives") or ())

    return columns


def _list_columns(record: Record) -> tuple[str, ...]:
    return record["query"], *record["passages"]


def _list_scores(record: Record) -> list[float]:
    _given(record, "passages")
    scores = [finite(score, "scores") for score in _given(record, "scores")]
    check_scored(record)
    return scores


def _text_column(record: Record) -> tuple[str]:
    return (record["text"],)


def _pair_score(record: Record) -> tuple[float]:
    return (finite(_given(record, "score"), "score"),)


def _pair_label(record: Record) -> int:
    value = _given(record, "label")
    number = (
        -1 if str(value).strip() == "-" else label_number(value)
    )  # SNLI's own files: no gold label
    if number is None:
        raise InputError(
            f"label: expected an integer or one of {', '.join(NLI_LABELS)}, found {value!r}"
        )
    return number


def _class_label(records: Sequence[Record]) -> Callable[[Record], int]:
    found = [
        of_record(lambda record: _given(record, "label"), record, n)
        for n, record in enumerate(records)
    ]
    found = sorted({str(label).strip() for label in found})
    if all(whole_number(label) is not None for label in found):
        return _pair_label
    numbers = {label: number for number, label in enumerate(found)}

    def label(record: Record) -> int:
        name = str(_given(record, "label")).strip()
        if name not in numbers:
            raise InputError(
                f"label: expected one of the {len(numbers)} of the training data, found {name!r}"
            )
        return numbers[name]

    return label


def _keys(record: Record, names: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(None if record.get(name) is None else str(record[name]) for name in names)


def _given(record: Record, name: str) -> Any:
    if record.get(name) is None:
        raise InputError(f"no {name}, which others have: found the fields {', '.join(record)}")
    return record[name]
