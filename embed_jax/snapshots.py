"""A folder of files that changes as a whole, or not at all, whatever ends the process.

    PATH/index.json      names the current snapshot, and says what it is
    PATH/snapshot-7/     its files, which never change
    PATH/.lock           held by the one process that writes

A writer fills a new snapshot, in which unchanged files are hard links, and then replaces the
description: from then on readers see the new state, and before they see the old one. What a killed
writer left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from embed_jax.atomic import file_lock, replaced
from embed_jax.errors import InputError, RunError

T = TypeVar("T")
DESCRIPTION, LOCK, PREFIX = "index.json", ".lock", "snapshot-"


def is_address(path: str | Path) -> bool:
    """Tells whether a path is an address, such as "s3://bucket/index", and not a folder.

    Raises:
        InputError: for an address as a `Path`, which has lost a slash and would be a folder "s3:".
    """
    if isinstance(path, Path):
        if path.parts and re.fullmatch(r"[a-z][a-z0-9+]+:", path.parts[0]):
            raise InputError(f"{path}: expected an address as a string, found a Path")
        return False
    return "://" in path


class Snapshots:
    """The snapshots of one folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path, format: str):
        """Does not touch the folder yet.

        Args:
            path: the folder.
            format: a line that marks the folders of one kind, such as "embed-jax index 1".

        Raises:
            InputError: the path is an address.
        """
        if is_address(path):
            raise InputError(
                f"{path}: expected a folder, found an address; only an index of LanceDB can be at "
                "one: kind 'lance'"
            )
        self.path, self._format = Path(path), format

    def exists(self) -> bool:
        """Tells whether the folder has a whole snapshot."""
        return (self.path / DESCRIPTION).is_file()

    def version(self) -> tuple[int, int] | None:
        """Returns a value that changes with each write; None: there is no snapshot."""
        try:
            state = (self.path / DESCRIPTION).stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns

    def read(self, load: Callable[[dict[str, Any], Path], T]) -> T:
        """Reads the current snapshot.

        Args:
            load: gets the description and the folder of the snapshot. It is called again if a
                writer has removed the folder meanwhile.

        Raises:
            InputError: there is no snapshot, it is of another format, or files are missing or have
                another size than they were written with; by `load`.
        """
        while True:
            content = self._description()
            folder = self.path / content["snapshot"]
            try:
                for name, size in content["files"].items():
                    actual = (folder / name).stat().st_size
                    if actual != size:
                        raise InputError(f"{folder / name}: damaged: {actual} bytes, not {size}")
                return load(content["description"], folder)
            except FileNotFoundError as error:
                if self._description()["snapshot"] == content["snapshot"]:
                    raise InputError(f"{error.filename}: missing, the index is damaged") from None

    @contextlib.contextmanager
    def written(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields the folder of a new snapshot, and a description to fill in.

        Both become the current state when the block ends without an error. After an error the old
        state stays, and the new folder is removed. One process at a time may write.

        Raises:
            InputError: another process writes, or the folder has files of something else.
            RunError: the files can't be written.
        """
        with self._locked():
            last = self._description()["snapshot"] if self.exists() else f"{PREFIX}0"
            for folder in self.path.glob(f"{PREFIX}*"):
                if folder.name != last:
                    shutil.rmtree(folder, ignore_errors=True)
            folder = self.path / f"{PREFIX}{int(last.removeprefix(PREFIX)) + 1}"
            description: dict[str, Any] = {}
            try:
                folder.mkdir()
                yield folder, description
                self._commit(folder, description)
            except OSError as error:
                where = error.filename or folder
                raise RunError(f"{where}: cannot be written: {error.strerror}") from None
            finally:
                current = self._description()["snapshot"] if self.exists() else None
                for other in self.path.glob(f"{PREFIX}*"):
                    if other.name != current:
                        shutil.rmtree(other, ignore_errors=True)

    def _commit(self, folder: Path, description: Mapping[str, Any]) -> None:
        names = sorted(entry.name for entry in folder.iterdir())
        for name in names:
            _flush(folder / name)
        _flush(folder)
        content = {
            "format": self._format,
            "snapshot": folder.name,
            "description": description,
            "files": {name: (folder / name).stat().st_size for name in names},
        }
        with replaced(self.path / DESCRIPTION) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            _flush(beside)
        _flush(self.path)

    def _description(self) -> dict[str, Any]:
        file = self.path / DESCRIPTION
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            name, sizes, described = (content[key] for key in ("snapshot", "files", "description"))
            number = name.removeprefix(PREFIX)
            is_whole = (
                number.isdecimal() and isinstance(sizes, dict) and isinstance(described, dict)
            )
            is_ours = is_whole and content["format"] == self._format
        except FileNotFoundError:
            raise InputError(f"{self.path}: no index, or its first build was interrupted") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            is_ours = False
        if not is_ours:
            raise InputError(f"{file}: not the description of a {self._format!r}")
        return content

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [
                entry.name
                for entry in self.path.iterdir()
                if entry.name != LOCK and not entry.name.startswith((PREFIX, f".{DESCRIPTION}."))
            ]
            if others and not self.exists():
                raise InputError(f"{self.path}: not an index, it has the file {min(others)!r}")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from None
        with write_lock(self.path):
            for beside in self.path.glob(f".{DESCRIPTION}.*"):
                beside.unlink(missing_ok=True)
            yield


@contextlib.contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time write to a folder, which is created.

    Raises:
        InputError: another process writes, or the folder can't be written to.
    """
    with file_lock(folder / LOCK) as is_mine:
        if not is_mine:
            raise InputError(f"{folder}: another process is writing to it")
        yield


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a second name of the file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
