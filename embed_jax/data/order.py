"""The records of a batch, as a function of (seed, step).

One data set or a mixture, with or without duplicates.

A *stream* is the endless order of records, shuffled anew each epoch; it is cut into *batches*; a
mixture mixes streams (every batch from all data sets) or batches (every batch from one). Records
are numbered over all data sets, one after the other. Nothing here knows devices: a batch is
composed globally and split afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt64

from embed_jax.errors import InputError, require
from embed_jax.registry import unknown

SAMPLINGS = ("proportional", "round_robin", "temperature", "weights")
MIXINGS = ("single", "mixed")


@runtime_checkable
class EndlessOrder(Protocol):
    """Records in an endless order; `length` of them are an epoch."""

    length: int

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The numbers of the records at these places of the order."""


@runtime_checkable
class Order(Protocol):
    """Batches in an endless order."""

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        """The numbers of the records of a batch."""

    def count(self, epochs: float) -> int:
        """Returns the number of batches in a number of epochs."""


class Shuffled:
    """The records first, first + 1, ..., first + length - 1, each once an epoch, shuffled anew in each."""

    def __init__(self, length: int, seed: int, first: int = 0):
        self.length, self.first = length, first
        # Epoch e is shuffled with seed + e; neighbouring seeds would be the same order shifted by
        # an epoch.
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        require("grain")
        from grain.experimental import (
            index_shuffle,
        )  # a permutation of which any place is known by itself

        last, places = (
            self.length - 1,
            (divmod(int(position), self.length) for position in positions),
        )
        positions_of = (
            index_shuffle(place, last, (self._seed + epoch) % 2**32, 4) for epoch, place in places
        )
        return np.fromiter(positions_of, np.int64, len(positions)) + self.first


class MixedStream:
    """Streams in one, each with its share of every epoch.

    An epoch is as long as all of them together.
    """

    def __init__(self, streams: Sequence[EndlessOrder], schedule: TurnSchedule):
        self.streams, self.schedule = streams, schedule
        self.length = schedule.length

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        records = np.empty(len(positions), np.int64)
        which, places = self.schedule.at(positions)
        for number, stream in enumerate(self.streams):
            mine = which == number
            records[mine] = stream.take(places[mine])
        return records


class Batches:
    """A stream cut into batches of B.

    The last records of an epoch that fill no batch are left out of it.

    Args:
        duplicate_keys: 64-bit hashes `[records, w]` of what makes two records the same (their texts, ids,
            groups), 0 for none. With them no batch has two records that share one: see
            `distinct_batches`.
    """

    def __init__(
        self,
        stream: EndlessOrder,
        batch_size: int,
        duplicate_keys: UInt64[np.ndarray, "n w"] | None = None,
    ):
        self.stream, self.batch_size = stream, batch_size
        self._codes = None if duplicate_keys is None else _repeated(duplicate_keys)
        self._ends: list[int] = []  # batches up to and with each epoch
        self._plans: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()  # batches are made by several threads

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        if self._codes is None:
            epoch, number = divmod(step, self.stream.length // self.batch_size)
            start = epoch * self.stream.length + number * self.batch_size
            return self.stream.take(np.arange(start, start + self.batch_size))
        with self._lock:
            epoch = 0
            while self._end(epoch) <= step:
                epoch += 1
            return self._plan(epoch)[step - (self._end(epoch - 1) if epoch else 0)]

    def count(self, epochs: float) -> int:
        if self._codes is None:
            return math.floor(epochs * (self.stream.length // self.batch_size))
        whole = math.floor(epochs)
        with self._lock:
            before = self._end(whole - 1) if whole else 0
            partial = (self._end(whole) - before) * (epochs - whole) if epochs > whole else 0
        return before + math.floor(partial)

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            made = len(self._plan(len(self._ends)))
            if not made:
                raise InputError(
                    f"config.batch.no_duplicates: no batch of {self.batch_size} records without "
                    f"duplicates can be made of {self.stream.length}; lower config.batch.size"
                )
            self._ends.append((self._ends[-1] if self._ends else 0) + made)
        return self._ends[epoch]

    def _plan(self, epoch: int) -> Int[np.ndarray, "steps B"]:
        if epoch not in self._plans:
            start = epoch * self.stream.length
            order = self.stream.take(np.arange(start, start + self.stream.length))
            if (
                len(self._plans) > 1
            ):  # threads may be at the end of one epoch and at the start of the next
                del self._plans[min(self._plans)]
            self._plans[epoch] = distinct_batches(order, self._codes, self.batch_size)
        return self._plans[epoch]


class Alternating:
    """Batches of several data sets, each batch from one of them.

    An epoch is as long as all of them together.
    """

    def __init__(self, batches: Sequence[Order], schedule: TurnSchedule):
        self.batches, self.schedule = batches, schedule

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        which, place = self.schedule.at(np.array([step]))
        return self.batches[int(which[0])][int(place[0])]

    def count(self, epochs: float) -> int:
        return math.floor(epochs * self.schedule.length)


@dataclasses.dataclass(frozen=True)
class TurnSchedule:
    """Whose turn it is at each place of an epoch, and how often it had been before.

    Every epoch has exactly the same number of turns of each, at places shuffled anew; "round_robin"
    takes turns.

    Attributes:
        turns: of an epoch, for each.
        seed: of the places.
        in_turn: one after the other instead of shuffled.
    """

    turns: tuple[int, ...]
    seed: int
    in_turn: bool = False

    @property
    def length(self) -> int:
        return sum(self.turns)

    def at(
        self, positions: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Whose turn it is at each of these places, and the number of its turns before."""
        if self.in_turn:
            return positions % len(self.turns), positions // len(self.turns)
        epochs, places = np.divmod(positions, self.length)
        which, turn = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        turns = np.array(self.turns)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            whose, earlier = _shuffled_turns(self.turns, self.seed, epoch)
            which[now] = whose[places[now]]
            turn[now] = earlier[places[now]] + epoch * turns[which[now]]
        return which, turn


@functools.lru_cache(maxsize=4)
def _shuffled_turns(turns: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    whose = np.repeat(np.arange(len(turns)), turns)
    np.random.default_rng([seed, epoch]).shuffle(whose)
    earlier = np.empty_like(whose)
    for number, count in enumerate(turns):
        earlier[whose == number] = np.arange(count)
    return whose, earlier


def make_turns(
    lengths: Sequence[int],
    sampling: str,
    *,
    temperature: float = 1.0,
    weights: Sequence[float] = (),
    seed: int = 0,
) -> TurnSchedule:
    """Returns how often data sets of these lengths have their turn.

    An epoch has sum(lengths) turns. Where the shares do not come out even, the largest remainders
    are rounded up, and nobody goes without a turn.

    Args:
        lengths: records or batches of each.
        sampling: "proportional" to the lengths, so that an epoch has everything once;
            "temperature": to length^(1 / temperature), where 1 is proportional and a large one
            uniform; "weights": to the weights; "round_robin": in turn. Data sets that have more
            turns than records begin again, shuffled anew.

    Raises:
        InputError: for an unknown sampling, or a weight or temperature that is not above 0.
    """
    if sampling not in SAMPLINGS:
        raise InputError(unknown("config.mixture.sampling", sampling, SAMPLINGS))
    if temperature <= 0:
        raise InputError(f"config.mixture.temperature: expected more than 0, found {temperature}")
    if sampling == "round_robin":
        return TurnSchedule(tuple(lengths), seed, in_turn=True)
    shares = {
        "proportional": np.array(lengths, float),
        "temperature": np.array(lengths, float) ** (1 / temperature),
        "weights": np.array(weights, float),
    }[sampling]
    if len(shares) != len(lengths) or not (shares > 0).all():
        raise InputError(
            f"config.mixture.sources: expected a weight above 0 for each, found {list(weights)}"
        )
    target_counts = shares / shares.sum() * sum(lengths)
    turns = np.maximum(np.floor(target_counts).astype(int), 1)
    for number in np.argsort(turns - target_counts, kind="stable")[
        : max(sum(lengths) - turns.sum(), 0)
    ]:
        turns[number] += 1
    return TurnSchedule(tuple(turns.tolist()), seed)


def make_order(
    lengths: Sequence[int],
    batch_size: int,
    seed: int,
    *,
    mixing: str = "single",
    sampling: str = "proportional",
    temperature: float = 1.0,
    weights: Sequence[float] = (),
    duplicate_keys: UInt64[np.ndarray, "n w"] | None = None,
) -> Order:
    """The batches of data sets with these numbers of records.

    Args:
        mixing: "single": every batch is from one data set; "mixed": from all.
        sampling, temperature, weights: see `make_turns`.
        duplicate_keys: for batches without duplicates, see `Batches`; rows as the records are numbered.

    Raises:
        InputError: if a data set, or with "mixed" all together, do not fill a batch.
    """
    firsts = np.cumsum([0, *lengths[:-1]]).tolist()
    # The only data set has the seed itself: a mixture of one is the data set.
    seeds = (
        [seed]
        if len(lengths) == 1
        else np.random.SeedSequence(seed).generate_state(len(lengths)).tolist()
    )
    streams = [Shuffled(*arguments) for arguments in zip(lengths, seeds, firsts, strict=True)]
    schedule = functools.partial(
        make_turns, sampling=sampling, temperature=temperature, weights=weights, seed=seed
    )
    if mixing not in MIXINGS:
        raise InputError(unknown("config.mixture.batches", mixing, MIXINGS))
    if len(lengths) == 1:
        _check_size(lengths[0], batch_size)
        return Batches(streams[0], batch_size, duplicate_keys)
    if mixing == "mixed":
        _check_size(sum(lengths), batch_size)
        return Batches(MixedStream(streams, schedule(lengths)), batch_size, duplicate_keys)
    for length in lengths:
        _check_size(length, batch_size)
    batches = [Batches(stream, batch_size, duplicate_keys) for stream in streams]
    return Alternating(batches, schedule([arguments.count(1) for arguments in batches]))


def _check_size(num_records: int, batch_size: int) -> None:
    if num_records < batch_size:
        raise InputError(
            f"{num_records} records do not fill a batch of {batch_size}: lower config.batch.size"
        )


# ---- without duplicates --------------------------------------------------------------------------


def distinct_batches(
    order: Int[np.ndarray, " n"], codes: Int[np.ndarray, "records w"], batch_size: int
) -> Int[np.ndarray, "steps B"]:
    """Full batches in which no two records share a code, by one pass over the order.

    A record that shares a code with one of the batch waits, and is the first to be tried for the
    next one; those that wait for the same code stand in one queue, so that a text which many
    records have costs no more than others.

    Args:
        order: record numbers.
        codes: what each record has that others have too, -1 for nothing; see `_repeated`.

    Returns:
        Record numbers; records that fill no batch are left out.
    """
    has = [tuple(code for code in row if code >= 0) for row in codes[order].tolist()]
    numbers = order.tolist()
    batches: list[list[int]] = []
    waiting: dict[int, deque[int]] = {}  # places in the order, by the code that they wait for
    place = 0
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
        while len(batch) < batch_size and place < len(numbers):
            blocking = next((code for code in has[place] if code in used), None)
            if blocking is None:
                used.update(has[place])
                batch.append(numbers[place])
            else:
                waiting.setdefault(blocking, deque()).append(place)
            place += 1
        if len(batch) < batch_size:
            return np.array(batches, np.int64).reshape(-1, batch_size)
        batches.append(batch)


def _repeated(duplicate_keys: UInt64[np.ndarray, "n w"]) -> Int[np.ndarray, "n w"]:
    """Codes of the things that several rows have, -1 for others: only those can meet."""
    rows = np.sort(duplicate_keys, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = 0  # the same thing twice in a row is no meeting
    _, codes, counts = np.unique(rows, return_inverse=True, return_counts=True)
    codes = codes.reshape(rows.shape)
    return np.where((rows == 0) | (counts[codes] < 2), -1, codes)
