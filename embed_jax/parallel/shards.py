"""Parameters that are split over the devices, as a device gathers them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from embed_jax.parallel.mesh import BATCH_AXES
from embed_jax.types import BASE, Encoder, Params, join_params

ReadParams = Callable[[Params], Params]


def gatherer(
    encoder: Encoder, mesh: Mesh, specs: Any, when: str
) -> Callable[[Params], tuple[Params, dict[str, ReadParams]]]:
    """Returns a function that gathers an encoder's parameters from a device's shards.

    Args:
        encoder: whose parameters they are.
        mesh: the device mesh, see `mesh.make_mesh`.
        specs: of all parameters, or None; see `global_loss`.
        when: `fsdp_gather`.

    Returns:
        `params -> (params, {"read": function})`: the second result holds more arguments of
        `Encoder.apply`, if there are any.
    """
    if specs is None:
        return lambda params: (params, {})
    whole = join_params(specs.get(BASE, {}), specs["encoder"])

    def gathered(params: Params) -> tuple[Params, dict[str, ReadParams]]:
        params, read = _gathered(params, whole, encoder.layers, when, mesh.shape["tensor"])
        return params, {} if read is None else {"read": read}

    return gathered


def state_specs(params: Params, frozen_params: Mapping[str, Params], specs: Any) -> tuple[Any, Any]:
    """Returns how `shard_map` splits a state's trained and frozen parameters over "fsdp".

    "tensor" is the compiler's.
    """
    whole = PartitionSpec()
    if specs is None:
        return whole, whole
    manual = jax.tree.map(_only_fsdp, specs, is_leaf=_is_spec)
    return {name: manual[name] for name in params}, {
        name: manual.get(name, whole) for name in frozen_params
    }


def manual_axes(mesh: Mesh) -> set[str]:
    """Returns the axes over which a step places its own collectives.

    "tensor", if there is one, is left to the compiler.
    """
    return set(BATCH_AXES) if mesh.shape["tensor"] > 1 else set(mesh.axis_names)


def vary(leaf: Array) -> Array:
    """Makes a leaf vary over the batch axes.

    Its gradient is summed over them once, where it is made to vary.
    """
    missing = tuple(axis for axis in BATCH_AXES if axis not in jax.typeof(leaf).mat.varying)
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


def _gathered(
    params: Params, specs: Any, layers: tuple[str, ...], when: str, tensor: int
) -> tuple[Params, ReadParams | None]:
    """Gathers all shards of parameters, except the layers' if they are read one by one.

    The second result is the function that reads a layer.
    """
    if (
        when == "once"
        or not layers
        or not any("fsdp" in spec for spec in jax.tree.leaves(specs, is_leaf=_is_spec))
    ):
        return _gather_shards(params, specs, tensor), None
    # The layers stay shards here: the scan over them gathers the one that it runs.
    stacked, stacked_specs = _at(params, layers), _at(specs, layers)
    layer_specs = jax.tree.map(
        lambda spec: PartitionSpec(*spec[1:]), stacked_specs, is_leaf=_is_spec
    )
    rest = _gather_shards(_put(params, layers, None), _put(specs, layers, None), tensor)
    return _put(rest, layers, stacked), lambda layer: _gather_shards(layer, layer_specs, tensor)


def _gather_shards(params: Params, specs: Any, tensor: int) -> Params:
    """Gathers whole parameters from shards over "fsdp", in few collectives.

    Parameters of one dtype that are split alike over "tensor" share a collective. They are laid
    side by side, as [tensor, numbers], so that what the compiler splits stays split.
    """
    leaves, structure = jax.tree.flatten(params)
    flat_specs = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    alike: dict[tuple, list[int]] = {}
    for i, spec in enumerate(flat_specs):
        if "fsdp" in spec:
            alike.setdefault(("tensor" in spec, leaves[i].dtype), []).append(i)
    for (split, _), chosen in alike.items():
        front = {i: flat_specs[i].index("tensor") if split else 0 for i in chosen}
        moved = {i: jnp.moveaxis(leaves[i], front[i], 0) for i in chosen}
        # A collective has a fixed cost, and a model has hundreds of small parameters.
        flat = [moved[i].reshape(tensor if split else 1, -1) for i in chosen]
        gather = functools.partial(lax.all_gather, axis_name="fsdp")
        if split:  # by hand, since the compiler would gather over "tensor" as well
            numbers = PartitionSpec("tensor", None)
            gather = jax.shard_map(
                gather,
                in_specs=numbers,
                out_specs=PartitionSpec(None, *numbers),
                axis_names={"tensor"},
            )
        everything = gather(jnp.concatenate(flat, axis=1))  # [fsdp, tensor, numbers]
        start = 0
        for i, part in zip(chosen, flat, strict=True):
            shards = everything[:, :, start : start + part.shape[1]].reshape(-1, *moved[i].shape)
            start += part.shape[1]
            shards = jnp.moveaxis(shards, 1, 1 + front[i])
            axis = flat_specs[i].index("fsdp")
            shape = list(leaves[i].shape)
            shape[axis] *= shards.shape[0]
            leaves[i] = jnp.moveaxis(shards, 0, axis).reshape(shape)
    return jax.tree.unflatten(structure, leaves)


def _only_fsdp(spec: PartitionSpec) -> PartitionSpec:
    """Keeps the axes that shard_map splits; "tensor" is left to the compiler."""
    return PartitionSpec(*(axis if axis == "fsdp" else None for axis in spec))


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, name: node[name], path, tree)


def _put(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """Returns the tree with another value at the path."""
    if not path:
        return value
    return {**tree, path[0]: _put(tree[path[0]], path[1:], value)}
