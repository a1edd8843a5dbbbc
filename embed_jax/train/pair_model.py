"""The cross-encoder that a run trains, and its objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from embed_jax.config import Experiment
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.model_kind import is_cross_encoder
from embed_jax.encoders.read_classifier import read_classifier
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.errors import InputError
from embed_jax.losses.base import Loss
from embed_jax.pretrained import check_length
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

# Of a saved cross-encoder, what its training leaves as it is.
SAVED_OPTIONS = ("prompt", "lower_case", "chat", "output_layer", "base", "truncation")


def pair_loss(config: Experiment) -> Loss:
    """Returns the loss of a cross-encoder's run: its scores are the model's logits.

    Raises:
        InputError: for a loss that cannot be built.
    """
    return training_loss(config, similarity="logit", temperature=1.0)


def initial_cross_encoder(config: Experiment, loss: Loss) -> TrainingModel:
    """Loads or initialises the cross-encoder that a config names, with the adapter to train.

    A cross-encoder goes on with its own head. Any other model gives its backbone, and the head of
    its family is new, except for BERT's pooler where the model has one.

    Args:
        config: of the run.
        loss: decides the number of logits: its classes, or one.

    Raises:
        InputError: for a model, tokenizer or setting that cannot be used.
    """
    refuse_fields(config, EMBEDDER_FIELDS, "not for a cross-encoder")
    longest, key = longest_text(config), jax.random.key(config.train.seed)
    spec, params, tokenizer, options = _start(config, loss.about.classes or 1, longest, key)
    if config.model.dropout >= 0:
        spec = set_dropout(spec, config.model.dropout)
    params = store_frozen(params, config.lora)
    spec, params = add_adapter(spec, params, config.lora, jax.random.fold_in(key, 4))
    dtype = compute_dtype(config.model.compute_dtype)
    # Scores of labels from 0 to 1 are probabilities; others are only compared with each other.
    options["activation"] = "sigmoid" if loss.name == "binary_cross_entropy" else "identity"
    options |= {"truncation": config.data.truncation} if config.data.truncation else {}
    devices = config.train.devices
    model = CrossEncoder(spec, params, tokenizer, compute_dtype=dtype, devices=devices, **options)
    encoder = build_encoder(spec, compute_dtype=dtype, remat=config.model.remat)
    return TrainingModel(encoder, params, spec, tokenizer.hf, model, longest)


def _start(
    config: Experiment, num_labels: int, longest: int, key: jax.Array
) -> tuple[EncoderSpec, Params, Tokenizer, dict[str, Any]]:
    """Returns the cross-encoder before training: spec, parameters, tokenizer and options."""
    name = config.model.name
    directory = None if name.startswith("random:") else resolve(name)
    if directory is None or not is_cross_encoder(directory):
        base = read_base(config, longest, key)
        spec = make_classifier(base.backbone, num_labels)
        params = {**build_encoder(spec).init(key), "backbone": base.params}
        options = {"base": base.base} if base.base else {}
        return spec, _with_pooler(params, base.pooler), base.tokenizer, options
    saved = read_classifier(directory)
    check_length(longest, saved.spec.backbone, "config.data.max_length")
    if (labels := build_encoder(saved.spec).dim) != num_labels:
        raise InputError(
            f"config.model.name: {name} gives {labels} logits a pair, the loss "
            f"{config.loss.name!r} needs {num_labels}"
        )
    tokenizer = load_tokenizer(saved.tokenizer_directory, longest, lower_case=saved.lower_case)
    options = {name: getattr(saved, name) for name in SAVED_OPTIONS}
    return saved.spec, saved.params, tokenizer, options


def _with_pooler(params: Params, pooler: Mapping[str, Any]) -> Params:
    """Returns the parameters with BERT's pooler as the first layer of the head, if there is one."""
    kernel, bias = pooler.get("pooler.dense.weight"), pooler.get("pooler.dense.bias")
    first = params["heads"].get("0", {})
    if kernel is None or first.get("kernel", kernel).shape != kernel.T.shape:
        return params
    dense = {"kernel": jnp.asarray(kernel.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {**params, "heads": {**params["heads"], "0": dense}}


def pair_objective(config: Experiment, model: TrainingModel) -> Objective:
    """Returns the objective of a loss on the logits of query-passage pairs.

    Raises:
        InputError: for a loss that needs embeddings, or a setting that has no meaning here.
    """
    refuse_fields(config, EMBEDDER_LOSS_FIELDS, "not for a cross-encoder")
    return embedding_objective(config, model, pair_loss(config))
