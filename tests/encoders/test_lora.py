"""An adapter is a second tree.

Merged into the kernels it is the same function; only the adapter is trained.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.lora import (
    find_targets,
    init_lora,
    linear_maps,
    merge_lora,
    split_trainable,
)
from embed_jax.encoders.shrink import keep_layers
from embed_jax.encoders.spec import LoraSpec, random_spec
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import join_params, num_params

BASE = random_spec("tiny", vocab_size=60)
KEY = jax.random.key(3)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
MAPS = {"query", "key", "value", "output", "up", "down"}


@cache
def make(base=BASE, rank=3, alpha=6.0, **changes):
    """Returns a spec with an adapter, and parameters of which no leaf is zero."""
    spec = dataclasses.replace(base, lora=LoraSpec(rank, alpha, **changes))
    params = jax.device_get(
        jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    return spec, jax.tree.map(
        lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), params
    )


@cache
def compiled(spec):
    return jax.jit(build_encoder(spec).apply, compiler_options=QUICKLY)


def embed(spec, params, tokens, key=None):
    return compiled(spec)(params, tokens, key)


@pytest.mark.slow
def test_a_new_adapter_changes_nothing(packed):
    plain = jax.jit(build_encoder(BASE).init, compiler_options=QUICKLY)(jax.random.key(0))
    for kind in ("lora", "dora"):
        spec, _ = make(**KINDS[kind])
        params = {**plain, "lora": init_lora(spec, plain["backbone"], KEY)}
        np.testing.assert_allclose(
            embed(spec, params, packed), embed(BASE, plain, packed), atol=1e-6
        )
    made = jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    assert set(made) == {*plain, "lora"}
    for ours, reference in zip(
        *map(jax.tree.leaves, (made["backbone"], plain["backbone"])), strict=True
    ):
        np.testing.assert_array_equal(ours, reference)


def test_the_start_is_that_of_peft():
    spec = dataclasses.replace(
        random_spec("minilm-l6", vocab_size=60), lora=LoraSpec(8, 16.0, targets=("query",))
    )
    shapes = jax.eval_shape(build_encoder(BASE).init, KEY)["backbone"]
    shapes["layers"] = {"query": {"kernel": jax.ShapeDtypeStruct((6, 384, 384), np.float32)}}
    lora = init_lora(spec, shapes, KEY)["layers"]
    assert set(lora) == {"query"}
    a, b = np.asarray(lora["query"]["a"]), lora["query"]["b"]
    assert a.shape == (6, 384, 8) and b.shape == (6, 8, 384) and not b.any()
    bound = 384**-0.5  # uniform: variance bound^2 / 3
    assert 0.99 * bound < np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.02)
    assert LoraSpec(16, 32.0).scale == 2.0 and LoraSpec(16, 32.0, rslora=True).scale == 8.0


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(kind, packed):
    spec, params = make(**KINDS[kind])
    merged_spec, merged = merge_lora(spec, params)
    assert merged_spec == BASE and set(merged) == {"backbone", "heads"}
    embeddings = embed(spec, params, packed)
    np.testing.assert_allclose(embed(merged_spec, merged, packed), embeddings, atol=1e-5)
    assert np.abs(embeddings - embed(BASE, params, packed)).max() > 0.01
    half = {
        **params,
        "backbone": jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["backbone"]),
    }
    kernel = merge_lora(spec, half)[1]["backbone"]["layers"]["query"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        kernel.astype(np.float32), merged["backbone"]["layers"]["query"]["kernel"], atol=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.slow), "dora"])
def test_every_way_to_run_is_the_same(kind, packed):
    """With `read`, layers run one after the other and are recomputed; dropout is on."""
    spec, params = make(dropout=0.2, **KINDS[kind])
    base = value_and_gradient(spec, params, packed, unroll=1)
    assert relative(value_and_gradient(spec, params, packed, read=lambda layer: layer), base) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"remat": "layer"}, {"remat": "dots"}, {"unroll": 1}])
def test_remat_and_unroll_change_nothing(options, packed):
    spec, params = make(dropout=0.2, dora=True)
    assert (
        relative(
            value_and_gradient(spec, params, packed, **options),
            value_and_gradient(spec, params, packed),
        )
        < 1e-5
    )


def value_and_gradient(spec, params, tokens, read=None, **options):
    encoder = build_encoder(spec, **options)
    weight = jnp.cos(jnp.arange(encoder.dim, dtype=jnp.float32))
    value = jax.value_and_grad(lambda p: jnp.sum(encoder.apply(p, tokens, KEY, read) * weight))
    return jax.jit(value, compiler_options=QUICKLY)(params)


def relative(ours, reference):
    ours, reference = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, reference)
    )
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.slow), "dora"])
def test_gradients_are_of_the_adapter_alone_and_right(kind, packed):
    spec, params = make(targets=("query", "output.dense"), **KINDS[kind])
    trainable, frozen = split_trainable(params, spec)
    assert set(trainable) == {"lora", "heads"} and set(frozen) == {"backbone"}
    assert jax.tree.structure(join_params(frozen, trainable)) == jax.tree.structure(params)
    encoder = build_encoder(spec)
    weight = jnp.cos(jnp.arange(5 * encoder.dim, dtype=jnp.float32)).reshape(5, -1)

    @jax.jit
    def value(trainable):
        return jnp.sum(encoder.apply(join_params(frozen, trainable), packed) * weight)

    gradient = jax.jit(jax.grad(value), compiler_options=QUICKLY)(trainable)
    held = norms(spec, params)
    sizes = {"query": (32, 32), "output": (32, 32), "down": (64, 32)}
    extra = {"lora": 0, "dora": 2 * 32}[kind]
    assert num_params(gradient) == sum(2 * 3 * (i + o) + extra for i, o in sizes.values())
    rng = np.random.default_rng(0)
    for module in sizes:
        for name in ("a", "b"):
            leaf = np.asarray(trainable["lora"]["layers"][module][name])
            step = 1e-2 * rng.normal(size=leaf.shape).astype(np.float32)

            def moved(sign, module=module, name=name, leaf=leaf, step=step):
                layers = trainable["lora"]["layers"]
                leaves = {**layers[module], name: leaf + sign * step}
                changed = {**trainable, "lora": {"layers": {**layers, module: leaves}}}
                if kind == "dora":  # whose norms have no gradient: what they change is taken back
                    new = norms(spec, join_params(frozen, changed))[module]
                    leaves["magnitude"] = leaves["magnitude"] * new / held[module]
                return float(value(changed))

            slope = np.sum(np.asarray(gradient["lora"]["layers"][module][name]) * step)
            np.testing.assert_allclose((moved(1) - moved(-1)) / 2, slope, rtol=2e-2, atol=2e-4)


def norms(spec, params):
    """Returns the length of each column of W + scale A B, by module."""
    result = {}
    for module, leaves in params["lora"]["layers"].items():
        kernel = np.asarray(params["backbone"]["layers"][module]["kernel"])
        full = kernel + spec.lora.scale * np.asarray(leaves["a"]) @ np.asarray(leaves["b"])
        result[module] = np.linalg.norm(full, axis=1)
    return result


def test_fewer_layers_have_their_own_adapters(packed):
    spec, params = make(dora=True)
    unmerged, merged = (
        keep_layers(*model, [1]) for model in ((spec, params), merge_lora(spec, params))
    )
    np.testing.assert_allclose(embed(*unmerged, packed), embed(*merged, packed), atol=1e-5)


@pytest.mark.slow
def test_hidden_states_and_layers_are_adapted_too(packed):
    spec, params = make()
    merged_spec, merged = merge_lora(spec, params)
    ours, reference = build_encoder(spec), build_encoder(merged_spec)
    layer = jnp.array([1])

    def values(encoder, params):
        return encoder.hidden(params, packed), encoder.by_layer(params, packed, layer)

    for adapted, expected in zip(
        jax.jit(partial(values, ours))(params),
        jax.jit(partial(values, reference))(merged),
        strict=True,
    ):
        np.testing.assert_allclose(adapted, expected, atol=1e-5)

    @partial(jax.jit, compiler_options=QUICKLY)
    @jax.grad
    def gradient(lora):
        hidden, by_layer = values(ours, {**params, "lora": lora})
        return jnp.sum(hidden[..., 0] ** 2) + jnp.sum(by_layer[..., 0] ** 2)

    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient(params["lora"])))


@pytest.fixture(scope="module")
def silent():
    """An encoder whose only dropout is the adapter's."""
    backbone = dataclasses.replace(BASE.backbone, hidden_dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(BASE, backbone=backbone)


def test_key_decides_the_dropout(silent, packed):
    spec, params = make(silent, dropout=0.3, dora=True)
    first, again, other = (embed(spec, params, packed, jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    none = embed(spec, params, packed)
    assert np.abs(first - other).max() > 1e-3 < np.abs(first - none).max()


def test_each_layer_and_module_has_a_mask_of_its_own(silent, packed):
    """Layers have their own masks: identical layers with equal masks would change equally."""
    spec, params = make(silent, rank=32, alpha=32.0, dropout=0.5, targets=("query", "key"))
    shape = (2, 32, 32)
    identity = {
        "a": jnp.broadcast_to(jnp.eye(32), shape),
        "b": jnp.broadcast_to(jnp.eye(32), shape),
    }
    seen = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name in ("query", "key") and context.method_name == "__call__":
            jax.debug.callback(
                lambda x, y: seen.append((np.asarray(x), np.asarray(y))), args[0], result
            )
        return result

    zero = jax.tree.map(jnp.zeros_like, params["backbone"]["layers"]["query"])
    layers = {**params["backbone"]["layers"], "query": zero, "key": zero}
    params = {**params, "backbone": {**params["backbone"], "layers": layers}}
    params["lora"] = {"layers": {"query": identity, "key": identity}}
    with nn.intercept_methods(record):
        jax.jit(build_encoder(spec).apply, compiler_options=QUICKLY)(params, packed, KEY)
    jax.effects_barrier()
    masks = [y == 0 for _, y in seen]
    assert len(masks) == 4
    for i, mask in enumerate(masks):
        assert 0.4 < mask.mean() < 0.6
        assert all((mask != other).mean() > 0.4 for other in masks[:i])


def test_targets():
    backbone = jax.eval_shape(build_encoder(BASE).init, KEY)["backbone"]
    maps = linear_maps(lookup("backbone", "bert"), backbone)
    assert set(maps) == MAPS

    def targets_of(*targets):
        return set(find_targets(targets, maps, 2))

    assert targets_of("all-linear") == MAPS
    assert targets_of("query", "value") == {"query", "value"}
    assert targets_of("dense") == {"output", "up", "down"}
    assert targets_of("attention.output.dense") == {"output"}
    assert targets_of(r".*layer\.\d+\.(intermediate|output)\.dense") == {"up", "down"}
    with pytest.raises(
        InputError,
        match="unknown target of an adapter 'quary' \\(did you mean 'query'\\?\\); known: all",
    ):
        targets_of("quary")
    with pytest.raises(
        InputError, match="means 'encoder.layer.{}.attention.self.query' in 1 of 2 layers"
    ):
        targets_of(r".*layer\.0\..*query")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LoraSpec(0, 1.0), "rank: expected 1 or more, found 0"),
        (
            lambda: LoraSpec(1, 1.0, dropout=1.0),
            "dropout: expected at least 0 and below 1, found 1.0",
        ),
        (lambda: make(random_spec("static", vocab_size=60)), "this backbone has none"),
        (
            lambda: build_encoder(
                dataclasses.replace(BASE, lora=LoraSpec(1, 1.0, dropout=0.1)), same_mask_columns=2
            ),
            "an adapter with dropout has its own masks",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(InputError, match=message):
        build()
