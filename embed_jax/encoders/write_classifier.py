"""Writes a cross-encoder's directory, whole or not at all, for sentence-transformers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.encoders import module_files, modules
from embed_jax.encoders.classifier import (
    LOGIT_SOFTCAPS,
    classifier_config,
    classifier_family,
    full_name,
    has_form,
)
from embed_jax.encoders.decoder import DecoderConfig
from embed_jax.encoders.heads import Dense, LogitScore
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.text_config import (
    ChatFormat,
    TextConfig,
    write_text_config,
)
from embed_jax.encoders.token_heads import OUTPUT_LAYER
from embed_jax.encoders.weights import (
    SHARD_BYTES,
    read_json,
    tensors_from_params,
    write_json,
    write_tensors,
)
from embed_jax.encoders.write import SavesItself, list_modules, replace_directory
from embed_jax.encoders.write_adapter import write_adapter
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import LONGEST_FIRST, Params


def write_classifier(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    *,
    tokenizer: SavesItself,
    max_length: int,
    activation: str,
    prompt: str = "",
    lower_case: bool = False,
    chat: ChatFormat | None = None,
    output_layer: np.ndarray | None = None,
    truncation: str = LONGEST_FIRST,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a directory for sentence-transformers' CrossEncoder, `read_classifier`, transformers.

    A head that the family has in transformers is written as such, a LogitScore beside its language
    model, and any other as sentence-transformers' modules, which versions from 6 on read. The limit
    and the activation are where all versions look for them. Tensors have the parameters' dtypes; an
    adapter is merged. For earlier content of the directory see `write_model`.

    Args:
        directory: the directory to write.
        spec: the encoder's, whose last head gives logits.
        params: the encoder's parameters.
        tokenizer: writes the tokenizer's files.
        max_length: see SavedClassifier.
        activation: see SavedClassifier.
        prompt: see SavedClassifier.
        lower_case: see SavedClassifier.
        chat: see SavedClassifier.
        output_layer: see SavedClassifier.
        truncation: see SavedClassifier.
        shard_bytes: a larger model is written as shards of at most this many bytes.

    Raises:
        InputError: the directory cannot be written, or holds anything but a model; or the last head
            does not give logits.
    """
    if spec.lora is not None:
        spec, params = merge_lora(spec, params)
    activation_class = modules.SCORE_ACTIVATIONS[activation]
    texts = TextConfig(max_length, lower_case, chat=chat, truncation=truncation)
    last = spec.heads[-1] if spec.heads else None
    with replace_directory(directory) as temporary:
        if has_form(spec):
            task, folders = "sequence-classification", [("Transformer", "")]
            config, tensors = _classifier_files(spec, params)
            _write_transformer(temporary, config, tensors, shard_bytes)
            tokenizer.save(temporary)
        elif isinstance(last, LogitScore) and len(spec.heads) == 1:
            task, folders = "text-generation", [("Transformer", ""), ("LogitScore", "1_LogitScore")]
            config, tensors = _language_model_files(spec, last, params, output_layer)
            _write_transformer(temporary, config, tensors, shard_bytes)
            tokenizer.save(temporary)
            module_files.write_head(temporary / folders[1][1], last, {})
        elif isinstance(last, Dense):
            task = "feature-extraction"
            written = list_modules(
                spec,
                params,
                EncodingSettings(lower_case=lower_case),
                tokenizer=tokenizer,
                max_length=max_length,
                shard_bytes=shard_bytes,
            )
            kinds = [module.kind for module in written]
            folders = [(kind, f"{i}_{kind}" if i else "") for i, kind in enumerate(kinds)]
            for module, (_, folder) in zip(written, folders, strict=True):
                module.write(temporary / folder)
            own = params["heads"][str(len(spec.heads) - 1)]
            module_files.write_head(temporary / folders[-1][1], last, own, module_files.SCORES)
        else:
            kind = type(last).__name__ if last else "none"
            raise InputError(
                f"a cross-encoder's last head: expected Dense or LogitScore, found {kind}"
            )
        _add_activation(temporary / "config.json", activation_class)
        limit = temporary / "tokenizer_config.json"
        write_json(limit, read_json(limit) | {"model_max_length": max_length})
        write_text_config(temporary, texts, task)
        modules.write_modules(temporary, folders)
        settings = {
            "model_type": "CrossEncoder",
            "prompts": {"query": prompt} if prompt else {},
            "default_prompt_name": "query" if prompt else None,
            "activation_fn": activation_class,
        }
        write_json(temporary / "config_sentence_transformers.json", settings)


def write_classifier_adapter(
    directory: Path, spec: EncoderSpec, params: Params, *, tokenizer: SavesItself, base: str
) -> None:
    """Writes a classifier's adapter and head in PEFT's format, for `read_classifier` and PEFT.

    It is written whole or not at all. The head is among PEFT's `modules_to_save`, which
    transformers' own loader, and with it sentence-transformers', leaves out:
    `peft.PeftModelForSequenceClassification` reads all of it.

    Args:
        directory: the directory to write.
        spec: the encoder's, with an adapter.
        params: the encoder's parameters.
        tokenizer: writes the tokenizer's files.
        base: the name of the model that the adapter is put on.

    Raises:
        InputError: the model has no adapter, or a head that transformers' class of the family
            lacks; see also `adapter.write_adapter` and `write_classifier`.
    """
    if spec.lora is None or not has_form(spec):
        raise InputError(
            "an adapter of a cross-encoder: expected a model with an adapter and the head of "
            f"transformers' class, found {'another head' if spec.lora else 'no adapter'}"
        )
    name = spec.backbone.family
    tensors = tensors_from_params(classifier_family(name), {"heads": params["heads"]})
    head = {full_name(name, key): value for key, value in tensors.items()}
    with replace_directory(directory) as temporary:
        write_adapter(
            temporary, spec, params[ADAPTER], base, classifier=head, prefix=full_name(name, "")
        )
        tokenizer.save(temporary)


def _classifier_files(
    spec: EncoderSpec, params: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns config.json and the tensors of transformers' class of the family."""
    name = spec.backbone.family
    tree = {**params["backbone"], "heads": params["heads"]}
    tensors = tensors_from_params(classifier_family(name), tree)
    return classifier_config(spec), {full_name(name, key): value for key, value in tensors.items()}


def _language_model_files(
    spec: EncoderSpec, head: LogitScore, params: Params, output_layer: np.ndarray | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns config.json and the tensors of transformers' language model.

    Its output layer is that which was read, with the head's rows in their places. It stays tied to
    the table of token embeddings as long as these rows are those of the table.
    """
    backbone, family = spec.backbone, lookup("backbone", spec.backbone.family)
    if not isinstance(backbone, DecoderConfig):
        raise InputError(f"a {backbone.family} encoder is not a language model with a LogitScore")
    rows = np.asarray(jax.device_get(params["heads"]["0"]["rows"]))
    tensors = tensors_from_params(family, params["backbone"])
    table = np.asarray(jax.device_get(params["backbone"]["embeddings"]["token"]))
    tied = backbone.tied and np.array_equal(table[list(head.token_ids)], rows)
    tensors = {f"model.{name}": value for name, value in tensors.items()}
    if not tied:
        output_layer = np.array(table if output_layer is None else output_layer, rows.dtype)
        output_layer[list(head.token_ids)] = rows
        tensors[OUTPUT_LAYER["lm_head"]] = output_layer
    config = {
        "architectures": [re.sub("(Text)?Model$", "ForCausalLM", family.architecture)],
        "model_type": backbone.family,
        **family.write_config(dataclasses.replace(backbone, tied=tied)),
    }
    if head.softcap or backbone.family in LOGIT_SOFTCAPS:
        config["final_logit_softcapping"] = head.softcap or None
    return config, tensors


def _write_transformer(
    directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], shard_bytes: int
) -> None:
    half = all(value.dtype == jnp.bfloat16 for value in tensors.values() if value.ndim > 1)
    write_tensors(directory, tensors, shard_bytes)
    write_json(directory / "config.json", config | {"dtype": "bfloat16" if half else "float32"})


def _add_activation(path: Path, activation_class: str) -> None:
    """Adds the activation to config.json, where versions before 6 look for it."""
    fields = {
        "sentence_transformers": {"activation_fn": activation_class},
        "sbert_ce_default_activation_function": activation_class,  # before version 4
    }
    write_json(path, read_json(path) | fields)
