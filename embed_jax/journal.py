"""An append-only file of lines that survives whatever ends the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from embed_jax.errors import InputError, RunError


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line with its end) up to a last line that was cut off.

    Raises:
        InputError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield line_number, line
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


class Journal:
    """A file that one process at a time appends lines to; a line is on disk when `append` returns.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, read_line: Callable[[int, bytes], None]):
        """Opens or creates the file, and drops a last line that was cut off.

        Args:
            path: the file.
            read_line: gets the number and the bytes of each line; raises for a damaged one.

        Raises:
            InputError: the file can't be written, or is in use by another process; see `read_line`.
        """
        import fcntl

        self.path = path
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            try:
                # The system releases the lock however the process ends.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{path}: in use by another run with the same output") from None
            # The file may have been removed or replaced between opening and locking.
            if not path.exists() or path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
                raise InputError(
                    f"{path}: another run with the same output ended just now; try again"
                )
            size = 0
            for line_number, line in whole_lines(path):
                read_line(line_number, line)
                size += len(line)
            self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise

    def append(self, line: bytes) -> None:
        """Adds a line to the file.

        Args:
            line: ends with the only line feed in it.

        Raises:
            RunError: it can't be written.
        """
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Closes the file, and so lets other processes use it."""
        with contextlib.suppress(OSError):  # `append` has reported what could not be written
            self._file.close()
