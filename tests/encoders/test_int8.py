"""Kernels in eight bits: close values, a quarter of the size, no gradients, sharded."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.int8 import (
    Int8,
    dequantize_params,
    has_int8,
    quantize_kernel,
    quantize_layers,
)
from embed_jax.encoders.lora import init_lora, merge_lora, split_trainable
from embed_jax.encoders.spec import LoraSpec, random_spec
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, param_specs, place_on_mesh, split_groups
from embed_jax.types import BASE, Batch, join_params

PLAIN = random_spec("tiny", vocab_size=60)
KEY = jax.random.key(3)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@cache
def make(**lora):
    """Returns a spec with an adapter, and parameters with all kernels of layers in eight bits.

    No leaf is zero.
    """
    spec = dataclasses.replace(PLAIN, lora=LoraSpec(2, 4.0, **lora))
    params = jax.device_get(
        jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), params)
    return spec, quantize_layers(params), params


def test_every_weight_is_within_half_a_step():
    rng = np.random.default_rng(0)
    kernel = (rng.normal(size=(3, 40, 8)) * rng.lognormal(size=(3, 1, 8))).astype(np.float32)
    kernel[1, :, 2] = 0
    for array in (kernel, jnp.asarray(kernel), jnp.asarray(kernel, jnp.bfloat16)):
        result = quantize_kernel(array)
        assert isinstance(result.values, type(array)) and result.values.dtype == np.int8
        assert result.scale.shape == (3, 1, 8) and result.scale.dtype == np.float32
        near, exact = np.asarray(dequantize_params(result)), np.asarray(array, np.float32)
        assert (np.abs(near - exact) <= np.asarray(result.scale) * (0.5 + 1e-5)).all()
        peaks = np.abs(np.asarray(result.values)).max(axis=1)
        assert (np.delete(peaks, 10) == 127).all() and not near[1, :, 2].any()
        negated = quantize_kernel(-array)
        np.testing.assert_array_equal(negated.values, -result.values)  # symmetric
        np.testing.assert_array_equal(
            quantize_kernel(dequantize_params(result)).values, result.values
        )
    assert (
        dequantize_params({"kernel": result, "bias": kernel}, jnp.bfloat16)["kernel"].dtype
        == jnp.bfloat16
    )


def test_all_kernels_of_layers_and_nothing_else():
    _, params, plain = make()
    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda leaf: isinstance(leaf, Int8)
    )
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if isinstance(leaf, Int8)
    }
    assert names == {
        f"backbone/layers/{name}/kernel"
        for name in ("query", "key", "value", "output", "up", "down")
    }
    assert has_int8(params) and not has_int8(plain) and not has_int8(dequantize_params(params))


def test_embeddings_are_near_and_those_of_the_plain_kernels(packed):
    spec, params, plain = make()
    without = dataclasses.replace(spec, lora=None)
    apply = jax.jit(build_encoder(without).apply, compiler_options=QUICKLY)
    result, exact, same = (
        apply(each, packed) for each in (params, plain, dequantize_params(params))
    )
    assert 0.99 < np.sum(result * exact, axis=1).min() < 0.999999
    np.testing.assert_allclose(result, same, atol=1e-6)
    half = jax.jit(build_encoder(without, compute_dtype="bfloat16").apply)(params, packed)
    assert np.sum(result * half, axis=1).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.slow), "dora"])
def test_an_adapter_over_eight_bits(kind, packed):
    """The gradient equals that over the same kernels in float32, also with recomputed layers.

    The merged model equals the adapted one.
    """
    spec, params, _ = make(dora=kind == "dora", dropout=0.2)
    trainable, frozen = split_trainable(params, spec)
    encoder = build_encoder(spec, remat="layer", unroll=1)
    weight = jnp.cos(jnp.arange(encoder.dim, dtype=jnp.float32))

    @partial(jax.jit, compiler_options=QUICKLY)
    @jax.value_and_grad
    def run(trainable, frozen):
        return jnp.sum(encoder.apply(join_params(frozen, trainable), packed, KEY) * weight)

    value, gradient = run(trainable, frozen)
    assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
    expected, expected_gradient = run(trainable, dequantize_params(frozen))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, reference in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        assert np.abs(reference).max() > 0
        np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())

    merged_spec, merged = merge_lora(spec, params)
    assert not has_int8(merged) and all(
        leaf.dtype == np.float32 for leaf in jax.tree.leaves(merged)
    )
    apply, adapted = (
        jax.jit(module.apply, compiler_options=QUICKLY)
        for module in (build_encoder(merged_spec), encoder)
    )
    np.testing.assert_allclose(apply(merged, packed), adapted(params, packed), atol=1e-5)


def test_magnitudes_are_of_the_kernels_as_they_are_computed_with():
    spec, params, _ = make(dora=True)
    layers = init_lora(spec, params["backbone"], KEY)["layers"]
    kernel = dequantize_params(params["backbone"]["layers"]["up"]["kernel"])
    np.testing.assert_allclose(layers["up"]["magnitude"], np.linalg.norm(kernel, axis=1), rtol=1e-6)


@pytest.mark.slow
def test_split_as_kernels_are():
    _, params, _ = make()
    encoder = build_encoder(PLAIN)
    mesh = make_mesh(8, 2, 2)
    layers = param_specs(params, encoder.sharding, mesh)["backbone"]["layers"]
    assert layers["query"]["kernel"] == Int8(P(None, "fsdp", "tensor"), P(None, None, "tensor"))
    assert layers["down"]["kernel"] == Int8(P(None, "tensor", "fsdp"), P(None, None, "fsdp"))
    assert layers["attention_norm"]["scale"] == P()
    adapter = param_specs(params, build_encoder(make()[0]).sharding, mesh)["lora"]["layers"][
        "query"
    ]
    assert adapter == {"a": P(None, "fsdp", None), "b": P(None, None, "fsdp")}


def objective(devices, fsdp=1, tensor=1, when="layer"):
    """Returns loss and gradient, over four groups, of an adapter with dropout.

    Its kernels are in eight bits.
    """
    spec, params, _ = make(dropout=0.2)
    encoder, loss, mesh = (
        build_encoder(spec, unroll=1),
        build_loss("info_nce()"),
        make_mesh(devices, fsdp, tensor),
    )
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, 60, rng.integers(2, 12)).astype(np.int32) for _ in range(8)]
        for _ in range(2)
    ]
    tokens, order = pack_batch(ids, groups=4, row_length=16)
    text_hash = np.moveaxis(rng.integers(1, 2**32, (2, 8, 2), np.uint32)[:, order], 1, 0)
    batch = Batch({"encoder": tokens}, np.ones(text_hash.shape[:-1], bool), text_hash, order)
    trainable, frozen = split_trainable(params, spec)
    everything = {"encoder": trainable, BASE: frozen, "loss": {}}
    rules = [(f"({BASE}|encoder)/{pattern}", axes) for pattern, axes in encoder.sharding]
    specs = param_specs(everything, rules, mesh)
    shardings = jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda leaf: isinstance(leaf, P)
    )
    everything = place_on_mesh(everything, shardings)
    run = jax.value_and_grad(
        global_loss(encoder, loss, mesh, specs=specs, fsdp_gather=when), has_aux=True
    )
    base = {BASE: everything.pop(BASE)}
    compiled = jax.jit(run, compiler_options=QUICKLY)
    (value, _), gradient = compiled(everything, split_groups(batch, mesh), KEY, base)
    return float(value), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


@pytest.fixture(scope="module")
def single_device():
    return objective(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"devices": 4, "fsdp": 2},
        pytest.param({"devices": 4, "fsdp": 4, "when": "once"}, marks=pytest.mark.slow),
        pytest.param({"devices": 8, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_on_any_devices(layout, single_device):
    value, gradient = objective(**layout)
    assert (
        abs(value - single_device[0]) <= 1e-6 * abs(single_device[0])
        and np.linalg.norm(single_device[1]) > 1e-3
    )
    assert np.linalg.norm(gradient - single_device[1]) <= 1e-5 * np.linalg.norm(single_device[1])
