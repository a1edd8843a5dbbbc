"""The global loss: groups encoded one by one on each device, then all examples compared.

The gradient is the same on any number of devices because:

* the loss is a mean over the *global* batch, and its gradient is taken outside `shard_map`, so that
  the gather's transpose (a reduce-scatter) sends every candidate's gradient back to the device that
  encoded it;
* dropout keys are derived from a group's number in the batch, not from the device;
* replicated parameters are made varying once, before the loop over groups, so that their gradients
  are summed over devices once a step and not once a group; parameters split over "fsdp" are
  gathered once, or a layer at a time, and their gradients leave as shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.parallel.mesh import BATCH_AXES
from embed_jax.parallel.queue import queue_columns, queue_entries, queue_metrics
from embed_jax.parallel.shards import ReadParams, gatherer, manual_axes, state_specs, vary
from embed_jax.parallel.world import device_world
from embed_jax.remembered import remembered
from embed_jax.types import (
    BASE,
    Auxiliary,
    Batch,
    Columns,
    Encoder,
    LossResult,
    Params,
    TokenBatch,
    join_params,
)

# Added to an auxiliary objective's number in keys, to tell it from layers' numbers.
AUXILIARY = 2**20
# Folded into the key of draws for the whole batch; larger than any group's number.
DRAWN = 2**21


def map_groups(
    function: Callable[[Any, PRNGKeyArray | None], Any],
    tokens: TokenBatch | Mapping[str, TokenBatch],
    key: PRNGKeyArray | None,
    first_group: Int[Array, ""] | int,
) -> Any:
    """Applies a function to each group's tokens and key, one group after the other.

    Only results are kept for the backward pass, which computes each group again. This is gradient
    caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup") by rematerialisation: exact, and independent of the loss. A single group is not
    rematerialised, since there is nothing to save.

    Args:
        function: `(tokens of a group, key) -> results`.
        tokens: leaves `[g, R, T]`; or a dict of them, of which the function gets a group of each.
        key: folded with each group's number in the global batch; None: groups have None.
        first_group: the number of the first group here.

    Returns:
        The function's results with a leading axis g.
    """
    groups = jax.tree.leaves(tokens)[0].shape[0]

    def encode_group(numbered):
        number, group = numbered
        return function(group, None if key is None else jax.random.fold_in(key, number))

    numbers = first_group + jnp.arange(groups)
    if groups == 1:
        outputs = encode_group((numbers[0], jax.tree.map(lambda leaf: leaf[0], tokens)))
        return jax.tree.map(lambda leaf: leaf[None], outputs)
    return lax.map(jax.checkpoint(encode_group), (numbers, tokens))


def encode_groups(
    encoder: Encoder,
    params: Params,
    tokens: TokenBatch | Mapping[str, TokenBatch],
    key: PRNGKeyArray | None,
    first_group: Int[Array, ""] | int,
    read: ReadParams | None = None,
) -> Any:
    """Embeds groups, see `map_groups`; the leaves of the result are [g, S, ...].

    Args:
        encoder: computes the embeddings.
        params: the encoder's parameters.
        tokens: leaves `[g, R, T]`.
        key: root of the dropout keys; None: no dropout.
        first_group: the number of the first group here.
        read: maps a layer's parameters, as stored, to those to compute with.
    """
    options = {} if read is None else {"read": read}
    return map_groups(
        lambda group, key: encoder.apply(params, group, key, **options), tokens, key, first_group
    )


def columns_of(
    embeddings: Mapping[str, Any], batch: Batch, first: Int[Array, ""] | int = 0
) -> Columns:
    """Arranges a device's embeddings as columns of its examples, in the batch's order.

    Args:
        embeddings: by name: the "encoder"'s, those of earlier layers ("layers"), and those of
            frozen models. Trees with leaves [g, S, ...], those of layers [g, S, K, ...]; or tuples
            of one tree for each column, leaves [g, S / C, ...].
        batch: the device's groups of the batch.
        first: the number in the global batch of the first example here.
    """
    groups, num_columns, examples = batch.present.shape

    def by_column(leaf):  # [g, C, E, ...] -> [C, g * E, ...]
        return jnp.moveaxis(leaf, 1, 0).reshape(num_columns, groups * examples, *leaf.shape[3:])

    def by_example(leaf):  # [g, E, ...] -> [g * E, ...]
        return None if leaf is None else leaf.reshape(groups * examples, *leaf.shape[2:])

    def columns(tree: Any) -> tuple[Any, ...]:
        """Splits a tree of all sentences [g, C * E, ...] into columns; a tuple is of columns."""
        if type(tree) is tuple:
            return jax.tree.map(by_example, tree)
        stacked = jax.tree.map(
            lambda leaf: by_column(leaf.reshape(groups, num_columns, examples, *leaf.shape[2:])),
            tree,
        )
        return tuple(jax.tree.map(lambda leaf, c=c: leaf[c], stacked) for c in range(num_columns))

    vectors = {name: columns(tree) for name, tree in embeddings.items()}
    if batch.teacher is not None:
        vectors["teacher"] = columns(
            jnp.swapaxes(batch.teacher, 1, 2).reshape(groups, num_columns * examples, -1)
        )
    return Columns(
        embeddings=vectors["encoder"],
        guide=vectors.get("guide"),
        teacher=vectors.get("teacher"),
        layers=vectors.get("layers"),
        present=by_column(batch.present),
        text_hash=by_column(batch.text_hash),
        example=first + jnp.arange(groups * examples),
        **{
            name: by_example(getattr(batch, name)) for name in ("keys", "dataset", "label", "score")
        },
    )


def global_loss(
    encoder: Encoder,
    loss: Callable[..., LossResult],
    mesh: Mesh,
    *,
    form: str = "auto",
    specs: Any = None,
    fsdp_gather: str = "layer",
    frozen: Mapping[str, Encoder] | None = None,
    auxiliary: Mapping[str, tuple[float, Auxiliary]] | None = None,
    layers: int = 0,
) -> Callable:
    """Makes the training objective as a function that may be differentiated.

    Args:
        encoder: computes the embeddings.
        loss: a `losses.base.Loss`, or a function `(own, world, loss_params) -> (values [b], weights
            [b], metrics {name: [b]})` like its `on_world`.
        mesh: the batch's groups are split over its batch axes.
        form: how the world of examples is held, see `world.OneWorld`.
        specs: how `params` are split over the mesh, see `mesh.param_specs`, and under BASE how the
            frozen parameters of the encoder are split; None: not at all.
        fsdp_gather: when parameters split over "fsdp" are gathered: "layer": each layer by itself,
            and again in the backward pass, so that no device ever holds all; "once": all of them,
            at the start of the step.
        frozen: encoders by name ("guide", "teacher") whose embeddings of `batch.tokens[name]` the
            loss is given.
        auxiliary: objectives on the encoder's tokens by name, each with its weight in the sum with
            the loss; their parameters are `params["auxiliary"][name]`, and their metrics are called
            "NAME/METRIC".
        layers: how many layers before the last, drawn at each step, the loss gets embeddings of;
            -1: all of them.

    Returns:
        `(params, batch, key, frozen params = {}, extra = {}, step = None) -> (scalar, (metrics,
        finite [B]))`: the weighted mean over the global batch, the metrics' means, and which
        examples' own loss values are finite. `params` is {"encoder", "loss"}, and "auxiliary" where
        there is one; what "encoder" lacks is in the frozen ones' BASE. `step` is how many steps
        were taken, for losses that change on the way.

        With `extra`, a state's with a queue (`parallel.queue`), its entries are negatives, and the
        second result is (metrics, finite, what enters the queue). Without, the loss is of this
        batch only.
    """
    frozen, auxiliary = dict(frozen or {}), dict(auxiliary or {})

    gathered = gatherer(encoder, mesh, specs, fsdp_gather)
    on_world = getattr(loss, "on_world", loss)

    def on_device(params, batch: Batch, key, frozen_params, extra, step):
        # Here, and not in each group: gradients are then summed over devices once a step.
        params, base = jax.tree.map(vary, (params, frozen_params.get(BASE, {})))
        device = lax.axis_index(BATCH_AXES)
        first_group = device * batch.present.shape[0]
        trained, read = gathered(join_params(base, params["encoder"]))

        # The same on all devices: what is drawn is of the batch, not of a group.
        drawn = None if key is None else jax.random.fold_in(key, DRAWN)
        layer = draw_layers(drawn, encoder.config.num_layers, layers) if layers else None

        def of_group(group, key):
            sums = {}
            for number, (name, (_, objective)) in enumerate(auxiliary.items()):
                own_key = None if key is None else jax.random.fold_in(key, AUXILIARY + number)
                sums[name] = objective.apply(
                    params["auxiliary"][name], trained, group, own_key, **read
                )
            if layer is None:
                return {"encoder": encoder.apply(trained, group, key, **read)}, sums
            assert encoder.by_layer is not None, "a loss of layers is checked before the first step"
            every = encoder.by_layer(trained, group, layer, key, **read)
            last, earlier = (
                jax.tree.map(lambda leaf: leaf[:, -1], every),
                jax.tree.map(lambda leaf: leaf[:, :-1], every),
            )
            return {"encoder": last, "layers": earlier}, sums

        embeddings, sums = map_groups(of_group, batch.encoder_tokens, key, first_group)
        for name, other in frozen.items():
            fixed = lax.stop_gradient(jax.tree.map(vary, frozen_params[name]))
            embeddings[name] = encode_groups(other, fixed, batch.tokens[name], None, first_group)

        examples = batch.present.shape[0] * batch.present.shape[2]
        own = columns_of(embeddings, batch, device * examples)
        world = device_world(own, form, BATCH_AXES)
        if extra:
            own = own.replace(
                queue=queue_columns(lax.stop_gradient(jax.tree.map(vary, extra["queue"])), own)
            )
        own = own.replace(key=drawn, layer=layer, step=step)
        values, weights, metrics = on_world(own, world, params["loss"])

        # A batch may have no example that counts: its loss is 0, not NaN.
        total_weight = jnp.maximum(lax.psum(jnp.sum(weights), BATCH_AXES), 1e-12)

        def mean(per_example):
            return lax.psum(jnp.sum(per_example * weights), BATCH_AXES) / total_weight

        total, metrics = mean(values), jax.tree.map(mean, metrics)
        for name, (weight, _) in auxiliary.items():
            value, own_metrics = mean_of_groups(sums[name])
            total = total + weight * value
            metrics |= {
                f"{name}/{metric}": outputs
                for metric, outputs in {"loss": value, **own_metrics}.items()
            }
        if not extra:
            return total, (metrics, jnp.isfinite(values))
        if "momentum" in extra:
            steady = lax.stop_gradient(jax.tree.map(vary, extra["momentum"]))
            steady, read = gathered(join_params(base, steady))
            own = columns_of(
                {
                    "encoder": encode_groups(
                        encoder, steady, batch.encoder_tokens, None, first_group, **read
                    )
                },
                batch,
            )
        return total, (metrics, jnp.isfinite(values), queue_entries(lax.stop_gradient(own)))

    def objective(params, batch, key, frozen_params=None, extra=None, step=None):
        frozen_params, extra = frozen_params or {}, extra or {}
        split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        trained, fixed = state_specs(params, frozen_params, specs)
        encoders = whole if specs is None else trained["encoder"]
        sharded = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(
                trained,
                split,
                whole,
                fixed,
                {name: encoders if name == "momentum" else whole for name in extra},
                whole,
            ),
            out_specs=(whole, (whole, split, *([split] if extra else []))),
            axis_names=manual_axes(mesh),
            # Checks that the loss is the same on all devices; the gradient of psum relies on it.
            check_vma=True,
        )
        total, (metrics, *rest) = sharded(params, batch, key, frozen_params, extra, step)
        if extra:
            metrics = metrics | queue_metrics(extra["queue"], batch.record.size)
        return total, (metrics, *rest)

    return objective


def draw_layers(key: PRNGKeyArray | None, num_layers: int, count: int) -> Int[Array, " K"]:
    """Draws the layers before the last that a step looks at, counted from 1.

    Args:
        key: None: evenly spaced layers.
        num_layers: the encoder's number of layers.
        count: K, or -1 for all.
    """
    earlier = num_layers - 1
    if count < 0 or count >= earlier:
        return 1 + jnp.arange(earlier)
    if key is None:
        return 1 + (jnp.arange(count) * 2 + 1) * earlier // (2 * count)
    return 1 + jax.random.permutation(key, earlier)[:count]


@remembered
def sharded_encode(
    encoder: Encoder, mesh: Mesh
) -> Callable[[Params, TokenBatch], Float[Array, "G S D"]]:
    """Makes a compiled function for inference over the mesh, without dropout.

    `(params, tokens [G, R, T]) -> embeddings [G, S, D]`. Parameters must be whole
    (`mesh.gather_params`). With several hosts, every host gets all embeddings.
    """
    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def on_device(params: Any, tokens: TokenBatch):
        return encode_groups(encoder, jax.tree.map(vary, params), tokens, None, 0)

    encode = jax.shard_map(on_device, mesh=mesh, in_specs=(whole, split), out_specs=split)
    # The compiler gathers for several hosts: a result that `shard_map` knows to be the same on all
    # devices needs `lax.all_gather_invariant`, which jax 0.10 does not have.
    shared = jax.process_count() > 1
    return jax.jit(encode, out_shardings=NamedSharding(mesh, whole) if shared else None)


def mean_of_groups(sums: tuple) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes an auxiliary objective's value and metrics over the global batch.

    They come from each group's sums and counts.
    """
    value, count, metrics = jax.tree.map(lambda leaf: lax.psum(jnp.sum(leaf), BATCH_AXES), sums)
    count = jnp.maximum(count, 1.0)
    return value / count, {name: metric / count for name, metric in metrics.items()}
