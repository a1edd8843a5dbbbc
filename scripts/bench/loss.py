"""Bench of losses: cost of a loss and its gradient in each form, by batch size."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from embed_jax.train.memory import compiled_bytes

from .measure import (
    MIB,
    alternate,
    count,
    count_or_none,
    counts,
    in_fresh_process,
    median_ratio,
    memory_limit,
    on_cpu,
    peak_growth,
    print_json,
    print_row,
    result,
    use_cpu_devices,
)

DESCRIPTION = """Time and memory of a loss and its gradient, by form and batch size.

N examples of an anchor and a positive, D numbers each. The forms: dense holds all N x N pairs,
tiled a block of them at a time, ring besides no more candidates than two devices have. dense and
tiled run on one device, ring on --devices of them. All forms take turns in one process; the ratio
to dense is the median over the alternations. Virtual devices of a CPU share its cores, so that
there a ring's time says little. Memory is a device's, without the embeddings themselves: "compiled"
is the compiler's plan (temporaries and outputs), "measured" how far the peak rose in a fresh
process (on a CPU resident memory, divided by the ring's devices)."""
EXAMPLES = """examples:
  python -m scripts.bench loss --sizes 1024,2048,4096 --dims 256
  python -m scripts.bench loss --loss "info_nce(terms='qp,qq')" --forms dense,tiled --json
  python -m scripts.bench loss --sizes "" --largest 131072 --dims 256"""
FORMS = ("dense", "tiled", "ring")
WIDTHS = (8, 5, 6, 9, 9, 13, 13, 15)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--loss", default="info_nce", help="name or expression (default: %(default)s)"
    )
    command.add_argument(
        "--sizes",
        type=counts,
        default="1024,2048,4096,8192,16384",
        help="batch sizes N (default: %(default)s)",
    )
    command.add_argument(
        "--dims", type=counts, default="256,768", help="embedding sizes D (default: %(default)s)"
    )
    command.add_argument(
        "--forms", type=_forms, default="dense,tiled,ring", help="(default: %(default)s)"
    )
    command.add_argument(
        "--repeat", type=count, default=5, help="timed runs of each form (default: %(default)s)"
    )
    command.add_argument(
        "--devices",
        type=count,
        default=4,
        help="devices of the ring, virtual on a CPU (default: %(default)s)",
    )
    command.add_argument(
        "--largest",
        type=count_or_none,
        default=65536,
        help="also one run of tiled with N examples, of the first of --dims, and the plans of "
        "the other forms "
        "(default: %(default)s; 0: none)",
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    for size in [*args.sizes, *([args.largest] if args.largest else [])]:
        if "ring" in args.forms and size % args.devices:
            return (
                "--sizes, --largest: expected multiples of the ring's --devices "
                f"{args.devices}, found {size}"
            )
    return None if args.dims else "--dims: expected at least one size"


def bench_loss(args: argparse.Namespace) -> None:
    use_cpu_devices(args.devices)
    import jax

    from embed_jax.losses.expression import build_loss

    build_loss(args.loss)  # or an error, before anything is printed
    args.devices = min(args.devices, jax.device_count())
    if not args.json:
        where = (
            f"{args.devices} virtual devices that share its cores"
            if on_cpu()
            else f"{args.devices} devices"
        )
        print(
            f"{args.loss}, value and gradient, on {jax.devices()[0].device_kind}; ring on {where}"
        )
        heads = (
            "N",
            "D",
            "form",
            "seconds",
            "to dense",
            "compiled MiB",
            "measured MiB",
            "KiB an example",
        )
        print_row(heads, WIDTHS)
    for dim in args.dims:
        for size in args.sizes:
            _compare(args, size, dim)
    if args.largest:
        _largest(args, args.largest, args.dims[0])


def _compare(args: argparse.Namespace, size: int, dim: int) -> None:
    """Prints one line for each form; the forms take turns."""
    plans, runs = {}, {}
    for form in args.forms:
        compiled, arguments = compile_form(args.loss, form, size, dim, args.devices)
        plans[form] = compiled_bytes(compiled)
        if (
            sum(plans[form].values()) * (args.devices if form == "ring" and on_cpu() else 1)
            < memory_limit()
        ):
            runs[form] = functools.partial(_run, compiled, arguments())
    seconds = dict(zip(runs, alternate(list(runs.values()), args.repeat), strict=True))
    measured = {form: _measured(args, form, size, dim)["bytes"] for form in runs}
    for form in args.forms:
        _print(
            args,
            form,
            size,
            dim,
            plans[form],
            measured.get(form),
            seconds.get(form),
            seconds.get("dense"),
        )


def _largest(args: argparse.Namespace, size: int, dim: int) -> None:
    """Runs tiled once, in a fresh process; prints the compiler's plan of the other forms."""
    for form in args.forms:
        if form == "tiled":
            measured = _measured(args, form, size, dim)
            _print(
                args, form, size, dim, measured["plan"], measured["bytes"], [measured["seconds"]]
            )
        else:
            compiled, _ = compile_form(args.loss, form, size, dim, args.devices)
            _print(args, form, size, dim, compiled_bytes(compiled))


def _print(args, form, size, dim, plan, measured=None, ours=(), dense=()) -> None:
    devices = args.devices if form == "ring" else 1
    needed = plan["temporaries"] + plan["outputs"]
    memory = {
        "compiled_mib": needed / MIB,
        "measured_mib": None if measured is None else measured / MIB,
        "kib_an_example": needed / size / 1024,
    }
    seconds = statistics.median(ours) if ours else None
    ratio = median_ratio(ours, dense) if ours and dense else None
    if not args.json:
        print_row((size, dim, form, seconds, ratio, *memory.values()), WIDTHS)
        return
    details = {
        "form": form,
        "N": size,
        "D": dim,
        "devices": devices,
        **memory,
        "arguments_mib": plan["arguments"] / MIB,
    }
    if form == "ring" and on_cpu():
        details["note"] = "virtual devices share the cores"
    dense_seconds = statistics.median(dense) if ours and dense else None
    print_json(
        result(
            f"loss/{form}/N={size}/D={dim}",
            "s",
            seconds,
            dense_seconds,
            ratio,
            len(ours),
            **details,
        )
    )


# ---- one form ------------------------------------------------------------------------------------


def compile_form(
    expression: str, form: str, size: int, dim: int, devices: int
) -> tuple[Any, Callable[[], tuple]]:
    """Returns the compiled value and gradient of a loss, and a function that makes its arguments.

    Args:
        expression: the loss, as in config.loss.name.
        form: one of FORMS.
        size: N, the number of examples.
        dim: D, the size of an embedding.
        devices: for the form "ring"; the others run on one.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from embed_jax.losses.expression import build_loss
    from embed_jax.parallel.mesh import BATCH_AXES, make_mesh
    from embed_jax.parallel.world import device_world
    from embed_jax.world import make_columns

    loss = build_loss(expression)
    loss_params = loss.init(dim, jax.random.key(0))
    mesh = make_mesh(devices if form == "ring" else 1)
    by_column, by_example = PartitionSpec(None, BATCH_AXES), PartitionSpec(BATCH_AXES)

    def on_device(embeddings, text_hash, present, example):
        own = make_columns(embeddings, text_hash=text_hash, present=present, example=example)
        world = device_world(own, form, BATCH_AXES)
        values, weights, _ = loss.on_world(own, world, loss_params)
        return world.total(jnp.sum(values * weights)) / world.total(jnp.sum(weights))

    # Hashes and masks are arguments as in training: constants would be folded away.
    specs = (by_column, by_column, by_column, by_example)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(
            ((2, size, dim), (2, size, 2), (2, size), (size,)),
            (jnp.float32, jnp.uint32, bool, jnp.int32),
            specs,
            strict=True,
        )
    ]
    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    compiled = jax.jit(jax.value_and_grad(sharded)).lower(*arguments).compile()

    def make() -> tuple:
        rng = np.random.default_rng(0)
        anchors, noise = rng.standard_normal((2, size, dim), np.float32)
        text_hash = rng.integers(0, 2**32, (2, size, 2), np.uint32)
        made = (
            np.stack([anchors, anchors + noise]),
            text_hash,
            np.ones((2, size), bool),
            np.arange(size),
        )
        return jax.block_until_ready(
            tuple(
                jax.device_put(leaf.astype(of.dtype), of.sharding)
                for leaf, of in zip(made, arguments, strict=True)
            )
        )

    return compiled, make


def measure_form(loss: str, form: str, size: int, dim: int, devices: int) -> dict[str, Any]:
    """Runs once in an idle process: {"bytes": growth of the peak, "seconds", "plan"}.

    On a CPU the bytes are a device's share of the process's.
    """
    use_cpu_devices(devices)
    small, arguments = compile_form(loss, form, 2 * devices, dim, devices)
    _run(small, arguments())  # starts the threads
    compiled, arguments = compile_form(loss, form, size, dim, devices)
    made = arguments()
    seconds: list[float] = []
    growth = peak_growth(
        lambda: seconds.extend(*alternate([lambda: _run(compiled, made)], 1, warm_up=0))
    )
    share = devices if form == "ring" and on_cpu() else 1
    return {"bytes": growth // share, "seconds": seconds[0], "plan": compiled_bytes(compiled)}


def _measured(args: argparse.Namespace, form: str, size: int, dim: int) -> dict[str, Any]:
    options = {"loss": args.loss, "form": form, "size": size, "dim": dim, "devices": args.devices}
    return in_fresh_process(__name__, "measure_form", options)


def _run(compiled: Any, arguments: tuple) -> None:
    import jax

    jax.block_until_ready(compiled(*arguments))


def _forms(text: str) -> list[str]:
    forms = [form.strip() for form in text.split(",")]
    for form in forms:
        if form not in FORMS:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(FORMS)}, found {form!r}")
    return forms
