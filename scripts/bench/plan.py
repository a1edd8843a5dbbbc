"""Bench of memory with --config: does a run fit? It is compiled without weights, and not run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from embed_jax.train.memory import plan_memory, shape_of

from .measure import GIB, print_json, print_row, result, use_cpu_devices

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
    plan = plan_memory(config, columns, tokens or config.data.max_length, shape)
    run, state, peak = plan.run, plan.run.state, plan.peak
    sizes = {**plan.sizes, "peak": peak}
    fits = peak <= memory * GIB
    if as_json:
        details = {
            "devices": devices,
            "fits": fits,
            "memory_gib": memory,
            "compile_seconds": plan.seconds,
        }
        details["embeddings_gib"] = plan.embeddings / GIB
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
    print(
        f"of these, gathered embeddings: {plan.embeddings / GIB:.3f}; "
        f"compiled in {plan.seconds:.0f} s"
    )
    left = memory - peak / GIB
    print(f"fits {memory:g} GiB, {left:.1f} to spare" if fits else
          f"does not fit {memory:g} GiB, {-left:.1f} too much: more groups (batch.groups), "
          "train.fsdp, "
          "model.remat=layer, or lora.base=int8")  # fmt: skip
