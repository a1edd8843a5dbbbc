"""Makes training batches of records: tokenised, packed, and shared among hosts.

A batch is a function of its step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.data.batch_maker import BatchMaker, RowShapes
from embed_jax.data.order import Order
from embed_jax.data.pack import count_rows, round_rows
from embed_jax.data.pair_rows import TokenizePairs
from embed_jax.data.pairs import apply_to_record, sampled_records
from embed_jax.data.record_source import RecordSource, count_columns
from embed_jax.data.stream import RecordStream
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError, require
from embed_jax.types import Batch, Record, TokenBatch

ENDLESS = 2**40  # steps
SAMPLED_BATCHES, SAMPLED_RECORDS = 8, 2048  # at most, from which a number of rows is computed


def training_batches(make: BatchMaker, order: Order) -> Any:
    """Returns an endless grain MapDataset whose element `[step]` is the batch of that step.

    Args:
        make: see `make_batch_maker`.
        order: the records of each batch, numbered over all data sets; see `order.make_order`.
    """
    require("grain")
    import grain

    return grain.MapDataset.range(ENDLESS).map(lambda step: make(order[step], step))


def make_batch_maker(
    sources: Sequence[RecordSource],
    *,
    tokenizers: Mapping[str, Tokenizer],
    batch_size: int,
    groups: int,
    row_length: int,
    rows: int | None = None,
    include_prompt: bool = True,
    shard: tuple[int, int] = (0, 1),
    shares: int = 0,
    pairs: TokenizePairs | None = None,
    in_batch_negatives: int = 0,
    seed: int = 0,
    mixed: bool = False,
    shorter_rows: bool = False,
) -> BatchMaker:
    """Returns a function that makes batches of records.

    Args:
        sources: the data sets; with more than one, batches record which one an example is from.
        tokenizers: tokenizers by name; "encoder" is the trained model's, whose token counts decide
            the dealing to groups. If there is "query", the tokenizer of a tower for queries, it
            packs the first column and "encoder" the others. Other tokenizers get the same texts
            without prompts, in rows as long as their own limit if that is longer.
        batch_size: B, examples over all hosts.
        groups: G over all hosts.
        row_length: T, slots of a packed row of the encoder.
        rows: R, rows of a group; None: as many as evenly drawn batches of the data set need (with
            `mixed`, of all data sets), and more for a batch that needs more. It must be set for
            several hosts.
        include_prompt: whether the prompts' tokens count towards pooling.
        shard: this host's index and the number of hosts. A host reads only its part of each batch,
            and gets `G / hosts` groups of it.
        shares: the number of contiguous parts of a batch, each dealt to its own `G / shares`
            groups; 0: one for each host. With `rows` set, the batches depend on this number and not
            on the number of hosts.
        pairs: `(queries, passages) -> tokens`, for an encoder that reads the first text together
            with each other one, see `data.pair_rows`; None: it reads each text by itself.
        in_batch_negatives: the number of positives of other examples of the whole batch that each
            example gets as further columns; with `pairs` only.
        seed: for what is drawn at each step.
        mixed: whether a batch is from all data sets, and not from one of them.
        shorter_rows: whether batches whose texts are all short have shorter rows, of a length that
            suits a sample of the texts: attention takes less time there. Not with `rows`.

    Raises:
        InputError: sizes do not divide each other, or an option does not fit; in a batch, a record
            lacks a text or has another number of scores or keys than the first of its data set.
    """
    hosts = shard[1]
    if "encoder" not in tokenizers:
        raise InputError(
            f"tokenizers: expected one called 'encoder', found {', '.join(tokenizers) or 'none'}"
        )
    if batch_size % groups or groups % hosts:
        raise InputError(
            f"batch of {batch_size} in {groups} groups on {hosts} hosts: each must divide the one "
            "before"
        )
    shares = shares or hosts
    if shares < 1 or shares % hosts or groups % shares:
        raise InputError(
            f"config.batch.shares: expected a multiple of the {hosts} hosts that divides the "
            f"{groups} groups, found {shares}"
        )
    cut = [
        {
            name: tokenizer.cut_at(source.max_length)
            if 0 < source.max_length < tokenizer.max_length
            else tokenizer
            for name, tokenizer in tokenizers.items()
        }
        for source in sources
    ]
    if (longest := max(by_name["encoder"].max_length for by_name in cut)) > row_length:
        raise InputError(
            f"row length {row_length} is too short for texts of {longest} tokens (tokenizer "
            "'encoder')"
        )
    num_columns = max(count_columns(source) for source in sources) + in_batch_negatives
    most = [_most_scores(source) for source in sources]
    widest = max(most)
    checked = [
        dataclasses.replace(
            source,
            fields=dataclasses.replace(
                source.fields,
                score=_check_scores(source, scores),
                keys=_check_keys(source),
            ),
        )
        for source, scores in zip(sources, most, strict=True)
    ]
    maker = BatchMaker(
        sources=checked,
        firsts=np.cumsum([0, *(len(source.records) for source in sources[:-1])]).tolist(),
        tokenizers=cut,
        num_columns=num_columns,
        # One score for each candidate, or one for the pair.
        num_scores=max(widest, num_columns - 1) if widest > 1 or pairs and widest else widest,
        num_keys=max(_width(source.fields.keys, source) for source in sources),
        teacher_size=_teacher_size(sources),
        groups=groups // hosts,
        shares=shares // hosts,
        row_length=row_length,
        rows=rows,
        include_prompt=include_prompt,
        shard=shard,
        pairs=pairs,
        in_batch_negatives=in_batch_negatives,
        seed=seed,
        row_shapes=[{}] * len(sources),
    )
    if rows:
        return maker
    # The records that a batch is drawn from: none of a stream, which can only be read in order.
    counts = [
        0 if isinstance(source.records, RecordStream) else len(source.records) for source in sources
    ]
    if mixed:
        shapes = [_sampled_shapes(maker, batch_size, range(sum(counts)), shorter_rows)] * len(
            sources
        )
    else:
        shapes = [
            _sampled_shapes(maker, batch_size, range(first, first + count), shorter_rows)
            for first, count in zip(maker.firsts, counts, strict=True)
        ]
    if hosts > 1:
        needed = max((own[-1][1] for by_name in shapes for own in by_name.values()), default=0)
        advice = f", for these data to {round_rows(-(-needed * 11 // 10))}" if needed else ""
        raise InputError(
            f"config.batch.rows: {hosts} hosts must agree on the rows of a group, "
            f"found 0; set it{advice}"
        )
    return dataclasses.replace(maker, row_shapes=shapes)


def _sampled_shapes(
    maker: BatchMaker, batch_size: int, numbers: range, shorter_rows: bool
) -> dict[str, RowShapes]:
    """Returns the shapes of rows that suit these records, by tokenizer; see `BatchMaker`.

    Batches are drawn evenly from the records; nothing is returned if they do not fill one. Batches
    that have at least these rows are nearly all of one shape, so a training step is compiled once
    and not for each of three or four shapes.
    """
    if len(numbers) < batch_size:
        return {}
    hosts = maker.shard[1]
    whole = dataclasses.replace(
        maker, groups=maker.groups * hosts, shares=maker.shares * hosts, shard=(0, 1)
    )
    batches = min(
        max(SAMPLED_RECORDS // batch_size, 1), SAMPLED_BATCHES, len(numbers) // batch_size
    )
    chosen = np.linspace(numbers[0], numbers[-1], batches * batch_size).astype(np.int64)

    views = [whole(chosen[first::batches], 0).tokens for first in range(batches)]
    return {name: _shapes_of([view[name] for view in views], shorter_rows) for name in views[0]}


def _shapes_of(views: Sequence[TokenBatch], shorter_rows: bool) -> RowShapes:
    """Returns the shapes of rows that suit batches like these."""
    groups = [
        np.bincount(group[group < view.sentences], minlength=view.sentences)
        for view in views
        for group in np.asarray(view.sentence)
    ]
    lengths = [views[0].token_ids.shape[2]]
    suited = suitable_row_length(max(int(tokens.max()) for tokens in groups))
    if shorter_rows and suited < lengths[0]:
        lengths.insert(0, suited)
    return [
        (length, round_rows(max(count_rows(tokens, length) for tokens in groups)))
        for length in lengths
    ]


def suitable_row_length(longest: int) -> int:
    """Returns the slots of rows for texts like those of a sample.

    A multiple of 32, and a quarter more than the longest text, so that few other texts are longer.

    >>> [suitable_row_length(longest) for longest in (16, 40, 100, 400)]
    [32, 96, 128, 512]
    """
    slots = max(roomy_row_length(longest), longest + longest // 4)
    return -(-slots // 32) * 32


def roomy_row_length(longest: int) -> int:
    """Returns the slots of rows for texts of at most `longest` tokens: twice as many up to 128.

    At that length packing finds room and attention is cheap.

    >>> [roomy_row_length(longest) for longest in (16, 100, 400)]
    [32, 128, 400]
    """
    return max(longest, min(2 * longest, 128))


def prefetch(
    batches: Any,
    start: int = 0,
    *,
    num_steps: int | None = None,
    num_threads: int = 2,
    buffer: int = 4,
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) in order, made by threads ahead of the consumer.

    Args:
        batches: the result of `training_batches`.
        start: the first step.
        num_steps: the step before which it ends; None: never.
        num_threads: the number of threads that make batches.
        buffer: the number of batches that are made ahead.
    """
    require("grain")
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    iterator = iter(batches[start:num_steps].to_iter_dataset(options))
    try:
        yield from enumerate(iterator, start)
    finally:
        iterator.close()


def _width(function: Callable[[Record], Sequence] | None, source: RecordSource) -> int:
    return len(apply_to_record(function, source.records[0], 0)) if function else 0


def _teacher_size(sources: Sequence[RecordSource]) -> int:
    """Returns T, the size of the teacher's embeddings; 0 if no data set has any.

    Raises:
        InputError: the sizes of data sets differ.
    """
    sizes = [
        apply_to_record(source.fields.teacher, source.records[0], 0).shape[-1]
        for source in sources
        if source.fields.teacher
    ]
    if len(set(sizes)) > 1:
        raise InputError(
            "teacher_vectors: expected one size for all data sets, found "
            f"{', '.join(map(str, sizes))}"
        )
    return sizes[0] if sizes else 0


def _most_scores(source: RecordSource) -> int:
    """Returns the largest number of scores of a record, among `sampled_records`."""
    if source.fields.score is None:
        return 0
    records = sampled_records(source.records)
    return max(
        len(apply_to_record(source.fields.score, record, index)) for index, record in records
    )


def _check_scores(source: RecordSource, most: int) -> Callable[[Record], Sequence[float]] | None:
    """Wraps the scores so that they refuse a record with too few or too many.

    Lists may have fewer candidates than others; each of them has a score.
    """
    score, columns = source.fields.score, source.fields.columns
    if score is None:
        return None

    def checked(record: Record) -> Sequence[float]:
        values = score(record)
        candidates = sum(text is not None for text in columns(record)[1:])
        if len(values) != most and (len(values) > most or len(values) != candidates):
            raise InputError(
                f"found {len(values)} scores, expected {most} as in other records, or one for each "
                f"of {candidates} candidates"
            )
        return values

    return checked


def _check_keys(source: RecordSource) -> Callable[[Record], tuple[str | None, ...]] | None:
    """Wraps the keys so that they refuse a record with another number of them than the first."""
    keys, size = source.fields.keys, _width(source.fields.keys, source)
    if keys is None:
        return None

    def checked(record: Record) -> tuple[str | None, ...]:
        values = keys(record)
        if len(values) != size:
            raise InputError(f"found {len(values)} keys, expected {size} as in record 0")
        return values

    return checked
