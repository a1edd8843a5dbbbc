"""Data sets of training: their records, the fields that are used, and what two records share."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from embed_jax.data.pairs import apply_to_record, sampled_records, text_hash
from embed_jax.data.sources import RecordFields
from embed_jax.errors import InputError
from embed_jax.types import Record


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
        clusters: the cluster of each record, from 0 on: every batch is from one of them. None: a
            batch is from all records.
    """

    records: Sequence[Record]
    fields: RecordFields
    prompts: Sequence[str] = ("",)
    max_length: int = 0
    augment: Callable[[str, int, int, int], str] | None = None
    clusters: Int[np.ndarray, " records"] | None = None

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
        if source.clusters is not None:
            bytes_of = source.clusters.astype("<i4").tobytes()
            fingerprint[name]["clusters"] = hashlib.blake2b(bytes_of, digest_size=16).hexdigest()
    return fingerprint | {
        "versions": {name: importlib.metadata.version(name) for name in ("grain", "tokenizers")}
    }


def key_hash(key: str | None, source: int = 0) -> tuple[int, int]:
    """Hashes an id or group to two 32-bit halves, which differ between data sets."""
    return text_hash((f"{source}:{key}" if source else key) if key and key.strip() else None)
