"""Merges models of the same shape by averaging their parameters, linearly or spherically."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import Params

NEARLY_PARALLEL = (
    0.9995  # cosine above which the line and the circle differ by less than rounding does
)


def slerp(
    first: Float[np.ndarray, "*n"], second: Float[np.ndarray, "*n"], t: float
) -> Float[np.ndarray, "*n"]:
    """Computes sin((1 - t) w) / sin(w) first + sin(t w) / sin(w) second, w the angle between both.

    Shoemake (1985), "Animating Rotation with Quaternion Curves", section 3.3, for whole tensors as
    vectors, as Qwen3-Embedding's last stage merges checkpoints. If they are nearly parallel or one
    is zero, the result is (1 - t) first + t second.

    >>> slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5)
    array([0.7071, 0.7071], dtype=float32)
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.vdot(a, b) / lengths) if lengths else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return ((1 - t) * a + t * b).astype(np.float32)
    angle = np.arccos(cosine)
    return ((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)).astype(
        np.float32
    )


def linear(
    first: Float[np.ndarray, "*n"], second: Float[np.ndarray, "*n"], t: float
) -> Float[np.ndarray, "*n"]:
    """Computes (1 - t) first + t second.

    >>> linear(np.array([0.0, 4.0]), np.array([2.0, 4.0]), 0.25)
    array([0.5, 4. ], dtype=float32)
    """
    return ((1 - t) * np.asarray(first, np.float64) + t * np.asarray(second, np.float64)).astype(
        np.float32
    )


METHODS = {"slerp": slerp, "linear": linear}


def merge(models: Sequence[Params], weights: Sequence[float] = (), method: str = "slerp") -> Params:
    """Merges the parameters of several models, tensor by tensor, each layer's by itself.

    Models are merged two at a time: the first with the second, the result with the third, and so
    on, each with its share of the weights so far.

    >>> merge([{"bias": np.zeros(2)}, {"bias": np.ones(2)}], weights=[3, 1], method="linear")
    {'bias': array([0.25, 0.25], dtype=float32)}

    Args:
        models: trees of one structure and shapes, with layers stacked under "layers".
        weights: a positive weight for each model; empty: equal weights.
        method: one of METHODS.

    Returns:
        A tree of the same structure, float32.

    Raises:
        InputError: for fewer than two models, other weights than models, or an unknown method.
    """
    weights = list(weights) or [1.0] * len(models)
    if len(models) < 2:
        raise InputError(f"merge: expected two models or more, found {len(models)}")
    if len(weights) != len(models) or min(weights) <= 0:
        raise InputError(
            f"merge: expected {len(models)} weights above 0, one a model, found {weights}"
        )
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    between, merged, total = METHODS[method], jax.device_get(models[0]), weights[0]

    def tensor(path: tuple, a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
        if any(getattr(part, "key", "") == "layers" for part in path):
            return np.stack([between(*layers, t) for layers in zip(a, b, strict=True)])
        return between(a, b, t)

    for params, weight in zip(models[1:], weights[1:], strict=True):
        total += weight
        merged = jax.tree_util.tree_map_with_path(
            lambda path, a, b, t=weight / total: tensor(path, a, b, t),
            merged,
            jax.device_get(params),
        )
    return merged
