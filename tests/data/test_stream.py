"""A stream's batches are a function of (records, seed, window, step), from any first step.

Its thread ends with it.
"""

import itertools
import threading
import time

import pytest

from embed_jax.data.stream import make_ahead, open_stream, stream_batches
from embed_jax.errors import InputError

CASES = [  # records, batch size, window
    (10, 4, 5),  # a batch over two windows, and two records left over
    (12, 4, 4),
    (12, 4, 3),  # windows smaller than a batch
    (13, 3, 100),  # all in one window
    (7, 7, 1),  # not shuffled at all
    (50, 8, 16),
    (9, 4, 9),
]


def stream_of(count, opened=None):
    def read():
        for number in range(count):
            if opened is not None:
                opened.append(number)
            yield {"text": f"text {number}"}

    return open_stream(read, "made")


def first(count, batch_size, window, steps, seed=0, start=0):
    batches = stream_batches(stream_of(count), batch_size, window=window, seed=seed, start=start)
    return [[number for number, _ in batch] for batch in itertools.islice(batches, steps)]


@pytest.mark.parametrize(("count", "batch_size", "window"), CASES)
def test_every_record_once_an_epoch(count, batch_size, window):
    steps = count // batch_size
    whole = first(count, batch_size, window, 3 * steps)
    epochs = [
        list(itertools.chain(*whole[epoch * steps : (epoch + 1) * steps])) for epoch in range(3)
    ]
    for numbers in epochs:
        assert len(set(numbers)) == len(numbers) == steps * batch_size
        # A window's records stand together: nothing is taken from further ahead, nothing left for
        # later.
        assert [number // window for number in numbers] == sorted(
            number // window for number in numbers
        )
    assert window == 1 or epochs[0] != epochs[1] != epochs[2]
    assert window == 1 or whole != first(count, batch_size, window, 3 * steps, seed=1)


@pytest.mark.parametrize(("count", "batch_size", "window"), CASES)
def test_from_any_step_on_it_is_the_undisturbed_stream(count, batch_size, window):
    steps = 3 * (count // batch_size) + 2
    whole = first(count, batch_size, window, steps)
    for start in range(steps):
        assert first(count, batch_size, window, steps - start, start=start) == whole[start:]


def test_a_number_belongs_to_its_record():
    for batch in itertools.islice(stream_batches(stream_of(20), 6, window=8, seed=3, start=2), 5):
        assert all(record == {"text": f"text {number}"} for number, record in batch)


def test_no_more_is_read_than_a_window_and_a_batch_need():
    opened = []
    stream = stream_of(10_000, opened)
    opened.clear()
    next(stream_batches(stream, 8, window=16, seed=0))
    assert len(opened) == 16


@pytest.mark.parametrize("start", [0, 1, 1000])
def test_a_stream_that_fills_no_batch(start):
    with pytest.raises(
        InputError, match="^made: 3 records do not fill a batch of 4: lower config.batch.size$"
    ):
        next(stream_batches(stream_of(3), 4, window=2, seed=0, start=start))


def test_an_empty_stream():
    with pytest.raises(InputError, match="^made: empty, no records in it$"):
        stream_of(0)


def test_as_a_sequence_it_is_its_first_records():
    stream = stream_of(5000)
    assert len(stream) == len(list(stream)) == 2000 and stream[1] == {"text": "text 1"}


def the_thread(before):
    (thread,) = set(threading.enumerate()) - before
    return thread


def test_values_are_made_ahead_in_order_and_the_thread_ends_when_abandoned():
    before, made = set(threading.enumerate()), []

    def values():
        for number in itertools.count():
            made.append(number)
            yield number

    ahead = make_ahead(values(), buffer=3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    thread, deadline = the_thread(before), time.monotonic() + 5
    while len(made) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 9, "five taken, three ahead, one waiting for room"
    ahead.close()
    assert not thread.is_alive() and len(made) == 9


def test_it_ends_where_the_values_end():
    before = set(threading.enumerate())
    assert list(make_ahead(range(10), buffer=2)) == list(range(10))
    assert set(threading.enumerate()) == before


def test_an_error_comes_after_the_values_before_it_and_ends_the_thread():
    before = set(threading.enumerate())

    def values():
        yield 1
        raise InputError("line 2")

    ahead = make_ahead(values())
    assert next(ahead) == 1
    with pytest.raises(InputError, match="^line 2$"):
        next(ahead)
    assert set(threading.enumerate()) == before
