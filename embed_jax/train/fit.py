"""From records and a config to a trained model: the set-up that every experiment shares."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.config import Experiment, load
from embed_jax.config import Loss as LossConfig
from embed_jax.data.pairs import looked_at, of_record
from embed_jax.data.pipeline import fingerprint, prefetch, steps_per_epoch, training_batches
from embed_jax.data.sources import RecordFields
from embed_jax.errors import InputError
from embed_jax.losses.expression import arguments_of, build_loss
from embed_jax.parallel.distributed import is_first_host, joined
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import (
    gather_params,
    make_mesh,
    num_groups,
    param_specs,
    place,
    split_groups,
    state_shardings,
)
from embed_jax.train import loop
from embed_jax.train.optim import make_optimizer, make_schedule
from embed_jax.train.start import Start, frozen_models, start_from, training_prompts
from embed_jax.train.step import init_state, make_train_step
from embed_jax.train.workdir import open_workdir
from embed_jax.types import Params, TrainState

Encode = Callable[[Sequence[str]], np.ndarray]
Evaluator = Callable[[Encode], Mapping[str, float]]
VALIDATION_BATCHES = 8
UNSET = dataclasses.asdict(LossConfig())


def fit(
    config: Experiment,
    workdir: Path,
    *,
    records: Sequence[Mapping[str, Any]],
    fields: RecordFields,
    evaluators: Mapping[str, Evaluator],
    validation: Sequence[Mapping[str, Any]] = (),
) -> loop.Result:
    """Trains as `config` says; running it again resumes. The model is written to `workdir/model`.

    Args:
        records: the training data.
        fields: what of a record is used: its texts (all records of a batch get as many columns as the longest), and
            the label, score and keys that the loss may need.
        evaluators: by name; `encode -> {metric: value}`, logged as name/metric.
        validation: held-out records whose loss is logged beside the training loss.
    """
    # The model and where it runs.
    mesh = make_mesh(config.train.devices, config.train.fsdp, config.train.tensor)
    groups = num_groups(config.batch.groups, config.batch.size, mesh)
    start = start_from(config.model, config.data.max_length, config.train.seed, config.train.devices)
    frozen = frozen_models(config.model, config.data.max_length)

    # The loss. The result is to be used as it was trained, and trained as it is used.
    given = loss_arguments(config.loss)
    loss = build_loss(config.loss.name, given)
    for name in sorted(given.keys() - arguments_of(config.loss.name)):
        if is_first_host():
            print(f"config.loss.{name}={given[name]} is not used: {config.loss.name} takes no such argument")
    check_data(loss, fields, records, frozen, config)
    start.sentence.similarity = config.loss.similarity or "cosine"
    prompts = _settle_prompts(config, start)

    # The batches: a pure function of (seed, step).
    positions = start.encoder.config.max_length
    if config.data.max_length > positions:
        found = config.data.max_length
        raise InputError(f"config.data.max_length: expected at most {positions} (the model's positions), found {found}")
    taken = {"columns": fields.columns, "keys": fields.keys}
    taken |= {"label": fields.label if "label" in loss.about.needs else None}
    taken |= {"score": fields.score if {"score", "scores"} & set(loss.about.needs) else None}
    shares = config.batch.shares or jax.process_count()
    make_batches = functools.partial(
        training_batches,
        **taken,
        tokenizers={
            "encoder": start.sentence.tokenizer.cut_at(config.data.max_length),
            **{name: other.tokenizer for name, other in frozen.items()},
        },
        batch_size=config.batch.size,
        groups=groups,
        shares=shares,
        row_length=row_length(config.data.max_length, config.batch.row_length),
        rows=config.batch.rows or None,
        prompts=prompts,
        include_prompt=start.sentence.include_prompt,
        shard=(jax.process_index(), jax.process_count()),
    )
    batches = make_batches(records, seed=config.train.seed)
    num_steps = config.train.steps or math.floor(config.train.epochs * steps_per_epoch(len(records), config.batch.size))
    # No batch whose gradient would never be used.
    num_steps = max(num_steps // config.optim.accumulate, 1) * config.optim.accumulate

    # The objective, the gradient, the update; where the state lies.
    num_updates = num_steps // config.optim.accumulate
    optimizer = make_optimizer(config.optim, num_updates)
    schedule = make_schedule(config.optim, num_updates)
    loss_key = jax.random.fold_in(jax.random.key(config.train.seed), 2)
    params = {"encoder": start.params, "loss": loss.init(start.encoder.dim, loss_key)}
    specs = param_specs(params, [(f"encoder/{path}", axes) for path, axes in start.encoder.sharding], mesh)
    state = init_state(params, optimizer, {name: other.params for name, other in frozen.items()})
    shardings = state_shardings(state, optimizer, specs, mesh)
    state = place(state, shardings)
    objective = global_loss(
        start.encoder,
        loss,
        mesh,
        form=config.loss.form,
        specs=specs,
        fsdp_gather=config.train.fsdp_gather,
        frozen={name: other.encoder for name, other in frozen.items()},
    )

    # What is measured on the way.
    held_out = None
    if len(validation) >= config.batch.size:
        held_out_batches = make_batches(validation, seed=0)
        few = min(VALIDATION_BATCHES, steps_per_epoch(len(validation), config.batch.size))
        held_out = _mean_loss(objective, [held_out_batches[step] for step in range(few)], mesh)
    elif len(validation) and is_first_host():
        print(f"no validation loss: {len(validation)} held-out records do not fill a batch of {config.batch.size}")

    def evaluate(state: TrainState) -> dict[str, float]:
        found = dict(held_out(state)) if held_out else {}
        encode = functools.partial(start.sentence.encode, params=state.params["encoder"])
        for name, evaluator in evaluators.items():
            found |= {f"{name}/{metric}": value for metric, value in evaluator(encode).items()}
        return found

    def save_model(params: Params, directory: Path) -> None:
        start.sentence.params = gather_params(params, mesh)
        if is_first_host():
            start.sentence.save(directory)

    # With the groups: they decide the dropout masks, and default to the number of devices.
    data = {**fingerprint(records, **taken), "groups": groups, "shares": shares}
    with open_workdir(workdir, config, data) if is_first_host() else contextlib.nullcontext():
        return loop.run(
            config,
            workdir,
            state=state,
            step_fn=make_train_step(objective, optimizer, shardings),
            batches=functools.partial(prefetch, batches, num_steps=num_steps),
            num_steps=num_steps,
            learning_rate=lambda step: schedule(step // config.optim.accumulate),
            evaluate=evaluate if evaluators or held_out else None,
            save_model=save_model,
            mesh=mesh,
        )


def loss_arguments(config: LossConfig) -> dict[str, Any]:
    """The fields of `config.loss` that were set and go to the losses that take them."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in ("name", "form") and value != UNSET[name]}


def check_data(loss: Any, fields: RecordFields, records: Sequence, frozen: Mapping, config: Experiment) -> None:
    """Whether the data and the models are what the loss needs.

    Raises:
        InputError: naming what is missing.
    """
    name, found = config.loss.name, ", ".join(records[0])
    for need in loss.about.needs:
        if need in ("guide", "teacher") and need not in frozen:
            raise InputError(f"config.model.{need}: the loss {name!r} needs a {need} model, found ''")
        if need == "label" and fields.label is None or need in ("score", "scores") and fields.score is None:
            raise InputError(f"config.loss.name: {name!r} needs records with a {need}, found the fields {found}")
        if need == "scores":
            texts, scores = len(fields.columns(records[0])), len(fields.score(records[0]))
            if scores != texts - 1:
                raise InputError(
                    f"config.loss.name: {name!r} needs a score for each of the {texts - 1} candidates of a record, "
                    f"found {scores}"
                )
    columns = max(len(fields.columns(records[number])) for number in range(min(len(records), 100)))
    least, most = loss.about.columns
    if columns < least or most and columns > most:
        wanted = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
        raise InputError(f"config.loss.name: {name!r} needs {wanted} texts a record, found {columns} ({found})")
    if loss.about.classes:
        for number, record in looked_at(records):
            if not 0 <= (label := of_record(fields.label, record, number)) < loss.about.classes:
                accepted = f"0 to {loss.about.classes - 1}"
                raise InputError(f"record {number}: label {label}, config.loss.name={name!r} accepts {accepted}")
    if loss.datasets:
        raise InputError(f"config.loss.name: {name!r} needs a mixture of data sets, config.data.train is one")


def row_length(max_length: int, asked: int) -> int:
    """T: the config's, or twice the longest text up to 128, where packing finds room and attention is still cheap."""
    if asked and asked < max_length:
        raise InputError(f"config.batch.row_length: expected at least data.max_length={max_length}, found {asked}")
    return asked or max(max_length, min(2 * max_length, 128))


def _settle_prompts(config: Experiment, start: Start) -> tuple[str, str]:
    """The prompts of anchors and candidates, which become those of the resulting model."""
    prompts = training_prompts(config, start.sentence)
    if config.data.anchor_prompt or config.data.candidate_prompt:
        start.sentence.prompts |= dict(zip(("query", "document"), prompts, strict=True))
    elif any(start.sentence.prompts.values()) and not any(prompts) and is_first_host():
        named = ", ".join(start.sentence.prompts)
        print(f"the model's prompts ({named}) are not used: set config.data.anchor_prompt and candidate_prompt")
    return prompts


def _mean_loss(objective: Callable, batches: Sequence[Any], mesh: jax.sharding.Mesh) -> Callable:
    """The objective without dropout, over fixed batches: `state -> {"validation/loss": ...}`."""
    compiled = jax.jit(lambda params, batch, frozen: objective(params, batch, None, frozen))

    def evaluate(state: TrainState) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in batches:
            loss, (metrics, _) = compiled(state.params, split_groups(batch, mesh), state.frozen)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
        return {f"validation/{name}": value for name, value in totals.items()}

    return evaluate


def launch(run: Callable[[Experiment, Path], loop.Result]) -> None:
    """An experiment's command: reads the command line, runs, and says where the model is."""
    config, workdir = load(sys.argv)
    prepare_jax(config)
    with joined(config.hosts):
        if run(config, workdir).finished and is_first_host():
            print(f"model: {workdir / 'model'}")


def prepare_jax(config: Experiment) -> None:
    """Process-wide settings of a run; call it before anything touches a device.

    `train.deterministic` asks XLA for GPU kernels that give the same bits each time; on CPU they do so anyway. Virtual
    CPU devices run their collectives one after the other: they share few threads, and two run at once, in another order
    by each device, would wait for each other for ever.
    """
    enable_compilation_cache()
    flags = ["--xla_gpu_deterministic_ops=true"] if config.train.deterministic else []
    if os.environ.get("JAX_NUM_CPU_DEVICES"):
        flags.append("--xla_cpu_enable_concurrency_optimized_scheduler=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in EMBED_JAX_CACHE or ~/.cache/embed-jax."""
    directory = os.environ.get("EMBED_JAX_CACHE") or str(Path.home() / ".cache" / "embed-jax")
    jax.config.update("jax_compilation_cache_dir", directory)
