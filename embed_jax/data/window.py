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
# Windows of at most SMALL_WINDOW texts take few shapes that are the same for all of them: a server
# gets another number of texts with each request, and must not compile for each.
SMALL_WINDOW = 128  # texts, and so the pairs of a query and its shortlist
SMALL_PART = 64  # texts of a small window that are packed together, as many as a batch has room for
SMALLEST_ROW = 32  # slots; longer rows are powers of 2, up to LARGEST_ROUND_ROW
LARGEST_ROUND_ROW = 512  # slots; in longer rows padding costs more than a compilation
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

    def fill(
        chosen: list[int], slots: Int[np.ndarray, " n"], sentences: int, shape: tuple[int, int]
    ) -> TokenBatch:
        return fill_rows(
            [ids[n] for n in chosen],
            slots,
            np.arange(len(chosen)),
            sentences=sentences,
            skip=skip,
            shape=shape,
            segments=None if segments is None else [segments[n] for n in chosen],
            marks=None if marks is None else [marks[n] for n in chosen],
        )

    if len(ids) <= SMALL_WINDOW:
        for numbers, slots, sentences, shape in _small_batches(lengths, batch_tokens):
            yield numbers, fill(numbers.tolist(), slots, sentences, shape)
        return
    row, offset, row_lengths = assign_rows(lengths, _choose_row_lengths(lengths, batch_tokens))
    row[lengths == 0] = -1
    for row_length in np.unique(row_lengths).tolist():
        rows = np.flatnonzero(row_lengths == row_length)
        room = _round_room(int(np.bincount(row[np.isin(row, rows)]).max()))
        most = max(batch_tokens // row_length, 1)
        for start in range(0, len(rows), most):
            block = rows[start : start + most]
            numbers = np.flatnonzero(np.isin(row, block))
            padded = min(1 << (len(block) - 1).bit_length(), most)  # to a power of two: few shapes
            slots = np.searchsorted(block, row[numbers]) * row_length + offset[numbers]
            yield numbers, fill(numbers.tolist(), slots, padded * room, (padded, row_length))


def _small_batches(
    lengths: Int[np.ndarray, " N"], batch_tokens: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], int, tuple[int, int]]]:
    """Packs few texts into batches whose shapes do not depend on how many they are.

    Rows have 32, 64, 128, 256 or 512 slots, and batches 1, 4, 16, ... rows and room for SMALL_PART
    texts, or for the only one. A last batch of rows that would be filled by half or less is made of
    smaller ones.

    Yields:
        The indices of the texts of a batch, each text's first slot, the texts that the batch has
        room for, and its shape.
    """
    present = np.flatnonzero(lengths)
    sentences, least = (SMALL_PART, SHARED_ROW) if len(present) > 1 else (1, SMALLEST_ROW)
    by_length = present[np.argsort(-lengths[present], kind="stable")]
    for first in range(0, len(present), SMALL_PART):
        part = np.sort(by_length[first : first + SMALL_PART])
        longest = int(lengths[part].max())
        own = np.array([_round_row(max(n, least)) for n in range(longest + 1)])
        if len(part) <= FEW_TEXTS:
            own[:] = own[-1]
        row, offset, row_lengths = assign_rows(lengths[part], np.minimum(own, batch_tokens))
        for row_length in np.unique(row_lengths).tolist():
            rows = np.flatnonzero(row_lengths == row_length)
            while len(rows):
                size = _block_size(len(rows), max(batch_tokens // row_length, 1))
                block, rows = rows[:size], rows[size:]
                here = np.flatnonzero(np.isin(row, block))
                slots = np.searchsorted(block, row[here]) * row_length + offset[here]
                yield part[here], slots, sentences, (size, row_length)


def _round_row(length: int) -> int:
    """Returns the smallest power of 2 that holds `length` tokens; see LARGEST_ROUND_ROW."""
    if length <= LARGEST_ROUND_ROW:
        return 1 << (length - 1).bit_length()
    return _row_length(length)


def _block_size(rows: int, most: int) -> int:
    """Returns the rows of the next batch, a power of 4: at most 1 row, or half of them, is empty.

    >>> [_block_size(rows, most=32) for rows in (1, 2, 3, 8, 9, 40)]
    [1, 1, 4, 4, 16, 16]
    """
    size = 1
    while 4 * size <= most and rows > 2 * size:
        size *= 4
    return size


def _choose_row_lengths(lengths: Int[np.ndarray, " N"], batch_tokens: int) -> Int[np.ndarray, " L"]:
    """Returns the length of a row that is opened for a text of n tokens, for each n.

    Attention costs more in longer rows, but padding does in rows of texts that leave gaps, and each
    length is a shape to compile. Texts have rows of 128, 160, 192, 224, 256, 320, .. slots, whose
    gaps short texts fill. Those of MANY_BATCHES have rows hardly longer than each text, eight
    lengths per doubling. Short texts share rows, and the longest text bounds all of them.
    """
    longest = int(lengths.max(initial=1))
    bound = min(_row_length(longest), batch_tokens)
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
