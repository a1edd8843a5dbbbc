"""Regularisers against sentence-transformers, or loops where it has none."""

import functools

import jax
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
    """The mean over as many of three columns as are asked for; the function alone is that of one column."""
    given = embeddings(3, batch)
    equals_numpy(
        getattr(regularization, name),
        lambda embeddings: np.mean([naive(texts, **arguments) for texts in embeddings[:columns]]),
        given,
        columns=columns,
        **arguments,
    )
    function = functools.partial(getattr(regularization, f"{name}_loss"), **arguments)
    alone = jax.jit(function)(given[0])
    assert float(alone) == pytest.approx(naive(given[0].astype(np.float64), **arguments), rel=1e-5)


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
def test_global_orthogonal(batch, columns, weights, given, peers, equals_torch):
    arguments = dict(zip(("mean_weight", "second_moment_weight"), weights, strict=True))
    reference = peers.GlobalOrthogonalRegularizationLoss(given, **arguments)
    equals_torch(
        regularization.global_orthogonal,
        lambda features: sum(reference(features).values()),
        embeddings(columns, batch, 8),
        **arguments,
    )


def test_global_orthogonal_function_is_the_loss():
    given = embeddings(1, 6)
    cosines = np.asarray(unit(given[0]) @ unit(given[0]).T)[~np.eye(6, dtype=bool)]
    expected = 0.5 * np.mean(cosines) ** 2 + 2.0 * max(0.0, np.mean(cosines**2) - 0.25)
    loss = functools.partial(
        regularization.global_orthogonal_loss, mean_weight=0.5, second_moment_weight=2.0
    )
    found = jax.jit(loss)(given[0])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_evenly_spread_vectors_cost_nothing():
    """The 2 D unit vectors of the axes, both ways: mean cosine -1 / (2 D - 1), and no second moment above 1 / D."""
    axes = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    assert float(jax.jit(regularization.global_orthogonal_loss)(axes)) == pytest.approx(
        (1 / 7) ** 2, rel=1e-5
    )
    assert float(jax.jit(regularization.covariance_loss)(axes)) == 0.0
    # Each dimension has two entries of size 1 among 8, so a variance of 2 / 7.
    assert float(jax.jit(functools.partial(regularization.variance_loss, gamma=0.53))(axes)) == 0.0
    assert float(jax.jit(functools.partial(regularization.variance_loss, gamma=0.54))(axes)) > 0.0
