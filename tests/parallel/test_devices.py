"""Loss and gradient of each contrastive loss are the same on any mesh and in any form.

One program computes all losses, one at a time by its number, since compiling takes longer than
anything else here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.losses import in_batch
from embed_jax.losses.base import bind
from embed_jax.losses.nested import matryoshka
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, param_specs, place_on_mesh, split_groups
from embed_jax.types import Batch

EXAMPLES, VOCAB = 32, 64
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
# Every contrastive loss, with arguments under which all of its parts matter.
LOSSES = {
    "info_nce": matryoshka(
        functools.partial(in_batch.info_nce, hard_negative_weight=2.0), dims="8,32"
    ),
    "info_nce, symmetric": functools.partial(
        in_batch.info_nce,
        symmetric=True,
        learn_temperature=True,
        label_smoothing=0.1,
        hardness="all_negatives",
        hardness_strength=2.0,
    ),
    "gte": functools.partial(in_batch.gte, temperature=0.05),
    "qwen3": functools.partial(in_batch.qwen3, temperature=0.05),
    "gist": functools.partial(in_batch.gist, temperature=0.05, mask_margin=0.02),
    "dcl": functools.partial(in_batch.dcl, sigma=0.5),
    "siglip": in_batch.siglip,
    "mega_batch_margin": functools.partial(in_batch.mega_batch_margin, negative_margin=-1.0),
}


@pytest.fixture(scope="module")
def encoder():
    spec = random_spec("tiny", vocab_size=VOCAB)
    assert spec.backbone.hidden_dropout == spec.backbone.attention_dropout == 0.1
    small = {
        "hidden_size": 32,
        "embedding_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "max_positions": 32,
    }
    return build_encoder(
        dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small)), unroll=1
    )


@pytest.fixture(scope="module")
def guide():
    """Makes another encoder, with another vocabulary and another size."""
    spec = random_spec("tiny", vocab_size=40)
    small = {
        "hidden_size": 16,
        "embedding_size": 16,
        "intermediate_size": 32,
        "num_layers": 1,
        "max_positions": 32,
    }
    return build_encoder(
        dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small)), unroll=1
    )


@pytest.fixture(scope="module")
def params(encoder):
    """Returns parameters that tell sentences apart, with a scale of 4.5 for the scores.

    An untrained encoder gives all sentences nearly one embedding. The gradients of the examples
    then cancel, and what is left is known to few digits of float32.
    """
    params = encoder.init(jax.random.key(0))
    params["backbone"]["embeddings"]["token"] *= 20.0
    return {
        "encoder": params,
        "loss": {"log_scale": jnp.float32(1.5), "bias": jnp.float32(-2.0)},
    }


def make_batch(groups: int, columns: int = 3) -> Batch:
    """Makes a batch with hard negatives, some absent, and repeated anchors, positives and ids.

    It has the tokens of a second tokenizer, too.
    """
    rng = np.random.default_rng(0)

    def texts(vocabulary):
        made = [
            [
                rng.integers(1, vocabulary, rng.integers(2, 12)).astype(np.int32)
                for _ in range(EXAMPLES)
            ]
            for _ in range(columns)
        ]
        if columns > 2:
            made[2][::5] = [None] * len(made[2][::5])
        return made

    tokens, order = pack_batch(texts(VOCAB), groups=groups, row_length=16)
    other, _ = pack_batch(texts(40), groups=groups, row_length=24, order=order)
    present = np.ones((columns, EXAMPLES), bool)
    present[2:, ::5] = False  # some examples have no hard negative
    text_hash = rng.integers(1, 2**32, (columns, EXAMPLES, 2), np.uint32)
    text_hash[1, 3] = text_hash[1, 17]  # two examples with one positive
    text_hash[0, 4] = text_hash[0, 18]  # and two with one anchor
    keys = np.zeros((EXAMPLES, 2, 2), np.uint32)
    keys[[5, 19], 0] = 7
    keys[[6, 20, 21], 1] = 8

    def deal(leaf):  # [C, B, ...] -> [G, C, E, ...]
        return np.moveaxis(leaf[:, order], 1, 0)

    return Batch(
        {"encoder": tokens, "guide": other}, deal(present), deal(text_hash), order, keys=keys[order]
    )


@functools.cache
def compiled(encoder, guide, devices, fsdp, tensor, form, fsdp_gather, dropout):
    """Compiles one program for value and gradient of any of LOSSES, chosen by its number.

    Returns it with the sharding of parameters and the mesh.
    """
    mesh = make_mesh(devices, fsdp, tensor)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    specs = param_specs(
        {"encoder": shapes, "loss": {"log_scale": 0.0, "bias": 0.0}},
        [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding],
        mesh,
    )

    def step(params, batch, key, frozen, number):
        def loss(own, world, params):
            results = [
                lambda f=f: bind(f).on_world(own, world, params)[:2] for f in LOSSES.values()
            ]
            values, weights = lax.switch(own.label[0], results)
            return values, weights, {}

        objective = global_loss(
            encoder,
            loss,
            mesh,
            form=form,
            specs=specs,
            fsdp_gather=fsdp_gather,
            frozen={"guide": guide},
        )
        batch = batch.replace(label=jnp.full(batch.record.shape, number))
        return jax.value_and_grad(objective, has_aux=True)(
            params, batch, key if dropout else None, frozen
        )

    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    return jax.jit(step, compiler_options=QUICKLY), shardings, mesh


@pytest.fixture(scope="module")
def gradient_of(encoder, guide, params):
    """Returns (loss, gradient as one vector) of a loss by its name in LOSSES."""
    frozen = {"guide": guide.init(jax.random.key(3))}

    def gradient_of(
        name, devices=1, groups=16, fsdp=1, tensor=1, form="auto", fsdp_gather="layer", dropout=True
    ):
        step, shardings, mesh = compiled(
            encoder, guide, devices, fsdp, tensor, form, fsdp_gather, dropout
        )
        arguments = (
            place_on_mesh(params, shardings),
            split_groups(make_batch(groups), mesh),
            jax.random.key(1),
            frozen,
        )
        (loss, _), gradient = step(*arguments, list(LOSSES).index(name))
        vector = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
        return float(loss), vector

    return gradient_of


SLOW = pytest.mark.slow  # each number of devices, groups and each form is a program to compile


def assert_same(result, expected):
    """Checks that loss and gradient agree to 1e-6 and are not zero."""
    assert np.isfinite(expected[0]) and np.linalg.norm(expected[1]) > 1e-2
    assert abs(result[0] - expected[0]) <= 1e-6 * abs(expected[0])
    assert np.linalg.norm(result[1] - expected[1]) <= 1e-6 * np.linalg.norm(expected[1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("devices", [pytest.param(2, marks=SLOW), pytest.param(4, marks=SLOW), 8])
def test_devices_do_not_matter(gradient_of, devices, name):
    """Runs 16 groups with dropout."""
    assert_same(gradient_of(name, devices), gradient_of(name, 1))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("groups,devices", [pytest.param(4, 2, marks=SLOW)])
def test_groups_do_not_matter(gradient_of, groups, devices, name):
    """Gradient caching is exact: without dropout, groups equal one big batch."""
    assert_same(
        gradient_of(name, devices, groups, dropout=False), gradient_of(name, 1, 1, dropout=False)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_groups_do_not_matter_on_any_number_of_devices(gradient_of, devices, groups, name):
    if groups % devices == 0:
        assert_same(
            gradient_of(name, devices, groups, dropout=False),
            gradient_of(name, 1, 1, dropout=False),
        )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "form,devices", [pytest.param("tiled", 2, marks=SLOW), pytest.param("ring", 4, marks=SLOW)]
)
def test_the_form_does_not_matter(gradient_of, form, devices, name):
    """Every contrastive loss has a tiled form and a ring."""
    assert bind(LOSSES[name]).about.tiled
    assert_same(gradient_of(name, devices, form=form), gradient_of(name, 1, form="auto"))


@pytest.mark.parametrize("name", LOSSES)
@SLOW
@pytest.mark.parametrize("fsdp_gather", ["layer", "once"])
def test_a_mesh_of_three_axes_does_not_matter(gradient_of, fsdp_gather, name):
    """The mesh is data x fsdp x tensor = 2 x 2 x 2.

    Groups are split over four, parameters over four of the eight devices.
    """
    assert_same(
        gradient_of(name, 8, fsdp=2, tensor=2, fsdp_gather=fsdp_gather), gradient_of(name, 1)
    )
