"""Many requests to a server at a time, with growing waits between tries and a limit a minute."""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, runtime_checkable

from embed_jax.errors import InputError, RunError
from embed_jax.remote.server import BadRequest, Failed


class Stopped(Exception):
    """The work was given up elsewhere."""


@dataclasses.dataclass(frozen=True)
class Retries:
    """The number and the times of repetitions of a failed request.

    The wait before try i + 1 is min(first * 2^i, longest) times a random number from 1/2 to 1, and
    at least the server's Retry-After. A Retry-After beyond `patience` ends the work.

    Attributes:
        count: tries after the first.
        first: seconds before the second try, times a random number.
        longest: the largest wait in seconds that is not the server's.
        patience: the largest wait in seconds that a server may ask for.
    """

    count: int = 5
    first: float = 1.0
    longest: float = 60.0
    patience: float = 600.0

    def wait(self, tried: int, chance: random.Random) -> float:
        """Returns the seconds to wait after `tried` tries, drawn by `chance`."""
        return min(self.first * 2**tried, self.longest) * chance.uniform(0.5, 1)


class Pace:
    """The times at which requests may start.

    They are evenly spaced, and no request starts while the server asks to wait.
    """

    def __init__(self, per_minute: float = 0):
        """Starts at most `per_minute` requests a minute, evenly spaced; 0: no limit."""
        self._interval = 60 / per_minute if per_minute else 0.0
        self._last = self._paused_until = float("-inf")
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def wait(self, seconds: float = 0) -> None:
        """Returns when a request may start, after `seconds` at the earliest.

        Raises:
            Stopped: after `stop`.
        """
        earliest = time.monotonic() + seconds
        self._sleep_until(lambda: earliest)
        with self._lock:
            start = self._last = max(self._last + self._interval, time.monotonic())
        self._sleep_until(lambda: max(start, self._paused_until))

    def pause(self, seconds: float) -> None:
        """Lets no request start for some seconds."""
        with self._lock:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def stop(self) -> None:
        """Lets no request start any more: `wait` raises Stopped."""
        self._stopped.set()

    def _sleep_until(self, when: Callable[[], float]) -> None:
        while (rest := when() - time.monotonic()) > 0:
            self._stopped.wait(rest)
            if self._stopped.is_set():
                break
        if self._stopped.is_set():
            raise Stopped


@runtime_checkable
class PromptEndpoint(Protocol):
    """A Server that answers prompts, with its own form of requests.

    Attributes:
        reached: whether it ever answered.
    """

    reached: bool

    def complete(self, prompt: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt, the function that reads its answer, and where the prompt comes from ("FILE:LINE").

    `parse` raises Failed for an answer that does not have the requested form.
    """

    key: str
    prompt: Any
    parse: Callable[[Any], Any]
    where: str


def ask(endpoint: PromptEndpoint, job: Job, retries: Retries, pace: Pace, seed: int = 0) -> Any:
    """Returns the parsed answer to one prompt, after as many tries as it takes.

    Args:
        endpoint: the server.
        job: the prompt.
        retries: how often and when to try again.
        pace: when requests may start.
        seed: of the random waits.

    Raises:
        Failed: if no try gave an answer; says how many there were.
        InputError, RunError: if every other prompt would fail too.
        Stopped: if `pace` was stopped.

    >>> class Shout:
    ...     reached = True
    ...     def complete(self, prompt):
    ...         return prompt.upper()
    >>> ask(Shout(), Job("1", "hello", str.strip, "FILE:1"), Retries(), Pace())
    'HELLO'
    """
    chance = random.Random(f"{seed}:{job.key}")
    wait = 0.0
    for tried in range(retries.count + 1):
        pace.wait(wait)
        try:
            return job.parse(endpoint.complete(job.prompt))
        except BadRequest as error:
            raise InputError(f"{job.where}: {error}") from None
        except Failed as error:
            failure = error
        if failure.unreachable and not endpoint.reached:
            raise InputError(str(failure))
        if failure.wait is not None and failure.wait > retries.patience:
            raise RunError(
                f"{failure} (it asks to wait {failure.wait:.0f} s: run the same command again then)"
            )
        wait = retries.wait(tried, chance)
        if failure.wait is not None:
            pace.pause(failure.wait)
    if failure.unreachable:
        raise RunError(f"{failure} (after {retries.count + 1} tries)")
    raise Failed(f"{failure} (after {retries.count + 1} tries)")


def ask_all(
    endpoint: PromptEndpoint,
    jobs: Iterable[Job],
    *,
    concurrency: int = 4,
    retries: Retries | None = None,
    per_minute: float = 0,
    seed: int = 0,
) -> Generator[tuple[Job, Any], None, None]:
    """Asks many prompts at a time and yields (job, parsed answer or Failed) as they arrive.

    Args:
        endpoint: the server.
        jobs: the prompts.
        concurrency: requests at a time.
        retries: how often and when to try again.
        per_minute: requests; 0: no limit.
        seed: of the random waits.

    Raises:
        InputError, RunError: the first of `ask`; requests in progress are given up.

    >>> class Shout:
    ...     reached = True
    ...     def complete(self, prompt):
    ...         return prompt.upper()
    >>> jobs = [Job(text, text, str.strip, "FILE:1") for text in ("a", "b")]
    >>> sorted(answer for _, answer in ask_all(Shout(), jobs))
    ['A', 'B']
    """
    pace, lock, todo = Pace(per_minute), threading.Lock(), iter(jobs)
    done: queue.Queue[tuple[Job | None, Any]] = queue.Queue()

    def work() -> None:
        try:
            while True:
                with lock:
                    job = next(todo, None)
                if job is None:
                    break
                try:
                    done.put((job, ask(endpoint, job, retries or Retries(), pace, seed)))
                except Failed as failure:
                    done.put((job, failure))
        except BaseException as error:  # whatever it is, the thread that waits must hear of it
            done.put((None, error))
        else:
            done.put((None, None))

    # Daemons: who interrupts the program does not wait for answers under way.
    for _ in range(concurrency):
        threading.Thread(target=work, daemon=True).start()
    try:
        working = concurrency
        while working:
            job, answer = done.get()
            if job is not None:
                yield job, answer
                continue
            working -= 1
            if answer is not None:
                raise answer
    finally:
        pace.stop()
