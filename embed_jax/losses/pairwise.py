"""Losses of labelled or scored pairs: contrastive, CoSENT, AnglE, contrastive tension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from embed_jax.losses.base import Target, is_number, loss
from embed_jax.scores import dense
from embed_jax.types import AnyArray, Columns, LossResult, Number, Params, World, require_field
from embed_jax.vectors import cosine, cosine_matrix, dot, named_distance, normalize


def contrastive_loss(
    first: Float[AnyArray, "b D"],
    second: Float[AnyArray, "b D"],
    label: Int[Array, " b"],
    *,
    margin: Number = 0.5,
    distance: str = "cosine",
) -> Float[Array, " b"]:
    """1/2 [y d^2 + (1 - y) max(0, margin - d)^2]: equal pairs together, others `margin` apart.

    Hadsell, Chopra, LeCun (2006), "Dimensionality Reduction by Learning an Invariant Mapping", eq.
    4.

    Args:
        first: embeddings of the first texts.
        second: embeddings of the second texts.
        label: y, 1 for pairs that belong together and 0 for others.
        margin: the distance that other pairs should reach.
        distance: "cosine" (1 - cosine), "euclidean" or "manhattan".

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(contrastive_loss(first, second, jnp.array([1, 0])))
    [0.     0.0214]
    """
    distances = named_distance(distance)(first, second)
    label = label.astype(jnp.float32)
    return 0.5 * (label * distances**2 + (1.0 - label) * jax.nn.relu(margin - distances) ** 2)


@loss(needs=("label",), columns=(2, 2), tiled=True, classes=2)
def contrastive(
    own: Columns, world: World, params: Params, *, margin: float = 0.5, distance: str = "cosine"
) -> LossResult:
    """Computes the mean of `contrastive_loss` over the pairs.

    Args:
        margin: the distance that pairs of label 0 should reach.
        distance: "cosine" (1 - cosine), "euclidean" or "manhattan".

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(contrastive(first, second, label=jnp.array([1, 0])))
    [0.     0.0214]
    """
    first, second = dense(own.embeddings, "contrastive")
    values = contrastive_loss(
        first, second, require_field(own.label), margin=margin, distance=distance
    )
    return values, _weights(own), {}


@loss(needs=("label",), columns=(2, 2), tiled=True, classes=2)
def online_contrastive(
    own: Columns, world: World, params: Params, *, margin: float = 0.5, distance: str = "cosine"
) -> LossResult:
    """y d^2 + (1 - y) max(0, margin - d)^2 for the world's hard pairs, 0 for the others.

    The values are summed, not averaged. Hard are positives farther apart than the closest negative
    (the mean positive, if there is no negative), and negatives closer than the farthest positive
    (the mean negative). sentence-transformers' OnlineContrastiveLoss. The sum grows with the batch,
    and so does the learning rate it amounts to. Pairs with a label other than 0 and 1 are left out.

    Args:
        margin: the distance that pairs of label 0 should reach.
        distance: "cosine" (1 - cosine), "euclidean" or "manhattan".

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(online_contrastive(first, second, label=jnp.array([0, 1])))
    [0.5    0.1716]
    """
    weights = _weights(own)
    distances = named_distance(distance)(*dense(own.embeddings, "online_contrastive"))
    label = jnp.where(weights > 0.0, require_field(own.label), -1)
    limits = _hard_limits(world.gather(jax.lax.stop_gradient(distances)), world.gather(label))
    return _summed(_online(distances, label, *limits, margin), weights, world), weights, {}


@loss(needs=("score",), columns=(2, 2), tiled=True)
def cosent(own: Columns, world: World, params: Params, *, scale: float = 20.0) -> LossResult:
    """log(1 + sum over y_i > y_j of exp(scale (cos_j - cos_i))): orders pairs as scores do.

    CoSENT (Su 2022), over all pairs of the world, as every pair's value. Pairs of equal score are
    not compared, so the scores' unit does not matter.

    Args:
        scale: 1 / temperature.

    >>> first, second = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    >>> print(cosent(first, second, score=jnp.array([0.0, 1.0]), scale=1.0))  # log(1 + e)
    [1.3133 1.3133]
    """
    return _ranking(own, world, cosine, scale), _weights(own), {}


def angle_similarity(
    first: Float[AnyArray, "*n D"], second: Float[AnyArray, "*n D"]
) -> Float[Array, "*n"]:
    """|sum of the real and imaginary parts of z / w|, lengths divided out, row by row.

    z and w are the vectors read as complex ones, the first half of a vector being its real part.
    With u, v of length 1 it is |u.v + sum_k (u_im v_re - u_re v_im)_k|. Li and Li (2023),
    "AnglE-optimized Text Embeddings". A vector of odd size gets a zero.

    >>> print(angle_similarity(jnp.eye(2), jnp.ones((2, 2))))
    [0.     1.4142]
    """
    first, second = normalize(first), normalize(second)
    half = -(-first.shape[-1] // 2)
    short = [(0, 0)] * (first.ndim - 1) + [(0, 2 * half - first.shape[-1])]
    first, second = jnp.pad(first, short), jnp.pad(second, short)
    imaginary = dot(first[..., half:], second[..., :half]) - dot(
        first[..., :half], second[..., half:]
    )
    return jnp.abs(dot(first, second) + imaginary)


@loss(needs=("score",), columns=(2, 2), tiled=True)
def angle(own: Columns, world: World, params: Params, *, scale: float = 20.0) -> LossResult:
    """Computes `cosent` with `angle_similarity` in place of the cosine (Li and Li 2023).

    It is not flat where the cosine is near 1 or -1.

    Args:
        scale: 1 / temperature.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(angle(first, second, score=jnp.array([0.0, 1.0]), scale=1.0))
    [0.5073 0.5073]
    """
    return _ranking(own, world, angle_similarity, scale), _weights(own), {}


def _in_batch_target(arguments: Mapping[str, Any]) -> Target | None:
    """Returns the scores that the in-batch term can fit: 1 for pairs that belong together."""
    return None if is_number(arguments["in_batch_weight"], 0.0) else Target(-1.0, 1.0)


@loss(needs=("score",), columns=(2, 2), tiled=True, targets=_in_batch_target)
def angle_combined(
    own: Columns,
    world: World,
    params: Params,
    *,
    cosine_weight: Number = 1.0,
    in_batch_weight: Number = 1.0,
    angle_weight: Number = 1.0,
    scale: Number = 20.0,
    angle_scale: Number = 20.0,
    mask_duplicates: bool = True,
) -> LossResult:
    """cosine_weight `cosent` + in_batch_weight in-batch + angle_weight `angle` (Li and Li 2023).

    The in-batch term is cross entropy over all 2B texts of the world except the row's own, the
    right one being the row's partner. It is 0 for both texts of a pair with a score below 1, and
    its mean is over all 2B texts.

    Args:
        cosine_weight: of `cosent`.
        in_batch_weight: of the in-batch term.
        angle_weight: of `angle`.
        scale: of cosines, 1 / temperature.
        angle_scale: of angles, 1 / temperature.
        mask_duplicates: whether texts equal to a text or its partner are left out of its negatives;
            the reference implementation lacks this.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(angle_combined(first, second, score=jnp.array([0.0, 1.0]), scale=1.0))
    [0.8505 1.7429]
    """
    weights = _weights(own)
    values = jnp.zeros_like(weights)
    if not is_number(cosine_weight, 0.0):
        values += cosine_weight * _ranking(own, world, cosine, scale)
    if not is_number(angle_weight, 0.0):
        values += angle_weight * _ranking(own, world, angle_similarity, angle_scale)
    if not is_number(in_batch_weight, 0.0):
        positive = (require_field(own.score)[:, 0] >= 1.0).astype(jnp.float32)
        values += in_batch_weight * positive * _in_batch(own, world, scale, mask_duplicates)
    return values, weights, {}


def cosine_mse_loss(
    first: Float[AnyArray, "*n D"], second: Float[AnyArray, "*n D"], score: Float[AnyArray, "*n"]
) -> Float[Array, "*n"]:
    """(cos(u, v) - score)^2, a regression on the cosine.

    Reimers and Gurevych (2019), "Sentence-BERT", section 3.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(cosine_mse_loss(first, second, jnp.array([1.0, 0.0])))
    [0.  0.5]
    """
    return (cosine(first, second) - score) ** 2


@loss(needs=("score",), columns=(2, 2), tiled=True, targets=lambda _: Target(-1.0, 1.0))
def cosine_mse(own: Columns, world: World, params: Params) -> LossResult:
    """Computes the mean of `cosine_mse_loss` over the pairs.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(cosine_mse(first, second, score=jnp.array([1.0, 0.0])))
    [0.  0.5]
    """
    first, second = dense(own.embeddings, "cosine_mse")
    return cosine_mse_loss(first, second, require_field(own.score)[:, 0]), _weights(own), {}


def contrastive_tension_loss(
    first: Float[AnyArray, "b D"], second: Float[AnyArray, "b D"], label: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Binary cross entropy of sigmoid(u.v) against the label, 1 for two views of one text.

    The values are meant to be summed. Carlsson et al. (2021), "Semantic Re-tuning with Contrastive
    Tension".

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(contrastive_tension_loss(first, second, jnp.array([1, 0])))
    [0.1269 1.3133]
    """
    logits = dot(first, second)
    return jax.nn.softplus(logits) - label.astype(jnp.float32) * logits


@loss(needs=("label",), columns=(2, 2), tiled=True, classes=2)
def contrastive_tension(own: Columns, world: World, params: Params) -> LossResult:
    """Computes the sum, not the mean, of `contrastive_tension_loss` over all pairs of the world.

    sentence-transformers sums it too.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(contrastive_tension(first, second, label=jnp.array([1, 0])))
    [0.2539 2.6265]
    """
    weights = _weights(own)
    first, second = dense(own.embeddings, "contrastive_tension")
    values = contrastive_tension_loss(first, second, require_field(own.label))
    return _summed(values, weights, world), weights, {}


def init_log_scale(dim: int, key: PRNGKeyArray, *, scale: float = 20.0) -> Params:
    """Makes {"log_scale": log(scale)}."""
    return {"log_scale": jnp.full((), math.log(scale), jnp.float32)}


@loss(columns=(2, 2), init=init_log_scale, tiled=True)
def contrastive_tension_in_batch(
    own: Columns, world: World, params: Params, *, scale: float = 20.0
) -> LossResult:
    """Cross entropy of each text's partner against all others' partners, both ways.

    l_i = 1/2 [CE_j(s_ij) + CE_j(s_ji)] with s_ij = exp(log_scale) cos(u_i, v_j), whose scale is
    learnt; sentence-transformers' ContrastiveTensionLossInBatchNegatives.

    Args:
        params: {"log_scale": []}.
        scale: exp(log_scale) at the start, read by `init_log_scale`.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(contrastive_tension_in_batch(first, second, scale=1.0))
    [0.4353 0.547 ]
    """
    del scale
    first, second = dense(own.embeddings, "contrastive_tension_in_batch")

    def block(rows, candidates, log_scale):
        first, second, example = rows
        firsts, seconds, examples, present = candidates
        others = present[None, :] & (example[:, None] != examples[None, :])
        both = jnp.stack([cosine_matrix(first, seconds), cosine_matrix(second, firsts)])
        return jnp.where(others[None], jnp.exp(log_scale) * both, -jnp.inf)

    def candidates(columns):
        return *columns.embeddings, columns.example, jnp.all(columns.present, axis=0)

    log_scale = params["log_scale"]
    against, _ = world.logsumexp(block, (first, second, own.example), candidates, log_scale)
    values = jax.nn.softplus(against - (jnp.exp(log_scale) * cosine(first, second))[None])
    return jnp.mean(values, axis=0), _weights(own), {}


def _weights(own: Columns) -> Float[Array, " b"]:
    return jnp.all(own.present[:2], axis=0).astype(jnp.float32)


def _summed(
    values: Float[Array, " b"], weights: Float[Array, " b"], world: World
) -> Float[Array, " b"]:
    """Returns values whose weighted mean over the world is the sum of `values`."""
    return values * world.total(jnp.sum(weights))


def _hard_limits(distances: Float[Array, " B"], label: Int[Array, " B"]) -> tuple[Array, Array]:
    """Returns two limits: positives above the first are hard, and negatives below the second."""
    positive, negative = label == 1, label == 0

    def mean(kind: Bool[Array, " B"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(kind, distances, 0.0)) / jnp.maximum(
            jnp.sum(kind.astype(jnp.float32)), 1.0
        )

    closest = jnp.min(jnp.where(negative, distances, jnp.inf))
    farthest = jnp.max(jnp.where(positive, distances, -jnp.inf))
    above = jnp.where(jnp.any(negative), closest, mean(positive))
    below = jnp.where(jnp.any(positive), farthest, mean(negative))
    return above, below


def _online(
    distances: Array, label: Array, above: Array, below: Array, margin: float
) -> Float[Array, " b"]:
    hard_positive = (label == 1) & (distances > above)
    hard_negative = (label == 0) & (distances < below)
    return jnp.where(hard_positive, distances**2, 0.0) + jnp.where(
        hard_negative, jax.nn.relu(margin - distances) ** 2, 0.0
    )


def _rank_gaps(rows: Any, candidates: Any, scale: Number) -> Float[Array, "b n"]:
    """Computes scale (s_j - s_i) where y_i > y_j and both pairs are there, -inf elsewhere."""
    (similarity, score, present), (similarities, scores, others) = rows, candidates
    compared = present[:, None] & others[None, :] & (score[:, None] > scores[None, :])
    return jnp.where(compared, scale * (similarities[None, :] - similarity[:, None]), -jnp.inf)


def _ranking(
    own: Columns, world: World, similarity: Callable[[Array, Array], Array], scale: Number
) -> Float[Array, " b"]:
    """Computes the ranking loss over all pairs of the world.

    It is reduced row by row, so that all pairs of pairs are never held.
    """

    def pairs(columns: Columns) -> Any:
        first, second = dense(columns.embeddings, "a loss of scored pairs")
        score = require_field(columns.score)[:, 0]
        return similarity(first, second), score, jnp.all(columns.present, axis=0)

    rows, _ = world.logsumexp(
        lambda row, others, _: _rank_gaps(row, others, scale)[None], pairs(own), pairs
    )
    return jnp.broadcast_to(_log_one_plus(world.gather(rows[0])), own.example.shape)


def _log_one_plus(exponents: Float[Array, "*n"]) -> Float[Array, ""]:
    """Computes log(1 + sum exp), exact however small the sum is; exponents may be -inf."""
    # It does not depend on the shift, so neither does its gradient.
    shift = jax.lax.stop_gradient(jnp.maximum(jnp.max(exponents), 0.0))
    return shift + jnp.log1p(jnp.sum(jnp.exp(exponents - shift)) + jnp.expm1(-shift))


def _in_batch(
    own: Columns, world: World, scale: Number, mask_duplicates: bool
) -> Float[Array, " b"]:
    """Computes the cross entropy of each text's partner among all texts of the world.

    The value is the mean over a pair's two texts.
    """

    def block(rows, candidates, _):
        texts, hashes, example = rows
        others, other_hashes, other_example, present = candidates
        allowed = present[None, :] & (example[:, None] != other_example[None, :])
        if mask_duplicates:
            for side in hashes:
                allowed &= ~_same_text(side, other_hashes)
        similarities = jnp.stack([cosine_matrix(side, others) for side in texts])
        return jnp.where(allowed[None], scale * similarities, -jnp.inf)

    def candidates(columns):
        texts, hashes = jnp.concatenate(columns.embeddings), columns.text_hash.reshape(-1, 2)
        return (
            texts,
            hashes,
            jnp.tile(columns.example, 2),
            jnp.tile(jnp.all(columns.present, axis=0), 2),
        )

    rows = tuple(own.embeddings), tuple(own.text_hash), own.example
    against, _ = world.logsumexp(block, rows, candidates)
    return jnp.mean(jax.nn.softplus(against - scale * cosine(*own.embeddings)[None]), axis=0)


def _same_text(own: UInt[Array, "b 2"], others: UInt[Array, "n 2"]) -> Bool[Array, "b n"]:
    return jnp.all(own[:, None, :] == others[None, :, :], axis=-1)
