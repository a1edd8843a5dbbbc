"""Records that can only be read one after the other, shuffled in a seeded window.

A batch is a function of its step. A resumed run reads and skips the records of earlier steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from embed_jax.data.pairs import SAMPLE
from embed_jax.errors import InputError
from embed_jax.types import Record

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class RecordStream(Sequence):
    """A stream of records; as a sequence it has only the first ones, which show its fields.

    Attributes:
        open: starts reading from the beginning.
        name: the name in messages.
        head: the first records.
    """

    open: Callable[[], Iterator[Record]]
    name: str
    head: Sequence[Record]

    def __len__(self) -> int:
        return len(self.head)

    def __getitem__(self, index):
        return self.head[index]


def open_stream(open: Callable[[], Iterator[Record]], name: str) -> RecordStream:
    """Opens a stream, and reads its first records.

    Raises:
        InputError: the stream is empty.
    """
    head = list(itertools.islice(open(), SAMPLE))
    if not head:
        raise InputError(f"{name}: empty, no records in it")
    return RecordStream(open, name, head)


def stream_batches(
    stream: RecordStream, batch_size: int, *, window: int, seed: int, start: int = 0
) -> Iterator[list[tuple[int, Record]]]:
    """Yields endless batches of (index in the stream, record), from batch `start` on.

    Each pass over the stream is shuffled anew, within windows of this many records; its last
    records that fill no batch are left out. The order is a function of the seed, the window and the
    records.

    Raises:
        InputError: the stream does not fill a batch.
    """
    epoch, skip = 0, start * batch_size
    while True:
        passed = 0  # records read in this epoch
        order: list[tuple[int, Record]] = []
        records = enumerate(stream.open())
        for window_index in itertools.count():
            first = window_index * window
            if first + window <= skip:
                passed += sum(1 for _ in itertools.islice(records, window))
                if passed < first + window:
                    break  # the stream ends within what is skipped
                continue
            part = list(itertools.islice(records, window))
            passed += len(part)
            np.random.default_rng([seed, epoch, window_index]).shuffle(part)
            order += part[max(skip - first, 0) :]
            while len(order) >= batch_size:
                yield order[:batch_size]
                del order[:batch_size]
            if len(part) < window:
                break
        if passed < batch_size:
            raise InputError(
                f"{stream.name}: {passed} records do not fill a batch of {batch_size}: lower "
                "config.batch.size"
            )
        epoch, skip = epoch + 1, max(skip - passed // batch_size * batch_size, 0)


def make_ahead(values: Iterable[Value], buffer: int = 4) -> Iterator[Value]:
    """Yields the values, made by a thread at most `buffer` ahead, which ends with the iterator."""
    made: queue.Queue = queue.Queue(buffer)
    stopped = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for value in values:
                put(("value", value))
                if stopped.is_set():
                    return
            put(("end", None))
        except Exception as error:  # raised again in the consumer's thread
            put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            what, value = made.get()
            if what == "error":
                raise value
            if what == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
