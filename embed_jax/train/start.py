"""What training starts from: the model that a config names, loaded or initialised, and frozen ones beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from embed_jax.config import Experiment, Model
from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.encoders.build import EncoderSpec, build_encoder, random_spec
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.hf import read_model
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.shrink import keep_layers, layer_numbers
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import BASE, Encoder, Params


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
        if getattr(self.sentence.spec, "lora", None) is None:
            return self.params, {}
        from embed_jax.encoders.lora import split_trainable

        trained, frozen = split_trainable(self.params)
        return trained, {BASE: frozen}


def start_from(model: Model, max_length: int, seed: int, devices: int = 0) -> Start:
    """Loads or initialises the model that a config names.

    Args:
        model: `name` "random:SHAPE" makes random weights of a well-known shape for `tokenizer`.
        max_length: texts are cut at so many tokens in training; the result keeps the model's own limit if it is longer.
        seed: of random weights.
        devices: how many the resulting model encodes on; 0: all.
    """
    key = jax.random.key(seed)
    if model.name.startswith("random:"):
        if not model.tokenizer:
            raise InputError("config.model.tokenizer: random weights need a directory with tokenizer files, found ''")
        shape = model.name.removeprefix("random:")
        tokenizer = load_tokenizer(model.tokenizer, max_length, special_tokens=shape != "static")
        spec = random_spec(shape, vocab_size=tokenizer.vocab_size, pooling=model.pooling or "mean")
        params, prompts = build_encoder(spec).init(key), {}
    else:
        saved = read_model(resolve(model.name))
        spec, params = saved.spec, saved.params
        directory = Path(model.tokenizer) if model.tokenizer else saved.tokenizer_directory
        limit, special_tokens = max(saved.max_length, max_length), saved.special_tokens
        tokenizer = load_tokenizer(directory, limit, lower_case=saved.lower_case, special_tokens=special_tokens)
        prompts = {
            "prompts": saved.prompts,
            "default_prompt_name": saved.default_prompt_name,
            "include_prompt": saved.include_prompt,
            "similarity": saved.similarity,
            "lower_case": saved.lower_case,
        }
        if tokenizer.vocab_size > spec.backbone.vocab_size:
            raise InputError(
                f"{directory}: tokenizer of {tokenizer.vocab_size} tokens, model of {spec.backbone.vocab_size}"
            )
    if model.layers:
        try:
            spec, params = keep_layers(spec, params, layer_numbers(model.layers))
        except InputError as error:
            raise InputError(f"config.model.{error}") from None
    if model.pooling and model.pooling != spec.pooling:
        spec = dataclasses.replace(spec, pooling=model.pooling)
    if model.dropout >= 0:
        if not hasattr(spec.backbone, "hidden_dropout"):
            raise InputError(f"config.model.dropout: a {spec.backbone.family} encoder has none, found {model.dropout}")
        rates = {"hidden_dropout": model.dropout, "attention_dropout": model.dropout}
        spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **rates))

    training, params = _with_mlp(spec, params, key) if model.mlp else (spec, params)
    dtype = _compute_dtype(model.compute_dtype)
    encoder = build_encoder(training, compute_dtype=dtype, remat=model.remat, same_mask_columns=model.same_mask_columns)
    result = training if model.mlp == "kept" else spec
    return Start(
        encoder, params, SentenceEncoder(result, params, tokenizer, compute_dtype=dtype, devices=devices, **prompts)
    )


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
            limit = min(max_length, saved.max_length)
            found[name] = Frozen(
                build_encoder(saved.spec, compute_dtype=_compute_dtype(model.compute_dtype)),
                saved.params,
                load_tokenizer(
                    saved.tokenizer_directory,
                    limit,
                    lower_case=saved.lower_case,
                    special_tokens=saved.special_tokens,
                ),
            )
    return found


def training_prompts(config: Experiment, model: SentenceEncoder) -> tuple[str, str]:
    """The prompts of anchors and of candidates: the config's, else the model's default prompt."""
    usual = model.prompts.get(model.default_prompt_name, "")
    return config.data.anchor_prompt or usual, config.data.candidate_prompt or usual
