"""The kind of a model, told by its directory's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_jax.encoders import json_fields, modules
from embed_jax.encoders.base import is_adapter
from embed_jax.encoders.branch_files import has_branches
from embed_jax.encoders.read_adapter import is_classifier_adapter
from embed_jax.encoders.read_settings import SETTINGS, read_optional
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, unknown

# Kinds of models that give each token a vector: sentence-transformers' and PyLate's name of it.
LATE_INTERACTION = ("MultiVectorEncoder", "ColBERT")
STANFORD = "HF_ColBERT"  # the architecture in config.json of Stanford's ColBERT


def model_type(directory: Path) -> str:
    """Returns the kind of a model, as the name of sentence-transformers' class (REGISTRY["model"]).

    A directory that names no kind is a cross-encoder if it is a plain Hugging Face one with a
    sequence classification model, or an adapter of one, or has a LogitScore; a late-interaction
    model if it is Stanford's ColBERT; a sparse model if it has a SpladePooling; else an embedding
    model. PyLate names its kind "ColBERT". An embedding model with files of further heads, as
    BGE-M3 has them, is a MultiHeadEncoder.

    Raises:
        InputError: for a damaged file, or a kind that is not supported.
    """
    directory = Path(directory)
    name = read_optional(directory / SETTINGS, json_fields.SETTINGS).get("model_type")
    if name:
        if name not in REGISTRY["model"]:  # not `lookup`, with which a file could name a function
            message = unknown("kind of model", name, REGISTRY["model"])
            raise InputError(f"{directory / SETTINGS}: model_type: {message}")
        return _with_heads(name, directory)
    path = directory / "modules.json"
    if path.is_file():
        kinds = [kind for kind, _ in modules.read_entries(path)]
        if modules.SPLADE in kinds:
            return "SparseEncoder"
        scores = modules.LOGIT_SCORE in kinds
    elif is_adapter(directory):
        scores = is_classifier_adapter(directory)
    else:
        config = read_optional(directory / "config.json", json_fields.CONFIG)
        if first_architecture(config) == STANFORD:
            return LATE_INTERACTION[0]
        scores = first_architecture(config).endswith("ForSequenceClassification")
    return "CrossEncoder" if scores else _with_heads("SentenceTransformer", directory)


def _with_heads(kind: str, directory: Path) -> str:
    """Returns the kind of a model, with the heads that lie beside a dense one."""
    beside = kind == "SentenceTransformer" and has_branches(directory)
    return "MultiHeadEncoder" if beside else kind


def is_cross_encoder(directory: Path) -> bool:
    """Tells whether a directory holds a model that scores pairs, not an embedding model."""
    return model_type(directory) == "CrossEncoder"


def is_late_interaction(directory: Path) -> bool:
    """Tells whether a directory holds a model that gives each token a vector."""
    return model_type(directory) in LATE_INTERACTION


def refuse_cross_encoder(directory: Path) -> None:
    """Raises an InputError for a cross-encoder, where a model of single texts is expected."""
    if is_cross_encoder(directory):
        raise InputError(
            f"{directory}: a cross-encoder, which scores pairs of texts "
            "(embed_jax.load_cross_encoder reads it); accepted: an embedding model"
        )


def refuse_late_interaction(directory: Path) -> None:
    """Raises an InputError for a model that gives each token a vector, instead of each text."""
    if is_late_interaction(directory):
        raise InputError(
            f"{directory}: a late-interaction model, which gives each token a vector "
            "(embed_jax.load reads it); accepted: a model that gives each text one"
        )


def first_architecture(config: Mapping[str, Any]) -> str:
    """Returns the class that config.json names first, or ""."""
    return next(iter(config.get("architectures") or []), "")
