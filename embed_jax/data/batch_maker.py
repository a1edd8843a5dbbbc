"""Makes records into a batch: tokenised, packed, and shared among hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32

from embed_jax.data.pack import Ids, RowsError, pack_batch
from embed_jax.data.pair_rows import TokenizePairs, draw_negatives
from embed_jax.data.pairs import apply_to_record, text_hash
from embed_jax.data.record_source import RecordSource, key_hash
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError
from embed_jax.types import Batch, Record, TokenBatch

TRAINED = ("encoder", "query")  # views of the texts for the trained encoder
# A data set, its index, a record's index in it, and the record.
Example = tuple[RecordSource, int, int, Record]
# Lengths of rows and, of each, the least rows of a group.
RowShapes = Sequence[tuple[int, int]]
# The texts of each example, as many for all of them.
TextRows = list[list[str | None]]


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of records into tokens and hashes; see `make_batch_maker` for the fields.

    `row_shapes` has, for each data set and by tokenizer, the lengths that rows may have, shortest
    first, each with the least rows of a group; where a batch is from all data sets, the same for
    each. A batch has the shortest rows that hold its longest text.
    """

    sources: Sequence[RecordSource]
    firsts: Sequence[int]
    tokenizers: Sequence[Mapping[str, Tokenizer]]  # by source
    num_columns: int
    num_scores: int
    num_keys: int
    teacher_size: int
    row_shapes: Sequence[Mapping[str, RowShapes]]
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
        limit = max(tokenizers[name].max_length for tokenizers in self.tokenizers)
        longest = max(
            (len(text) for column in ids for text in column if text is not None), default=0
        )
        shapes = self.row_shapes[which[0]].get(name, ())
        row_length, least_rows = next(
            (shape for shape in shapes if shape[0] >= longest), (max(self.row_length, limit), 1)
        )
        try:
            return pack_batch(
                ids,
                groups=self.groups,
                row_length=row_length,
                rows=self.rows,
                least_rows=least_rows,
                order=order,
                skip=skip,
                segments=segments if typed else None,
                marks=marks if marked else None,
                shares=self.shares,
            )
        except RowsError as error:
            texts = len(columns) * len(rows) // self.groups  # of a group
            enough = -(-texts // (row_length // limit))
            unset = (
                "" if self.shard[1] > 1 else ", and with 0 each batch has the rows that it needs"
            )
            raise InputError(
                f"config.batch.rows: a batch needs {error.needed} rows a group, found {self.rows}; "
                f"{enough} hold any batch{unset}"
            ) from None


def _augment_row(
    row: list[str | None], source: RecordSource, index: int, step: int
) -> list[str | None]:
    if source.augment is None:
        return row
    return [text and source.augment(text, column, index, step) for column, text in enumerate(row)]
