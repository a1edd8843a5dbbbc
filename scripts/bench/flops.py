"""Counts the FLOPs that a model's texts need, and measures the most that a machine gives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from .measure import on_cpu

SQUARES = (512, 1024, 2048)  # sizes of the products by which a CPU's peak is measured
LARGE_SQUARES = (2048, 4096, 8192)  # and an accelerator's
LEAST_SECONDS = 0.02  # that are timed at once


def needed_flops(
    config: Any,
    kernels: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    *,
    training: bool,
    frozen: bool = False,
) -> float:
    """Returns the FLOPs of the products of texts, whatever padding and masks are computed beside.

    Two FLOPs a token and number of the layers' kernels, and in attention 4 H d for each pair of
    tokens that see each other. The gradient takes twice as many again, except that frozen kernels
    have none.

    Args:
        config: the backbone's.
        kernels: the shapes of the layers' kernels, of all layers.
        lengths: tokens of each text.
        training: whether there is a gradient.
        frozen: whether the kernels are frozen, beside an adapter that is not counted.
    """
    numbers = sum(inputs * outputs for inputs, outputs in kernels)
    pairs = sum(
        seen_pairs(length, reach, causal=getattr(config, "causal", False))
        for length in lengths
        for reach in layer_reaches(config)
    )
    heads, size = config.num_heads, head_size(config)
    of_kernels, of_attention = (2 if frozen else 3, 3) if training else (1, 1)
    total = of_kernels * 2.0 * numbers * sum(lengths)
    return total + of_attention * 4.0 * heads * size * pairs


def head_size(config: Any) -> int:
    """Returns the size of an attention head."""
    return getattr(config, "head_size", 0) or config.hidden_size // config.num_heads


def layer_reaches(config: Any) -> list[int | None]:
    """Returns how far a token of each layer sees; None: to all tokens of its text.

    >>> from embed_jax.encoders.spec import find_shape
    >>> layer_reaches(find_shape("modernbert-base"))[:4]
    [None, 64, 64, None]
    """
    kinds = getattr(config, "kinds", None) or getattr(config, "layer_types", None) or ()
    local = getattr(config, "local_attention", 0) // 2 or getattr(config, "window", 0) - 1
    return [local if kind == "sliding" else None for kind in kinds] or [None] * config.num_layers


def seen_pairs(length: int, reach: int | None, *, causal: bool = False) -> int:
    """Returns how many pairs of tokens of a text see each other.

    >>> seen_pairs(4, None), seen_pairs(4, None, causal=True), seen_pairs(4, 1)
    (16, 10, 10)
    """
    far = length - 1 if reach is None else min(reach, length - 1)
    before = far * (far + 1) // 2
    return length * (far + 1) - before if causal else length * (2 * far + 1) - 2 * before


def time_program(program: Callable, arguments: Sequence[Any], repeat: int) -> float:
    """Returns the median seconds of a compiled program, after a run that is not timed."""
    import jax

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            results = program(*arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / times

    run(1)
    times = max(1, round(LEAST_SECONDS / max(run(1), 1e-7)))
    return statistics.median(run(times) for _ in range(repeat))


def measure_peak(dtype: str, repeat: int, squares: Sequence[int] = ()) -> dict[int, float]:
    """Returns the FLOP/s of square matrix products by their size.

    Args:
        dtype: of the matrices.
        repeat: timed runs of each.
        squares: the sizes; by default those of the backend.
    """
    import jax
    import jax.numpy as jnp

    from embed_jax.encoders.layers import matrix_product

    rates = {}
    for size in squares or (SQUARES if on_cpu() else LARGE_SQUARES):
        matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
        rates[size] = 2 * size**3 / time_program(jax.jit(matrix_product), (matrix, matrix), repeat)
    return rates
