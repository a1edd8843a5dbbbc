"""Comparing a loss, its gradients included, with a reference on given embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def world_mean(loss, columns, params, arguments):
    """Returns the value that training minimises, on one device."""
    values, weights, _ = loss.on_world(columns, local_world(columns, "dense"), params, **arguments)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-12)


def value_and_gradients(loss, embeddings, fields, params, arguments):
    """Returns the loss and its gradients by embeddings and parameters, with strict promotion."""

    def mean(embeddings, params):
        return world_mean(loss, make_columns(embeddings, **fields), params, arguments)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        gradient = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)), compiler_options=QUICKLY)
        return gradient(jnp.asarray(embeddings, jnp.float32), params)


def assert_close(ours, reference):
    np.testing.assert_allclose(ours, reference, rtol=0.0, atol=1e-5 * np.abs(reference).max())


@pytest.fixture
def equals_torch():
    """`check(loss, reference, embeddings, fields, params, learnt, **arguments)`.

    Value and gradients agree to 1e-5 with those of torch in float64; torch's float32 differs from
    them as much.

    `reference(features)` is sentence-transformers' loss on the features that its model,
    `torch_model`, returns; `learnt()` returns torch's gradients in the form of `params`.
    """
    torch = pytest.importorskip("torch")

    def check(loss, reference, embeddings, fields=None, params=None, learnt=None, **arguments):
        columns = [
            torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in embeddings
        ]
        expected = reference([{"embedding": column} for column in columns])
        expected.backward()
        value, (gradient, by_params) = value_and_gradients(
            loss, embeddings, fields or {}, params or {}, arguments
        )
        assert float(value) == pytest.approx(expected.item(), rel=1e-5, abs=1e-12)
        assert_close(gradient, np.stack([column.grad.numpy() for column in columns]))
        if learnt is not None:
            jax.tree.map(assert_close, by_params, learnt())

    return check


@pytest.fixture
def equals_numpy():
    """`check(loss, naive, embeddings, fields, **arguments)`.

    Compares value and slopes with `naive(embeddings)` in float64.
    """

    def check(loss, naive, embeddings, fields=None, **arguments):
        value, (gradient, _) = value_and_gradients(loss, embeddings, fields or {}, {}, arguments)
        embeddings = np.asarray(embeddings, np.float64)
        assert float(value) == pytest.approx(naive(embeddings), rel=1e-5)
        slopes, step = np.zeros_like(embeddings), 1e-6
        for index in np.ndindex(*embeddings.shape):
            high, low = embeddings.copy(), embeddings.copy()
            high[index] += step
            low[index] -= step
            slopes[index] = (naive(high) - naive(low)) / (2 * step)
        assert_close(gradient, slopes)

    return check


@pytest.fixture
def torch_model():
    """A model of sentence-transformers that returns its inputs as embeddings."""
    torch = pytest.importorskip("torch")

    class Identity(torch.nn.Module):
        device = "cpu"

        def forward(self, features):
            return {"sentence_embedding": features["embedding"]}

    return Identity()


@pytest.fixture
def peers():
    """The module of sentence-transformers' losses."""
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")
