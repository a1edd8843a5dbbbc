"""What training starts from: the model that a config names, loaded or initialised, and frozen ones beside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
from jax.sharding import Mesh

from embed_jax.config import Lora, Model
from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.encoders.adapter import check_writable
from embed_jax.encoders.build import EncoderSpec, build_encoder, random_spec
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.int8 import quantize, quantize_layers
from embed_jax.encoders.lora import (
    LoraSpec,
    adapted_modules,
    init_lora,
    merge_lora,
    split_trainable,
)
from embed_jax.encoders.read import read_model, sharding_rules
from embed_jax.encoders.shrink import keep_layers, layer_numbers
from embed_jax.errors import InputError
from embed_jax.parallel.loading import by_rules, sharded_put
from embed_jax.pretrained import check_length, tokenizer_of, with_family
from embed_jax.registry import called
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import BASE, Encoder, Params, Put, Rules


@dataclasses.dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        encoder: as trained; it may have a head that the result drops.
        params: of `encoder`, float32.
        sentence: the model that comes out, before training; shares `params`.
    """

    encoder: Encoder
    params: Params
    sentence: SentenceEncoder

    def split(self) -> tuple[Params, dict[str, Params]]:
        """The parameters to train, and {BASE: the frozen ones} if there is an adapter."""
        trained, frozen = split_trainable(self.params, self.sentence.spec)
        return trained, {BASE: frozen} if frozen else {}


def start_from(
    model: Model,
    max_length: int,
    seed: int,
    devices: int = 0,
    *,
    lora: Lora | None = None,
    mesh: Mesh | None = None,
) -> Start:
    """Loads or initialises the model that a config names.

    Args:
        model: `name` "random:SHAPE" makes random weights of a well-known shape for `tokenizer`.
        max_length: texts are cut at so many tokens in training; the result keeps the model's own limit if it is longer.
        seed: of random weights.
        devices: how many the resulting model encodes on; 0: all.
        lora: the adapter to train. A model that has it already goes on with it; one that has another is refused.
            Without a rank, an adapter that the model has is merged into it.
        mesh: where to put what is read from files, split as the training will want it; None: it stays on the host.
    """
    lora = lora or Lora()
    key = jax.random.key(seed)
    if model.name.startswith("random:"):
        if not model.tokenizer:
            raise InputError(
                "config.model.tokenizer: random weights need a directory with tokenizer files, found ''"
            )
        shape = model.name.removeprefix("random:")
        tokenizer = load_tokenizer(
            _tokenizer(model),
            max_length,
            special_tokens=shape != "static",
            append_eos=model.append_eos,
        )
        spec = random_spec(shape, vocab_size=tokenizer.vocab_size, pooling=model.pooling or "mean")
        check_length(max_length, spec.backbone, "config.data.max_length")
        params, recorded = kept(build_encoder(spec).init(key), lora), {}
    else:
        found = resolve(model.name)
        put = None if mesh is None else _putting(sharding_rules(found), mesh, lora)
        saved = with_family(read_model(found, put=put), model.name)
        spec, params = saved.spec, saved.params
        check_length(max_length, spec.backbone, "config.data.max_length")
        directory = _tokenizer(model) if model.tokenizer else None
        tokenizer = tokenizer_of(
            saved, max(saved.max_length, max_length), directory, model.append_eos
        )
        recorded = saved.recorded()
    spec, params = changed(spec, params, model, key)
    spec, params = adapted(spec, params, lora, jax.random.fold_in(key, 4))
    training, params = _with_mlp(spec, params, key) if model.mlp else (spec, params)
    dtype = _compute_dtype(model.compute_dtype)
    encoder = build_encoder(
        training, compute_dtype=dtype, remat=model.remat, same_mask_columns=model.same_mask_columns
    )
    result = training if model.mlp == "kept" else spec
    sentence = SentenceEncoder(
        result, params, tokenizer, compute_dtype=dtype, devices=devices, **recorded
    )
    return Start(encoder, params, sentence)


def _tokenizer(model: Model) -> Path:
    """Where the tokenizer lies that a config names: a directory, or a model's."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", model.tokenizer)
    return resolve(model.tokenizer) if is_name else Path(model.tokenizer)


def _putting(rules: Rules, mesh: Mesh, lora: Lora) -> Put:
    """How parameters that are read come to lie: those to train in float32, frozen ones as the config has them."""
    eight_bits = bool(lora.rank) and lora.base == "int8"
    plain = sharded_put(
        by_rules(rules, mesh), "float32" if not lora.rank else "" if eight_bits else lora.base
    )

    def put(path, *about):
        leaf = plain(path, *about)
        is_kernel = re.fullmatch("backbone/layers/.*/kernel", path)
        return jax.jit(quantize)(leaf) if eight_bits and is_kernel else leaf

    return put


def kept(params: Params, lora: Lora) -> Params:
    """Random parameters as those read from files are kept: what an adapter freezes as the config has it."""
    if not lora.rank or lora.base == "float32":
        return params
    if lora.base == "int8":
        return quantize_layers(params)
    return {
        **params,
        "backbone": jax.tree.map(lambda leaf: leaf.astype(lora.base), params["backbone"]),
    }


def changed(
    spec: EncoderSpec, params: Params, model: Model, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """The model with other layers, pooling, attention, token head and dropout, where the config names them."""
    if model.layers:
        try:
            spec, params = keep_layers(spec, params, layer_numbers(model.layers))
        except InputError as error:
            raise InputError(f"config.model.{error}") from None
    if model.pooling and model.pooling != spec.pooling:
        spec = dataclasses.replace(spec, pooling=model.pooling)
    if model.attention:
        if not hasattr(spec.backbone, "causal"):
            raise InputError(f"config.model.attention: a {spec.backbone.family} encoder has one kind only, "
                             f"found {model.attention!r}")  # fmt: skip
        spec = _with_fields(spec, causal=model.attention == "causal")
    if model.token_head:
        try:
            head = called("token_head", model.token_head)(spec.backbone.hidden_size)
        except InputError as error:
            raise InputError(f"config.model.token_head: {error}") from None
        spec = dataclasses.replace(spec, token_head=head)
        params = {**params, "token_head": head.init(jax.random.fold_in(key, 5))}
    if model.dropout >= 0:
        if not hasattr(spec.backbone, "hidden_dropout"):
            raise InputError(
                f"config.model.dropout: a {spec.backbone.family} encoder has none, found {model.dropout}"
            )
        spec = _with_fields(spec, hidden_dropout=model.dropout, attention_dropout=model.dropout)
    return spec, params


def _with_fields(spec: EncoderSpec, **fields) -> EncoderSpec:
    return dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **fields))


def adapted(
    spec: EncoderSpec, params: Params, lora: Lora, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """The model with the adapter to train; without one, all parameters are the model's own, in float32."""
    if not lora.rank:
        return merge_lora(spec, params) if spec.lora else (spec, params)
    wanted = LoraSpec(
        lora.rank,
        lora.alpha,
        lora.dropout,
        tuple(name.strip() for name in lora.targets.split(",")),
        lora.rslora,
        lora.dora,
    )
    if spec.lora:
        if _about(spec, params) != _about(dataclasses.replace(spec, lora=wanted), params):
            raise InputError(f"config.lora: the model has another adapter, {spec.lora}; give it the same settings, or "
                             "save the model with lora.merge first")  # fmt: skip
        return dataclasses.replace(
            spec, lora=dataclasses.replace(spec.lora, dropout=wanted.dropout)
        ), params
    spec = dataclasses.replace(spec, lora=wanted)
    try:
        if not lora.merge:
            check_writable(spec)
        return spec, {**params, "lora": init_lora(spec, params["backbone"], key)}
    except InputError as error:
        raise InputError(f"config.lora.targets: {error}") from None


def _about(spec: EncoderSpec, params: Params) -> tuple:
    """What makes two adapters of one model the same function of the same parameters."""
    lora = spec.lora
    return lora.rank, lora.alpha, lora.rslora, lora.dora, adapted_modules(spec, params["backbone"])


def _with_mlp(spec: EncoderSpec, params: Params, key: jax.Array) -> tuple[EncoderSpec, Params]:
    """SimCSE's head, freshly initialised, after the pooling; a Normalize of the model stays last."""
    heads = tuple(head for head in spec.heads if not isinstance(head, Normalize))
    dim = build_encoder(dataclasses.replace(spec, heads=heads)).dim
    mlp, place = Dense(dim, dim, activation="tanh"), str(len(heads))
    end = (Normalize(),) if len(heads) < len(spec.heads) else ()
    params = {**params, "heads": {**params["heads"], place: mlp.init(jax.random.fold_in(key, 1))}}
    return dataclasses.replace(spec, heads=(*heads, mlp, *end)), params


def _compute_dtype(name: str) -> str:
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model that only looks on: a guide or a teacher."""

    encoder: Encoder
    params: Params
    tokenizer: Tokenizer


def frozen_models(model: Model, max_length: int) -> dict[str, Frozen]:
    """The guide and the teacher that a config names, if it does.

    Args:
        max_length: texts are cut at so many of their tokens, or at their own limit if that is less.
    """
    found = {}
    for name in ("guide", "teacher"):
        if getattr(model, name):
            saved = read_model(resolve(getattr(model, name)))
            tokenizer = tokenizer_of(saved, min(max_length, saved.max_length))
            encoder = build_encoder(saved.spec, compute_dtype=_compute_dtype(model.compute_dtype))
            found[name] = Frozen(encoder, saved.params, tokenizer)
    return found
