"""Free embeddings: what training promises, and what is possible by theory."""

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals import free_embeddings
from embed_jax.evals.free_embeddings import (
    FreeTraining,
    critical_numbers,
    document_pairs,
    fit_polynomial,
    moment_curve,
    train_free_embeddings,
)


def finds_its_pair(queries, documents):
    """Tells for each query whether its two documents have the largest scores."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    best = np.sort(np.argsort(-scores, axis=1)[:, :2], axis=1)
    return (best == document_pairs(len(documents))).all(axis=1)


def test_solved_embeddings_find_every_pair_and_are_unit_vectors():
    trained = train_free_embeddings(4, 3)
    assert trained.solved and finds_its_pair(trained.queries, trained.documents).all()
    assert (trained.queries.shape, trained.documents.shape) == ((6, 3), (4, 3))
    for vectors in (trained.queries, trained.documents):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_padding_changes_nothing(monkeypatch):
    """Sums over more zeros are in another order: float32 rounds them otherwise, for 20 steps."""
    training = FreeTraining(steps=20)
    padded = train_free_embeddings(5, 2, training=training)
    monkeypatch.setattr(free_embeddings, "PADDED_TO", 1)
    plain = train_free_embeddings(5, 2, training=training)
    assert (padded.accuracy, padded.steps) == (plain.accuracy, plain.steps)
    np.testing.assert_allclose(padded.queries, plain.queries, atol=1e-5)
    np.testing.assert_allclose(padded.documents, plain.documents, atol=1e-5)


def test_two_and_three_dimensions_hold_what_geometry_allows():
    """A polygon of 4 corners has 2 pairs without an edge, and no plane graph has 5 in all pairs."""
    told = []
    training = FreeTraining(patience=200, steps=2000)
    two, three = critical_numbers([2, 3], training=training, seeds=2, report=told.append)
    assert (two.documents, three.documents) == (3, 4)
    assert two.accuracies.keys() == {4, 5} and all(0 < a < 1 for a in two.accuracies.values())
    assert len(told) == 8 and told[0].startswith("d 2, n 4, seed 0: ")


@pytest.mark.parametrize("documents", [5, 46, 150])
def test_four_dimensions_hold_every_pair_of_any_number_of_documents(documents):
    queries, curve = moment_curve(documents)
    assert curve.shape == (documents, 4) and finds_its_pair(queries, curve).all()
    for vectors in (queries, curve):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_impossible_dimensions_and_too_few_points_are_refused():
    for dims in ([], [1, 2], [4, 3], [3, 3]):
        with pytest.raises(InputError, match="dims: expected ascending numbers from 2 up"):
            critical_numbers(dims)
    with pytest.raises(InputError, match="expected 5 dimensions or more, found 4"):
        fit_polynomial([2, 3, 4, 5], [3, 4, 8, 13])
