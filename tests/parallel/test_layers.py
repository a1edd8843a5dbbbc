"""Layers and prefixes drawn at a step.

Loss and gradient are equal on any devices, in any groups and form.
"""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import draw_layers, global_loss
from embed_jax.parallel.mesh import make_mesh, param_specs, place_on_mesh, split_groups
from embed_jax.types import Batch

EXAMPLES, VOCAB = 16, 60
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
LOSS = (
    "adaptive_layers(matryoshka(info_nce(hard_negative_weight=2), dims='32,16,4', sample=2), "
    "sample=2)"
)


@pytest.fixture(scope="module")
def run():
    """Returns (loss, gradient) of LOSS on an encoder of four layers."""
    spec = random_spec("tiny", vocab_size=VOCAB)
    small = {"num_layers": 4, "num_heads": 4, "max_positions": 16}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small))
    encoder, loss = build_encoder(spec, unroll=1), build_loss(LOSS)
    weights = encoder.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)]
        for _ in range(3)
    ]
    hashes = rng.integers(1, 2**32, (3, EXAMPLES, 2), np.uint32)

    def run(devices, groups, dropout, fsdp=1, form="auto"):
        mesh = make_mesh(devices, fsdp)
        tokens, order = pack_batch(ids, groups=groups, row_length=16)
        text_hash = np.moveaxis(hashes[:, order], 1, 0)
        batch = Batch({"encoder": tokens}, np.ones(text_hash.shape[:-1], bool), text_hash, order)
        params = {"encoder": weights, "loss": {}}
        specs = param_specs(
            params, [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding], mesh
        )
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            specs,
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )
        trained = (
            encoder if dropout else dataclasses.replace(encoder, by_layer=without_dropout(encoder))
        )
        objective = global_loss(
            trained, loss, mesh, form=form, specs=specs, layers=loss.about.layers
        )
        step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
        (value, _), gradient = step(
            place_on_mesh(params, shardings), split_groups(batch, mesh), jax.random.key(3)
        )
        return float(value), np.concatenate(
            [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)]
        )

    return run


def without_dropout(encoder):
    return lambda params, tokens, layer, key, **read: encoder.by_layer(
        params, tokens, layer, None, **read
    )


def assert_same(result, expected):
    assert np.isfinite(expected[0]) and np.linalg.norm(expected[1]) > 1e-2
    assert abs(result[0] - expected[0]) <= 1e-6 * abs(expected[0])
    assert np.linalg.norm(result[1] - expected[1]) <= 1e-6 * np.linalg.norm(expected[1])


@pytest.mark.slow
def test_devices_and_groups_do_not_matter(run):
    """Eight groups on eight devices, with sharded parameters and a ring, equal one big batch."""
    assert_same(run(8, 8, dropout=False, fsdp=4, form="ring"), run(1, 1, dropout=False))


@pytest.mark.slow
def test_devices_do_not_matter_with_dropout(run):
    assert_same(run(8, 8, dropout=True), run(1, 8, dropout=True))


def test_layers_are_drawn_without_repetition_and_each_comes_up():
    drawn = [draw_layers(key, 6, 2).tolist() for key in jax.random.split(jax.random.key(0), 40)]
    assert all(len(set(layers)) == 2 for layers in drawn)
    assert {layer for layers in drawn for layer in layers} == {1, 2, 3, 4, 5}
    assert draw_layers(None, 6, 1).tolist() == [3]
    assert (
        draw_layers(None, 6, 5).tolist()
        == draw_layers(jax.random.key(0), 6, -1).tolist()
        == [1, 2, 3, 4, 5]
    )
