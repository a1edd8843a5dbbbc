"""Code search in the standard library of the running Python, by its documentation.

A pair is the first sentence of a function's or method's docstring, and its source without the
docstring. All pairs of a module are in one split, by a stable hash of the module's name, and no
source is in two splits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sysconfig
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import SearchTask, retrieval_task
from embed_jax.data.sources.docstrings import SPLITS, config_name
from embed_jax.errors import InputError, one_line, require


def open_source(rest: str, split: str) -> list[dict[str, str]]:
    """Reads the records (id, module, anchor, positive) of a split.

    They are from a TFDS data set that is made on first use.
    """
    if rest:
        raise InputError(f"python_docs takes no name after it, found {rest!r}")
    if split not in SPLITS:
        raise InputError(f"python_docs has no split {split!r}; known: {', '.join(SPLITS)}")
    source = prepare_builder().as_data_source(split=split)
    return [{name: text.decode() for name, text in record.items()} for record in source]


def python_docs_task(split: str) -> SearchTask:
    """Returns a split as a retrieval task.

    It has the corpus {id: source}, queries {id: sentence}, and relevance {query id: {document id:
    1}}. Functions that begin with the same sentence are all relevant to it.
    """
    return retrieval_task(open_source("", split))


def python_docs_fingerprint() -> str:
    """Returns 16 hex digits of the content of all splits; equal ones make results comparable."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for record in open_source("", split):
            digest.update(repr(sorted(record.items())).encode())
    return digest.hexdigest()[:16]


def prepare_builder() -> Any:
    """Returns the TFDS builder for the running Python, and writes its data on the first call.

    It needs no network. The data are written to TFDS's data directory: EMBED_JAX_DATA,
    TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    import fcntl

    require("tensorflow_datasets")
    from embed_jax.data.sources.python_docs_builder import PythonDocs, download_config
    from embed_jax.data.sources.tfds import data_directory, silence_tfds

    root, directory = Path(sysconfig.get_path("stdlib")), data_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # One process writes; others wait, and then find the data.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            silence_tfds(),
            (directory / ".python_docs.lock").open("a") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            builder = PythonDocs(
                data_dir=os.fspath(directory), config=config_name(root), file_format="array_record"
            )
            if not builder.is_prepared():
                builder.download_and_prepare(
                    download_config=download_config(), file_format="array_record"
                )
    except OSError as error:
        reason = one_line(error)
        raise InputError(
            f"python_docs: cannot be written to {directory}: {reason}; set EMBED_JAX_DATA"
        ) from None
    return builder
