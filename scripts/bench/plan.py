"""Bench of memory with --config: does a run fit? It is compiled without weights, and not run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embed_jax.config import Experiment
from embed_jax.errors import InputError

from .abstract import local_bytes
from .measure import GIB, compiled_bytes, print_json, print_row, result, use_cpu_devices

if TYPE_CHECKING:
    from embed_jax.train.assembly import Assembly

DESCRIPTION = """With --config: does a run fit its devices, before anything is downloaded?

The training step of the config is compiled for virtual CPU devices, with parameters of the model's
published shape. Of one device: the parameters that are trained and those that are frozen, the
optimiser's state, the batch, and what the step also needs (gradients, activations, gathered
parameters and embeddings), from the compiler's own plan. It is the CPU compiler's, which does
16-bit products in float32 and may convert a whole frozen base for that (4 bytes a parameter that is
not split): an upper bound of what an accelerator needs."""
EXAMPLES = """examples:
  python -m scripts.bench memory --config configs/llm/e5_mistral.py --devices 8 --memory 80 \\
      --config.train.fsdp=8
  python -m scripts.bench memory --config configs/llm/qwen3_embedding.py --devices 1 --memory 141
  python -m scripts.bench memory --config configs/llm/e5_mistral.py --shape decoder-small \\
      --devices 2"""
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
        "--devices",
        type=int,
        default=0,
        help="number of devices (default: config.train.devices, or 8)",
    )
    command.add_argument(
        "--memory", type=float, default=80.0, help="GiB of a device (default: %(default)s)"
    )
    command.add_argument(
        "--columns", type=int, default=3, help="texts per example (default: %(default)s)"
    )
    command.add_argument(
        "--tokens", type=int, default=0, help="tokens per text (default: config.data.max_length)"
    )


def bench_plan(
    file: str,
    overrides: Sequence[str] = (),
    *,
    devices: int = 0,
    memory: float = 80.0,
    columns: int = 3,
    tokens: int = 0,
    shape: str = "",
    as_json: bool = False,
) -> None:
    """Prints what a training step of a config takes of each device, by the compiler's plan.

    Args:
        file: the config file, with its cut.
        overrides: fields of it, such as "--config.train.fsdp=8".
        devices: how many; 0: as many as the config says, or 8.
        memory: GiB of a device.
        columns: texts of an example.
        tokens: of a text; 0: the config's longest.
        shape: of the model, see `shape_of`.
        as_json: an object a line instead of a table.
    """
    import jax

    from embed_jax.config_file import load_config
    from embed_jax.types import num_params

    config, _ = load_config(["scripts/bench.py", f"--config={file}", *overrides])
    devices = devices or config.train.devices or 8
    jax.config.update("jax_platforms", "cpu")
    use_cpu_devices(devices)
    config.train.devices = devices
    run, arguments = plan_run(config, columns, tokens or config.data.max_length, shape)
    began = time.perf_counter()
    plan = compiled_bytes(run.step.lower(*arguments).compile())
    seconds = time.perf_counter() - began
    state = run.state
    sizes = {
        "parameters, trained": local_bytes(state.params),
        "parameters, frozen": local_bytes(state.frozen),
        "optimiser": local_bytes(state.opt_state),
        "batch": local_bytes(arguments[1]),
        "gradients, activations, gathered": plan["temporaries"] + plan["outputs"],
    }
    peak = sum(plan.values())
    sizes |= {"peak": peak}
    embeddings = config.batch.size * columns * run.model.encoder.dim * 4
    fits = peak <= memory * GIB
    if as_json:
        details = {
            "devices": devices,
            "fits": fits,
            "memory_gib": memory,
            "compile_seconds": seconds,
        }
        details["embeddings_gib"] = embeddings / GIB
        for name, size in sizes.items():
            print_json(result(f"plan/{name}", "GiB", size / GIB, None, None, 1, **details))
        return
    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    print(
        f"{config.model.name} ({shape_of(config.model.name, shape)}): "
        f"{num_params(state.params):,} parameters trained, {num_params(state.frozen):,} frozen"
    )
    print(
        f"{devices} devices ({axes}), {config.batch.size} examples in {run.groups} groups; GiB "
        "of one device:"
    )
    for name, size in sizes.items():
        print_row((name, f"{size / GIB:.3f}"), WIDTHS)
    print(f"of these, gathered embeddings: {embeddings / GIB:.3f}; compiled in {seconds:.0f} s")
    left = memory - peak / GIB
    print(f"fits {memory:g} GiB, {left:.1f} to spare" if fits else
          f"does not fit {memory:g} GiB, {-left:.1f} too much: more groups (batch.groups), "
          "train.fsdp, "
          "model.remat=layer, or lora.base=int8")  # fmt: skip


def shape_of(name: str, shape: str = "") -> str:
    """Returns the shape of a model by its name.

    Raises:
        InputError: for a name with an unknown shape.
    """
    shape = (
        shape or name.removeprefix("random:") * name.startswith("random:") or SHAPE_OF.get(name, "")
    )
    if not shape:
        raise InputError(f"config.model.name: the shape of {name!r} is not known; set --shape")
    return shape


def plan_run(
    config: Experiment, columns: int, tokens: int, shape: str = ""
) -> tuple[Assembly, tuple[Any, Any, Any]]:
    """Assembles a run of the model's shape with nothing allocated.

    Args:
        config: of the run.
        columns: texts per example, if the objective takes that many.
        tokens: per text.
        shape: replaces the shape that is known for the model's name.

    Returns:
        The run, and the abstract arguments of its step: state, batch and key.

    Raises:
        InputError: for a loss that needs labels, scores, or another model's embeddings.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from embed_jax.parallel.mesh import BATCH_AXES, place_abstract
    from embed_jax.train.assembly import assemble
    from embed_jax.train.data import abstract_batch, row_length
    from embed_jax.train.model import abstract_model

    model = abstract_model(config, shape_of(config.model.name, shape))
    run = assemble(config, model=model, abstract=True)
    if needs := run.objective.about.needs:
        raise InputError(
            f"config.loss.name: {config.loss.name!r} needs a {needs[0]}; a plan is only for "
            "losses of texts"
        )
    columns = min(columns, run.objective.about.columns[1] or columns)
    length = row_length(config, config.data.max_length)
    examples = config.batch.size // run.groups
    rows = config.batch.rows or -(-columns * examples // max(length // tokens, 1))
    batch = abstract_batch(run.groups, columns, examples, rows, length)
    by_group = NamedSharding(run.mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(run.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    jnp.zeros(())  # the backend exists before the first lowering
    return run, (run.state, place_abstract(batch, by_group), place_abstract(key, whole))
