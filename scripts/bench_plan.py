"""bench memory --config: does a run fit? Compiled for so many devices without weights, and not run."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from embed_jax.config import Experiment
from embed_jax.errors import InputError
from scripts.abstract import abstract_batch, local_bytes, placed
from scripts.measure import GIB, compiled_bytes, print_json, print_row, result, use_cpu_devices

DESCRIPTION = """With --config: whether a run fits its devices, before anything is downloaded or allocated.

The training step of the config is compiled for virtual CPU devices, with parameters of the model's published shape. Of
one device: the parameters that are trained and those that are frozen, the optimiser's state, the batch, and what the
step needs besides (gradients, activations, gathered parameters and embeddings), from the compiler's own plan. It is the
CPU compiler's, which does 16-bit products in float32 and may convert a whole frozen base for that (4 bytes a
parameter that is not split): an upper bound of what an accelerator needs."""
EXAMPLES = """examples:
  python -m scripts.bench memory --config configs/llm/e5_mistral.py --devices 8 --memory 80 --config.train.fsdp=8
  python -m scripts.bench memory --config configs/llm/qwen3_embedding.py --devices 1 --memory 141
  python -m scripts.bench memory --config configs/llm/e5_mistral.py --shape decoder-small --devices 2"""
WIDTHS = (34, 12)
SHAPE_OF = {  # of models on the hub
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "meta-llama/Llama-3.2-1B": "llama3.2-1b",
    "princeton-nlp/Sheared-LLaMA-1.3B": "sheared-llama-1.3b",
    "Qwen/Qwen2-1.5B": "qwen2-1.5b",
    "Qwen/Qwen2-7B": "qwen2-7b",
    "Qwen/Qwen3-0.6B-Base": "qwen3-0.6b",
    "Qwen/Qwen3-4B-Base": "qwen3-4b",
    "Qwen/Qwen3-8B-Base": "qwen3-8b",
    "google/gemma-2b": "gemma-2b",
    "google/gemma-2-2b": "gemma2-2b",
    "bert-base-uncased": "bert-base",
}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", metavar="FILE[:CUT]", help="plan this run; --config.FIELD=VALUE changes it"
    )
    command.add_argument(
        "--devices", type=int, default=0, help="how many (default: config.train.devices, or 8)"
    )
    command.add_argument(
        "--memory", type=float, default=80.0, help="GiB of a device (default: %(default)s)"
    )
    command.add_argument(
        "--columns", type=int, default=3, help="texts of an example (default: %(default)s)"
    )
    command.add_argument(
        "--tokens", type=int, default=0, help="tokens of a text (default: config.data.max_length)"
    )


def bench_plan(args: argparse.Namespace) -> None:
    import jax

    from embed_jax.config_file import load

    config, _ = load(["scripts/bench.py", f"--config={args.config}", *args.overrides])
    devices = args.devices or config.train.devices or 8
    jax.config.update("jax_platforms", "cpu")
    use_cpu_devices(devices)
    step = plan_step(
        config, devices, args.columns, args.tokens or config.data.max_length, args.shape
    )
    began = time.perf_counter()
    plan = compiled_bytes(step.function.lower(*step.arguments).compile())
    seconds = time.perf_counter() - began
    state = step.arguments[0]
    sizes = {
        "parameters, trained": local_bytes(state.params),
        "parameters, frozen": local_bytes(state.frozen),
        "optimiser": local_bytes(state.opt_state),
        "batch": local_bytes(step.arguments[1]),
        "gradients, activations, gathered": plan["temporaries"] + plan["outputs"],
    }
    peak = sum(plan.values())
    sizes |= {"peak": peak}
    embeddings = config.batch.size * args.columns * step.dim * 4
    fits = peak <= args.memory * GIB
    if args.json:
        shape = {
            "devices": devices,
            "fits": fits,
            "memory_gib": args.memory,
            "compile_seconds": seconds,
        }
        shape["embeddings_gib"] = embeddings / GIB
        for name, size in sizes.items():
            print_json(result(f"plan/{name}", "GiB", size / GIB, None, None, 1, **shape))
        return
    axes = ", ".join(f"{axis} {size}" for axis, size in step.mesh.shape.items())
    print(
        f"{config.model.name} ({step.shape}): {step.trained:,} parameters trained, {step.frozen:,} frozen"
    )
    print(
        f"{devices} devices ({axes}), {config.batch.size} examples in {step.groups} groups; GiB of one device:"
    )
    for name, size in sizes.items():
        print_row((name, f"{size / GIB:.3f}"), WIDTHS)
    print(f"of these, gathered embeddings: {embeddings / GIB:.3f}; compiled in {seconds:.0f} s")
    left = args.memory - peak / GIB
    print(f"fits {args.memory:g} GiB, {left:.1f} to spare" if fits else
          f"does not fit {args.memory:g} GiB, {-left:.1f} too much: more groups (batch.groups), train.fsdp, "
          "model.remat=layer, or lora.base=int8")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A training step and the abstract arguments (state, batch, key) to compile it for."""

    function: Any
    arguments: tuple[Any, Any, Any]
    mesh: Any
    shape: str
    dim: int
    groups: int
    trained: int
    frozen: int


def shape_of(name: str, shape: str = "") -> str:
    """The shape of a model by its name.

    Raises:
        InputError: for a name whose shape is not known.
    """
    shape = (
        shape or name.removeprefix("random:") * name.startswith("random:") or SHAPE_OF.get(name, "")
    )
    if not shape:
        raise InputError(
            f"config.model.name: the shape of {name!r} is not known here; give --shape"
        )
    return shape


def plan_step(
    config: Experiment, devices: int, columns: int, tokens: int, shape: str = ""
) -> PlannedStep:
    """The step that `train.fit.fit` would run, of the model's shape, with nothing allocated."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from embed_jax.encoders.build import build_encoder, random_spec
    from embed_jax.encoders.token_objectives import build_token_objective, is_token_objective
    from embed_jax.parallel.gather import global_loss
    from embed_jax.parallel.mesh import (
        BATCH_AXES,
        make_mesh,
        num_groups,
        state_shardings,
        training_specs,
    )
    from embed_jax.parallel.tokens import HEAD, token_loss
    from embed_jax.train.fit import loss_arguments, row_length
    from embed_jax.train.optim import make_optimizer
    from embed_jax.train.sources import ONLY, training_loss
    from embed_jax.train.start import adapted, changed, kept
    from embed_jax.train.step import init_state, make_train_step
    from embed_jax.types import BASE, num_params

    shape = shape_of(config.model.name, shape)
    spec = random_spec(shape, pooling=config.model.pooling or "mean")
    mesh = make_mesh(devices, config.train.fsdp, config.train.tensor)
    groups = num_groups(config.batch.groups, config.batch.size, mesh)

    # The parameters, as shapes.
    made = {}

    def initial(key):
        params = kept(build_encoder(spec).init(key), config.lora)
        made["spec"], params = changed(spec, params, config.model, key)
        made["spec"], params = adapted(made["spec"], params, config.lora, key)
        return params

    params = jax.eval_shape(initial, jax.random.key(0))
    spec = made["spec"]
    dtype = "bfloat16" if config.model.compute_dtype == "auto" else config.model.compute_dtype
    encoder = build_encoder(spec, compute_dtype=dtype, remat=config.model.remat, unroll=1)
    base = {BASE: {"backbone": params.pop("backbone")}} if spec.lora else {}
    if is_token_objective(config.loss.name):
        columns = 1
        alone = build_token_objective(config.loss.name)(encoder, _Tokenizer())
        head = jax.eval_shape(alone.init, jax.random.key(0))
        if spec.lora and not config.model.name.startswith(
            "random:"
        ):  # an adapter leaves the model's own head as it is
            head, base = {}, base | {HEAD: head}
        params = {"encoder": params, "loss": head}
    else:
        loss = training_loss(
            config, loss_arguments(config.loss), list(vars(config.mixture.sources)) or [ONLY]
        )
        params = {
            "encoder": params,
            "loss": jax.eval_shape(lambda key: loss.init(encoder.dim, key), jax.random.key(0)),
        }

    # The step, and where its arguments lie.
    optimizer = make_optimizer(config.optim, 1000)
    specs = training_specs({**params, **base}, encoder.sharding, mesh)
    state = jax.eval_shape(lambda params, base: init_state(params, optimizer, base), params, base)
    shardings = state_shardings(state, optimizer, specs, mesh)
    lying = {"specs": specs, "fsdp_gather": config.train.fsdp_gather}
    if is_token_objective(config.loss.name):
        objective = token_loss(encoder, alone, mesh, **lying)
    else:
        objective = global_loss(
            encoder, loss, mesh, form=config.loss.form, **lying, layers=loss.about.layers
        )
    length = row_length(config.data.max_length, config.batch.row_length)
    examples = config.batch.size // groups
    rows = config.batch.rows or -(-columns * examples // max(length // tokens, 1))
    batch = abstract_batch(groups, columns, examples, rows, length)
    by_group, whole = (
        NamedSharding(mesh, PartitionSpec(BATCH_AXES)),
        NamedSharding(mesh, PartitionSpec()),
    )
    arguments = (
        jax.tree.map(placed, state, shardings),
        jax.tree.map(lambda leaf: placed(leaf, by_group), batch),
        placed(jax.eval_shape(lambda: jax.random.key(0)), whole),
    )
    jnp.zeros(())  # the backend exists before the first lowering
    return PlannedStep(
        make_train_step(objective, optimizer, shardings),
        arguments,
        mesh,
        shape,
        encoder.dim,
        groups,
        num_params(params),
        num_params(base),
    )


class _Tokenizer:
    """Of a tokenizer what objectives on tokens ask of one."""

    mask_token = "[MASK]"
    all_special_ids = (0,)

    def get_vocab(self) -> dict[str, int]:
        return {self.mask_token: 0}
