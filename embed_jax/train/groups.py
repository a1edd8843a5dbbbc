"""Groups of parameters by patterns of their paths: learning-rate factors, freezing, layer decay.

    config.optim.learning_rate = 1e-5
    config.optim.groups.heads = ParamGroup(pattern="heads", learning_rate_factor=100.0)
    config.optim.groups.table = ParamGroup(pattern="embeddings", learning_rate_factor=0.0)  # frozen
    config.optim.groups.trunk = ParamGroup(pattern="backbone", layer_decay=0.9)

A parameter's path is its place in the training state, such as
"encoder/backbone/layers/query/kernel", "encoder/heads/0/kernel" or "loss/temperature". A group
holds the parameters in whose path its regular expression is found, anywhere (`re.search`); "^" and
"$" tie it to the ends. A parameter may be in several groups: their factors multiply, so the order
of the groups has no meaning and a factor of 0 always freezes.

Layers are stacked: one leaf [L, ...] holds the parameters of all L layers, and a factor by layer
runs along its first axis.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from embed_jax.config import ParamGroup
from embed_jax.encoders.shrink import parse_layers
from embed_jax.errors import InputError
from embed_jax.types import Params

STACK = "layers"  # the part of a path below which leaves are stacked by layer
ABOVE_LAYERS = ("norm",)  # parts beside the layers that come after them
NEAR_PATHS = 5

Factor = float | np.ndarray  # of a whole leaf, or one for each of its layers [L]


def path_name(path: tuple) -> str:
    """Returns "encoder/backbone/layers/query/kernel" for a path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_stacked(path: str) -> bool:
    """Tells whether a leaf's first axis counts layers."""
    return STACK in path.split("/")[:-1]


def with_groups(
    optimizer: optax.GradientTransformation, groups: Mapping[str, ParamGroup]
) -> optax.GradientTransformation:
    """Applies an optimiser with the groups' factors on its updates.

    Frozen parameters get no update, no weight decay and no optimiser state, and their gradients
    don't count in the norm by which the optimiser clips. In a stacked leaf of which only some
    layers are frozen, the gradients of those layers are set to 0 before the optimiser sees them, so
    their moments stay 0.

    Args:
        optimizer: optax's.
        groups: by name, `config.optim.groups`.

    Raises:
        InputError: (from `init`) if a pattern matches no parameter, layers are out of range, or all
            is frozen.
    """

    def labels(params: Params) -> Any:
        factors = learning_rate_factors(params, groups)
        labelled = jax.tree.map(lambda f: "frozen" if _is_zero(f) else "trained", factors)
        leaves = jax.tree.leaves(labelled)
        if leaves and "trained" not in leaves:
            raise InputError("config.optim.groups: all parameters are frozen, nothing is trained")
        return labelled

    def stop_layers(gradients: Params, _: Params | None) -> Params:
        return jax.tree.map(
            lambda factor, leaf: (
                leaf * _column(factor != 0, leaf) if isinstance(factor, np.ndarray) else leaf
            ),
            learning_rate_factors(gradients, groups),
            gradients,
        )

    def scale(updates: Params, _: Params | None) -> Params:
        def scale_leaf(factor: Factor, leaf: Any) -> Any:
            if isinstance(factor, np.ndarray):
                return leaf * _column(factor, leaf)
            return leaf if factor in (0.0, 1.0) else leaf * factor

        return jax.tree.map(scale_leaf, learning_rate_factors(updates, groups), updates)

    return optax.chain(
        optax.stateless(stop_layers),
        optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels),
        optax.stateless(scale),
    )


def stop_frozen_gradients(objective: Callable, groups: Mapping[str, ParamGroup]) -> Callable:
    """Returns the same objective, with a gradient of 0 for frozen parameters.

    A frozen trunk then costs no backward pass, and the gradient's norm is that of the trained
    parameters.

    Args:
        objective: `(params, ...) -> anything`.
        groups: by name, `config.optim.groups`.
    """
    if not groups:
        return objective

    def stop(factor: Factor, leaf: Any) -> Any:
        if _is_zero(factor):
            return jax.lax.stop_gradient(leaf)
        if isinstance(factor, np.ndarray) and not factor.all():
            return jnp.where(_column(factor != 0, leaf), leaf, jax.lax.stop_gradient(leaf))
        return leaf

    def stopped(params: Params, *rest: Any, **keywords: Any) -> Any:
        factors = learning_rate_factors(params, groups)
        return objective(jax.tree.map(stop, factors, params), *rest, **keywords)

    return stopped


def learning_rate_factors(params: Params, groups: Mapping[str, ParamGroup]) -> Any:
    """Computes the factor on the learning rate of each leaf.

    The result is a tree like `params` of floats, or of arrays [L] by layer.

    Args:
        params: arrays or their shapes.
        groups: by name.

    Raises:
        InputError: see `with_groups`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    if not shapes:
        return params
    factors: dict[str, Factor] = dict.fromkeys(shapes, 1.0)
    for name, group in groups.items():
        for path, factor in _group_factors(f"config.optim.groups.{name}", group, shapes).items():
            factors[path] = factors[path] * factor
    return jax.tree.unflatten(structure, [_simplest(factor) for factor in factors.values()])


def _group_factors(
    field: str, group: ParamGroup, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Factor]:
    """Computes the factors of the parameters that are in a group, by path."""
    paths = [path for path in shapes if re.search(group.pattern, path)]
    if not paths:
        raise InputError(
            f"{field}.pattern: no parameter's path matches {group.pattern!r}; "
            f"near: {', '.join(_near(group.pattern, list(shapes)))}"
        )
    if not group.layers and group.layer_decay == 1.0:
        return dict.fromkeys(paths, group.learning_rate_factor)
    if not any(map(is_stacked, paths)):
        option = "layers" if group.layers else "layer_decay"
        raise InputError(
            f"{field}.{option}: needs layers, but the pattern {group.pattern!r} matches none, only "
            f"{', '.join(paths[:NEAR_PATHS])}"
        )
    factors: dict[str, Factor] = {}
    for path in paths:
        if is_stacked(path):
            factors[path] = _layer_factors(field, group, shapes[path][0])
        elif not group.layers:  # else the group is of layers only
            depth = _layers_above(path, shapes)
            factors[path] = group.learning_rate_factor * group.layer_decay**depth
    return factors


def _layer_factors(field: str, group: ParamGroup, count: int) -> np.ndarray:
    """Computes the factors of L layers.

    The last layer has the group's factor, each one below it `layer_decay` times that of the next.
    """
    by_layer = group.learning_rate_factor * group.layer_decay ** np.arange(count - 1.0, -1.0, -1.0)
    if not group.layers:
        return by_layer
    layers = parse_layers(group.layers)
    if not all(0 <= layer < count for layer in layers):
        raise InputError(
            f"{field}.layers: expected layers from 0 to {count - 1}, found {group.layers!r}"
        )
    return np.where(np.isin(np.arange(count), layers), by_layer, 1.0)


def _layers_above(path: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the number of layers above a parameter that is not in a layer.

    It is all of them for embeddings, 0 for norms and heads.
    """
    for stacked in filter(is_stacked, shapes):
        parent = stacked[: f"/{stacked}/".index(f"/{STACK}/")]
        if path.startswith(parent) and path[len(parent) :].split("/")[0] not in ABOVE_LAYERS:
            return shapes[stacked][0]
    return 0


def _near(pattern: str, paths: list[str]) -> list[str]:
    """Finds paths that resemble a pattern.

    They have a part, or a run of parts, of almost the same spelling.
    """
    text = re.sub(r"[^\w/]+", "", pattern).strip("/").lower()
    runs: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for start in range(len(parts)):
            for end in range(start + 1, len(parts) + 1):
                runs.setdefault("/".join(parts[start:end]).lower(), path)
    near = [runs[run] for run in difflib.get_close_matches(text, runs, n=NEAR_PATHS)]
    # With nothing alike, one path of each part of the tree shows how paths look.
    near = near or list({"/".join(path.split("/")[:2]): path for path in paths}.values())
    return list(dict.fromkeys(near))[:NEAR_PATHS]


def _simplest(factor: Factor) -> Factor:
    """Returns a float where all layers have the same factor."""
    if isinstance(factor, np.ndarray):
        return float(factor[0]) if (factor == factor[0]).all() else factor
    return float(factor)


def _is_zero(factor: Factor) -> bool:
    return not isinstance(factor, np.ndarray) and factor == 0


def _column(by_layer: np.ndarray, leaf: Any) -> Any:
    """Reshapes to [L, 1, ...] to multiply a leaf [L, ...], in its dtype unless it is a mask."""
    dtype = leaf.dtype if by_layer.dtype != bool else None
    return jnp.asarray(by_layer, dtype).reshape(-1, *[1] * (leaf.ndim - 1))
