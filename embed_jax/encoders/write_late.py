"""Writes the directories of models that give each token a vector, in three layouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.encoders import json_fields, module_files, modules
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.model_kind import LATE_INTERACTION, STANFORD
from embed_jax.encoders.read_late import LENGTHS, LINEAR, METADATA, SIMILARITIES
from embed_jax.encoders.read_settings import SETTINGS
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.text_config import TextConfig, write_text_config
from embed_jax.encoders.token_settings import PUNCTUATION, TokenSettings
from embed_jax.encoders.weights import (
    SHARD_BYTES,
    open_tensors,
    read_json,
    write_json,
    write_tensors,
)
from embed_jax.encoders.write import SavesItself, list_modules, replace_directory
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import Params, param_dtype

LAYOUTS = ("sentence-transformers", "pylate", "stanford")


def write_late_interaction(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    settings: EncodingSettings,
    texts: TokenSettings,
    *,
    tokenizer: SavesItself,
    max_length: int,
    layout: str = "sentence-transformers",
) -> None:
    """Writes a late-interaction model, whole or not at all; for earlier content see `write_model`.

    An adapter is merged.

    Args:
        directory: the directory to write.
        spec: backbone without pooling, and heads.
        params: the encoder's parameters.
        settings: prompts and similarity.
        texts: how texts become tokens.
        tokenizer: writes the tokenizer's files.
        max_length: the model's own limit in tokens.
        layout: one of LAYOUTS.

    Raises:
        InputError: the directory cannot be written, or holds anything but a model; or the layout
            cannot say what the model is.
    """
    if layout not in LAYOUTS:
        raise InputError(unknown("layout", layout, LAYOUTS))
    if layout != LAYOUTS[0]:
        _check_colbert(layout, spec, settings, texts)
    if spec.lora is not None:
        spec, params = merge_lora(spec, params)
    with replace_directory(Path(directory)) as temporary:
        plain = dataclasses.replace(spec, pooling="mean", heads=())
        own = EncodingSettings(lower_case=settings.lower_case)
        transformer, *_ = list_modules(
            plain, params, own, tokenizer=tokenizer, max_length=max_length
        )
        transformer.write(temporary)
        if layout == "stanford":
            _write_stanford(temporary, params, settings, texts)
        else:
            _write_modules(temporary, spec, params, settings, texts, max_length, layout)


def _write_modules(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    settings: EncodingSettings,
    texts: TokenSettings,
    max_length: int,
    layout: str,
) -> None:
    """Writes the modules after the Transformer, and the settings of all."""
    mask = {
        "skiplist_words": list(texts.skip_words),
        "skiplist_tasks": list(texts.skip_sides),
        "keep_only_token_ids": None,
    }
    pooling = {
        "pool_factor": texts.pool_factor,
        "num_protected_tokens": texts.protected_tokens,
        "normalize_embeddings": texts.normalize_pooled,
        "tasks": ["document"],
    }
    kinds: list[tuple[str, Any]] = [("Transformer", None)]
    for index, head in enumerate(spec.heads):
        if isinstance(head, Normalize):
            kinds.append((modules.MASK, mask))
        kinds.append((type(head).__name__, (head, params["heads"].get(str(index), {}))))
    if modules.MASK not in dict(kinds):
        kinds.append((modules.MASK, mask))
    if texts.pool_factor != 1:
        kinds.append((modules.TOKEN_POOLING, pooling))
    if layout == "pylate":  # masks and lengths are implied
        kinds = [kind for kind in kinds if kind[0] in ("Transformer", "Dense")]
    folders = [(kind, f"{index}_{kind}" if index else "") for index, (kind, _) in enumerate(kinds)]
    # PyLate's modules read and give tokens without a word of it, and know no such field.
    places = () if layout == "pylate" else (module_files.TOKENS, module_files.TOKENS)
    for (_, content), (_, folder) in zip(kinds[1:], folders[1:], strict=True):
        if isinstance(content, dict):
            write_json(directory / folder / "config.json", content)
        else:
            head, own = content
            module_files.write_head(directory / folder, head, own, *places)
    types = {"Dense": modules.PYLATE_DENSE} if layout == "pylate" else {}
    modules.write_modules(directory, folders, types)
    similarity = {name: key for key, name in SIMILARITIES.items()}[settings.similarity]
    fields: dict[str, Any] = {
        "model_type": LATE_INTERACTION[0],
        "prompts": settings.prompts,
        "default_prompt_name": settings.default_prompt_name,
        "similarity_fn_name": similarity,
    }
    if layout == "pylate":
        fields |= _pylate_fields(directory, settings, texts)
    elif settings.matryoshka_dims:
        fields["matryoshka_dims"] = list(settings.matryoshka_dims)
    write_json(directory / SETTINGS, fields)
    config = TextConfig(max_length, settings.lower_case)
    if layout == "pylate":
        write_text_config(directory, config)
        return
    of_tokens: dict[str, Any] = {
        name: getattr(texts, name) or None for name in ("query_length", "document_length")
    }
    if texts.expansion:
        of_tokens["query_expansion"] = {
            "strategy": texts.expansion,
            "attend": texts.attend,
            "token": texts.expansion_token or None,
            "length": texts.expansion_length,
        }
    config = dataclasses.replace(config, of_tokens=of_tokens)
    write_text_config(directory, config, "feature-extraction")


def _check_colbert(
    layout: str, spec: EncoderSpec, settings: EncodingSettings, texts: TokenSettings
) -> None:
    """Raises an InputError for what PyLate's or Stanford's layout cannot say."""
    refused = {
        "heads": not spec.heads or not isinstance(spec.heads[-1], Normalize),
        "similarity": settings.similarity != "maxsim",
        "expansion": texts.expansion == "min",
        "expansion_token": texts.expansion_token != "",
        "skip_sides": texts.skip_sides != ("document",),
        "pool_factor": texts.pool_factor != 1,
    }
    if layout == "stanford":
        linear = spec.heads[0] if spec.heads else None
        simple = len(spec.heads) == 2 and isinstance(linear, Dense)
        if isinstance(linear, Dense):
            simple &= not (linear.bias or linear.residual) and linear.activation == "identity"
        refused["backbone"] = spec.backbone.family != "bert"
        refused["heads"] |= not simple
        refused["expansion"] |= texts.expansion != "fixed"
        refused["skip_words"] = texts.skip_words not in ((), PUNCTUATION)
    for name, wrong in refused.items():
        if wrong:
            raise InputError(
                f"layout {layout!r}: cannot say this model's {name}; 'sentence-transformers' can"
            )


def _pylate_fields(
    directory: Path, settings: EncodingSettings, texts: TokenSettings
) -> dict[str, Any]:
    """Returns PyLate's fields of config_sentence_transformers.json.

    PyLate adds a marker that the vocabulary lacks as a new token with random weights, also one that
    differs by a blank only: "[unused0] " becomes "[unused0]" where that is what is known.
    """
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    markers = {side: settings.prompts.get(side, "") for side in ("query", "document")}
    for side, marker in markers.items():
        if marker not in known and marker.strip() in known:
            markers[side] = marker.strip()
    return {
        "model_type": LATE_INTERACTION[1],
        "prompts": {},
        "similarity_fn_name": "MaxSim",
        "query_prefix": markers["query"],
        "document_prefix": markers["document"],
        "query_length": texts.expansion_length or texts.query_length or LENGTHS["query"],
        "document_length": texts.document_length or LENGTHS["document"],
        "do_query_expansion": texts.expansion == "fixed",
        "attend_to_expansion_tokens": texts.attend,
        "skiplist_words": list(texts.skip_words),
    }


def _write_stanford(
    directory: Path, params: Params, settings: EncodingSettings, texts: TokenSettings
) -> None:
    """Turns a written BERT into Stanford's layout: one file of tensors, and the metadata."""
    tensors = {f"bert.{name}": value for name, value in open_tensors(directory).items()}
    kernel = params["heads"]["0"]["kernel"]
    tensors[LINEAR] = np.asarray(kernel, param_dtype(kernel.dtype)).T
    write_tensors(
        directory, {name: np.array(value) for name, value in tensors.items()}, SHARD_BYTES
    )
    (directory / "sentence_bert_config.json").unlink()
    config = read_json(directory / "config.json", json_fields.CONFIG)
    write_json(directory / "config.json", config | {"architectures": [STANFORD]})
    metadata = {
        "query_token_id": settings.prompts.get("query", "").strip(),
        "doc_token_id": settings.prompts.get("document", "").strip(),
        "query_maxlen": texts.expansion_length,
        "doc_maxlen": texts.document_length or LENGTHS["document"],
        "attend_to_mask_tokens": texts.attend,
        "mask_punctuation": bool(texts.skip_words),
        "similarity": "cosine",
        "dim": int(kernel.shape[1]),
    }
    write_json(directory / METADATA, metadata)
