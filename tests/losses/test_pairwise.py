"""Losses of labelled and scored pairs against sentence-transformers, or loops where it has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import pairwise
from embed_jax.parallel.world import local_world
from embed_jax.vectors import normalize
from embed_jax.world import make_columns

BATCHES = [2, 7, 33]


def embeddings(batch, dim=8):
    return np.random.default_rng(batch).normal(size=(2, batch, dim)).astype(np.float32)


def labels(batch):
    return np.random.default_rng(batch + 1).permutation(np.arange(batch) % 2)


def scores(batch):
    """Returns scores with ties."""
    return np.random.default_rng(batch + 2).permutation(np.arange(batch) % 6 / 5).astype(np.float32)


def cos(x, y):
    return x @ y / np.sqrt((x @ x) * (y @ y))


@pytest.mark.parametrize(
    "batch, distance, metric, margin",
    [
        *((batch, "cosine", "COSINE_DISTANCE", 0.5) for batch in BATCHES),
        (7, "euclidean", "EUCLIDEAN", 4.0),
        (7, "manhattan", "MANHATTAN", 9.0),
    ],
)
@pytest.mark.parametrize("online", [False, True])
def test_contrastive(batch, distance, metric, margin, online, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric

    label = labels(batch)
    peer = peers.OnlineContrastiveLoss if online else peers.ContrastiveLoss
    reference = peer(
        torch_model, distance_metric=getattr(SiameseDistanceMetric, metric), margin=margin
    )
    loss = pairwise.online_contrastive if online else pairwise.contrastive
    # Positives twice as long, so that some pairs of each kind are hard.
    given_embeddings = embeddings(batch) * (1.0 + label.astype(np.float32))[None, :, None]
    equals_torch(
        loss,
        lambda features: reference(features, torch.tensor(label)),
        given_embeddings,
        {"label": jnp.asarray(label)},
        margin=margin,
        distance=distance,
    )


@pytest.mark.parametrize("only", [0, 1])
def test_online_contrastive_of_one_kind_of_pairs(only, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    label = np.full(7, only)
    reference = peers.OnlineContrastiveLoss(torch_model, margin=1.5)
    equals_torch(
        pairwise.online_contrastive,
        lambda features: reference(features, torch.tensor(label)),
        embeddings(7),
        {"label": jnp.asarray(label)},
        margin=1.5,
    )


@pytest.mark.parametrize("batch, dim", [(2, 8), (7, 8), (7, 7), (33, 8)])
@pytest.mark.parametrize("ours, peer", [("cosent", "CoSENTLoss"), ("angle", "AnglELoss")])
def test_cosent_and_angle(batch, ours, peer, dim, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    score = scores(batch)
    reference = getattr(peers, peer)(torch_model)
    equals_torch(
        getattr(pairwise, ours),
        lambda features: reference(features, torch.tensor(score)),
        embeddings(batch, dim),
        {"score": jnp.asarray(score)[:, None]},
    )


def test_cosent_far_below_float32_resolution_is_not_zero():
    """Two pairs in the right order with cosines 1 and 0: log(1 + e^-20) = 2.06e-9."""
    first, second = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    values = pairwise.cosent(first, second, score=jnp.array([1.0, 0.0]))
    assert float(values[0]) == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-5)


def test_angle_is_invariant_to_lengths_and_follows_the_complex_quotient():
    u, v = np.random.default_rng(0).normal(size=(2, 6))
    z, w = u[:3] + 1j * u[3:], v[:3] + 1j * v[3:]
    quotient = (
        np.sum(z * np.conj(w)) / np.sum(np.abs(w) ** 2) * np.linalg.norm(w) / np.linalg.norm(z)
    )
    expected = abs(quotient.real + quotient.imag)
    for first, second in ((u, v), (3 * u, 0.2 * v)):
        result = jax.jit(pairwise.angle_similarity)(
            jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
        )
        assert float(result) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [2, 7])
def test_angle_combined(batch, equals_numpy):
    score = (scores(batch) > 0.5).astype(np.float32)
    weights, scale, angle_scale = (0.7, 2.0, 1.3), 4.0, 3.0

    def angle(x, y):
        half = len(x) // 2
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        return abs(x @ y + x[half:] @ y[:half] - x[:half] @ y[half:])

    def ranking(similarity, tau):
        total = 1.0
        for i in range(batch):
            for j in range(batch):
                if score[i] > score[j]:
                    total += np.exp(tau * (similarity[j] - similarity[i]))
        return np.log(total)

    def naive(embeddings):
        cosines = [cos(*pair) for pair in zip(*embeddings, strict=True)]
        angles = [angle(*pair) for pair in zip(*embeddings, strict=True)]
        texts, in_batch = embeddings.reshape(2 * batch, -1), 0.0
        for i in range(2 * batch):
            if score[i % batch] == 1.0:
                partner = (i + batch) % (2 * batch)
                exps = {
                    j: np.exp(scale * cos(texts[i], texts[j])) for j in range(2 * batch) if j != i
                }
                in_batch -= np.log(exps[partner] / sum(exps.values())) / (2 * batch)
        return (
            weights[0] * ranking(cosines, scale)
            + weights[1] * in_batch
            + weights[2] * ranking(angles, angle_scale)
        )

    equals_numpy(
        pairwise.angle_combined,
        naive,
        embeddings(batch, 4),
        {"score": jnp.asarray(score)[:, None]},
        cosine_weight=weights[0],
        in_batch_weight=weights[1],
        angle_weight=weights[2],
        scale=scale,
        angle_scale=angle_scale,
    )


def test_angle_combined_masks_repeated_texts():
    """Two examples have the same first text and the same second text.

    Neither is the other's negative, so the loss is 0.
    """
    columns = make_columns(jnp.asarray(embeddings(2)), score=jnp.ones((2, 1)))
    columns = columns.replace(text_hash=jnp.repeat(columns.text_hash[:, :1], 2, axis=1))

    @functools.partial(jax.jit, static_argnums=1)
    def values(columns, mask):
        return pairwise.angle_combined.on_world(
            columns, local_world(columns), {}, mask_duplicates=mask
        )[0]

    np.testing.assert_array_equal(values(columns, True), [0.0, 0.0])
    assert float(values(columns, False).sum()) > 0.0


@pytest.mark.parametrize("batch", BATCHES)
def test_cosine_mse(batch, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    score = scores(batch)
    reference = peers.CosineSimilarityLoss(torch_model)
    equals_torch(
        pairwise.cosine_mse,
        lambda features: reference(features, torch.tensor(score)),
        embeddings(batch),
        {"score": jnp.asarray(score)[:, None]},
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_contrastive_tension(batch, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    label = labels(batch)
    reference = peers.ContrastiveTensionLoss(torch_model)
    equals_torch(
        pairwise.contrastive_tension,
        lambda features: reference(features, torch.tensor(label)),
        embeddings(batch),
        {"label": jnp.asarray(label)},
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_contrastive_tension_in_batch(batch, torch_model, peers, equals_torch):
    """The peer encodes one list of texts twice, by two models.

    Here each model returns one column.
    """
    torch = pytest.importorskip("torch")

    class Column(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, columns):
            return {"sentence_embedding": columns[self.number]["embedding"]}

    reference = peers.ContrastiveTensionLossInBatchNegatives(torch_model)
    reference.model1, reference.model2 = Column(0), Column(1)
    equals_torch(
        pairwise.contrastive_tension_in_batch,
        lambda features: reference([features], None),
        embeddings(batch),
        params=pairwise.init_log_scale(8, jax.random.key(0)),
        learnt=lambda: {"log_scale": reference.logit_scale.grad.numpy()},
    )


def test_an_unknown_distance_is_one_line():
    pair = jnp.ones((1, 2))
    with pytest.raises(
        InputError, match="unknown distance of a loss 'cosin' .did you mean 'cosine'.*manhattan"
    ):
        pairwise.contrastive_loss(pair, pair, jnp.ones(1, int), distance="cosin")


def test_a_zero_vector_has_no_gradient():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(normalize(x) * np.arange(3.0))))(
        np.zeros(3, np.float32)
    )
    np.testing.assert_array_equal(gradient, np.zeros(3))
