"""The model of several heads that a run trains, and its objective."""

from __future__ import annotations

import dataclasses

import jax

from embed_jax.config import Experiment
from embed_jax.encoders.branch_files import (
    has_branches,
    multi_vector_branch,
    read_branches,
    sparse_branch,
)
from embed_jax.encoders.build import BRANCHES, DENSE, build_encoder, init_heads
from embed_jax.encoders.hub import resolve
from embed_jax.errors import InputError
from embed_jax.head_scores import DEFAULT_SUM, read_sum, write_sum
from embed_jax.losses.base import Loss
from embed_jax.multi_head import MultiHeadEncoder, unused_tokens
from embed_jax.registry import unknown
from embed_jax.runtime import say
from embed_jax.sentence import SentenceEncoder
from embed_jax.train.model import TrainingModel, compute_dtype, initial_model
from embed_jax.train.objective import Objective, embedding_objective, training_loss
from embed_jax.train.prompts import settle_prompts
from embed_jax.types import Params

KNOWN = ("sparse", "multi_vector")
UNUSED = ("query", "sparse", "start_words", "mlp", "same_mask_columns", "guide", "teacher")


def head_names(config: Experiment) -> tuple[str, ...]:
    """Returns the heads of a run's model beside the dense one.

    Raises:
        InputError: for no head, an unknown one, or one named twice.
    """
    names = tuple(filter(None, (name.strip() for name in config.model.heads.split(","))))
    for name in names or ("",):
        if name not in KNOWN:
            raise InputError(f"config.model.heads: {unknown('head', name, KNOWN)}")
    if len(set(names)) < len(names):
        raise InputError(f"config.model.heads: expected each once, found {config.model.heads!r}")
    return names


def similarity_of_run(config: Experiment) -> str:
    """Returns the weighted sum of scores that a run trains and is measured by.

    Raises:
        InputError: for a sum with heads that the model lacks.
    """
    names = (DENSE, *head_names(config))
    if not config.loss.similarity:
        return write_sum({name: DEFAULT_SUM[name] for name in names})
    try:
        weights = read_sum(config.loss.similarity)
        for name in weights:
            if name not in names:
                raise InputError(unknown("head", name, names))
    except InputError as error:
        raise InputError(f"config.loss.similarity: {error}") from None
    return write_sum(weights)


def multi_head_loss(config: Experiment) -> Loss:
    """Returns the loss of a run; its score is the sum of the heads' unless it names another.

    Raises:
        InputError: for a loss that cannot be built.
    """
    return training_loss(config, similarity=similarity_of_run(config))


def initial_multi_head(config: Experiment) -> TrainingModel:
    """Loads or initialises the model of several heads that a config names.

    Heads that lie beside the model's files go on; others are new.

    Raises:
        InputError: for a model, tokenizer or setting that cannot be used.
    """
    for name in UNUSED:
        if value := getattr(config.model, name):
            raise InputError(
                f"config.model.{name}: not for a model of several heads, found {value!r}"
            )
    similarity, names = similarity_of_run(config), head_names(config)
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, heads=""))
    dense = initial_model(plain)
    sentence = dense.sentence
    if not isinstance(sentence, SentenceEncoder):
        raise InputError(
            f"config.model.name: expected a dense model of one encoder, found {sentence!r}"
        )
    backbone = dense.spec.backbone
    width, unused = backbone.hidden_size, unused_tokens(sentence.tokenizer)
    kinds = {
        "sparse": sparse_branch(unused),
        "multi_vector": multi_vector_branch(width, config.late.dim),
    }
    saved: dict[str, Params] = {}
    where = config.model.name
    if not where.startswith("random:") and has_branches(resolve(where)):
        branches, saved = read_branches(resolve(where), width, unused)
        kinds |= {branch.name: branch for branch in branches}
    if new := [name for name in names if name not in saved]:
        say(f"heads: {where} has no {' and no '.join(new)} head, new ones are trained")
    spec = dataclasses.replace(dense.spec, branches=tuple(kinds[name] for name in names))
    key = jax.random.fold_in(jax.random.key(config.train.seed), 8)
    params = {**dense.params, BRANCHES: init_heads(spec, key)[BRANCHES]}
    params[BRANCHES] |= {name: saved[name] for name in names if name in saved}
    dtype = compute_dtype(config.model.compute_dtype)
    result = MultiHeadEncoder(
        spec,
        params,
        sentence.tokenizer,
        dataclasses.replace(sentence.settings, similarity=similarity),
        pooler=sentence.pooler,
        compute_dtype=dtype,
        devices=config.train.devices,
    )
    encoder = build_encoder(
        spec,
        compute_dtype=dtype,
        remat=config.model.remat,
        vectors_per_text=dense.max_length,
    )
    return TrainingModel(encoder, params, spec, dense.tokenizer, result, dense.max_length)


def multi_head_objective(config: Experiment, model: TrainingModel) -> Objective:
    """Returns the objective of a loss on the embeddings by several heads.

    Raises:
        InputError: for a setting that has no meaning here.
    """
    loss = multi_head_loss(config)
    for name, value in (
        ("loss.mlm", config.loss.mlm),
        ("queue.size", config.queue.size),
        ("loss.name", config.loss.name if loss.about.layers or loss.about.dims else ""),
    ):
        if value:
            raise InputError(f"config.{name}: not for a model of several heads, found {value!r}")
    objective = embedding_objective(config, model, loss)
    assert isinstance(model.result, MultiHeadEncoder), "`initial_multi_head` makes the model"
    return dataclasses.replace(objective, prompts=settle_prompts(config, model.result))
