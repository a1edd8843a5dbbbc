"""Properties of every loss except those of in-batch negatives.

They concern devices, missing texts and degenerate batches.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

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
from embed_jax.parallel.world import device_world, local_world
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
# Those that reduce over all texts of the world, whatever its form; to others its form is nothing.
REDUCING = [
    pairwise.cosent,
    pairwise.angle,
    pairwise.angle_combined,
    pairwise.contrastive_tension_in_batch,
]
REDUCING += [
    triplets.batch_hard_triplet,
    triplets.batch_hard_soft_margin_triplet,
    distillation.relational,
]
REDUCING += [regularization.uniformity, regularization.global_orthogonal]
BATCH, DIM, DEVICES = 8, 6, 4
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


def mean(loss, own, world, params, total):
    values, weights, _ = loss.on_world(own, world, params, **arguments(loss))
    return total(jnp.sum(values * weights)) / jnp.maximum(total(jnp.sum(weights)), 1e-12)


def value_alone(loss, embeddings, params, columns):
    """Returns a batch's loss on one device, tiled (references are compared with dense ones)."""
    columns = columns.replace(embeddings=embeddings)
    return mean(loss, columns, local_world(columns, "tiled", tile=3), params, lambda value: value)


@functools.cache  # so that it is compiled once for all tests
def on_one_device(loss):
    """Returns the loss on one device, with its gradients by embeddings and by parameters."""
    gradient = jax.value_and_grad(functools.partial(value_alone, loss), argnums=(0, 1))
    return jax.jit(
        lambda columns, params: gradient(columns.embeddings, params, columns),
        compiler_options=QUICKLY,
    )


def split(loss, columns, form):
    """Returns the loss with its batch split over devices, in a form of the world.

    Tiles have one candidate.
    """

    def on_device(embeddings, params, columns):
        own = columns.replace(embeddings=embeddings)
        world = dataclasses.replace(device_world(own, form, ("data",)), tile=1)
        params = lax.pcast(params, "data", to="varying")
        return mean(loss, own, world, params, lambda value: lax.psum(value, "data"))

    mesh = jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )
    whole = PartitionSpec()
    specs = columns.map_examples(lambda leaf, axis: PartitionSpec(*[None] * axis, "data"))
    arguments = specs.embeddings, whole, specs
    return jax.shard_map(on_device, mesh=mesh, in_specs=arguments, out_specs=whole)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_same_on_one_device_and_split_over_four(loss):
    columns = some_columns(loss)
    # One example is missing, and a negative of another where there are negatives.
    number = len(columns.embeddings)
    columns = without(
        columns, [(c, 5) for c in range(number)] + [(c, 2) for c in range(2, number - 1)]
    )
    params = some_params(loss)
    value, gradients = on_one_device(loss)(columns, params)
    forms = ("dense", "ring") if loss in REDUCING else ("dense",)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(columns, params):
        by_form = {
            form: jax.value_and_grad(split(loss, columns, form), argnums=(0, 1)) for form in forms
        }
        return {
            form: function(columns.embeddings, params, columns)
            for form, function in by_form.items()
        }

    for form, (value_there, gradients_there) in each(columns, params).items():
        assert float(value_there) == pytest.approx(float(value), rel=1e-6), form
        difference = jax.tree.map(
            lambda here, there: np.asarray(here) - np.asarray(there), gradients, gradients_there
        )
        assert norm(difference) <= 1e-6 * norm(gradients), form
    assert norm(gradients) > 1e-3


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_missing_example_counts_nothing(loss):
    """The value is that of the other examples, and the missing texts have no gradient."""
    columns, params = some_columns(loss), some_params(loss)
    value, (gradient, _) = on_one_device(loss)(without(columns, [(slice(None), 5)]), params)
    assert all(not np.any(column[5]) for column in gradient)
    rest = np.delete(np.arange(BATCH), 5)
    fewer = columns.map_examples(lambda leaf, axis: jnp.take(leaf, rest, axis))
    compiled = jax.jit(functools.partial(value_alone, loss), compiler_options=QUICKLY)
    value_of_rest = compiled(fewer.embeddings, params, fewer)
    assert float(value) == pytest.approx(float(value_of_rest), rel=2e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_degenerate_batches_have_finite_values_and_gradients(loss):
    columns, params = some_columns(loss), some_params(loss)
    equal = {"label": jnp.zeros(BATCH, int), "score": jnp.full_like(columns.score, 0.5)}
    cases = {
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
    for name, case in cases.items():
        value, gradients = on_one_device(loss)(case, params)
        assert np.isfinite(value), name
        assert norm(gradients) < 1e4, name
    assert float(on_one_device(loss)(cases["nothing there"], params)[0]) == 0.0


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(tree)))
