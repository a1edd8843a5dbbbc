"""Shared parts of sources of many files: finding the files, and the place of record i."""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError

SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Records of several files in the order of the files.

    Attributes:
        paths: the files.
        ends: the number of records in each file and those before it.
        read: (index of a file, index of a record in it) -> the undecoded record.
    """

    paths: Sequence[Path]
    ends: np.ndarray
    read: Callable[[int, int], Any]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Any:
        return self.read(*_locate(self.ends, index))


def find_shards(rest: str, split: str, ending: str) -> list[Path]:
    """Finds the files of a split, in the order of their names.

    Args:
        rest: a directory, whose files are named SPLIT.ENDING or SPLIT-*.ENDING; or a pattern with
            wildcards, in which {split} is replaced by the split's name. Without {split}, the files
            are those of "train".
        split: the split's name.
        ending: the ending of the files in a directory, with its dot.

    Raises:
        InputError: there are no such files, or they are shards of different sets ("-of-00004" and
            "-of-00008").
    """
    if Path(rest).is_dir():
        pattern = re.compile(rf"{re.escape(split)}(-.*)?{re.escape(ending)}")
        paths = sorted(path for path in Path(rest).iterdir() if pattern.fullmatch(path.name))
    elif "{split}" in rest:
        paths = [Path(path) for path in sorted(glob.glob(rest.replace("{split}", split)))]
    elif split != "train":
        raise InputError(
            f"{rest}: which files are the split {split!r}? Write {{split}} in the pattern for its "
            "name"
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
        shard = SHARD.match(path.name)
        if shard and totals.setdefault(shard[1], shard[3]) != shard[3]:
            raise InputError(
                f"{path}: one of {int(shard[3])} shards beside some of {int(totals[shard[1]])}"
            )
    return paths


def shard_places(paths: Sequence[Path], counts: Sequence[int]) -> Callable[[int], str]:
    """Returns a function that gives the place of a record by its index: "FILE, record 7"."""
    ends = np.cumsum(counts)

    def place(index: int) -> str:
        shard, number = _locate(ends, index)
        return f"{paths[shard]}, record {number}"

    return place


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Returns (index of a file, index in it) of a record."""
    shard = int(np.searchsorted(ends, index, side="right"))
    return shard, index - (int(ends[shard - 1]) if shard else 0)
