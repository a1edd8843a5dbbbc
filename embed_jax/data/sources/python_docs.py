"""python_docs: the documentation of the running Python's own standard library, a real task of code search.

A pair is the first sentence of a function's or method's docstring, and its source without the
docstring. All pairs of a module are on one side of the split, by a stable hash of the module's
name, and no source stands on two sides.
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
    """The records (id, module, anchor, positive) of a split, from a TFDS data set that is made on first use."""
    if rest:
        raise InputError(f"python_docs takes no name after it, found {rest!r}")
    if split not in SPLITS:
        raise InputError(f"python_docs has no split {split!r}; known: {', '.join(SPLITS)}")
    source = prepared_builder().as_data_source(split=split)
    return [{name: text.decode() for name, text in record.items()} for record in source]


def python_docs_task(split: str) -> SearchTask:
    """The split as search: corpus {id: source}, queries {id: sentence}, relevance by ids.

    Relevance is {query id: {document id: 1}}. Functions that begin with the same sentence are all relevant to it.
    """
    return retrieval_task(open_source("", split))


def python_docs_fingerprint() -> str:
    """16 hex digits of the content of all splits: equal fingerprints mean comparable results."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for record in open_source("", split):
            digest.update(repr(sorted(record.items())).encode())
    return digest.hexdigest()[:16]


def prepared_builder() -> Any:
    """The TFDS builder for the running Python, its data written on the first call.

    Needs no network.

    The data go where TFDS keeps its own: EMBED_JAX_DATA, TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    import fcntl

    require("tensorflow_datasets")
    from embed_jax.data.sources.python_docs_builder import PythonDocs, download_config
    from embed_jax.data.sources.tfds import data_directory, quiet

    root, directory = Path(sysconfig.get_path("stdlib")), data_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # One process writes, others wait and find it done.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            quiet(),
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
