"""The LanceDB table of a `LanceIndex`: opened, written in one commit, tended.

    id          string
    vector      fixed-size list of float32, of length 1 for "cosine"
    text_hash   string, of the text; "" if it is not known
    fields      JSON
    text        string; null if texts are not stored

What the index was made of is in the metadata of the table's schema.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, RunError, one_line, require
from embed_jax.retrieval.document_chunks import IndexEntry
from embed_jax.retrieval.index_build import ShowProgress
from embed_jax.snapshots import LOCK, is_address, write_lock

TABLE, DESCRIBED = "documents", b"embed-jax"  # the table, and the key of its description
ID, VECTOR, HASH, FIELDS, TEXT = "id", "vector", "text_hash", "fields", "text"  # columns
DISTANCE = "_distance"  # a column of results
BATCH = 4096  # documents written and looked up at a time
INDEXED_FROM = 20_000  # vectors; fewer are all looked at
NEW_SHARE = 0.1  # of the vectors that LanceDB's index does not know yet; with more it is extended
FRAGMENTS = 64  # files of the table; more are joined
KEPT = datetime.timedelta(hours=1)  # how long the files of an old state stay, for its readers


def check_new_index(path: str | Path, replace: bool) -> None:
    """Raises an InputError if an index can't be built in a folder or at an address.

    Args:
        path: the folder, or the address.
        replace: whether an index that is there may be replaced.
    """
    lancedb_library()
    if replace and is_address(path):
        open_database(path)  # fail early: the documents are not encoded yet
    elif lance_exists(path):
        if not replace:
            raise InputError(f"{path}: holds an index already; replace=True builds it anew")
    elif not is_address(path) and Path(path).is_dir():
        own = (LOCK, f"{TABLE}.lance")
        others = sorted(entry.name for entry in Path(path).iterdir() if entry.name not in own)
        if others:
            raise InputError(f"{path}: not an index of LanceDB, it has the file {others[0]!r}")


def lance_exists(path: str | Path) -> bool:
    """Tells whether a folder or address has an index of LanceDB; never creates anything.

    Raises:
        InputError: an address can't be read.
    """
    if not is_address(path):
        return (Path(path) / f"{TABLE}.lance" / "_versions").is_dir()
    try:
        open_lance_table(path)
    except NoIndexError:
        return False
    return True


class DocumentStream:
    """Documents as LanceDB reads them; an error of theirs is raised as it was."""

    def __init__(
        self,
        entries: Iterator[IndexEntry],
        description: Mapping[str, Any],
        progress: ShowProgress,
    ):
        import pyarrow as pa

        self._entries, self._progress = entries, progress
        self._error: Exception | None = None
        columns = {ID: pa.string(), VECTOR: pa.list_(pa.float32(), description["dim"])}
        columns |= {HASH: pa.string(), FIELDS: pa.string(), TEXT: pa.string()}
        self._schema = pa.schema(columns, {DESCRIBED: json.dumps(dict(description)).encode()})

    def reader(self) -> Any:
        """Returns pyarrow's reader of the batches."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    @contextlib.contextmanager
    def errors(self, path: str | Path) -> Iterator[None]:
        """Raises an error of the documents, or one of LanceDB as a RunError."""
        try:
            with as_run_error(path):
                yield
        except RunError:
            if self._error is not None:
                raise self._error from None
            raise

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa

        try:
            while batch := list(itertools.islice(self._entries, BATCH)):
                numbers = np.concatenate([entry.vectors for entry in batch])
                values = pa.FixedSizeListArray.from_arrays(
                    pa.array(numbers.reshape(-1)), numbers.shape[1]
                )
                columns = [
                    pa.array([entry.id for entry in batch], pa.string()),
                    values,
                    pa.array([entry.text_hash for entry in batch], pa.string()),
                    pa.array([json.dumps(dict(entry.fields)) for entry in batch], pa.string()),
                    pa.array([entry.text for entry in batch], pa.string()),
                ]
                yield pa.record_batch(columns, schema=self._schema)
                self._progress("write", len(batch))
        except Exception as error:
            self._error = error
            raise


def lancedb_library() -> Any:
    """Imports LanceDB.

    Raises:
        InputError: it is not installed.
    """
    require("lancedb")
    require("pyarrow")
    import lancedb

    return lancedb


class NoIndexError(InputError):
    """There is no table."""

    def __init__(self, path: str | Path):
        super().__init__(f"{path}: no index, or its first build was interrupted")


def open_database(path: str | Path) -> Any:
    """Connects to a folder or an address.

    Raises:
        InputError: LanceDB is not installed, or can't read what is there.
    """
    library = lancedb_library()
    try:
        return library.connect(str(path))
    except Exception as error:  # LanceDB raises many kinds
        raise InputError(f"{path}: can't be read: {reason_of(error)}") from None


def open_lance_table(path: str | Path) -> Any:
    """Opens the table.

    Raises:
        InputError: no table is there, or it can't be read, or LanceDB is not installed.
    """
    lancedb_library()
    if not is_address(path) and not (Path(path) / f"{TABLE}.lance").is_dir():
        raise NoIndexError(path)
    database = open_database(path)
    try:
        return database.open_table(TABLE)
    except ValueError as error:
        if "was not found" not in str(error):  # of an object store that can't be reached
            raise InputError(f"{path}: can't be read: {reason_of(error)}") from None
        raise NoIndexError(path) from None
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path}: damaged, or can't be read: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Returns what LanceDB says of an error, or the object store below it, in one short line.

    >>> reason_of(ValueError("Generic { body: <Code>404</Code><Message>No bucket</Message> }"))
    'No bucket'
    """
    text = one_line(error)
    stated = re.search(r"<Message>(.+?)</Message>", text) or re.search(r'message: "(.+?)"', text)
    return (stated[1] if stated else text)[:300]


@contextlib.contextmanager
def one_writer(path: str | Path) -> Iterator[None]:
    """Lets one process at a time write to a folder; an object store has no such lock."""
    lancedb_library()
    if is_address(path):
        yield
        return
    with write_lock(Path(path)):
        yield


@contextlib.contextmanager
def as_run_error(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # LanceDB raises many kinds
        raise RunError(f"{path}: LanceDB: {reason_of(error)}") from None


def tend_table(table: Any, description: Mapping[str, Any], path: str | Path) -> None:
    """Makes or extends LanceDB's index of the vectors, and joins small files."""
    from lancedb.index import BTree, IvfPq

    with as_run_error(path):
        table.checkout_latest()
        rows, name = table.count_rows(), vector_index_name(table)
        if not name:
            if rows < INDEXED_FROM:
                return
            dim = description["dim"]
            codes = description["bytes_per_code"] or (dim // 8 if dim % 8 == 0 else dim)
            config = IvfPq(
                distance_type=description["similarity"],
                num_partitions=description["partitions"] or max(int(rows**0.5), 1),
                num_sub_vectors=codes,
            )
            table.create_index(ID, config=BTree())
            table.create_index(VECTOR, config=config)
            return
        stats = table.index_stats(name)
        fragments = table.stats()["fragment_stats"]["num_fragments"]
        if stats.num_unindexed_rows > NEW_SHARE * rows or fragments > FRAGMENTS:
            table.optimize(cleanup_older_than=KEPT)


def vector_index_name(table: Any) -> str:
    """Returns the name of LanceDB's index of the vectors; "" without one."""
    return next((each.name for each in table.list_indices() if VECTOR in each.columns), "")


def vector_matrix(column: Any) -> Float[np.ndarray, "n D"]:
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


def text_bytes(column: Any) -> int:
    """Returns the bytes of texts."""
    import pyarrow.compute

    return pyarrow.compute.sum(pyarrow.compute.binary_length(column)).as_py() or 0


def among_ids(names: Iterable[str]) -> str:
    """Returns the condition that an id is one of these."""
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    return f"{ID} IN ({listed})"
