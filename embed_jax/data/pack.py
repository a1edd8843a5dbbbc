"""Packs several sentences of uneven length into a row, with few slots of padding. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

Ids = Int[np.ndarray, " _"]
# Marks of a token, which may be added: it does not count towards pooling; no other token sees it.
UNPOOLED, UNSEEN = 1, 2


def pack_sentences(
    ids: Sequence[Ids],
    *,
    row_length: int,
    rows: int | None = None,
    sentences: int | None = None,
    skip: int | Sequence[int] = 0,
    segments: Sequence[Ids] | None = None,
    marks: Sequence[Ids] | None = None,
) -> TokenBatch:
    """Packs sentences into rows, best fit decreasing; sentence i keeps the id i.

    >>> batch = pack_sentences([np.array([5, 6, 7]), np.array([8])], row_length=4)
    >>> batch.token_ids.tolist(), batch.sentence.tolist(), batch.position.tolist()
    ([[5, 6, 7, 8]], [[0, 0, 0, 1]], [[0, 1, 2, 0]])

    Args:
        ids: token ids, one array per sentence; an empty one takes no slot.
        row_length: T, slots in a row.
        rows: R; None takes as few as are needed, rounded up by `round_rows` so that shapes repeat.
        sentences: S, how many sentences the batch has room for; None: the number of sentences.
        skip: leading tokens that do not count towards pooling, for all sentences or for each.
        segments: token types of each sentence (a pair's second text has 1), as long as its ids;
            None: all are 0.
        marks: UNPOOLED and UNSEEN of each token, as long as the ids; None: no token has any.

    Returns:
        NumPy leaves `[R, T]`.

    Raises:
        InputError: a sentence is longer than a row, or the rows do not suffice.
    """
    capacity = len(ids) if sentences is None else sentences
    if len(ids) > capacity:
        raise InputError(f"{len(ids)} sentences do not fit into a batch with room for {capacity}")
    lengths = _lengths(ids)
    row, offset, opened = assign_rows(lengths, np.full(row_length + 1, row_length))
    rows = _check_rows(len(opened), rows)
    shape = (rows, row_length)
    return fill_rows(
        ids,
        row * row_length + offset,
        np.arange(len(ids)),
        capacity,
        skip,
        shape,
        segments,
        marks,
    )


def pack_batch(
    columns: Sequence[Sequence[Ids | None]],
    *,
    groups: int,
    row_length: int,
    rows: int | None = None,
    least_rows: int = 1,
    order: Int[np.ndarray, "G E"] | None = None,
    skip: Int[np.ndarray, "C B"] | Sequence[int] | None = None,
    segments: Sequence[Sequence[Ids | None]] | None = None,
    marks: Sequence[Sequence[Ids | None]] | None = None,
    shares: int = 1,
) -> tuple[TokenBatch, Int[np.ndarray, "G E"]]:
    """Deals the examples of a batch to groups and packs each group.

    All groups get the same number of rows.

    Args:
        columns: C columns of B sentences each; None where an example lacks the column.
        groups: G, a divisor of B.
        row_length: T, slots in a row.
        rows: R; None takes as few as the fullest group needs, rounded up by `round_rows`.
        least_rows: with None, R is not smaller than this.
        order: the examples of each group; None deals them balanced by tokens. A second tokenizer's
            view of the same batch is given the first one's order.
        skip: the number of leading tokens that do not count towards pooling, for each sentence or
            for each column.
        segments: token types of each sentence, as `columns`; None: all are 0.
        marks: see `pack_sentences`, as `columns`.
        shares: the number of contiguous parts of the batch, each dealt to its own G / shares
            groups; a divisor of G.

    Returns:
        The batch, leaves `[G, R, T]`, where sentence `c * E + e` of group g is column c of example
        `order[g, e]`; and that order.

    Raises:
        InputError: a sentence is longer than a row, the rows do not suffice, or G does not divide
            B.
    """
    nothing = np.zeros(0, np.int32)

    def fill(columns: Sequence[Sequence[Ids | None]]) -> list[list[Ids]]:
        return [[nothing if ids is None else ids for ids in column] for column in columns]

    filled = fill(columns)
    lengths = np.stack([_lengths(column) for column in filled])  # [C, B]
    if order is None:
        parts = np.split(lengths.sum(0), shares)
        order = np.concatenate(
            [n * len(part) + deal(part, groups // shares) for n, part in enumerate(parts)]
        )
    size = order.shape[1]
    sentences = [[column[b] for column in filled for b in members] for members in order]
    row_lengths = np.full(row_length + 1, row_length)
    assigned = [assign_rows(_lengths(group), row_lengths) for group in sentences]
    rows = _check_rows(max(len(opened) for *_, opened in assigned), rows, least_rows)
    slots = [(g * rows + row) * row_length + offset for g, (row, offset, _) in enumerate(assigned)]
    number = np.tile(np.arange(len(columns) * size), groups)
    skips = (
        np.zeros_like(lengths)
        if skip is None
        else np.broadcast_to(np.asarray(skip).T, lengths.shape[::-1]).T
    )
    skips = np.concatenate([skips[:, members].reshape(-1) for members in order])
    everything = [sentence_ids for group in sentences for sentence_ids in group]

    def dealt(values: Sequence[Sequence[Ids | None]] | None) -> list[Ids] | None:
        if values is None:
            return None
        by_column = fill(values)
        return [column[b] for members in order for column in by_column for b in members]

    shape = (groups, rows, row_length)
    start = np.concatenate(slots)
    count = len(columns) * size
    by_token = dealt(segments), dealt(marks)
    return fill_rows(everything, start, number, count, skips, shape, *by_token), order


def deal(lengths: Int[np.ndarray, " B"], groups: int) -> Int[np.ndarray, "G E"]:
    """Deals examples to groups of equal size with nearly equal numbers of tokens.

    Examples are dealt from the longest to the shortest, in snake order.

    >>> deal(np.array([9, 8, 2, 1]), groups=2).tolist()
    [[0, 3], [1, 2]]

    Args:
        lengths: the number of tokens of each example, over all its columns.
        groups: G, a divisor of B.

    Raises:
        InputError: G does not divide B.
    """
    if groups < 1 or len(lengths) % groups:
        raise InputError(
            f"a batch of {len(lengths)} examples cannot be dealt to {groups} groups: not divisible"
        )
    order = np.argsort(-np.asarray(lengths), kind="stable").reshape(-1, groups)
    order[1::2] = order[1::2, ::-1]
    return np.ascontiguousarray(order.T)


class RowsError(InputError):
    """A batch does not fit the number of rows that was set.

    Attributes:
        needed: the number of rows that the fullest group of the batch needs.
    """

    def __init__(self, needed: int, rows: int):
        super().__init__(f"rows: a group of the batch needs {needed} rows, found {rows}")
        self.needed = needed


def round_rows(n: int) -> int:
    """Rounds up to one of few row counts: 1 to 16, 18, 20, .., 32, 36, .. (eight per doubling).

    So shapes repeat, and jit compiles few of them, for 4 % more rows on average above 16 (12 % at
    worst).

    >>> [round_rows(n) for n in (1, 16, 17, 33)]
    [1, 16, 18, 36]
    """
    step = 1 << max(0, (max(n, 1) - 1).bit_length() - 4)
    return max(1, -(-n // step) * step)


def fill_rate(batch: TokenBatch) -> float:
    """Returns the share of slots that hold a token."""
    return float(np.mean(np.asarray(batch.sentence) < batch.sentences))


def count_rows(lengths: Int[np.ndarray, " N"], row_length: int) -> int:
    """Returns the rows that sentences of these lengths fill.

    >>> count_rows(np.array([3, 4, 1]), 4)
    2
    """
    return len(assign_rows(lengths, np.full(row_length + 1, row_length))[2])


def _lengths(ids: Sequence[Ids]) -> Int[np.ndarray, " n"]:
    return np.fromiter(map(len, ids), np.int64, len(ids))


def _check_rows(needed: int, rows: int | None, least_rows: int = 1) -> int:
    if rows is None:
        return round_rows(max(needed, least_rows))
    if needed > rows:
        raise RowsError(needed, rows)
    return rows


def assign_rows(
    lengths: Int[np.ndarray, " N"], row_lengths: Int[np.ndarray, " L"]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " R"]]:
    """Assigns sentences to rows by best fit decreasing.

    >>> assign_rows(np.array([3, 4, 1]), row_lengths=np.array([4, 4, 4, 4, 4]))
    (array([1, 0, 1]), array([0, 0, 3]), array([4, 4]))

    Args:
        lengths: tokens of each sentence.
        row_lengths: slots of the row that is opened for a sentence of n tokens, at index n.

    Returns:
        Each sentence's row and its offset there (0 and 0 without tokens), and the rows' slots.

    Raises:
        InputError: a sentence is longer than any row.
    """
    row, offset = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    if len(lengths) and lengths.max() >= len(row_lengths):
        raise InputError(
            f"token budget smaller than one text: {lengths.max()} tokens, but a row has "
            f"{row_lengths.max()}"
        )
    # Rows by the number of free slots in them; bit n of `open_rooms` is set if rooms[n] is not
    # empty, so that the tightest fit is one bit operation away.
    rooms: list[list[int]] = [[] for _ in range(int(row_lengths.max()) + 1)]
    opened: list[int] = []
    open_rooms = 0
    by_length = np.argsort(-lengths, kind="stable")
    for sentence, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        if not length:
            break
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            where = rooms[room].pop()
            if not rooms[room]:
                open_rooms ^= 1 << room
        else:
            room, where = int(row_lengths[length]), len(opened)
            opened.append(room)
        row[sentence], offset[sentence] = where, opened[where] - room
        rooms[room - length].append(where)
        open_rooms |= 1 << (room - length)
    return row, offset, np.array(opened, np.int64)


def fill_rows(
    ids: Sequence[Ids],
    start: Int[np.ndarray, " n"],
    number: Int[np.ndarray, " n"],
    sentences: int,
    skip: int | Sequence[int] | Int[np.ndarray, " n"],
    shape: tuple[int, ...],
    segments: Sequence[Ids] | None = None,
    marks: Sequence[Ids] | None = None,
) -> TokenBatch:
    """Writes each sentence's tokens to the slots from `start` on, with the sentence id `number`.

    Args:
        ids: token ids of each sentence.
        start: the first slot of each sentence, among all slots of the batch.
        number: the id of each sentence in its group.
        sentences: S, how many sentences a group has room for.
        skip: leading tokens that do not count towards pooling, for all sentences or for each.
        shape: of the leaves, `[R, T]` or `[G, R, T]`.
        segments: token types of each sentence; None: all are 0.
        marks: marks of each sentence's tokens; see `pack_sentences`.
    """
    lengths = _lengths(ids)
    token_ids, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    sentence = np.full(shape, sentences, np.int32)
    pooled = np.zeros(shape, bool)
    segment = None if segments is None else np.zeros(shape, np.int32)
    total = int(lengths.sum())
    if total:
        place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        slots = np.repeat(start, lengths) + place
        token_ids.reshape(-1)[slots] = np.concatenate(ids)
        sentence.reshape(-1)[slots] = np.repeat(number, lengths)
        position.reshape(-1)[slots] = place
        pooled.reshape(-1)[slots] = place >= np.repeat(np.broadcast_to(skip, len(lengths)), lengths)
        if segment is not None and segments is not None:
            segment.reshape(-1)[slots] = np.concatenate(segments)
    key_sentence = None if marks is None else sentence.copy()
    if total and key_sentence is not None and marks is not None:
        mark = np.concatenate(marks)
        pooled.reshape(-1)[slots] &= mark & UNPOOLED == 0
        key_sentence.reshape(-1)[slots[mark & UNSEEN > 0]] = sentences
    return TokenBatch(token_ids, sentence, position, pooled, sentences, segment, key_sentence)
