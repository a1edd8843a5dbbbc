"""The late-interaction model that a run trains, and its objective."""

from __future__ import annotations

import dataclasses

import jax

from embed_jax.config import Experiment
from embed_jax.data.tokenize import Tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Head, Normalize
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.model_kind import is_late_interaction
from embed_jax.encoders.read_late import read_late_interaction
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.token_settings import PUNCTUATION, TokenSettings
from embed_jax.encoders.towers import two_sides
from embed_jax.errors import InputError
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.losses.base import Loss
from embed_jax.pretrained import check_length
from embed_jax.scores import Score
from embed_jax.token_sides import register_markers, saved_tokenizer
from embed_jax.train.base_model import compute_dtype, longest_text, read_base
from embed_jax.train.model import TrainingModel
from embed_jax.train.model_changes import add_adapter, set_dropout, store_frozen
from embed_jax.train.objective import Objective, embedding_objective, training_loss
from embed_jax.train.refused_fields import (
    EMBEDDER_FIELDS,
    EMBEDDER_LOSS_FIELDS,
    refuse_fields,
)
from embed_jax.types import Params
from embed_jax.xtr import xtr


def late_loss(config: Experiment) -> Loss:
    """Returns the loss of a run of late interaction: its score is MaxSim unless it names another.

    Raises:
        InputError: for a loss that cannot be built.
    """
    similarity: str | Score = "maxsim"
    if config.loss.similarity == "xtr":
        similarity = xtr(config.late.top_k)
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, similarity=""))
    return training_loss(config, similarity=similarity, temperature=1.0)


def initial_late_interaction(config: Experiment) -> TrainingModel:
    """Loads or initialises the late-interaction model that a config names.

    Such a model goes on with its own head, markers and lengths. Any other gives its backbone, and
    the head of `config.late` is new.

    Raises:
        InputError: for a model, tokenizer or setting that cannot be used.
    """
    refuse_fields(config, (*EMBEDDER_FIELDS, "model.same_mask_columns"), "not for late interaction")
    key = jax.random.key(config.train.seed)
    spec, params, tokenizer, settings, texts = _start(config, key)
    if config.model.dropout >= 0:
        spec = set_dropout(spec, config.model.dropout)
    params = store_frozen(params, config.lora)
    spec, params = add_adapter(spec, params, config.lora, jax.random.fold_in(key, 4))
    # XTR is a score to train with, as it depends on the documents of a batch.
    similarity = config.loss.similarity.replace("xtr", "") or "maxsim"
    settings = dataclasses.replace(
        settings, similarity=similarity, matryoshka_dims=late_loss(config).about.dims
    )
    dtype = compute_dtype(config.model.compute_dtype)
    model = LateInteractionEncoder(
        spec,
        params,
        tokenizer,
        settings,
        texts,
        compute_dtype=dtype,
        devices=config.train.devices,
    )
    query, document = (
        build_encoder(
            spec,
            compute_dtype=dtype,
            remat=config.model.remat,
            vectors_per_text=model.tokenizers[side].max_length,
        )
        for side in model.routes
    )
    longest = max(tokenizer.max_length for tokenizer in model.tokenizers.values())
    encoder = two_sides(query, document)
    return TrainingModel(encoder, params, spec, tokenizer.hf, model, longest)


def _start(
    config: Experiment, key: jax.Array
) -> tuple[EncoderSpec, Params, Tokenizer, EncodingSettings, TokenSettings]:
    """Returns the model before training: spec, parameters, tokenizer and settings."""
    name, late, longest = config.model.name, config.late, longest_text(config)
    if not name.startswith("random:") and is_late_interaction(resolve(name)):
        saved = read_late_interaction(resolve(name))
        check_length(longest, saved.spec.backbone, "config.data.max_length")
        texts = dataclasses.replace(saved.texts, document_length=longest)
        tokenizer = saved_tokenizer(saved, saved.max_length)
        return saved.spec, saved.params, tokenizer, saved.settings, texts
    base = read_base(config, max(longest, late.query_length), key)
    markers = {"query": late.query_marker, "document": late.document_marker}
    for side, marker in markers.items():
        if marker.strip() and base.tokenizer.backend.token_to_id(marker.strip()) is None:
            raise InputError(
                f"config.late.{side}_marker: expected a token of the tokenizer, or '' for no "
                f"marker, found {marker!r}"
            )
    spec = EncoderSpec(base.backbone, "", _heads(base.backbone.hidden_size, late.dim, late.head))
    params = {**build_encoder(spec, vectors_per_text=0).init(key), "backbone": base.params}
    texts = TokenSettings(
        query_length=late.query_length if late.expansion != "min" else 0,
        document_length=longest,
        expansion=late.expansion,
        expansion_length=late.query_length if late.expansion else 0,
        attend=late.attend,
        skip_words=PUNCTUATION if late.skip_punctuation else (),
    )
    tokenizer = register_markers(base.tokenizer, markers.values())
    return spec, params, tokenizer, EncodingSettings(markers, similarity="maxsim"), texts


def _heads(size: int, dim: int, kind: str) -> tuple[Head, ...]:
    """Returns the heads from token states of a size to vectors of `dim` numbers."""
    linear = Dense(size, dim, bias=False, activation="identity")
    if kind == "linear":
        return linear, Normalize()
    return Dense(size, size, activation="gelu", residual=kind == "residual"), linear, Normalize()


def late_objective(config: Experiment, model: TrainingModel) -> Objective:
    """Returns the objective of a loss on the vectors of tokens.

    Raises:
        InputError: for a setting that has no meaning here.
    """
    loss = late_loss(config)
    of_layers = ("loss.name",) if loss.about.layers else ()
    refuse_fields(config, (*EMBEDDER_LOSS_FIELDS, *of_layers), "not for late interaction")
    prompts = model.result.settings.prompts if model.sentence else {}
    objective = embedding_objective(config, model, loss)
    sides = prompts.get("query", ""), prompts.get("document", "")
    return dataclasses.replace(objective, prompts=sides)
