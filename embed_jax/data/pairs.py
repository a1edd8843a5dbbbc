"""Pairs of texts: names of their fields, splits without leakage, retrieval tasks, shared texts."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from embed_jax.errors import InputError
from embed_jax.types import Record

# Names of the two sides of a pair; the first that a data set has are used.
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
CARRIED = ("id", "group", "score", "label")  # fields that a pair may have beside its texts
KEYS = ("id", "group")  # records with the same value are never each other's negatives
SPLITS = ("train", "validation", "test")
# Of a source that is read record by record, this many records are checked instead of all, which
# would take minutes.
SAMPLE = 2000
Value = TypeVar("Value")
TextRecord = Mapping[str, str]
SearchTask = tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]


def kind_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the kind of a record by its fields: of those that fit, the one with most fields.

    >>> kind_of({"query": "a", "answer": "b", "id": 3})
    ('query', 'answer')
    >>> kind_of({"id": 3})
    ()
    """
    return max(
        (kind for kind in KINDS if all(name in record for name in kind)), key=len, default=()
    )


def sampled_records(
    records: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (index, record) of all records if they are in memory, else of evenly spread ones."""
    if isinstance(records, list) or len(records) <= SAMPLE:
        return enumerate(records)
    return ((int(index), records[int(index)]) for index in np.linspace(0, len(records) - 1, SAMPLE))


def apply_to_record(
    function: Callable[[Any], Value], record: Mapping[str, Any], number: int
) -> Value:
    """Returns `function(record)`, and adds the record's index to an InputError."""
    try:
        return function(record)
    except InputError as error:
        raise InputError(f"record {number}: {error}") from None


def parse_whole_number(value: Any) -> int | None:
    """Returns the 32-bit integer that a number or text spells, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**31 else None


def parse_label(value: Any) -> int | None:
    """Returns the class that a label spells, as one of NLI_LABELS or as an integer; else None."""
    return NLI_LABELS.get(str(value).strip().lower(), parse_whole_number(value))


def text_hash(text: str | None) -> tuple[int, int]:
    """Hashes a text, without the white space around it, to two 32-bit halves; zeros for None."""
    if text is None:
        return 0, 0
    digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def normal_form(text: str) -> str:
    """Returns the text after Unicode NFKC and with single blanks, to compare texts.

    >>> normal_form("a  b\\n")
    'a b'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


class TitledText(str):
    """A passage: title and text, with a blank between as BEIR joins them; made by `join_title`.

    Attributes:
        body: the text without its title.
    """

    body: str

    def __new__(cls, text: str, body: str) -> TitledText:
        self = super().__new__(cls, text)
        self.body = body
        return self

    def __reduce__(self) -> tuple[type[TitledText], tuple[str, str]]:
        return type(self), (str(self), self.body)


def join_title(title: str | None, text: str) -> str:
    """Joins a title and a text with a blank; either may be empty.

    >>> join_title("Paris", "is a city."), join_title(None, "Text.")
    ('Paris is a city.', 'Text.')
    """
    joined = f"{title or ''} {text}".strip()
    return TitledText(joined, text) if title and title.strip() and text.strip() else joined


def negative_columns(record: Record) -> list[str]:
    """Returns the names of a record's negatives, in order: negative, negative_1, negative_2, ..."""
    return [name for name in record if name == "negative" or name.startswith("negative_")]


def rename_columns(
    records: Sequence[Mapping[str, Any]],
    columns: Callable[[Mapping[str, Any]], Sequence[str | None]],
    carry: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Renames the texts of records to anchor, positive, negative_1, ...; fields of `carry` stay."""
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
    """Splits pairs so that no text is in two splits, neither as anchor nor as positive.

    Pairs that share a text, directly or through others, stay together. Such a family goes to
    validation or test, each with probability `holdout`, by a hash of its smallest text and the
    seed; so the split does not depend on the order of the records. A training negative that is a
    held-out positive is removed.

    Args:
        records: records with "anchor" and "positive".
        holdout: the share of the families for validation, and the same again for test; below 0.5.
        seed: the seed of the split.

    Raises:
        InputError: a split would be empty.
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
    for name, records_of_side in sides.items():
        if not records_of_side:
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
    """Makes a retrieval task: queries are the anchors, relevant documents their positives.

    Equal texts are one query or one document; so is a positive and the same text with a title.

    >>> retrieval_task([{"anchor": "a", "positive": "b"}], ["c"])
    ({'d0': 'b', 'd1': 'c'}, {'q0': 'a'}, {'q0': {'d0': 1}})

    Args:
        records: the held-out pairs.
        others: more documents to search among.

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
    """The rows that have each of the codes 0, 1, ... in an array `[n, w]`; -1 means "no code"."""

    def __init__(self, codes: Int[np.ndarray, "n w"]):
        rows, columns = np.nonzero(codes >= 0)
        own_codes = codes[rows, columns]
        self._rows = rows[np.argsort(own_codes, kind="stable")]
        self.sizes = np.bincount(own_codes)
        self._ends = np.cumsum(self.sizes)

    def __getitem__(self, code: int) -> Int[np.ndarray, " rows"]:
        """Returns the rows with this code, ascending."""
        if code >= len(self.sizes):
            return self._rows[:0]
        return self._rows[self._ends[code] - self.sizes[code] : self._ends[code]]


def count_sharing(codes: Mapping[str, Int[np.ndarray, "n w"]]) -> int:
    """Counts the ordered pairs of different rows that share a code, without listing the pairs.

    It uses inclusion and exclusion: a set S of codes that c rows have stands for c * (c - 1)
    ordered pairs that share all of S. Summed with the sign (-1)^(|S| + 1) over all sets, a pair
    that shares t codes counts t - C(t, 2) + C(t, 3) - ... = 1 times.

    >>> count_sharing({"text": np.array([[0, 1], [0, 2], [3, 1]])})
    4

    Args:
        codes: the codes of each kind, -1 for none; "text" has two columns (different or -1 within a
            row), other kinds one.
    """

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.unique(a * (b.max(initial=0) + 1) + b, return_inverse=True)[1]

    def signed(size: int, rows: np.ndarray, values: np.ndarray, rest: list[np.ndarray]) -> int:
        """Returns the sum over sets of `size` codes (`values` of `rows`) and any of the `rest`."""
        counts = np.bincount(values)
        total = (-1) ** (size + 1) * int((counts * (counts - 1)).sum()) if size else 0
        for index, further_text in enumerate(rest):
            there = further_text[rows] >= 0
            together = joined(values[there], further_text[rows[there]])
            total += signed(size + 1, rows[there], together, rest[index + 1 :])
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
