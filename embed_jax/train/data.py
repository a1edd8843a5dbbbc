"""The batches of a run: from data sources to a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from embed_jax.config import Experiment
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.batch_maker import BatchMaker
from embed_jax.data.order import Order, make_order
from embed_jax.data.pipeline import (
    make_batch_maker,
    prefetch,
    roomy_row_length,
    training_batches,
)
from embed_jax.data.record_source import RecordSource, data_fingerprint, hash_duplicates
from embed_jax.data.sources import RecordFields
from embed_jax.data.stream import RecordStream, make_ahead, stream_batches
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError
from embed_jax.retrieval.topk import Encode
from embed_jax.runtime import say
from embed_jax.train.clusters import with_clusters
from embed_jax.train.data_checks import _check_teacher, check_data, check_same_mask, check_stream
from embed_jax.train.model import TrainingModel
from embed_jax.train.objective import Objective
from embed_jax.train.prompts import given_prompts
from embed_jax.train.sources import ONLY, Sources
from embed_jax.types import Batch, Record, TokenBatch, TrainState

SourcesAt = Callable[[int, Encode], Sources]
BatchesFrom = Callable[[int, TrainState], Generator[tuple[int, Batch], None, None]]
VALIDATION_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        sources: the data sets at the start, prepared for the objective.
        order: the records of each batch; None for a stream.
        num_steps: batches of the whole run.
        fingerprint: what the content and order of the batches depend on, beside the config.
        batches: `(step, state) -> iterator of (step, batch)` from a step on, up to the next time
            that the data are renewed with the model as it is then.
        held_out: `records -> batches`: the first few of held-out records; [] if they do not fill
            one.
    """

    sources: Sources
    order: Order | None
    num_steps: int
    fingerprint: dict[str, Any]
    batches: BatchesFrom
    held_out: Callable[[Sequence[Record]], list[Batch]]


def training_data(
    config: Experiment,
    sources: Sources | SourcesAt,
    model: TrainingModel,
    objective: Objective,
    groups: int,
    workdir: Path | None = None,
) -> TrainingData:
    """Prepares the data sets for the objective, and settles order and number of steps.

    Args:
        config: the run's settings.
        sources: by name, or a function `(step, encode) -> sources`, called for the start and every
            `config.mine.every` steps.
        model: whose tokenizers are used.
        objective: decides which texts, labels and scores are read.
        groups: G, groups of a batch.
        workdir: see `assembly.assemble`.

    Raises:
        InputError: for data that the objective or the model cannot use.
    """
    renewed = callable(sources)
    sources_at = _at_every_step(sources)
    if config.batch.clusters and objective.pieces:
        raise InputError(
            "config.batch.clusters: for losses of embeddings of whole texts, not "
            f"{config.loss.name}, found {config.batch.clusters}"
        )

    def prepared_at(step: int, encode: Encode) -> dict[str, RecordSource]:
        prepared = prepare_sources(sources_at(step, encode), objective, config)
        if not config.batch.clusters:
            return prepared
        return with_clusters(prepared, encode, config, workdir)

    first = prepared_at(0, model.bind())
    pieces = _cut_sources(first, objective)
    check_same_mask(config, pieces)
    maker = _batch_maker(config, model, objective, groups)
    streamed = next(
        (source for source in pieces.values() if isinstance(source.records, RecordStream)), None
    )
    order = None if streamed else training_order(pieces, config)
    num_steps = _num_steps(config, order)

    def batches(start: int, state: TrainState) -> Generator[tuple[int, Batch], None, None]:
        if streamed:
            yield from _streamed_batches(maker([streamed]), config, start, num_steps)
            return
        every = (config.mine.every if renewed else 0) or num_steps
        since = start // every * every
        now, now_order = pieces, order
        if since:
            # Resumed after the data were renewed: they are on disk, and their model is lost.
            encode = model.bind(state.encoder) if start == since else TextEncoder(_PastModel(since))
            now = _cut_sources(prepared_at(since, encode), objective)
            now_order = training_order(now, config)
        assert now_order is not None, "only a stream has no order"
        yield from prefetch(
            training_batches(maker(list(now.values())), now_order),
            start,
            num_steps=min(since + every, num_steps),
        )

    def held_out(records: Sequence[Record]) -> list[Batch]:
        if not records:
            return []
        if len(first) > 1:
            raise InputError(
                f"validation records: only for a run with one data set, found {', '.join(first)}"
            )
        (only,) = _cut_sources(
            {
                name: dataclasses.replace(source, records=records, clusters=None)
                for name, source in first.items()
            },
            objective,
        ).values()
        count = len(only.records)
        size = min(config.batch.size, count // groups * groups)
        if size < 2:
            say(f"no validation loss: {count} held-out records are too few for {groups} groups")
            return []
        if size < config.batch.size:
            say(
                f"validation loss: in batches of {size}, as {count} held-out records do not fill "
                f"one of {config.batch.size}"
            )
        held_out_order = make_order([count], size, seed=0)
        held_out_batches = training_batches(maker([only], batch_size=size), held_out_order)
        return [
            held_out_batches[step]
            for step in range(min(VALIDATION_BATCHES, held_out_order.count(1)))
        ]

    # With the groups: they decide the dropout masks, and default to the number of devices.
    shares = config.batch.shares or jax.process_count()
    made_of = {**data_fingerprint(pieces), "groups": groups, "shares": shares}
    return TrainingData(pieces, order, num_steps, made_of, batches, held_out)


class _PastModel:
    """A model of an earlier step, which embeds nothing any more."""

    routes = ()

    def __init__(self, step: int):
        self.step = step

    def encode(self, texts: Sequence[str], **_: Any) -> Any:
        raise InputError(
            f"--workdir: lacks what the model of step {self.step} mined for later steps, and "
            "that model is lost: use another"
        )


def _at_every_step(sources: Sources | SourcesAt) -> SourcesAt:
    """Returns the sources as a function of step and encoder, which fixed ones do not depend on."""
    if callable(sources):
        return sources
    fixed = sources
    return lambda step, encode: fixed


def row_length(config: Experiment, max_length: int) -> int:
    """Returns T, the most slots of a row: the config's, or those of `roomy_row_length`.

    Rows are shorter where the config leaves their length open and the texts are short; see
    `make_batch_maker`.

    Args:
        config: the run's settings.
        max_length: tokens of the longest text.
    """
    length = config.batch.row_length
    if length and length < max_length:
        raise InputError(
            f"config.batch.row_length: expected at least data.max_length={max_length}, found "
            f"{length}"
        )
    return length or roomy_row_length(max_length)


def abstract_batch(groups: int, columns: int, examples: int, rows: int, length: int) -> Batch:
    """Returns the shapes of a batch.

    G groups of E examples with C texts each, packed into R rows of T slots.
    """

    def batch() -> Batch:
        slots = jnp.zeros((groups, rows, length), jnp.int32)
        tokens = TokenBatch(
            slots, slots, slots, pooled=slots.astype(bool), sentences=columns * examples
        )
        return Batch(
            {"encoder": tokens},
            present=jnp.zeros((groups, columns, examples), bool),
            text_hash=jnp.zeros((groups, columns, examples, 2), jnp.uint32),
            record=jnp.zeros((groups, examples), jnp.int32),
        )

    return jax.eval_shape(batch)


def _batch_maker(
    config: Experiment, model: TrainingModel, objective: Objective, groups: int
) -> Callable[..., BatchMaker]:
    longest = model.max_length
    reads_pairs = isinstance(model.result, CrossEncoder)
    if config.batch.in_batch_negatives and not reads_pairs:
        raise InputError(
            "config.batch.in_batch_negatives: for cross-encoders only, found "
            f"{config.batch.in_batch_negatives}; embeddings are compared with the whole batch"
        )
    return functools.partial(
        make_batch_maker,
        tokenizers={
            **{
                name: tokenizer.cut_at(min(longest, tokenizer.max_length))
                for name, tokenizer in model.tokenizers.items()
            },
            **{name: other.tokenizer for name, other in objective.models.items()},
        },
        batch_size=config.batch.size,
        groups=groups,
        shares=config.batch.shares or jax.process_count(),
        row_length=row_length(config, longest),
        rows=config.batch.rows or None,
        shorter_rows=not config.batch.row_length,
        include_prompt=reads_pairs or model.result.include_prompt,
        pairs=model.result.tokenize if reads_pairs else None,
        in_batch_negatives=config.batch.in_batch_negatives,
        seed=config.train.seed,
        shard=(jax.process_index(), jax.process_count()),
        mixed=config.mixture.batches == "mixed",
    )


def _num_steps(config: Experiment, order: Order | None) -> int:
    """Returns the batches of the run, without those at the end whose gradient is never used."""
    num_steps = config.train.steps
    if not num_steps:
        if order is None:
            raise InputError(
                "config.train.steps: a stream has no known end, set the number of steps; found 0"
            )
        num_steps = order.count(config.train.epochs)
    return max(num_steps // config.optim.accumulate, 1) * config.optim.accumulate


def _streamed_batches(
    make: BatchMaker, config: Experiment, start: int, num_steps: int
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) of a stream from a step on, made ahead of the consumer."""
    (source,) = make.sources
    assert isinstance(source.records, RecordStream), "other data sets have an order"
    batches = stream_batches(
        source.records,
        config.batch.size,
        window=config.data.window,
        seed=config.train.seed,
        start=start,
    )
    steps = range(start, num_steps)
    yield from make_ahead(
        (step, make.make_from_records(records, step))
        for step, records in zip(steps, batches)  # noqa: B905
    )


def _cut_sources(sources: Sources, objective: Objective) -> Sources:
    """Cuts texts over their limit in pieces, if the objective trains on pieces."""
    if objective.pieces is None:
        return sources
    return {
        name: dataclasses.replace(
            source,
            records=objective.pieces(source.records, source),
            fields=RecordFields(lambda record: (record["text"],)),
        )
        for name, source in sources.items()
    }


def prepare_sources(
    sources: Sources, objective: Objective, config: Experiment
) -> dict[str, RecordSource]:
    """Returns the data sets with their prompts and lengths.

    Labels and scores that their loss does not use are left out.

    Raises:
        InputError: naming what a data set lacks for its loss.
    """
    prepared = {}
    for name, source in sources.items():
        about = objective.of_dataset.get(name, objective.about)
        check_stream(source, config)
        check_data(source, about, config, "" if name == ONLY else name)
        if "teacher" not in objective.models:
            _check_teacher(source, about, config, "" if name == ONLY else name)
        fields, needs = source.fields, set(about.needs)
        used_fields = dataclasses.replace(
            fields,
            label=fields.label if "label" in needs else None,
            score=fields.score if needs & {"score", "scores"} else None,
            teacher=fields.teacher if "teacher" in needs else None,
        )
        settings = getattr(config.mixture.sources, name, None)
        own_prompts = given_prompts(config, settings, name) if settings else ("", "")
        prompts = tuple(
            own or default for own, default in zip(own_prompts, objective.prompts, strict=True)
        )
        prepared[name] = dataclasses.replace(
            source,
            fields=used_fields,
            prompts=source.prompts if any(source.prompts) else prompts,
            max_length=source.max_length or config.data.max_length,
        )
    return prepared


def training_order(sources: Sources, config: Experiment) -> Order:
    """Makes the order of the records in batches.

    Without duplicates, every record is read once for it.
    """
    mixture, chosen = config.mixture, vars(config.mixture.sources)
    duplicate_keys = hash_duplicates(list(sources.values())) if config.batch.no_duplicates else None
    order = make_order(
        [len(source.records) for source in sources.values()],
        config.batch.size,
        config.train.seed,
        mixing=mixture.batches,
        sampling=mixture.sampling,
        temperature=mixture.temperature,
        weights=[source.weight for source in chosen.values()],
        clusters=[source.clusters for source in sources.values()],
        duplicate_keys=duplicate_keys,
    )
    if duplicate_keys is not None:
        steps = order.count(1)
        left = len(duplicate_keys) - steps * config.batch.size
        say(
            f"no duplicates: {steps} batches of {config.batch.size} an epoch, {left} of "
            f"{len(duplicate_keys)} records left out"
        )
    return order
