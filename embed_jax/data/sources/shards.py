"""What sources of many files share: which files, where record i lies, and the same records as from one JSONL file."""

from __future__ import annotations

import dataclasses
import functools
import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.pairs import kind_of
from embed_jax.data.sources import Records
from embed_jax.data.sources.files import check_fields, finite, from_json
from embed_jax.errors import InputError

SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Records of several files in the order of the files.

    Attributes:
        paths: the files.
        ends: how many records a file and those before it hold.
        read: (number of a file, number of a record in it) -> the record, undecoded.
    """

    paths: Sequence[Path]
    ends: np.ndarray
    read: Callable[[int, int], Any]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Path, int, Any]:
        """(file, number in it, undecoded record)."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        number = index - (int(self.ends[shard - 1]) if shard else 0)
        return self.paths[shard], number, self.read(shard, number)


def find_shards(rest: str, split: str, ending: str) -> list[Path]:
    """The files of a split, by name.

    Args:
        rest: a directory, in which they are called SPLIT.ENDING or SPLIT-*.ENDING; or a pattern with `*` and so on, in
            which {split} stands for the split's name. Without it, the files are those of "train".
        ending: of the files in a directory, with its dot.

    Raises:
        InputError: no such files, or shards of different sets ("-of-00004" and "-of-00008").
    """
    if Path(rest).is_dir():
        wanted = re.compile(rf"{re.escape(split)}(-.*)?{re.escape(ending)}")
        paths = sorted(path for path in Path(rest).iterdir() if wanted.fullmatch(path.name))
    elif "{split}" in rest:
        paths = [Path(path) for path in sorted(glob.glob(rest.replace("{split}", split)))]
    elif split != "train":
        raise InputError(
            f"{rest}: which files are the split {split!r}? Write {{split}} in the pattern for its name"
        )
    else:
        paths = (
            [Path(rest)]
            if Path(rest).is_file()
            else [Path(path) for path in sorted(glob.glob(rest))]
        )
    if not paths:
        raise InputError(f"{rest}: no such files of the split {split!r}")
    totals: dict[str, str] = {}
    for path in paths:
        found = SHARD.match(path.name)
        if found and totals.setdefault(found[1], found[3]) != found[3]:
            raise InputError(
                f"{path}: one of {int(found[3])} shards beside some of {int(totals[found[1]])}"
            )
    return paths


def sharded_records(
    paths: Sequence[Path],
    counts: Sequence[int],
    read: Callable[[int, int], Any],
    parse: Callable[[Any, str], dict[str, Any]],
) -> Records:
    """Records that are read and decoded one by one, of the kind that the first one is.

    Args:
        counts: how many records each file holds.
        read: (number of a file, number of a record in it) -> the record, undecoded.
        parse: (undecoded record, where it lies) -> a JSON object.

    Raises:
        InputError: if the first record is of no known kind. A record that cannot be used is an error when it is read:
            "FILE, record 7: no field 'positive' ..."
    """
    shards = Shards(tuple(paths), np.cumsum(counts), read)
    required = kind_of(_object(parse, shards[0])[1]) if len(shards) else ()
    records = Records(shards, functools.partial(_decode, parse, required), range(len(shards)))
    if len(shards) and not required:
        records.decode(shards[0])
    return records


def _object(parse: Callable, item: tuple[Path, int, Any]) -> tuple[str, dict[str, Any]]:
    path, number, value = item
    where = f"{path}, record {number}"
    return where, from_json(parse(value, where), where)


def _decode(
    parse: Callable, required: Sequence[str], item: tuple[Path, int, Any]
) -> dict[str, Any]:
    where, record = _object(parse, item)
    check_fields(record, required, where)
    if "score" in record:
        finite(record["score"], f"{where}: score")
    return record
