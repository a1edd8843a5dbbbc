"""Bench of MaxSim: memory and time of a batch's scores and gradients, beside the textbook form."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from .measure import alternate, count, median_ratio, print_json, print_row, result

DESCRIPTION = """Memory and time of the MaxSim of all queries with all documents, and its gradient.

The other side holds every product of tokens and differentiates through the maximum. Memory is
what the compiler plans for temporaries, beside arguments and results. The two sides take turns,
and medians are printed; a ratio below 1 is a gain."""
EXAMPLES = """examples:
  python -m scripts.bench maxsim
  python -m scripts.bench maxsim --batch-size 32 --document-tokens 300 --json"""
WIDTHS = (20, 12, 12, 8)


def add_options(command: argparse.ArgumentParser) -> None:
    sizes = {"batch-size": 128, "query-tokens": 32, "document-tokens": 180, "dim": 128, "repeat": 3}
    for name, default in sizes.items():
        command.add_argument(
            f"--{name}", type=count, default=default, help="(default: %(default)s)"
        )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns None: any sizes can be used."""
    return None


def bench_maxsim(args: argparse.Namespace) -> None:
    sides = compile_sides(args.batch_size, args.query_tokens, args.document_tokens, args.dim)
    memory = [compiled.memory_analysis().temp_size_in_bytes / 2**20 for compiled, _ in sides]
    runs = [lambda compiled=compiled, data=data: _run(compiled, data) for compiled, data in sides]
    seconds = alternate(runs, args.repeat)
    medians = [statistics.median(taken) for taken in seconds]
    rows: list[tuple[str, str, float, float, float]] = [
        ("temporaries", "MiB", memory[0], memory[1], memory[0] / memory[1]),
        ("gradient", "s", medians[0], medians[1], median_ratio(*seconds)),
    ]
    if not args.json:
        print_row(("", "ours", "textbook", "ratio"), WIDTHS)
    for name, unit, ours, other, ratio in rows:
        if args.json:
            print_json(result(f"maxsim/{name}", unit, ours, other, ratio, args.repeat))
        else:
            print_row((f"{name}, {unit}", ours, other, ratio), WIDTHS)


def compile_sides(
    batch: int, query_tokens: int, document_tokens: int, dim: int
) -> list[tuple[Any, Any]]:
    """Returns the compiled value and gradient of both forms, each with its arguments."""
    import jax
    import jax.numpy as jnp

    from embed_jax.maxsim import best_matches
    from embed_jax.vectors import normalize

    keys = jax.random.split(jax.random.key(0), 3)
    query = normalize(jax.random.normal(keys[0], (batch, query_tokens, dim)))
    document = normalize(jax.random.normal(keys[1], (batch, document_tokens, dim)))
    weights = jax.random.normal(keys[2], (batch, batch))
    mask = jnp.arange(document_tokens) < document_tokens - jnp.arange(batch)[:, None] % 8

    def textbook(query, document):
        products = jnp.einsum("qkd,nld->nqkl", query, document, precision="highest")
        return jnp.max(jnp.where(mask[:, None, None], products, -jnp.inf), axis=-1)

    def ours(query, document):
        return best_matches(query, document, mask)

    def compile_side(matches):
        def value(query, document):
            return jnp.sum(jnp.sum(matches(query, document), axis=-1) * weights)

        function = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
        return function.lower(query, document).compile(), (query, document)

    return [compile_side(ours), compile_side(textbook)]


def _run(compiled: Any, data: Any) -> None:
    import jax

    jax.block_until_ready(compiled(*data))
