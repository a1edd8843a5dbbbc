"""The device mesh, and how arrays lie on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from embed_jax.errors import InputError

BATCH_AXES = ("data",)  # the axes over which the groups of a batch are split


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh of one axis, "data".

    Args:
        devices: how many of the devices there are; 0: all.

    Raises:
        InputError: if there are fewer.
    """
    available = jax.devices()
    if devices > len(available):
        raise InputError(f"config.train.devices: expected at most {len(available)} (those there are), found {devices}")
    return jax.make_mesh(
        (devices or len(available),), BATCH_AXES, axis_types=(AxisType.Auto,), devices=available[: devices or None]
    )


def num_groups(groups: int, batch_size: int, mesh: Mesh) -> int:
    """The number of groups of a batch: the one asked for, or one a device.

    Raises:
        InputError: if the devices don't divide the groups, or the groups the batch.
    """
    groups = groups or mesh.size
    if groups % mesh.size:
        raise InputError(f"config.batch.groups: expected a multiple of the {mesh.size} devices, found {groups}")
    if batch_size % groups:
        raise InputError(f"config.batch.size: expected a multiple of the {groups} groups, found {batch_size}")
    return groups


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_groups(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch of NumPy arrays with leading group axis onto the mesh, each device its own groups.

    With several hosts, `batch` holds the groups of this host's devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
