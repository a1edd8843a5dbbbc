"""Records to training batches: shuffled, shared among hosts, tokenised, packed; a batch is a function of its step."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.data.pack import pack_batch
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError
from embed_jax.types import Batch, TokenBatch

Record = Mapping[str, Any]
Columns = Callable[[Record], Sequence[str | None]]

# Of a source that is read record by record, so many stand for all where looking at all would take minutes.
SAMPLE = 2000


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of records into tokens and hashes; see `training_batches` for the fields."""

    records: Sequence[Record]
    columns: Columns
    num_columns: int
    tokenizers: Mapping[str, Tokenizer]
    groups: int
    row_length: int
    rows: int | None
    prompts: Sequence[str]
    include_prompt: bool
    label: Callable[[Record], int] | None
    score: Callable[[Record], float] | None

    def __call__(self, indices: np.ndarray) -> Batch:
        records = [self.records[int(index)] for index in indices]
        rows = [self._texts(record, int(index)) for record, index in zip(records, indices, strict=True)]
        columns = list(zip(*rows, strict=True))  # C columns of B texts
        views: dict[str, TokenBatch] = {}
        order = None
        for name in sorted(self.tokenizers, key=lambda name: name != "encoder"):  # the encoder's view deals
            views[name], order = self._pack(columns, self.tokenizers[name], order)
        hashes = np.array([[text_hash(text) for text in column] for column in columns], np.uint32)
        present = np.array([[text is not None for text in column] for column in columns])
        return Batch(
            tokens=views,
            present=np.ascontiguousarray(present[:, order].transpose(1, 0, 2)),
            text_hash=np.ascontiguousarray(hashes[:, order].transpose(1, 0, 2, 3)),
            record=np.asarray(indices, np.int32)[order],
            label=self.label and np.array([self.label(record) for record in records], np.int32)[order],
            score=self.score and np.array([self.score(record) for record in records], np.float32)[order],
        )

    def _texts(self, record: Record, index: int) -> list[str | None]:
        texts = list(self.columns(record))
        if len(texts) > self.num_columns:
            raise InputError(f"record {index} has {len(texts)} texts, others have {self.num_columns}")
        for text in texts[:2]:
            if text is None:
                raise InputError(f"record {index}: anchor and positive are needed, one is missing")
        return texts + [None] * (self.num_columns - len(texts))

    def _pack(self, columns, tokenizer: Tokenizer, order) -> tuple[TokenBatch, np.ndarray]:
        ids, skip = [], []
        for number, column in enumerate(columns):
            prompt = self.prompts[min(number, len(self.prompts) - 1)]
            found = tokenizer.encode([text for text in column if text is not None], prompt, self.include_prompt)
            rest = iter(found.ids)
            ids.append([None if text is None else next(rest) for text in column])
            skip.append(found.skip)
        return pack_batch(ids, groups=self.groups, row_length=self.row_length, rows=self.rows, order=order, skip=skip)


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
    score: Callable[[Record], float] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """An endless grain MapDataset whose element `[step]` is the batch of that step, a function of (seed, step).

    Each epoch is shuffled anew, and its last records that fill no batch are left out of it.

    Args:
        records: random access, `len` and `[index]`.
        columns: a record's texts: anchor, positive, negatives; None or nothing where it lacks one.
        tokenizers: by name; "encoder" is the trained model's own, whose token counts decide the dealing to groups.
        batch_size: B, examples over all hosts.
        groups: G over all hosts.
        row_length: T, slots of a packed row.
        seed: of the order of the records.
        rows: R, rows of a group; None takes as few as the batch needs. Several hosts need it set.
        prompts: of the columns; the last one is for all further columns too.
        include_prompt: whether the prompts' tokens count towards pooling.
        label: a record's integer class or group. score: its target similarity. None leaves them out of the batch.
        shard: this host's number and how many hosts there are. A host reads only its share of each batch, and
            gets `G / hosts` groups of it.

    Raises:
        InputError: too few records for a batch, sizes that do not divide, an option out of place.
    """
    import grain

    host, hosts = shard
    steps_per_epoch(len(records), batch_size)
    if "encoder" not in tokenizers:
        raise InputError(f"tokenizers: expected one called 'encoder', found {', '.join(tokenizers) or 'none'}")
    if batch_size % groups or groups % hosts:
        raise InputError(f"batch of {batch_size} in {groups} groups on {hosts} hosts: each must divide the one before")
    if hosts > 1 and not rows:
        raise InputError(f"config.batch.rows: {hosts} hosts must agree on the rows of a group, set it; found 0")
    for name, tokenizer in tokenizers.items():
        if tokenizer.max_length > row_length:
            raise InputError(
                f"row length {row_length} is too short for texts of {tokenizer.max_length} tokens (tokenizer {name!r})"
            )
    make = BatchMaker(
        records,
        columns,
        max(len(columns(record)) for record in _looked_at(records)),
        tokenizers,
        groups // hosts,
        row_length,
        rows,
        prompts,
        include_prompt,
        label,
        score,
    )
    share = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
    # grain shuffles epoch e with seed + e; neighbouring seeds would be the same run shifted by an epoch.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (
        grain.MapDataset.range(len(records))
        .shuffle(order_seed)
        .batch(batch_size, drop_remainder=True)
        .repeat()
        .map(lambda indices: make(indices[share]))
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


def text_hash(text: str | None) -> tuple[int, int]:
    """64 stable bits of a text without the white space around it, as two halves; zeros for None."""
    if text is None:
        return 0, 0
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def fingerprint(records: Sequence[Record], columns: Columns) -> dict[str, Any]:
    """What the content and order of the batches depend on, beside the config: for a resume to refuse other data."""
    digest = hashlib.blake2b(digest_size=16)
    for record in _looked_at(records):
        digest.update(repr(tuple(columns(record))).encode())
    versions = {name: importlib.metadata.version(name) for name in ("grain", "tokenizers")}
    return {"records": len(records), "texts": digest.hexdigest(), "versions": versions}


def _looked_at(records: Sequence[Record]) -> Iterator[Record]:
    """All records if they are in memory, else some spread over the whole."""
    if isinstance(records, list) or len(records) <= SAMPLE:
        return iter(records)
    return (records[int(index)] for index in np.linspace(0, len(records) - 1, SAMPLE))
