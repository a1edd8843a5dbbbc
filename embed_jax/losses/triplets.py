"""Triplet losses: of given triplets, and of those that labels make within a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from embed_jax.losses.base import loss, mean_over_present
from embed_jax.scores import dense
from embed_jax.types import Columns, LossResult, Number, Params, World, require_field
from embed_jax.vectors import distance_matrix, named_distance

CHUNK = 2**22  # numbers of the triplets that are held at a time


def triplet_loss(
    anchor: Float[Array, "*#n D"],
    positive: Float[Array, "*#n D"],
    negative: Float[Array, "*#n D"],
    *,
    margin: Number = 5.0,
    distance: str = "euclidean",
) -> Float[Array, "*#n"]:
    """max(0, d(a, p) - d(a, n) + margin).

    Reimers and Gurevych (2019), "Sentence-BERT", section 3 (margin 1); the default margin is
    sentence-transformers'.

    Args:
        anchor: embeddings a.
        positive: embeddings p.
        negative: embeddings n.
        margin: how much farther negatives should be than positives.
        distance: "euclidean", "manhattan" or "cosine" (1 - cosine).

    >>> loss = triplet_loss(jnp.zeros(1), jnp.full(1, 0.5), jnp.full(1, 0.3), margin=0.1)
    >>> print(f"{float(loss):.4f}")
    0.3000
    """
    far = named_distance(distance)
    return jax.nn.relu(far(anchor, positive) - far(anchor, negative) + margin)


@loss(columns=(3, 0), tiled=True)
def triplet(
    own: Columns, world: World, params: Params, *, margin: float = 5.0, distance: str = "euclidean"
) -> LossResult:
    """Computes `triplet_loss` of an anchor and its positive.

    The value is the mean over those of its negatives that are there.

    Args:
        margin: how much farther negatives should be than positives.
        distance: "euclidean", "manhattan" or "cosine" (1 - cosine).

    Returns:
        Weight 1 for an example with an anchor, a positive and a negative. Metric `accuracy`: the
        share of its negatives that are farther away than the positive.

    >>> anchor, positive = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]])
    >>> negative = jnp.array([[0.0, 1.0]])
    >>> print(triplet(anchor, positive, negative, margin=1.0))
    [0.5858]

    Distances to the positive and to the negative of 0.2 and 0.5, and of 0.5 and 0.3:

    >>> positive, negative = jnp.array([[0.2], [0.5]]), jnp.array([[0.5], [0.3]])
    >>> print(triplet(jnp.zeros((2, 1)), positive, negative, margin=0.1))
    [0.  0.3]
    >>> print(triplet(jnp.zeros((1, 1)), jnp.array([[0.3]]), jnp.array([[0.7]]), margin=0.5))
    [0.1]
    """
    embeddings = jnp.stack(dense(own.embeddings, "triplet"))
    anchor, positive, negatives = embeddings[:1], embeddings[1:2], embeddings[2:]
    values = triplet_loss(anchor, positive, negatives, margin=margin, distance=distance)
    far = named_distance(distance)
    closer = far(anchor, positive) < far(anchor, negatives)
    values, count = mean_over_present(values, own.present[2:])
    accuracy, _ = mean_over_present(closer.astype(jnp.float32), own.present[2:])
    weights = jnp.all(own.present[:2], axis=0) & (count > 0.0)
    return values, weights.astype(jnp.float32), {"accuracy": accuracy}


@loss(needs=("label",), columns=(1, 1))
def batch_all_triplet(
    own: Columns, world: World, params: Params, *, margin: float = 5.0, distance: str = "euclidean"
) -> LossResult:
    """The mean of max(0, d(a, p) - d(a, n) + margin) over the world's triplets where it is above 0.

    Two texts of one label and one of another make a triplet; 0 without any. Hermans, Beyer, Leibe
    (2017), "In Defense of the Triplet Loss for Person Re-Identification" ("batch all", non-zero
    mean). An anchor weighs as much as it has triplets above 0.

    Args:
        margin: how much farther negatives should be than positives.
        distance: "euclidean" or "cosine" (1 - cosine).

    >>> texts = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    >>> print(batch_all_triplet(texts, label=jnp.array([0, 0, 1]), margin=2.5))
    [0.5 1.5 0. ]
    """
    return _mean_of_mined(_batch_all, own, world, margin, distance)


@loss(needs=("label",), columns=(1, 1))
def batch_semi_hard_triplet(
    own: Columns, world: World, params: Params, *, margin: float = 5.0, distance: str = "euclidean"
) -> LossResult:
    """The mean of max(0, d(a, p) - d(a, n) + margin), n the anchor's semi-hard negative.

    It is over anchors and positives. n is the nearest of the negatives farther away than the
    positive or, if all are nearer, the farthest. Where an anchor has no negative at all, 0 stands
    for its distance. 0 without any positive. Schroff, Kalenichenko, Philbin (2015), "FaceNet";
    agrees with sentence-transformers, also for anchors without a negative. An anchor weighs as much
    as it has positives.

    Args:
        margin: how much farther negatives should be than positives.
        distance: "euclidean" or "cosine" (1 - cosine).

    >>> texts = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    >>> print(batch_semi_hard_triplet(texts, label=jnp.array([0, 0, 1]), margin=2.5))
    [0.5 1.5 0. ]
    """
    return _mean_of_mined(_semi_hard, own, world, margin, distance)


@loss(needs=("label",), columns=(1, 1), tiled=True)
def batch_hard_triplet(
    own: Columns, world: World, params: Params, *, margin: float = 5.0, distance: str = "euclidean"
) -> LossResult:
    """max(0, d(a, p) - d(a, n) + margin), p the farthest positive and n the nearest negative.

    Where an anchor has no positive, 0 stands for its distance; where it has no negative, the
    positive's distance, so that the loss is the margin, without gradient. Hermans, Beyer, Leibe
    (2017), "In Defense of the Triplet Loss for Person Re-Identification" ("batch hard"); agrees
    with sentence-transformers, also for anchors that lack one of the two. Positives and negatives
    are searched for in the whole world.

    Args:
        margin: how much farther negatives should be than positives.
        distance: "euclidean" or "cosine" (1 - cosine).

    >>> texts = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    >>> print(batch_hard_triplet(texts, label=jnp.array([0, 0, 1]), margin=2.5))
    [0.5 1.5 0.5]
    """
    return (
        jax.nn.relu(_world_gap(own, world, distance) + margin),
        own.present[0].astype(jnp.float32),
        {},
    )


@loss(needs=("label",), columns=(1, 1), tiled=True)
def batch_hard_soft_margin_triplet(
    own: Columns, world: World, params: Params, *, distance: str = "euclidean"
) -> LossResult:
    """`batch_hard_triplet` with log(1 + exp(d(a, p) - d(a, n))), which needs no margin.

    Args:
        distance: "euclidean" or "cosine" (1 - cosine).

    >>> texts = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    >>> print(batch_hard_soft_margin_triplet(texts, label=jnp.array([0, 0, 1])))
    [0.1269 0.3133 0.1269]
    """
    return jax.nn.softplus(_world_gap(own, world, distance)), own.present[0].astype(jnp.float32), {}


TripletTexts = tuple[Float[Array, "_ D"], Int[Array, " _"], Int[Array, " _"], Bool[Array, " _"]]
"""Embeddings, labels, numbers of the examples, and whether they are there."""


def _texts(columns: Columns) -> TripletTexts:
    (embeddings,) = dense(columns.embeddings[:1], "a triplet loss")
    return embeddings, require_field(columns.label), columns.example, columns.present[0]


def _kinds(
    anchors: TripletTexts, texts: TripletTexts
) -> tuple[Bool[Array, "b n"], Bool[Array, "b n"]]:
    """Returns the positives and the negatives of each anchor."""
    (_, label, example, present), (_, labels, examples, others) = anchors, texts
    there = present[:, None] & others[None, :]
    same = label[:, None] == labels[None, :]
    return there & same & (example[:, None] != examples[None, :]), there & ~same


def _hardest_block(
    distance: str,
) -> Callable[[TripletTexts, TripletTexts, Any], Float[Array, "2 b n"]]:
    """Returns a block that is largest at the farthest positive, and at the nearest negative."""

    def block(anchors, texts, _):
        distances = distance_matrix(anchors[0], texts[0], distance)
        positive, negative = _kinds(anchors, texts)
        return jnp.stack(
            [jnp.where(positive, distances, -jnp.inf), jnp.where(negative, -distances, -jnp.inf)]
        )

    return block


def _gap(farthest: Float[Array, " b"], nearest: Float[Array, " b"]) -> Float[Array, " b"]:
    """d(a, p) - d(a, n) of the largest entries of `_hardest_block`."""
    positive = jnp.where(farthest == -jnp.inf, 0.0, farthest)
    return jnp.where(nearest == -jnp.inf, 0.0, positive + nearest)


def _world_gap(own: Columns, world: World, distance: str) -> Float[Array, " b"]:
    return _gap(*world.max(_hardest_block(distance), _texts(own), _texts))


Anchor = tuple[Float[Array, " B"], Bool[Array, " B"], Bool[Array, " B"]]
"""One anchor's distances to all texts, which of them are its positives, and which its negatives."""


def _batch_all(anchor: Anchor, margin: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum over an anchor's triplets above 0, and their number."""
    distances, positive, negative = anchor
    values = distances[:, None] - distances[None, :] + margin
    active = positive[:, None] & negative[None, :] & (values > 0.0)
    return jnp.sum(jnp.where(active, values, 0.0)), jnp.sum(active.astype(jnp.float32))


def _semi_hard(anchor: Anchor, margin: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum over an anchor's positives, and their number."""
    distances, positive, negative = anchor
    farther = negative[None, :] & (distances[None, :] > distances[:, None])
    nearest = jnp.min(jnp.where(farther, distances[None, :], jnp.inf), axis=1)
    farthest = jnp.where(jnp.any(negative), jnp.max(jnp.where(negative, distances, -jnp.inf)), 0.0)
    values = jax.nn.relu(
        distances - jnp.where(jnp.any(farther, axis=1), nearest, farthest) + margin
    )
    return jnp.sum(jnp.where(positive, values, 0.0)), jnp.sum(positive.astype(jnp.float32))


TripletMining = Callable[[Anchor, float], tuple[Float[Array, ""], Float[Array, ""]]]


def _over_anchors(
    mining: TripletMining, anchors: TripletTexts, texts: TripletTexts, margin: float, distance: str
) -> tuple[Array, Array]:
    """Computes sums and counts [b] of every anchor.

    The B x B triplets of only some anchors are held at a time.
    """
    distances = distance_matrix(anchors[0], texts[0], distance)
    own, world = distances.shape
    return jax.lax.map(
        jax.checkpoint(lambda anchor: mining(anchor, margin)),
        (distances, *_kinds(anchors, texts)),
        batch_size=min(max(CHUNK // world**2, 1), own),
    )


def _mean_of_mined(
    mining: TripletMining, own: Columns, world: World, margin: float, distance: str
) -> LossResult:
    texts = jax.tree.map(world.gather, _texts(own))
    sums, counts = _over_anchors(mining, _texts(own), texts, margin, distance)
    return sums / jnp.maximum(counts, 1.0), counts, {}
