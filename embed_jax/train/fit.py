"""From records and a config to a trained model: the set-up that every experiment shares."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.config import Experiment, Model, load
from embed_jax.data.pipeline import fingerprint, prefetch, steps_per_epoch, training_batches
from embed_jax.data.tokenize import load_tokenizer
from embed_jax.encoders.build import EncoderSpec, build_encoder, random_spec
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.hf import read_model, resolve
from embed_jax.errors import InputError
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, num_groups, replicate, split_groups
from embed_jax.registry import lookup
from embed_jax.sentence import SentenceEncoder
from embed_jax.train import loop
from embed_jax.train.optim import make_optimizer, make_schedule
from embed_jax.train.step import init_state, make_train_step
from embed_jax.train.workdir import open_workdir
from embed_jax.types import Encoder, Params

Encode = Callable[[Sequence[str]], np.ndarray]
Evaluator = Callable[[Encode], Mapping[str, float]]
VALIDATION_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        encoder: as trained; it may have a head that the result drops.
        params: of `encoder`, float32.
        sentence: the model that comes out, before training; shares `params`.
    """

    encoder: Encoder
    params: Params
    sentence: SentenceEncoder


def start_from(model: Model, max_length: int, seed: int, devices: int = 0) -> Start:
    """Loads or initialises the model that a config names.

    Args:
        model: `name` "random:SHAPE" makes random weights of a well-known shape for `tokenizer`.
        max_length: texts are cut at so many tokens in training; the result keeps the model's own limit if it is longer.
        seed: of random weights.
        devices: how many the resulting model encodes on; 0: all.
    """
    key = jax.random.key(seed)
    if model.name.startswith("random:"):
        if not model.tokenizer:
            raise InputError("config.model.tokenizer: random weights need a directory with tokenizer files, found ''")
        tokenizer = load_tokenizer(model.tokenizer, max_length)
        shape = model.name.removeprefix("random:")
        spec = random_spec(shape, vocab_size=tokenizer.vocab_size, pooling=model.pooling or "mean")
        params, prompts = build_encoder(spec).init(key), {}
    else:
        saved = read_model(resolve(model.name))
        spec, params = saved.spec, saved.params
        directory = Path(model.tokenizer) if model.tokenizer else saved.tokenizer_directory
        tokenizer = load_tokenizer(directory, max(saved.max_length, max_length), lower_case=saved.lower_case)
        prompts = {
            "prompts": saved.prompts,
            "default_prompt_name": saved.default_prompt_name,
            "include_prompt": saved.include_prompt,
            "similarity": saved.similarity,
            "lower_case": saved.lower_case,
        }
        if tokenizer.vocab_size > spec.backbone.vocab_size:
            raise InputError(
                f"{directory}: tokenizer of {tokenizer.vocab_size} tokens, model of {spec.backbone.vocab_size}"
            )
    if model.pooling and model.pooling != spec.pooling:
        spec = dataclasses.replace(spec, pooling=model.pooling)
    if model.dropout >= 0:
        rates = {"hidden_dropout": model.dropout, "attention_dropout": model.dropout}
        spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **rates))

    training, params = _with_mlp(spec, params, key) if model.mlp else (spec, params)
    dtype = _compute_dtype(model.compute_dtype)
    encoder = build_encoder(training, compute_dtype=dtype, remat=model.remat)
    result = training if model.mlp == "kept" else spec
    return Start(
        encoder, params, SentenceEncoder(result, params, tokenizer, compute_dtype=dtype, devices=devices, **prompts)
    )


def _with_mlp(spec: EncoderSpec, params: Params, key: jax.Array) -> tuple[EncoderSpec, Params]:
    """SimCSE's head, freshly initialised, after the pooling; a Normalize of the model stays last."""
    heads = tuple(head for head in spec.heads if not isinstance(head, Normalize))
    dim = build_encoder(dataclasses.replace(spec, heads=heads)).dim
    mlp, place = Dense(dim, dim, activation="tanh"), str(len(heads))
    end = (Normalize(),) if len(heads) < len(spec.heads) else ()
    params = {**params, "heads": {**params["heads"], place: mlp.init(jax.random.fold_in(key, 1))}}
    return dataclasses.replace(spec, heads=(*heads, mlp, *end)), params


def _compute_dtype(name: str) -> str:
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def row_length(max_length: int, asked: int) -> int:
    """T: the config's, or twice the longest text up to 128, where packing finds room and attention is still cheap."""
    if asked and asked < max_length:
        raise InputError(f"config.batch.row_length: expected at least data.max_length={max_length}, found {asked}")
    return asked or max(max_length, min(2 * max_length, 128))


def training_prompts(config: Experiment, model: SentenceEncoder) -> tuple[str, str]:
    """The prompts of anchors and of candidates: the config's, else the model's default prompt."""
    usual = model.prompts.get(model.default_prompt_name, "")
    return config.data.anchor_prompt or usual, config.data.candidate_prompt or usual


def fit(
    config: Experiment,
    workdir: Path,
    *,
    records: Sequence[Mapping[str, Any]],
    columns: Callable[[Mapping[str, Any]], Sequence[str | None]],
    evaluators: Mapping[str, Evaluator],
    validation: Sequence[Mapping[str, Any]] = (),
) -> loop.Result:
    """Trains as `config` says; running it again resumes. The model is written to `workdir/model`.

    Args:
        records: the training data.
        columns: a record's texts: anchor, positive, negatives (None where there is none). All records of a batch
            get as many columns as the longest.
        evaluators: by name; `encode -> {metric: value}`, logged as name/metric.
        validation: held-out records whose loss is logged beside the training loss.
    """
    if jax.process_count() > 1:
        raise InputError(f"training runs on one host, found {jax.process_count()}")
    # The model and where it runs.
    mesh = make_mesh(config.train.devices)
    groups = num_groups(config.batch.groups, config.batch.size, mesh)
    start = start_from(config.model, config.data.max_length, config.train.seed, config.train.devices)

    # The result is to be used as it was trained, and trained as it is used.
    start.sentence.similarity = config.loss.similarity
    prompts = training_prompts(config, start.sentence)
    if config.data.anchor_prompt or config.data.candidate_prompt:
        start.sentence.prompts |= dict(zip(("query", "document"), prompts, strict=True))
    elif any(start.sentence.prompts.values()) and not any(prompts):
        named = ", ".join(start.sentence.prompts)
        print(f"the model's prompts ({named}) are not used: set config.data.anchor_prompt and candidate_prompt")

    # The batches: a pure function of (seed, step).
    positions = start.encoder.config.max_length
    if config.data.max_length > positions:
        found = config.data.max_length
        raise InputError(f"config.data.max_length: expected at most {positions} (the model's positions), found {found}")
    tokenizer = start.sentence.tokenizer.cut_at(config.data.max_length)
    make_batches = functools.partial(
        training_batches,
        columns=columns,
        tokenizers={"encoder": tokenizer},
        batch_size=config.batch.size,
        groups=groups,
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

    # The loss, the gradient, the update.
    arguments = {name: value for name, value in dataclasses.asdict(config.loss).items() if name != "name"}
    loss = lookup("loss", config.loss.name)
    taken = inspect.signature(loss).parameters
    loss = functools.partial(loss, **{name: value for name, value in arguments.items() if name in taken})
    objective = global_loss(start.encoder, loss, mesh)
    num_updates = num_steps // config.optim.accumulate
    optimizer = make_optimizer(config.optim, num_updates)
    schedule = make_schedule(config.optim, num_updates)
    state = replicate(init_state({"encoder": start.params, "loss": {}}, optimizer), mesh)

    # What is measured on the way.
    held_out = None
    if len(validation) >= config.batch.size:
        held_out_batches = make_batches(validation, seed=0)
        few = min(VALIDATION_BATCHES, steps_per_epoch(len(validation), config.batch.size))
        held_out = _mean_loss(objective, [held_out_batches[step] for step in range(few)], mesh)
    elif len(validation):
        print(f"no validation loss: {len(validation)} held-out records do not fill a batch of {config.batch.size}")

    def evaluate(params: Params) -> dict[str, float]:
        found = dict(held_out(params)) if held_out else {}
        encode = functools.partial(start.sentence.encode, params=params)
        for name, evaluator in evaluators.items():
            found |= {f"{name}/{metric}": value for metric, value in evaluator(encode).items()}
        return found

    def save_model(params: Params, directory: Path) -> None:
        start.sentence.params = params
        start.sentence.save(directory)

    # With the groups: they decide the dropout masks, and default to the number of devices.
    with open_workdir(workdir, config, {**fingerprint(records, columns), "groups": groups}):
        return loop.run(
            config,
            workdir,
            state=state,
            step_fn=make_train_step(objective, optimizer),
            batches=functools.partial(prefetch, batches, num_steps=num_steps),
            num_steps=num_steps,
            learning_rate=lambda step: schedule(step // config.optim.accumulate),
            evaluate=evaluate if evaluators or held_out else None,
            save_model=save_model,
            mesh=mesh,
        )


def _mean_loss(objective: Callable, batches: Sequence[Any], mesh: jax.sharding.Mesh) -> Callable:
    """The objective without dropout, over fixed batches: `encoder params -> {"validation/loss": ...}`."""
    compiled = jax.jit(lambda params, batch: objective(params, batch, None))

    def evaluate(params: Params) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in batches:
            loss, (metrics, _) = compiled({"encoder": params, "loss": {}}, split_groups(batch, mesh))
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
        return {f"validation/{name}": value for name, value in totals.items()}

    return evaluate


def launch(run: Callable[[Experiment, Path], loop.Result]) -> None:
    """An experiment's command: reads the command line, runs, and says where the model is."""
    config, workdir = load(sys.argv)
    prepare_jax(config)
    if run(config, workdir).finished:
        print(f"model: {workdir / 'model'}")


def prepare_jax(config: Experiment) -> None:
    """Process-wide settings of a run; call it before anything touches a device.

    `train.deterministic` asks XLA for GPU kernels that give the same bits each time; on CPU they do so anyway.
    """
    enable_compilation_cache()
    if config.train.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in EMBED_JAX_CACHE or ~/.cache/embed-jax."""
    directory = os.environ.get("EMBED_JAX_CACHE") or str(Path.home() / ".cache" / "embed-jax")
    jax.config.update("jax_compilation_cache_dir", directory)
