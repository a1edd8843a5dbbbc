"""Losses of sparse embeddings are the same on any devices, in any groups and forms, FLOPS included.

The reference is one device, one group, dense, without dropout.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.vocabulary import Splade
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.parallel.world import device_world, local_world
from embed_jax.types import Batch
from embed_jax.world import make_columns

COLUMNS, EXAMPLES, VOCAB, DEVICES = 3, 16, 64, 4
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
SPARSITY = " + 0.3 * flops(side='query') + 0.2 * flops(side='document', threshold=20) + 0.1 * l1()"
LOSSES = [
    *("info_nce", "info_nce(symmetric=True)", "info_nce(terms='qp,pq,qq,pp')", "gte", "qwen3"),
    *("gist", "dcl", "siglip", "mega_batch_margin", "margin_mse", "kl"),
]


def make_loss(name):
    return build_loss(name + SPARSITY, {"similarity": "dot", "temperature": 2.0})


def assert_same(result, expected, message):
    """Checks that loss and gradient agree to 1e-6 and are not zero."""
    (value, gradient), (own_value, own_gradient) = expected, result
    first, second = (
        np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, own_gradient)
    )
    assert np.isfinite(value) and np.linalg.norm(first) > 1e-3, message
    assert float(own_value) == pytest.approx(float(value), rel=1e-6), message
    assert np.linalg.norm(second - first) <= 1e-6 * np.linalg.norm(first), message


def some_columns():
    """Columns of weights, about half of them 0; one example and one negative are missing."""
    rng = np.random.default_rng(0)
    weights = np.maximum(rng.normal(size=(COLUMNS, EXAMPLES, VOCAB)), 0.0).astype(np.float32) / 3
    present = np.ones((COLUMNS, EXAMPLES), bool)
    present[:, 5] = present[2, 2] = False
    return make_columns(
        weights,
        present=jnp.asarray(present),
        guide=jnp.asarray(rng.normal(size=(COLUMNS, EXAMPLES, 5)), jnp.float32),
        score=jnp.asarray(rng.normal(size=(EXAMPLES, COLUMNS - 1)), jnp.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_ready_embeddings_on_devices_and_in_forms(name):
    loss, columns = make_loss(name), some_columns()
    params = loss.init(VOCAB, jax.random.key(0))

    def mean(own, world, total):
        values, weights, _ = loss.on_world(own, world, params)
        return total(jnp.sum(values * weights)) / total(jnp.sum(weights))

    def on_one_device(embeddings, columns, form):
        own = columns.replace(embeddings=embeddings)
        return mean(own, local_world(own, form, tile=3), lambda value: value)

    mesh = jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )
    specs = columns.map_examples(lambda leaf, axis: PartitionSpec(*[None] * axis, "data"))

    def split(embeddings, columns, form):
        def on_device(embeddings, columns):
            own = columns.replace(embeddings=embeddings)
            world = dataclasses.replace(device_world(own, form, ("data",)), tile=3)
            return mean(own, world, lambda value: lax.psum(value, "data"))

        arguments = specs.embeddings, specs
        mapped = jax.shard_map(on_device, mesh=mesh, in_specs=arguments, out_specs=PartitionSpec())
        return mapped(embeddings, columns)

    def every(embeddings, columns):
        forms = [(on_one_device, "dense"), (on_one_device, "tiled")]
        forms += [(split, form) for form in ("dense", "tiled", "ring")]
        return {
            f"{function.__name__} {form}": jax.value_and_grad(function)(embeddings, columns, form)
            for function, form in forms
        }

    results = jax.jit(every, compiler_options=QUICKLY)(columns.embeddings, columns)
    for form, result in results.items():
        assert_same(result, results["on_one_device dense"], form)


def make_batch(groups):
    rng = np.random.default_rng(0)
    present = np.ones((COLUMNS, EXAMPLES), bool)
    present[2, ::5] = False
    sizes = rng.integers(2, 12, present.shape)
    ids = [
        [
            rng.integers(1, VOCAB, length).astype(np.int32) if here else None
            for here, length in zip(*row, strict=True)
        ]
        for row in zip(present, sizes, strict=True)
    ]
    tokens, order = pack_batch(ids, groups=groups, row_length=16)
    text_hash = rng.integers(1, 2**32, (*present.shape, 2), np.uint32)

    def deal(leaf):  # [C, B, ...] -> [G, C, E, ...]
        return np.moveaxis(leaf[:, order], 1, 0)

    score = rng.normal(size=(EXAMPLES, COLUMNS - 1)).astype(np.float32)
    return Batch({"encoder": tokens}, deal(present), deal(text_hash), order, score=score[order])


@pytest.mark.slow
def test_an_encoder_in_groups_on_devices():
    """Gradient caching is exact, although FLOPS is quadratic in a mean over the batch."""
    backbone = random_spec("tiny", vocab_size=VOCAB).backbone
    encoder = build_encoder(EncoderSpec(backbone, vocabulary=Splade()), unroll=1)
    params = encoder.init(jax.random.key(0))
    params["backbone"]["embeddings"]["token"] *= 20.0  # texts are told apart
    losses = [make_loss(name) for name in ("info_nce", "gte", "margin_mse")]

    def gradients(devices, groups, form):
        mesh = make_mesh(devices)

        def loss(own, world, params):
            results = [lambda f=f: f.on_world(own, world, params)[:2] for f in losses]
            values, weights = lax.switch(own.label[0], results)
            return values, weights, {}

        def step(params, batch, number):
            objective = global_loss(encoder, loss, mesh, form=form)
            batch = batch.replace(label=jnp.full(batch.record.shape, number))
            function = jax.value_and_grad(objective, has_aux=True)
            return function({"encoder": params, "loss": {}}, batch, None, {})

        compiled = jax.jit(step, compiler_options=QUICKLY)
        batch = split_groups(make_batch(groups), mesh)
        for number in range(len(losses)):
            (value, _), gradient = compiled(params, batch, number)
            yield value, gradient["encoder"]

    reference = list(gradients(1, 1, "dense"))
    for case in ((1, 4, "dense"), (1, 8, "tiled"), (4, 4, "ring"), (4, 8, "dense")):
        for loss, expected, result in zip(losses, reference, gradients(*case), strict=True):
            assert_same(result, expected, f"{case}: {loss.name}")
