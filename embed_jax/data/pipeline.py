"""Records to training batches: shuffled, shared among hosts, tokenised, packed; a batch is a function of its step."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.data.pack import pack_batch
from embed_jax.data.pairs import looked_at, of_record, text_hash
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError
from embed_jax.types import Batch, TokenBatch

Record = Mapping[str, Any]
Columns = Callable[[Record], Sequence[str | None]]


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of records into tokens and hashes; see `training_batches` for the fields."""

    records: Sequence[Record]
    columns: Columns
    num_columns: int
    tokenizers: Mapping[str, Tokenizer]
    groups: int
    shares: int
    row_length: int
    rows: int | None
    prompts: Sequence[str]
    include_prompt: bool
    label: Callable[[Record], int] | None
    score: Callable[[Record], Sequence[float]] | None
    keys: Callable[[Record], Sequence[tuple[int, int]]] | None
    dataset: Callable[[Record], int] | None

    def __call__(self, indices: np.ndarray) -> Batch:
        records = [self.records[int(index)] for index in indices]
        rows = [self._texts(record, int(index)) for record, index in zip(records, indices, strict=True)]
        columns = list(zip(*rows, strict=True))  # C columns of B texts
        views: dict[str, TokenBatch] = {}
        order = None
        for name in sorted(self.tokenizers, key=lambda name: name != "encoder"):  # the encoder's view deals
            views[name], order = self._pack(columns, name, order)

        def dealt(function: Callable[[Record], Any] | None, dtype: Any) -> np.ndarray | None:
            if function is None:
                return None
            values = [of_record(function, record, int(index)) for record, index in zip(records, indices, strict=True)]
            return np.array(values, dtype)[order]

        hashes = np.array([[text_hash(text) for text in column] for column in columns], np.uint32)
        present = np.array([[text is not None for text in column] for column in columns])
        return Batch(
            tokens=views,
            present=np.ascontiguousarray(present[:, order].transpose(1, 0, 2)),
            text_hash=np.ascontiguousarray(hashes[:, order].transpose(1, 0, 2, 3)),
            record=np.asarray(indices, np.int32)[order],
            keys=dealt(self.keys, np.uint32),
            dataset=dealt(self.dataset, np.int32),
            label=dealt(self.label, np.int32),
            score=dealt(self.score, np.float32),
        )

    def _texts(self, record: Record, index: int) -> list[str | None]:
        texts = list(self.columns(record))
        if len(texts) > self.num_columns:
            raise InputError(f"record {index} has {len(texts)} texts, others have {self.num_columns}")
        for text in texts[:2]:
            if text is None:
                raise InputError(f"record {index}: anchor and positive are needed, one is missing")
        return texts + [None] * (self.num_columns - len(texts))

    def _pack(self, columns, name: str, order) -> tuple[TokenBatch, np.ndarray]:
        """One tokenizer's view of the texts; prompts and row length are the encoder's, others have none and theirs."""
        tokenizer, trained = self.tokenizers[name], name == "encoder"
        ids, skip = [], []
        for number, column in enumerate(columns):
            prompt = self.prompts[min(number, len(self.prompts) - 1)] if trained else ""
            found = tokenizer.encode([text for text in column if text is not None], prompt, self.include_prompt)
            rest = iter(found.ids)
            ids.append([None if text is None else next(rest) for text in column])
            skip.append(found.skip)
        return pack_batch(
            ids,
            groups=self.groups,
            row_length=self.row_length if trained else max(self.row_length, tokenizer.max_length),
            rows=self.rows,
            order=order,
            skip=skip,
            shares=self.shares,
        )


def training_batches(
    records: Sequence[Record],
    *,
    columns: Columns,
    tokenizers: Mapping[str, Tokenizer],
    batch_size: int,
    groups: int,
    row_length: int,
    seed: int,
    rows: int | None = None,
    prompts: Sequence[str] = ("",),
    include_prompt: bool = True,
    label: Callable[[Record], int] | None = None,
    score: Callable[[Record], Sequence[float]] | None = None,
    keys: Callable[[Record], Sequence[str | None]] | None = None,
    dataset: Callable[[Record], int] | None = None,
    shard: tuple[int, int] = (0, 1),
    shares: int = 0,
) -> Any:
    """An endless grain MapDataset whose element `[step]` is the batch of that step, a function of (seed, step).

    Each epoch is shuffled anew, and its last records that fill no batch are left out of it.

    Args:
        records: random access, `len` and `[index]`.
        columns: a record's texts: anchor, positive, negatives; None or nothing where it lacks one.
        tokenizers: by name; "encoder" is the trained model's own, whose token counts decide the dealing to groups.
            Others see the same texts without prompts, in rows as long as their own limit if that is longer.
        batch_size: B, examples over all hosts.
        groups: G over all hosts.
        row_length: T, slots of a packed row of the encoder.
        seed: of the order of the records.
        rows: R, rows of a group; None takes as few as the batch needs. Several hosts need it set.
        prompts: of the encoder's columns; the last one is for all further columns too.
        include_prompt: whether the prompts' tokens count towards pooling.
        label: a record's integer class; None leaves it out of the batch, and so for the next three.
        score: its K target numbers, as many in each record.
        keys: its L texts (id, group) that make it the same thing to learn as another record with an equal one; None
            or "" where it has none.
        dataset: the number of its data set in a mixture.
        shard: this host's number and how many hosts there are. A host reads only its part of each batch, and
            gets `G / hosts` groups of it.
        shares: how many contiguous parts a batch has, each dealt to its own `G / shares` groups; 0: one a host. With
            `rows` set, the batches depend on this number and not on the number of hosts.

    Raises:
        InputError: too few records for a batch, sizes that do not divide, an option out of place; in a batch, a record
            that lacks a text or has another number of scores or keys than the first.
    """
    import grain

    host, hosts = shard
    steps_per_epoch(len(records), batch_size)
    if "encoder" not in tokenizers:
        raise InputError(f"tokenizers: expected one called 'encoder', found {', '.join(tokenizers) or 'none'}")
    if batch_size % groups or groups % hosts:
        raise InputError(f"batch of {batch_size} in {groups} groups on {hosts} hosts: each must divide the one before")
    shares = shares or hosts
    if shares < 1 or shares % hosts or groups % shares:
        raise InputError(
            f"config.batch.shares: expected a multiple of the {hosts} hosts that divides the {groups} groups, "
            f"found {shares}"
        )
    if hosts > 1 and not rows:
        raise InputError(f"config.batch.rows: {hosts} hosts must agree on the rows of a group, set it; found 0")
    if (longest := tokenizers["encoder"].max_length) > row_length:
        raise InputError(f"row length {row_length} is too short for texts of {longest} tokens (tokenizer 'encoder')")
    make = BatchMaker(
        records=records,
        columns=columns,
        num_columns=max(len(columns(record)) for _, record in looked_at(records)),
        tokenizers=tokenizers,
        groups=groups // hosts,
        shares=shares // hosts,
        row_length=row_length,
        rows=rows,
        prompts=prompts,
        include_prompt=include_prompt,
        label=label,
        score=score and _as_many(score, records[0], "scores"),
        keys=keys and _as_many(lambda record: [_key_hash(key) for key in keys(record)], records[0], "keys"),
        dataset=dataset,
    )
    own = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
    # grain shuffles epoch e with seed + e; neighbouring seeds would be the same run shifted by an epoch.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (
        grain.MapDataset.range(len(records))
        .shuffle(order_seed)
        .batch(batch_size, drop_remainder=True)
        .repeat()
        .map(lambda indices: make(indices[own]))
    )


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """How many full batches the records give.

    Raises:
        InputError: if there are fewer records than a batch takes.
    """
    if num_records < batch_size:
        raise InputError(f"{num_records} records do not fill a batch of {batch_size}: lower config.batch.size")
    return num_records // batch_size


def prefetch(
    batches: Any, start: int = 0, *, num_steps: int | None = None, num_threads: int = 2, buffer: int = 4
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` up to `num_steps`, in order, made ahead of the consumer by threads.

    Args:
        batches: of `training_batches`.
        num_steps: where to stop; None never does.
        buffer: how many batches are made ahead.
    """
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer)
    iterator = iter(batches[start:num_steps].to_iter_dataset(options))
    try:
        yield from enumerate(iterator, start)
    finally:
        iterator.close()


def fingerprint(
    records: Sequence[Record], columns: Columns, **fields: Callable[[Record], Any] | None
) -> dict[str, Any]:
    """What the content and order of the batches depend on, beside the config: for a resume to refuse other data.

    Args:
        fields: the label, score, keys and dataset of `training_batches`.
    """
    digest = hashlib.blake2b(digest_size=16)
    others = [fields[name] for name in sorted(fields) if fields[name] is not None]
    for _, record in looked_at(records):
        digest.update(repr(tuple(columns(record))).encode())
        for field in others:
            digest.update(repr(field(record)).encode())
    versions = {name: importlib.metadata.version(name) for name in ("grain", "tokenizers")}
    return {"records": len(records), "texts": digest.hexdigest(), "versions": versions}


def _key_hash(key: str | None) -> tuple[int, int]:
    return text_hash(key if key and key.strip() else None)


def _as_many(function: Callable[[Record], Sequence], first: Record, what: str) -> Callable[[Record], Sequence]:
    """The function, which refuses a record with another number of values than the first."""
    size = len(of_record(function, first, 0))

    def checked(record: Record) -> Sequence:
        values = function(record)
        if len(values) != size:
            raise InputError(f"found {len(values)} {what}, expected {size} as in record 0")
        return values

    return checked
