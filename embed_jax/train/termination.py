"""Signals that end a run after a step, with what it has saved."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Termination:
    """Tells whether the run is to end after this step, and by which signal.

    SIGTERM (pre-emption) and the first Ctrl-C are noted instead of ending the process; a second
    Ctrl-C interrupts it. Several hosts agree on a step to stop at.
    """

    def __init__(self, say: Callable[[str], None]):
        self.signal = ""
        self._say = say
        self._several = jax.process_count() > 1

    def __call__(self, step: int) -> bool:
        if self._several:
            from jax.experimental.multihost_utils import reached_preemption_sync_point

            if reached_preemption_sync_point(step):
                self.signal = self.signal or "SIGTERM"
                return True
            return False
        return bool(self.signal)

    def on_sigterm(self, *_: Any) -> None:
        self.signal = "SIGTERM"

    def on_interrupt(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal = "Ctrl-C"
        self._say("Ctrl-C: saving after this step; a second one ends the run at once")
        if self._several:  # JAX tells the other hosts of SIGTERM, by its own handler
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def handle_signals(say: Callable[[str], None]) -> Iterator[Termination]:
    """Handles SIGTERM and Ctrl-C within it, as `Termination` says."""
    termination = Termination(say)
    handlers = {signal.SIGINT: termination.on_interrupt}
    if jax.process_count() == 1:
        handlers[signal.SIGTERM] = termination.on_sigterm
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    try:
        yield termination
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
