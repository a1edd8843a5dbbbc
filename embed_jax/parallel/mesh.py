"""The device mesh, and how arrays lie on it.

Three axes: the groups of a batch are split over "data" and "fsdp"; parameters, gradients and the
optimiser's state over "fsdp" and "tensor", by rules declared beside the model.
"""

from __future__ import annotations

import os
import re
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from embed_jax.errors import InputError, RunError
from embed_jax.types import BASE, Params, Rules, TrainState

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes over which the groups of a batch are split


_process = 0  # the first process that asked for devices


def refuse_fork() -> None:
    """Raises a RunError in a process forked from one that uses JAX.

    Its first computation would wait for ever: threads of JAX are not forked along, and locks that
    they held stay locked.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise RunError(
            f"process {os.getpid()} was forked from {_process}, which uses JAX: computing would "
            'hang here; start processes with multiprocessing.get_context("spawn"), or load the '
            "model in the new process only"
        )


def make_mesh(devices: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Makes a mesh of the axes "data", "fsdp" and "tensor".

    Args:
        devices: how many of the devices there are; 0: all.
        fsdp: size of the axis "fsdp".
        tensor: size of the axis "tensor"; "data" takes the rest.

    Raises:
        InputError: if there are fewer devices, or `fsdp * tensor` does not divide them.
        RunError: see `refuse_fork`.
    """
    refuse_fork()
    available = jax.devices()
    if devices > len(available):
        raise InputError(
            f"config.train.devices: expected at most {len(available)} (those there are), found "
            f"{devices}"
        )
    devices = devices or len(available)
    if devices % (fsdp * tensor):
        raise InputError(
            f"config.train.fsdp * config.train.tensor: expected a divisor of the {devices} "
            f"devices, found {fsdp} * {tensor}"
        )
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    # Auto: the compiler places the collectives over "tensor"; `shard_map` has the others.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=available[:devices])


def batch_devices(mesh: Mesh) -> int:
    """Returns the number of devices over which the groups of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def num_groups(groups: int, batch_size: int, mesh: Mesh) -> int:
    """Returns the number of groups of a batch: the requested one, or one for each device.

    Raises:
        InputError: if the devices don't divide the groups, or the groups the batch.
    """
    devices = batch_devices(mesh)
    groups = groups or devices
    if groups % devices:
        raise InputError(
            f"config.batch.groups: expected a multiple of the {devices} devices, found {groups}"
        )
    if batch_size % groups:
        raise InputError(
            f"config.batch.size: expected a multiple of the {groups} groups, found {batch_size}"
        )
    return groups


# ---- parameters ----------------------------------------------------------------------------------


def param_specs(params: Params, rules: Rules, mesh: Mesh) -> Any:
    """Returns how each parameter is split.

    The first rule whose pattern matches its path says so; without one it is not split.

    Args:
        params: arrays or their shapes.
        rules: (regular expression of a whole path "a/b/c", the mesh axis of each dimension or
            None). An axis of size 1, or one that does not divide its dimension, is left out. A
            kernel in eight bits is split as the kernel is: "a/kernel/values" and "a/kernel/scale"
            as "a/kernel".
        mesh: the device mesh, see `mesh.make_mesh`.

    Returns:
        A tree of PartitionSpec like `params`.
    """

    def spec(path: tuple, leaf: Any) -> PartitionSpec:
        name = re.sub(
            "/kernel/(values|scale)$",
            "/kernel",
            jax.tree_util.keystr(path, simple=True, separator="/"),
        )
        for pattern, axes in rules:
            if re.fullmatch(pattern, name):
                return PartitionSpec(
                    *(
                        _fitting(axis, size, mesh)
                        for axis, size in zip(axes, leaf.shape, strict=True)
                    )
                )
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, params)


def training_specs(params: Params, rules: Rules, mesh: Mesh) -> Any:
    """Returns the `param_specs` of a training state's parameters.

    They are {"encoder": tree, "loss": tree, ...}, and under BASE the frozen ones.

    Args:
        params: of a training state.
        rules: of an encoder's parameters, `Encoder.sharding`.
        mesh: the device mesh, see `mesh.make_mesh`.
    """
    return param_specs(params, [(f"({BASE}|encoder)/{path}", axes) for path, axes in rules], mesh)


def _fitting(axis: str | None, size: int, mesh: Mesh) -> str | None:
    return axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None


def state_shardings(
    state: TrainState, optimizer: optax.GradientTransformation, specs: Any, mesh: Mesh
) -> TrainState:
    """Returns the sharding of every leaf of a training state.

    Arrays of a parameter's shape are split as the parameter is. What an optimiser keeps in another
    shape, as Adafactor its row and column sums, is small and whole on each device.

    Args:
        state: arrays or their shapes.
        optimizer: whose state `state.opt_state` is.
        specs: of `state.params`, and of `state.frozen[BASE]` under that name.
        mesh: the device mesh, see `mesh.make_mesh`.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    frozen = {name: shardings.pop(name) if name == BASE else jax.tree.map(lambda _: whole, params)
              for name, params in state.frozen.items()}  # fmt: skip

    def moment_sharding(moment: Any, sharding: NamedSharding, param: Any) -> Any:
        if isinstance(moment, optax.MaskedNode):  # a parameter of which this part keeps nothing
            return moment
        return sharding if moment.shape == param.shape else whole

    moments = optax.tree.map_params(
        optimizer,
        moment_sharding,
        state.opt_state,
        shardings,
        state.params,
        transform_non_params=lambda _: whole,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    extra = jax.tree.map(lambda _: whole, state.extra)
    if "momentum" in extra:
        extra["momentum"] = shardings["encoder"]
    return state.replace(
        step=whole, params=shardings, opt_state=moments, frozen=frozen, extra=extra
    )


def place_on_mesh(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every host has as a whole onto the devices.

    Arrays that are already placed this way stay.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        leaf = np.asarray(jax.device_get(leaf))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, shardings)


def place_abstract(tree: Any, shardings: Any) -> Any:
    """Returns the shapes of arrays with their shardings; nothing is allocated.

    Args:
        tree: arrays or their shapes.
        shardings: one for every leaf, or one for all.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array to every device.

    Several hosts must each have the same arrays.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to every device, unless they are already on the mesh.

    Arrays on the mesh stay there, in shards or not.
    """

    def put(leaf: Any) -> jax.Array:
        there = (
            isinstance(leaf, jax.Array)
            and isinstance(leaf.sharding, NamedSharding)
            and leaf.sharding.mesh == mesh
        )
        return leaf if there else replicate(leaf, mesh)

    return jax.tree.map(put, tree)


def gather_params(params: Params, mesh: Mesh) -> Params:
    """Makes split parameters whole on every device; whole ones are returned."""
    whole = NamedSharding(mesh, PartitionSpec())
    if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)):
        return params
    # A compiled identity, since device_put cannot read shards on other hosts.
    return jax.jit(lambda tree: tree, out_shardings=whole)(params)


# ---- batches -------------------------------------------------------------------------------------


def split_groups(batch: Any, mesh: Mesh) -> Any:
    """Splits a batch of NumPy arrays with a leading group axis over the mesh.

    Each device gets its own groups. With several hosts, `batch` holds the groups of this host's
    devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def own_groups(batch: Any, mesh: Mesh) -> Any:
    """Selects the groups of this host's devices.

    In `batch` every host has all groups, one for each device.
    """
    if jax.process_count() == 1:
        return batch
    devices = mesh.devices[:, :, 0].flat
    mine = np.array([device.process_index == jax.process_index() for device in devices])
    return jax.tree.map(lambda leaf: leaf[mine], batch)
