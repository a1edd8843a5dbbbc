"""Triplet losses: textbook values and sentence-transformers' values, also of partial triplets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import triplets
from embed_jax.parallel.world import local_world
from embed_jax.vectors import distance_matrix, euclidean
from embed_jax.world import make_columns

BATCH_LOSSES = [
    ("batch_all_triplet", "BatchAllTripletLoss"),
    ("batch_hard_triplet", "BatchHardTripletLoss"),
    ("batch_hard_soft_margin_triplet", "BatchHardSoftMarginTripletLoss"),
    ("batch_semi_hard_triplet", "BatchSemiHardTripletLoss"),
]


def embeddings(columns, batch):
    return np.random.default_rng(batch).normal(size=(columns, batch, 8)).astype(np.float32)


def test_textbook_values():
    anchor = jnp.zeros((3, 1))
    positive, negative = jnp.array([[0.3], [0.3], [0.5]]), jnp.array([[0.7], [0.7], [0.3]])
    expected = {0.1: [0.0, 0.0, 0.3], 0.5: [0.1, 0.1, 0.7]}
    for margin, values in expected.items():
        for distance in ("euclidean", "manhattan"):
            result = triplets.triplet_loss(
                anchor, positive, negative, margin=margin, distance=distance
            )
            np.testing.assert_allclose(result, values, atol=1e-7)
    # The same as a batch of three texts, two of one label: d(a, p) = 0.3, d(a, n) = 0.7, d(p, n) =
    # 1.
    line, label = jnp.array([[0.0], [-0.3], [0.7]]), jnp.array([0, 0, 1])
    hard = triplets.batch_hard_triplet(line, label=label, margin=0.5)
    np.testing.assert_allclose(hard, [0.1, 0.0, 0.0], atol=1e-6)
    # Triplets above 0, or pairs of anchor and positive: both of the first two texts are an anchor's
    # positive.
    for loss, number in ((triplets.batch_all_triplet, 1), (triplets.batch_semi_hard_triplet, 2)):
        columns = make_columns(line[None], label=label)
        values, weights, _ = loss.on_world(columns, local_world(columns), {}, margin=0.5)
        assert float(jnp.sum(values * weights)) == pytest.approx(0.1, rel=1e-5)
        assert float(jnp.sum(weights)) == number


@pytest.mark.parametrize(
    "batch, distance, metric_index",
    [(2, "euclidean", 0), (7, "manhattan", 1), (7, "cosine", 2), (33, "euclidean", 0)],
)
def test_given_triplets(batch, distance, metric_index, torch_model, peers, equals_torch):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric

    metric = getattr(TripletDistanceMetric, ("EUCLIDEAN", "MANHATTAN", "COSINE")[metric_index])
    margin = (1.0, 2.0, 0.3)[metric_index]
    reference = peers.TripletLoss(torch_model, distance_metric=metric, triplet_margin=margin)
    equals_torch(
        triplets.triplet,
        lambda features: reference(features, None),
        embeddings(3, batch),
        margin=margin,
        distance=distance,
    )


def test_several_negatives_are_averaged_over_those_present(equals_numpy):
    present = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]], bool)

    def naive(embeddings):
        by_anchor = []
        for i in range(4):
            negatives = [embeddings[c, i] for c in (2, 3) if present[c, i]]
            if present[:2, i].all() and negatives:
                far = [
                    np.linalg.norm(embeddings[0, i] - other)
                    for other in (embeddings[1, i], *negatives)
                ]
                by_anchor.append(np.mean([max(0.0, far[0] - other + 1.0) for other in far[1:]]))
        return np.mean(by_anchor)

    equals_numpy(
        triplets.triplet, naive, embeddings(4, 4), {"present": jnp.asarray(present)}, margin=1.0
    )


@pytest.mark.parametrize("ours, peer", BATCH_LOSSES)
@pytest.mark.parametrize(
    "label, distance",
    [
        ([0, 0], "euclidean"),  # no negative
        ([0, 1], "euclidean"),  # no positive
        ([0, 1, 0, 2, 1, 1, 3], "euclidean"),  # classes of one text
        ([0, 1, 0, 2, 1, 1, 3], "cosine"),
        (list(np.random.default_rng(0).integers(5, size=33)), "euclidean"),
    ],
)
def test_triplets_of_a_batch(ours, peer, label, distance, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    metrics = peers.BatchHardTripletLossDistanceFunction
    metric = {"euclidean": metrics.euclidean_distance, "cosine": metrics.cosine_distance}[distance]
    arguments = {} if "soft" in ours else {"margin": 0.7}
    reference = getattr(peers, peer)(torch_model, distance_metric=metric, **arguments)
    equals_torch(
        getattr(triplets, ours),
        lambda features: reference(features, torch.tensor(label)),
        embeddings(1, len(label)),
        {"label": jnp.asarray(label)},
        distance=distance,
        **arguments,
    )


@pytest.mark.parametrize("mining", ["batch_all", "batch_semi_hard"])
def test_anchors_handled_by_parts_give_the_same(mining, monkeypatch):
    texts, label = jnp.asarray(embeddings(1, 7)[0]), jnp.array([0, 1, 0, 2, 1, 1, 0])
    loss = getattr(triplets, f"{mining}_triplet")

    def value_and_gradient():  # compiled anew, since CHUNK is read while tracing
        return jax.jit(jax.value_and_grad(lambda texts: jnp.sum(loss(texts, label=label))))(texts)

    whole = value_and_gradient()
    monkeypatch.setattr(triplets, "CHUNK", 3 * 7 * 7)
    for first, second in zip(whole, value_and_gradient(), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_equal_texts_have_distance_and_gradient_zero():
    same = jnp.ones((2, 3))
    for distances in (lambda x: distance_matrix(x, x), lambda x: euclidean(x, x[::-1])):
        value, gradient = jax.jit(jax.value_and_grad(lambda x, far=distances: jnp.sum(far(x))))(
            same
        )
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_manhattan_is_no_distance_of_all_pairs():
    with pytest.raises(
        InputError,
        match="unknown distance of all pairs in a loss 'manhattan'; known: cosine, euclid",
    ):
        triplets.batch_hard_triplet(jnp.ones((2, 3)), label=jnp.arange(2), distance="manhattan")
