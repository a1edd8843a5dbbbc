"""Long documents in chunks: overlapping, of at most N tokens, cut at the ends of sentences.

    chunks = chunk_corpus(corpus, offsets, tokens=256, overlap=32)    # {"doc#0": text, ...}
    retriever = fold_chunks(index_retriever(index, encode), index.ids)    # documents again

The chunks of a document have its id, "#" and a number. A document's score is the largest of its
chunks, or the mean of the best. For `SentenceEncoder.encode_chunks`, late chunking, `chunk_spans`
says where chunks begin and end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.errors import InputError
from embed_jax.late_chunking import Span
from embed_jax.retrieval.fusion import Ranking, sort_results
from embed_jax.retrieval.search import Retriever

TokenOffsets = Callable[[str], Sequence[Span]]
"""Returns where the tokens of a text begin and end, without those that a model adds."""
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+|\n+")
SEPARATOR = "#"


def chunk_spans(text: str, offsets: Sequence[Span], tokens: int, overlap: int = 0) -> list[Span]:
    """Cuts a text into chunks of at most `tokens` tokens; returns where they begin and end.

    A chunk ends at the last end of a sentence that fits, and begins with the first sentence of the
    `overlap` tokens before. Where a sentence is longer than that, it is cut between tokens.

    Args:
        text: the text.
        offsets: where its tokens begin and end.
        tokens: of a chunk, at most.
        overlap: tokens of the chunk before that a chunk repeats, at most.

    Raises:
        InputError: for fewer than 1 token, or an overlap that is not smaller.

    >>> text = "One two. Three four. Five."
    >>> words = [match.span() for match in re.finditer("[^ ]+", text)]
    >>> [text[start:end] for start, end in chunk_spans(text, words, tokens=4, overlap=2)]
    ['One two. Three four.', 'Three four. Five.']
    """
    if tokens < 1 or not 0 <= overlap < tokens:
        raise InputError(
            f"chunks: expected an overlap below the tokens of a chunk, found {overlap} of {tokens}"
        )
    if len(offsets) <= tokens:
        return [(0, len(text))]
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    starts = np.array([start for start, _ in offsets])
    # Numbers of the tokens that begin a sentence; 0 begins the first.
    sentences = np.unique(np.searchsorted(starts, ends))
    spans: list[Span] = []
    first = end = 0
    while True:
        limit = first + tokens
        if limit >= len(offsets):
            spans.append((offsets[first][0], offsets[-1][1]))
            return spans
        inside = sentences[(sentences > end) & (sentences <= limit)]
        end = int(inside[-1]) if len(inside) else limit
        spans.append((offsets[first][0], offsets[end - 1][1]))
        begin = max(end - overlap, first + 1)
        repeated = sentences[(sentences >= begin) & (sentences < end)]
        # A sentence that was cut goes on with the overlap; a whole one is not begun in its middle.
        first = int(repeated[0]) if len(repeated) else end if len(inside) else begin


def chunk_corpus(
    corpus: Mapping[str, str], offsets: TokenOffsets, tokens: int, overlap: int = 0
) -> dict[str, str]:
    """Returns the chunks of all documents by their ids, "DOCUMENT#0", "DOCUMENT#1", ...

    See `chunk_spans` for the arguments and errors.
    """
    return {
        f"{name}{SEPARATOR}{number}": text[start:end]
        for name, text in corpus.items()
        for number, (start, end) in enumerate(chunk_spans(text, offsets(text), tokens, overlap))
    }


def join_chunks(chunks: Mapping[str, str]) -> str:
    """Returns the text of a document again, of its chunks by their ids, with what they repeat once.

    >>> join_chunks({"d#1": "Three four. Five.", "d#0": "One two. Three four."})
    'One two. Three four. Five.'
    """
    text = ""
    for name in sorted(chunks, key=lambda name: int(name.rpartition(SEPARATOR)[2])):
        chunk = chunks[name]
        most = min(len(text), len(chunk))
        shared = next(size for size in range(most, -1, -1) if text.endswith(chunk[:size]))
        text += chunk[shared:] if shared or not text else f" {chunk}"
    return text


def document_of(chunk: str) -> str:
    """Returns the id of the document that a chunk is a part of.

    >>> document_of("a#b#12")
    'a#b'
    """
    return chunk.rpartition(SEPARATOR)[0]


def document_ids(indexes: Iterable[Any]) -> frozenset[str]:
    """Returns the ids of the documents of all indexes, which may be in chunks."""
    ids: set[str] = set()
    for index in indexes:
        ids.update(map(document_of, index.ids) if index.identity.get("chunks") else index.ids)
    return frozenset(ids)


def describe_absent(allowed: Collection[str], ids: Collection[str]) -> str | None:
    """Returns words on the allowed ids that no document has, or None.

    >>> describe_absent(["b", "a", "c"], ids={"b"})
    "2 in no index, the first: 'a'"
    """
    strangers = sorted(set(allowed).difference(ids))
    return f"{len(strangers):,} in no index, the first: {strangers[0]!r}" if strangers else None


def fold_results(
    results: Mapping[str, float], chunks: Mapping[str, int], k: int, top: int = 1
) -> Ranking:
    """Folds the scores of chunks into those of documents.

    score(d) = mean of the `top` largest scores of its chunks; 1 is the largest, MaxP (Dai and
    Callan 2019). A chunk that was not found counts with the lowest score that was.

    Args:
        results: {chunk id: score} of a query.
        chunks: how many chunks each document has.
        k: how many documents.
        top: how many scores are averaged, or all of a document with fewer chunks.

    >>> fold_results({"a#0": 0.9, "b#1": 0.8, "b#0": 0.7}, {"a": 5, "b": 2}, k=2, top=2)
    {'a': 0.8, 'b': 0.75}
    """
    scores: dict[str, list[float]] = {}
    for chunk, score in results.items():
        scores.setdefault(document_of(chunk), []).append(score)
    lowest = min(results.values(), default=0.0)
    folded = {}
    for document, own in scores.items():
        count = min(top, chunks.get(document, len(own)))
        best = sorted(own, reverse=True)[:count]
        folded[document] = (sum(best) + lowest * (count - len(best))) / count
    return sort_results(folded, k)


def fold_chunks(retriever: Retriever, ids: Collection[str], *, top: int = 1) -> Retriever:
    """Returns the search for documents by a search for their chunks.

    More and more chunks are found until they are of `k` documents.

    Args:
        retriever: finds chunks.
        ids: of all chunks.
        top: see `fold_results`.

    Raises:
        InputError: for a top below 1, or ids that are not of chunks.
    """
    if top < 1:
        raise InputError(f"top: expected 1 or more, found {top}")
    members: dict[str, list[str]] = {}
    for chunk in ids:
        if SEPARATOR not in chunk:
            raise InputError(f"{chunk!r}: not the id of a chunk, which ends in '#' and a number")
        members.setdefault(document_of(chunk), []).append(chunk)
    counts = {document: len(own) for document, own in members.items()}

    def find(queries, k: int, allowed: Collection[str] | None, **own) -> list[Ranking]:
        documents = members if allowed is None else allowed
        some = None
        if allowed is not None:
            some = [chunk for name in allowed for chunk in members.get(name, ())]
        total = sum(counts.get(name, 0) for name in documents)
        enough = min(k, sum(name in counts for name in documents))
        count = min(k * max(top, 2), max(total, 1))
        while True:
            rankings = retriever.find(queries, count, some, **own)
            folded = [fold_results(results, counts, k, top) for results in rankings]
            # A search that finds fewer than it may will not find more.
            if count >= total or all(
                len(few) >= enough or len(results) < count
                for few, results in zip(folded, rankings, strict=True)
            ):
                return folded
            count = min(2 * count, total)

    return Retriever(find, retriever.encode)
