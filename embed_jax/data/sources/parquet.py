"""Parquet files, one or many: random access through a memory-mapped copy.

Parquet is compressed in groups of many rows, of which none can be read alone. On first use `datasets` therefore writes
a copy as Arrow to its cache (HF_DATASETS_CACHE): disk for the columns' uncompressed size, and the time to write it
once. Later uses find the copy. A row is then read where it lies, about 0.02 ms, and memory holds none of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embed_jax.data.sources import Records
from embed_jax.data.sources.files import LISTS, TEXTS, VALUES
from embed_jax.data.sources.shards import find_shards, sharded_records
from embed_jax.errors import InputError, one_line


def open_source(rest: str, split: str) -> Records:
    """The records of `parquet:PATTERN` or `parquet:DIRECTORY`; see `find_shards`. Columns of no use are not copied.

    Raises:
        InputError: no such files, one that cannot be read or has other columns than the first; for a record, when it
            is read, see `sharded_records`.
    """
    import datasets

    paths = find_shards(rest, split, ".parquet")
    columns, counts = _columns_and_counts(paths)
    try:
        files = [os.path.abspath(path) for path in paths]
        found = datasets.load_dataset("parquet", data_files=files, columns=columns, split="train")
    except Exception as error:  # from a full disk to a damaged page
        cause = error.__cause__ or error
        raise InputError(f"parquet:{rest}: cannot be read: {one_line(cause)[:300]}") from None
    starts = [sum(counts[:shard]) for shard in range(len(counts))]
    return sharded_records(paths, counts, lambda shard, number: found[starts[shard] + number], _row)


def _columns_and_counts(paths: list[Path]) -> tuple[list[str], list[int]]:
    """The columns of use, which all files have, and how many rows each file holds; from the files' footers."""
    import pyarrow
    import pyarrow.parquet

    columns: list[str] = []
    counts = []
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names, rows = file.schema_arrow.names, file.metadata.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{path}: cannot be read as Parquet: {one_line(error)[:300]}"
            ) from None
        known = [
            name
            for name in names
            if name in TEXTS | VALUES | LISTS.keys() or name.startswith("negative")
        ]
        columns = columns or known
        if set(known) != set(columns):
            others = ", ".join(columns)
            raise InputError(
                f"{path}: found the columns {', '.join(names)}; the files before it have {others}"
            )
        if not known:
            raise InputError(f"{path}: no column of use: found {', '.join(names)}")
        counts.append(rows)
    return columns, counts


def _row(value: dict[str, Any], where: str) -> dict[str, Any]:
    return value
