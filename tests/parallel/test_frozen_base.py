"""Adapters and whole decoders on meshes.

Loss and gradient equal those of one device, with less memory on each.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from embed_jax.config import Optim
from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.int8 import quantize_layers
from embed_jax.encoders.lora import split_trainable
from embed_jax.encoders.spec import LoraSpec, random_spec
from embed_jax.losses.expression import build_loss
from embed_jax.losses.in_batch import info_nce
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import (
    make_mesh,
    place_on_mesh,
    split_groups,
    state_shardings,
    training_specs,
)
from embed_jax.parallel.queue import init_queue
from embed_jax.train.optim import make_optimizer
from embed_jax.train.step import init_state, make_train_step
from embed_jax.types import BASE, Batch

EXAMPLES, VOCAB = 16, 64
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
MESHES = {"8x1x1": (8, 1, 1), "2x2x2": (8, 2, 2), "1x4x2": (8, 4, 2)}
OF_LORA = {"lora": LoraSpec(4, 8.0, dropout=0.1)}
WAYS = {
    "lora": OF_LORA,
    "whole": {},
    "dora": {"lora": LoraSpec(4, 8.0, dora=True)},
    "int8": OF_LORA,
}


def make_batch(groups=8):
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)]
        for _ in range(3)
    ]
    tokens, order = pack_batch(ids, groups=groups, row_length=16)
    text_hash = rng.integers(1, 2**32, (groups, 3, EXAMPLES // groups, 2), np.uint32)
    return Batch({"encoder": tokens}, np.ones(text_hash.shape[:-1], bool), text_hash, order)


@functools.cache
def start(way):
    """Makes an encoder, its trained parameters and its frozen ones."""
    spec = dataclasses.replace(
        random_spec("decoder-tiny", vocab_size=VOCAB, pooling="last_token"), **WAYS[way]
    )
    encoder = build_encoder(spec, unroll=1, remat="layer")
    params = encoder.init(jax.random.key(0))
    if spec.lora:  # B starts at zero, where A has no gradient
        params["lora"] = jax.tree.map(
            lambda leaf: leaf + 0.05 * np.cos(np.arange(leaf.size)).reshape(leaf.shape),
            params["lora"],
        )
    params = quantize_layers(params) if way == "int8" else params
    trained, frozen = split_trainable(params, spec)
    return encoder, {"encoder": trained, "loss": {}}, {BASE: frozen} if frozen else {}


def step_of(way, mesh):
    """Makes a training step on a mesh, and its state."""
    encoder, params, base = start(way)
    optimizer = make_optimizer(Optim(learning_rate=1e-3, schedule="constant"), 10)
    specs = training_specs({**params, **base}, encoder.sharding, mesh)
    state = init_state(params, optimizer, base)
    shardings = state_shardings(state, optimizer, specs, mesh)
    objective = global_loss(encoder, info_nce, mesh, specs=specs)
    return (
        objective,
        make_train_step(objective, optimizer, shardings),
        place_on_mesh(state, shardings),
    )


@functools.cache
def gradient_on(way, devices, fsdp, tensor):
    """Returns (loss, gradient) with dropout."""
    mesh = make_mesh(devices, fsdp, tensor)
    objective, _, state = step_of(way, mesh)
    function = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
    (loss, _), gradient = function(
        state.params, split_groups(make_batch(), mesh), jax.random.key(1), state.frozen
    )
    return float(loss), np.concatenate(
        [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)]
    )


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "way, mesh",
    [
        pytest.param("lora", "8x1x1", marks=SLOW),
        pytest.param("lora", "2x2x2", marks=SLOW),
        pytest.param("lora", "1x4x2", marks=SLOW),
        pytest.param("whole", "8x1x1", marks=SLOW),
        ("whole", "2x2x2"),
        pytest.param("whole", "1x4x2", marks=SLOW),
        *(pytest.param(way, mesh, marks=SLOW) for way in ("dora", "int8") for mesh in MESHES),
    ],
)
def test_a_mesh_gives_the_loss_and_gradient_of_one_device(way, mesh):
    expected, result = gradient_on(way, 1, 1, 1), gradient_on(way, *MESHES[mesh])
    assert np.isfinite(expected[0]) and np.linalg.norm(expected[1]) > 1e-2
    assert abs(result[0] - expected[0]) <= 1e-5 * abs(expected[0])
    assert np.linalg.norm(result[1] - expected[1]) <= 1e-5 * np.linalg.norm(expected[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["matryoshka(info_nce(hard_negative_weight=2), dims='64,16')", "qwen3"]
)
def test_an_adapter_goes_with_prefixes_groups_and_a_queue(loss):
    """Results are equal for eight groups on a mesh or one device, and for the whole batch.

    Dropout is off.
    """
    function, about = build_loss(loss), build_loss(loss).about
    spec = dataclasses.replace(random_spec("decoder-tiny", vocab_size=VOCAB), lora=LoraSpec(4, 8.0))
    encoder, params, base = start("lora")
    encoder = build_encoder(spec, unroll=1)
    extra = init_queue(8, encoder.dim, params["encoder"], 0.9) if about.queue else {}
    result = []
    for devices, groups in ((1, 1), (1, 8), (8, 8)):
        mesh = make_mesh(devices)
        objective = global_loss(encoder, function, mesh)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
        (value, _), gradient = step(
            params, split_groups(make_batch(groups), mesh), jax.random.key(1), base, extra
        )
        result.append(
            (
                float(value),
                np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)]),
            )
        )
    for value, gradient in result[1:]:
        assert abs(value - result[0][0]) <= 1e-5 * abs(result[0][0])
        assert np.linalg.norm(gradient - result[0][1]) <= 1e-5 * np.linalg.norm(result[0][1])


def local_bytes(tree):
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.slow
@SLOW
@pytest.mark.parametrize("way", ["lora", "whole"])
def test_a_device_s_state_and_step_shrink_with_the_shards(way):
    """Memory shrinks by fsdp * tensor, or by fsdp only; the compiler counts the same arguments."""
    result = {}
    for name, (devices, fsdp, tensor) in {"1x1x1": (1, 1, 1), "1x4x2": MESHES["1x4x2"]}.items():
        mesh = make_mesh(devices, fsdp, tensor)
        _, step, state = step_of(way, mesh)
        batch = split_groups(make_batch(), mesh)
        plan = step.lower(state, batch, jax.random.key(1)).compile(QUICKLY).memory_analysis()
        arguments = local_bytes(state) + local_bytes(batch) + 8  # and the key
        assert plan.argument_size_in_bytes == pytest.approx(arguments, rel=0.02)
        result[name] = local_bytes(state), plan.argument_size_in_bytes + plan.temp_size_in_bytes
    (whole, whole_peak), (shard, shard_peak) = result["1x1x1"], result["1x4x2"]
    assert (
        4 < whole / shard < 8
    )  # the base's kernels by 8, an adapter and the embeddings over fsdp only
    assert shard_peak < 0.5 * whole_peak


@pytest.mark.slow
def test_an_adapter_alone_has_gradients_and_moments():
    encoder, params, base = start("lora")
    _, _, state = step_of("lora", make_mesh(1))
    config = encoder.config
    heads, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    sizes = [
        (config.hidden_size, heads),
        *[(config.hidden_size, keys)] * 2,
        (heads, config.hidden_size),
    ]
    sizes += [(config.hidden_size, config.intermediate_size)] * 2 + [
        (config.intermediate_size, config.hidden_size)
    ]
    expected = config.num_layers * sum(4 * (inputs + outputs) for inputs, outputs in sizes)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert (count, moments) == (expected, 2 * expected)
    _, gradient = gradient_on("lora", 1, 1, 1)
    assert gradient.size == expected
    assert set(base[BASE]) == {"backbone"}, "and all of the base is in the state once"


@pytest.mark.slow
def test_what_is_frozen_stays_bit_for_bit():
    mesh = make_mesh(2, 2)
    _, step, state = step_of("lora", mesh)
    before = jax.device_get(state.frozen), jax.device_get(state.params)
    state, _ = step(state, split_groups(make_batch(), mesh), jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, before[0], jax.device_get(state.frozen)))
    changed = jax.tree.map(
        lambda old, new: not np.array_equal(old, new), before[1], jax.device_get(state.params)
    )
    assert jax.tree.all(changed)
