"""Loads a model of any kind; the registry's "model" names the function that loads each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from embed_jax.encoders.branch_files import CONVERT, pickled_branches
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.model_kind import model_type, refuse_cross_encoder, refuse_late_interaction
from embed_jax.errors import warn
from embed_jax.registry import lookup

if TYPE_CHECKING:
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.late_interaction import LateInteractionEncoder
    from embed_jax.multi_head import MultiHeadEncoder
    from embed_jax.routed import AnyEncoder


def load_by_kind(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> AnyEncoder | CrossEncoder | LateInteractionEncoder | MultiHeadEncoder:
    """Loads a model of the kind that its files name.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), or a hub name.
        max_length: cut texts, or pairs of them, at this number of tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown kind or architecture, its
            vocabulary is larger than its table, or `max_length` is more than the model has
            positions for.
    """
    load = lookup("model", _kind_of(resolve(str(name))))
    return load(name, max_length=max_length, compute_dtype=compute_dtype)


def load_encoder(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> AnyEncoder | LateInteractionEncoder | MultiHeadEncoder:
    """Loads a model of any kind that encodes texts: not a cross-encoder.

    Args:
        name: see `load_by_kind`.
        max_length: see `load_by_kind`.
        compute_dtype: see `load_by_kind`.

    Raises:
        InputError: see `load_by_kind`; also for a cross-encoder.
    """
    directory = resolve(str(name))
    refuse_cross_encoder(directory)
    load = lookup("model", _kind_of(directory))
    return load(name, max_length=max_length, compute_dtype=compute_dtype)


def _kind_of(directory: Path) -> str:
    """Returns the kind of a model; warns of heads that are not read, since they are pickles."""
    if pickles := pickled_branches(directory):
        warn(
            f"{directory}: the heads {', '.join(pickles)} are left out, since pickles are never "
            f"opened; if you trust them, convert them there once with: {CONVERT} "
            f"{' '.join(pickles)}"
        )
    return model_type(directory)


def load_embedding_model(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> AnyEncoder:
    """Loads a model of any kind that gives each text one vector; of several heads the dense one.

    Args:
        name: see `load_by_kind`.
        max_length: see `load_by_kind`.
        compute_dtype: see `load_by_kind`.

    Raises:
        InputError: see `load_by_kind`; also for a cross-encoder or a late-interaction model.
    """
    directory = resolve(str(name))
    refuse_late_interaction(directory)
    refuse_cross_encoder(directory)
    kind = model_type(directory)
    load = lookup("model", "SentenceTransformer" if kind == "MultiHeadEncoder" else kind)
    return load(name, max_length=max_length, compute_dtype=compute_dtype)
