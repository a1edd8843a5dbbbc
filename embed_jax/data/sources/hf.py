"""Hugging Face data sets by hub name, or a directory that `save_to_disk` wrote or that holds data files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.records import find_name
from embed_jax.data.sources.base import Records, class_names
from embed_jax.data.sources.tfds import data_directory
from embed_jax.errors import InputError, one_line, require

# Contains every text that Python's `strip` empties: separators, control characters.
BLANK = r"^[\pZ\pC\s]*$"
NO_LABEL = r"^\s*-(1(\.0)?)?\s*$"
ROWS = 65536  # looked at together
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def open_source(rest: str, split: str) -> Records:
    """The records of a data set as they are; the split syntax of `datasets` works ("train[:10%]").

    If there is a directory called like the hub name where TFDS keeps its data (EMBED_JAX_DATA), it
    is read instead of the hub, whatever the revision: a copy of the repository with its README.md,
    which says which files are which configuration and split.

    Args:
        rest: "NAME[:CONFIG][@REVISION]" with a branch, tag or commit; "OWNER/NAME/FILE[@REVISION]"
            for one file of a repository; or "DIRECTORY[:CONFIG]".
    """
    require("datasets")
    import datasets

    name, config, revision, file = _parts(rest)
    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            dataset = datasets.load_from_disk(name)
            if isinstance(dataset, datasets.DatasetDict):
                if split not in dataset:
                    raise ValueError(f"known splits: {', '.join(dataset)}")
                dataset = dataset[split]
            elif split != "train":
                raise ValueError(
                    "it was saved without splits; only 'train' is accepted, for all of it"
                )
        else:
            dataset = datasets.load_dataset(
                name, config, data_files=file, split=split, revision=revision, **cache(name)
            )
    except Exception as error:  # from an unknown name to a missing network
        raise _unreadable(rest, split, error) from None
    return arrow_records(dataset)


def arrow_records(dataset: Any) -> Records:
    """The records of a `datasets.Dataset`, with the names of its classes."""
    return Records(
        dataset,
        dict,
        range(len(dataset)),
        class_names=class_names(dataset.features),
        suspects=lambda fields: _suspects(dataset, fields),
    )


def cache(*paths: str | Path) -> dict[str, str]:
    """The argument `cache_dir` for what is on this disk: another one whenever a file has changed.

    `datasets` keeps a converted copy under a name that does not depend on all of the content: with
    `configs:` in a README.md it would return the records of files that have changed since.
    """
    require("datasets")
    import datasets

    files = []
    for path in map(Path, paths):
        files += sorted(path.rglob("*")) if path.is_dir() else [path] * path.is_file()
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        if file.is_file():
            stat = file.stat()
            state = (str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(repr(state).encode())
    directory = Path(datasets.config.HF_DATASETS_CACHE) / "embed_jax" / digest.hexdigest()
    return {"cache_dir": str(directory)} if files else {}


def _suspects(dataset: Any, fields: Sequence[str]) -> np.ndarray:
    """The rows whose texts may be missing or blank, or whose label may say that there is none."""
    require("pyarrow")
    import pyarrow
    import pyarrow.compute

    names = [name for field in fields if (name := find_name(field, dataset.features))]
    label = find_name("label", dataset.features)
    names += [label] if label else []
    kept_rows = []
    table = dataset.select_columns(names).with_format("arrow")
    for start in range(0, len(dataset), ROWS):
        rows = table[start : start + ROWS]
        suspect = np.zeros(len(rows), bool)
        for name in names:
            column = rows[name]
            if name == label and not pyarrow.types.is_nested(column.type):
                text = column.cast(pyarrow.string())
                mask = pyarrow.compute.match_substring_regex(text, NO_LABEL).fill_null(False)
            elif pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                mask = pyarrow.compute.match_substring_regex(column, BLANK)
            else:
                mask = pyarrow.compute.is_null(column)
            suspect |= np.asarray(mask.fill_null(True))
        kept_rows.append(start + np.flatnonzero(suspect))
    return np.concatenate(kept_rows)


def iter_source(rest: str, split: str) -> tuple[Iterable[dict[str, Any]], dict[str, Sequence[str]]]:
    """The records of `open_source` one by one, without downloading more than what is read.

    And `class_names`.
    """
    require("datasets")
    import datasets

    name, config, revision, file = _parts(rest)
    if any((Path(name) / file).is_file() for file in SAVED):
        raw = open_source(rest, split)
        return raw, dict(raw.class_names)
    try:
        dataset = datasets.load_dataset(
            name, config, data_files=file, split=split, revision=revision, streaming=True
        )
    except Exception as error:
        raise _unreadable(rest, split, error) from None

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield from dataset
        except Exception as error:
            raise _unreadable(rest, split, error) from None

    return rows(), class_names(dataset.features)


def _unreadable(rest: str, split: str, error: Exception) -> InputError:
    return InputError(f"hf:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}")


def _parts(rest: str) -> tuple[str, str | None, str | None, str | None]:
    """(name or directory, configuration, revision, file); None for what is not given."""
    name, _, config = rest.partition(":")
    if Path(name).is_dir():
        return name, config or None, None, None
    rest, _, revision = rest.partition("@")
    name, _, config = rest.partition(":")
    file = None
    if name.count("/") > 1 and not name.startswith(("/", ".")):
        owner, repository, file = name.split("/", 2)
        name = f"{owner}/{repository}"
    copy = data_directory() / name
    if copy.is_dir():
        return str(copy), config or None, None, file
    return name, config or None, revision or None, file
