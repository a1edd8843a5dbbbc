"""Files that are whole or as they were, whatever ends the process."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def plain_json(value: Any) -> Any:
    """A value with null for each number that is not finite, since JSON knows none, and tuples as lists."""
    if isinstance(value, dict):
        return {name: plain_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
