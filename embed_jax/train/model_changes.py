"""Changes to a loaded model before training: layers, dropout, heads, vocabulary, adapter."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
from jax.sharding import Mesh

from embed_jax.config import Experiment, Lora, Model
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Dropout, Normalize
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.int8 import quantize_kernel, quantize_layers
from embed_jax.encoders.lora import adapted_modules, init_lora, merge_lora
from embed_jax.encoders.shrink import keep_layers, parse_layers
from embed_jax.encoders.spec import EncoderSpec, LoraSpec
from embed_jax.encoders.token_heads import read_head
from embed_jax.encoders.vocabulary import VOCABULARY, Splade
from embed_jax.encoders.write_adapter import check_writable
from embed_jax.errors import InputError
from embed_jax.parallel.loading import by_rules, sharded_put
from embed_jax.registry import called
from embed_jax.runtime import say
from embed_jax.train.refused_fields import refuse_fields
from embed_jax.types import Params, Put, Rules


def apply_changes(
    spec: EncoderSpec, params: Params, model: Model, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Returns the model with the changes that the config names.

    They concern layers, pooling, attention, token head and dropout.

    Raises:
        InputError: for a change that the model's family does not know.
    """
    if model.layers:
        try:
            spec, params = keep_layers(spec, params, parse_layers(model.layers))
        except InputError as error:
            raise InputError(f"config.model.{error}") from None
    if model.pooling and model.pooling != spec.pooling:
        spec = dataclasses.replace(spec, pooling=model.pooling)
    if model.attention:
        if not hasattr(spec.backbone, "causal"):
            raise InputError(
                f"config.model.attention: a {spec.backbone.family} encoder has one kind only, "
                f"found {model.attention!r}"
            )
        spec = _with_fields(spec, causal=model.attention == "causal")
    if model.token_head:
        try:
            head = called("token_head", model.token_head)(spec.backbone.hidden_size)
        except InputError as error:
            raise InputError(f"config.model.token_head: {error}") from None
        spec = dataclasses.replace(spec, token_head=head)
        params = {**params, "token_head": head.init(jax.random.fold_in(key, 5))}
    if model.dropout >= 0:
        spec = set_dropout(spec, model.dropout)
    return spec, params


def set_dropout(spec: EncoderSpec, rate: float) -> EncoderSpec:
    """Returns the model with a rate of dropout in its layers, attention, and heads that drop.

    Raises:
        InputError: for a backbone without dropout.
    """
    if not hasattr(spec.backbone, "hidden_dropout"):
        raise InputError(
            f"config.model.dropout: a {spec.backbone.family} encoder has none, found {rate}"
        )
    heads = tuple(Dropout(rate) if isinstance(head, Dropout) else head for head in spec.heads)
    spec = dataclasses.replace(spec, heads=heads)
    return _with_fields(spec, hidden_dropout=rate, attention_dropout=rate)


def _with_fields(spec: EncoderSpec, **fields) -> EncoderSpec:
    return dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **fields))


def add_vocabulary_head(
    config: Experiment, spec: EncoderSpec, params: Params, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Returns the model with a head over the vocabulary in place of pooling and heads.

    It is the head of the masked language model where the files have one, else it is new.

    Raises:
        InputError: for a model without tokens' states, or of a family without such a head.
    """
    refuse_fields(
        config, ("model.mlp", "model.pooling", "model.token_head"), "not for a sparse model"
    )
    head = Splade(config.model.sparse)
    if spec.vocabulary is not None:
        if spec.vocabulary != head:
            raise InputError(
                f"config.model.sparse: the model has {spec.vocabulary}, found "
                f"{config.model.sparse!r}"
            )
        return spec, params
    try:
        own = head.init(spec.backbone, jax.random.fold_in(key, 7))
    except InputError as error:
        raise InputError(f"config.model.sparse: {error}") from None
    name = config.model.name
    read = None if name.startswith("random:") else read_head(resolve(name), spec.backbone, own)
    if read is None:
        say(f"sparse: {name} has no masked language model's head, a new one is trained")
    spec = dataclasses.replace(spec, pooling="mean", heads=(), vocabulary=head)
    others = {name: value for name, value in params.items() if name != "heads"}
    return spec, {**others, "heads": {}, VOCABULARY: own if read is None else read}


def add_dense(
    spec: EncoderSpec, params: Params, dense: Dense, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Adds a freshly initialised layer after the pooling and other heads.

    A Normalize of the model stays last.
    """
    heads = _heads_before_norm(spec)
    end = (Normalize(),) if len(heads) < len(spec.heads) else ()
    params = {**params, "heads": {**params["heads"], str(len(heads)): dense.init(key)}}
    return dataclasses.replace(spec, heads=(*heads, dense, *end)), params


def _heads_before_norm(spec: EncoderSpec) -> tuple[Any, ...]:
    return tuple(head for head in spec.heads if not isinstance(head, Normalize))


def dim_before_norm(spec: EncoderSpec) -> int:
    """Returns the size of an embedding before its length becomes 1."""
    return build_encoder(dataclasses.replace(spec, heads=_heads_before_norm(spec))).dim


def add_adapter(
    spec: EncoderSpec, params: Params, lora: Lora, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Returns the model with the adapter to train.

    Without a rank, an adapter that it has is merged.
    """
    if not lora.rank:
        return merge_lora(spec, params) if spec.lora else (spec, params)
    adapter = LoraSpec(
        lora.rank,
        lora.alpha,
        lora.dropout,
        tuple(name.strip() for name in lora.targets.split(",")),
        lora.rslora,
        lora.dora,
    )
    if spec.lora:
        if _adapter_identity(spec, params) != _adapter_identity(
            dataclasses.replace(spec, lora=adapter), params
        ):
            raise InputError(
                f"config.lora: the model has another adapter, {spec.lora}; give it the same "
                "settings, or save the model with lora.merge first"
            )
        return dataclasses.replace(
            spec, lora=dataclasses.replace(spec.lora, dropout=adapter.dropout)
        ), params
    spec = dataclasses.replace(spec, lora=adapter)
    try:
        if not lora.merge:
            check_writable(spec)
        return spec, {**params, "lora": init_lora(spec, params["backbone"], key)}
    except InputError as error:
        raise InputError(f"config.lora.targets: {error}") from None


def _adapter_identity(spec: EncoderSpec, params: Params) -> tuple:
    """Returns what makes two adapters of one model the same function of the same parameters."""
    lora = spec.lora
    assert lora is not None, "compared are models with an adapter"
    return lora.rank, lora.alpha, lora.rslora, lora.dora, adapted_modules(spec, params["backbone"])


def store_frozen(params: Params, lora: Lora) -> Params:
    """Casts or quantises random parameters that an adapter freezes.

    Parameters read from files are stored in this way too.
    """
    if not lora.rank or lora.base == "float32":
        return params
    if lora.base == "int8":
        return quantize_layers(params)
    return {
        **params,
        "backbone": jax.tree.map(lambda leaf: leaf.astype(lora.base), params["backbone"]),
    }


def put_function(rules: Rules, mesh: Mesh, lora: Lora) -> Put:
    """Returns a function that places parameters as they are read.

    Parameters to train are float32, frozen ones as configured.
    """
    eight_bits = bool(lora.rank) and lora.base == "int8"
    plain = sharded_put(
        by_rules(rules, mesh), "float32" if not lora.rank else "" if eight_bits else lora.base
    )

    def put(path, *about):
        leaf = plain(path, *about)
        is_kernel = re.fullmatch("backbone/layers/.*/kernel", path)
        return jax.jit(quantize_kernel)(leaf) if eight_bits and is_kernel else leaf

    return put
