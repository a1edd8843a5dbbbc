"""From records and a config to a trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import optax

from embed_jax.config import Experiment
from embed_jax.runtime import is_first_host
from embed_jax.train import loop
from embed_jax.train.assembly import assemble
from embed_jax.train.data import SourcesAt
from embed_jax.train.evaluation import Evaluator, check_metric, evaluation
from embed_jax.train.model import TrainingModel
from embed_jax.train.objective import ObjectiveMaker
from embed_jax.train.sources import Sources
from embed_jax.train.workdir import open_workdir
from embed_jax.types import Record


def fit(
    config: Experiment,
    workdir: Path,
    *,
    sources: Sources | SourcesAt,
    evaluators: Mapping[str, Evaluator],
    validation: Sequence[Record] = (),
    model: TrainingModel | None = None,
    objective: ObjectiveMaker | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> loop.Result:
    """Trains a model by a config; running it again resumes.

    The model is written to `workdir/model`.

    Args:
        config: the run's settings.
        workdir: the run's directory.
        sources: the training data, by name; all examples of a batch get as many columns as the
            longest record has. Or a function `(step, encode) -> sources`, called at the start and
            every `config.mine.every` steps with the model as it is then; it must give the same data
            when it is called again.
        evaluators: by name; `encode -> {metric: value}`, logged as name/metric.
        validation: held-out records, with the fields of the only data set, whose loss is logged
            beside its own.
        model: instead of the one that the config names; see `assembly.assemble`.
        objective: instead of the one that the config names; see `assembly.assemble`.
        optimizer: instead of the one that the config names; see `assembly.assemble`.
    """
    check_metric(config, evaluators, validation)
    opened = open_workdir(workdir, config) if is_first_host() else contextlib.nullcontext()
    with opened as check_data:
        run = assemble(
            config, sources, model=model, objective=objective, optimizer=optimizer, workdir=workdir
        )
        evaluate = evaluation(run, evaluators, validation)
        assert run.data is not None, "the run is not abstract"
        if check_data:
            check_data(run.data.fingerprint)
        return loop.run(
            config,
            workdir,
            state=run.state,
            step_fn=run.step,
            batches=run.data.batches,
            num_steps=run.data.num_steps,
            learning_rate=run.learning_rate,
            evaluate=evaluate,
            save_model=run.save_model,
            mesh=run.mesh,
        )
