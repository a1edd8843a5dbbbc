"""Cuts documents into pieces of a limited number of tokens, so that a model reads all of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from embed_jax.data.pairs import apply_to_record
from embed_jax.data.stream import RecordStream, open_stream
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError
from embed_jax.types import Record

TOGETHER = 256  # documents tokenised at once


@dataclasses.dataclass(frozen=True)
class Pieces(Sequence):
    """Pieces of documents as records {"text"}; a piece is cut out when it is read.

    Attributes:
        records: the records with the documents.
        text: returns a record's document.
        document, start, stop: the index of each piece's record, and its first and end character.
    """

    records: Sequence[Record]
    text: Callable[[Record], str]
    document: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    stop: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, index):
        if isinstance(index, slice):
            chosen = {name: getattr(self, name)[index] for name in ("document", "start", "stop")}
            return dataclasses.replace(self, **chosen)
        document = self.text(self.records[int(self.document[index])])
        return {"text": document[self.start[index] : self.stop[index]]}


def cut_records(
    records: Sequence[Record], text: Callable[[Record], str], tokenizer: Tokenizer
) -> Pieces | RecordStream:
    """Cuts records into pieces that the tokenizer does not have to shorten.

    The pieces of a document, joined in order, are the document; a document without tokens is left
    out. All records are read once, unless they are a stream.

    Args:
        records: the records.
        text: returns a record's document.
        tokenizer: the tokenizer, with its limit in tokens.

    Raises:
        InputError: no record has a token, or a single character has more tokens than the limit.
    """
    if isinstance(records, RecordStream):

        def reopened() -> Iterator[Record]:
            documents = map(text, records.open())
            for _, document, ends in _cut_all(documents, tokenizer):
                yield from (
                    {"text": document[start:stop]} for start, stop in itertools.pairwise([0, *ends])
                )

        return open_stream(reopened, records.name)
    documents = (apply_to_record(text, record, index) for index, record in enumerate(records))
    pieces = [
        (index, start, stop)
        for index, _, ends in _cut_all(documents, tokenizer)
        for start, stop in itertools.pairwise([0, *ends])
    ]
    if not pieces:
        raise InputError(f"{len(records)} records have no token to train on")
    return Pieces(records, text, *np.array(pieces).T)


def _cut_all(
    documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[tuple[int, str, list[int]]]:
    """Yields index, text and ends of the pieces, in characters, of each document with tokens."""
    room = tokenizer.max_length - tokenizer.backend.num_special_tokens_to_add(is_pair=False)
    whole = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    whole.no_truncation()

    def encode(texts: list[str]) -> list[Any]:
        try:
            return whole.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            tokenizer.encode(texts)  # its error names the text
            raise

    numbered = enumerate(documents)
    while some := list(itertools.islice(numbered, TOGETHER)):
        for (index, text), encoding in zip(some, encode([text for _, text in some]), strict=True):
            if len(encoding):
                yield index, text, _ends(text, encoding, encode, room, room)


def _ends(text: str, encoding: Any, encode: Callable, room: int, most_tokens: int) -> list[int]:
    """Finds the ends of a text's pieces, which have at most `most_tokens` of the text's tokens.

    Tokenized by itself, a piece has at most `room` tokens.
    """
    if len(encoding) <= room:
        return [len(text)]
    if most_tokens < 1:
        raise InputError(
            f"max_length: no room for a character of {len(encoding)} tokens, as in {text[:20]!r}"
        )
    stops = [*_cuts(encoding, most_tokens), len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise([0, *stops])]
    ends = []
    for start, piece, own in zip([0, *stops], pieces, encode(pieces), strict=False):
        # By itself a piece may have other tokens than as a part of the text, and more of them.
        less = most_tokens - max(len(own) - room, 1)
        ends += [start + end for end in _ends(piece, own, encode, room, less)]
    return ends


def _cuts(encoding: Any, most_tokens: int) -> list[int]:
    """Returns the positions of the cuts, in characters.

    They are between words if possible, else between tokens that share no character.
    """
    starts, stops = np.array(encoding.offsets).T
    words = np.array([-1 if word is None else word for word in encoding.word_ids])
    between_tokens = 1 + np.flatnonzero(starts[1:] >= stops[:-1])  # before these tokens
    between_words = between_tokens[words[between_tokens] != words[between_tokens - 1]]
    cuts, first = [], 0
    while len(starts) - first > most_tokens:
        later = np.searchsorted(between_tokens, first, side="right")
        if later == len(between_tokens):
            break
        last = _last_position(between_words, first, most_tokens) or _last_position(
            between_tokens, first, most_tokens
        )
        first = last or int(between_tokens[later])
        cuts.append(int(stops[first - 1]))
    return cuts


def _last_position(positions: Int[np.ndarray, " n"], first: int, size: int) -> int:
    """Returns the last of ascending positions in first + 1 .. first + size, or 0."""
    index = np.searchsorted(positions, first + size, side="right") - 1
    return int(positions[index]) if index >= 0 and positions[index] > first else 0
