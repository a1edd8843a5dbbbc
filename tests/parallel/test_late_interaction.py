"""Loss and gradient of late interaction are the same on any mesh, in any groups and forms.

The reference is one device and one group without dropout, all pairs held at once. One program
computes all losses, one at a time by its number. tests/losses/test_scores.py has the same on ready
embeddings.

experiments/README.md has the table of what is refused, and why.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from embed_jax.data.pack import UNPOOLED, UNSEEN, pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.towers import two_sides
from embed_jax.losses import in_batch
from embed_jax.losses.base import bind
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.types import Batch
from embed_jax.xtr import xtr

EXAMPLES, COLUMNS, VOCAB, LENGTHS = 16, 3, 64, (6, 12)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
LOSSES = (
    "info_nce(symmetric=True)",
    "kl(teacher_temperature=1, normalization='min_max', temperature=0.25)",
    "matryoshka(margin_mse, dims='8,4')",
    bind(in_batch.info_nce, similarity=xtr(32), temperature=0.2),  # of some 200 tokens
)
FORMS = ("dense", "tiled", "ring")


@pytest.fixture(scope="module")
def encoder():
    backbone = random_spec("tiny", vocab_size=VOCAB).backbone
    heads = (Dense(backbone.hidden_size, 8, bias=False, activation="identity"), Normalize())
    spec = EncoderSpec(backbone, "", heads)
    sides = [build_encoder(spec, unroll=1, vectors_per_text=length) for length in LENGTHS]
    return two_sides(*sides)


def make_batch(groups: int) -> Batch:
    """Makes a batch of queries that unseen tokens expand, and documents with skipped tokens."""
    rng = np.random.default_rng(0)
    present = np.ones((COLUMNS, EXAMPLES), bool)
    present[2, ::5] = False
    columns, marks = [], []
    for column in range(COLUMNS):
        sizes = rng.integers(2, LENGTHS[column > 0] + 1, EXAMPLES)
        sizes = sizes if column else np.full(EXAMPLES, LENGTHS[0])
        ids = [rng.integers(1, VOCAB, size).astype(np.int32) for size in sizes]
        if column:
            own = [(text % 5 == 0) * np.int32(UNPOOLED) for text in ids]
        else:
            real = rng.integers(2, LENGTHS[0] + 1, EXAMPLES)
            own = [(np.arange(LENGTHS[0]) >= size) * np.int32(UNSEEN) for size in real]
        columns.append([text if there else None for text, there in zip(ids, present[column])])  # noqa: B905
        marks.append([mark if there else None for mark, there in zip(own, present[column])])  # noqa: B905
    documents, order = pack_batch(columns[1:], marks=marks[1:], groups=groups, row_length=24)
    queries, _ = pack_batch(columns[:1], marks=marks[:1], groups=groups, row_length=24, order=order)
    score = rng.random((EXAMPLES, COLUMNS - 1)).astype(np.float32)
    text_hash = rng.integers(1, 2**32, (*present.shape, 2), np.uint32)

    def deal(leaf):  # [C, B, ...] -> [G, C, E, ...]
        return np.moveaxis(leaf[:, order], 1, 0)

    tokens = {"encoder": documents, "query": queries}
    return Batch(tokens, deal(present), deal(text_hash), order, score=score[order])


@functools.cache
def compiled(encoder, devices, form):
    """Compiles one program for value and gradient of any of LOSSES, chosen by its number."""
    mesh = make_mesh(devices)
    arguments = {"similarity": "maxsim", "temperature": 1.0}
    losses = [*(build_loss(name, arguments) for name in LOSSES[:-1]), LOSSES[-1]]

    def loss(own, world, params):
        results = [lambda f=f: f.on_world(own, world, params)[:2] for f in losses]
        values, weights = lax.switch(own.label[0], results)
        return values, weights, {}

    def step(params, batch, number):
        objective = global_loss(encoder, loss, mesh, form=form)
        batch = batch.replace(label=jnp.full(batch.record.shape, number))
        function = jax.value_and_grad(objective, has_aux=True)
        return function({"encoder": params, "loss": {}}, batch, None, {})

    return jax.jit(step, compiler_options=QUICKLY), mesh


@pytest.fixture(scope="module")
def gradient_of(encoder):
    """Returns (loss, gradient as one vector) of a loss by its position in LOSSES."""
    params = encoder.init(jax.random.key(0))

    @functools.cache
    def gradient_of(number, devices=1, groups=1, form="dense"):
        step, mesh = compiled(encoder, devices, form)
        (loss, _), gradient = step(params, split_groups(make_batch(groups), mesh), number)
        leaves = jax.tree.leaves(gradient["encoder"])
        return float(loss), np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])

    return gradient_of


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("groups", [4, 8])
def test_devices_groups_and_forms_do_not_matter(gradient_of, devices, groups, form):
    for number in range(len(LOSSES)):
        loss, gradient = gradient_of(number, devices, groups, form)
        expected, expected_gradient = gradient_of(number)
        norm = np.linalg.norm(expected_gradient)
        assert np.isfinite(expected) and norm > 1e-3
        assert abs(loss - expected) <= 1e-6 * max(abs(expected), 1.0)
        assert np.linalg.norm(gradient - expected_gradient) <= 1e-6 * max(norm, 1.0)


def test_devices_and_groups_do_not_matter_in_a_ring(gradient_of):
    loss, gradient = gradient_of(0, 4, 4, "ring")
    expected, expected_gradient = gradient_of(0)
    norm = np.linalg.norm(expected_gradient)
    assert abs(loss - expected) <= 1e-6 * abs(expected)
    assert np.linalg.norm(gradient - expected_gradient) <= 1e-6 * max(norm, 1.0)
