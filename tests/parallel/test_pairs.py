"""Loss and gradient of a cross-encoder are the same on any mesh and in any groups, for every loss.

As in test_devices.py, one program computes all losses, one at a time by its number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.spec import random_spec
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.registry import REGISTRY, lookup
from embed_jax.types import Batch

EXAMPLES, CANDIDATES, VOCAB = 32, 4, 64
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
# Arguments under which all parts of a loss matter.
ARGUMENTS = {
    "margin_mse": "(normalization='min_max')",
    "kl": "(teacher_temperature=0.5)",
    "binary_cross_entropy": "(pos_weight=3)",
    "list_mle": "(by_position=True)",
    "rank_net": "(k=3)",
    "lambda_rank": "(k=3, sigma=2)",
}
LOSSES = [
    name + ARGUMENTS.get(name, "")
    for name in REGISTRY["loss"]
    if "scores" in lookup("loss", name).about.needs
]


@pytest.fixture(scope="module")
def encoder():
    backbone = random_spec("tiny", vocab_size=VOCAB).backbone
    assert backbone.hidden_dropout == backbone.attention_dropout == 0.1
    return build_encoder(make_classifier(backbone), unroll=1)


def make_batch(groups: int) -> Batch:
    """Makes a batch of lists, of which some have fewer candidates; the query has no tokens."""
    rng = np.random.default_rng(0)
    present = np.ones((1 + CANDIDATES, EXAMPLES), bool)
    present[3, ::5] = present[4, ::3] = False
    sizes = rng.integers(2, 15, present.shape)
    ids: list[list[np.ndarray | None]] = [[None] * EXAMPLES]
    for here, lengths in zip(present[1:], sizes[1:], strict=True):
        ids.append(
            [
                rng.integers(1, VOCAB, length).astype(np.int32) if is_present else None
                for is_present, length in zip(here, lengths, strict=True)
            ]
        )
    tokens, order = pack_batch(ids, groups=groups, row_length=16)
    score = rng.integers(0, 4, (EXAMPLES, CANDIDATES)).astype(np.float32) / 3
    score[:, 0] = 1.0
    text_hash = rng.integers(1, 2**32, (*present.shape, 2), np.uint32)

    def deal(leaf):  # [C, B, ...] -> [G, C, E, ...]
        return np.moveaxis(leaf[:, order], 1, 0)

    return Batch({"encoder": tokens}, deal(present), deal(text_hash), order, score=score[order])


@functools.cache
def compiled(encoder, devices, dropout):
    """Compiles one program for value and gradient of any of LOSSES, chosen by its number."""
    mesh = make_mesh(devices)
    losses = [build_loss(name, {"similarity": "logit", "temperature": 1.0}) for name in LOSSES]

    def loss(own, world, params):
        results = [lambda f=f: f.on_world(own, world, params)[:2] for f in losses]
        values, weights = lax.switch(own.label[0], results)
        return values, weights, {}

    def step(params, batch, key, number):
        objective = global_loss(encoder, loss, mesh)
        batch = batch.replace(label=jnp.full(batch.record.shape, number))
        function = jax.value_and_grad(objective, has_aux=True)
        return function({"encoder": params, "loss": {}}, batch, key if dropout else None, {})

    return jax.jit(step, compiler_options=QUICKLY), mesh


@pytest.fixture(scope="module")
def gradient_of(encoder):
    """Returns (loss, gradient as one vector) of a loss by its position in LOSSES."""
    params = encoder.init(jax.random.key(0))
    # Pairs are told apart, else the gradients of a list's candidates cancel, and what is left is
    # known to few digits of float32.
    params["backbone"]["embeddings"]["token"] *= 20.0
    params["heads"] = jax.tree.map(lambda leaf: 5.0 * leaf, params["heads"])

    def gradient_of(number, devices=1, groups=16, dropout=True):
        step, mesh = compiled(encoder, devices, dropout)
        batch = split_groups(make_batch(groups), mesh)
        (loss, _), gradient = step(params, batch, jax.random.key(1), number)
        leaves = jax.tree.leaves(gradient["encoder"])
        return float(loss), np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])

    return gradient_of


def assert_same(result, expected):
    """Checks that loss and gradient agree to 1e-6 and are not zero."""
    assert np.isfinite(expected[0]) and np.linalg.norm(expected[1]) > 1e-2
    assert abs(result[0] - expected[0]) <= 1e-6 * abs(expected[0])
    assert np.linalg.norm(result[1] - expected[1]) <= 1e-6 * np.linalg.norm(expected[1])


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_devices_do_not_matter(gradient_of, devices):
    """Runs 16 groups with dropout."""
    assert len(LOSSES) >= 10
    for number in range(len(LOSSES)):
        assert_same(gradient_of(number, devices), gradient_of(number))


@pytest.mark.parametrize(
    ("devices", "groups"), [(1, 16), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_groups_do_not_matter(gradient_of, devices, groups):
    """Gradient caching is exact: without dropout, groups equal one big batch."""
    for number in range(len(LOSSES)):
        assert_same(
            gradient_of(number, devices, groups, dropout=False),
            gradient_of(number, 1, 1, dropout=False),
        )
