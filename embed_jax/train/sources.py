"""The data sets of a run as its config names them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embed_jax.config import Data as DataConfig
from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.record_source import RecordSource
from embed_jax.data.records import VALUES
from embed_jax.data.sources import (
    RecordFields,
    iter_records,
    open_records,
    place_in_file,
    record_fields,
)
from embed_jax.data.stream import RecordStream, open_stream
from embed_jax.data.teacher import TeacherVectors, number_records, open_teacher_vectors
from embed_jax.errors import InputError
from embed_jax.runtime import say

Sources = Mapping[str, RecordSource]
ONLY = "train"  # the name of the data set of a run that has one


def open_mixture(config: Experiment) -> dict[str, RecordSource]:
    """Opens the data sets that `config.mixture.sources` names.

    Without any, it is the one of `config.data`.
    """
    chosen = vars(config.mixture.sources)
    if not chosen:
        return {ONLY: open_source(config.data)}
    named = {}
    for name, settings in chosen.items():
        try:
            named[name] = open_source(settings, name)
        except InputError as error:
            raise InputError(f"config.mixture.sources.{name}: {error}") from None
    return named


def open_source(settings: DataConfig | SourceConfig, name: str = ONLY) -> RecordSource:
    """Opens the records that a config names, without those excluded, and their fields.

    Args:
        settings: `config.data`, or a data set of the mixture.
        name: of the data set, for messages.
    """
    records, vectors = read_with_teacher(settings)
    try:
        fields = text_or_record_fields(records, settings.columns)
        fields = dataclasses.replace(fields, teacher=vectors)
    except InputError as error:
        columns = column_names(settings.columns)
        raise placed(error, settings.train, settings.split, columns) from None
    if settings.exclude:
        records = without_texts(records, fields.columns, settings.exclude, name)
    return RecordSource(
        records, scaled(fields, settings.score_max), max_length=getattr(settings, "max_length", 0)
    )


def read_records(settings: DataConfig | SourceConfig) -> Sequence[Mapping[str, Any]]:
    """Reads the records that a config names, or a stream of them."""
    return read_with_teacher(settings)[0]


def read_with_teacher(
    settings: DataConfig | SourceConfig,
) -> tuple[Sequence[Mapping[str, Any]], TeacherVectors | None]:
    """Opens the records that a config names, or a stream of them.

    Their teacher's embeddings come with them, if it names a file.
    """
    if settings.train.startswith("stream:"):
        return _open_stream(settings), None
    columns = column_names(settings.columns)
    records: Sequence[Mapping[str, Any]] = open_records(settings.train, settings.split, columns)
    vectors = None
    if settings.teacher_vectors:
        path, ids = settings.teacher_vectors, settings.teacher_ids
        vectors = open_teacher_vectors(path, ids, len(records))
        records = records if ids else number_records(records)
    return records[: settings.limit or None], vectors


def read_validation(settings: DataConfig) -> Sequence[Mapping[str, Any]]:
    """Reads the records of the split that a config names for validation."""
    columns = column_names(settings.columns)
    return open_records(settings.train, settings.validation_split, columns)


def column_names(columns: str) -> list[str]:
    """Returns the names in a text with commas between."""
    return [name.strip() for name in columns.split(",") if name.strip()]


def _open_stream(settings: DataConfig | SourceConfig) -> RecordStream:
    """Opens records that are read one after the other; the only data set of a run."""
    if not isinstance(settings, DataConfig):
        raise InputError(
            f"{settings.train}: a mixture takes data sets with random access, not a stream"
        )
    for field in ("exclude", "limit", "consistency", "holdout", "teacher_vectors"):
        if getattr(settings, field) != getattr(DataConfig(), field):
            raise InputError(f"config.data.{field}: not for a stream, {settings.train}")
    name = settings.train.removeprefix("stream:")
    columns = column_names(settings.columns)
    return open_stream(lambda: iter_records(name, settings.split, columns), name)


def placed(
    error: InputError, name: str, split: str = "train", columns: Sequence[str] = ()
) -> InputError:
    """Replaces the number of a record in an error by file and line.

    Records that are not from a file keep their number.

    Args:
        error: names a record by its number.
        name: see `open_records`.
        split: see `open_records`.
        columns: see `open_records`.
    """
    line = re.match(r"record (\d+): (.*)", str(error))
    if line is None:
        return error
    place = place_in_file(name, split, int(line[1]), columns)
    return InputError(f"{place}: {line[2]}") if place else error


def without_texts(
    records: Sequence[Mapping[str, Any]],
    columns: Callable[[Any], Sequence[str | None]],
    files: str,
    name: str = ONLY,
) -> list[Mapping[str, Any]]:
    """Leaves out the records with a text of the files; prints how many.

    White space around texts and case are ignored.

    Args:
        records: the records.
        columns: returns a record's texts.
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
    remaining = [
        record
        for record in records
        if known.isdisjoint(text.strip().lower() for text in columns(record) if text)
    ]
    if not remaining:
        raise InputError(f"exclude: all {len(records)} records have a text of {files}")
    say(
        f"{name}: {len(records) - len(remaining)} of {len(records)} records left out for a text of "
        f"{files}"
    )
    return remaining


def scaled(fields: RecordFields, score_max: float) -> RecordFields:
    """Returns the fields with scores divided by a number."""
    read = fields.score
    if read is None or score_max == 1:
        return fields

    def scale(record: Mapping[str, Any]) -> list[float]:
        return [score / score_max for score in read(record)]

    return dataclasses.replace(fields, score=scale)


def text_or_record_fields(records: Sequence[Mapping[str, Any]], columns: str) -> RecordFields:
    """Returns the fields of records.

    Where one column is named, it is the text only if there is no label.
    """
    if len(column_names(columns)) == 1 and "label" not in records[0]:
        return RecordFields(lambda record: (record["text"],))
    return record_fields(records)
