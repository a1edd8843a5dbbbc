"""Hugging Face data sets: by hub name, from `save_to_disk`, or a directory of data files."""

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

# Matches every text that Python's `strip` empties: separators, control characters.
BLANK = r"^[\pZ\pC\s]*$"
NO_LABEL = r"^\s*-(1(\.0)?)?\s*$"
ROWS = 65536  # rows that are checked together
SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes


def open_source(rest: str, split: str) -> Records:
    """Opens the raw records of a data set.

    If TFDS's data directory (EMBED_JAX_DATA) has a directory of the hub name, it is read instead of
    the hub, whatever the revision. It is a copy of the repository with its README.md, which lists
    the files of each configuration and split.

    Args:
        rest: "NAME[:CONFIG][@REVISION]" with a branch, tag or commit; "OWNER/NAME/FILE[@REVISION]"
            for one file of a repository; or "DIRECTORY[:CONFIG]".
        split: the split, in the syntax of `datasets` ("train[:10%]").
    """
    require("datasets")
    import datasets

    name, config, revision, file = _parse_name(rest)
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
                name, config, data_files=file, split=split, revision=revision, **cache_options(name)
            )
    except Exception as error:  # from an unknown name to a missing network
        raise _read_error(rest, split, error) from None
    return arrow_records(dataset)


def arrow_records(dataset: Any) -> Records:
    """Returns the records of a `datasets.Dataset`, with the names of its classes."""
    return Records(
        dataset,
        dict,
        range(len(dataset)),
        class_names=class_names(dataset.features),
        suspects=lambda fields: _find_suspects(dataset, fields),
    )


def cache_options(*paths: str | Path) -> dict[str, str]:
    """Returns the option `cache_dir` for local files, which changes whenever a file does.

    `datasets` keeps a converted copy under a name that does not depend on all of the content: with
    `configs:` in a README.md it would return records of files as they were before a change.
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


def _find_suspects(dataset: Any, fields: Sequence[str]) -> np.ndarray:
    """Finds the rows whose texts may be missing or blank, or that may have no gold label."""
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
    """Returns an iterable of the records of `open_source`, and the names of classes.

    Only the records that are read are downloaded.
    """
    require("datasets")
    import datasets

    name, config, revision, file = _parse_name(rest)
    if any((Path(name) / file).is_file() for file in SAVED):
        raw = open_source(rest, split)
        return raw, dict(raw.class_names)
    try:
        dataset = datasets.load_dataset(
            name, config, data_files=file, split=split, revision=revision, streaming=True
        )
    except Exception as error:
        raise _read_error(rest, split, error) from None

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield from dataset
        except Exception as error:
            raise _read_error(rest, split, error) from None

    return rows(), class_names(dataset.features)


def _read_error(rest: str, split: str, error: Exception) -> InputError:
    return InputError(f"hf:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}")


def _parse_name(rest: str) -> tuple[str, str | None, str | None, str | None]:
    """Parses a name to (name or directory, configuration, revision, file), None if absent."""
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
