"""Reads the directories of models that give each token a vector (late interaction).

The layouts are sentence-transformers' MultiVectorEncoder (version 6), PyLate's and Stanford's
ColBERT. Stanford's and PyLate's models have markers, tokens in front of a text; they are prompts
here, as in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.encoders import json_fields, module_files, modules
from embed_jax.encoders.base import backbone_shapes, read_backbone
from embed_jax.encoders.heads import Dense, Head, Normalize
from embed_jax.encoders.model_kind import LATE_INTERACTION, model_type
from embed_jax.encoders.read import read_first
from embed_jax.encoders.read_settings import SETTINGS, named_prompts, read_optional, shortest_limit
from embed_jax.encoders.saved import SavedLateInteraction
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.text_config import TextConfig
from embed_jax.encoders.token_settings import PUNCTUATION, TokenSettings
from embed_jax.encoders.weights import (
    open_tensors,
    params_from_tensors,
    read_json,
)
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import Params, param_dtype

METADATA = "artifact.metadata"
LINEAR = "linear.weight"
SIMILARITIES = {"maxsim": "maxsim", "meanmaxsim": "mean_maxsim"}  # the file's name -> ours
LENGTHS = {"query": 32, "document": 180}  # of ColBERT, where the files name none


def read_late_interaction(directory: Path) -> SavedLateInteraction:
    """Reads a late-interaction model in any of the three layouts.

    Raises:
        InputError: for a model of another kind; a file that is missing or damaged; an architecture,
            module or setting that is not supported; or a tensor that is missing, extra or of
            another shape.
    """
    directory = Path(directory)
    kind = model_type(directory)
    if kind not in LATE_INTERACTION:
        raise InputError(f"{directory}: expected a late-interaction model, found a {kind}")
    if not (directory / "modules.json").is_file():
        return _read_stanford(directory)
    folders = modules.read_modules(directory, of_tokens=True)
    pylate = kind == LATE_INTERACTION[1]
    settings = read_optional(directory / SETTINGS, json_fields.PYLATE)
    first = directory / folders[0][1]
    read = read_first(first, "Transformer", False, None, of_tokens=True)
    heads, params = _read_heads(directory, folders)
    texts = _pylate_texts(settings) if pylate else _texts(directory, folders, read.texts)
    if pylate:
        heads += (Normalize(),)
    similarity = settings.get("similarity_fn_name") or "maxsim"
    if similarity not in SIMILARITIES and not pylate:
        message = unknown("similarity", similarity, SIMILARITIES)
        raise InputError(f"{directory / SETTINGS}: similarity_fn_name: {message}")
    prompts = named_prompts(settings)
    for side in ("query", "document") if pylate else ():
        prefix = settings.get(f"{side}_prefix") or ""
        prompts[side] = prefix + prompts.get(side, "").removeprefix(prefix)
    limits = read_optional(first / "tokenizer_config.json", json_fields.TOKENIZER)
    length = shortest_limit(read.texts, limits, read.backbone.max_length)
    if pylate:  # it stores the limit of the texts that it encoded last, without their marker
        length = read.backbone.max_length
    return SavedLateInteraction(
        EncoderSpec(read.backbone, "", heads, lora=read.lora),
        {**read.params, "heads": params},
        length,
        EncodingSettings(
            prompts=prompts,
            default_prompt_name=settings.get("default_prompt_name"),
            similarity=SIMILARITIES.get(similarity, "maxsim"),
            matryoshka_dims=tuple(settings.get("matryoshka_dims") or ()),
            lower_case=read.texts.lower_case,
            base=read.base,
        ),
        texts,
        first,
        marked=pylate,
    )


def _read_heads(directory: Path, folders: list[tuple[str, str]]) -> tuple[tuple[Head, ...], Params]:
    heads: tuple[Head, ...] = ()
    params: Params = {}
    for kind, folder in folders:
        if kind == "Dense":
            tokens = module_files.TOKENS
            head, params[str(len(heads))] = module_files.read_dense(
                directory / folder, tokens, tokens
            )
            heads += (head,)
        elif kind == "Normalize":
            heads += module_files.read_normalize(directory / folder, module_files.TOKENS)[:1]
    return heads, params


def _texts(directory: Path, folders: list[tuple[str, str]], texts: TextConfig) -> TokenSettings:
    """Reads how texts become tokens in sentence-transformers' layout."""
    fields = texts.of_tokens
    values: dict[str, Any] = {
        name: fields[name] for name in ("query_length", "document_length") if name in fields
    }
    if expansion := fields.get("query_expansion"):
        where = f"{directory / 'sentence_bert_config.json'}: query_expansion."
        expansion = json_fields.check_fields(where, expansion, json_fields.EXPANSION)
        values |= {
            "expansion": expansion.get("strategy") or "",
            "expansion_length": expansion.get("length") or 0,
            "attend": bool(expansion.get("attend")),
            "expansion_token": expansion.get("token") or "",
        }
    for kind, folder in folders:
        path = directory / folder / "config.json"
        if kind == modules.MASK:
            config = read_json(path, json_fields.MODULE)
            if config.get("keep_only_token_ids"):
                raise InputError(
                    f"{path}: keep_only_token_ids: not supported (of images), expected none"
                )
            sides = config.get("skiplist_tasks") or ["document"]
            values |= {
                "skip_words": tuple(config.get("skiplist_words") or ()),
                "skip_sides": tuple(sides),
            }
        elif kind == modules.TOKEN_POOLING:
            config = read_json(path, json_fields.MODULE)
            if (tasks := config.get("tasks") or ["document"]) != ["document"]:
                raise InputError(f"{path}: tasks: expected ['document'], found {tasks!r}")
            values |= {
                "pool_factor": float(config.get("pool_factor", 1.0)),
                "protected_tokens": config.get("num_protected_tokens", 1),
                "normalize_pooled": config.get("normalize_embeddings", False),
            }
    try:
        return TokenSettings(**values)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def _pylate_texts(settings: Mapping[str, Any]) -> TokenSettings:
    """Reads how texts become tokens in PyLate's layout, whose defaults are ColBERT's."""
    skipped = settings.get("skiplist_words")
    length = settings.get("query_length") or LENGTHS["query"]
    expands = settings.get("do_query_expansion") is not False
    return TokenSettings(
        query_length=length,
        document_length=settings.get("document_length") or 0,
        expansion="fixed" if expands else "",
        expansion_length=length if expands else 0,
        attend=bool(settings.get("attend_to_expansion_tokens")),
        skip_words=PUNCTUATION if skipped is None else tuple(skipped),
    )


def _read_stanford(directory: Path) -> SavedLateInteraction:
    """Reads Stanford's layout: a BERT, and beside its tensors those of the linear map."""
    metadata = read_optional(directory / METADATA, json_fields.STANFORD)
    backbone, family, _ = read_backbone(directory)
    tensors = dict(open_tensors(directory))
    linear = tensors.pop(LINEAR, None)
    if linear is None or linear.ndim != 2 or linear.shape[1] != backbone.hidden_size:
        shape = "none" if linear is None else f"the shape {linear.shape}"
        raise InputError(
            f"{directory}: tensor {LINEAR!r}: expected the shape (dim, {backbone.hidden_size}), "
            f"found {shape}"
        )
    params = params_from_tensors(family, backbone_shapes(backbone), tensors, directory)
    kernel = np.array(linear.T, param_dtype(linear.dtype))
    heads = (
        Dense(kernel.shape[0], kernel.shape[1], bias=False, activation="identity"),
        Normalize(),
    )
    length = metadata.get("query_maxlen") or LENGTHS["query"]
    markers = {
        "query": metadata.get("query_token_id") or "[unused0]",
        "document": metadata.get("doc_token_id") or "[unused1]",
    }
    limits = read_optional(directory / "tokenizer_config.json", json_fields.TOKENIZER)
    return SavedLateInteraction(
        EncoderSpec(backbone, "", heads),
        {"backbone": params, "heads": {"0": {"kernel": kernel}}},
        shortest_limit(TextConfig(), limits, backbone.max_length),
        EncodingSettings(
            {side: f"{marker} " for side, marker in markers.items()}, similarity="maxsim"
        ),
        TokenSettings(
            document_length=metadata.get("doc_maxlen") or 0,
            expansion="fixed",
            expansion_length=length,
            attend=bool(metadata.get("attend_to_mask_tokens")),
            skip_words=PUNCTUATION if metadata.get("mask_punctuation", True) else (),
        ),
        directory,
        marked=True,
    )
