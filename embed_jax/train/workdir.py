"""A run's directory, for one run at a time, one config, one data set; records its sessions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.config import NAMED, Experiment, flatten, to_json
from embed_jax.errors import InputError

# What may change between a run and its resumption. Where and in which form it is computed changes
# no more than the last bits, as long as the groups and shares of a batch (in the fingerprint of the
# data) stay.
FREE_FIELDS: tuple[str, ...] = ("tracking.", "checkpoint.", "hosts.", "loss.form")
FREE_FIELDS += tuple(
    f"train.{name}"
    for name in ("log_every", "profile", "devices", "fsdp", "tensor", "fsdp_gather", "extend")
)
LENGTHS = ("train.steps", "train.epochs")  # what `train.extend` allows to grow


@contextlib.contextmanager
def open_workdir(workdir: Path, config: Experiment) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Creates and locks a run's directory, before anything is made of the data.

    It yields a function of the data's fingerprint, which is everything that the order and content
    of the data depend on. The function writes `config.json` and `data.json`, or checks the data
    against them. A directory that this created is removed again if the run ends before that.

    Args:
        workdir: the directory.
        config: the run's settings.

    Raises:
        InputError: if it can't be written, is in use, or holds what another config gave; of the
            function: or other data.
    """
    import fcntl

    new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            # The system releases it however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(
                f"--workdir={workdir}: in use by another run (process {lock.read().strip()})"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        fixed = _fixed_settings(config)
        other_config = list(_changes(workdir / "config.json", fixed, "config", config.train.extend))
        _refuse_changes(workdir, other_config)

        def check_data(fingerprint: dict[str, Any]) -> None:
            other_data = list(_changes(workdir / "data.json", fingerprint, "data"))
            _refuse_changes(workdir, other_data)
            if other_config or other_data:  # of a run that saved nothing, so this is a new one
                for file in (workdir / "mined").glob("[1-9]*"):  # by a model that is no more
                    file.unlink()
                (workdir / "wandb_id").unlink(missing_ok=True)
                (workdir / "wandb_step").unlink(missing_ok=True)
            _write(workdir / "data.json", fingerprint)
            _write(workdir / "config.json", json.loads(to_json(config)))

        try:
            yield check_data
        finally:
            if new and [file.name for file in workdir.iterdir()] == ["lock"]:
                (workdir / "lock").unlink()
                workdir.rmdir()


def _refuse_changes(workdir: Path, changes: Sequence[str]) -> None:
    """Raises an InputError for the first change of a run that has saved something."""
    if changes and _holds_work(workdir):
        longer = any(f"config.{name} was" in changes[0] for name in LENGTHS)
        advice = " (or --extend it to more steps or epochs)" if longer else ""
        raise InputError(f"{changes[0]}; a run is resumed unchanged{advice}: use another --workdir")


def _fixed_settings(config: Experiment) -> dict[str, Any]:
    """Returns the fields that may not change between a run and its resumption."""
    settings = flatten(config)
    return {name: value for name, value in settings.items() if not name.startswith(FREE_FIELDS)}


def settings_digest(config: Experiment, data: Iterable[Any]) -> str:
    """Returns a digest of the settings and data that a file made before training depends on.

    The settings are those that can't change between a run and its resumption. Fields that are at
    their default count as none, so that a version with more fields finds the files of another.

    Args:
        config: the run's settings.
        data: records or texts.
    """
    settings = _fixed_settings(config)
    usual = _defaults(settings)
    relevant = {
        name: value
        for name, value in settings.items()
        if not name.startswith((*LENGTHS, "eval.")) and value != usual.get(name)
    }
    digest = hashlib.blake2b(json.dumps(relevant, sort_keys=True).encode(), digest_size=4)
    for item in data:
        digest.update(repr(item).encode())
    return digest.hexdigest()


class Chronicle:
    """`run.json`: the experiment and its sessions, each a start or a resumption.

    A session has steps, seconds, devices and versions. It is for people and for the model's card:
    nothing of the training depends on it.
    """

    def __init__(
        self, path: Path | None, start: int, resumed: bool, experiment: str = "", **about: Any
    ):
        """Begins a session; its seconds count from here.

        Args:
            path: None: nothing is written.
            start: the step that it starts from.
            resumed: whether the sessions before it are this run's too.
            experiment: the module of `experiments` that was launched; "": none, as from Python.
            about: more fields of a session: devices, hosts, versions.

        Raises:
            InputError: the file is there and damaged.
        """
        self._path, self._began = path, time.monotonic()
        self._experiment = experiment
        self._session = {"start": start, "end": start, "seconds": 0.0, **about}
        self._earlier = _sessions(path) if path is not None and resumed else []

    def write(self, step: int) -> None:
        """Records that the session came as far as this step."""
        if self._path is None:
            return
        self._session |= {"end": step, "seconds": round(time.monotonic() - self._began, 3)}
        _write(
            self._path,
            {"experiment": self._experiment, "sessions": [*self._earlier, self._session]},
        )


def _sessions(path: Path) -> list[Mapping[str, Any]]:
    """Reads the sessions in the file that came further than they began."""
    if not path.exists():  # of a run that is older than this file
        return []
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"]
        return [session for session in sessions if session["end"] > session["start"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no record of a run's sessions ({error!r}); without the file it goes on"
        ) from None


def _holds_work(workdir: Path) -> bool:
    return (workdir / "model").exists() or any((workdir / "checkpoints").glob("[0-9]*"))


def _changes(path: Path, fixed: dict[str, Any], what: str, extend: bool = False) -> Iterator[str]:
    """Yields the differences from the file, if it exists, a line each.

    With `extend` a run may become longer.
    """
    if not path.exists():
        return
    try:
        before = _flatten_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); use another --workdir") from error
    if what == "config":
        before = _defaults(fixed) | before
    # Sources of a mixture and groups of parameters may also be gone.
    named = tuple(f"{part}." for part in NAMED)
    gone = [name for name in before if name.startswith(named) and name not in fixed]
    for name, value in (_flatten_json(fixed) | dict.fromkeys(gone)).items():
        longer = extend and name in LENGTHS and 0 < before.get(name, 0) < value
        if before.get(name) != value and not longer:
            yield f"{path}: {what}.{name} was {before.get(name)!r} and is {value!r} now"


def _defaults(names: Iterable[str]) -> dict[str, Any]:
    """Returns the defaults of fields that a `config.json` does not have yet.

    Such a file is older than the fields.
    """
    usual = flatten(Experiment())
    of_named = {f"{part}.": vars(kind()) for part, kind in NAMED.items() if kind is not Experiment}
    defaults = {}
    for name in names:
        part = next((part for part in of_named if name.startswith(part)), "")
        field, known = (name.rpartition(".")[2], of_named[part]) if part else (name, usual)
        if field in known:
            defaults[name] = known[field]
    return defaults


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _flatten_json(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            _flatten_json(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat
