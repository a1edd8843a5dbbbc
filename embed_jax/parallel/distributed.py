"""Several hosts: joining them, and ending soon and in one line when one of them is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax

from embed_jax.config import Hosts
from embed_jax.errors import InputError, one_line, report

# What JAX itself allows for beyond our own time-out before it aborts the process.
GRACE = 30  # seconds
RESUMES = "the same command resumes from the last checkpoint"


@contextlib.contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Within it, `jax.devices()` are those of all hosts. Enter it before anything touches a device.

    Ends the process itself if the work fails while other hosts are there, since they would be waited for; and ends it
    when another host is lost, at most `hosts.heartbeat_timeout` seconds after its last sign of life.

    Args:
        hosts: `coordinator` "": this process alone; "auto": those of a SLURM job, a TPU pod, Open MPI or Kubernetes, as
            JAX detects them; "ADDRESS:PORT" of host 0, with `count` and `index`.

    Raises:
        InputError: if the hosts can't be joined.
    """
    if not hosts.coordinator:
        yield
        return
    _join(hosts)
    stopped, last_words = threading.Event(), _LastWords()
    threading.Thread(
        target=_watch, args=(hosts.heartbeat_timeout, stopped, last_words), daemon=True
    ).start()
    try:
        yield
    except BaseException as error:
        stopped.set()
        last_words.withdraw()
        if jax.process_count() == 1:
            raise
        status = report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    stopped.set()
    last_words.withdraw()
    jax.distributed.shutdown()  # waits for all


def _join(hosts: Hosts) -> None:
    explicit = {}
    if hosts.coordinator != "auto":
        if hosts.count < 1 or not 0 <= hosts.index < hosts.count:
            raise InputError(
                f"config.hosts: a coordinator needs a count of hosts and an index below it, found count {hosts.count} "
                f"and index {hosts.index}"
            )
        explicit = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.count,
            "process_id": hosts.index,
        }
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=hosts.join_timeout,
            heartbeat_timeout_seconds=hosts.heartbeat_timeout + GRACE,
        )
    except Exception as error:  # no cluster, a bad address, a host that never came
        raise InputError(
            f"config.hosts.coordinator={hosts.coordinator!r}: cannot join: {one_line(error)}"
        ) from error


class _LastWords:
    """A small process that says in one line that this one was ended, unless that is withdrawn.

    JAX aborts a process at once when it loses the coordinator, with pages of addresses and no chance to say more.
    """

    def __init__(self) -> None:
        me = jax.process_index()
        line = f"error: host {me} was ended, most likely since host 0, the coordinator, was lost; {RESUMES}"
        program = f"import sys\nif not sys.stdin.read(): print({line!r}, file=sys.stderr)"
        # Of a session of its own, it outlives what ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def withdraw(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate("all is well")


def _watch(timeout: int, stopped: threading.Event, last_words: _LastWords) -> None:
    """Tells the other hosts every second that this one lives; ends the process if one of them does not."""
    from jax._src.distributed import (
        global_state,
    )  # the store that JAX keeps its hosts together with

    client, me, others = global_state.client, jax.process_index(), set(range(jax.process_count()))
    others.discard(me)
    last = {
        host: ("", time.monotonic()) for host in others
    }  # its latest sign, and when it was new to us
    beat = 0
    while not stopped.wait(1.0):
        beat += 1
        try:
            client.key_value_set(f"embed_jax/alive/{me}", str(beat), allow_overwrite=True)
            for host in others:
                sign = client.key_value_try_get(f"embed_jax/alive/{host}")
                if sign != last[host][0]:
                    last[host] = (sign, time.monotonic())
        except Exception as error:  # a key not there yet, or no coordinator to ask
            if "NOT_FOUND" not in str(error) and not stopped.is_set():
                _end(f"lost the coordinator, host 0 ({one_line(error)[:100]})", last_words)
        lost = [host for host, (_, when) in last.items() if time.monotonic() - when > timeout]
        if lost and not stopped.is_set():
            _end(
                f"lost host {', '.join(map(str, lost))}: no sign of life for {timeout} s",
                last_words,
            )


def _end(message: str, last_words: _LastWords) -> None:
    last_words.withdraw()
    print(f"error: {message}; {RESUMES}", file=sys.stderr, flush=True)
    os._exit(1)


def wait_for_hosts(what: str) -> None:
    """Returns when every host has come here, so that all may read what the first one wrote before.

    Args:
        what: names the place in the program; every host gives the same.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)
