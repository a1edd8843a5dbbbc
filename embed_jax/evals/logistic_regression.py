"""Logistic regression on embeddings: many problems at once, to convergence, in JAX."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from embed_jax.types import AnyArray


class Rotated(NamedTuple):
    """Embeddings in a basis that makes `logistic_regressions` quick, and changes nothing else.

    Attributes:
        vectors: of the training texts, centred, in the basis of their principal axes.
        squares: the sum of squares along each axis.
        center, axes: vectors = (x - center) @ axes.
    """

    vectors: Float[np.ndarray, "N D"]
    squares: Float[np.ndarray, " D"]
    center: Float[np.ndarray, " D"]
    axes: Float[np.ndarray, "D D"]


def logistic_regressions(
    rotated: Rotated,
    labels: Int[np.ndarray, " N"],
    included: Bool[np.ndarray, "N M"],
    strengths: Sequence[float],
    start: Float[AnyArray, "_ M K"] | None = None,
) -> Float[Array, "_ M K"]:
    """Fits M multinomial logistic regressions at once, each on its own rows and strength of L2.

    Minimises, for each, sum_n CE_n + |W|^2 / 2C without a penalty on the intercept: what sklearn's
    LogisticRegression minimises, where two labels have one vector w = w_1 - w_0, and so |w|^2 = 2
    |W|^2.

    The Hessian is at most X'X / 2 (Böhning 1992), a diagonal in the basis of `rotated`: steps of
    the inverse of this bound, accelerated (Nesterov 1983) and restarted where they turn uphill
    (O'Donoghue and Candès 2015).

    Args:
        rotated: the training vectors.
        labels: numbers from 0 up.
        included: whether a row is one of a regression's.
        strengths: C of each regression.
        start: weights near the solution, such as those for another strength.

    Returns:
        Weights for each label, the last row of them intercepts.
    """
    classes, models = int(labels.max()) + 1, len(strengths)
    penalty = (2 if classes == 2 else 1) / np.asarray(strengths, np.float32)
    if start is None:
        start = jnp.zeros((rotated.vectors.shape[1] + 1, models, classes), jnp.float32)
    return _minimise(
        rotated.vectors,
        rotated.squares,
        np.eye(classes, dtype=np.float32)[labels],
        included,
        penalty,
        start,
    )


def predict_by_each(
    weights: Float[AnyArray, "_ M K"], vectors: Float[np.ndarray, "N D"]
) -> Int[np.ndarray, "N M"]:
    """Predicts the label of each row by each of the regressions."""
    return np.asarray(_predict(weights, vectors))


@jax.jit
def _predict(weights, vectors):
    return _logits(weights, vectors).argmax(axis=-1)


def _logits(
    weights: Float[AnyArray, "_ M K"], vectors: Float[Array, "N D"]
) -> Float[Array, "N M K"]:
    return jnp.einsum("nd,dmk->nmk", vectors, weights[:-1], precision="highest") + weights[-1]


@functools.partial(jax.jit, static_argnames=("tolerance", "most"))
def _minimise(vectors, squares, gold, included, penalty, start, tolerance=3e-5, most=2000):
    """Minimises until the gradients of all regressions are small.

    Small means |gradient|^2 in the bound's metric, by row, below tolerance^2.
    """
    rows = included.sum(axis=0)
    penalties = jnp.concatenate(
        [jnp.broadcast_to(penalty, (len(squares), len(penalty))), jnp.zeros((1, len(penalty)))]
    )
    step = 1 / (jnp.append(squares, len(vectors))[:, None] / 2 + penalties)[..., None]

    def gradient(weights):
        over = (jax.nn.softmax(_logits(weights, vectors)) - gold[:, None]) * included[..., None]
        slopes = jnp.einsum("nd,nmk->dmk", vectors, over, precision="highest")
        return jnp.concatenate([slopes, over.sum(axis=0)[None]]) + penalties[..., None] * weights

    def move(state):
        count, weights, ahead, momentum, _ = state
        slope = gradient(ahead)
        new = ahead - step * slope
        uphill = jnp.sum(slope * (new - weights), axis=(0, 2)) > 0
        momentum = jnp.where(uphill, 1.0, momentum)
        grown = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + jnp.where(uphill, 0.0, (momentum - 1) / grown)[:, None] * (new - weights)
        return count + 1, new, ahead, grown, jnp.max(jnp.sum(step * slope**2, axis=(0, 2)) / rows)

    state = (0, start, start, jnp.ones(len(penalty)), jnp.inf)
    return jax.lax.while_loop(
        lambda state: (state[0] < most) & (state[-1] > tolerance**2), move, state
    )[1]


def rotate_vectors(vectors: Float[np.ndarray, "N D"]) -> Rotated:
    center = vectors.mean(axis=0, dtype=np.float64)
    centered = vectors - center
    squares, axes = np.linalg.eigh(centered.T @ centered)
    return Rotated(
        (centered @ axes).astype(np.float32),
        np.maximum(squares, 0).astype(np.float32),
        center,
        axes,
    )


def turn_vectors(rotated: Rotated, vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    return ((vectors - rotated.center) @ rotated.axes).astype(np.float32)
