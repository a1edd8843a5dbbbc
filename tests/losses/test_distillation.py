"""Distillation losses against sentence-transformers, or loops where it has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import distillation, pairwise
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns


def embeddings(columns, batch, dim=8, seed=0):
    return np.random.default_rng(batch + seed).normal(size=(columns, batch, dim)).astype(np.float32)


def scores(columns, batch):
    return np.random.default_rng(batch).normal(size=(batch, columns - 1)).astype(np.float32)


def values_of(loss, columns):
    return loss.on_world(columns, local_world(columns), {})[0]


@pytest.mark.parametrize("batch, columns", [(2, 1), (7, 2), (33, 3)])
@pytest.mark.parametrize(
    "ours, theirs", [("embedding_mse", "MSELoss"), ("embedding_cosine", "EmbedDistillLoss")]
)
def test_teacher_embeddings(batch, columns, ours, theirs, given, peers, equals_torch):
    torch = pytest.importorskip("torch")
    teacher = embeddings(columns, batch, seed=1)
    reference = getattr(peers, theirs)(given)
    equals_torch(
        getattr(distillation, ours),
        lambda features: reference(features, torch.tensor(teacher).transpose(0, 1)),
        embeddings(columns, batch),
        {"teacher": jnp.asarray(teacher)},
    )


@pytest.mark.parametrize("batch, columns", [(2, 3), (7, 5), (33, 3)])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margin_mse(batch, columns, similarity, given, peers, equals_torch):
    torch = pytest.importorskip("torch")
    from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

    score = scores(columns, batch)
    reference = peers.MarginMSELoss(
        given, {"dot": pairwise_dot_score, "cosine": pairwise_cos_sim}[similarity]
    )
    equals_torch(
        distillation.margin_mse,
        lambda features: reference(features, torch.tensor(score, dtype=torch.float64)),
        embeddings(columns, batch),
        {"score": jnp.asarray(score)},
        similarity=similarity,
    )


@pytest.mark.parametrize("batch, columns, temperature", [(2, 3, 1.0), (7, 5, 2.0), (33, 3, 0.5)])
def test_kl(batch, columns, temperature, given, peers, equals_torch):
    torch = pytest.importorskip("torch")
    score = scores(columns, batch)
    reference = peers.DistillKLDivLoss(given, temperature=temperature)
    equals_torch(
        distillation.kl,
        lambda features: reference(features, torch.tensor(score, dtype=torch.float64)),
        embeddings(columns, batch),
        {"score": jnp.asarray(score)},
        temperature=temperature,
    )


def test_kl_of_fewer_candidates_is_that_of_those_alone():
    score, given_embeddings = jnp.asarray(scores(4, 1)), jnp.asarray(embeddings(4, 1))
    whole = make_columns(given_embeddings[:3], score=score[:, :2])
    masked = make_columns(
        given_embeddings, score=score, present=jnp.array([[True], [True], [True], [False]])
    )
    values = [
        jax.jit(values_of, static_argnums=0)(distillation.kl, columns)
        for columns in (whole, masked)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("batch, columns", [(2, 2), (5, 4)])
def test_score_mse(batch, columns, equals_numpy):
    score = scores(columns, batch)

    def naive(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
        return np.mean(
            [(unit[0, i] @ unit[1 + k, i] - score[i, k]) ** 2 for i, k in np.ndindex(*score.shape)]
        )

    equals_numpy(
        distillation.score_mse, naive, embeddings(columns, batch, 4), {"score": jnp.asarray(score)}
    )


def test_score_mse_of_pairs_is_cosine_mse():
    columns = make_columns(jnp.asarray(embeddings(2, 5)), score=jnp.asarray(scores(2, 5)))
    one, other = (
        loss.on_world(columns, local_world(columns), {})[0]
        for loss in (distillation.score_mse, pairwise.cosine_mse)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch, columns", [(2, 1), (4, 2)])
def test_relational(batch, columns, equals_numpy):
    teacher = embeddings(columns, batch, dim=5, seed=1)

    def cosines(embeddings):
        texts = embeddings.reshape(columns * batch, -1)
        return [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in texts] for x in texts]

    def naive(embeddings):
        return np.mean(
            (np.array(cosines(embeddings)) - np.array(cosines(teacher.astype(np.float64)))) ** 2
        )

    student = embeddings(columns, batch, dim=3)
    equals_numpy(distillation.relational, naive, student, {"teacher": jnp.asarray(teacher)})


def test_wrong_sizes_are_one_line():
    columns = make_columns(
        jnp.ones((3, 2, 8)), teacher=jnp.ones((3, 2, 16)), score=jnp.ones((2, 1))
    )
    for name in ("embedding_mse", "embedding_cosine"):
        expected = f"the teacher of the loss {name}: expected embeddings of size 8, found 16"
        with pytest.raises(InputError, match=expected):
            getattr(distillation, name).on_world(columns, local_world(columns), {})
    for name in ("margin_mse", "kl", "score_mse"):
        expected = (
            f"scores of the loss {name}: expected 2 an example, one for each candidate, found 1"
        )
        with pytest.raises(InputError, match=expected):
            getattr(distillation, name).on_world(columns, local_world(columns), {})
