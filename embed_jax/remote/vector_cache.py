"""Embeddings by key in a file that survives whatever ends the process."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, RunError

LINE = re.compile(rb"([0-9a-f]{32}) ([A-Za-z0-9+/]+={0,2})\n")


class VectorCache:
    """An append-only file of lines "KEY FLOAT32_IN_BASE64".

    The vectors stay on disk until they are read. Vectors given to `add` are on disk when it
    returns. A line that was cut off or damaged is not a line: its vector is missing, and nothing
    else. Several processes may add to one file; each sees the lines that were there when it opened
    the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = VectorCache(Path(directory) / "vectors")
    ...     cache.add(["0" * 32], np.ones((1, 2)))
    ...     print("0" * 32 in cache, cache["0" * 32])
    True [1. 1.]
    """

    def __init__(self, path: Path):
        """Opens the file, or makes it.

        Raises:
            InputError: if that is not possible.
        """
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)
            with path.open("rb") as file:
                self._places, end = self._read(file), file.tell()
            if end and os.pread(self._file.fileno(), 1, end - 1) != b"\n":
                # Ends the line that was cut off; with "?" it can't be taken for a whole one.
                self._file.write(b"?\n")
        except OSError as error:
            raise InputError(f"{path}: no cache can be kept there: {error.strerror}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Float[np.ndarray, " D"]:
        start, length = self._places[key]
        line = LINE.fullmatch(os.pread(self._file.fileno(), length, start))
        if not line or line[1].decode() != key:
            raise RunError(f"{self.path}: changed by something else while in use")
        return np.frombuffer(base64.b64decode(line[2]), "<f4")

    def add(self, keys: Sequence[str], vectors: Float[np.ndarray, "n D"]) -> None:
        """Adds vectors: all of them or, if the process is killed, perhaps the first ones.

        Raises:
            RunError: if they can't be written.
        """
        rows = np.asarray(vectors, "<f4")
        lines = [
            b"%s %s\n" % (key.encode(), base64.b64encode(row.tobytes()))
            for key, row in zip(keys, rows, strict=True)
        ]
        rest = b"".join(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            end = self._file.tell()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None
        for key, line in zip(reversed(keys), reversed(lines), strict=True):
            end -= len(line)
            self._places[key] = (end, len(line))

    @staticmethod
    def _read(file) -> dict[str, tuple[int, int]]:
        """Returns (first byte, length) of each whole line, by key."""
        places, start = {}, 0
        for text in file:
            line = LINE.fullmatch(text)
            # Whole base64 has 4 letters for 3 bytes; whole vectors have 4 bytes a number.
            if (
                line
                and len(line[2]) % 4 == 0
                and (len(line[2]) // 4 * 3 - line[2].count(b"=")) % 4 == 0
            ):
                places[line[1].decode()] = (start, len(text))
            start += len(text)
        return places
