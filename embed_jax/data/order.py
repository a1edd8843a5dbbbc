"""The order of training: the records of a batch as a function of (seed, step).

A *stream* is an endless order of records, shuffled anew each epoch; it is cut into *batches*; a
mixture mixes streams (every batch is from all data sets) or batches (every batch is from one, or
from one cluster of one). Records are numbered over all data sets, one after the other. Batches may
be made without duplicates. Nothing here depends on devices: a batch is composed globally and split
afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt64

from embed_jax.data.distinct_batches import find_repeated_codes, make_distinct_batches
from embed_jax.errors import InputError, require
from embed_jax.registry import unknown

SAMPLINGS = ("proportional", "round_robin", "temperature", "weights")
MIXINGS = ("single", "mixed")


@runtime_checkable
class EndlessOrder(Protocol):
    """Records in an endless order; `length` of them are an epoch."""

    length: int

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Returns the indices of the records at these positions of the order."""


@runtime_checkable
class Order(Protocol):
    """Batches in an endless order."""

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        """Returns the indices of a batch's records."""

    def count(self, epochs: float) -> int:
        """Returns the number of batches in a number of epochs."""


class ShuffledRecords:
    """The records first, ..., first + length - 1, each once per epoch, shuffled anew in each."""

    def __init__(self, length: int, seed: int, first: int = 0):
        self.length, self.first = length, first
        # Epoch e is shuffled with seed + e; neighbouring seeds would be the same order shifted by
        # an epoch.
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        require("grain")

        # A permutation of which any position can be computed by itself.
        from grain.experimental import index_shuffle

        last = self.length - 1
        places = (divmod(int(position), self.length) for position in positions)
        positions_of = (
            index_shuffle(place, last, (self._seed + epoch) % 2**32, 4) for epoch, place in places
        )
        return np.fromiter(positions_of, np.int64, len(positions)) + self.first


class ShuffledSubset:
    """The records of these indices, each once per epoch, shuffled anew in each."""

    def __init__(self, indices: Int[np.ndarray, " n"], seed: int):
        self.indices, self._order = indices, ShuffledRecords(len(indices), seed)
        self.length = len(indices)

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return self.indices[self._order.take(positions)]


class MixedStream:
    """Several streams as one, each with its share of every epoch; an epoch has all records."""

    def __init__(self, streams: Sequence[EndlessOrder], schedule: TurnSchedule):
        self.streams, self.schedule = streams, schedule
        self.length = schedule.length

    def take(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        records = np.empty(len(positions), np.int64)
        which, places = self.schedule.at(positions)
        for index, stream in enumerate(self.streams):
            mine = which == index
            records[mine] = stream.take(places[mine])
        return records


class Batches:
    """A stream cut into batches of B, without the last records of an epoch that fill no batch.

    Args:
        stream: the order of the records.
        batch_size: B.
        codes: of everything that makes two records the same (their texts, ids, groups), by
            record; see `find_repeated_codes`. With them no batch has two records that share a
            code.
    """

    def __init__(
        self,
        stream: EndlessOrder,
        batch_size: int,
        codes: Int[np.ndarray, "records w"] | None = None,
    ):
        self.stream, self.batch_size = stream, batch_size
        self._codes = codes
        self._ends: list[int] = []  # the number of batches up to the end of each epoch
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
        assert self._codes is not None, "without codes a batch is a part of the stream"
        if epoch not in self._plans:
            start = epoch * self.stream.length
            order = self.stream.take(np.arange(start, start + self.stream.length))
            # Two are kept: threads may be at the end of one epoch and at the start of the next.
            if len(self._plans) > 1:
                del self._plans[min(self._plans)]
            self._plans[epoch] = make_distinct_batches(order, self._codes, self.batch_size)
        return self._plans[epoch]


class AlternatingBatches:
    """Batches of several data sets, each batch from one of them; an epoch has all their batches."""

    def __init__(self, batches: Sequence[Order], schedule: TurnSchedule):
        self.batches, self.schedule = batches, schedule

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        which, place = self.schedule.at(np.array([step]))
        return self.batches[int(which[0])][int(place[0])]

    def count(self, epochs: float) -> int:
        return math.floor(epochs * self.schedule.length)


@dataclasses.dataclass(frozen=True)
class TurnSchedule:
    """The order in which data sets have turns.

    Each data set has the same number of turns in every epoch, at positions shuffled anew.

    Attributes:
        turns: the number of turns in an epoch, for each data set.
        seed: the seed of the positions.
        in_turn: whether data sets follow one another instead, endlessly ("round_robin").
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
        """Returns the data set whose turn each position is, and its number of turns before."""
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


@functools.lru_cache(maxsize=64)  # of many data sets, each with clusters
def _shuffled_turns(turns: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    whose = np.repeat(np.arange(len(turns)), turns)
    np.random.default_rng([seed, epoch]).shuffle(whose)
    earlier = np.empty_like(whose)
    for index, count in enumerate(turns):
        earlier[whose == index] = np.arange(count)
    return whose, earlier


def make_turns(
    lengths: Sequence[int],
    sampling: str,
    *,
    temperature: float = 1.0,
    weights: Sequence[float] = (),
    seed: int = 0,
) -> TurnSchedule:
    """Returns how often, and in which order, data sets of these lengths have turns.

    An epoch has sum(lengths) turns. Where shares are not whole, the largest remainders are rounded
    up; each data set has at least one turn.

    >>> make_turns([30, 10], "proportional").turns
    (30, 10)
    >>> make_turns([30, 10], "weights", weights=[1, 1]).turns
    (20, 20)

    Args:
        lengths: the number of records or batches of each data set.
        sampling: turns are "proportional" to the lengths, so that an epoch has everything once;
            "temperature": to length^(1 / temperature); "weights": to the weights; "round_robin":
            data sets follow one another. A data set that has more turns than records begins again,
            shuffled anew.
        temperature: 1 is the same as "proportional", a large one nearly uniform.
        weights: a positive weight for each data set, if `sampling` is "weights".
        seed: the seed of the order.

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
    for index in np.argsort(turns - target_counts, kind="stable")[
        : max(sum(lengths) - turns.sum(), 0)
    ]:
        turns[index] += 1
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
    clusters: Sequence[Int[np.ndarray, " _"] | None] = (),
    duplicate_keys: UInt64[np.ndarray, "n w"] | None = None,
) -> Order:
    """Returns the order of the batches of data sets with these numbers of records.

    Args:
        lengths: the number of records of each data set.
        batch_size: B.
        seed: the seed of the order.
        mixing: "single": every batch is from one data set; "mixed": from all.
        sampling: see `make_turns`.
        temperature: see `make_turns`.
        weights: see `make_turns`.
        clusters: the cluster of each record of each data set, None of one that has none; every
            batch is from one cluster, and an epoch has all batches of all clusters, shuffled. Not
            with `mixing` "mixed".
        duplicate_keys: for batches without duplicates, see `Batches`; a row for each record, in the
            order in which records are numbered.

    Raises:
        InputError: a data set or a cluster does not fill a batch; with "mixed", all data sets
            together do not.
    """
    firsts = np.cumsum([0, *lengths[:-1]]).tolist()
    # The only data set has the seed itself: a mixture of one is the data set.
    seeds = (
        [seed]
        if len(lengths) == 1
        else np.random.SeedSequence(seed).generate_state(len(lengths)).tolist()
    )
    schedule = functools.partial(
        make_turns, sampling=sampling, temperature=temperature, weights=weights, seed=seed
    )
    if mixing not in MIXINGS:
        raise InputError(unknown("config.mixture.batches", mixing, MIXINGS))
    codes = None if duplicate_keys is None else find_repeated_codes(duplicate_keys)
    clusters = clusters or [None] * len(lengths)
    if mixing == "mixed" and len(lengths) > 1:
        if any(assigned is not None for assigned in clusters):
            raise InputError("config.mixture.batches: expected 'single' with clusters")
        _check_size(sum(lengths), batch_size)
        streams = [
            ShuffledRecords(*arguments) for arguments in zip(lengths, seeds, firsts, strict=True)
        ]
        return Batches(MixedStream(streams, schedule(lengths)), batch_size, codes)
    batches: list[Order] = []
    for length, source_seed, first, assigned in zip(lengths, seeds, firsts, clusters, strict=True):
        _check_size(length, batch_size)
        if assigned is None:
            batches.append(Batches(ShuffledRecords(length, source_seed, first), batch_size, codes))
        elif len(assigned) == length:
            batches.append(_clustered(assigned, source_seed, first, batch_size, codes))
        else:
            raise InputError(
                f"clusters: expected one for each of {length} records, found {len(assigned)}"
            )
    return _alternating(batches, schedule)


def _clustered(
    clusters: Int[np.ndarray, " n"],
    seed: int,
    first: int,
    batch_size: int,
    codes: Int[np.ndarray, "records w"] | None,
) -> Order:
    """Returns batches that are each from one cluster of a data set, all in a shuffled order.

    Args:
        clusters: the cluster of each record.
        seed: the seed of the order.
        first: the number of the data set's first record.
        batch_size: B.
        codes: see `Batches`.
    """
    members = [np.flatnonzero(clusters == cluster) + first for cluster in np.unique(clusters)]
    seeds = np.random.SeedSequence(seed).generate_state(len(members)).tolist()
    batches = []
    for indices, cluster_seed in zip(members, seeds, strict=True):
        _check_size(len(indices), batch_size, "config.batch.clusters")
        batches.append(Batches(ShuffledSubset(indices, cluster_seed), batch_size, codes))
    try:
        return _alternating(
            batches, functools.partial(make_turns, sampling="proportional", seed=seed)
        )
    except InputError as error:
        raise InputError(f"{error} or config.batch.clusters") from None


def _alternating(batches: Sequence[Order], schedule: Callable[[list[int]], TurnSchedule]) -> Order:
    """Returns batches in turns, or the only ones as they are."""
    if len(batches) == 1:
        return batches[0]
    return AlternatingBatches(batches, schedule([order.count(1) for order in batches]))


def _check_size(num_records: int, batch_size: int, field: str = "config.batch.size") -> None:
    if num_records < batch_size:
        raise InputError(
            f"{num_records} records do not fill a batch of {batch_size}: lower {field}"
        )
