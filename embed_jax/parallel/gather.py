"""The global loss: groups encoded one by one on each device, embeddings gathered from all, one mean.

What makes the gradient the same on any number of devices:

* the loss is a mean over the *global* batch, and its gradient is taken outside `shard_map`, so that the gather's
  transpose (a reduce-scatter) sends every candidate's gradient back to the device that encoded it;
* dropout keys are derived from a group's number in the batch, not from the device;
* parameters are made varying once, before the loop over groups, so that their gradients are summed over devices
  once a step and not once a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.parallel.mesh import BATCH_AXES
from embed_jax.types import Batch, Columns, Encoder, Params, TokenBatch

Loss = Callable[..., tuple[Array, Array, dict[str, Array]]]


def encode_groups(
    encoder: Encoder, params: Params, tokens: TokenBatch, key: PRNGKeyArray | None, first_group: Int[Array, ""] | int
) -> Float[Array, "g S D"]:
    """Encodes groups one after the other, keeping only their embeddings for the backward pass.

    This is gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup") by rematerialisation: exact, and blind to the loss. One group alone is not rematerialised, since
    there is nothing to save.

    Args:
        tokens: leaves `[g, R, T]`.
        key: root of the dropout keys, folded with each group's number; None: no dropout.
        first_group: the number in the global batch of the first group here.
    """
    groups = tokens.token_ids.shape[0]

    def encode(numbered):
        number, group = numbered
        return encoder.apply(params, group, None if key is None else jax.random.fold_in(key, number))

    numbers = first_group + jnp.arange(groups)
    if groups == 1:
        return encode((numbers[0], jax.tree.map(lambda leaf: leaf[0], tokens)))[None]
    return lax.map(jax.checkpoint(encode), (numbers, tokens))


def columns_of(embeddings: Float[Array, "g S D"], batch: Batch) -> Columns:
    """A device's embeddings as columns of its examples, in the batch's order."""
    groups, _, dim = embeddings.shape
    _, num_columns, examples = batch.present.shape

    def by_column(leaf):  # [g, C, E, ...] -> [C, g * E, ...]
        return jnp.moveaxis(leaf, 1, 0).reshape(num_columns, groups * examples, *leaf.shape[3:])

    return Columns(
        embeddings=by_column(embeddings.reshape(groups, num_columns, examples, dim)),
        present=by_column(batch.present),
        text_hash=by_column(batch.text_hash),
        label=None if batch.label is None else batch.label.reshape(-1),
        score=None if batch.score is None else batch.score.reshape(-1),
    )


def gather_columns(own: Columns) -> Columns:
    """Every device's columns, joined in the order of the groups. Call it inside `shard_map`."""

    def gather(axis):
        return lambda leaf: lax.all_gather(leaf, BATCH_AXES, axis=axis, tiled=True)

    return Columns(
        embeddings=gather(1)(own.embeddings),
        present=gather(1)(own.present),
        text_hash=gather(1)(own.text_hash),
        label=jax.tree.map(gather(0), own.label),
        score=jax.tree.map(gather(0), own.score),
    )


def global_loss(encoder: Encoder, loss: Loss, mesh: Mesh) -> Callable:
    """The training objective as a function that may be differentiated.

    Args:
        loss: `(own, world, first, loss_params) -> (values [b], weights [b], metrics {name: [b]})`.
        mesh: the batch's groups are split over its batch axes.

    Returns:
        `(params, batch, key) -> (scalar, (metrics, finite [B]))`: the weighted mean over the global batch, the metrics'
        means, and which examples' own loss values are finite. `params` is {"encoder": ..., "loss": ...}, replicated.
    """

    def on_device(params, batch: Batch, key):
        params = lax.pcast(params, BATCH_AXES, to="varying")
        device = lax.axis_index(BATCH_AXES)
        tokens = batch.tokens["encoder"]
        first_group = device * tokens.token_ids.shape[0]
        embeddings = encode_groups(encoder, params["encoder"], tokens, key, first_group)
        own = columns_of(embeddings, batch)
        world = gather_columns(own)
        first = device * own.present.shape[1]
        values, weights, metrics = loss(own, world, first, params["loss"])

        total_weight = jnp.maximum(lax.psum(jnp.sum(weights), BATCH_AXES), 1e-12)

        def mean(per_example):
            return lax.psum(jnp.sum(per_example * weights), BATCH_AXES) / total_weight

        return mean(values), (jax.tree.map(mean, metrics), jnp.isfinite(values))

    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, split, whole), out_specs=(whole, (whole, split)), check_vma=True
    )


def sharded_encode(encoder: Encoder, mesh: Mesh) -> Callable[[Params, TokenBatch], Float[Array, "G S D"]]:
    """Inference over the mesh: `(params, tokens [G, R, T]) -> embeddings [G, S, D]`, without dropout; jit-compiled."""

    def on_device(params: Any, tokens: TokenBatch):
        params = lax.pcast(params, BATCH_AXES, to="varying")
        return encode_groups(encoder, params, tokens, None, 0)

    split = PartitionSpec(BATCH_AXES)
    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split))
