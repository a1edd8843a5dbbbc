"""Reads a model's directory: sentence-transformers' of versions 2 to 6, or Hugging Face's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.encoders import json_fields, module_files, modules, router
from embed_jax.encoders.base import backbone_shapes, base_name, find_base, is_adapter, read_backbone
from embed_jax.encoders.build import TOKEN_HEAD
from embed_jax.encoders.model_kind import (
    first_architecture,
    refuse_cross_encoder,
    refuse_late_interaction,
)
from embed_jax.encoders.read_adapter import read_adapter
from embed_jax.encoders.read_settings import (
    SETTINGS,
    named_prompts,
    read_default_prompt,
    read_matryoshka_dims,
    read_optional,
    read_similarity,
    read_truncation,
    shortest_limit,
)
from embed_jax.encoders.saved import SavedModel, SavedRoutes
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, LoraSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.text_config import TextConfig, read_text_config
from embed_jax.encoders.token_heads import read_transformer_head
from embed_jax.encoders.vocabulary import VOCABULARY, Splade, TokenWeights
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.encoders.weights import open_tensors, params_from_tensors
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import Params, Put, Rules, param_dtype

READ_HEAD: Mapping[str, Callable[..., Any]] = {
    "Dense": module_files.read_dense,
    "LayerNorm": module_files.read_layer_norm,
    "Normalize": module_files.read_normalize,
}
READ_TOKEN_HEAD = {
    modules.LATENT: module_files.read_latent_attention,
    modules.WEIGHTED: module_files.read_weighted_layers,
}


def _call_reader(read: Callable, *arguments: Any) -> Any:
    return read(*arguments)


def read_model(directory: Path, *, put: Put | None = None) -> SavedModel:
    """Reads a sentence-transformers directory, or a plain Hugging Face one.

    A plain directory gets mean pooling, or last-token pooling if config.json names a language
    model's class, as in sentence-transformers. Its version 6 also puts the tokenizer's chat
    template, if there is one, around texts; this is not done here. A cross-encoder is refused. A
    StaticEmbedding is a sentence-transformers directory. A Dropout module is left out. If the
    Transformer is an adapter in PEFT's format, its base is read too.

    Args:
        directory: the model's directory.
        put: makes each of the backbone's leaves, whose paths start with "backbone/"; see
            `params_from_tensors`. Heads are NumPy arrays always.

    Raises:
        InputError: a file is missing or damaged; an architecture, pooling, module or setting is not
            supported; a tensor is missing, extra, there twice or of another shape; or an adapter's
            base is not found or is another model.
    """
    directory = Path(directory)
    refuse_cross_encoder(directory)
    refuse_late_interaction(directory)
    folders = modules.read_modules(directory)
    settings = read_optional(directory / SETTINGS, json_fields.SETTINGS)
    plain = not (directory / "modules.json").is_file()
    return _read(directory, folders, {} if plain else settings, plain=plain, put=put)


def read_routes(directory: Path) -> SavedRoutes | None:
    """Reads a sentence-transformers directory with a Router or an Asym; None for any other one.

    Raises:
        InputError: see `read_model`, for each route, and `read_router`.
    """
    routes = router.read_router(directory)
    if routes is None:
        return None
    settings, once = (
        read_optional(directory / SETTINGS, json_fields.SETTINGS),
        functools.cache(_call_reader),
    )
    models = {
        name: _read(directory, folders, settings, call=once)
        for name, folders in routes.modules.items()
    }
    return SavedRoutes(models, routes.default, routes.tasks)


def _read(
    directory: Path,
    folders: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
    *,
    plain: bool = False,
    put: Put | None = None,
    call: Callable = _call_reader,
) -> SavedModel:
    """Reads the model that consists of these modules.

    Modules with parameters are read by `call(read, ...)`, which may cache them.
    """
    if not plain and folders == [("Transformer", folders[0][1])]:
        raise InputError(
            f"{directory / 'modules.json'}: found a Transformer only; expected a Pooling after it"
        )
    first, kind = directory / folders[0][1], folders[0][0]
    static = kind in ("StaticEmbedding", modules.TOKEN_WEIGHTS)
    sparse = kind == modules.TOKEN_WEIGHTS or any(each == modules.SPLADE for each, _ in folders)
    below = None if put is None else lambda path, *rest: put(f"backbone/{path}", *rest)
    task = "fill-mask" if sparse and not static else "feature-extraction"
    read = call(read_first, first, kind, plain, below, task)
    others, params_of_others, include_prompt = read_heads(directory, folders[1:], call)
    if sparse:
        last = directory / folders[-1][1]
        others["vocabulary"], head = call(
            _read_vocabulary, last, None if static else read.transformer, read.backbone
        )
        params_of_others |= {VOCABULARY: head} if head else {}
    if plain and _is_language_model(read.config):
        others["pooling"] = "last_token"
    others["heads"] += read_truncation(settings, directory)
    if isinstance(others["token_head"], WeightedLayers) and not read.config.get(
        "output_hidden_states"
    ):
        raise InputError(
            f"{read.transformer / 'config.json'}: output_hidden_states: expected true beside the "
            "weights of layers, which sentence-transformers leaves unused without"
        )
    tokenizer = first if static or (first / "tokenizer_config.json").is_file() else read.transformer
    limits = (
        {}
        if kind == "StaticEmbedding"
        else read_optional(tokenizer / "tokenizer_config.json", json_fields.TOKENIZER)
    )
    return SavedModel(
        spec=EncoderSpec(read.backbone, **others, lora=read.lora),
        params={**read.params, **params_of_others},
        max_length=shortest_limit(read.texts, limits, read.backbone.max_length),
        settings=EncodingSettings(
            prompts=named_prompts(settings),
            default_prompt_name=read_default_prompt(settings, directory),
            include_prompt=include_prompt,
            similarity=read_similarity(settings, directory, "dot" if sparse else "cosine"),
            template=settings.get("instruction_template") or "",
            matryoshka_dims=read_matryoshka_dims(settings, directory),
            adaptive_layers=bool(settings.get("adaptive_layers")),
            max_active=settings.get("max_active_dims") or 0,
            lower_case=read.texts.lower_case,
            base=read.base,
        ),
        tokenizer_directory=tokenizer,
        special_tokens=not static,
        records_template=settings.get("instruction_template") is not None,
        origin=""
        if static
        else str(
            read_optional(first / "config.json", json_fields.CONFIG).get("_name_or_path") or ""
        ),
        plain=plain,
        pooler=read.pooler,
    )


def _read_vocabulary(
    last: Path, transformer: Path | None, backbone: Any
) -> tuple[Splade | TokenWeights, Params]:
    """Reads the head of a sparse model.

    Args:
        last: the folder of the last module.
        transformer: that of the language model; None: a table is read instead.
        backbone: the backbone's frozen dataclass.
    """
    if transformer is None:
        return module_files.read_token_weights(last)[0], {}
    head = module_files.read_splade(last)
    try:
        shapes = jax.eval_shape(functools.partial(head.init, backbone), jax.random.key(0))
    except InputError as error:
        raise InputError(f"{transformer / 'config.json'}: {error}") from None
    params = read_transformer_head(transformer, backbone, shapes)
    if params is None:
        raise InputError(
            f"{transformer}: no weights of a masked language model's head, whose logits are "
            "the weights of a sparse embedding"
        )
    return head, params


@dataclasses.dataclass(frozen=True)
class FirstModule:
    """The content of the first module's files: the backbone, its settings, and any adapter."""

    backbone: Any
    params: Params
    texts: TextConfig
    base: str
    transformer: Path
    config: Mapping[str, Any]
    lora: LoraSpec | None
    pooler: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_first(
    first: Path,
    kind: str,
    plain: bool,
    put: Put | None,
    task: str = "feature-extraction",
    pairs: bool = False,
    of_tokens: bool = False,
) -> FirstModule:
    """Reads the first module: the backbone, and an adapter of it.

    Args:
        first: the module's directory.
        kind: its class: a StaticEmbedding, a SparseStaticEmbedding, or else a Transformer.
        plain: whether there are transformers' files only.
        put: see `params_from_tensors`.
        task: see `read_text_config`.
        pairs: see `read_text_config`.
        of_tokens: see `read_text_config`.

    Raises:
        InputError: see `read_model`.
    """
    if kind in ("StaticEmbedding", modules.TOKEN_WEIGHTS):
        from embed_jax.encoders.static import StaticConfig, read_static

        if kind == modules.TOKEN_WEIGHTS:
            _, table = module_files.read_token_weights(first)
            backbone, params = StaticConfig(vocab_size=len(table), hidden_size=1), {"token": table}
        else:
            backbone, params = read_static(first, put)
        return FirstModule(
            backbone, {"backbone": params}, TextConfig(), base_name(first), first, {}, None
        )
    texts = (
        TextConfig() if plain else read_text_config(first, task, pairs=pairs, of_tokens=of_tokens)
    )
    base, transformer = find_base(first) if is_adapter(first) else (base_name(first), first)
    backbone, family, config = read_backbone(transformer, texts.changes)
    tensors = open_tensors(transformer)
    params = {
        "backbone": params_from_tensors(
            family, backbone_shapes(backbone), tensors, transformer, put=put
        )
    }
    lora = None
    if transformer != first:
        lora, params[ADAPTER] = read_adapter(first, backbone, base, transformer)
    pooler = {
        short: np.array(value, param_dtype(value.dtype))
        for name, value in tensors.items()
        for short in [family.without_prefix(name)]
        if short.startswith("pooler.")
    }
    return FirstModule(backbone, params, texts, base, transformer, config, lora, pooler)


def sharding_rules(directory: Path) -> Rules:
    """Returns rules by which the parameters of a model directory may be split over a mesh.

    Raises:
        InputError: see `read_model`, for errors that are seen without reading weights.
    """
    kind, folder = modules.read_modules(directory)[0]
    if kind in ("StaticEmbedding", modules.TOKEN_WEIGHTS):
        family = lookup("backbone", "static")
    else:
        first = directory / folder
        _, family, _ = read_backbone(find_base(first)[1] if is_adapter(first) else first)
    return tuple((f"backbone/{path}", axes) for path, axes in family.sharding)


def read_heads(
    directory: Path,
    folders: Sequence[tuple[str, str]],
    call: Callable = _call_reader,
    readers: Mapping[str, Callable[..., Any]] = READ_HEAD,
) -> tuple[dict[str, Any], Params, bool]:
    """Reads the modules after the backbone.

    Args:
        directory: the model's directory.
        folders: class name and folder of each module.
        call: see `_read`.
        readers: the function that reads each kind of head; others are left out.

    Returns:
        Fields of EncoderSpec, parameters, and `EncodingSettings.include_prompt`.
    """
    spec: dict[str, Any] = {"pooling": "mean", "heads": (), "token_head": None}
    include_prompt = True
    params: Params = {"heads": {}}
    for kind, folder in folders:
        place = directory / folder
        if kind == "Pooling":
            spec["pooling"], include_prompt = modules.read_pooling(place / "config.json")
        elif kind in READ_TOKEN_HEAD:
            spec["token_head"], params[TOKEN_HEAD] = call(READ_TOKEN_HEAD[kind], place)
        elif kind in readers:
            head, head_params = call(readers[kind], place)
            params["heads"] |= {str(len(spec["heads"])): head_params} if head_params else {}
            spec["heads"] += (head,)
    return spec, params, include_prompt


def _is_language_model(config: Mapping[str, Any]) -> bool:
    """Tells whether config.json names a language model and does not say that all tokens are seen.

    A field is_causal that is false says so: each token then sees all others.
    """
    return first_architecture(config).endswith("ForCausalLM") and config.get("is_causal", True)
