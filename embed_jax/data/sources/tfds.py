"""TensorFlow Datasets by name, without TensorFlow: only data sets stored as array_record."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.sources.base import Records, class_names
from embed_jax.errors import InputError, one_line, require


def open_source(rest: str, split: str) -> Records:
    """Opens the raw records of `tfds:NAME[/CONFIG][:VERSION]`, with bytes decoded.

    TFDS's split syntax works ("train[:10%]").
    """
    require("tensorflow_datasets")
    import tensorflow_datasets as tfds

    try:
        with silence_tfds():
            source = tfds.data_source(rest, split=split, data_dir=os.fspath(data_directory()))
            names = class_names(source.dataset_info.features)
            return Records(source, decode_record, range(len(source)), class_names=names)
    # From an unknown name to a download that needs a network or TensorFlow.
    except Exception as error:
        raise InputError(
            f"tfds:{rest}, split {split!r}: cannot be read: {one_line(error)[:300]}"
        ) from None


def data_directory() -> Path:
    """Returns TFDS's data directory: EMBED_JAX_DATA, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    named = os.environ.get("EMBED_JAX_DATA") or os.environ.get("TFDS_DATA_DIR")
    return Path(named or "~/tensorflow_datasets").expanduser()


@contextlib.contextmanager
def silence_tfds() -> Iterator[None]:
    """Keeps TFDS from logging and from drawing progress bars."""
    require("tensorflow_datasets")
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)


def decode_record(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with texts as str, numbers of Python's types, and sequences as lists."""
    return {name: _decode(value) for name, value in record.items()}


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return decode_record(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | list):
        return [_decode(element) for element in value]
    return value
