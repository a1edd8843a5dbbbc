"""An encoder is a pure function of (params, tokens, key) in any packing and sharding."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from embed_jax.encoders.bert import BERT
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.spec import EncoderSpec, known_shapes, random_spec
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, lookup
from embed_jax.types import TokenBatch, num_params

SPEC = random_spec("tiny", vocab_size=60)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def params():
    params = build_encoder(SPEC).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    # Bigger than at the start, so that dropout and attention matter.
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)


@functools.cache
def compiled(spec):
    """Returns the encoder's function; compiling is most of the time."""
    return jax.jit(build_encoder(spec).apply)


def value_and_gradient(params, tokens, **options):
    encoder = build_encoder(SPEC, **options)
    weight = jnp.cos(jnp.arange(encoder.dim, dtype=jnp.float32))
    run = jax.jit(jax.value_and_grad(lambda p, t, k: jnp.sum(encoder.apply(p, t, k) * weight)))
    return run(params, tokens, KEY)


def relative(ours, reference):
    ours, reference = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, reference)
    )
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def test_packed_equals_unpacked_and_padding_changes_nothing(params, packed, unpacked):
    apply = compiled(SPEC)
    embeddings = apply(params, unpacked, None)
    assert embeddings.shape == (5, build_encoder(SPEC).dim) and embeddings.dtype == jnp.float32
    np.testing.assert_allclose(embeddings, apply(params, packed, None), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-6)


def test_deep_models_train_in_a_loop_on_cpu():
    """Their program would take long to compile without it."""

    def loops(layers):
        spec = random_spec("tiny")
        backbone = dataclasses.replace(spec.backbone, num_layers=layers)
        encoder = build_encoder(dataclasses.replace(spec, backbone=backbone))
        params, key = jax.eval_shape(encoder.init, jax.random.key(0)), jax.random.key(0)
        ids = jnp.ones((1, 4), jnp.int32)
        tokens = TokenBatch(ids, 0 * ids, 0 * ids, ids > 0, sentences=1)
        return jax.jit(encoder.apply).lower(params, tokens, key).as_text().count("stablehlo.while")

    assert loops(13) == loops(12) + 1


def test_remat_and_unroll_change_nothing(params, packed):
    base = value_and_gradient(params, packed)
    for options in ({"remat": "layer"}, {"unroll": 1, "attention": "xla"}):
        assert relative(value_and_gradient(params, packed, **options), base) < 1e-5


@pytest.mark.slow
def test_key_decides_the_dropout(params, packed):
    encoder = build_encoder(SPEC)
    apply = jax.jit(encoder.apply)
    first, again, other = (apply(params, packed, jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - apply(params, packed, None)).max() > 1e-3
    without = dataclasses.replace(SPEC.backbone, hidden_dropout=0.0, attention_dropout=0.0)
    silent = build_encoder(dataclasses.replace(SPEC, backbone=without)).apply
    np.testing.assert_allclose(silent(params, packed, KEY), apply(params, packed, None), atol=1e-6)


def test_mean_over_dropout_is_near_the_encoder_without(params, unpacked):
    apply = jax.jit(
        jax.vmap(build_encoder(dataclasses.replace(SPEC, heads=())).apply, (None, None, 0))
    )
    keys = jax.random.split(KEY, 256)
    mean = apply(params, unpacked, keys).mean(0)
    expected = compiled(dataclasses.replace(SPEC, heads=()))(params, unpacked, None)
    assert relative(mean, expected) < 0.15


def test_bfloat16_is_near(params, packed):
    half = jax.jit(build_encoder(SPEC, compute_dtype="bfloat16").apply)(params, packed, None)
    full = compiled(SPEC)(params, packed, None)
    assert half.dtype == jnp.float32
    assert np.sum(half * full, axis=1).min() > 0.999


@pytest.mark.slow
def test_same_on_every_number_of_devices(params, packed, unpacked):
    """Value and gradient are equal with dropout.

    They are computed in shard_map with check_vma, under lax.map and checkpoint.
    """
    encoder = build_encoder(SPEC)
    groups = jax.tree.map(lambda *x: jnp.stack(x), packed, unpacked, unpacked, packed)

    def run(devices):
        mesh = jax.make_mesh(
            (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )

        @jax.jit
        @jax.value_and_grad
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
        )
        def loss(params, groups, numbers):
            params = lax.pcast(params, "data", to="varying")
            embed_group = jax.checkpoint(
                lambda x: encoder.apply(params, x[0], jax.random.fold_in(KEY, x[1]))
            )
            return lax.psum(jnp.sum(lax.map(embed_group, (groups, numbers))[..., 0]), "data")

        return loss(params, groups, jnp.arange(4))

    single = run(1)
    assert relative(run(4), single) < 1e-6


def test_head_in_training_only(params, packed):
    """SimCSE's MLP: two specs share the parameters, and only one of them names the head."""
    spec = dataclasses.replace(SPEC, pooling="cls", heads=())
    training = dataclasses.replace(spec, heads=(Dense(32, 32),))
    made = build_encoder(training).init(jax.random.key(0))
    assert set(made["heads"]["0"]) == {"kernel", "bias"}
    bare, trained = (np.asarray(compiled(each)(made, packed, None)) for each in (spec, training))
    head = jax.tree.map(np.asarray, made["heads"]["0"])
    np.testing.assert_allclose(trained, np.tanh(bare @ head["kernel"] + head["bias"]), atol=1e-5)


def test_sizes_and_first_last(params, packed):
    encoder = build_encoder(
        EncoderSpec(SPEC.backbone, "first_last_mean+cls", (Dense(64, 7, bias=False), Normalize()))
    )
    result = jax.eval_shape(lambda key: encoder.apply(encoder.init(key), packed), KEY)
    assert encoder.dim == 7 and result.shape == (5, 7)
    base = build_encoder(random_spec("minilm-l6"))
    assert (
        num_params(jax.eval_shape(base.init, KEY)) == 22_565_376
    )  # all-MiniLM-L6-v2 without its pooler
    layers = jax.eval_shape(base.init, KEY)["backbone"]["layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(layers)} == {6}


@pytest.mark.slow
def test_empty_sentences_are_zero_with_a_finite_gradient(params, make_batch):
    tokens = make_batch([[(0, [5, 6])], []], 8, 3)
    value, gradient = value_and_gradient(params, tokens)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(build_encoder(SPEC).apply(params, tokens, None)[1:], 0.0)


def test_a_new_backbone_is_one_registry_line(monkeypatch, make_batch):
    """The backbone's file names a `Family`; the registry is the only way to its code."""
    shape = dataclasses.replace(BERT.shapes["tiny"], family="ours", vocab_size=60)
    module = types.SimpleNamespace(OURS=dataclasses.replace(BERT, shapes={"ours-tiny": shape}))
    monkeypatch.setitem(sys.modules, "our_backbone", module)
    monkeypatch.setitem(REGISTRY["backbone"], "ours", "our_backbone:OURS")
    spec = random_spec("ours-tiny")
    assert spec.backbone == shape
    encoder, tokens = build_encoder(spec), make_batch([[(0, [5, 6])]], 8, 1)
    result = jax.eval_shape(lambda key: encoder.apply(encoder.init(key), tokens), KEY)
    assert result.shape == (1, 32)


def test_a_shape_is_of_the_family_that_registers_it():
    shapes = [
        (name, shape.family, family)
        for family in REGISTRY["backbone"]
        for name, shape in lookup("backbone", family).shapes.items()
    ]
    assert all(own == family for _, own, family in shapes)
    assert len({name for name, *_ in shapes}) == len(shapes) == len(known_shapes())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_encoder(SPEC, compute_dtype="float16"), "unknown compute_dtype 'float16'"),
        (lambda: build_encoder(SPEC, remat="all"), "unknown remat 'all'"),
        (lambda: build_encoder(SPEC, attention="flash"), "unknown attention 'flash'"),
        (lambda: build_encoder(dataclasses.replace(SPEC, pooling="sum")), "unknown pooling 'sum'"),
        (lambda: random_spec("minilm"), "unknown shape 'minilm'.*'mini"),
    ],
)
def test_unknown_choices(make, message):
    with pytest.raises(InputError, match=message):
        make()
