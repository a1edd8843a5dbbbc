"""Training on tokens only: an objective's mean over the global batch, see `parallel.gather`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from embed_jax.parallel.gather import map_groups, mean_of_groups
from embed_jax.parallel.mesh import BATCH_AXES
from embed_jax.parallel.shards import gatherer, manual_axes, state_specs, vary
from embed_jax.types import BASE, Auxiliary, Batch, Encoder, join_params

HEAD = "head"  # the name of the objective's parameters that are not trained, among the frozen ones


def token_loss(
    encoder: Encoder,
    objective: Auxiliary,
    mesh: Mesh,
    *,
    specs: Any = None,
    fsdp_gather: str = "layer",
) -> Callable:
    """Makes the training objective as a function that may be differentiated.

    It has the form of `gather.global_loss`.

    Args:
        encoder: computes the tokens' states.
        objective: its parameters are `params["loss"]`; those missing there are the frozen HEAD.
        mesh: the device mesh, see `mesh.make_mesh`.
        specs: see `global_loss`.
        fsdp_gather: see `global_loss`.

    Returns:
        `(params, batch, key, frozen params = {}) -> (scalar, (metrics, finite [B]))`: the mean over
        the tokens that count, the metrics' means and "perplexity" = exp(the mean), and which
        examples' groups have a finite sum.
    """
    gathered = gatherer(encoder, mesh, specs, fsdp_gather)

    def on_device(params, batch: Batch, key, frozen_params):
        params, base, head = jax.tree.map(
            vary, (params, frozen_params.get(BASE, {}), frozen_params.get(HEAD, {}))
        )
        first_group = lax.axis_index(BATCH_AXES) * batch.present.shape[0]
        trained, read = gathered(join_params(base, params["encoder"]))

        def of_group(group, key):
            return objective.apply({**head, **params["loss"]}, trained, group, key, **read)

        sums = map_groups(of_group, batch.tokens["encoder"], key, first_group)
        value, metrics = mean_of_groups(sums)
        finite = jnp.repeat(jnp.isfinite(sums[0]), batch.present.shape[2])
        return value, (metrics | {"perplexity": jnp.exp(value)}, finite)

    def loss(params, batch, key, frozen_params=None):
        frozen_params = frozen_params or {}
        split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        trained, fixed = state_specs(params, frozen_params, specs)
        sharded = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(trained, split, whole, fixed),
            out_specs=(whole, (whole, split)),
            axis_names=manual_axes(mesh),
            check_vma=True,
        )
        return sharded(params, batch, key, frozen_params)

    return loss
