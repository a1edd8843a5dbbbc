"""The data sets of a run as its config names them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embed_jax.config import Data as DataConfig
from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.pairs import looked_at
from embed_jax.data.pipeline import Source
from embed_jax.data.sources import RecordFields, iter_records, open_records, record_fields
from embed_jax.data.sources.files import VALUES, place_in_file
from embed_jax.data.stream import Stream, open_stream
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.runtime import say

Sources = Mapping[str, Source]
ONLY = "train"  # the name of the data set of a run that has one


def open_mixture(config: Experiment) -> dict[str, Source]:
    """The data sets that `config.mixture.sources` names, or that of `config.data` alone if it names none."""
    chosen = vars(config.mixture.sources)
    if not chosen:
        return {ONLY: open_source(config.data)}
    found = {}
    for name, settings in chosen.items():
        try:
            found[name] = open_source(settings, name)
        except InputError as error:
            raise InputError(f"config.mixture.sources.{name}: {error}") from None
    return found


def open_source(settings: DataConfig | SourceConfig, name: str = ONLY) -> Source:
    """The records that a config names, without those excluded, and what is trained on of them.

    Args:
        name: of the data set, for what is said of it.
    """
    records = read_records(settings)
    columns = getattr(settings, "columns", "")
    try:
        fields = named_fields(records, columns) if columns else record_fields(records)
    except InputError as error:
        raise placed(error, settings.train, settings.split) from None
    if settings.exclude:
        records = without_texts(records, fields.columns, settings.exclude, name)
    return Source(
        records, scaled(fields, settings.score_max), max_length=getattr(settings, "max_length", 0)
    )


def read_records(settings: DataConfig | SourceConfig) -> Sequence[Mapping[str, Any]]:
    """The records that a config names, or a stream of them."""
    if settings.train.startswith("stream:"):
        return _open_stream(settings)
    named = [name.strip() for name in getattr(settings, "columns", "").split(",") if name.strip()]
    return open_records(settings.train, settings.split, named)[: settings.limit or None]


def _open_stream(settings: DataConfig | SourceConfig) -> Stream:
    """Records read one after the other; the only data set of a run."""
    if not isinstance(settings, DataConfig):
        raise InputError(
            f"{settings.train}: a mixture takes data sets with random access, not a stream"
        )
    for field in ("exclude", "limit", "consistency", "holdout"):
        if getattr(settings, field) != getattr(DataConfig(), field):
            raise InputError(f"config.data.{field}: not for a stream, {settings.train}")
    name = settings.train.removeprefix("stream:")
    return open_stream(lambda: iter_records(name, settings.split), name)


def placed(error: InputError, name: str, split: str = "train") -> InputError:
    """An error that names a record by its number, with file and line instead where the records are a file's.

    Args:
        name, split: of `open_records`.
    """
    found = re.match(r"record (\d+): (.*)", str(error))
    place = found and place_in_file(name, split, int(found[1]))
    return InputError(f"{place}: {found[2]}") if place else error


def without_texts(
    records: Sequence[Mapping[str, Any]],
    columns: Callable[[Any], Sequence[str | None]],
    files: str,
    name: str = ONLY,
) -> list[Mapping[str, Any]]:
    """The records none of whose texts is a text of the files, white space around it and case aside; says how many.

    Args:
        files: with commas between.
        name: of the data set.

    Raises:
        InputError: for a file that cannot be read, or if no record is left.
    """
    known = {
        value.strip().lower()
        for file in files.split(",")
        for record in open_records(file.strip())
        for name, value in record.items()
        if isinstance(value, str) and name not in VALUES
    }
    kept = [
        record
        for record in records
        if known.isdisjoint(text.strip().lower() for text in columns(record) if text)
    ]
    if not kept:
        raise InputError(f"exclude: all {len(records)} records have a text of {files}")
    say(
        f"{name}: {len(records) - len(kept)} of {len(records)} records left out for a text of {files}"
    )
    return kept


def scaled(fields: RecordFields, score_max: float) -> RecordFields:
    """The fields with scores divided by a number."""
    if fields.score is None or score_max == 1:
        return fields
    return dataclasses.replace(
        fields, score=lambda record: [score / score_max for score in fields.score(record)]
    )


def named_fields(records: Sequence[Mapping[str, Any]], columns: str) -> RecordFields:
    """The fields of records whose texts have other names than usual.

    Args:
        columns: the fields that are the anchor, the positive and the negatives, with commas between.

    Raises:
        InputError: for a field that the records lack; label, score, id and group are found by their own names.
    """
    names = [name.strip() for name in columns.split(",")]
    for name in names:
        if name not in records[0]:
            raise InputError(unknown("field", name, records[0]))
    usual = ("anchor", "positive", *(f"negative_{n}" for n in range(1, len(names))))[: len(names)]
    kept = ("score", "label", "id", "group")

    def renamed(record: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(usual, (record.get(name) for name in names), strict=True)) | {
            name: record[name] for name in kept if name in record
        }

    if len(names) == 1:
        return RecordFields(lambda record: (record[names[0]],))
    plain = record_fields([renamed(record) for _, record in looked_at(records)])
    return RecordFields(
        *(
            None
            if function is None
            else lambda record, function=function: function(renamed(record))
            for function in (plain.columns, plain.label, plain.score, plain.keys)
        )
    )
