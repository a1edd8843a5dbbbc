"""ArrayRecord files of JSON objects: random access to files larger than memory.

Any number of files are one data set. A record is read from its place in the file in about 0.05 ms,
and nothing is kept in memory. Files should be written with groups of one record, as
`write_array_record` does; from other files a whole group is read for each record.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.sources.base import Located, Records
from embed_jax.data.sources.files import json_object
from embed_jax.data.sources.shards import Shards, find_shards, shard_places
from embed_jax.errors import InputError, one_line, require

ENDING = ".array_record"


def open_source(rest: str, split: str) -> Records:
    """Opens the raw records of `array_record:PATTERN` or `array_record:DIRECTORY`.

    For the names of files see `find_shards`. To find records without a text, `open_records` reads
    all of them once.

    Raises:
        InputError: there are no such files, or one cannot be read; or later, a record is damaged.
    """
    require("grain")
    from grain.sources import ArrayRecordDataSource

    paths = find_shards(rest, split, ENDING)
    sources = []
    for path in paths:
        try:
            sources.append(ArrayRecordDataSource(os.fspath(path)))
        except Exception as error:  # the reader knows only RuntimeError
            raise InputError(
                f"{path}: cannot be read as ArrayRecord: {one_line(error)[:300]}"
            ) from None
    counts = [len(source) for source in sources]
    place = shard_places(paths, counts)
    shards = Shards(paths, np.cumsum(counts), lambda shard, index: sources[shard][index])
    return Records(
        Located(shards),
        lambda item: json_object(item[1], place(item[0])),
        range(len(shards)),
        place=place,
    )


def write_array_record(
    records: Sequence[Mapping[str, Any]], path: str | Path, shards: int = 1
) -> list[Path]:
    """Writes records in order to DIRECTORY/NAME-00000-of-00004.array_record and so on, or to none.

    Args:
        records: the records.
        path: DIRECTORY/NAME.
        shards: the number of files; their numbers of records differ by one at most.

    Returns:
        The files.

    Raises:
        InputError: there are fewer records than shards, or files cannot be written.
    """
    require("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path)
    if not 1 <= shards <= len(records):
        raise InputError(
            f"{path}: expected 1 to {len(records)} shards, one record each at least, found {shards}"
        )
    ends = [len(records) * index // shards for index in range(shards + 1)]
    files = [
        path.with_name(f"{path.name}-{index:05d}-of-{shards:05d}{ENDING}")
        for index in range(shards)
    ]
    beside = [file.with_name(f".{file.name}.{os.getpid()}") for file in files]
    try:
        for index, file in enumerate(beside):
            with contextlib.closing(ArrayRecordWriter(os.fspath(file), "group_size:1")) as writer:
                for record in records[ends[index] : ends[index + 1]]:
                    writer.write(json.dumps(record, ensure_ascii=False).encode())
        for file, final in zip(beside, files, strict=True):
            os.replace(file, final)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written: {one_line(error)[:300]}") from None
    finally:
        for file in beside:
            file.unlink(missing_ok=True)
    return files
