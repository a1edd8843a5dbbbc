"""Bench of scaling: memory and traffic of a compiled step on up to hundreds of devices."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from embed_jax.train.memory import compiled_bytes, local_bytes

from .hlo import KINDS, Collective, collectives_of
from .measure import (
    MIB,
    count,
    counts,
    print_json,
    print_row,
    result,
    use_cpu_devices,
)

DESCRIPTION = """Memory and traffic of a training step by number of devices.

The step is compiled for virtual CPU devices and not run.

All figures are of one device and one step. "state" is parameters and AdamW's two moments as they
are split, "peak" the compiler's plan of all memory. Of each kind of collective: how many the
program has, outside of loops and in them, how often they run, the MiB a device receives, and how
many it should be (W devices have a part of the batch each, F share parameters, T share layers):

  all-gather          (W-1)/W of the embeddings and their labels; (F-1)/F of the parameters split
                      over fsdp, those of layers once forwards and once backwards (with several
                      groups, each, once more)
  reduce-scatter      (W-1)/W of the gradients of the embeddings; (F-1)/F of those of the parameters
                      split over fsdp
  all-reduce          2 (G-1)/G of the gradients of parameters, G = W or, of those split over fsdp,
                      W/F; 2 (T-1)/T of the activations, 4 times a layer (6 if it is computed again)
  collective-permute  ring: W times a device's candidates forwards, and with their gradients
                      backwards"""
EXAMPLES = """examples:
  python -m scripts.bench scaling
  python -m scripts.bench scaling --devices 8,64 --fsdp 8 --fsdp-gather once
  python -m scripts.bench scaling --devices 4,16 --tensor 4 --shape bert-base
  python -m scripts.bench scaling --form ring --json"""
FORMS = ("dense", "tiled", "ring")
COLUMNS = 2
ROW_LENGTH, TOKENS_A_TEXT = 64, 16
WIDTHS = (20, 8, 8, 8, 12, 12, 8)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shape", default="minilm-l6", help="shape of the encoder (default: %(default)s)"
    )
    command.add_argument(
        "--devices",
        type=counts,
        default="1,2,4,8,16,32,64,128,256",
        help="how many (default: %(default)s)",
    )
    command.add_argument(
        "--batch-per-device",
        type=count,
        default=8,
        help="pairs per device of the data and fsdp axes (default: %(default)s)",
    )
    command.add_argument(
        "--groups", type=count, default=1, help="groups of these pairs (default: %(default)s)"
    )
    command.add_argument(
        "--fsdp", type=count, default=1, help="devices that share parameters (default: %(default)s)"
    )
    command.add_argument(
        "--tensor", type=count, default=1, help="devices that share layers (default: %(default)s)"
    )
    command.add_argument(
        "--form", choices=FORMS, default="tiled", help="form of the loss (default: %(default)s)"
    )
    command.add_argument(
        "--fsdp-gather",
        choices=("layer", "once"),
        default="layer",
        help="when parameters split over fsdp are gathered (default: %(default)s)",
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if not args.devices:
        return "--devices: expected at least one number"
    if args.batch_per_device % args.groups:
        return (
            f"--batch-per-device: expected a multiple of --groups {args.groups}, found "
            f"{args.batch_per_device}"
        )
    for devices in args.devices:
        if devices % (args.fsdp * args.tensor):
            return (
                f"--devices: expected multiples of --fsdp {args.fsdp} * --tensor "
                f"{args.tensor}, found {devices}"
            )
    return None


def bench_scaling(args: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    use_cpu_devices(max(args.devices))
    if not args.json:
        print(
            f"{args.shape}, {args.batch_per_device} pairs per device, form {args.form}; MiB of one "
            "device and one step"
        )
    for devices in args.devices:
        step, split = abstract_step(args, devices)
        began = time.perf_counter()
        compiled = step.lower(*split.arguments).compile()
        seconds = time.perf_counter() - began
        _show(args, devices, split, compiled, seconds)


def _show(
    args: argparse.Namespace, devices: int, split: Split, compiled: Any, seconds: float
) -> None:
    plan = compiled_bytes(compiled)
    state, peak = local_bytes(split.arguments[0]), sum(plan.values())
    shape = {
        "devices": devices,
        **{axis: size for axis, size in split.mesh.shape.items() if axis != "data"},
    }
    if args.json:
        memory = {
            "state_mib": state / MIB,
            **{f"{name}_mib": size / MIB for name, size in plan.items()},
        }
        name = f"scaling/devices={devices}/memory"
        print_json(
            result(
                name, "MiB", peak / MIB, None, None, 1, **shape, **memory, compile_seconds=seconds
            )
        )
    else:
        print(
            f"\n{devices} devices: state {state / MIB:,.1f}, temporaries "
            f"{plan['temporaries'] / MIB:,.1f}, "
            f"peak {peak / MIB:,.1f} MiB; compiled in {seconds:.1f} s"
        )
        print_row(("", "once", "in loops", "runs", "measured MiB", "formula MiB", "ratio"), WIDTHS)
    collectives, expected = collectives_of(compiled.as_text()), formula(args, split)
    for kind in KINDS:
        mine = [collective for collective in collectives if collective.kind == kind]
        if not mine and not expected[kind]:
            continue
        runs, received = _totals(mine)
        measured, computed = received / MIB, expected[kind] / MIB
        ratio = measured / computed if computed else None
        once = sum(not collective.in_loop for collective in mine)
        if args.json:
            calls = {"outside_loops": once, "in_loops": len(mine) - once, "runs": runs}
            print_json(
                result(
                    f"scaling/devices={devices}/{kind}",
                    "MiB",
                    measured,
                    computed,
                    ratio,
                    1,
                    **shape,
                    **calls,
                )
            )
        else:
            print_row((kind, once, len(mine) - once, runs, measured, computed, ratio), WIDTHS)


def _totals(collectives: Sequence[Collective]) -> tuple[int, float]:
    """Returns runs and received bytes of a step; a loop of unknown length counts once."""
    runs = sum(collective.times or 1 for collective in collectives)
    return runs, sum((collective.times or 1) * collective.received for collective in collectives)


# ---- the step ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """A step's abstract arguments (state, batch, key), and what the formula asks about them."""

    arguments: tuple[Any, Any, Any]
    mesh: Any
    specs: Any
    encoder: Any


def abstract_step(args: argparse.Namespace, devices: int) -> tuple[Any, Split]:
    """Returns the training step for N devices and its arguments' shapes; allocates nothing."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from embed_jax.config import Optim
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.losses.in_batch import info_nce
    from embed_jax.parallel.gather import global_loss
    from embed_jax.parallel.mesh import (
        BATCH_AXES,
        batch_devices,
        make_mesh,
        place_abstract,
        state_shardings,
        training_specs,
    )
    from embed_jax.train.data import abstract_batch
    from embed_jax.train.optim import make_optimizer
    from embed_jax.train.step import init_state, make_train_step

    mesh = make_mesh(devices, args.fsdp, args.tensor)
    encoder = build_encoder(random_spec(args.shape), unroll=1)
    optimizer = make_optimizer(Optim(), 1000)
    params = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0)), "loss": {}}
    specs = training_specs(params, encoder.sharding, mesh)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
    shardings = state_shardings(state, optimizer, specs, mesh)

    examples = args.batch_per_device // args.groups
    groups = args.groups * batch_devices(mesh)
    rows = -(-COLUMNS * examples * TOKENS_A_TEXT // ROW_LENGTH)
    batch = abstract_batch(groups, COLUMNS, examples, rows, ROW_LENGTH)
    by_group, whole = (
        NamedSharding(mesh, PartitionSpec(BATCH_AXES)),
        NamedSharding(mesh, PartitionSpec()),
    )
    arguments = (
        place_abstract(state, shardings),
        place_abstract(batch, by_group),
        place_abstract(jax.eval_shape(lambda: jax.random.key(0)), whole),
    )
    objective = global_loss(
        encoder, info_nce.on_world, mesh, form=args.form, specs=specs, fsdp_gather=args.fsdp_gather
    )
    return make_train_step(objective, optimizer, shardings), Split(arguments, mesh, specs, encoder)


# ---- what is to be expected ----------------------------------------------------------------------


def formula(args: argparse.Namespace, split: Split) -> dict[str, float]:
    """Returns the bytes that a device receives in a step by kind of collective, see DESCRIPTION."""
    import jax

    mesh = split.mesh
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    shards = mesh.shape["data"] * fsdp
    bytes_ = dict.fromkeys(KINDS, 0.0)

    def share(size: int) -> float:
        return (size - 1) / size

    # Embeddings, and with them a hash (8 bytes) and a mask (1) for each text, a number (4) for each
    # example.
    texts = COLUMNS * args.batch_per_device * shards
    embeddings = texts * split.encoder.dim * 4
    if (
        args.form == "ring"
        # All but the anchors; also numbers of example and column (8), two hashes (16), a mask (1).
    ):
        candidates = (COLUMNS - 1) * args.batch_per_device if shards > 1 else 0
        bytes_["collective-permute"] += shards * candidates * (3 * split.encoder.dim * 4 + 2 * 25)
    else:
        bytes_["all-gather"] += share(shards) * (embeddings + texts * 9 + texts // COLUMNS * 4)
        bytes_["reduce-scatter"] += share(shards) * embeddings

    # Parameters: a layer's are gathered where it is used, the rest at the start.
    by_layer = args.fsdp_gather == "layer" and fsdp > 1
    passes = 0
    if by_layer:
        passes = 2 if args.groups == 1 else 3
    stacked = "encoder/" + "/".join(split.encoder.layers)
    specs = jax.tree.leaves(
        split.specs, is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec)
    )
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(split.arguments[0].params), specs, strict=True
    ):
        size = leaf.size * 4 / (tensor if "tensor" in spec else 1)
        if "fsdp" not in spec:
            bytes_["all-reduce"] += 2 * share(shards) * size
            continue
        in_layer = by_layer and jax.tree_util.keystr(path, simple=True, separator="/").startswith(
            stacked
        )
        bytes_["all-gather"] += share(fsdp) * size * (passes * args.groups if in_layer else 1)
        bytes_["reduce-scatter"] += share(fsdp) * size * (args.groups if in_layer else 1)
        bytes_["all-reduce"] += 2 * share(shards // fsdp) * size / fsdp

    # Activations: behind attention and feed-forward, and behind the gradients of both.
    config = split.encoder.config
    tokens = split.arguments[1].tokens["encoder"].token_ids.size / shards
    again = (passes - 1) if by_layer else (1 if args.groups > 1 else 0)
    times = (4 + 2 * again) * config.num_layers if tensor > 1 else 0
    bytes_["all-reduce"] += times * 2 * share(tensor) * tokens * config.hidden_size * 4
    return bytes_
