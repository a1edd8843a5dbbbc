"""Batches in which no text stands twice."""

from __future__ import annotations

from collections import deque

import numpy as np
from jaxtyping import Int, UInt64


def make_distinct_batches(
    order: Int[np.ndarray, " n"], codes: Int[np.ndarray, "records w"], batch_size: int
) -> Int[np.ndarray, "steps B"]:
    """Makes full batches in which no two records share a code, in one pass over the order.

    A record that shares a code with one of the batch has to wait, and is tried first for the next
    batch. Records that wait for the same code are in one queue, so that a text of many records
    costs no more time than others.

    >>> make_distinct_batches(np.arange(4), np.array([[7], [7], [-1], [-1]]), 2).tolist()
    [[0, 2], [1, 3]]

    Args:
        order: indices of records.
        codes: the codes of each record, by index, -1 for none; see `find_repeated_codes`.
        batch_size: B.

    Returns:
        Indices of records, a row for each batch; records that fill no batch are left out.
    """
    has = [tuple(code for code in row if code >= 0) for row in codes[order].tolist()]
    numbers = order.tolist()
    batches: list[list[int]] = []
    waiting: dict[int, deque[int]] = {}  # positions in the order, by the code that they wait for
    position = 0
    while True:
        batch: list[int] = []
        used: set[int] = set()
        for code in list(waiting):
            if len(batch) == batch_size:
                break
            if used.isdisjoint(has[waiting[code][0]]):
                first = waiting[code].popleft()
                if not waiting[code]:
                    del waiting[code]
                used.update(has[first])
                batch.append(numbers[first])
        while len(batch) < batch_size and position < len(numbers):
            blocking = next((code for code in has[position] if code in used), None)
            if blocking is None:
                used.update(has[position])
                batch.append(numbers[position])
            else:
                waiting.setdefault(blocking, deque()).append(position)
            position += 1
        if len(batch) < batch_size:
            return np.array(batches, np.int64).reshape(-1, batch_size)
        batches.append(batch)


def find_repeated_codes(duplicate_keys: UInt64[np.ndarray, "n w"]) -> Int[np.ndarray, "n w"]:
    """Returns codes that are equal where hashes are, and -1 for hashes of a single row or none."""
    rows = np.sort(duplicate_keys, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = 0  # the same hash twice in a row counts once
    _, codes, counts = np.unique(rows, return_inverse=True, return_counts=True)
    codes = codes.reshape(rows.shape)
    return np.where((rows == 0) | (counts[codes] < 2), -1, codes)
