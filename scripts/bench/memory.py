"""Bench of memory: a big batch in groups against a small one; with --config, whether a run fits."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from embed_jax.train.memory import compiled_bytes

from . import plan
from .measure import (
    MIB,
    alternate,
    count,
    in_fresh_process,
    make_words,
    median_ratio,
    peak_growth,
    print_json,
    print_row,
    result,
)

DESCRIPTION = (
    """What gradient caching costs: a batch of sentences dealt to groups, against a batch of one
    group.

Whole training steps (info_nce, dropout, clipping, AdamW) on one device, with as many rows of the
same length in each group. "compiled" is the compiler's plan (arguments with parameters and AdamW's
state, temporaries, outputs); "measured" the arguments and how far the peak rose in a fresh process.
Last, how far the gradient of several groups is from that of one (dropout off), norm of the
difference by norm; beside it, how far rounding by itself takes it.

"""
    + plan.DESCRIPTION
)
EXAMPLES = """examples:
  python -m scripts.bench memory
  python -m scripts.bench memory --batch-size 32768 --group 256 --dtype bfloat16
  python -m scripts.bench memory --shape mini --batch-size 1024 --repeat 5 --json

""" + plan.EXAMPLES.partition("\n")[2]
LONGEST = 128  # tokens of a text
WIDTHS = (26, 14, 14, 8)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shape",
        default="",
        help="shape of the encoder (default: minilm-l6; with --config the model's)",
    )
    command.add_argument(
        "--batch-size",
        type=count,
        default=4096,
        help="sentences of the big batch, half of them anchors (%(default)s)",
    )
    command.add_argument(
        "--group", type=count, default=128, help="sentences of a group (default: %(default)s)"
    )
    command.add_argument(
        "--exact",
        type=count,
        default=512,
        help="sentences of the batch whose gradients are compared (%(default)s)",
    )
    command.add_argument(
        "--words",
        type=float,
        default=10.0,
        help="median words of generated text (default: %(default)s)",
    )
    command.add_argument(
        "--row-length", type=count, default=128, help="slots of a packed row (default: %(default)s)"
    )
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype"
    )
    command.add_argument(
        "--repeat", type=count, default=3, help="timed runs of each side (default: %(default)s)"
    )

    plan.add_options(command)


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if args.group % 2:
        return f"--group: expected an even number (pairs), found {args.group}"
    for name in ("batch_size", "exact"):
        if (size := getattr(args, name)) % args.group:
            return (
                f"--{name.replace('_', '-')}: expected a multiple of --group {args.group}, "
                f"found {size}"
            )
    if args.row_length < LONGEST:
        return (
            f"--row-length: expected {LONGEST} or more (the longest texts), found {args.row_length}"
        )
    return None


def bench_memory(args: argparse.Namespace) -> None:
    if args.config:
        return plan.bench_plan(
            args.config,
            args.overrides,
            devices=args.devices,
            memory=args.memory,
            columns=args.columns,
            tokens=args.tokens,
            shape=args.shape,
            as_json=args.json,
        )
    args.shape = args.shape or "minilm-l6"
    texts = {"words": args.words, "row_length": args.row_length}
    # The small batch gets as many rows as a group of the big one, so that both encode the same.
    rows = (
        make_batch(args.batch_size, args.batch_size // args.group, **texts)
        .tokens["encoder"]
        .token_ids.shape[1]
    )
    model = {"shape": args.shape, "group": args.group, "dtype": args.dtype}
    options = {**model, **texts, "rows": rows}
    big, small = (
        in_fresh_process(__name__, "measure_compiled_step", {"sentences": size, **options})
        for size in (args.batch_size, args.group)
    )
    shape = {
        "sentences": args.batch_size,
        "group": args.group,
        "rows": rows,
        "row_length": args.row_length,
    }
    if not args.json:
        print(
            f"{args.shape}: {args.batch_size} sentences in groups of {args.group} against "
            f"{args.group} in one group"
        )
        print(f"{rows} rows of {args.row_length} in a group")
        print_row(("", "groups", "one group", "ratio"), WIDTHS)

    def show(
        name: str,
        text: str,
        unit: str,
        ours: float,
        other: float,
        ratio: float | None,
        n: int,
        **details: Any,
    ) -> None:
        if args.json:
            print_json(result(f"memory/{name}", unit, ours, other, ratio, n, **shape, **details))
        else:
            print_row((f"{text}, {unit}", ours, other, ratio), WIDTHS)

    for name in ("arguments", "outputs", "temporaries", "compiled", "measured"):
        ours, other = big[name] / MIB, small[name] / MIB
        show(name, name, "MiB", ours, other, ours / other if other else None, 1)

    ours, other = step_seconds(args.batch_size, args.repeat, **options)
    ours, other = ([1000 * seconds for seconds in side] for side in (ours, other))
    medians = statistics.median(ours), statistics.median(other)
    show("time", "time per sentence", "ms", *medians, median_ratio(ours, other), args.repeat)

    difference, rounding = gradient_differences(args.exact, **model, **texts)
    groups = args.exact // args.group
    if args.json:
        details = {**shape, "exact": args.exact, "groups": groups}
        ratio = difference / rounding if rounding else None
        print_json(
            result(
                "memory/gradient", "relative difference", difference, rounding, ratio, 1, **details
            )
        )
    else:
        print(
            f"gradient of {args.exact} sentences, {groups} groups against one: {difference:.1e} "
            "apart (relative); "
            f"one group in rows of {2 * args.row_length} against one: {rounding:.1e}"
        )


# ---- the two sides -------------------------------------------------------------------------------


def make_batch(sentences: int, groups: int, words: float, row_length: int, rows: int | None = None):
    """Makes a batch of generated pairs."""
    from embed_jax.data.pack import pack_batch
    from embed_jax.types import Batch

    # A token before and after, as a tokenizer adds them.
    ids = [np.pad(numbers[: LONGEST - 2], 1) for numbers in make_words(sentences, words)]
    half = sentences // 2
    tokens, order = pack_batch(
        [ids[:half], ids[half:]], groups=groups, row_length=row_length, rows=rows
    )
    present = np.ones((groups, 2, half // groups), bool)
    text_hash = np.random.default_rng(0).integers(0, 2**32, (*present.shape, 2), np.uint32)
    return Batch({"encoder": tokens}, present, text_hash, order)


def make_objective(shape: str, dtype: str) -> tuple[Callable, Any]:
    """Returns the training objective on one device, and random parameters for it."""
    import jax

    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.losses.in_batch import info_nce
    from embed_jax.parallel.gather import global_loss
    from embed_jax.parallel.mesh import make_mesh

    encoder = build_encoder(random_spec(shape), compute_dtype=dtype)
    params = {"encoder": jax.jit(encoder.init)(jax.random.key(0)), "loss": {}}
    return global_loss(encoder, info_nce.on_world, make_mesh(1)), params


def make_step(sentences: int, shape: str, group: int, dtype: str, **texts: Any):
    """Returns a compiled training step, its state and its batch, in groups of `group` sentences."""
    import jax

    from embed_jax.config import Optim
    from embed_jax.train.optim import make_optimizer
    from embed_jax.train.step import init_state, make_train_step

    objective, params = make_objective(shape, dtype)
    optimizer = make_optimizer(
        Optim(learning_rate=1e-5, schedule="constant", weight_decay=0.01), 1000
    )
    state = init_state(params, optimizer)
    batch = jax.device_put(make_batch(sentences, sentences // group, **texts))
    return (
        make_train_step(objective, optimizer).lower(state, batch, jax.random.key(0)).compile(),
        state,
        batch,
    )


def measure_compiled_step(sentences: int, **options: Any) -> dict[str, int]:
    """Returns the bytes of one training step, by plan and as measured in an idle process."""
    import jax

    step, state, batch = make_step(sentences, **options)
    parts = compiled_bytes(step)
    state = jax.block_until_ready(state)
    growth = peak_growth(lambda: jax.block_until_ready(step(state, batch, jax.random.key(0))))
    return {**parts, "compiled": sum(parts.values()), "measured": parts["arguments"] + growth}


def step_seconds(sentences: int, repeat: int, **options: Any) -> list[list[float]]:
    """Returns seconds per sentence of the big batch in groups and of small batches, in turn."""
    import jax

    group = options["group"]
    times = max(
        sentences // group // 4, 1
    )  # small steps in a turn: enough to be measured, a quarter of the big one

    def side(size: int, steps: int) -> Callable[[], None]:
        step, state, batch = make_step(size, **options)
        states = [state]

        def run() -> None:
            for _ in range(steps):
                states[0], metrics = step(states[0], batch, jax.random.key(0))
            jax.block_until_ready(metrics)

        return run

    seconds = alternate([side(sentences, 1), side(group, times)], repeat)
    return [[s / sentences for s in seconds[0]], [s / (group * times) for s in seconds[1]]]


def gradient_differences(
    sentences: int, shape: str, group: int, dtype: str, words: float, row_length: int
) -> tuple[float, float]:
    """Returns how far two gradients of the same batch are from that of one group.

    They are the gradient of several groups, and that of one group in rows twice as long.

    |difference| / |gradient|, dropout off. The second is only rounding: the same sums in another
    order.
    """
    import jax

    objective, params = make_objective(shape, dtype)
    gradient = jax.jit(jax.grad(lambda params, batch: objective(params, batch, None)[0]))

    def flat(groups: int, row_length: int) -> np.ndarray:
        leaves = jax.tree.leaves(gradient(params, make_batch(sentences, groups, words, row_length)))
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

    reference = flat(1, row_length)

    def difference(other: np.ndarray) -> float:
        return float(np.linalg.norm(other - reference) / np.linalg.norm(reference))

    return difference(flat(sentences // group, row_length)), difference(flat(1, 2 * row_length))
