"""The objective of a run: a loss with its parameters, frozen models and what it saves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from embed_jax.config import Experiment, LossSettings, Model
from embed_jax.data.record_source import RecordSource
from embed_jax.data.tokenize import Tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_model
from embed_jax.encoders.token_objectives import mlm_auxiliary
from embed_jax.errors import InputError
from embed_jax.losses.base import About, Loss
from embed_jax.losses.compose import per_dataset, weighted_sum
from embed_jax.losses.expression import arguments_of, build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.pretrained import tokenizer_of
from embed_jax.routed import AnyEncoder
from embed_jax.runtime import say
from embed_jax.train.base_model import compute_dtype
from embed_jax.train.model import TrainingModel
from embed_jax.train.prompts import settle_prompts
from embed_jax.train.sources import ONLY
from embed_jax.types import Auxiliary, Encoder, Params, Record, TrainState

UNSET = dataclasses.asdict(LossSettings())
NOT_ARGUMENTS = ("name", "form", "mlm")  # fields of `config.loss` that no loss takes


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A model that is not trained: a guide or a teacher."""

    encoder: Encoder
    params: Params
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Objective:
    """The objective that a run minimises; an experiment may pass its own.

    See `embedding_objective` to begin with.

    Attributes:
        name: for messages.
        about: what it needs of the data: texts of an example, labels, scores.
        init: `key -> {"loss": params, ...}`, its trained parameters at the start, beside the
            encoder's.
        on_mesh: `(mesh, specs=, fsdp_gather=) -> function`, where the function is
            `(params, batch, key, frozen params, extra) -> (loss, (metrics, finite, ...))`; see
            `parallel.gather.global_loss`.
        scheduled: whether the function takes the keyword `step` too, the state's step.
        of_dataset: what each data set needs, where data sets have their own losses.
        prompts: of anchors and candidates.
        models: frozen models by name, whose tokens a batch has too.
        frozen: further parameters by name that are not trained.
        pieces: `(records, source) -> records {"text"}`, for objectives that cut long texts in
            pieces; None: texts are cut short.
        tensors: `state -> {name: array}`, saved beside the model; None: nothing is.
    """

    name: str
    about: About
    init: Callable[[PRNGKeyArray], dict[str, Params]]
    on_mesh: Callable[..., Callable]
    scheduled: bool = False
    of_dataset: Mapping[str, About] = dataclasses.field(default_factory=dict)
    prompts: tuple[str, str] = ("", "")
    models: Mapping[str, FrozenModel] = dataclasses.field(default_factory=dict)
    frozen: Mapping[str, Params] = dataclasses.field(default_factory=dict)
    pieces: Callable[[Sequence[Record], RecordSource], Sequence[Record]] | None = None
    tensors: Callable[[TrainState], dict[str, np.ndarray]] | None = None


ObjectiveMaker = Callable[[Experiment, TrainingModel], Objective]


def embedding_objective(
    config: Experiment, model: TrainingModel, loss: Loss | None = None
) -> Objective:
    """Returns the objective of a loss on the embeddings of all devices.

    Args:
        config: the run's settings.
        model: the model that is trained.
        loss: by default the one that `config.loss` names.

    Raises:
        InputError: for a loss that cannot be built, or that needs a model which the config does not
            name.
    """
    models = frozen_models(config.model, model.max_length)
    if loss is None:
        loss = training_loss(config)
        _say_unused_arguments(config)
    for need in ("guide", "teacher"):
        if need in loss.about.needs and need not in models:
            if need == "teacher" and _teacher_files(config):
                continue
            raise InputError(
                f"config.model.{need}: the loss {config.loss.name!r} needs a {need} model, found ''"
            )
    if model.spec.vocabulary is not None and config.loss.similarity != "dot":
        raise InputError(
            "config.loss.similarity: expected 'dot' for sparse embeddings, found "
            f"{config.loss.similarity!r}"
        )
    if model.spec.vocabulary is not None and loss.about.dims:
        raise InputError(
            f"config.loss.name: {config.loss.name!r} trains prefixes of embeddings, which those "
            "over a vocabulary do not have"
        )
    if config.queue.size and not loss.about.queue:
        raise InputError(
            f"config.queue.size: the loss {config.loss.name!r} has no use for a queue of negatives"
        )
    if model.has_towers:
        if config.loss.mlm:
            raise InputError("config.loss.mlm: not with two towers (config.model.query)")
        if loss.about.layers:
            raise InputError(
                f"config.loss.name: {config.loss.name!r} needs embeddings of earlier layers, which "
                "two towers lack"
            )
    auxiliary = {"mlm": (config.loss.mlm, _mlm(model))} if config.loss.mlm else {}

    def init(key: PRNGKeyArray) -> dict[str, Params]:
        params = {"loss": loss.init(model.encoder.dim, jax.random.fold_in(key, 2))}
        if auxiliary:
            key = jax.random.fold_in(key, 3)
            params["auxiliary"] = {
                name: objective.init(key) for name, (_, objective) in auxiliary.items()
            }
        return params

    on_mesh = functools.partial(
        global_loss,
        model.encoder,
        loss.on_world,
        form=config.loss.form,
        frozen={name: other.encoder for name, other in models.items()},
        auxiliary=auxiliary,
        layers=loss.about.layers,
    )
    prompts = ("", "")
    if isinstance(model.sentence, AnyEncoder):
        prompts = describe_result(config, model.sentence, loss.about)
    return Objective(
        loss.name,
        loss.about,
        init,
        on_mesh,
        scheduled=True,
        of_dataset=loss.of_dataset,
        prompts=prompts,
        models=models,
    )


def _teacher_files(config: Experiment) -> list[str]:
    """Returns the files of a teacher's embeddings that a config names."""
    parts = (config.data, *vars(config.mixture.sources).values())
    return [part.teacher_vectors for part in parts if part.teacher_vectors]


def describe_result(
    config: Experiment,
    sentence: AnyEncoder,
    about: About,
    *,
    prompted: bool = True,
) -> tuple[str, str]:
    """Notes in a model how it is to be used: similarity, sizes, prompts of its training.

    Args:
        config: the run's settings.
        sentence: the model.
        about: of the loss.
        prompted: whether texts have prompts in training.

    Returns:
        The prompts of anchors and candidates.
    """
    sentence.similarity_fn_name = config.loss.similarity or "cosine"
    sentence.matryoshka_dims, sentence.adaptive_layers = about.dims, about.layers != 0
    return settle_prompts(config, sentence) if prompted else ("", "")


def training_loss(config: Experiment, **defaults: Any) -> Loss:
    """Returns the loss of a run.

    It is one loss for all examples, or each data set's own where the mixture names any.

    Args:
        config: the run's settings.
        **defaults: values of fields of `config.loss` that are unset.

    Raises:
        InputError: for a loss that cannot be built, or losses by data set that are not those of the
            mixture.
    """
    arguments, sources = defaults | _loss_arguments(config.loss), vars(config.mixture.sources)
    names = list(sources) or [ONLY]
    loss = build_loss(config.loss.name, arguments)
    own = any(source.loss or source.loss_weight != 1 for source in sources.values())
    if loss.datasets and not sources:
        raise InputError(
            f"config.loss.name: {config.loss.name!r} needs a mixture of data sets, "
            "config.data.train is one"
        )
    if loss.datasets and (own or list(loss.datasets) != names):
        raise InputError(
            f"config.loss.name: {config.loss.name!r} has losses for {', '.join(loss.datasets)}; "
            f"expected those of config.mixture.sources, {', '.join(names)}, in this order and "
            "without their own losses"
        )
    if not own:
        return loss
    losses = {}
    for name, source in sources.items():
        try:
            own_loss = build_loss(source.loss or config.loss.name, arguments)
            losses[name] = (
                own_loss
                if source.loss_weight == 1
                else weighted_sum([(source.loss_weight, own_loss)])
            )
        except InputError as error:
            message = str(error).removeprefix("config.loss.name: ")
            raise InputError(f"config.mixture.sources.{name}.loss: {message}") from None
    # Batches of a single data set do not say which one they are from.
    return per_dataset(losses) if len(losses) > 1 else losses[names[0]]


def _loss_arguments(config: LossSettings) -> dict[str, Any]:
    """Returns the fields of `config.loss` that are set and go to the losses that take them."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in NOT_ARGUMENTS and value != UNSET[name]
    }


def _say_unused_arguments(config: Experiment) -> None:
    """Prints which fields of `config.loss` no loss of the run takes."""
    sources = vars(config.mixture.sources).values()
    expressions = {source.loss or config.loss.name for source in sources} or {config.loss.name}
    arguments = _loss_arguments(config.loss)
    for name in sorted(arguments.keys() - set().union(*map(arguments_of, expressions))):
        say(
            f"config.loss.{name}={arguments[name]} is not used: {config.loss.name} takes no such "
            "argument"
        )


def frozen_models(model: Model, max_length: int) -> dict[str, FrozenModel]:
    """Reads the guide and the teacher that a config names, if it does.

    Args:
        model: the settings that name them.
        max_length: texts are cut at this number of their tokens, or at their own limit if that is
            less.
    """
    models = {}
    for name in ("guide", "teacher"):
        if getattr(model, name):
            saved = read_model(resolve(getattr(model, name)))
            tokenizer = tokenizer_of(saved, min(max_length, saved.max_length))
            dtype = compute_dtype(model.compute_dtype)
            encoder = build_encoder(saved.spec, compute_dtype=dtype)
            models[name] = FrozenModel(encoder, saved.params, tokenizer)
    return models


def _mlm(model: TrainingModel) -> Auxiliary:
    """Returns masked language modelling with the tokenizer's own mask."""
    if model.tokenizer.mask_token_id is None:
        raise InputError("config.loss.mlm: the tokenizer has no mask token")
    return mlm_auxiliary(
        model.encoder, model.tokenizer.mask_token_id, model.tokenizer.all_special_ids
    )
