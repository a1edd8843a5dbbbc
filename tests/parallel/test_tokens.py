"""Training on tokens only: one mean over the global batch's tokens, for any devices and groups."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.token_objectives import build_token_objective
from embed_jax.parallel.mesh import make_mesh, param_specs, place_on_mesh, split_groups
from embed_jax.parallel.tokens import token_loss
from embed_jax.types import BASE, Auxiliary, Batch

EXAMPLES, VOCAB = 16, 60
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
TOKENIZER = types.SimpleNamespace(
    mask_token="[MASK]", all_special_ids=[1, 2], get_vocab=lambda: {"[MASK]": 4}
)


@pytest.fixture(scope="module", autouse=True)
def in_blocks():
    """Computes the logits of ten tokens at a time, on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embed_jax.encoders.token_objectives.BLOCK", 10 * VOCAB)
        yield


@pytest.fixture(scope="module")
def encoders():
    made = {}
    for name, changes in (
        ("tiny", {"embedding_size": 32, "max_positions": 16}),
        ("decoder-tiny", {"head_size": 8}),
    ):
        small = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 4, **changes}
        small |= {"hidden_dropout": 0.1, "attention_dropout": 0.1}
        spec = random_spec(name, vocab_size=VOCAB)
        backbone = dataclasses.replace(spec.backbone, **small)
        made[name] = build_encoder(dataclasses.replace(spec, backbone=backbone), unroll=1)
    return made


def make_batch(groups=8) -> Batch:
    """Makes the same sentences, one per example, in this many groups."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)]
    tokens, order = pack_batch([ids], groups=groups, row_length=16)
    present = np.ones((groups, 1, EXAMPLES // groups), bool)
    return Batch({"encoder": tokens}, present, np.ones((*present.shape, 2), np.uint32), order)


@pytest.mark.unchecked
def test_the_mean_is_over_what_is_counted_in_all_groups():
    """It is not the mean of the groups' means, as their counts differ.

    A value that is not finite is reported by group.
    """

    def apply(own, params, tokens, key, read=None):
        there = tokens.sentence < tokens.sentences
        count = jnp.sum(there).astype(jnp.float32)
        total = own["scale"] * params["factor"] * jnp.sum(jnp.where(there, tokens.token_ids, 0))
        noise = 0.0 if key is None else jax.random.uniform(key)
        broken = jnp.any(there & (tokens.token_ids == 59))
        return jnp.where(broken, jnp.nan, total), count, {"noise": noise * count}

    counting = Auxiliary(lambda key: {"scale": jnp.float32(0.01)}, apply)
    objective = token_loss(types.SimpleNamespace(layers=()), counting, make_mesh(4))
    params = {"encoder": {}, "loss": counting.init(jax.random.key(0))}
    base = {BASE: {"factor": jnp.float32(2.0)}}  # what "encoder" lacks
    batch = make_batch()
    tokens = batch.tokens["encoder"]
    batch.tokens["encoder"] = tokens.replace(token_ids=np.minimum(tokens.token_ids, 58))
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
    (value, (metrics, finite)), slopes = gradient(params, batch, jax.random.key(1), base)
    there = np.asarray(tokens.sentence < tokens.sentences)
    expected = 0.02 * batch.tokens["encoder"].token_ids[there].mean()
    assert len(set(there.sum((1, 2)).tolist())) > 1
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(slopes["loss"]["scale"]) == pytest.approx(expected / 0.01, rel=1e-6)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(expected), rel=1e-5)
    assert 0 < metrics["noise"] < 1 and set(metrics) == {"noise", "perplexity"}
    assert finite.shape == (EXAMPLES,) and finite.all()

    worse = tokens.token_ids.copy()
    worse[there] = np.minimum(worse[there], 58)
    group, row, slot = np.argwhere(there)[-1]
    worse[group, row, slot] = 59
    batch.tokens["encoder"] = tokens.replace(token_ids=worse)
    (value, (_, finite)), _ = gradient(params, batch, jax.random.key(1), base)
    assert np.isnan(value)
    assert np.flatnonzero(~np.asarray(finite)).tolist() == [2 * group, 2 * group + 1], (
        "that group's examples"
    )


@pytest.fixture(scope="module")
def run(encoders):
    """Returns (loss, metrics, gradient) of an objective by name, for devices and groups."""

    def run(name, devices=1, fsdp=1, tensor=1, groups=8, dropout=True, gather="layer"):
        mesh = make_mesh(devices, fsdp, tensor)
        encoder = encoders["decoder-tiny" if name.startswith("next") else "tiny"]
        objective = build_token_objective(name)(encoder, TOKENIZER)
        own = objective.init(jax.random.key(1))
        params = {"encoder": encoder.init(jax.random.key(0)), "loss": own}
        specs = param_specs(
            params, [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding], mesh
        )
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            specs,
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )
        loss = token_loss(encoder, objective, mesh, specs=specs, fsdp_gather=gather)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
        key = jax.random.key(2) if dropout else None
        arguments = place_on_mesh(params, shardings), split_groups(make_batch(groups), mesh), key
        (value, (metrics, finite)), slopes = jax.device_get(gradient(*arguments))
        assert finite.all() and finite.shape == (EXAMPLES,)
        return value, metrics, slopes

    return run


def assert_same(result, reference):
    assert abs(result[0] - reference[0]) <= 2e-6 * abs(reference[0])
    assert result[1].keys() == reference[1].keys() == {"accuracy", "perplexity"}
    for name in result[1]:
        assert result[1][name] == pytest.approx(reference[1][name], rel=1e-5), name
    flat, expected = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(each[2])])
        for each in (result, reference)
    )
    assert np.linalg.norm(flat - expected) <= 3e-6 * np.linalg.norm(expected) > 0


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["mntp(rate=0.4)", *(pytest.param(each, marks=SLOW) for each in ("mlm", "next_token"))]
)
def test_devices_do_not_matter(run, name):
    """Dropout and hidden tokens depend on the group's number, not on the device."""
    reference = run(name)
    assert reference[0] == pytest.approx(np.log(VOCAB), rel=0.1)
    assert_same(run(name, 8, 2), reference)


@pytest.mark.parametrize("mesh", [(2,), (4, 4), (8,), (8, 2, 2)])
@pytest.mark.slow
def test_any_mesh(run, mesh):
    assert_same(run("mntp(rate=0.4)", *mesh), run("mntp(rate=0.4)"))
    assert_same(run("next_token", *mesh, gather="once"), run("next_token"))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [pytest.param(2, marks=SLOW), 16])
def test_groups_do_not_matter_where_nothing_is_drawn(run, groups):
    assert_same(
        run("next_token", dropout=False, groups=groups), run("next_token", dropout=False, groups=1)
    )
