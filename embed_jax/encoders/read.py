"""Reads a model's directory: sentence-transformers' of versions 2 to 6, or Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from embed_jax.encoders import modules
from embed_jax.encoders.adapter import read_adapter
from embed_jax.encoders.base import backbone_shapes, base_name, find_base, is_adapter, read_backbone
from embed_jax.encoders.build import TOKEN_HEAD, EncoderSpec
from embed_jax.encoders.classifier import build_classifier, classifier_family, classifier_spec
from embed_jax.encoders.heads import Head, Normalize
from embed_jax.encoders.saved import SavedClassifier, SavedModel
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.static import read_static
from embed_jax.encoders.weights import open_tensors, params_from_tensors, read_json
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import Params, Put, Rules


def read_model(directory: Path, *, put: Put | None = None) -> SavedModel:
    """A sentence-transformers directory, or a plain Hugging Face one (mean pooling, as sentence-transformers does).

    A StaticEmbedding is one of the former. Where the Transformer is an adapter in PEFT's format, its base is read too.

    Args:
        put: makes each of the backbone's leaves, whose paths start with "backbone/", as of `params_from_tensors`; heads
            are NumPy arrays always.

    Raises:
        InputError: a file is missing or damaged, an architecture, pooling or module is not supported, a tensor
            is missing, extra, there twice or of another shape; or an adapter's base is not found or another.
    """
    directory = Path(directory)
    folders = modules.read_modules(directory)
    first, static = directory / folders[0][1], folders[0][0] == "StaticEmbedding"
    texts = {} if static else _read_optional(first / "sentence_bert_config.json")
    below = None if put is None else lambda path, *rest: put(f"backbone/{path}", *rest)
    base, transformer = find_base(first) if not static and is_adapter(first) else (base_name(first), first)
    backbone, params = read_static(first, below) if static else _read_transformer(transformer, below, texts)
    lora, adapter = None, {}
    if transformer != first:
        lora, adapter[ADAPTER] = read_adapter(first, backbone, base, transformer)
    pooling, include_prompt = "mean", True
    token_head, token_head_params = None, {}
    heads: list[Head] = []
    head_params: dict[str, Params] = {}
    for kind, folder in folders[1:]:
        if kind == "Pooling":
            pooling, include_prompt = modules.read_pooling(directory / folder / "config.json")
        elif kind == modules.LATENT:
            token_head, token_head_params[TOKEN_HEAD] = modules.read_latent_attention(directory / folder)
        elif kind == "Normalize":
            heads.append(Normalize())
        else:
            read = modules.read_dense if kind == "Dense" else modules.read_layer_norm
            head, head_params[str(len(heads))] = read(directory / folder)
            heads.append(head)
    settings = _read_optional(directory / "config_sentence_transformers.json")
    tokenizer = first if static or (first / "tokenizer_config.json").is_file() else transformer
    limits = {} if static else _read_optional(tokenizer / "tokenizer_config.json")
    return SavedModel(
        spec=EncoderSpec(backbone, pooling, tuple(heads), lora=lora, token_head=token_head),
        params={"backbone": params, "heads": head_params, **adapter, **token_head_params},
        max_length=_max_length(texts, limits, backbone.max_length),
        prompts=dict(settings.get("prompts") or {}),
        default_prompt_name=settings.get("default_prompt_name"),
        include_prompt=include_prompt,
        similarity=settings.get("similarity_fn_name") or "cosine",
        lower_case=bool(texts.get("do_lower_case")),
        tokenizer_directory=tokenizer,
        special_tokens=not static,
        matryoshka_dims=_sizes(settings, directory),
        adaptive_layers=bool(settings.get("adaptive_layers")),
        base=base,
        template=settings.get("instruction_template"),
        origin="" if static else str(_read_optional(first / "config.json").get("_name_or_path") or ""),
        plain=not (directory / "modules.json").is_file(),
    )


def sharding_rules(directory: Path) -> Rules:
    """How the parameters that `read_model` makes of a directory may be split over a mesh.

    Raises:
        InputError: as `read_model`, as far as it can be seen without weights.
    """
    kind, folder = modules.read_modules(directory)[0]
    if kind == "StaticEmbedding":
        family = lookup("backbone", "static")
    else:
        first = directory / folder
        _, family, _ = read_backbone(find_base(first)[1] if is_adapter(first) else first)
    return tuple((f"backbone/{path}", axes) for path, axes in family.sharding)


def read_classifier(directory: Path) -> SavedClassifier:
    """A cross-encoder's directory of sentence-transformers, or transformers' *ForSequenceClassification.

    Raises:
        InputError: as `read_model`, or there are no weights of a classifier, or the activation is not supported.
    """
    directory = Path(directory)
    folders = modules.read_modules(directory)
    if len(folders) > 1:
        found = ", ".join(kind for kind, _ in folders)
        raise InputError(f"{directory / 'modules.json'}: found {found}; a cross-encoder is a Transformer alone")
    transformer = directory / folders[0][1]
    backbone, _, config = read_backbone(transformer)
    family = classifier_family(backbone.family)
    spec = classifier_spec(backbone, config)
    tensors = open_tensors(transformer)
    out = f"{family.tensors['classifier/out']}.weight"
    if out not in tensors:
        raise InputError(f"{transformer}: no weights of a classifier ({out}): it is no sequence classification model "
                         f"such as {family.architecture}")  # fmt: skip
    shapes = jax.eval_shape(build_classifier(spec).init, jax.random.key(0))
    shapes = {**shapes["backbone"], "classifier": shapes["classifier"]}
    backbone_params = params_from_tensors(family, shapes, tensors, transformer)
    head_params = backbone_params.pop("classifier")
    settings = _read_optional(directory / "config_sentence_transformers.json")
    texts = _read_optional(transformer / "sentence_bert_config.json")
    prompts = settings.get("prompts") or {}
    return SavedClassifier(
        spec=spec,
        params={"backbone": backbone_params, "classifier": head_params},
        max_length=_max_length(texts, _read_optional(transformer / "tokenizer_config.json"), backbone.max_length),
        activation=modules.read_score_activation(directory, settings, config, spec.num_labels),
        prompt=prompts.get(settings.get("default_prompt_name")) or "",
        lower_case=bool(texts.get("do_lower_case")),
        tokenizer_directory=transformer,
    )


def _read_transformer(directory: Path, put: Put | None, texts: Mapping[str, Any]) -> tuple[Any, Params]:
    changes = texts.get("config_kwargs") or texts.get("config_args") or {}  # what sentence-transformers lets differ
    backbone, family, _ = read_backbone(directory, changes)
    return backbone, params_from_tensors(family, backbone_shapes(backbone), open_tensors(directory), directory, put=put)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sizes(settings: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    """The trained sizes, ascending."""
    found = settings.get("matryoshka_dims") or []
    if not isinstance(found, list) or not all(type(size) is int and size > 0 for size in found):
        raise InputError(
            f"{directory / 'config_sentence_transformers.json'}: matryoshka_dims: expected a list of sizes, "
            f"found {found!r}"
        )
    return tuple(sorted(found))


def _max_length(texts: Mapping[str, Any], tokenizer: Mapping[str, Any], positions: int) -> int:
    length = texts.get("max_seq_length") or tokenizer.get("model_max_length") or positions
    return int(min(length, positions))
