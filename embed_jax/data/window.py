"""Packs any number of texts into batches of few different shapes, for inference. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from embed_jax.data.pack import Ids, pack_sentences
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

WINDOW = 8192  # texts sorted and packed together; bounds the memory beside the output
SHORTEST_ROW = 16  # slots


def pack_window(
    ids: Sequence[Ids],
    skip: int,
    batch_tokens: int,
    segments: Sequence[Ids] | None = None,
    marks: Sequence[Ids] | None = None,
) -> Iterator[tuple[Int[np.ndarray, " n"], TokenBatch]]:
    """Packs texts into batches of few different shapes.

    A text shares a row at least twice as long as itself (up to the longest text's), so that
    best-fit packing finds a text for every gap. Short and long texts are in different rows, since
    the cost of attention grows with a row's length.

    Args:
        ids: token ids of each text.
        skip: the number of leading tokens that don't count towards pooling.
        batch_tokens: the number of slots of a batch.
        segments: token types of each text; see `pack_sentences`.
        marks: marks of each text's tokens; see `pack_sentences`.

    Yields:
        The indices of the texts of a batch, and the batch: leaves `[R, T]`, text i of the batch is
        sentence i. Texts without tokens are in no batch.

    Raises:
        InputError: a text is longer than `batch_tokens`.
    """
    lengths = np.array([len(sentence_ids) for sentence_ids in ids], np.int64)
    longest = int(lengths.max(initial=1))
    if longest > batch_tokens:
        raise InputError(
            f"batch_tokens: expected at least {longest}, the tokens of one text, found "
            f"{batch_tokens}"
        )
    if len(ids) <= 4:  # a few texts are encoded fastest in rows of the longest one's size
        row_lengths = np.full(len(ids), _row_length(longest))
    else:
        lengths_of_rows = [
            128 << max(-(-2 * n // 128) - 1, 0).bit_length() for n in lengths.tolist()
        ]
        row_lengths = np.minimum(lengths_of_rows, _row_length(longest))
    row_lengths = np.minimum(row_lengths, batch_tokens)
    for row_length in np.unique(row_lengths):
        numbers = np.flatnonzero((row_lengths == row_length) & (lengths > 0))
        chosen = numbers.tolist()
        rows = max(batch_tokens // int(row_length), 1)
        packed = pack_sentences(
            [ids[number] for number in chosen],
            row_length=int(row_length),
            skip=skip,
            segments=None if segments is None else [segments[number] for number in chosen],
            marks=None if marks is None else [marks[number] for number in chosen],
        )
        used = int(np.sum((packed.sentence < packed.sentences).any(axis=1)))
        start = 0
        while start < used:
            stop = min(start + rows, used)
            present = np.unique(packed.sentence[start:stop])
            while stop - start > 1 and len(present) > _room_for_sentences(
                stop - start, int(row_length)
            ):
                stop -= 1
                present = np.unique(packed.sentence[start:stop])
            yield (
                numbers[present[present < packed.sentences]],
                _take_rows(packed, start, stop, rows),
            )
            start = stop


def _row_length(length: int) -> int:
    """Returns the smallest row of 16, 24, 32, 48, 64, 96, ... slots that holds `length` tokens."""
    row = SHORTEST_ROW
    while row < length:
        row = row * 3 // 2 if row & (row - 1) == 0 else row * 4 // 3
    return row


def _room_for_sentences(rows: int, row_length: int) -> int:
    """Returns S as a function of the shape, so that shapes are few.

    There is room for texts of four tokens in all rows, or of one token in a single row.
    """
    return max(rows * row_length // 4, row_length + 1)


def _take_rows(packed: TokenBatch, start: int, stop: int, rows: int) -> TokenBatch:
    """Makes a batch of some rows of a packed batch.

    Sentences are numbered anew, and rows are padded to a power of two.
    """
    padded = min(1 << (stop - start - 1).bit_length(), rows)
    shape = (padded, packed.sentence.shape[1])
    sentences = _room_for_sentences(*shape)

    def pad(leaf, value):
        result = np.full(shape, value, leaf.dtype)
        result[: stop - start] = leaf[start:stop]
        return result

    present = np.unique(packed.sentence[start:stop])

    def renumber(leaf):
        result = pad(leaf, packed.sentences)
        number = np.searchsorted(present, result).astype(np.int32)
        return np.where(result == packed.sentences, sentences, number).astype(np.int32)

    return TokenBatch(
        token_ids=pad(packed.token_ids, 0),
        sentence=renumber(packed.sentence),
        position=pad(packed.position, 0),
        pooled=pad(packed.pooled, False),
        sentences=sentences,
        segment=None if packed.segment is None else pad(packed.segment, 0),
        key_sentence=None if packed.key_sentence is None else renumber(packed.key_sentence),
    )
