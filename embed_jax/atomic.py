"""Files that are whole or as they were, whatever ends the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, and is removed when it does not."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def write_whole(path: Path, text: str) -> None:
    """Replaces a file's text."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
