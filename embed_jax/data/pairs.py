"""Pairs of texts as training and test material: names, splits without leakage, retrieval tasks, what they share."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

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
NLI_LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2}
ALIKE = ("duplicate", "equivalent", "paraphrase", "similar", "relevant")
PAIR_LABELS = dict.fromkeys(ALIKE, 1) | {
    f"{no}{name}": 0 for name in ALIKE for no in ("not ", "not_", "not-", "non_", "non-")
}
SCORED_LIST = ("query", "passages", "scores")
KINDS = (*PAIR_NAMES, NLI, SCORED_LIST, ("text",))
CARRIED = ("id", "group", "score", "label")  # what a pair may have beside its texts
KEYS = ("id", "group")  # records with the same one are never each other's negatives
SPLITS = ("train", "validation", "test")
# Of a source that is read record by record, this many stand for all where looking at all would take
# minutes.
SAMPLE = 2000
Value = TypeVar("Value")
TextRecord = Mapping[str, str]
SearchTask = tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]


def kind_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the kind of a record by its fields: the one with most fields, the first of equals.

    () for none.
    """
    return max(
        (kind for kind in KINDS if all(name in record for name in kind)), key=len, default=()
    )


def sampled_records(
    records: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, Mapping[str, Any]]]:
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


def whole_number(value: Any) -> int | None:
    """The 32-bit integer that a number or text spells, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**31 else None


def label_number(value: Any) -> int | None:
    """The class that a label spells, as one of NLI_LABELS or as an integer; else None."""
    return NLI_LABELS.get(str(value).strip().lower(), whole_number(value))


def text_hash(text: str | None) -> tuple[int, int]:
    """64 stable bits of a text without the white space around it, as two halves; zeros for None."""
    if text is None:
        return 0, 0
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def normal_form(text: str) -> str:
    """The text after Unicode NFKC and with single blanks.

    Equal for texts that differ in nothing else.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


class TitledText(str):
    """A passage: title and text, with a blank between as BEIR joins them; made by `titled`.

    Attributes:
        body: the text without its title.
    """

    body: str

    def __new__(cls, text: str, body: str) -> TitledText:
        self = super().__new__(cls, text)
        self.body = body
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for pickle and copy
        return str(self), self.body


def titled(title: str | None, text: str) -> str:
    """A passage of a title and a text, of which one may be empty; a missing title is empty."""
    joined = f"{title or ''} {text}".strip()
    return TitledText(joined, text) if title and title.strip() and text.strip() else joined


def negative_columns(record: TextRecord) -> list[str]:
    """The names of a record's negatives, in order: negative, negative_1, negative_2, ..."""
    return [name for name in record if name == "negative" or name.startswith("negative_")]


def as_pairs(
    records: Sequence[Mapping[str, Any]],
    columns: Callable[[Mapping[str, Any]], Sequence[str | None]],
    carry: Sequence[str] = (),
) -> list[TextRecord]:
    """Records under the names anchor, positive, negative_1, ..., whatever their own are.

    Fields of `carry` stay.
    """
    named = []
    for record in records:
        anchor, positive, *negatives = columns(record)
        texts = {
            f"negative_{number}": text
            for number, text in enumerate(negatives, 1)
            if text is not None
        }
        carried = {name: record[name] for name in carry if name in record}
        named.append({"anchor": anchor, "positive": positive, **texts, **carried})
    return named


def split_pairs(
    records: Sequence[TextRecord], holdout: float, seed: int = 0
) -> dict[str, list[TextRecord]]:
    """Splits pairs so that no text stands on two sides, be it an anchor here and a positive there.

    Pairs that share a text, directly or through others, stay together; such a family goes to
    validation or test, each with probability `holdout`, by a hash of its smallest text and the
    seed: independent of the order of the records. A training negative that is a held-out positive
    is taken out.

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
    sides: dict[str, list[TextRecord]] = {name: [] for name in SPLITS}
    for record, (anchor, _) in zip(records, ends, strict=True):
        digest = hashlib.blake2b(f"{seed}:{root(anchor)}".encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        side = "test" if share < holdout else "validation" if share < 2 * holdout else "train"
        sides[side].append(record)
    for name, side in sides.items():
        if not side:
            raise InputError(
                f"no pair falls into the {name} split: {len(records)} pairs with "
                f"config.data.holdout={holdout} are too few, or all are linked by shared texts"
            )
    held_out = {
        record["positive"].strip() for name in ("validation", "test") for record in sides[name]
    }
    sides["train"] = [
        {
            name: text
            for name, text in record.items()
            if name not in negative_columns(record) or text.strip() not in held_out
        }
        for record in sides["train"]
    ]
    return sides


def retrieval_task(records: Sequence[TextRecord], others: Sequence[str] = ()) -> SearchTask:
    """A retrieval task whose queries are the anchors and whose relevant documents are their positives.

    Equal texts are one query or one document; so is a positive and the same text with a title.

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
    positives = set(map(normal_form, document_ids))
    for text in others:
        if normal_form(getattr(text, "body", text)) not in positives:
            document_ids.setdefault(text.strip(), f"d{len(document_ids)}")
    return (
        {name: text for text, name in document_ids.items()},
        {name: text for text, name in query_ids.items()},
        relevant,
    )


class CodePositions:
    """The positions of each of the codes 0, 1, ... in an array `[n, w]`, where -1 stands for no code."""

    def __init__(self, codes: Int[np.ndarray, "n w"]):
        rows, columns = np.nonzero(codes >= 0)
        own_codes = codes[rows, columns]
        self._rows = rows[np.argsort(own_codes, kind="stable")]
        self.sizes = np.bincount(own_codes)
        self._ends = np.cumsum(self.sizes)

    def __getitem__(self, code: int) -> Int[np.ndarray, " rows"]:
        """The rows with this code, ascending."""
        if code >= len(self.sizes):
            return self._rows[:0]
        return self._rows[self._ends[code] - self.sizes[code] : self._ends[code]]


def count_sharing(codes: Mapping[str, Int[np.ndarray, "n w"]]) -> int:
    """Counts the ordered pairs of different rows that share anything, without listing them.

    By inclusion and exclusion: a set S of things that c rows have stands for c * (c - 1) ordered
    pairs that share all of it. Summed with the sign (-1)^(|S| + 1) over all sets, a pair that
    shares t things counts t - C(t, 2) + C(t, 3) - ... = 1 times.

    Args:
        codes: for each kind of thing, numbers that are equal where the things are, -1 for none;
            "text" has two columns (different or -1 within a row), other kinds one.
    """

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.unique(a * (b.max(initial=0) + 1) + b, return_inverse=True)[1]

    def signed(size: int, rows: np.ndarray, values: np.ndarray, rest: list[np.ndarray]) -> int:
        """The sum over sets of `size` things, `values` of `rows`, and whatever of the `rest` goes with them."""
        counts = np.bincount(values)
        total = (-1) ** (size + 1) * int((counts * (counts - 1)).sum()) if size else 0
        for place, further_text in enumerate(rest):
            there = further_text[rows] >= 0
            together = joined(values[there], further_text[rows[there]])
            total += signed(size + 1, rows[there], together, rest[place + 1 :])
        return total

    rest = [codes[name][:, 0] for name in codes if name != "text"]
    n = len(next(iter(codes.values())))
    total = signed(0, np.arange(n), np.zeros(n, np.int64), rest)
    if "text" in codes:
        texts = codes["text"]
        rows, columns = np.nonzero(texts >= 0)
        two = np.flatnonzero(texts[:, 1] >= 0)
        total += signed(1, rows, texts[rows, columns], rest)
        total += signed(2, two, joined(*np.sort(texts[two], axis=1).T), rest)
    return total
