"""Checks that the data of a run have what its loss needs."""

from __future__ import annotations

from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.pairs import apply_to_record, sampled_records
from embed_jax.data.record_source import RecordSource, count_columns
from embed_jax.data.stream import RecordStream
from embed_jax.errors import InputError
from embed_jax.losses.base import About
from embed_jax.train.sources import Sources
from embed_jax.types import require_field


def check_same_mask(config: Experiment, sources: Sources) -> None:
    """Raises an InputError if `model.same_mask_columns` is not the number of an example's texts."""
    columns = config.model.same_mask_columns
    if columns and columns != (texts := max(map(count_columns, sources.values()))):
        raise InputError(
            f"config.model.same_mask_columns: expected 0 or {texts}, the texts of an example, "
            f"found {columns}"
        )


def check_stream(source: RecordSource, config: Experiment) -> None:
    """Raises an InputError for a stream with a setting that needs all records."""
    for field in ("no_duplicates", "clusters"):
        if isinstance(source.records, RecordStream) and getattr(config.batch, field):
            raise InputError(
                f"config.batch.{field}: not for a stream, of which not all records are known"
            )


def check_data(source: RecordSource, about: About, config: Experiment, dataset: str = "") -> None:
    """Raises an InputError for a data set that lacks what its loss needs; it names the field.

    `dataset` is the name in a mixture.
    """
    where = f"config.mixture.sources.{dataset}.loss" if dataset else "config.loss.name"
    name = getattr(config.mixture.sources, dataset, SourceConfig()).loss or config.loss.name
    fields, records = source.fields, source.records
    field_names = ", ".join(records[0])
    for need in about.needs:
        if (
            need == "label"
            and fields.label is None
            or need in ("score", "scores")
            and fields.score is None
        ):
            raise InputError(
                f"{where}: {name!r} needs records with a {need}, found the fields {field_names}"
            )
        if need == "scores":
            texts = len(fields.columns(records[0]))
            count = len(require_field(fields.score)(records[0]))
            if count != texts - 1:
                raise InputError(
                    f"{where}: {name!r} needs a score for each of the {texts - 1} candidates of a "
                    f"record, found {count}"
                )
    columns = count_columns(source)
    least, most = about.columns
    if columns < least or most and columns > most:
        expected = (
            f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
        )
        raise InputError(
            f"{where}: {name!r} needs {expected} texts a record, found {columns} ({field_names})"
        )
    if about.classes:
        for number, record in sampled_records(records):
            label = apply_to_record(require_field(fields.label), record, number)
            if not 0 <= label < about.classes:
                raise InputError(
                    f"record {number}: label {label}, {where}={name!r} accepts 0 to "
                    f"{about.classes - 1}"
                )
    score_max = f"config.mixture.sources.{dataset}" if dataset else "config.data"
    for fit in about.fits:
        for number, record in sampled_records(records):
            scores = apply_to_record(require_field(fields.score), record, number)
            targets = [scores[0] - score for score in scores[1:]] if fit.of_margins else scores
            for target in targets:
                if not fit.least - 1e-6 <= target <= fit.largest + 1e-6:
                    what = "difference of scores" if fit.of_margins else "score"
                    raise InputError(
                        f"record {number}: {what} {target:g}, {where}={name!r} fits {fit.least:g} "
                        f"to {fit.largest:g}; set {score_max}.score_max to the largest score of "
                        "the data"
                    )


def _check_teacher(source: RecordSource, about: About, config: Experiment, dataset: str) -> None:
    """Checks the file of a teacher's embeddings of a data set.

    It must not be missing, unused, or of another number of texts.

    Raises:
        InputError: naming the field.
    """
    place = f"config.mixture.sources.{dataset}" if dataset else "config.data"
    name = getattr(config.mixture.sources, dataset, SourceConfig()).loss or config.loss.name
    vectors, needed = source.fields.teacher, "teacher" in about.needs
    settings = getattr(config.mixture.sources, dataset, None) or config.data
    if vectors is None and settings.teacher_vectors:
        raise InputError(
            f"{place}.teacher_vectors: not read by this experiment, but by experiments.distill"
        )
    if needed and vectors is None:
        raise InputError(f"{place}.teacher_vectors: the loss {name!r} needs a teacher, found ''")
    if vectors is None:
        return
    if not needed:
        raise InputError(f"{place}.teacher_vectors: the loss {name!r} has no use for a teacher")
    texts, rows = count_columns(source), len(apply_to_record(vectors, source.records[0], 0))
    if texts != rows:
        raise InputError(
            f"{place}.teacher_vectors: expected vectors of {texts} texts a record, found {rows}"
        )
