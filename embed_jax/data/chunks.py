"""Documents in pieces of a limited number of tokens, so that a model reads all of them and none is cut short."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from embed_jax.data.pairs import of_record
from embed_jax.data.stream import RecordStream, open_stream
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError
from embed_jax.types import Record

TOGETHER = 256  # documents tokenised at once


@dataclasses.dataclass(frozen=True)
class Pieces(Sequence):
    """Pieces of documents as records {"text"}, cut out of the documents when asked for.

    Attributes:
        records: the documents.
        text: what of a record is the document.
        document, start, stop: of each piece: which record, and which characters of it.
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


def in_pieces(
    records: Sequence[Record], text: Callable[[Record], str], tokenizer: Tokenizer
) -> Pieces | RecordStream:
    """Records cut into pieces that the tokenizer does not have to shorten.

    All records are read once, but of a stream.

    The pieces of a document, one after the other, are the document; what holds no token is left
    out.

    Args:
        text: what of a record is the document.
        tokenizer: with its limit.

    Raises:
        InputError: for records without any token, or a limit that a single character goes beyond.
    """
    if isinstance(records, RecordStream):

        def reopened() -> Iterator[Record]:
            documents = map(text, records.open())
            for _, document, ends in _cut_all(documents, tokenizer):
                yield from (
                    {"text": document[start:stop]} for start, stop in itertools.pairwise([0, *ends])
                )

        return open_stream(reopened, records.name)
    documents = (of_record(text, record, number) for number, record in enumerate(records))
    pieces = [
        (number, start, stop)
        for number, _, ends in _cut_all(documents, tokenizer)
        for start, stop in itertools.pairwise([0, *ends])
    ]
    if not pieces:
        raise InputError(f"{len(records)} records have no token to train on")
    return Pieces(records, text, *np.array(pieces).T)


def _cut_all(
    documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[tuple[int, str, list[int]]]:
    """Of each document with a token, its number, itself, and where its pieces end, in characters."""
    room = tokenizer.max_length - tokenizer.backend.num_special_tokens_to_add(is_pair=False)
    whole = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    whole.no_truncation()

    def encode(texts: list[str]) -> list[Any]:
        try:
            return whole.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            tokenizer.encode(texts)  # says which is no text
            raise

    numbered = enumerate(documents)
    while some := list(itertools.islice(numbered, TOGETHER)):
        for (number, text), encoding in zip(some, encode([text for _, text in some]), strict=True):
            if len(encoding):
                yield number, text, _ends(text, encoding, encode, room, room)


def _ends(text: str, encoding: Any, encode: Callable, room: int, most_tokens: int) -> list[int]:
    """Finds the ends of the pieces of a text, of at most `most_tokens` of its tokens and `room` tokens."""
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
        # By itself a piece may have other tokens than as a part: more of them.
        less = most_tokens - max(len(own) - room, 1)
        ends += [start + end for end in _ends(piece, own, encode, room, less)]
    return ends


def _cuts(encoding: Any, most_tokens: int) -> list[int]:
    """Returns the positions of the cuts, in characters.

    Between words if it can be, else between tokens that share no character.
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
        last = _last(between_words, first, most_tokens) or _last(between_tokens, first, most_tokens)
        first = last or int(between_tokens[later])
        cuts.append(int(stops[first - 1]))
    return cuts


def _last(places: Int[np.ndarray, " n"], first: int, size: int) -> int:
    """The last of ascending places in first + 1 .. first + size; 0 for none."""
    place = np.searchsorted(places, first + size, side="right") - 1
    return int(places[place]) if place >= 0 and places[place] > first else 0
