"""Objectives beside the loss.

One mean over the global batch, equal on any devices, computed in the loop over groups.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.token_objectives import mlm_auxiliary
from embed_jax.losses.in_batch import info_nce
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, param_specs, place_on_mesh, split_groups
from embed_jax.parallel.queue import init_queue
from embed_jax.types import Auxiliary, Batch

EXAMPLES, GROUPS, VOCAB, MASK, QUEUE = 16, 8, 60, 4, 10
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.fixture(scope="module")
def encoder():
    spec = random_spec("tiny", vocab_size=VOCAB)
    small = {
        "hidden_size": 32,
        "embedding_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "max_positions": 16,
    }
    return build_encoder(
        dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small)), unroll=1
    )


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)]
        for _ in range(2)
    ]
    tokens, order = pack_batch(ids, groups=GROUPS, row_length=16)
    present = np.ones((GROUPS, 2, EXAMPLES // GROUPS), bool)
    text_hash = rng.integers(1, 2**32, (*present.shape, 2), np.uint32)
    return Batch({"encoder": tokens}, present, text_hash, order)


@pytest.mark.slow
def test_the_mean_is_over_all_groups_alike_and_added_by_weight(encoder):
    """Groups have different numbers of tokens, and each counts with its own number."""

    def apply(own, params, tokens, key, read=None):
        there = tokens.sentence < tokens.sentences
        noise, count = jax.random.uniform(key), jnp.sum(there).astype(jnp.float32)
        total = own["scale"] * jnp.sum(jnp.where(there, tokens.token_ids, 0))
        return total, count, {"noise": noise * count, "square": noise**2 * count}

    counting = Auxiliary(lambda key: {"scale": jnp.float32(1.0)}, apply)
    params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}
    batch, key = make_batch(), jax.random.key(1)
    bare = jax.jit(global_loss(encoder, info_nce, make_mesh(1)), compiler_options=QUICKLY)(
        params, batch, key
    )
    params["auxiliary"] = {"counting": counting.init(key)}
    objective = global_loss(
        encoder, info_nce, make_mesh(1), auxiliary={"counting": (0.25, counting)}
    )
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
    (total, (metrics, _)), gradients = gradient(params, batch, key)
    tokens = batch.tokens["encoder"]
    there = np.asarray(tokens.sentence < tokens.sentences)
    expected = tokens.token_ids[there].mean()
    assert len(set(there.sum((1, 2)).tolist())) > 1
    assert float(total) == pytest.approx(float(bare[0]) + 0.25 * expected, rel=1e-6)
    assert float(metrics["counting/loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(gradients["auxiliary"]["counting"]["scale"]) == pytest.approx(
        0.25 * expected, rel=1e-6
    )
    assert set(metrics) == {*bare[1][0], "counting/loss", "counting/noise", "counting/square"}
    for name in bare[1][0]:
        assert float(metrics[name]) == pytest.approx(float(bare[1][0][name]), rel=1e-6), (
            "the dropout is what it was"
        )
    variance = float(metrics["counting/square"] - metrics["counting/noise"] ** 2)
    assert variance > 0.02, "groups have their own keys"


@pytest.fixture(scope="module")
def run(encoder):
    """Returns loss, metrics, gradient and queue entries of MLM beside info_nce.

    With a queue and a momentum encoder.
    """

    def run(devices, fsdp=1, tensor=1, dropout=True):
        mesh = make_mesh(devices, fsdp, tensor)
        mlm = mlm_auxiliary(encoder, MASK, special_ids=(1, 2))
        weights = encoder.init(jax.random.key(0))
        params = {"encoder": weights, "loss": {}, "auxiliary": {"mlm": mlm.init(jax.random.key(1))}}
        extra = init_queue(QUEUE, encoder.dim, jax.tree.map(lambda leaf: 0.9 * leaf, weights), 0.99)
        rng = np.random.default_rng(1)
        embeddings = jnp.asarray(rng.normal(size=(QUEUE, encoder.dim)).astype(np.float32))
        hashes = jnp.asarray(rng.integers(1, 99, (QUEUE, 2)).astype(np.uint32))
        extra["queue"] |= {"embeddings": embeddings, "text_hash": hashes, "filled": jnp.int32(7)}
        specs = param_specs(
            params, [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding], mesh
        )
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            specs,
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )
        extra["momentum"] = place_on_mesh(extra["momentum"], shardings["encoder"])
        objective = global_loss(encoder, info_nce, mesh, specs=specs, auxiliary={"mlm": (0.1, mlm)})
        gradient = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
        key = jax.random.key(2) if dropout else None
        arguments = (
            place_on_mesh(params, shardings),
            split_groups(make_batch(), mesh),
            key,
            {},
            extra,
        )
        (loss, (metrics, _, entries)), gradients = jax.device_get(gradient(*arguments))
        return loss, metrics, gradients, entries, (gradient, arguments)

    return run


@pytest.fixture(scope="module")
def single_device(run):
    return run(1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8,), (8, 2, 2)])
def test_devices_do_not_matter(run, single_device, mesh):
    loss, metrics, gradients, entries, _ = run(*mesh)
    assert abs(loss - single_device[0]) <= 1e-6 * abs(single_device[0])
    assert metrics.keys() == single_device[1].keys()
    for name in metrics:
        assert metrics[name] == pytest.approx(single_device[1][name], rel=1e-6, abs=1e-6), name
    flat, expected = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)])
        for g in (gradients, single_device[2])
    )
    assert np.linalg.norm(flat - expected) <= 1e-6 * np.linalg.norm(expected)
    head = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(single_device[2]["auxiliary"])])
    assert np.linalg.norm(head) > 1e-2
    np.testing.assert_allclose(entries["embeddings"], single_device[3]["embeddings"], atol=1e-6)
    np.testing.assert_array_equal(entries["text_hash"], single_device[3]["text_hash"])


def test_what_is_measured(run, single_device, encoder):
    """The loss of an untrained head is about log V, and a tenth of it is in the sum.

    Entries of the queue have no dropout.
    """
    loss, metrics, _, entries, (gradient, arguments) = single_device
    assert (
        metrics["mlm/loss"] == pytest.approx(np.log(VOCAB), rel=0.1)
        and 0.0 <= metrics["mlm/accuracy"] < 0.3
    )
    assert metrics["queue/filled"] == 7 and metrics["queue/age"] == 1
    params, batch, _, _, extra = arguments
    tokens = batch.tokens["encoder"]
    weights = jax.tree.map(lambda leaf: 0.9 * leaf, params["encoder"])
    group = jax.tree.map(lambda leaf: leaf[3], tokens)
    positives = jax.jit(encoder.apply, compiler_options=QUICKLY)(weights, group, None)[
        EXAMPLES // GROUPS :
    ]
    np.testing.assert_allclose(
        entries["embeddings"].reshape(GROUPS, -1, encoder.dim)[3], positives, atol=1e-5
    )


def test_no_group_keeps_its_logits(single_device):
    """The backward pass over all groups stores sums only, never [groups, K, V]."""
    gradient, arguments = single_device[-1]
    text = gradient.lower(*arguments).as_text()
    slots = int(np.ceil(0.15 * np.prod(arguments[1].tokens["encoder"].token_ids.shape[1:])))
    assert f"tensor<{slots}x{VOCAB}xf32>" in text
    assert f"x{slots}x{VOCAB}xf32>" not in text
