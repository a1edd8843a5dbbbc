"""Parameters from a file straight onto the mesh, one device's part of one leaf at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from embed_jax.parallel.mesh import param_specs
from embed_jax.types import Put, Read, Rules, param_dtype


def sharded_put(shardings: Callable[[str, tuple[int, ...]], Sharding], dtype: str = "") -> Put:
    """Makes a `put` for `encoders.read.read_model` that places parameters by their shardings.

    Parts are read one after the other, each once, however many devices have it, and only those of
    this host's devices.

    Args:
        shardings: `(path, shape) -> sharding`; see `by_rules`.
        dtype: of the parameters; "": bfloat16 where the file has that, else float32.
    """

    def put(path: str, shape: tuple[int, ...], stored: np.dtype, read: Read) -> jax.Array:
        target_dtype = jnp.dtype(dtype) if dtype else param_dtype(stored)
        sharding = shardings(path, shape)
        holders: dict[tuple[tuple[int, int, int], ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None, "a device of this host has a part of every array"
            bounds = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
            holders.setdefault(bounds, []).append(device)
        parts = []
        for bounds, devices in holders.items():
            value = read(tuple(slice(*bound) for bound in bounds)).astype(target_dtype, copy=False)
            # Waiting, and copies on CPU too, so that the host's own array can go before the next is
            # read.
            parts += jax.block_until_ready(
                [jax.device_put(value, device, may_alias=False) for device in devices]
            )
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return put


def by_rules(rules: Rules, mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Returns the sharding of a parameter by its path and shape, see `mesh.param_specs`.

    Args:
        rules: for paths like those of `put` ("backbone/..."), such as `Encoder.sharding`.
        mesh: the device mesh, see `mesh.make_mesh`.
    """

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        leaf = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
        return NamedSharding(mesh, param_specs(leaf, rules, mesh)[path])

    return sharding
