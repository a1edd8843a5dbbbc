"""Dynamic batching: requests that arrive together are one call of a model."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from embed_jax.errors import RunError

BatchCall = Callable[[list[Any]], Sequence[Any]]
"""Computes a result for each item."""


class Busy(Exception):
    """Too much is waiting already; the same request may succeed later."""


@dataclasses.dataclass(eq=False)
class _Request:
    key: Hashable
    call: BatchCall
    items: Sequence[Any]
    future: asyncio.Future[list[Any]]
    taken: int = 0  # items that were given to a call
    results: list[Any] = dataclasses.field(default_factory=list)


class Batcher:
    """Makes calls in one thread, one after the other, each for all requests that wait for it.

    While one call runs, requests gather for the next. Of a long request a part is taken at a time,
    in turn with the others, so that it does not keep them waiting.
    """

    def __init__(self, *, wait: float = 0.003, most: int = 64, limit: int = 8192):
        """Starts nothing yet.

        Args:
            wait: seconds before each call in which requests may still join it.
            most: items of a call.
            limit: items that may wait; more are refused.
        """
        self._wait, self._most, self._limit = wait, most, limit
        self._queue: collections.deque[_Request] = collections.deque()
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="serve")

    async def submit(self, key: Hashable, call: BatchCall, items: Sequence[Any]) -> list[Any]:
        """Returns the results of items, in their order.

        Args:
            key: requests with equal keys may share a call; it is the call of one of them.
            call: gets at most as many items at once as a call has.
            items: of this request.

        Raises:
            Busy: too many items are waiting.
            Exception: whatever the call raises for these items by themselves.
        """
        if not items:
            return []
        if self._waiting and self._waiting + len(items) > self._limit:
            raise Busy(f"{self._waiting:,} texts are waiting already, try again later")
        loop = asyncio.get_running_loop()
        request = _Request(key, call, items, loop.create_future())
        self._queue.append(request)
        self._waiting += len(items)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        try:
            return await request.future
        finally:
            self._waiting -= len(items)

    async def _run(self) -> None:
        while self._queue:
            await asyncio.sleep(self._wait)
            await self._call(self._take())

    def _take(self) -> list[tuple[_Request, list[Any]]]:
        """Takes items of the requests with the key of the oldest; moves unfinished ones back."""
        parts, room, unfinished = [], self._most, []
        key = self._queue[0].key
        for request in [each for each in self._queue if each.key == key]:
            if room == 0:
                break
            items = list(request.items[request.taken : request.taken + room])
            request.taken, room = request.taken + len(items), room - len(items)
            parts.append((request, items))
            self._queue.remove(request)
            if request.taken < len(request.items):
                unfinished.append(request)
        self._queue.extend(unfinished)
        return [part for part in parts if not part[0].future.done()]

    async def _call(self, parts: Sequence[tuple[_Request, list[Any]]]) -> None:
        if not parts:
            return
        items = [item for _, own in parts for item in own]
        loop = asyncio.get_running_loop()
        try:
            results = list(await loop.run_in_executor(self._thread, parts[0][0].call, items))
            if len(results) != len(items):
                raise RunError(f"{len(results)} results of {len(items)} items")
        except Exception as error:
            if len(parts) > 1:  # only the requests that are at fault fail
                for part in parts:
                    await self._call([part])
                return
            (request, _), *_ = parts
            if request in self._queue:
                self._queue.remove(request)
            if not request.future.done():
                request.future.set_exception(error)
            return
        for request, own in parts:
            request.results += results[: len(own)]
            del results[: len(own)]
            if len(request.results) == len(request.items) and not request.future.done():
                request.future.set_result(request.results)
