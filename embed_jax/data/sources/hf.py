"""Hugging Face data sets by hub name, or a directory that `save_to_disk` wrote or that holds data files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embed_jax.data.sources import Records
from embed_jax.data.sources.tfds import data_directory
from embed_jax.errors import InputError, one_line

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def open_source(rest: str, split: str) -> Sequence[dict[str, Any]]:
    """The records of a data set; the split syntax of `datasets` works ("train[:10%]").

    If there is a directory called like the hub name where TFDS keeps its data (EMBED_JAX_DATA), it is read instead of
    the hub, whatever the revision: a copy of the repository with its README.md, which says which files are which
    configuration and split.

    Args:
        rest: "NAME[:CONFIG][@REVISION]" with a branch, tag or commit; "OWNER/NAME/FILE[@REVISION]" for one file of a
            repository; or "DIRECTORY[:CONFIG]".
    """
    import datasets

    name, config, revision, file = _parts(rest)
    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise ValueError(f"known splits: {', '.join(found)}")
                found = found[split]
            elif split != "train":
                raise ValueError(
                    "it was saved without splits; only 'train' is accepted, for all of it"
                )
        else:
            found = datasets.load_dataset(
                name, config, data_files=file, split=split, revision=revision
            )
    except Exception as error:  # from an unknown name to a missing network
        raise InputError(
            f"hf:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}"
        ) from None
    return Records(found, dict, range(len(found)))


def iter_source(rest: str, split: str) -> Iterator[dict[str, Any]]:
    """The records of `open_source` one by one, without downloading more than what is read."""
    import datasets

    name, config, revision, file = _parts(rest)
    if any((Path(name) / file).is_file() for file in SAVED):
        yield from open_source(rest, split)
        return
    try:
        yield from datasets.load_dataset(
            name, config, data_files=file, split=split, revision=revision, streaming=True
        )
    except Exception as error:
        raise InputError(
            f"hf:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}"
        ) from None


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
