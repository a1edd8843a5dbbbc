"""Makes training batches of records: tokenised, packed, and shared among hosts.

A batch is a function of its step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from embed_jax.data.order import Order
from embed_jax.data.pack import Ids, RowsError, pack_batch, round_rows
from embed_jax.data.pair_rows import TokenizePairs, draw_negatives
from embed_jax.data.pairs import apply_to_record, sampled_records, text_hash
from embed_jax.data.sources import RecordFields
from embed_jax.data.stream import RecordStream
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError, require
from embed_jax.types import Batch, Record, TokenBatch

ENDLESS = 2**40  # steps
SAMPLED_BATCHES = 8  # batches that the advice about rows is computed from
TRAINED = ("encoder", "query")  # views of the texts for the trained encoder


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """A data set, and the fields of its records that are trained on.

    Attributes:
        records: the records, with random access: `len` and `[index]`.
        fields: the fields of a record that are used: its texts, and the label, score and keys if
            the loss needs them.
        prompts: texts put before the columns' texts for the encoder; the last one is also for all
            later columns.
        max_length: the number of tokens that a text is cut to; 0: the tokenizer's own limit.
        augment: `(text, column, record, step) -> text`: changes the text for the model; duplicates
            are found by the unchanged text.
    """

    records: Sequence[Record]
    fields: RecordFields
    prompts: Sequence[str] = ("",)
    max_length: int = 0
    augment: Callable[[str, int, int, int], str] | None = None

    def texts(self, index: int, record: Record) -> list[str | None]:
        """Returns a record's texts, where missing negatives are None.

        Raises:
            InputError: the anchor or the positive is missing.
        """
        texts = list(self.fields.columns(record))
        for text in texts[:2]:
            if text is None:
                raise InputError(f"record {index}: anchor and positive are needed, one is missing")
        return texts


# A data set, its index, a record's index in it, and the record.
Example = tuple[RecordSource, int, int, Record]
# The texts of each example, as many for all of them.
TextRows = list[list[str | None]]


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of records into tokens and hashes; see `make_batch_maker` for the fields."""

    sources: Sequence[RecordSource]
    firsts: Sequence[int]
    tokenizers: Sequence[Mapping[str, Tokenizer]]  # by source
    num_columns: int
    num_scores: int
    num_keys: int
    teacher_size: int
    groups: int
    shares: int
    row_length: int
    rows: int | None
    include_prompt: bool
    shard: tuple[int, int]
    pairs: TokenizePairs | None = None
    in_batch_negatives: int = 0
    seed: int = 0

    def __call__(self, numbers: Int[np.ndarray, " B"], step: int) -> Batch:
        """Makes this host's share of the batch of these records, numbered over all data sets."""
        numbers = numbers[self._share_to_read(len(numbers))]
        which = np.searchsorted(self.firsts, numbers, side="right") - 1
        places = (numbers - np.array(self.firsts)[which]).tolist()
        examples = [
            (self.sources[source], source, place, self.sources[source].records[place])
            for source, place in zip(which.tolist(), places, strict=True)
        ]
        return self._make(examples, step)

    def make_from_records(self, records: Sequence[tuple[int, Record]], step: int) -> Batch:
        """Makes this host's share of the batch of records of the only data set.

        Args:
            records: the batch's records, each with its index.
            step: the batch's step.
        """
        records = records[self._share_to_read(len(records))]
        return self._make(
            [(self.sources[0], 0, number, record) for number, record in records], step
        )

    def _share_to_read(self, size: int) -> slice:
        """Returns the examples of a batch that this host reads: all, if negatives are drawn."""
        return slice(size) if self.in_batch_negatives else self._own_share(size)

    def _own_share(self, size: int) -> slice:
        host, hosts = self.shard
        return slice(host * size // hosts, (host + 1) * size // hosts)

    def _make(self, examples: Sequence[Example], step: int) -> Batch:
        """Makes this host's share of the batch of the examples that it has read."""
        rows = [self._texts(source, index, record) for source, _, index, record in examples]
        if self.in_batch_negatives:
            own = self._own_share(len(examples))
            rows, examples = self._with_negatives(rows, examples, step)[own], examples[own]
        return self._pack_examples(examples, rows, step)

    def _with_negatives(self, rows: TextRows, examples: Sequence[Example], step: int) -> TextRows:
        """Adds the positives of other examples to the texts of each; see `draw_negatives`."""
        keys = [
            apply_to_record(source.fields.keys, record, index) if source.fields.keys else ()
            for source, _, index, record in examples
        ]
        number = self.in_batch_negatives
        drawn = draw_negatives(rows, keys, number=number, seed=self.seed, step=step)
        return [[*row, *negatives] for row, negatives in zip(rows, drawn, strict=True)]

    def _pack_examples(self, examples: Sequence[Example], rows: TextRows, step: int) -> Batch:
        which = np.array([number for _, number, _, _ in examples])
        hashes = np.array(
            [[text_hash(text) for text in row] for row in rows], np.uint32
        )  # [B, C, 2]
        present = np.array([[text is not None for text in row] for row in rows])
        rows = [
            _augment_row(row, source, index, step)
            for row, (source, _, index, _) in zip(rows, examples, strict=True)
        ]
        # The encoder's view comes first: its token counts decide the dealing to groups.
        tokens, order = self._pack(rows, which, "encoder", None)
        views = {"encoder": tokens}
        for name in self.tokenizers[0]:
            if name != "encoder":
                views[name], _ = self._pack(rows, which, name, order)

        def collect_field(name: str, dtype: Any, size: int = 0) -> np.ndarray | None:
            """Reads a field of all records, in the batch's order; None if no data set has it."""
            if all(getattr(source.fields, name) is None for source in self.sources):
                return None
            values = np.zeros((len(examples), size) if size else len(examples), dtype)
            for place, (source, _, index, record) in enumerate(examples):
                if function := getattr(source.fields, name):
                    value = apply_to_record(function, record, index)
                    values[(place, slice(len(value))) if size else place] = value
            return values[order]

        return Batch(
            tokens=views,
            present=np.ascontiguousarray(present[order].transpose(0, 2, 1)),
            text_hash=np.ascontiguousarray(hashes[order].transpose(0, 2, 1, 3)),
            record=np.array([index for *_, index, _ in examples], np.int32)[order],
            keys=None if not self.num_keys else self._keys(examples)[order],
            dataset=which.astype(np.int32)[order] if len(self.sources) > 1 else None,
            teacher=self._teacher(examples, order),
            label=collect_field("label", np.int32),
            score=collect_field("score", np.float32, self.num_scores),
        )

    def _texts(self, source: RecordSource, index: int, record: Record) -> list[str | None]:
        texts, own_columns = source.texts(index, record), self.num_columns - self.in_batch_negatives
        if len(texts) > own_columns:
            raise InputError(f"record {index} has {len(texts)} texts, others have {own_columns}")
        return texts + [None] * (own_columns - len(texts))

    def _teacher(self, examples: Sequence[Example], order: np.ndarray) -> np.ndarray | None:
        """Reads the teacher's embeddings [G, E, C, T] in the batch's order; None if unused."""
        if not self.teacher_size:
            return None
        values = np.zeros((len(examples), self.num_columns, self.teacher_size), np.float32)
        for index, (source, _, number, record) in enumerate(examples):
            if source.fields.teacher:
                vectors = apply_to_record(source.fields.teacher, record, number)
                values[index, : len(vectors)] = vectors
        return values[order]

    def _keys(self, examples: Sequence[Example]) -> UInt32[np.ndarray, "B L 2"]:
        """Returns hashes of ids and groups, which differ between data sets."""
        hashes = np.zeros((len(examples), self.num_keys, 2), np.uint32)
        for place, (source, number, index, record) in enumerate(examples):
            if source.fields.keys:
                keys = apply_to_record(source.fields.keys, record, index)
                hashes[place, : len(keys)] = [key_hash(key, number) for key in keys]
        return hashes

    def _pack(self, rows, which: np.ndarray, name: str, order) -> tuple[TokenBatch, np.ndarray]:
        """Packs one tokenizer's view of the texts; only the trained encoder's have prompts."""
        trained = name in TRAINED
        columns = range(self.num_columns)
        if trained and "query" in self.tokenizers[0]:
            columns = columns[:1] if name == "query" else columns[1:]
        ids: list[list[Ids | None]] = [[None] * len(rows) for _ in columns]
        segments: list[list[Ids | None]] = [[None] * len(rows) for _ in columns]
        marks: list[list[Ids | None]] = [[None] * len(rows) for _ in columns]
        typed = marked = False
        skip = np.zeros((len(columns), len(rows)), np.int64)
        for source in np.unique(which).tolist():
            tokenizer, prompts = self.tokenizers[source][name], self.sources[source].prompts
            for position, column in enumerate(columns):
                if self.pairs and trained and column == 0:
                    continue  # the query is read with each passage
                places = [
                    place
                    for place in np.flatnonzero(which == source).tolist()
                    if rows[place][column] is not None
                ]
                prompt = prompts[min(column, len(prompts) - 1)] if trained else ""
                if self.pairs and trained:
                    queries = [rows[place][0] for place in places]
                    passages = [rows[place][column] for place in places]
                    tokenized = self.pairs(queries, passages)
                else:
                    tokenized = tokenizer.encode(
                        [rows[place][column] for place in places], prompt, self.include_prompt
                    )
                typed |= tokenized.segments is not None
                for place, types in zip(places, tokenized.segments or (), strict=False):
                    segments[position][place] = types
                marked |= tokenized.marks is not None
                for place, of_text in zip(places, tokenized.marks or (), strict=False):
                    marks[position][place] = of_text
                for place, sentence_ids in zip(places, tokenized.ids, strict=True):
                    ids[position][place] = sentence_ids
                skip[position, places] = tokenized.skip
        longest = max(tokenizers[name].max_length for tokenizers in self.tokenizers)
        row_length = max(self.row_length, longest)
        try:
            return pack_batch(
                ids,
                groups=self.groups,
                row_length=row_length,
                rows=self.rows,
                order=order,
                skip=skip,
                segments=segments if typed else None,
                marks=marks if marked else None,
                shares=self.shares,
            )
        except RowsError as error:
            texts = len(columns) * len(rows) // self.groups  # of a group
            enough = -(-texts // (row_length // longest))
            unset = (
                "" if self.shard[1] > 1 else ", and with 0 each batch has the rows that it needs"
            )
            raise InputError(
                f"config.batch.rows: a batch needs {error.needed} rows a group, found {self.rows}; "
                f"{enough} hold any batch{unset}"
            ) from None


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
        rows: R, rows of a group; None: as few as the batch needs. It must be set for several hosts.
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
    widest = max(_width(source.fields.score, source) for source in sources)
    checked = [
        dataclasses.replace(
            source,
            fields=dataclasses.replace(
                source.fields,
                score=_check_width(source.fields.score, source, "scores"),
                keys=_check_width(source.fields.keys, source, "keys"),
            ),
        )
        for source in sources
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
    )
    if hosts > 1 and not rows:
        raise InputError(
            f"config.batch.rows: {hosts} hosts must agree on the rows of a group, "
            f"found 0; {_advise_rows(maker, batch_size)}"
        )
    return maker


def _advise_rows(maker: BatchMaker, batch_size: int) -> str:
    """Advises a number of rows for the data: a tenth more than evenly spread batches need."""
    host, hosts = maker.shard
    whole = dataclasses.replace(
        maker, groups=maker.groups * hosts, shares=maker.shares * hosts, shard=(0, 1)
    )
    counts = [
        0 if isinstance(source.records, RecordStream) else len(source.records)
        for source in maker.sources
    ]
    if sum(counts) < batch_size:
        return "set it"
    batches = min(SAMPLED_BATCHES, sum(counts) // batch_size)
    chosen = np.linspace(0, sum(counts) - 1, batches * batch_size).astype(np.int64)
    needed = max(
        view.token_ids.shape[1]
        for n in range(batches)
        for view in whole(chosen[n::batches], 0).tokens.values()
    )
    return f"set it, for these data to {round_rows(-(-needed * 11 // 10))}"


def count_columns(source: RecordSource) -> int:
    """Returns the largest number of texts of a record, among `sampled_records`."""
    return max(len(source.fields.columns(record)) for _, record in sampled_records(source.records))


def hash_duplicates(sources: Sequence[RecordSource]) -> UInt64[np.ndarray, "records w"]:
    """Returns 64-bit hashes of everything that makes two records duplicates; 0 for no value.

    These are a record's texts, ids and groups. Records are numbered over all data sets. Every
    record is read once.
    """
    rows = []
    for number, source in enumerate(sources):
        for index in range(len(source.records)):
            record = source.records[index]
            keys = apply_to_record(source.fields.keys, record, index) if source.fields.keys else ()
            halves = [text_hash(text) for text in source.texts(index, record)]
            halves += [key_hash(key, number) for key in keys]
            rows.append([(high << 32) | low for low, high in halves])
    hashes = np.zeros((len(rows), max(map(len, rows))), np.uint64)
    for place, row in enumerate(rows):
        hashes[place, : len(row)] = row
    return hashes


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


def data_fingerprint(sources: Mapping[str, RecordSource]) -> dict[str, Any]:
    """Returns everything that the content and order of the batches depend on, beside the config.

    A resumed run compares it, and refuses other data.

    Args:
        sources: the data sets by name; fields that are None are left out.
    """
    fingerprint: dict[str, Any] = {}
    for name, source in sources.items():
        digest, teacher = (hashlib.blake2b(digest_size=16) for _ in range(2))
        for index, record in sampled_records(source.records):
            digest.update(repr(tuple(source.fields.columns(record))).encode())
            for field in ("keys", "label", "score"):
                if function := getattr(source.fields, field):
                    digest.update(repr(function(record)).encode())
            if source.fields.teacher:
                teacher.update(apply_to_record(source.fields.teacher, record, index).tobytes())
        fingerprint[name] = {"records": len(source.records), "texts": digest.hexdigest()}
        if source.fields.teacher:
            fingerprint[name]["teacher_vectors"] = teacher.hexdigest()
    return fingerprint | {
        "versions": {name: importlib.metadata.version(name) for name in ("grain", "tokenizers")}
    }


def key_hash(key: str | None, source: int = 0) -> tuple[int, int]:
    """Hashes an id or group to two 32-bit halves, which differ between data sets."""
    return text_hash((f"{source}:{key}" if source else key) if key and key.strip() else None)


def _augment_row(
    row: list[str | None], source: RecordSource, index: int, step: int
) -> list[str | None]:
    if source.augment is None:
        return row
    return [text and source.augment(text, column, index, step) for column, text in enumerate(row)]


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


Values = TypeVar("Values", bound=Sequence)


def _check_width(
    function: Callable[[Record], Values] | None, source: RecordSource, what: str
) -> Callable[[Record], Values] | None:
    """Wraps a function so that it refuses a record with another number of values than the first."""
    if function is None:
        return None
    size = _width(function, source)

    def checked(record: Record) -> Values:
        values = function(record)
        if len(values) != size:
            raise InputError(f"found {len(values)} {what}, expected {size} as in record 0")
        return values

    return checked
