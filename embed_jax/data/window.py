"""Packs any number of texts into batches of few different shapes, for inference. NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from embed_jax.data.pack import Ids, assign_rows, fill_rows
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

WINDOW = 8192  # texts sorted and packed together; bounds the memory beside the output
SHORTEST_ROW = 16  # slots
SHORT_TEXT = 32  # tokens of the longest text that opens a row of SHARED_ROW
SHARED_ROW = 64  # slots of a row for short texts
FEW_TEXTS = 4  # texts that are in rows of one size
MANY_BATCHES = 128  # from which more shapes are worth their compilation


def text_windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields WINDOW texts at a time, of any number of them; the last window has the rest."""
    texts = iter(texts)
    while window := list(itertools.islice(texts, WINDOW)):
        yield window


def pack_window(
    ids: Sequence[Ids],
    skip: int,
    batch_tokens: int,
    segments: Sequence[Ids] | None = None,
    marks: Sequence[Ids] | None = None,
) -> Iterator[tuple[Int[np.ndarray, " n"], TokenBatch]]:
    """Packs texts into batches of few different shapes, with few slots of padding.

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
    row, offset, row_lengths = assign_rows(lengths, _choose_row_lengths(lengths, batch_tokens))
    row[lengths == 0] = -1
    for row_length in np.unique(row_lengths).tolist():
        rows = np.flatnonzero(row_lengths == row_length)
        room = _round_room(int(np.bincount(row[np.isin(row, rows)]).max()))
        most = max(batch_tokens // row_length, 1)
        for start in range(0, len(rows), most):
            block = rows[start : start + most]
            numbers = np.flatnonzero(np.isin(row, block))
            chosen = numbers.tolist()
            padded = min(1 << (len(block) - 1).bit_length(), most)  # to a power of two: few shapes
            yield (
                numbers,
                fill_rows(
                    [ids[number] for number in chosen],
                    np.searchsorted(block, row[numbers]) * row_length + offset[numbers],
                    np.arange(len(numbers)),
                    sentences=padded * room,
                    skip=skip,
                    shape=(padded, row_length),
                    segments=None if segments is None else [segments[n] for n in chosen],
                    marks=None if marks is None else [marks[n] for n in chosen],
                ),
            )


def _choose_row_lengths(lengths: Int[np.ndarray, " N"], batch_tokens: int) -> Int[np.ndarray, " L"]:
    """Returns the length of a row that is opened for a text of n tokens, for each n.

    Attention costs more in longer rows, but padding does in rows of texts that leave gaps, and each
    length is a shape to compile. Few texts have rows of 128, 160, 192, 224, 256, 320, .. slots,
    whose gaps short texts fill. Many texts have rows hardly longer than each text, eight lengths
    per doubling. Short texts share rows, and the longest text bounds all of them.
    """
    longest = int(lengths.max(initial=1))
    bound = min(_row_length(longest), batch_tokens)
    if len(lengths) <= FEW_TEXTS:
        return np.full(longest + 1, bound)
    many = lengths.sum() >= MANY_BATCHES * batch_tokens
    shortest, per_doubling = (SHORT_TEXT, 8) if many else (128, 4)
    own = [SHARED_ROW] * (longest + 1)
    for n in range(SHORT_TEXT + 1, longest + 1):
        step = (1 << (n - 1).bit_length() - 1) // per_doubling
        own[n] = max(-(-n // step) * step, shortest)
    return np.minimum(own, bound)


def _row_length(length: int) -> int:
    """Returns the smallest row of 16, 24, 32, 48, 64, 96, ... slots that holds `length` tokens."""
    row = SHORTEST_ROW
    while row < length:
        row = row * 3 // 2 if row & (row - 1) == 0 else row * 4 // 3
    return row


def _round_room(texts: int) -> int:
    """Rounds the texts of a row up to a power of 4: it is part of the shape, and so are few."""
    return 4 ** ((texts - 1).bit_length() + 1 >> 1)
