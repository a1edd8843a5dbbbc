"""The data sets of a run: those of a mixture, what the loss wants of each, and whether it is there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embed_jax.config import Data as DataConfig
from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.order import Order, make_order
from embed_jax.data.pairs import looked_at, of_record
from embed_jax.data.pipeline import Source, most_texts, things_of
from embed_jax.data.sources import RecordFields, iter_records, open_records, record_fields
from embed_jax.data.sources.files import VALUES, place_in_file
from embed_jax.data.stream import Stream, open_stream
from embed_jax.errors import InputError
from embed_jax.losses.base import About
from embed_jax.losses.compose import LossFunction, per_dataset, weighted_sum
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.distributed import is_first_host
from embed_jax.registry import unknown
from embed_jax.train.prompts import given_prompts

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
    if is_first_host():
        print(
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


def training_loss(
    config: Experiment, given: Mapping[str, Any], names: Sequence[str]
) -> LossFunction:
    """The loss of a run: one for all examples, or each data set's own where the mixture names any.

    Args:
        given: arguments of `config.loss` for every loss that takes them.
        names: of the data sets.

    Raises:
        InputError: for a loss that cannot be built, or losses by data set that are not those of the mixture.
    """
    chosen = vars(config.mixture.sources)
    loss = build_loss(config.loss.name, given)
    own = any(source.loss or source.loss_weight != 1 for source in chosen.values())
    if loss.datasets and not chosen:
        raise InputError(
            f"config.loss.name: {config.loss.name!r} needs a mixture of data sets, config.data.train is one"
        )
    if loss.datasets and (own or list(loss.datasets) != list(names)):
        expected = f"those of config.mixture.sources, {', '.join(names)}, in this order and without losses of their own"
        raise InputError(
            f"config.loss.name: {config.loss.name!r} has losses for {', '.join(loss.datasets)}; expected {expected}"
        )
    if not own:
        return loss
    losses = {}
    for name, source in chosen.items():
        try:
            one = build_loss(source.loss or config.loss.name, given)
            losses[name] = (
                one if source.loss_weight == 1 else weighted_sum([(source.loss_weight, one)])
            )
        except InputError as error:
            message = str(error).removeprefix("config.loss.name: ")
            raise InputError(f"config.mixture.sources.{name}.loss: {message}") from None
    # Batches of a single data set do not say which one they are from.
    return per_dataset(losses) if len(losses) > 1 else losses[names[0]]


def for_loss(
    sources: Sources, loss: LossFunction, config: Experiment, prompts: tuple[str, str]
) -> dict[str, Source]:
    """The data sets with their prompts and lengths, and without labels and scores that their loss has no use for.

    Args:
        prompts: of anchors and candidates, where a data set names none.

    Raises:
        InputError: naming what a data set lacks for its loss.
    """
    found = {}
    for name, source in sources.items():
        about = loss.of_dataset.get(name, loss.about)
        check_data(source, about, config, "" if name == ONLY else name)
        wanted = {
            "label": "label" in about.needs,
            "score": bool({"score", "scores"} & set(about.needs)),
        }
        fields = {
            field: getattr(source.fields, field) if needed else None
            for field, needed in wanted.items()
        }
        settings = getattr(config.mixture.sources, name, None)
        given = given_prompts(config, settings, name) if settings else ("", "")
        mine = (given[0] or prompts[0], given[1] or prompts[1])
        found[name] = dataclasses.replace(
            source,
            fields=dataclasses.replace(source.fields, **fields),
            prompts=source.prompts if any(source.prompts) else mine,
            max_length=source.max_length or config.data.max_length,
        )
    return found


def check_data(source: Source, about: About, config: Experiment, dataset: str = "") -> None:
    """Whether a data set has what its loss needs.

    Args:
        dataset: its name in a mixture.

    Raises:
        InputError: naming what is missing.
    """
    where = f"config.mixture.sources.{dataset}.loss" if dataset else "config.loss.name"
    name = getattr(config.mixture.sources, dataset, SourceConfig()).loss or config.loss.name
    fields, records = source.fields, source.records
    found = ", ".join(records[0])
    for need in about.needs:
        if (
            need == "label"
            and fields.label is None
            or need in ("score", "scores")
            and fields.score is None
        ):
            raise InputError(
                f"{where}: {name!r} needs records with a {need}, found the fields {found}"
            )
        if need == "scores":
            texts, scores = len(fields.columns(records[0])), len(fields.score(records[0]))
            if scores != texts - 1:
                raise InputError(
                    f"{where}: {name!r} needs a score for each of the {texts - 1} candidates of a record, "
                    f"found {scores}"
                )
    columns = most_texts(source)
    least, most = about.columns
    if columns < least or most and columns > most:
        wanted = (
            f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
        )
        raise InputError(
            f"{where}: {name!r} needs {wanted} texts a record, found {columns} ({found})"
        )
    if about.classes:
        for number, record in looked_at(records):
            if not 0 <= (label := of_record(fields.label, record, number)) < about.classes:
                raise InputError(
                    f"record {number}: label {label}, {where}={name!r} accepts 0 to {about.classes - 1}"
                )


def training_order(sources: Sources, config: Experiment) -> Order:
    """Which records each batch has, as the config says; without duplicates, every record is read once for it."""
    mixture, chosen = config.mixture, vars(config.mixture.sources)
    things = things_of(list(sources.values())) if config.batch.no_duplicates else None
    order = make_order(
        [len(source.records) for source in sources.values()],
        config.batch.size,
        config.train.seed,
        mixing=mixture.batches,
        sampling=mixture.sampling,
        temperature=mixture.temperature,
        weights=[source.weight for source in chosen.values()],
        things=things,
    )
    if things is not None and is_first_host():
        steps = order.count(1)
        left = len(things) - steps * config.batch.size
        print(
            f"no duplicates: {steps} batches of {config.batch.size} an epoch, {left} of {len(things)} records left out"
        )
    return order
