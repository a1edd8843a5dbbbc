"""Pairs from what people left behind.

Clicks on search results, resolved duplicates, candidate paraphrases.

What does not become a pair is handed to a function `drop(reason, row)`; what cannot be read is an
error with its place.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.data.pairs import text_hash
from embed_jax.data.records import is_missing
from embed_jax.data.sources.files import file_format, finite, iter_rows
from embed_jax.errors import InputError, RunError
from embed_jax.types import Record

BLOCK = 8192  # candidate paraphrases scored at a time
CORPUS_IDS = ("_id", "id")
PositivePair = dict[str, str]
Drop = Callable[[str, Record], None]
PairScorer = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, " n"]]


def click_pairs(
    log: Path, corpus: Path, drop: Drop, *, min_clicks: int = 1, top: int = 0
) -> list[PositivePair]:
    """The pairs of a query and a document that was clicked for it.

    A pair has the document's id as `id` and a hash of the query as `group`: neither two documents
    clicked for one query nor two queries that led to one document are each other's negatives.

    Args:
        log: rows `query doc_id clicks`; clicks for the same query and document are added up.
        corpus: rows `_id text`, or `id text`, and optionally `title`, which goes before the text.
        drop: gets rows of too few clicks, those beyond `top`, and those whose texts are a pair
            already or equal.
        min_clicks: how many a pair needs.
        top: keep this many documents of a query, those of the most clicks and of equals the first; 0:
            all.

    Raises:
        InputError: with file and line, for a field that is missing or empty, a number of clicks
            that is none, a document that the corpus lacks, has twice or has without a text; without
            any pair left.
    """
    clicks: dict[str, dict[str, int]] = {}
    named: dict[str, int] = {}  # line where a document is first named
    for line, record in _rows(log, ("query",), ("doc_id", "clicks")):
        number_of_clicks = finite(record["clicks"], f"{log}:{line}: clicks")
        if number_of_clicks < 0 or number_of_clicks != int(number_of_clicks):
            raise InputError(
                f"{log}:{line}: clicks: expected an integer from 0 up, found {record['clicks']!r}"
            )
        of_query, document = clicks.setdefault(record["query"].strip(), {}), _key(record["doc_id"])
        of_query[document] = of_query.get(document, 0) + int(number_of_clicks)
        named.setdefault(document, line)
    documents = _documents(corpus, named)
    for document, line in named.items():
        if document not in documents:
            raise InputError(f"{log}:{line}: the document {document!r} is not in {corpus}")

    positive_pairs: list[PositivePair] = []
    most = max(max(of_query.values()) for of_query in clicks.values())
    for query, of_query in clicks.items():
        enough = []
        for document, count in sorted(
            of_query.items(), key=lambda item: -item[1]
        ):  # stable: of equals the first
            row = {"query": query, "doc_id": document, "clicks": count}
            if count < min_clicks:
                drop("too few clicks", row)
            elif top and len(enough) == top:
                drop("beyond the top", row)
            else:
                enough.append(document)
        group = "{:08x}{:08x}".format(*text_hash(query))
        for document in enough:
            positive_pairs.append(
                {"anchor": query, "positive": documents[document], "id": document, "group": group}
            )
    if not positive_pairs:
        pairs = sum(map(len, clicks.values()))
        raise InputError(
            f"{log}: no positives: none of {pairs} pairs of query and document has {min_clicks} "
            f"clicks or more, the most is {most}"
        )
    return _distinct(positive_pairs, drop, log)


def group_pairs(
    path: Path,
    drop: Drop,
    *,
    text_field: str = "text",
    group_field: str = "group",
    max_per_group: int = 10,
    seed: int = 0,
) -> list[PositivePair]:
    """Pairs of texts of the same group; each has it as `group`, and so none is another's negative.

    The texts of a group stand on a ring, in an order that depends on the seed and on nothing else.
    Pairs are taken of neighbours first, then of texts two apart, and so on: all pairs of a small
    group; of a large one at most `max_per_group`, in which the texts occur about equally often and
    which are linked by shared texts, so that a split by texts never separates them.

    Args:
        path: rows of a text and a group.
        drop: gets groups of a single text, texts that stand twice in their group, and texts that
            come into no pair for `max_per_group`.
        max_per_group: 0: all pairs.

    Raises:
        InputError: with file and line, for a field that is missing or empty; without any pair left.
    """
    groups: dict[str, list[str]] = {}
    for _, record in _rows(path, (text_field,), (group_field,)):
        text, group = record[text_field].strip(), _key(record[group_field])
        groups.setdefault(group, []).append(text)
    pairs: list[PositivePair] = []
    for group, texts in groups.items():
        distinct = list(dict.fromkeys(texts))
        for text in _repeated(texts):
            drop("twice in its group", {"text": text, "group": group})
        if len(distinct) < 2:
            drop("single text of its group", {"text": distinct[0], "group": group})
            continue
        ring = sorted(
            distinct,
            key=lambda text: hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest(),
        )
        for first, second in itertools.islice(_ring_pairs(len(ring)), max_per_group or None):
            pairs.append({"anchor": ring[first], "positive": ring[second], "group": group})
        for text in ring[max_per_group + 1 :] if max_per_group else ():
            drop("beyond the pairs of a group", {"text": text, "group": group})
    if not pairs:
        raise InputError(
            f"{path}: no pairs: none of the {len(groups)} groups has two different texts"
        )
    return pairs


def paraphrase_pairs(
    path: Path, score: PairScorer, threshold: float, drop: Drop
) -> list[PositivePair]:
    """The candidate paraphrases that a scorer accepts.

    Args:
        path: rows `sentence1 sentence2`.
        score: the scores of n pairs from their first and their second texts; sees up to `BLOCK` at
            a time.
        threshold: what a pair needs at least.
        drop: gets pairs of equal texts, those that stand twice in either order, and those below the
            threshold.

    Raises:
        InputError: with file and line, for a field that is missing or empty; without any pair left.
        RunError: for a score that is no finite number.
    """
    named = [
        {"anchor": record["sentence1"].strip(), "positive": record["sentence2"].strip()}
        for _, record in _rows(path, ("sentence1", "sentence2"), ())
    ]
    pairs = _distinct(named, drop, path, ordered=False)
    positive_pairs: list[PositivePair] = []
    best = -np.inf
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        scores = np.asarray(
            score([pair["anchor"] for pair in block], [pair["positive"] for pair in block])
        )
        if not np.isfinite(scores).all():
            pair = block[int(np.argmin(np.isfinite(scores)))]
            raise RunError(
                f"{path}: no finite score for {pair['anchor']!r} and {pair['positive']!r}"
            )
        best = max(best, float(scores.max()))
        for pair, value in zip(block, scores.tolist(), strict=True):
            if value >= threshold:
                positive_pairs.append(pair)
            else:
                drop("below the threshold", pair | {"score": value})
    if not positive_pairs:
        raise InputError(
            f"{path}: no pairs: none of {len(pairs)} reaches the threshold {threshold}, the best "
            f"{best:.4g}"
        )
    return positive_pairs


def _rows(
    path: Path, texts: Sequence[str], keys: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a JSONL, TSV or CSV file.

    Texts are strings, keys strings or numbers, none is empty.
    """
    line = 0
    for line, record in iter_rows(path):
        for name in (*texts, *keys):
            value = record.get(name)
            if is_missing(value):
                where = (
                    line if file_format(path) == ".jsonl" else 1
                )  # a table's fields are those of its header
                accepted = ", ".join((*texts, *keys))
                field_names = ", ".join(record) or "none"
                raise InputError(
                    f"{path}:{where}: no field {name!r}: found {field_names}; needed: {accepted}"
                )
            types = str if name in texts else str | int | float
            if not isinstance(value, types) or isinstance(value, bool):
                expected = "a string" if name in texts else "a string or a number"
                raise InputError(
                    f"{path}:{line}: field {name!r} must be {expected}, found "
                    f"{type(value).__name__}"
                )
            if not str(value).strip():
                raise InputError(f"{path}:{line}: field {name!r} is empty")
        yield line, record
    if not line:
        raise InputError(f"{path}: empty, no records in it")


def _documents(path: Path, ids: Mapping[str, Any]) -> dict[str, str]:
    """{id: title and text} of the wanted documents of a corpus."""
    documents: dict[str, str] = {}
    line = 0
    for line, record in iter_rows(path):
        name = next((name for name in CORPUS_IDS if record.get(name) is not None), None)
        if name is None or "text" not in record:
            fields = ", ".join(record) or "none"
            raise InputError(
                f"{path}:{line}: found the fields {fields}; needed: {' or '.join(CORPUS_IDS)}, and "
                "text"
            )
        document = _key(record[name])
        if document not in ids:
            continue
        if document in documents:
            raise InputError(f"{path}:{line}: the id {document!r} stands twice")
        for field in ("title", "text"):
            if not isinstance(record.get(field) or "", str):
                raise InputError(
                    f"{path}:{line}: field {field!r} must be a string, found "
                    f"{type(record[field]).__name__}"
                )
        documents[document] = f"{record.get('title') or ''} {record['text'] or ''}".strip()
        if not documents[document]:
            raise InputError(
                f"{path}:{line}: the document {document!r}, which was clicked, is empty"
            )
    if not line:
        raise InputError(f"{path}: empty, no documents in it")
    return documents


def _key(value: Any) -> str:
    return str(value).strip()


def _distinct(
    pairs: Sequence[PositivePair], drop: Drop, path: Path, *, ordered: bool = True
) -> list[PositivePair]:
    """The pairs without those of equal texts and without repetitions.

    Unordered, (b, a) repeats (a, b).
    """
    positive_pairs: list[PositivePair] = []
    seen: set[tuple[str, ...]] = set()
    for pair in pairs:
        texts = (pair["anchor"], pair["positive"])
        key = texts if ordered else tuple(sorted(texts))
        if texts[0] == texts[1]:
            drop("equal texts", pair)
        elif key in seen:
            drop("a pair twice", pair)
        else:
            positive_pairs.append(pair)
        seen.add(key)
    if not positive_pairs:
        raise InputError(f"{path}: no pairs: all {len(pairs)} are of equal texts")
    return positive_pairs


def _repeated(texts: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            yield text
        seen.add(text)


def _ring_pairs(size: int) -> Iterator[tuple[int, int]]:
    """All pairs of 0, ..., size - 1, those of neighbours on the ring first."""
    for distance in range(1, size // 2 + 1):
        for first in range(size if 2 * distance < size else size // 2):
            yield first, (first + distance) % size
