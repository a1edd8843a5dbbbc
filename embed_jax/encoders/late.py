"""Reads and writes the directories of models that give each token a vector (late interaction).

The layouts are sentence-transformers' MultiVectorEncoder (version 6), PyLate's and Stanford's
ColBERT. Stanford's and PyLate's models have markers, tokens in front of a text; they are prompts
here, as in sentence-transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.encoders import json_fields, module_files, modules
from embed_jax.encoders.base import backbone_shapes, read_backbone
from embed_jax.encoders.heads import Dense, Head, Normalize
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.read import (
    LATE_INTERACTION,
    SETTINGS,
    STANFORD,
    model_type,
    named_prompts,
    read_first,
    read_optional,
    shortest_limit,
)
from embed_jax.encoders.saved import SavedLateInteraction
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.text_config import TextConfig, write_text_config
from embed_jax.encoders.token_settings import PUNCTUATION, TokenSettings
from embed_jax.encoders.weights import (
    SHARD_BYTES,
    open_tensors,
    params_from_tensors,
    read_json,
    write_json,
    write_tensors,
)
from embed_jax.encoders.write import SavesItself, list_modules, replace_directory
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import Params, param_dtype

LAYOUTS = ("sentence-transformers", "pylate", "stanford")
METADATA = "artifact.metadata"
LINEAR = "linear.weight"
SIMILARITIES = {"maxsim": "maxsim", "meanmaxsim": "mean_maxsim"}  # the file's name -> ours
LENGTHS = {"query": 32, "document": 180}  # of ColBERT, where the files name none


def read_late_interaction(directory: Path) -> SavedLateInteraction:
    """Reads a late-interaction model in any of LAYOUTS.

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
    read = read_first(first, False, False, None, of_tokens=True)
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
    return SavedLateInteraction(
        EncoderSpec(read.backbone, "", heads, lora=read.lora),
        {**read.params, "heads": params},
        shortest_limit(read.texts, limits, read.backbone.max_length),
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


# ---- writing -------------------------------------------------------------------------------------


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
    tokens = module_files.TOKENS
    for (_, content), (_, folder) in zip(kinds[1:], folders[1:], strict=True):
        if isinstance(content, dict):
            write_json(directory / folder / "config.json", content)
        else:
            head, own = content
            module_files.write_head(directory / folder, head, own, tokens, tokens)
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
        fields |= _pylate_fields(settings, texts)
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


def _pylate_fields(settings: EncodingSettings, texts: TokenSettings) -> dict[str, Any]:
    """Returns PyLate's fields of config_sentence_transformers.json."""
    return {
        "model_type": LATE_INTERACTION[1],
        "prompts": {},
        "similarity_fn_name": "MaxSim",
        "query_prefix": settings.prompts.get("query", ""),
        "document_prefix": settings.prompts.get("document", ""),
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
