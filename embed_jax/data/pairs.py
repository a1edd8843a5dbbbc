"""Pairs of texts as training and test material: their names, splits without leakage, retrieval tasks from pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from embed_jax.errors import InputError

# What the two sides of a pair are called; the first that a data set has counts.
PAIR_NAMES = (
    ("anchor", "positive"),
    ("sentence1", "sentence2"),
    ("query", "positive"),
    ("query", "answer"),
    ("question", "answer"),
)
NLI = ("premise", "hypothesis")
SCORED_LIST = ("query", "passages", "scores")
KINDS = (*PAIR_NAMES, NLI, SCORED_LIST, ("text",))
KEYS = ("id", "group")  # records with the same one are never each other's negatives
SPLITS = ("train", "validation", "test")
# Of a source that is read record by record, so many stand for all where looking at all would take minutes.
SAMPLE = 2000
Value = TypeVar("Value")
Record = Mapping[str, str]
Task = tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]


def kind_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of KINDS a record is, by its fields: the one of most fields, of equals the first; () for none."""
    return max((kind for kind in KINDS if all(name in record for name in kind)), key=len, default=())


def looked_at(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number, record) of all records if they are in memory, else of some spread over the whole."""
    if isinstance(records, list) or len(records) <= SAMPLE:
        return enumerate(records)
    return ((int(index), records[int(index)]) for index in np.linspace(0, len(records) - 1, SAMPLE))


def of_record(function: Callable[[Any], Value], record: Mapping[str, Any], number: int) -> Value:
    """`function(record)`; an InputError gets the record's number."""
    try:
        return function(record)
    except InputError as error:
        raise InputError(f"record {number}: {error}") from None


def text_hash(text: str | None) -> tuple[int, int]:
    """64 stable bits of a text without the white space around it, as two halves; zeros for None."""
    if text is None:
        return 0, 0
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def negative_columns(record: Record) -> list[str]:
    """The names of a record's negatives, in order: negative, negative_1, negative_2, ..."""
    return [name for name in record if name == "negative" or name.startswith("negative_")]


def as_pairs(
    records: Sequence[Mapping[str, Any]], columns: Callable[[Mapping[str, Any]], Sequence[str | None]]
) -> list[Record]:
    """Records under the names anchor, positive, negative_1, ..., whatever their own are."""
    named = []
    for record in records:
        anchor, positive, *negatives = columns(record)
        texts = {f"negative_{number}": text for number, text in enumerate(negatives, 1) if text is not None}
        named.append({"anchor": anchor, "positive": positive, **texts})
    return named


def split_pairs(records: Sequence[Record], holdout: float, seed: int = 0) -> dict[str, list[Record]]:
    """Splits pairs so that no text stands on two sides, be it an anchor here and a positive there.

    Pairs that share a text, directly or through others, stay together; such a family goes to validation or test, each
    with probability `holdout`, by a hash of its smallest text and the seed: independent of the order of the records.
    A training negative that is a held-out positive is taken out.

    Args:
        records: with "anchor" and "positive".
        holdout: share of the families for validation, and the same again for test; below 0.5.

    Raises:
        InputError: if a side would be empty.
    """
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    ends = [(record["anchor"].strip(), record["positive"].strip()) for record in records]
    for anchor, positive in ends:
        a, b = sorted((root(anchor), root(positive)))
        parent[b] = a  # the smallest text is the family's name
    sides: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record, (anchor, _) in zip(records, ends, strict=True):
        digest = hashlib.blake2b(f"{seed}:{root(anchor)}".encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        side = "test" if share < holdout else "validation" if share < 2 * holdout else "train"
        sides[side].append(record)
    for name, side in sides.items():
        if not side:
            raise InputError(
                f"no pair falls into the {name} split: {len(records)} pairs with config.data.holdout={holdout} "
                "are too few, or all are linked by shared texts"
            )
    held_out = {record["positive"].strip() for name in ("validation", "test") for record in sides[name]}
    sides["train"] = [
        {
            name: text
            for name, text in record.items()
            if name not in negative_columns(record) or text.strip() not in held_out
        }
        for record in sides["train"]
    ]
    return sides


def retrieval_task(records: Sequence[Record], others: Sequence[str] = ()) -> Task:
    """A retrieval task whose queries are the anchors and whose relevant documents are their positives.

    Equal texts are one query or one document.

    Args:
        records: the held-out pairs.
        others: further documents to search among.

    Returns:
        corpus {id: text}, queries {id: text}, relevance judgements {query id: {document id: 1}}.
    """
    document_ids: dict[str, str] = {}
    query_ids: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for record in records:
        document = document_ids.setdefault(record["positive"].strip(), f"d{len(document_ids)}")
        query = query_ids.setdefault(record["anchor"].strip(), f"q{len(query_ids)}")
        relevant.setdefault(query, {})[document] = 1
    for text in others:
        document_ids.setdefault(text.strip(), f"d{len(document_ids)}")
    return (
        {name: text for text, name in document_ids.items()},
        {name: text for text, name in query_ids.items()},
        relevant,
    )
