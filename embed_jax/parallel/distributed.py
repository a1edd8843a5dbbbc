"""Several hosts: joining them, and ending soon and in one line when one of them is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from embed_jax.config import Hosts
from embed_jax.errors import InputError, one_line, report

# What JAX itself allows for beyond our own time-out before it aborts the process.
GRACE = 30  # seconds
OWN_WORDS = 3.0  # seconds that a host has to say what ends it, when another one has ended
GOODBYE = 10.0  # seconds more that the coordinator waits for the others to end
ALIVE, ENDED = "embed_jax/alive", "embed_jax/ended"  # keys of the hosts' store
# Of the index and the number of processes.
PROCESS_VARIABLES = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
RESUMES = "the same command resumes from the last checkpoint"


@contextlib.contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Joins several hosts: within it, `jax.devices()` are those of all hosts.

    Enter it before anything touches a device. It ends the process itself if the work fails while
    other hosts are there, since they would wait for it; and if another host is lost, at most
    `hosts.heartbeat_timeout` seconds after its last sign of life.

    Args:
        hosts: `coordinator` "": this process only; "auto": those of a SLURM job, a TPU pod, Open
            MPI or Kubernetes, as JAX detects them; "ADDRESS:PORT" of host 0, with `count` and
            `index`.

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
        if jax.process_count() == 1:
            last_words.withdraw()
            raise
        _leave(report(error), one_line(error), last_words)
    stopped.set()
    last_words.withdraw()
    jax.distributed.shutdown()  # waits for all


def _join(hosts: Hosts) -> None:
    explicit: dict[str, Any] = {}
    if hosts.coordinator != "auto":
        if hosts.count < 1 or not 0 <= hosts.index < hosts.count:
            raise InputError(
                "config.hosts: a coordinator needs a count of hosts and an index below it, found "
                f"count {hosts.count} and index {hosts.index}"
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


def process_position() -> tuple[int, int]:
    """Returns the index of this process, and how many there are, without joining the others.

    They are the process index and count that `jax.distributed` takes from the variables of a SLURM
    job or of Open MPI. Processes that did join would all end when one of them is lost.

    Raises:
        InputError: neither of them started this process.
    """
    for index, count in PROCESS_VARIABLES:
        if index in os.environ and count in os.environ:
            return int(os.environ[index]), int(os.environ[count])
    names = " nor ".join(index for index, _ in PROCESS_VARIABLES)
    raise InputError(f"auto: neither {names} is set, by SLURM or Open MPI; expected I/N")


class _LastWords:
    """A small process that says in one line that this one was ended, unless that is withdrawn.

    JAX aborts a process at once when it loses the coordinator, with pages of addresses and no
    chance to say more.
    """

    def __init__(self) -> None:
        me = jax.process_index()
        line = (
            f"error: host {me} was ended, most likely since host 0, the coordinator, was lost; "
            f"{RESUMES}"
        )
        program = f"import sys\nif not sys.stdin.read(): print({line!r}, file=sys.stderr)"
        # In its own session, it outlives what ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def withdraw(self) -> None:
        """Ends the process without its line."""
        with contextlib.suppress(OSError):
            self._process.communicate("all is well")


def _client():
    """Returns the store that JAX keeps its hosts together with."""
    from jax._src.distributed import global_state

    return global_state.client


def _read(key: str) -> str:
    """Reads the value of a key of the hosts' store; "" if it is not there."""
    try:
        return _client().key_value_try_get(key)
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return ""
        raise


def _watch(timeout: int, stopped: threading.Event, last_words: _LastWords) -> None:
    """Tells the other hosts every second that this one lives; ends the process if one does not."""
    me, others = jax.process_index(), set(range(jax.process_count()))
    others.discard(me)
    last = {
        host: ("", time.monotonic()) for host in others
    }  # its latest sign, and when it was new to us
    beat = 0
    while not stopped.wait(1.0):
        beat += 1
        try:
            _client().key_value_set(f"{ALIVE}/{me}", str(beat), allow_overwrite=True)
            for host in others:
                sign = _read(f"{ALIVE}/{host}")
                if sign != last[host][0]:
                    last[host] = (sign, time.monotonic())
            ended = {host: message for host in others if (message := _read(f"{ENDED}/{host}"))}
        except Exception as error:  # no coordinator to ask
            if not stopped.is_set():
                _end(f"lost the coordinator, host 0 ({one_line(error)[:100]})", last_words)
            return
        # What ends one host, such as a file that is not there, often ends all: let each say it.
        if ended and not stopped.wait(OWN_WORDS):
            host, message = min(ended.items())
            _end(f"host {host} ended: {message}", last_words)
        lost = [host for host, (_, when) in last.items() if time.monotonic() - when > timeout]
        if lost and not stopped.is_set():
            _end(
                f"lost host {', '.join(map(str, lost))}: no sign of life for {timeout} s",
                last_words,
            )


def _end(message: str, last_words: _LastWords) -> None:
    print(f"error: {message}; {RESUMES}", file=sys.stderr, flush=True)
    _leave(1, message, last_words)


def _leave(status: int, message: str, last_words: _LastWords) -> NoReturn:
    """Ends this process, which has said why, and tells the other hosts.

    The coordinator goes last: JAX aborts a host that loses it, with pages of addresses.
    """
    last_words.withdraw()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):  # without a coordinator, nobody can be told
        me, others = jax.process_index(), range(1, jax.process_count())
        _client().key_value_set(f"{ENDED}/{me}", message or "ended", allow_overwrite=True)
        until = time.monotonic() + OWN_WORDS + GOODBYE
        while me == 0 and time.monotonic() < until:
            if all(_read(f"{ENDED}/{host}") for host in others):
                time.sleep(1.0)  # they are on their way out
                break
            time.sleep(0.1)
    os._exit(status)


def wait_for_hosts(what: str) -> None:
    """Waits until every host has come here.

    All may then read the files that the first one wrote before.

    Args:
        what: names the place in the program; every host gives the same.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)
