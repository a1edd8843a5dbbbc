"""Bench of attention: time and memory of the form that skips slots, beside the dense one."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from .measure import (
    GIB,
    MIB,
    alternate,
    count,
    count_or_none,
    counts,
    median_ratio,
    print_json,
    print_row,
    result,
)

DESCRIPTION = """Time and memory of one layer's attention by row length and sentences in a row.

One side multiplies only slots that can see each other, the other all slots of a row (of short rows
a few rows at a time). Rows are full of sentences of one length. A row of the table is the value or
the value and the gradient, in the whole sentence or in a sliding window. Memory is what the
compiler plans for temporaries. The two sides take turns, and medians are printed; a ratio below 1
is a gain."""
EXAMPLES = """examples:
  python -m scripts.bench attention
  python -m scripts.bench attention --lengths 2048 --sentences 1,4,16 --window 0 --json"""
WIDTHS = (6, 9, 6, 8, 10, 10, 7, 10, 10, 7)
TIMES, SIZES = ("ours ms", "dense ms", "ratio"), ("ours MiB", "dense MiB", "ratio")
HEAD = ("slots", "sentences", "window", "", *TIMES, *SIZES)


def add_options(command: argparse.ArgumentParser) -> None:
    for name, numbers, text in (
        ("lengths", "256,512,2048,8192", "slots of a row"),
        ("sentences", "1,8", "sentences in a row"),
    ):
        command.add_argument(
            f"--{name}", type=counts, default=counts(numbers), help=f"{text} (default: {numbers})"
        )
    command.add_argument(
        "--window",
        type=count_or_none,
        default=65,
        help="sliding window of one more row of the table by length; 0: none (default: 65)",
    )
    sizes = {"heads": 12, "size": 64, "slots": 2048, "memory": 8, "repeat": 5}
    helps = {
        "heads": "heads",
        "size": "size of a head",
        "slots": "slots of all rows together, at least one row",
        "memory": "GiB beyond which the dense side is compiled and not run",
        "repeat": "timed runs of each side",
    }
    for name, default in sizes.items():
        command.add_argument(
            f"--{name}", type=count, default=default, help=f"{helps[name]} (default: {default})"
        )
    command.add_argument(
        "--form", default="segments", help="implementation of our side (default: %(default)s)"
    )
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: float32)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    from embed_jax.encoders.attention import IMPLEMENTATIONS

    if not args.lengths or not args.sentences:
        return "--lengths, --sentences: expected at least one number each"
    if max(args.sentences) > min(args.lengths):
        return (
            f"--sentences: expected at most the slots of a row, {min(args.lengths)}, found "
            f"{max(args.sentences)}"
        )
    if args.form not in IMPLEMENTATIONS:
        return f"--form: expected one of {', '.join(IMPLEMENTATIONS)}, found {args.form!r}"
    return None


def bench_attention(args: argparse.Namespace) -> None:
    if not args.json:
        print_row(HEAD, WIDTHS)
    for length in args.lengths:
        cases = [(sentences, 0) for sentences in args.sentences]
        cases += [(min(args.sentences), args.window)] if args.window else []
        for sentences, window in cases:
            for part in ("value", "gradient"):
                _bench_case(args, length, sentences, window, part)


def _bench_case(
    args: argparse.Namespace, length: int, sentences: int, window: int, part: str
) -> None:
    from embed_jax.encoders.attention import SHORT

    forms = (args.form, "blocks" if length <= SHORT else "xla")
    rows = max(args.slots // length, 1)
    shape = (rows, length, args.heads, args.size)
    sides = [
        compile_side(form, shape, sentences, window, part == "gradient", args.dtype)
        for form in forms
    ]
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled, _ in sides]
    fits = memory[1] <= args.memory * GIB
    runs = [functools.partial(_run, *side) for side in sides[: 1 + fits]]
    seconds = alternate(runs, args.repeat)
    ours = 1000 * statistics.median(seconds[0])
    dense = 1000 * statistics.median(seconds[1]) if fits else None
    ratio = median_ratio(*seconds) if fits else None
    mib = [size / MIB for size in memory]
    if not args.json:
        cells = (length, sentences, window or None, part, ours, dense, ratio, *mib, mib[0] / mib[1])
        return print_row(cells, WIDTHS)
    details = {"slots": length, "rows": rows, "sentences": sentences, "window": window}
    name = f"attention/{part}/T={length}/sentences={sentences}/window={window}"
    print_json(result(f"{name}/time", "ms", ours, dense, ratio, args.repeat, **details))
    print_json(result(f"{name}/temporaries", "MiB", mib[0], mib[1], mib[0] / mib[1], 1, **details))


def compile_side(
    form: str, shape: Sequence[int], sentences: int, window: int, gradient: bool, dtype: str
) -> tuple[Any, Any]:
    """Returns the compiled attention of one form, or its value and gradient, and its arguments.

    Args:
        form: the implementation.
        shape: rows, slots, heads, and the size of a head.
        sentences: sentences in a row.
        window: the sliding window; 0: none.
        gradient: whether to compute the gradient of a weighted sum too.
        dtype: of the arrays.
    """
    import jax
    import jax.numpy as jnp

    from embed_jax.encoders.attention import attention, needs_bias
    from embed_jax.encoders.attention_mask import make_mask
    from embed_jax.types import TokenBatch

    rows, slots = shape[:2]
    place = np.broadcast_to(np.arange(slots, dtype=np.int32), (rows, slots))
    own = place * sentences // slots  # the sentence in the row
    position = place - -(-own * slots // sentences)
    sentence = own + sentences * np.arange(rows, dtype=np.int32)[:, None]
    tokens = TokenBatch(sentence, sentence, position, sentence >= 0, rows * sentences)
    # A layer gets it made, as the layers of a model do.
    mask = make_mask(tokens, dense=needs_bias(form, slots), windows=(window,))
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape, jnp.dtype(dtype)) for key in keys]

    def attend(query, key, value, weights, mask):
        return attention(query, key, value, mask, implementation=form)

    def total(query, key, value, weights, mask):
        out = attend(query, key, value, weights, mask)
        return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32))

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)) if gradient else attend)
    return function.lower(*arrays, mask).compile(), (*arrays, mask)


def _run(compiled: Any, arguments: Any) -> None:
    import jax

    jax.block_until_ready(compiled(*arguments))
