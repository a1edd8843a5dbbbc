"""Writes directories of exported models, and cuts the embeddings of models before."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize, Truncate
from embed_jax.encoders.weights import read_json, write_json
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder

CARD = "README.md"
MARK = "- embed-jax\n"  # among the tags of a card that was written here


@contextlib.contextmanager
def replace_export(directory: Path) -> Iterator[Path]:
    """Yields a temporary directory that replaces `directory` when the block ends without an error.

    Otherwise the temporary directory is removed. An earlier export, recognised by its card, is
    replaced.

    Raises:
        InputError: at the start if `directory` contains anything but an earlier export; at the end
            if it contains files that the new export lacks; or it cannot be written.
    """
    directory = Path(directory).absolute()
    present = _present(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}.", dir=directory.parent
        ) as beside:
            new, old = Path(beside) / "new", Path(beside) / "old"
            new.mkdir()
            yield new
            extra_files = sorted(present - {path.name for path in new.iterdir()})
            if extra_files:
                raise InputError(
                    f"{directory}: contains {', '.join(extra_files)}, which this export does not "
                    "write; give a new directory, or remove it"
                )
            if present:
                os.replace(directory, old)
            os.replace(new, directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from None


def _present(directory: Path) -> set[str]:
    """Returns the names of the files of an earlier export.

    Raises:
        InputError: `directory` is a file, or contains anything but an earlier export.
    """
    if not directory.exists():
        return set()
    if not directory.is_dir():
        raise InputError(f"{directory}: expected a directory, found a file")
    present = {path.name for path in directory.iterdir()}
    card = directory / CARD
    if present and not (
        card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    ):
        raise InputError(
            f"{directory}: holds {', '.join(sorted(present)[:5])}, and is not an earlier export; "
            "give a new directory"
        )
    return present


def write_plain(model: SentenceEncoder, directory: Path) -> None:
    """Writes backbone (or adapter) and tokenizer as transformers lays them out.

    Such a directory does not record the pooling; sentence-transformers assumes mean pooling. The
    limit in tokens is recorded as the tokenizer's.

    Raises:
        InputError: the model has heads with weights, for which there is no place, or it is not a
            transformer.
    """
    heads = [*([model.spec.token_head] if model.spec.token_head else []), *model.spec.heads]
    heads = [type(head).__name__ for head in heads if not isinstance(head, Normalize)]
    if heads or model.spec.backbone.family == "static":
        what = (
            f"{', '.join(heads)} after its backbone"
            if heads
            else "a table of token vectors and no transformer"
        )
        raise InputError(
            f"--format huggingface: the model has {what}, which a plain directory cannot hold; "
            "use sentence-transformers"
        )
    model.save(directory)
    for path in directory.iterdir():
        if path.is_dir() and re.fullmatch(r"\d+_\w+", path.name):
            shutil.rmtree(path)
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (directory / name).unlink()
    limit = directory / "tokenizer_config.json"
    write_json(limit, read_json(limit) | {"model_max_length": model.max_length})


def truncate_model(model: SentenceEncoder, dim: int) -> SentenceEncoder:
    """Returns the model with embeddings of the first `dim` numbers, scaled to length 1 again.

    They are equal to `encode(texts, dim=dim)` of the whole model. The last Dense loses columns if
    only a Normalize follows it; else a Dense that takes the first numbers is added.

    Raises:
        InputError: for a size that is not from 1 to D.
    """
    if not 1 <= dim <= model.dim:
        raise InputError(
            f"--dim: expected 1 to {model.dim}, the size of the embeddings, found {dim}"
        )
    heads = model.spec.heads
    while heads and isinstance(heads[-1], Normalize | Truncate):
        heads = heads[:-1]
    params = dict(jax.device_get(model.params["heads"]))
    last = str(len(heads) - 1)
    adds_itself = (
        heads
        and isinstance(heads[-1], Dense)
        and heads[-1].residual
        and "residual" not in params[last]
    )
    if heads and isinstance(heads[-1], Dense) and not adds_itself:
        params[last] = {
            name: np.ascontiguousarray(value[..., :dim]) for name, value in params[last].items()
        }
        heads = (*heads[:-1], dataclasses.replace(heads[-1], out_features=dim))
    else:
        width = build_encoder(dataclasses.replace(model.spec, heads=heads)).dim
        params[str(len(heads))] = {"kernel": np.eye(width, dim, dtype=np.float32)}
        heads = (*heads, Dense(width, dim, bias=False, activation="identity"))
    return SentenceEncoder(
        dataclasses.replace(model.spec, heads=(*heads, Normalize())),
        {**model.params, "heads": params},
        model.tokenizer,
        dataclasses.replace(
            model.settings,
            matryoshka_dims=tuple(size for size in model.matryoshka_dims if size <= dim),
        ),
        compute_dtype=model.compute_dtype,
    )
