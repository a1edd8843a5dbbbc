"""Files that are replaced as a whole, or not at all, whatever ends the process."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a file beside `path` that replaces it when the block ends without an error.

    After an error it is removed.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yields whether this process has the lock of a file, which is created with its folder.

    The system releases it however the process ends.

    Args:
        path: the file.
        wait: until another process that has the lock releases it.

    Raises:
        InputError: the file can't be written to.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = True
        except OSError:
            is_mine = False
        yield is_mine


def write_whole(path: Path, text: str) -> None:
    """Replaces a file's text."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def plain_json(value: Any) -> Any:
    """Returns a value that JSON can hold.

    Numbers that are not finite become null, and tuples become lists.
    """
    if isinstance(value, dict):
        return {name: plain_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
