"""Free embeddings: the most documents of which every pair can be found, with no encoder between.

After Weller et al. (2025), "On the Theoretical Limitations of Embedding-Based Retrieval". Queries
and documents are unit vectors that are trained themselves, on the very judgements that they are
scored by: one query for each pair of n documents, right if these two have the largest dot products.
The critical n of a dimension is the largest n for which training gets every query right.

It says what gradient descent finds, not what a dimension can hold. In 2 and 3 dimensions the two
are equal, 3 and 4 documents: two documents can be first only if they share an edge of the convex
hull, and of more points not all pairs do. From 4 dimensions on any number of documents is possible,
see `moment_curve`, with margins that shrink as n grows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from embed_jax.errors import InputError
from embed_jax.losses.listwise import list_softmax_loss
from embed_jax.scores import unit_length

DEGREE = 3  # of the polynomial that the paper fits to critical n
PADDED_TO = 8  # documents


class FreeTraining(NamedTuple):
    """Settings of the training of free embeddings; the defaults are those of the paper's code.

    Attributes:
        learning_rate: of Adam; vectors are brought back to length 1 after each step.
        temperature: of InfoNCE over all documents.
        steps: at most this many, each on all queries.
        patience: steps without a lower loss after which training ends.
        min_delta: by how much a loss must be lower to count.
    """

    learning_rate: float = 0.01
    temperature: float = 0.1
    steps: int = 100_000
    patience: int = 1000
    min_delta: float = 1e-5


@dataclasses.dataclass(frozen=True)
class FreeEmbeddings:
    """Embeddings after training.

    Attributes:
        queries: a unit vector for each pair of documents, in the order of `document_pairs`.
        documents: a unit vector for each.
        accuracy: the largest share of queries that were right, over all steps; training ends at 1.
        steps: how many were taken.
    """

    queries: Float[np.ndarray, "Q d"]
    documents: Float[np.ndarray, "n d"]
    accuracy: float
    steps: int

    @property
    def solved(self) -> bool:
        """Tells whether every query finds its two documents first."""
        return self.accuracy == 1.0


def document_pairs(documents: int) -> Int[np.ndarray, "Q 2"]:
    """Returns the pairs of documents, one for each query.

    >>> document_pairs(3).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    return np.stack(np.triu_indices(documents, 1), axis=1)


def train_free_embeddings(
    documents: int, dim: int, *, seed: int = 0, training: FreeTraining | None = None
) -> FreeEmbeddings:
    """Trains free embeddings until every query is right, the loss falls no more, or steps end.

    The loss is InfoNCE, -1/2 sum_{p in pair} log softmax(q . D / temperature)_p, over all queries.

    Args:
        documents: n, at least 3.
        dim: d.
        seed: of the first vectors, drawn evenly from the sphere.
        training: how they are trained; None: as in the paper's code.
    """
    pairs = document_pairs(documents)
    shapes = (_padded(documents) * (_padded(documents) - 1) // 2, dim), (_padded(documents), dim)
    rng = np.random.default_rng([seed, documents, dim])
    vectors = tuple(np.zeros(shape, np.float32) for shape in shapes)
    for array, count in zip(vectors, (len(pairs), documents), strict=True):
        array[:count] = unit_length(rng.normal(size=(count, dim)))
    relevant = np.zeros((len(vectors[0]), len(vectors[1])), bool)
    np.put_along_axis(relevant[: len(pairs)], pairs, True, axis=1)
    end = _train(vectors, relevant, len(pairs), documents, training or FreeTraining())
    queries, trained_documents = jax.device_get(end.vectors)
    return FreeEmbeddings(
        queries[: len(pairs)],
        trained_documents[:documents],
        int(end.correct) / len(pairs),
        int(end.steps),
    )


class _State(NamedTuple):
    vectors: tuple[Array, Array]
    optimizer: optax.OptState
    correct: Array  # the most queries that were right
    lowest: Array  # loss
    stale: Array  # steps since then
    steps: Array


@jax.jit
def _train(
    vectors: tuple[Float[Array, "Q d"], Float[Array, "N d"]],
    relevant: Bool[Array, "Q N"],
    queries: Int[Array, ""],
    documents: Int[Array, ""],
    training: FreeTraining,
) -> _State:
    """Trains the first `queries` and `documents` of padded arrays."""
    is_query = jnp.arange(len(relevant)) < queries
    is_document = jnp.arange(relevant.shape[1]) < documents
    labels, present = relevant.astype(jnp.float32), jnp.broadcast_to(is_document, relevant.shape)
    optimizer = optax.adam(training.learning_rate)

    def loss(vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        scores = jnp.matmul(vectors[0], vectors[1].T, precision="highest")
        values = list_softmax_loss(scores / training.temperature, labels, present).values
        least = jnp.min(scores, axis=1, where=relevant, initial=jnp.inf)
        others = jnp.max(scores, axis=1, where=present & ~relevant, initial=-jnp.inf)
        correct = jnp.sum((least > others) & is_query)
        return jnp.sum(jnp.where(is_query, values, 0.0)) / queries, correct

    def going_on(state: _State) -> Array:
        undecided = (state.stale < training.patience) & (state.steps < training.steps)
        return undecided & (state.correct < queries)

    def step(state: _State) -> _State:
        (value, correct), gradient = jax.value_and_grad(loss, has_aux=True)(state.vectors)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        moved = jax.tree.map(_normalize, optax.apply_updates(state.vectors, updates))
        solved = correct == queries  # vectors that are right stay as they are
        lower = value < state.lowest - training.min_delta
        return _State(
            jax.tree.map(lambda old, new: jnp.where(solved, old, new), state.vectors, moved),
            optimizer_state,
            jnp.maximum(state.correct, correct),
            jnp.where(lower, value, state.lowest),
            jnp.where(lower, 0, state.stale + 1),
            state.steps + 1,
        )

    zero = jnp.array(0)
    start = _State(vectors, optimizer.init(vectors), zero, jnp.array(jnp.inf), zero, zero)
    return lax.while_loop(going_on, step, start)


def _padded(documents: int) -> int:
    """Returns the next multiple of PADDED_TO: few shapes, hence few compilations."""
    return -(-documents // PADDED_TO) * PADDED_TO


def _normalize(vectors: Float[Array, "N d"]) -> Float[Array, "N d"]:
    """Brings vectors to length 1; those of padding stay 0."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class CriticalNumber:
    """The critical n of a dimension.

    Attributes:
        dim: d.
        documents: the critical n.
        accuracies: of every n that was tried, the share of queries that training got right, of the
            best seed.
    """

    dim: int
    documents: int
    accuracies: Mapping[int, float]


def critical_numbers(
    dims: Sequence[int],
    *,
    seeds: int = 1,
    failures: int = 2,
    training: FreeTraining | None = None,
    report: Callable[[str], None] | None = None,
) -> list[CriticalNumber]:
    """Finds the largest n of which every pair can be found: n goes up until training fails.

    The first n of a dimension is one above what is known to be possible: d + 1, the corners of a
    simplex, and what fewer dimensions hold.

    >>> training = FreeTraining(patience=100)
    >>> [number.documents for number in critical_numbers([2, 3], failures=1, training=training)]
    [3, 4]

    Args:
        dims: dimensions, ascending, at least 2.
        seeds: an n is possible if training succeeds from one of this many starts.
        failures: how many n in a row have to fail, since a larger n may succeed by chance.
        training: how embeddings are trained; None: as in the paper's code.
        report: is told of each training.

    Raises:
        InputError: for dimensions below 2, or in another order.
    """
    if min(dims, default=0) < 2 or sorted(set(dims)) != list(dims):
        raise InputError(f"dims: expected ascending numbers from 2 up, found {list(dims)}")
    critical, results = 0, []
    for dim in dims:
        critical = max(critical, dim + 1)
        number = critical + 1
        accuracies: dict[int, float] = {}
        while number - critical <= failures:
            accuracies[number] = 0.0
            for seed in range(seeds):
                trained = train_free_embeddings(number, dim, seed=seed, training=training)
                accuracies[number] = max(accuracies[number], trained.accuracy)
                if report is not None:
                    right = f"{trained.accuracy:.2%} of queries right"
                    report(f"d {dim}, n {number}, seed {seed}: {right}, {trained.steps:,} steps")
                if trained.solved:
                    critical = number
                    break
            number += 1
        results.append(CriticalNumber(dim, critical, accuracies))
    return results


def fit_polynomial(
    dims: Sequence[int], numbers: Sequence[int], degree: int = DEGREE
) -> tuple[list[float], float]:
    """Fits critical n as a polynomial of d by least squares.

    >>> coefficients, r_squared = fit_polynomial([1, 2, 3, 4, 5], [2, 9, 28, 65, 126])
    >>> print(np.abs(coefficients).round(6).tolist(), round(r_squared, 6))
    [1.0, 0.0, 0.0, 1.0] 1.0

    Returns:
        The coefficients, the constant first, and R squared.

    Raises:
        InputError: for no more points than coefficients, which any numbers would fit.
    """
    if len(dims) < degree + 2:
        raise InputError(f"expected {degree + 2} dimensions or more, found {len(dims)}")
    x, y = np.asarray(dims, np.float64), np.asarray(numbers, np.float64)
    coefficients = np.polynomial.Polynomial.fit(x, y, degree).convert().coef
    left = y - np.polynomial.polynomial.polyval(x, coefficients)
    return coefficients.tolist(), float(1 - left @ left / np.sum((y - y.mean()) ** 2))


def moment_curve(documents: int) -> tuple[Float[np.ndarray, "Q 4"], Float[np.ndarray, "n 4"]]:
    """Returns unit vectors of 4 numbers that find every pair of any number of documents.

    Documents stand on the curve (cos t, sin t, cos 2t, sin 2t) / sqrt(2). The query of the pair at
    a and b is -(1 - cos(t - a)) (1 - cos(t - b)) without its constant, scaled: a function of the
    curve's coordinates which is largest at a and b only. So the points are the corners of a cyclic
    polytope, every two of which share an edge (Gale 1963).

    >>> queries, documents = moment_curve(46)
    >>> best = np.argsort(-queries @ documents.T, axis=1)[:, :2]
    >>> bool((np.sort(best, axis=1) == document_pairs(46)).all())
    True

    Returns:
        The queries, in the order of `document_pairs`, and the documents.
    """
    angles = 2 * np.pi * np.arange(documents) / documents
    pairs = angles[document_pairs(documents)]
    a, b = pairs[:, 0], pairs[:, 1]
    # cos(t - a) cos(t - b) = (cos(2t - a - b) + cos(a - b)) / 2
    queries = np.stack(
        [
            np.cos(a) + np.cos(b),
            np.sin(a) + np.sin(b),
            -np.cos(a + b) / 2,
            -np.sin(a + b) / 2,
        ],
        axis=1,
    )
    curve = [np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)]
    return unit_length(queries), unit_length(np.stack(curve, axis=1))
