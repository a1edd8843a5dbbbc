"""A run's model from its directory: the one that it wrote, or that of a checkpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

from embed_jax.config_file import read_run_config
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.token_objectives import is_token_objective
from embed_jax.errors import InputError, warn
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.loading import load_by_kind
from embed_jax.multi_head import MultiHeadEncoder
from embed_jax.parallel.mesh import make_mesh
from embed_jax.sentence import SentenceEncoder
from embed_jax.train.checkpoint import read_encoder, saved_steps
from embed_jax.train.late_model import initial_late_interaction
from embed_jax.train.model import Trained, initial_model
from embed_jax.train.multi_head_model import initial_multi_head
from embed_jax.train.objective import describe_result, training_loss
from embed_jax.train.pair_model import initial_cross_encoder, pair_loss
from embed_jax.train.prompts import settle_prompts
from embed_jax.types import BASE, Params, join_params


def load_run(
    directory: str | Path, step: int = 0, *, max_length: int = 0, compute_dtype: str = "float32"
) -> Trained:
    """Loads the model of a run, while it goes on or after it, bit for bit.

    The run itself is not touched. The checkpoints of a run that experiments.cross_encoder launched
    are those of a cross-encoder; of experiments.late_interaction, those of such a model; with
    `model.heads`, those of a model of several heads.

    Args:
        directory: the run's work directory, of any experiment.
        step: 0: the model that the run wrote, that of the best `eval.metric` or of the end; or,
            with a warning, the newest checkpoint of a run that wrote none yet. Another: the
            checkpoint of this step. A frozen base, which checkpoints lack, is read from where the
            run read it, and kept as `lora.base` says.
        max_length: see `load_sentence_encoder`.
        compute_dtype: see `load_sentence_encoder`.

    Raises:
        InputError: for a step that has no checkpoint, a run without any, or a base that is not
            found or another.
        RunError: if the checkpoint cannot be read.
    """
    directory = Path(directory)
    if not step and (directory / "model").is_dir():
        return load_by_kind(directory / "model", max_length=max_length, compute_dtype=compute_dtype)
    steps = saved_steps(directory / "checkpoints")
    if not steps:
        raise InputError(f"{directory}: a run that has saved neither a model nor a checkpoint")
    if step and step not in steps:
        raise InputError(
            f"{directory}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
        )
    if not step:
        step = steps[-1]
        warn(f"{directory}: no model is written yet, this is the checkpoint of step {step}")

    config = read_run_config(directory / "config.json")
    config.model.compute_dtype = compute_dtype
    config.train.devices = 0  # those that are here, however many the run has
    if config.tracking.experiment == "cross_encoder":
        model = initial_cross_encoder(config, pair_loss(config))
    elif config.tracking.experiment == "late_interaction":
        model = initial_late_interaction(config)
    elif config.model.heads:
        model = initial_multi_head(config)
    else:
        model = initial_model(config, mesh=make_mesh())
    trained, frozen = model.split()
    trained = read_encoder(directory / "checkpoints", step, trained)
    params = join_params(frozen.get(BASE, {}), trained)
    if not model.has_towers:
        params = _without_training_heads(params, model.spec)
    result = model.result.with_params(params)
    if isinstance(result, MultiHeadEncoder):
        settle_prompts(config, result)
    if isinstance(result, (CrossEncoder, LateInteractionEncoder, MultiHeadEncoder)):
        encoders: list[Any] = [result]
    else:
        if isinstance(result, SentenceEncoder) and model.spec.lora is None:
            result.base = ""
        if not is_token_objective(config.loss.name):
            with contextlib.redirect_stdout(None):  # the run has already printed it
                describe_result(config, result, training_loss(config).about)
        encoders = [*getattr(result, "encoders", {"": result}).values()]
    for encoder in encoders if max_length else ():
        encoder.max_length = max_length
    return result.merged() if model.merges_adapter(config.lora) else result


def _without_training_heads(params: Params, spec: EncoderSpec) -> Params:
    """Drops the heads that were there in training only."""
    names = {
        str(i) for i, head in enumerate(spec.heads) if jax.eval_shape(head.init, jax.random.key(0))
    }
    return {
        **params,
        "heads": {name: head for name, head in params["heads"].items() if name in names},
    }
