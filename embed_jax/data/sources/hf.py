"""Hugging Face data sets by hub name, or a directory that `save_to_disk` wrote or that holds data files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.data.sources import Records
from embed_jax.errors import InputError, one_line


def open_source(rest: str, split: str) -> Sequence[dict[str, Any]]:
    """The records of `hf:NAME[:CONFIG]` or `hf:DIRECTORY`; the split syntax of `datasets` works ("train[:10%]")."""
    import datasets

    name, _, config = rest.partition(":")
    try:
        saved = [file for file in ("dataset_dict.json", "state.json") if (Path(name) / file).is_file()]
        if saved:
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise ValueError(f"known splits: {', '.join(found)}")
                found = found[split]
            elif split != "train":
                raise ValueError("it was saved without splits; only 'train' is accepted, for all of it")
        else:
            found = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # from an unknown name to a missing network
        raise InputError(f"hf:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}") from None
    return Records(found, dict, range(len(found)))
