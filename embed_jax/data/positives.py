"""Makes pairs from logs of clicks, groups of texts such as duplicates, and candidate paraphrases.

Rows that do not become a pair are passed to a function `drop(reason, row)`; rows that cannot be
read are errors with file and line.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.pairs import text_hash
from embed_jax.data.record_values import is_missing
from embed_jax.data.sources.files import file_format, iter_rows, parse_number
from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.types import Record

BLOCK = 8192  # candidate paraphrases scored at a time
CORPUS_IDS = ("_id", "id")
PositivePair = dict[str, str]
Drop = Callable[[str, Record], None]


def click_pairs(
    log: Path, corpus: Path, drop: Drop, *, min_clicks: int = 1, top: int = 0
) -> list[PositivePair]:
    """Makes pairs of a query and a document that was clicked for it.

    A pair has the document's id as `id` and a hash of the query as `group`: neither two documents
    clicked for one query nor two queries that led to one document are each other's negatives.

    Args:
        log: a file with rows `query doc_id clicks`; clicks for the same query and document are
            added up.
        corpus: a file with rows `_id text`, or `id text`, and optionally `title`, which is put
            before the text.
        drop: gets rows with too few clicks, those beyond `top`, and those whose texts are equal or
            already a pair.
        min_clicks: the least number of clicks of a pair.
        top: the number of documents of a query that are kept, those with the most clicks (of equals
            the first ones); 0: all.

    Raises:
        InputError: with file and line: a field is missing or empty, a number of clicks is not a
            whole number, or the corpus lacks a document, has it twice or has it without text; or no
            pair is left.
    """
    clicks: dict[str, dict[str, int]] = {}
    named: dict[str, int] = {}  # line where a document is first named
    for line, record in _rows(log, ("query",), ("doc_id", "clicks")):
        number_of_clicks = parse_number(record["clicks"], f"{log}:{line}: clicks")
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
        enough: list[str] = []
        # The sort is stable: of documents with equal clicks the first comes first.
        for document, count in sorted(of_query.items(), key=lambda item: -item[1]):
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
    return _drop_repeated(positive_pairs, drop, log)


def group_pairs(
    path: Path,
    drop: Drop,
    *,
    text_field: str = "text",
    group_field: str = "group",
    max_per_group: int = 10,
    seed: int = 0,
) -> list[PositivePair]:
    """Makes pairs of texts of the same group; `group` says so, and none is another's negative.

    The texts of a group are placed on a ring, in an order that depends on the seed only. Pairs are
    made of neighbours first, then of texts two apart, and so on: all pairs of a small group, at
    most `max_per_group` of a large one. In these the texts occur about equally often, and they are
    linked by shared texts, so that a split by texts never separates them.

    Args:
        path: a file with rows of a text and a group.
        drop: gets groups of a single text, texts that are in their group twice, and texts that are
            in no pair because of `max_per_group`.
        text_field: the field of the text.
        group_field: the field of the group.
        max_per_group: the most pairs of a group; 0: all pairs.
        seed: the seed of the order on the ring.

    Raises:
        InputError: with file and line: a field is missing or empty; or no pair is left.
    """
    groups: dict[str, list[str]] = {}
    for _, record in _rows(path, (text_field,), (group_field,)):
        text, group = record[text_field].strip(), _key(record[group_field])
        groups.setdefault(group, []).append(text)
    pairs: list[PositivePair] = []
    for group, texts in groups.items():
        distinct = list(dict.fromkeys(texts))
        for text in _find_repeated(texts):
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
    """Returns the candidate paraphrases that a scorer accepts.

    Args:
        path: a file with rows `sentence1 sentence2`.
        score: computes the scores of n pairs from their first and their second texts; it gets up to
            `BLOCK` pairs at a time.
        threshold: the least score of a pair.
        drop: gets pairs of equal texts, repeated ones in either order, and those below the
            threshold.

    Raises:
        InputError: with file and line: a field is missing or empty; or no pair is left.
        InputError, RunError: see `score_pairs`.
    """
    named = [
        {"anchor": record["sentence1"].strip(), "positive": record["sentence2"].strip()}
        for _, record in _rows(path, ("sentence1", "sentence2"), ())
    ]
    pairs = _drop_repeated(named, drop, path, ordered=False)
    positive_pairs: list[PositivePair] = []
    best = -np.inf
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        texts = [(pair["anchor"], pair["positive"]) for pair in block]
        scores = score_pairs(score, texts, str(path))
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
    """Yields (line, record) of a JSONL, TSV or CSV file.

    The fields `texts` are checked to be strings, `keys` to be strings or numbers, and none to be
    empty.
    """
    line = 0
    for line, record in iter_rows(path):
        for name in (*texts, *keys):
            value = record.get(name)
            if is_missing(value):
                # A table's fields are those of its header.
                where = line if file_format(path) == ".jsonl" else 1
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
    """Reads the documents of a corpus that have one of these ids, as {id: title and text}."""
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


def _drop_repeated(
    pairs: Sequence[PositivePair], drop: Drop, path: Path, *, ordered: bool = True
) -> list[PositivePair]:
    """Drops pairs of equal texts and repeated ones; if unordered, (b, a) repeats (a, b)."""
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


def _find_repeated(texts: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            yield text
        seen.add(text)


def _ring_pairs(size: int) -> Iterator[tuple[int, int]]:
    """Yields all pairs of 0, ..., size - 1, those of neighbours on the ring first."""
    for distance in range(1, size // 2 + 1):
        for first in range(size if 2 * distance < size else size // 2):
            yield first, (first + distance) % size
