"""Regularisers against sentence-transformers, or loops where it has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.losses import regularization


def embeddings(columns, batch, dim=4):
    return np.random.default_rng(batch).normal(size=(columns, batch, dim)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def naive_uniformity(texts, t=2.0):
    x, size = unit(texts), len(texts)
    pairs = [
        np.exp(-t * np.sum((x[i] - x[j]) ** 2)) for i in range(size) for j in range(size) if i != j
    ]
    return np.log(np.mean(pairs))


def naive_variance(texts, gamma=1.0, epsilon=1e-4):
    return np.mean(
        [max(0.0, gamma - np.sqrt(np.var(column, ddof=1) + epsilon)) for column in texts.T]
    )


def naive_covariance(texts):
    matrix, dim = np.cov(texts.T), texts.shape[1]
    return sum(matrix[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j) / dim


@pytest.mark.parametrize("batch, columns", [(2, 1), (6, 2)])
@pytest.mark.parametrize(
    "name, naive, arguments",
    [
        ("uniformity", naive_uniformity, {"t": 3.0}),
        ("variance", naive_variance, {"gamma": 1.2, "epsilon": 1e-3}),
        ("covariance", naive_covariance, {}),
    ],
)
def test_terms_of_columns(name, naive, arguments, batch, columns, equals_numpy):
    """Returns the mean over the requested number of three columns.

    One array counts as one column.
    """
    embedded = embeddings(3, batch)
    equals_numpy(
        getattr(regularization, name),
        lambda embeddings: np.mean([naive(texts, **arguments) for texts in embeddings[:columns]]),
        embedded,
        columns=columns,
        **arguments,
    )
    single = jax.jit(functools.partial(getattr(regularization, name), **arguments))(embedded[0])
    expected = naive(embedded[0].astype(np.float64), **arguments)
    np.testing.assert_allclose(single, np.full(batch, expected), rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment(alpha, equals_numpy):
    equals_numpy(
        regularization.alignment,
        lambda embeddings: np.mean(
            np.linalg.norm(unit(embeddings[0]) - unit(embeddings[1]), axis=-1) ** alpha
        ),
        embeddings(2, 5),
        alpha=alpha,
    )


@pytest.mark.parametrize(
    "batch, columns, weights", [(2, 1, (1.0, 1.0)), (7, 3, (0.5, 2.0)), (33, 2, (1.0, 1.0))]
)
def test_global_orthogonal(batch, columns, weights, torch_model, peers, equals_torch):
    arguments = dict(zip(("mean_weight", "second_moment_weight"), weights, strict=True))
    reference = peers.GlobalOrthogonalRegularizationLoss(torch_model, **arguments)
    equals_torch(
        regularization.global_orthogonal,
        lambda features: sum(reference(features).values()),
        embeddings(columns, batch, 8),
        **arguments,
    )


def test_evenly_spread_vectors_cost_nothing():
    """The vectors are the 2 D unit vectors along the axes, in both directions.

    Their mean cosine is -1 / (2 D - 1), and no second moment exceeds 1 / D.
    """
    axes = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)

    @jax.jit
    def values(axes):
        terms = (
            regularization.global_orthogonal(axes),
            regularization.covariance(axes),
            # Each dimension has two entries of size 1 among 8, so a variance of 2 / 7.
            regularization.variance(axes, gamma=0.53),
            regularization.variance(axes, gamma=0.54),
        )
        return jnp.stack(terms)[:, 0]

    orthogonal, covariance, reached, missed = map(float, values(axes))
    assert orthogonal == pytest.approx((1 / 7) ** 2, rel=1e-5)
    assert covariance == reached == 0.0 < missed
