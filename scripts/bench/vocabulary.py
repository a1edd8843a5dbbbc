"""Bench of the head of sparse models: memory in tiles of the vocabulary, and with all logits."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from .measure import GIB, MIB, count, print_json, print_row, result

DESCRIPTION = """Memory of SPLADE's head and its gradient, by the compiler's plan; nothing is run.

"tiled" is the head of `embed_jax.encoders.vocabulary`; "logits" holds the logits of all tokens over
the whole vocabulary, as the formula is written. The plan has the arguments (token states, table of
embeddings), the result [texts, V], the gradients and what is needed on the way. With --memory also
the largest number of texts, a power of 2, that fits."""
EXAMPLES = """examples:
  python -m scripts.bench vocabulary --vocabulary 30522,250002 --texts 32
  python -m scripts.bench vocabulary --memory 8 --json"""
WIDTHS = (12, 10, 14, 14, 10)
MOST = 2**14  # texts


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--vocabulary", default="30522,250002", help="sizes, with commas (default: %(default)s)"
    )
    command.add_argument(
        "--texts", type=count, default=32, help="texts of a group (default: %(default)s)"
    )
    command.add_argument(
        "--tokens", type=count, default=128, help="tokens of a text (default: %(default)s)"
    )
    command.add_argument(
        "--width", type=count, default=768, help="size of an embedding (default: %(default)s)"
    )
    command.add_argument(
        "--memory", type=float, default=0.0, help="GiB that the largest batch may take"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    sizes = args.vocabulary.split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        return f"--vocabulary: expected sizes from 1 with commas between, found {args.vocabulary!r}"
    return None


def bench_vocabulary(args: argparse.Namespace) -> None:
    if not args.json:
        print_row(("V", "form", "MiB", "texts fit", "s"), WIDTHS)
    for size in map(int, args.vocabulary.split(",")):
        sizes: dict[str, float] = {}
        for form, head in (("tiled", tiled), ("logits", all_logits)):
            began = time.monotonic()
            sizes[form] = planned_bytes(head, args.texts, args.tokens, size, args.width) / MIB
            seconds = time.monotonic() - began
            fits = None
            if args.memory:
                fits = largest_batch(head, args.tokens, size, args.width, args.memory * GIB)
            if args.json:
                ratio = sizes[form] / sizes["tiled"]
                details = {"texts": args.texts, "tokens": args.tokens, "largest_batch": fits}
                name = f"vocabulary/{form}/V={size}"
                print_json(result(name, "MiB", sizes[form], None, ratio, 1, **details))
            else:
                row = (size, form, f"{sizes[form]:.0f}", fits, f"{seconds:.1f}")
                print_row(row, WIDTHS)


def planned_bytes(head: Callable, texts: int, tokens: int, size: int, width: int) -> int:
    """Returns the bytes of a head, its result and its gradients, by the compiler's plan."""
    import jax
    import jax.numpy as jnp

    def value(x: Any, rows: Any, bias: Any) -> Any:
        weights = head(x, rows, bias, texts, tokens)
        return jnp.sum(weights**2), weights

    shapes = [(texts * tokens, width), (size, width), (size,)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
    plan: Any = gradient.lower(*arguments).compile().memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes


def largest_batch(head: Callable, tokens: int, size: int, width: int, limit: float) -> int:
    """Returns the largest power of 2 of texts whose plan is within a limit of bytes; 0: none."""
    texts = 1
    while texts <= MOST and planned_bytes(head, texts, tokens, size, width) <= limit:
        texts *= 2
    return texts // 2


def tiled(x: Any, rows: Any, bias: Any, texts: int, tokens: int) -> Any:
    """Computes the weights as `Splade` does."""
    import jax.numpy as jnp

    from embed_jax.encoders.vocabulary import largest_weights

    segment = jnp.repeat(jnp.arange(texts), tokens)
    position = jnp.tile(jnp.arange(tokens, dtype=jnp.uint16), texts)
    return largest_weights(x, rows, bias, segment, position, texts)


def all_logits(x: Any, rows: Any, bias: Any, texts: int, tokens: int) -> Any:
    """Computes the weights from the logits of all tokens."""
    from embed_jax.encoders.vocabulary import saturate

    logits = x @ rows.T + bias
    return saturate(logits.reshape(texts, tokens, -1).max(axis=1))
