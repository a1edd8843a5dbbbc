"""Options of every way of encoding, and hints for names that other libraries have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from embed_jax.errors import InputError
from embed_jax.types import Params


class EncodeOptions(TypedDict, total=False):
    """Options of every way of encoding beside texts and prompt.

    See `SentenceEncoder.encode` and `SparseEncoder.encode`, each of which takes some of them.
    """

    dim: int
    layers: int
    normalize_embeddings: bool
    max_active: int
    heads: Sequence[str]
    batch_tokens: int
    show_progress: bool
    params: Params


SPARSE_OPTIONS = ("max_active", "batch_tokens", "show_progress", "params")
MULTI_HEAD_OPTIONS = ("heads", *SPARSE_OPTIONS[1:])
DENSE_OPTIONS = ("dim", "layers", "normalize_embeddings", *SPARSE_OPTIONS[1:])

# Arguments that users of sentence-transformers know, or other functions take -> what to do instead.
INSTEAD = {
    "batch_size": "batches are counted in tokens: `batch_tokens`, or nothing for what is fast here",
    "show_progress_bar": "it is `show_progress`",
    "truncate_dim": "it is `dim`, which makes the embeddings length 1 again",
    "convert_to_numpy": "embeddings are NumPy arrays always",
    "convert_to_tensor": "embeddings are NumPy arrays always; `torch.from_numpy` makes a tensor of "
    "one",
    "precision": "embeddings are float32; `embed_jax.retrieval.quantize` makes them smaller",
    "output_value": "only sentence embeddings are made",
    "device": "JAX's devices are all used",
    "max_active_dims": "it is `max_active`, of sparse models",
    "max_active": "only sparse embeddings have active dimensions",
    "dim": "sparse embeddings have the size of the vocabulary; `max_active` keeps the largest "
    "weights",
    "heads": "only a model of several heads has a choice of them",
    "layers": "sparse models are encoded with all layers",
    "normalize_embeddings": "sparse embeddings are compared by dot product, as they are",
    "instruction": "queries take one, documents have none",
}


def refuse_unknown(
    options: Mapping[str, Any], known: Sequence[str] = tuple(EncodeOptions.__annotations__)
) -> None:
    """Raises an InputError for an argument with another meaning here, a TypeError for others.

    Options that are in `known` pass.
    """
    for name in options.keys() - set(known):
        if name in INSTEAD:
            raise InputError(f"{name}: {INSTEAD[name]}")
        raise TypeError(f"encode: unexpected argument {name!r}; expected {', '.join(known)}")


# Attributes that users of sentence-transformers know -> what to do instead; by class, or "" for
# all.
HINTS = {
    ("CrossEncoder", "predict"): "it is `score(queries, passages)`, two lists instead of pairs",
    ("CrossEncoder", "encode"): "it scores pairs of texts; embed_jax.load reads models that embed",
    ("CrossEncoder", "max_seq_length"): "it is `max_length`",
    (
        "RoutedEncoder",
        "max_seq_length",
    ): "it is `max_length`, and of a route `encoders[ROUTE].max_length`",
    ("RoutedEncoder", "tokenizer"): "each route has its own: `encoders[ROUTE].tokenizer`",
    (
        "",
        "predict",
    ): "embeddings have no scores: `similarity(a, b)` compares them; a cross-encoder "
    "is "
    "read by embed_jax.load_cross_encoder and has `score`",
    (
        "",
        "rank",
    ): "`similarity(queries, documents)` compares embeddings; embed_jax.retrieval searches large "
    "corpora",
    ("", "save_pretrained"): "it is `save(directory)`, in sentence-transformers' layout",
    (
        "",
        "push_to_hub",
    ): "`python -m scripts.export --push-to-hub OWNER/NAME` does it, with a model card",
    ("", "fit"): "embed_jax.finetune trains a model, and python -m experiments.NAME",
    ("", "to"): "JAX's devices are all used; JAX_PLATFORMS=cpu chooses the CPU",
    ("", "device"): "JAX's devices are all used",
    ("", "half"): 'load(name, compute_dtype="bfloat16") computes in 16 bits',
    ("", "eval"): "dropout is for training only, there is no mode to switch",
    ("", "tokenize"): "it is `tokenizer.encode(texts)`",
    ("", "get_sentence_embedding_dimension"): "it is `dim`",
    ("", "get_embedding_dimension"): "it is `dim`",
    ("", "truncate_dim"): "it is an argument: `encode(texts, dim=...)`",
    ("", "start_multi_process_pool"): "`encode` uses all of JAX's devices",
    ("", "encode_multi_process"): "`encode` uses all of JAX's devices",
}


def no_attribute(model: object, name: str) -> AttributeError:
    """Makes the error for an attribute that a model lacks, with advice if there is any."""
    kind = type(model).__name__
    hint = HINTS.get((kind, name)) or HINTS.get(("", name))
    return AttributeError(
        f"{kind!r} object has no attribute {name!r}" + (f": {hint}" if hint else ""),
        name=name,
        obj=model,
    )
