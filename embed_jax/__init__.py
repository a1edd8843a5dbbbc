"""embed-jax: train, study and evaluate text-embedding models in JAX.

    model = embed_jax.load("sentence-transformers/all-MiniLM-L6-v2")
    queries, documents = model.encode_query(["..."]), model.encode_document(["...", "..."])
    model.similarity(queries, documents)

What it is made of is imported when it is asked for, so that `import embed_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
    from embed_jax.embedding_model import EmbeddingModel
    from embed_jax.encoders.settings import EncodingSettings
    from embed_jax.encoders.token_settings import TokenSettings
    from embed_jax.late_interaction import LateInteractionEncoder
    from embed_jax.multi_head import MultiHeadEncoder
    from embed_jax.routed import AnyEncoder, RoutedEncoder
    from embed_jax.sentence import SentenceEncoder
    from embed_jax.sparse import SparseEncoder
    from embed_jax.train.finetune import finetune

__version__ = "0.1.0"
__all__ = [
    "CrossEncoder",
    "EmbeddingModel",
    "EncodingSettings",
    "LateInteractionEncoder",
    "MultiHeadEncoder",
    "RoutedEncoder",
    "SentenceEncoder",
    "SparseEncoder",
    "TokenSettings",
    "finetune",
    "load",
    "load_cross_encoder",
    "load_model",
]


# Public names that are imported when they are asked for.
LAZY = {
    "CrossEncoder": "embed_jax.cross_encoder:CrossEncoder",
    "EmbeddingModel": "embed_jax.embedding_model:EmbeddingModel",
    "EncodingSettings": "embed_jax.encoders.settings:EncodingSettings",
    "LateInteractionEncoder": "embed_jax.late_interaction:LateInteractionEncoder",
    "MultiHeadEncoder": "embed_jax.multi_head:MultiHeadEncoder",
    "RoutedEncoder": "embed_jax.routed:RoutedEncoder",
    "SentenceEncoder": "embed_jax.sentence:SentenceEncoder",
    "SparseEncoder": "embed_jax.sparse:SparseEncoder",
    "TokenSettings": "embed_jax.encoders.token_settings:TokenSettings",
    "finetune": "embed_jax.train.finetune:finetune",
    "load_cross_encoder": "embed_jax.cross_encoder:load_cross_encoder",
}

# Names that users of sentence-transformers know -> what to do instead.
HINTS = {
    "SentenceTransformer": "embed_jax.load(name) gives a SentenceEncoder",
    "SentenceTransformerTrainer": "embed_jax.finetune trains a model, and python -m "
    "experiments.NAME",
}


def load(
    name: str | Path, step: int = 0, *, max_length: int = 0, compute_dtype: str = "float32"
) -> AnyEncoder | LateInteractionEncoder | MultiHeadEncoder:
    """Loads an embedding model; see `load_model` for cross-encoders too.

    It is a SentenceEncoder, a SparseEncoder for SPLADE, a RoutedEncoder where queries and documents
    have one each, a LateInteractionEncoder, which gives each token a vector, or a MultiHeadEncoder
    for BGE-M3, which does all three.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), a hub name, or the
            work directory of a run.
        step: of a run: the model as it was then; 0: the one that the run wrote, see
            `train.run.load_run`.
        max_length: cut texts at this many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture or a cross-encoder,
            its tokenizer's vocabulary is larger than its table, `max_length` is more than the model
            has positions for, or the run has no checkpoint of that step.
    """
    from embed_jax import loading
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.errors import InputError

    model = _load(loading.load_encoder, name, step, max_length, compute_dtype)
    if isinstance(model, CrossEncoder):  # a run's: files of other models are refused unread
        raise InputError(
            f"{name}: the run of a cross-encoder, which scores pairs of texts "
            "(embed_jax.load_model reads it); accepted: an embedding model"
        )
    return model


def load_model(
    name: str | Path, step: int = 0, *, max_length: int = 0, compute_dtype: str = "float32"
) -> EmbeddingModel | CrossEncoder | LateInteractionEncoder | MultiHeadEncoder:
    """Loads a model of any kind.

    It is one of those that `load` gives, or a CrossEncoder.

    Its files, or its run's, say which. `isinstance(model, EmbeddingModel)` tells whether it has
    one vector for each text; a LateInteractionEncoder and a CrossEncoder have `score` and `rank`, a
    MultiHeadEncoder has `score`.

    Args:
        name: see `load`.
        step: see `load`.
        max_length: see `load`.
        compute_dtype: see `load`.

    Raises:
        InputError: see `load`; a cross-encoder is accepted here.
    """
    from embed_jax import loading

    return _load(loading.load_by_kind, name, step, max_length, compute_dtype)


def _load(load: Callable, name: str | Path, step: int, max_length: int, compute_dtype: str) -> Any:
    """Calls `load` for a directory or hub name, and reads a run from its work directory."""
    from embed_jax.pretrained import load_from_run

    options: dict[str, Any] = {"max_length": max_length, "compute_dtype": compute_dtype}
    model = load_from_run(name, step, **options)
    return load(name, **options) if model is None else model


def __dir__() -> list[str]:
    """Returns the public names, also those not imported yet, and imported submodules."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # else any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        if name in LAZY:
            module, attribute = LAZY[name].split(":")
            return getattr(importlib.import_module(module), attribute)
        hint = f": {HINTS[name]}" if name in HINTS else ""
        raise AttributeError(f"module 'embed_jax' has no attribute {name!r}{hint}")
