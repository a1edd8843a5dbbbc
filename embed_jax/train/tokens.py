"""Objectives on tokens: masked language modelling, masked next-token prediction, the next token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.chunks import cut_records
from embed_jax.data.record_source import RecordSource
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.token_heads import head_tensors, read_head
from embed_jax.encoders.token_objectives import build_token_objective
from embed_jax.errors import InputError
from embed_jax.losses.base import About
from embed_jax.parallel.tokens import HEAD, token_loss
from embed_jax.runtime import say
from embed_jax.train.model import TrainingModel
from embed_jax.train.objective import Objective, describe_result
from embed_jax.types import Params, Record, TrainState

# Fields about embeddings, or about texts in columns.
OF_LOSSES = (
    "loss.mlm",
    "data.anchor_prompt",
    "data.candidate_prompt",
    "data.anchor_instruction",
    "data.candidate_instruction",
    "model.query",
    "model.mlp",
    "model.guide",
    "model.teacher",
    "data.teacher_vectors",
    "data.teacher_ids",
)


def token_objective(config: Experiment, model: TrainingModel) -> Objective:
    """Returns the objective on tokens that `config.loss.name` names, such as "mntp(rate=0.2)".

    Its parameters are those in the model's directory, else random ones. Beside an adapter they are
    not trained, like everything else of the model.

    Raises:
        InputError: for an objective that cannot be built, or settings that only training on
            embeddings has.
    """
    name = config.loss.name
    _check_settings(config)
    try:
        auxiliary = build_token_objective(name)(model.encoder, model.tokenizer)
    except InputError as error:
        raise InputError(f"config.loss.name: {name!r}: {error}") from None
    head = _read_head(config, model, jax.eval_shape(auxiliary.init, jax.random.key(0)))
    fixed = head if config.lora.rank and head else {}

    def init(key: PRNGKeyArray) -> dict[str, Params]:
        if head is None:
            return {"loss": auxiliary.init(jax.random.fold_in(key, 2))}
        return {"loss": {} if config.lora.rank else head}

    def tensors(state: TrainState) -> dict[str, np.ndarray]:
        params = {**state.frozen.get(HEAD, {}), **state.params["loss"]}
        return head_tensors(model.encoder.config, params)

    def pieces(records: Sequence[Record], source: RecordSource) -> Sequence[Record]:
        tokenizer = model.tokenizers["encoder"].cut_at(source.max_length)
        return cut_records(
            records, lambda record: source.fields.columns(record)[0] or "", tokenizer
        )

    about = About(columns=(1, 1))
    if model.sentence is not None:
        describe_result(config, model.embedder, about, prompted=False)
    return Objective(
        name,
        about,
        init,
        functools.partial(token_loss, model.encoder, auxiliary),
        frozen={HEAD: fixed} if fixed else {},
        pieces=pieces,
        tensors=tensors,
    )


def _check_settings(config: Experiment) -> None:
    name = config.loss.name
    for field in OF_LOSSES:
        part, _, field_name = field.partition(".")
        value = getattr(getattr(config, part), field_name)
        if value:
            raise InputError(
                f"config.{field}: {name!r} trains on tokens only and has no use for it, found "
                f"{value!r}"
            )
    if config.queue.size:
        raise InputError(
            f"config.queue.size: the loss {name!r} has no use for a queue of negatives"
        )
    for dataset, source in vars(config.mixture.sources).items():
        if source.loss or source.loss_weight != SourceConfig.loss_weight:
            raise InputError(
                f"config.mixture.sources.{dataset}: {name!r} is for all data sets, found a "
                "separate loss"
            )


def _read_head(config: Experiment, model: TrainingModel, shapes: Params) -> Params | Any | None:
    """Reads the objective's parameters in the model's directory, NumPy; None without any.

    For an abstract model it returns their shapes where an adapter would leave them unchanged, else
    None.
    """
    if not shapes or config.model.name.startswith("random:"):
        return None
    dtype = jnp.bfloat16 if config.lora.rank and config.lora.base != "float32" else np.float32
    if model.sentence is None:
        if not config.lora.rank:
            return None
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    head = read_head(resolve(config.model.name), model.encoder.config, shapes)
    if head is None:
        say(f"{config.model.name} has nothing that predicts tokens: what does starts at random")
        return None
    return jax.tree.map(lambda leaf: np.array(leaf, dtype), head)
