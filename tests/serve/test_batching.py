"""Batches: what arrives together is one call, failures stay with their request."""

import asyncio

import pytest

from embed_jax.serve.batching import Batcher, Busy


def double(calls):
    def call(items):
        calls.append(list(items))
        if "bad" in items:
            raise ValueError("bad")
        return [2 * item for item in items]

    return call


def test_requests_that_arrive_together_are_one_call():
    calls = []

    async def main():
        batcher, call = Batcher(), double(calls)
        return await asyncio.gather(
            *(batcher.submit("key", call, [number, number + 100]) for number in range(8)),
            batcher.submit("other", call, [7]),
            batcher.submit("key", call, []),
        )

    results = asyncio.run(main())
    assert results == [*([2 * n, 2 * n + 200] for n in range(8)), [14], []]
    assert [len(call) for call in calls] == [16, 1]


def test_long_requests_are_cut_and_take_turns():
    calls = []

    async def main():
        batcher, call = Batcher(most=4), double(calls)
        long = batcher.submit("key", call, list(range(10)))
        return await asyncio.gather(long, batcher.submit("short", call, [50]))

    assert asyncio.run(main()) == [[2 * n for n in range(10)], [100]]
    assert calls == [[0, 1, 2, 3], [50], [4, 5, 6, 7], [8, 9]]


def test_only_the_request_at_fault_fails_and_the_next_ones_work():
    calls = []

    async def main():
        batcher, call = Batcher(), double(calls)
        results = await asyncio.gather(
            *(batcher.submit("key", call, [item]) for item in (1, "bad", 3)),
            return_exceptions=True,
        )
        return *results, await batcher.submit("key", call, [4])

    first, failure, third, later = asyncio.run(main())
    assert (first, third, later) == ([2], [6], [8]) and isinstance(failure, ValueError)


def test_too_much_that_waits_is_refused():
    async def main():
        batcher, call = Batcher(limit=3), double([])
        waiting = asyncio.ensure_future(batcher.submit("key", call, [1, 2]))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 texts are waiting already"):
            await batcher.submit("key", call, [3, 4])
        assert await waiting == [2, 4]
        assert await batcher.submit("key", call, [1, 2, 3, 4]) == [2, 4, 6, 8]  # nothing waits

    asyncio.run(main())
