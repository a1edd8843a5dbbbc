"""Properties of every loss except those of in-batch negatives.

They concern missing texts and degenerate batches; tests/test_promises.py splits all losses over
devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.losses import (
    classification,
    distillation,
    listwise,
    pairwise,
    pointwise,
    ranking,
    regularization,
    sparsity,
    triplets,
)
from embed_jax.losses.base import Loss
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns

MODULES = (
    *(pairwise, triplets, classification, distillation),
    *(pointwise, listwise, ranking, regularization, sparsity),
)
LOSSES = [
    function
    for module in MODULES
    for function in vars(module).values()
    if isinstance(function, Loss)
]
BATCH, DIM = 8, 6
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
ARGUMENTS = {"margin": 0.6, "distance": "cosine"}  # small enough for distances on either side


def arguments(loss):
    return {name: value for name, value in ARGUMENTS.items() if name in loss.parameters}


def some_columns(loss, batch=BATCH):
    """Returns random columns with everything that losses need.

    They are off centre, so that means are not rounding errors.
    """
    rng = np.random.default_rng(0)
    least, most = loss.about.columns
    number = most or least + 1
    width = 1 if "score" in loss.about.needs else number - 1
    same_size = loss is not distillation.relational
    normal = [
        rng.normal(0.5, size=size).astype(np.float32)
        for size in ((number, batch, DIM), (number, batch, DIM - 1 + same_size))
    ]
    return make_columns(
        normal[0],
        label=rng.integers(2, size=batch),
        score=(rng.integers(4, size=(batch, width)) / 3).astype(np.float32),
        teacher=normal[1],
    )


def without(columns, missing):
    """Returns the columns without the texts (column, example) in `missing`."""
    present = np.array(columns.present)
    for place in missing:
        present[place] = False
    return columns.replace(present=jnp.asarray(present))


def some_params(loss):
    return loss.init(DIM, jax.random.key(0))


def value_alone(loss, embeddings, params, columns):
    """Returns a batch's loss, tiled (references are compared with dense ones)."""
    own = columns.replace(embeddings=embeddings)
    world = local_world(own, "tiled", tile=3)
    values, weights, _ = loss.on_world(own, world, params, **arguments(loss))
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-12)


def cases_of(loss):
    columns = some_columns(loss)
    equal = {"label": jnp.zeros(BATCH, int), "score": jnp.full_like(columns.score, 0.5)}
    return {
        "a missing example": without(columns, [(slice(None), 5)]),
        "zero vectors": columns.replace(
            embeddings=jax.tree.map(jnp.zeros_like, columns.embeddings)
        ),
        "equal vectors": columns.replace(
            embeddings=jax.tree.map(jnp.ones_like, columns.embeddings)
        ),
        "one class, equal scores": columns.replace(**equal),
        "one class of negatives": columns.replace(label=jnp.ones(BATCH, int)),
        "a class for each": columns.replace(
            label=jnp.arange(BATCH) % (3 if "num_labels" in loss.parameters else BATCH)
        ),
        "nothing there": without(columns, [(slice(None), slice(None))]),
        "one example": without(columns, [(slice(None), slice(1, None))]),
    }


@functools.cache
def results():
    """Returns {case: {loss: (value, gradients by embeddings and parameters)}}.

    The time to compile a program grows faster than its size, so each has a few losses.
    """
    params = {loss.name: some_params(loss) for loss in LOSSES}
    cases = {loss.name: cases_of(loss) for loss in LOSSES}

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def every(columns):
        def of(loss):
            gradient = jax.value_and_grad(functools.partial(value_alone, loss), argnums=(0, 1))
            own = columns[loss.name]
            return gradient(own.embeddings, params[loss.name], own)

        return {loss.name: of(loss) for loss in LOSSES if loss.name in columns}

    parts = [list(cases)[start : start + 6] for start in range(0, len(cases), 6)]
    return {
        case: {
            name: result
            for part in parts
            for name, result in every({name: cases[name][case] for name in part}).items()
        }
        for case in cases_of(LOSSES[0])
    }


@functools.cache
def values_of_the_rest():
    """Returns {loss: value} of batches without the example that is missing."""
    rest = np.delete(np.arange(BATCH), 5)

    def fewer(loss):
        columns = some_columns(loss)
        return columns.map_examples(lambda leaf, axis: jnp.take(leaf, rest, axis))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def every(columns):
        return {
            loss.name: value_alone(
                loss, columns[loss.name].embeddings, some_params(loss), columns[loss.name]
            )
            for loss in LOSSES
        }

    return every({loss.name: fewer(loss) for loss in LOSSES})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_missing_example_counts_nothing(loss):
    """The value is that of the other examples, and the missing texts have no gradient."""
    value, (gradient, _) = results()["a missing example"][loss.name]
    assert all(not np.any(column[5]) for column in gradient)
    assert float(value) == pytest.approx(float(values_of_the_rest()[loss.name]), rel=2e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_degenerate_batches_have_finite_values_and_gradients(loss):
    for case, of_losses in results().items():
        value, gradients = of_losses[loss.name]
        assert np.isfinite(value), case
        assert norm(gradients) < 1e4, case
    assert float(results()["nothing there"][loss.name][0]) == 0.0


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(tree)))
