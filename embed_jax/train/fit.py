"""From records and a config to a trained model: the set-up that every experiment shares."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from embed_jax.config import Experiment
from embed_jax.config import Loss as LossConfig
from embed_jax.config_file import load
from embed_jax.data.order import Order, make_order
from embed_jax.data.pipeline import (
    BatchMaker,
    batch_maker,
    fingerprint,
    most_texts,
    prefetch,
    training_batches,
)
from embed_jax.data.stream import Stream, made_ahead, stream_batches
from embed_jax.encoders.token_objectives import mlm_auxiliary
from embed_jax.errors import InputError
from embed_jax.losses.compose import LossFunction
from embed_jax.losses.expression import arguments_of
from embed_jax.parallel.distributed import joined
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import (
    gather_params,
    make_mesh,
    num_groups,
    place,
    split_groups,
    state_shardings,
    training_specs,
)
from embed_jax.parallel.queue import init_queue
from embed_jax.parallel.tokens import token_loss
from embed_jax.runtime import is_first_host, prepare_jax
from embed_jax.train import loop
from embed_jax.train.optim import make_optimizer, make_schedule
from embed_jax.train.prompts import settle_prompts
from embed_jax.train.sources import Sources, for_loss, training_loss, training_order
from embed_jax.train.start import Start, frozen_models, start_from
from embed_jax.train.step import init_state, make_train_step
from embed_jax.train.tokens import cut_records, cut_sources, stand_in, tokens_alone
from embed_jax.train.workdir import launched_by, open_workdir
from embed_jax.types import Auxiliary, Batch, TrainState

Encode = Callable[[Sequence[str]], np.ndarray]
Evaluator = Callable[[Encode], Mapping[str, float]]
VALIDATION_BATCHES = 8
UNSET = dataclasses.asdict(LossConfig())


def fit(
    config: Experiment,
    workdir: Path,
    *,
    sources: Sources | Callable[[int, Encode], Sources],
    evaluators: Mapping[str, Evaluator],
    validation: Sequence[Mapping[str, Any]] = (),
) -> loop.Result:
    """Trains as `config` says; running it again resumes. The model is written to `workdir/model`.

    Args:
        sources: the training data, by name; all examples of a batch get as many columns as the longest record has. Or
            a function `(step, encode) -> sources`, asked at the start and every `config.mine.every` steps with the
            model as it is then; it must give the same data when it is asked again.
        evaluators: by name; `encode -> {metric: value}`, logged as name/metric.
        validation: held-out records, with the fields of the only data set, whose loss is logged beside its own.
    """
    # The model and where it runs.
    mesh = make_mesh(config.train.devices, config.train.fsdp, config.train.tensor)
    groups = num_groups(config.batch.groups, config.batch.size, mesh)
    longest = max(
        [
            config.data.max_length,
            *(source.max_length for source in vars(config.mixture.sources).values()),
        ]
    )
    start = start_from(
        config.model, longest, config.train.seed, config.train.devices, lora=config.lora, mesh=mesh
    )
    frozen = frozen_models(config.model, longest)

    # The data, and its loss. The result is to be used as it was trained, and trained as it is used.
    sources_at = sources if callable(sources) else lambda step, encode: sources
    found = sources_at(0, start.sentence.encode)
    given = loss_arguments(config.loss)
    alone = tokens_alone(
        config, start
    )  # the objective, where there are tokens to predict and no embeddings to compare
    loss = (
        training_loss(config, given, list(found))
        if alone is None
        else stand_in(config.loss.name, alone)
    )
    _check_loss(config, loss, given, frozen)
    start.sentence.similarity_fn_name = config.loss.similarity or "cosine"
    start.sentence.matryoshka_dims, start.sentence.adaptive_layers = (
        loss.about.dims,
        loss.about.layers != 0,
    )
    prompts = settle_prompts(config, start.sentence) if alone is None else ("", "")
    found = for_loss(found, loss, config, prompts)
    if alone is not None:
        tokenizer = start.sentence.tokenizer
        validation = validation and cut_records(validation, *found.values(), tokenizer)
        found = cut_sources(found, tokenizer)
    columns = config.model.same_mask_columns
    if columns and columns != (texts := max(map(most_texts, found.values()))):
        raise InputError(
            f"config.model.same_mask_columns: expected 0 or {texts}, the texts of an example, found {columns}"
        )

    # The batches: a pure function of (seed, step).
    shares = config.batch.shares or jax.process_count()
    maker = functools.partial(
        batch_maker,
        tokenizers={
            "encoder": start.sentence.tokenizer.cut_at(longest),
            **{name: other.tokenizer for name, other in frozen.items()},
        },
        batch_size=config.batch.size,
        groups=groups,
        shares=shares,
        row_length=row_length(longest, config.batch.row_length),
        rows=config.batch.rows or None,
        include_prompt=start.sentence.include_prompt,
        shard=(jax.process_index(), jax.process_count()),
    )
    streamed = next(
        (source for source in found.values() if isinstance(source.records, Stream)), None
    )
    if streamed and config.batch.no_duplicates:
        raise InputError(
            "config.batch.no_duplicates: not for a stream, of which not all records are known"
        )
    order = None if streamed else training_order(found, config)
    num_steps = config.train.steps or _steps_of(order, config)
    # No batch whose gradient would never be used.
    num_steps = max(num_steps // config.optim.accumulate, 1) * config.optim.accumulate

    # The objective, the gradient, the update; where the state lies.
    num_updates = num_steps // config.optim.accumulate
    optimizer = make_optimizer(config.optim, num_updates)
    schedule = make_schedule(config.optim, num_updates)
    key = jax.random.key(config.train.seed)
    trained, base = start.split()
    params = {"encoder": trained, "loss": loss.init(start.encoder.dim, jax.random.fold_in(key, 2))}
    auxiliary = {}
    if config.loss.mlm:
        auxiliary["mlm"] = (config.loss.mlm, _mlm(start))
        params["auxiliary"] = {"mlm": auxiliary["mlm"][1].init(jax.random.fold_in(key, 3))}
    extra = {}
    if config.queue.size:
        if not loss.about.queue:
            raise InputError(
                f"config.queue.size: the loss {config.loss.name!r} has no use for a queue of negatives"
            )
        extra = init_queue(
            config.queue.size, start.encoder.dim, params["encoder"], config.queue.momentum
        )
    specs = training_specs({**params, **base}, start.encoder.sharding, mesh)
    others = {name: other.params for name, other in frozen.items()} | (
        alone.frozen if alone else {}
    )
    state = init_state(params, optimizer, {**others, **base}, extra)
    shardings = state_shardings(state, optimizer, specs, mesh)
    state = place(state, shardings)
    start.sentence.params = None  # the state has them
    lying = {"specs": specs, "fsdp_gather": config.train.fsdp_gather}
    if alone is not None:
        objective = token_loss(start.encoder, alone.objective, mesh, **lying)
    else:
        objective = global_loss(
            start.encoder,
            loss,
            mesh,
            form=config.loss.form,
            **lying,
            frozen={name: other.encoder for name, other in frozen.items()},
            auxiliary=auxiliary,
            layers=loss.about.layers,
        )

    # What is measured on the way.
    held_out = None
    if len(validation) >= config.batch.size:
        (only,) = found.values()
        only = dataclasses.replace(only, records=validation)
        held_out_order = make_order([len(validation)], config.batch.size, seed=0)
        held_out_batches = training_batches(maker([only]), held_out_order)
        few = min(VALIDATION_BATCHES, held_out_order.count(1))
        held_out = _mean_loss(objective, [held_out_batches[step] for step in range(few)], mesh)
    elif len(validation) and is_first_host():
        print(
            f"no validation loss: {len(validation)} held-out records do not fill a batch of {config.batch.size}"
        )

    def encode_with(state: TrainState) -> Encode:
        return functools.partial(start.sentence.encode, params=state.encoder)

    def evaluate(state: TrainState) -> dict[str, float]:
        measured = dict(held_out(state)) if held_out else {}
        for name, evaluator in evaluators.items():
            measured |= {
                f"{name}/{metric}": value for metric, value in evaluator(encode_with(state)).items()
            }
        return measured

    def batches(start_step: int, state: TrainState) -> Iterator[tuple[int, Batch]]:
        """Those from a step on, up to the next time that the data are renewed."""
        if streamed:
            yield from streamed_batches(maker([streamed]), config, start_step, num_steps)
            return
        every = (config.mine.every if callable(sources) else 0) or num_steps
        since = start_step // every * every
        now, now_order = found, order
        if since:
            now = for_loss(sources_at(since, encode_with(state)), loss, config, prompts)
            now_order = training_order(now, config)
        yield from prefetch(
            training_batches(maker(list(now.values())), now_order),
            start_step,
            num_steps=min(since + every, num_steps),
        )

    def save_model(state: TrainState, directory: Path) -> None:
        start.sentence.params = gather_params(state.encoder, mesh)
        merge = start.sentence.spec.lora and (
            config.lora.merge or not start.sentence.base
        )  # random: nothing to refer to
        if is_first_host():
            (start.sentence.merged() if merge else start.sentence).save(
                directory, alone and alone.tensors(state)
            )

    # With the groups: they decide the dropout masks, and default to the number of devices.
    data = {**fingerprint(found), "groups": groups, "shares": shares}
    with open_workdir(workdir, config, data) if is_first_host() else contextlib.nullcontext():
        return loop.run(
            config,
            workdir,
            state=state,
            step_fn=make_train_step(objective, optimizer, shardings, config.queue.momentum),
            batches=batches,
            num_steps=num_steps,
            learning_rate=lambda step: schedule(step // config.optim.accumulate),
            evaluate=evaluate if evaluators or held_out else None,
            save_model=save_model,
            mesh=mesh,
        )


def loss_arguments(config: LossConfig) -> dict[str, Any]:
    """The fields of `config.loss` that were set and go to the losses that take them."""
    fields = dataclasses.asdict(config)
    return {
        name: value
        for name, value in fields.items()
        if name not in ("name", "form", "mlm") and value != UNSET[name]
    }


def _check_loss(config: Experiment, loss: LossFunction, given: Mapping, frozen: Mapping) -> None:
    """Says which fields of `config.loss` no loss takes, and misses models that a loss needs."""
    expressions = {
        source.loss or config.loss.name for source in vars(config.mixture.sources).values()
    }
    expressions = expressions or {config.loss.name}
    taken = set().union(*map(arguments_of, expressions))
    for name in sorted(given.keys() - taken):
        if is_first_host():
            print(
                f"config.loss.{name}={given[name]} is not used: {config.loss.name} takes no such argument"
            )
    for need in ("guide", "teacher"):
        if need in loss.about.needs and need not in frozen:
            raise InputError(
                f"config.model.{need}: the loss {config.loss.name!r} needs a {need} model, found ''"
            )


def streamed_batches(
    make: BatchMaker, config: Experiment, start: int, num_steps: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) of a stream from a step on, made ahead of the consumer."""
    (source,) = make.sources
    batches = stream_batches(
        source.records,
        config.batch.size,
        window=config.data.window,
        seed=config.train.seed,
        start=start,
    )
    steps = range(start, num_steps)
    yield from made_ahead(
        (step, make.of_records(records, step))
        for step, records in zip(steps, batches)  # noqa: B905
    )


def _steps_of(order: Order | None, config: Experiment) -> int:
    if order is None:
        raise InputError(
            "config.train.steps: a stream has no known end, set the number of steps; found 0"
        )
    return order.count(config.train.epochs)


def _mlm(start: Start) -> Auxiliary:
    """Masked language modelling with the tokenizer's own mask."""
    hf = start.sentence.tokenizer.hf
    if hf.mask_token_id is None:
        raise InputError("config.loss.mlm: the tokenizer has no mask token")
    return mlm_auxiliary(start.encoder, hf.mask_token_id, hf.all_special_ids)


def row_length(max_length: int, asked: int) -> int:
    """T: the config's, or twice the longest text up to 128, where packing finds room and attention is still cheap."""
    if asked and asked < max_length:
        raise InputError(
            f"config.batch.row_length: expected at least data.max_length={max_length}, found {asked}"
        )
    return asked or max(max_length, min(2 * max_length, 128))


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
    """An experiment's command: reads the command line, runs stage by stage, and says where the model is."""
    config, workdir = load(sys.argv)
    prepare_jax(deterministic=config.train.deterministic)
    with joined(config.hosts), launched_by(Path(inspect.getfile(run))):
        for stage, directory in stages(config, workdir):
            if stage is not config and is_first_host():
                print(f"stage {directory.name}: from {stage.model.name}", flush=True)
            if not run(stage, directory).finished:
                return
            if is_first_host():
                print(f"model: {directory / 'model'}", flush=True)


def stages(config: Experiment, workdir: Path) -> list[tuple[Experiment, Path]]:
    """The run itself, and those of `config.stages`, each in a directory of its name and from the model before it.

    A stage with a model name of its own starts from that one.
    """
    found = [(config, workdir)]
    for name, stage in vars(config.stages).items():
        if not stage.model.name:
            stage.model.name = str(found[-1][1] / "model")
        found.append((stage, workdir / name))
    config.stages = SimpleNamespace()  # each is a run of its own
    return found
