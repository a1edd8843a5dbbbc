"""Reductions over all pairs (row, candidate) that never hold the N x N matrix: tiled, or in a ring.

Each reduces blocks of numbers `block(rows, candidates, shared) -> [M, b, n]` over the candidates,
by logsumexp, sum or max. The gradient is our own: blocks are computed again backwards, one at a
time, so that nothing of the size of all pairs is kept. (A plain loop, differentiated, would keep
every block; rematerialised, a ring would keep every chunk.)

Tiling follows FlashAttention's online softmax (Milakov and Gimelshein 2018; Dao et al. 2022), the
ring Ring Attention (Liu et al. 2023) and Inf-CL (Cheng et al. 2024, "Breaking the Memory Barrier:
Near Infinite Batch Size Scaling").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from embed_jax.types import Block
from embed_jax.world import Sums, finite_shift, safe_log

KINDS = ("logsumexp", "sum", "max")
TILE = 2**20  # numbers of one block of pairs: 4 MiB in float32
SHORTEST_TILE = 256  # candidates, or as many as have this many numbers with one row


def reduce_tiled(
    kind: str,
    block: Block,
    rows: Any,
    candidates: Any,
    shared: Any,
    tile: int = 0,
    numbers: int = 1,
) -> Sums:
    """Reduces like `world.reduce_dense`, a tile of candidates at a time.

    Args:
        kind: one of KINDS.
        block: computes the numbers of pairs [M, b, n].
        rows: leaves [b, ...].
        candidates: leaves [n, ...].
        shared: the third argument of `block`.
        tile: candidates of a tile; 0: as many as make a block of TILE numbers.
        numbers: how many numbers the block computes with for each pair.
    """
    tile = tile or tile_of(block, rows, candidates, shared, numbers)
    return _streamed(kind, block, rows, candidates, shared, tile, 1, lambda tree: tree)


def tile_of(block: Block, rows: Any, candidates: Any, shared: Any, numbers: int = 1) -> int:
    """Returns the number of candidates of a block of TILE numbers, by the numbers of a pair."""
    variants, count, _ = jax.eval_shape(block, rows, candidates, shared).shape
    return max(TILE // (variants * count * numbers), SHORTEST_TILE // numbers, 1)


def reduce_ring(
    kind: str,
    block: Block,
    rows: Any,
    candidates: Any,
    shared: Any,
    axis: tuple[str, ...],
    tile: int = 0,
    numbers: int = 1,
) -> Sums:
    """Reduces like `reduce_tiled`, over candidates that devices pass from neighbour to neighbour.

    No device holds more than its own candidates and one neighbour's. Backwards they go round once
    more, and their gradients with them, until both are home. Call it inside `shard_map`.

    Args:
        kind: one of KINDS.
        block: computes the numbers of pairs [M, b, n].
        rows: leaves [b, ...].
        candidates: this device's own, leaves [n, ...].
        shared: the third argument of `block`.
        axis: the mesh axes that the ring goes over.
        tile: candidates of a tile; 0: as many as make a block of TILE numbers.
        numbers: how many numbers the block computes with for each pair.
    """
    devices, pass_on = _ring(axis)
    tile = tile or tile_of(block, rows, candidates, shared, numbers)
    return _streamed(kind, block, rows, candidates, shared, tile, devices, pass_on)


def largest_tiled(
    block: Block,
    rows: Any,
    candidates: Any,
    count: int,
    tile: int = 0,
    axis: tuple[str, ...] = (),
) -> Float[Array, "M b count"]:
    """Finds the `count` largest numbers of each row, in descending order, a tile at a time.

    Without gradient.

    Args:
        block: computes the numbers of pairs [M, b, n].
        rows: leaves [b, ...].
        candidates: leaves [n, ...].
        count: how many; -inf where there are fewer candidates.
        tile: candidates of a tile; 0: as many as make a block of TILE numbers, at least `count`.
        axis: the mesh axes around which devices pass their candidates, inside `shard_map`; empty:
            these candidates are all.
    """
    devices, pass_on = _ring(axis) if axis else (1, lambda tree: tree)
    rows, candidates = lax.stop_gradient((rows, candidates))
    tiles, valid = _cut(candidates, tile or max(tile_of(block, rows, candidates, None), count))
    shape = jax.eval_shape(block, rows, candidates, None).shape
    start = jnp.full((*shape[:2], count), -jnp.inf)
    rows, tiles, valid, start = _vary_alike((rows, tiles, valid, start))

    def absorb(largest, tile):
        tile, valid = tile
        values = jnp.where(valid, block(rows, tile, None), -jnp.inf)
        return lax.top_k(jnp.concatenate([largest, values], axis=-1), count)[0], None

    def hop(carry, _):
        largest, tiles = carry
        largest, _ = lax.scan(absorb, largest, (tiles, valid))
        return (largest, pass_on(tiles)), None

    return _repeat(hop, (start, tiles), devices)[0]


def _ring(axis: tuple[str, ...]) -> tuple[int, Callable[[Any], Any]]:
    """Returns the number of devices in a ring, and what passes a tree on to the neighbour."""
    devices = lax.axis_size(axis)
    neighbours = [(device, (device + 1) % devices) for device in range(devices)]
    return devices, lambda tree: jax.tree.map(
        lambda leaf: lax.ppermute(leaf, axis, neighbours), tree
    )


def _streamed(
    kind: str,
    block: Block,
    rows: Any,
    candidates: Any,
    shared: Any,
    tile: int,
    hops: int,
    pass_on: Callable[[Any], Any],
) -> Sums:
    """Reduces over `hops` times the candidates, with its own gradient.

    `pass_on` brings the next candidates.
    """
    shape = jax.eval_shape(block, rows, candidates, shared).shape
    tiles, valid = _cut(candidates, tile)
    steps, width = valid.shape
    # What is not differentiated takes part as it is.
    rows, fixed_rows, join_rows = _split(rows)
    tiles, fixed_tiles, join_tiles = _split(tiles)
    # Everything varies over the devices alike, so that loops may carry it; leaving this again sums
    # the gradients.
    fixed = (fixed_rows, fixed_tiles, valid, jnp.zeros(shape[:2]))
    rows, tiles, shared, fixed = _vary_alike((rows, tiles, shared, fixed))
    nothing = 0.0 if kind == "sum" else -jnp.inf

    def values_of(rows, tile, shared, fixed_rows, fixed_tile, valid):
        values = block(join_rows(rows, fixed_rows), join_tiles(tile, fixed_tile), shared)
        return jnp.where(valid, values, nothing)

    def forward(rows, tiles, shared, fixed):
        fixed_rows, fixed_tiles, valid, start = fixed

        def absorb(carry, tile):
            (largest, total, number), fixed_tiles = carry
            values = values_of(rows, tile, shared, fixed_rows, *_first(fixed_tiles))
            fixed_tiles = _turned(fixed_tiles)
            if kind == "sum":
                return ((largest, total + jnp.sum(values, axis=-1), number + 1), fixed_tiles), None
            here = jnp.max(values, axis=-1)
            larger = jnp.maximum(largest, here)
            if kind == "max":  # where it is reached is remembered in `total`'s place
                place = number * width + jnp.argmax(values, axis=-1)
                return (
                    (larger, jnp.where(here > largest, place, total), number + 1),
                    fixed_tiles,
                ), None
            shift = finite_shift(larger)
            total = total * jnp.exp(largest - shift) + jnp.sum(
                jnp.exp(values - shift[..., None]), axis=-1
            )
            return ((larger, total, number + 1), fixed_tiles), None

        def hop(carry, _):
            sums, tiles, fixed_tiles = carry
            (sums, _), _ = lax.scan(absorb, (sums, (fixed_tiles, valid)), tiles)
            return (sums, *pass_on((tiles, fixed_tiles))), None

        zero = start.astype(jnp.int32)
        sums = (start - jnp.inf, zero if kind == "max" else start, zero[0, 0])
        (largest, total, _), *_ = _repeat(hop, (sums, tiles, fixed_tiles), hops)
        return largest, total

    @jax.custom_vjp
    def run(*arguments):
        largest, total = forward(*arguments)
        return {"logsumexp": safe_log(total) + finite_shift(largest), "sum": total, "max": largest}[
            kind
        ], largest

    def run_forward(*arguments):
        largest, total = forward(*arguments)
        result = {
            "logsumexp": safe_log(total) + finite_shift(largest),
            "sum": total,
            "max": largest,
        }[kind]
        return (result, largest), (
            arguments,
            finite_shift(result) if kind == "logsumexp" else total,
        )

    def run_backward(residuals, cotangents):
        (rows, tiles, shared, (fixed_rows, fixed_tiles, valid, start)), known = residuals
        cotangent = cotangents[0][..., None]

        def back(carry, tile):
            (d_rows, d_shared, number), fixed_tiles = carry
            fixed_tile, valid = _first(fixed_tiles)
            values, pull = jax.vjp(
                lambda rows, tile, shared: values_of(
                    rows, tile, shared, fixed_rows, fixed_tile, valid
                ),
                *(rows, tile, shared),
            )
            if kind == "logsumexp":
                weights = cotangent * jnp.exp(values - known[..., None])
            elif kind == "sum":
                weights = jnp.broadcast_to(cotangent, values.shape)
            else:
                weights = jnp.where(
                    number * width + jnp.arange(width) == known[..., None], cotangent, 0.0
                )
            more_rows, d_tile, more_shared = pull(weights)
            sums = (_add(d_rows, more_rows), _add(d_shared, more_shared), number + 1)
            return (sums, _turned(fixed_tiles)), d_tile

        def hop(carry, _):
            sums, d_tiles, tiles, fixed_tiles = carry
            (sums, _), other = lax.scan(back, (sums, (fixed_tiles, valid)), tiles)
            return (sums, *pass_on((_add(d_tiles, other), tiles, fixed_tiles))), None

        sums = (_zeros(rows), _zeros(shared), start.astype(jnp.int32)[0, 0])
        (d_rows, d_shared, _), d_tiles, *_ = _repeat(
            hop, (sums, _zeros(tiles), tiles, fixed_tiles), hops
        )
        return d_rows, d_tiles, d_shared, None

    run.defvjp(run_forward, run_backward)
    return run(rows, tiles, shared, fixed)


def _repeat(body: Callable, carry: Any, times: int) -> Any:
    return body(carry, None)[0] if times == 1 else lax.scan(body, carry, length=times)[0]


def _cut(candidates: Any, tile: int) -> tuple[Any, Array]:
    """Cuts leaves [n, ...] into [steps, tile, ...] of nearly equal tiles.

    The second result, [steps, tile], says which entries are not padding.
    """
    count = jax.tree.leaves(candidates)[0].shape[0]
    steps = -(-count // tile)
    tile = -(-count // steps)

    def cut(leaf: Array) -> Array:
        short = steps * tile - count
        if short:
            leaf = jnp.concatenate([leaf, leaf[:short]])
        return leaf.reshape(steps, tile, *leaf.shape[1:])

    return jax.tree.map(cut, candidates), (jnp.arange(steps * tile) < count).reshape(steps, tile)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _turned(tree: Any) -> Any:
    """Moves the first tile's leaves to the end.

    A loop that looks for its tile by number instead has that look-up fused into the loop over all
    pairs, which XLA on a CPU then does not vectorise: half as fast.
    """
    return jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), tree)


def _split(tree: Any) -> tuple[list[Array], list[Array], Callable[[list, list], Any]]:
    """Splits leaves into those that have gradients and those that have none.

    The third result is the function that joins them again.
    """
    leaves, structure = jax.tree.flatten(tree)
    moving = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def join(floats: list[Array], others: list[Array]) -> Any:
        next_float, next_other = iter(floats), iter(others)
        return jax.tree.unflatten(
            structure, [next(next_float if is_float else next_other) for is_float in moving]
        )

    floats = [leaf for leaf, is_float in zip(leaves, moving, strict=True) if is_float]
    return (
        floats,
        [leaf for leaf, is_float in zip(leaves, moving, strict=True) if not is_float],
        join,
    )


def _vary_alike(tree: Any) -> Any:
    """Makes all leaves vary over every mesh axis over which one of them varies."""
    axes = frozenset().union(*map(_varying, jax.tree.leaves(tree)))

    def vary(leaf: Array) -> Array:
        missing = tuple(axes - _varying(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _varying(leaf: Array) -> frozenset[str]:
    """Returns the mesh axes over which an array may differ from device to device."""
    return frozenset(jax.typeof(leaf).mat.varying)


def _zeros(tree: Any) -> Any:
    # A product keeps what zeros_like loses: over which mesh axes the leaf varies.
    return jax.tree.map(lambda leaf: jnp.where(jnp.zeros((), bool), leaf, 0.0), tree)


def _add(tree: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, tree, other)
