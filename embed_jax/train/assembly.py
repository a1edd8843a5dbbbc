"""Assembles a run: from a config and data sources to model, data, objective, state and step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from embed_jax.config import Experiment
from embed_jax.encoders.token_objectives import is_token_objective
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import (
    gather_params,
    make_mesh,
    num_groups,
    place_abstract,
    place_on_mesh,
    state_shardings,
    training_specs,
)
from embed_jax.parallel.queue import init_queue
from embed_jax.runtime import is_first_host
from embed_jax.train.data import SourcesAt, TrainingData, training_data
from embed_jax.train.groups import stop_frozen_gradients
from embed_jax.train.model import TrainingModel, initial_model
from embed_jax.train.objective import Objective, ObjectiveMaker, embedding_objective
from embed_jax.train.optim import complete_optimizer, make_learning_rate, make_optimizer
from embed_jax.train.sources import Sources
from embed_jax.train.step import TrainStep, init_state, make_train_step
from embed_jax.train.tokens import token_objective
from embed_jax.types import Params, TrainState

ABSTRACT_UPDATES = 1000  # length of the learning-rate schedule where there are no data


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A run, ready for its first step.

    Attributes:
        config: its settings.
        mesh: the devices.
        groups: G, the groups of a batch.
        model: the model before the first step; its parameters are in `state`.
        objective: what is minimised.
        data: the batches; None of an abstract run.
        state: before the first step, on the mesh; shapes with shardings of an abstract run.
        shardings: of every leaf of `state`.
        loss: the objective's function on the mesh, see `Objective.on_mesh`.
        step: `(state, batch, key) -> (state, metrics)`, compiled at its first call.
        learning_rate: of a step, for the log.
    """

    config: Experiment
    mesh: Mesh
    groups: int
    model: TrainingModel
    objective: Objective
    data: TrainingData | None
    state: TrainState
    shardings: TrainState
    loss: Callable
    step: TrainStep
    learning_rate: Callable[[int], Any]

    def encode(self, state: TrainState) -> Any:
        """Returns the model in a state as a function of texts, see `TrainingModel.bind`."""
        return self.model.bind(state.encoder)

    def save_model(self, state: TrainState, directory: Path) -> None:
        """Writes the model in a state as a model directory; every host calls it."""
        sentence = self.model.result
        sentence.params = gather_params(state.encoder, self.mesh)
        if is_first_host():
            tensors = self.objective.tensors and self.objective.tensors(state)
            merged = sentence.merged() if self.model.merges_adapter(self.config.lora) else sentence
            options: dict[str, Any] = {"extra_tensors": tensors} if tensors else {}
            merged.save(directory, **options)


def assemble(
    config: Experiment,
    sources: Sources | SourcesAt | None = None,
    *,
    model: TrainingModel | None = None,
    objective: ObjectiveMaker | None = None,
    optimizer: optax.GradientTransformation | None = None,
    workdir: Path | None = None,
    abstract: bool = False,
) -> Assembly:
    """Assembles a run.

    Training, the memory planner and the comparison with a peer all start here.

    Args:
        config: the run's settings.
        sources: the training data, by name, or a function of step and encoder; see `fit`. None with
            `abstract`.
        model: by default the one that the config names, see `model.initial_model`.
        objective: `(config, model) -> Objective`; by default the loss or the token objective that
            the config names.
        optimizer: by default the one that the config names. `optim.groups` and `optim.accumulate`
            apply to any.
        workdir: where what is computed from the data before the first step is recorded, for a
            resumed run; None: nowhere.
        abstract: nothing is allocated: `model` is one of `model.abstract_model`, and the state
            consists of shapes.

    Raises:
        InputError: for settings or data that cannot be used together.
    """
    # The model and where it runs.
    mesh = make_mesh(config.train.devices, config.train.fsdp, config.train.tensor)
    groups = num_groups(config.batch.groups, config.batch.size, mesh)
    if model is None and config.model.start_words:
        raise InputError(
            "config.model.start_words: for experiments.sparse only, found "
            f"{config.model.start_words}"
        )
    model = model or initial_model(config, mesh=mesh)

    # What is minimised, and on which batches.
    make_objective = objective or default_objective
    minimised = make_objective(config, model)
    if abstract:
        data = None
    elif sources is None:
        raise InputError("sources: expected the training data of a run, found None")
    else:
        data = training_data(config, sources, model, minimised, groups, workdir)
    num_updates = data.num_steps // config.optim.accumulate if data else ABSTRACT_UPDATES

    # The state before the first step, and where it lies.
    if optimizer is None:
        optimizer = make_optimizer(config.optim, num_updates)
    else:
        optimizer = complete_optimizer(optimizer, config.optim)
    state, specs = _initial_state(config, model, minimised, optimizer, mesh, abstract)
    shardings = state_shardings(state, optimizer, specs, mesh)
    if abstract:
        state = place_abstract(state, shardings)
    else:
        state = place_on_mesh(state, shardings)
        model.result.params = None  # the state has them

    # The step.
    loss = minimised.on_mesh(mesh, specs=specs, fsdp_gather=config.train.fsdp_gather)
    loss = stop_frozen_gradients(loss, vars(config.optim.groups))
    step = make_train_step(
        loss, optimizer, shardings, config.queue.momentum, scheduled=minimised.scheduled
    )
    schedule = make_learning_rate(config.optim, num_updates)
    return Assembly(
        config=config,
        mesh=mesh,
        groups=groups,
        model=model,
        objective=minimised,
        data=data,
        state=state,
        shardings=shardings,
        loss=loss,
        step=step,
        learning_rate=lambda step: schedule(step // config.optim.accumulate),
    )


def default_objective(config: Experiment, model: TrainingModel) -> Objective:
    """Returns the token objective or the loss that `config.loss.name` names."""
    make = token_objective if is_token_objective(config.loss.name) else embedding_objective
    return make(config, model)


def _initial_state(
    config: Experiment,
    model: TrainingModel,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    abstract: bool,
) -> tuple[TrainState, Any]:
    """Returns the state before the first step, and how its parameters are split over the mesh."""
    trained, base = model.split()
    models = {name: other.params for name, other in objective.models.items()}
    frozen = {**models, **objective.frozen, **base}

    def make(trained: Params, frozen: dict[str, Params]) -> TrainState:
        key = jax.random.key(config.train.seed)
        params = {"encoder": trained, **objective.init(key)}
        extra = {}
        if config.queue.size:
            size, momentum = config.queue.size, config.queue.momentum
            extra = init_queue(size, model.encoder.dim, trained, momentum)
        return init_state(params, optimizer, frozen, extra)

    state = jax.eval_shape(make, trained, frozen) if abstract else make(trained, frozen)
    return state, training_specs({**state.params, **base}, model.encoder.sharding, mesh)
