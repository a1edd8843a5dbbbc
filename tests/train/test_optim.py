"""Optimisers and schedules equal optax's and torch's; layers of a stacked leaf are separate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from embed_jax.config import Experiment, Optim
from embed_jax.config_rules import validate
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense
from embed_jax.encoders.lora import LoraSpec, init_lora
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import make_mesh, place_on_mesh, state_shardings, training_specs
from embed_jax.train.groups import path_name
from embed_jax.train.optim import decay_mask, make_learning_rate, make_optimizer, muon_labels
from embed_jax.train.step import init_state

LAYERS, INPUTS, OUTPUTS = 2, 128, 160  # large enough for Adafactor to factor


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.standard_normal(shape) * (1 + seed), jnp.float32)

    layers = {"up": {"kernel": leaf(LAYERS, INPUTS, OUTPUTS), "bias": leaf(LAYERS, OUTPUTS)}}
    embeddings = {"token": leaf(7, INPUTS)}
    return {
        "encoder": {
            "backbone": {"embeddings": embeddings, "layers": layers},
            "heads": {"0": {"kernel": leaf(INPUTS, 3)}},
        }
    }


def unstack(params):
    """Returns {path, or path with the layer: array}; no leaf has more than one layer."""
    separate = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(path)
        if "/layers/" in name:
            separate |= {f"{name}/{layer}": leaf[layer] for layer in range(LAYERS)}
        else:
            separate[name] = leaf
    return separate


def train(optimizer, convert=lambda params: params, steps=3):
    params = convert(make_params())
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for step in range(1, steps + 1):
        updates, state = update(convert(make_params(step)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_trees_close(params, reference, rtol=2e-6):
    assert params.keys() == reference.keys()
    for name in params:
        np.testing.assert_allclose(params[name], reference[name], rtol=rtol, atol=1e-6)


def optim_of(name, **fields):
    return Optim(name=name, **{"schedule": "constant", "clip_norm": 0.0, **fields})


def test_adafactor_is_optaxs_on_unstacked_layers():
    ours = train(make_optimizer(optim_of("adafactor", learning_rate=1e-2), 3))
    assert_trees_close(unstack(ours), train(optax.adafactor(1e-2), unstack))


def test_muon_is_optaxs_on_unstacked_kernels_and_adamw_elsewhere():
    optim = optim_of("muon", learning_rate=1e-2, weight_decay=0.1)
    ours = unstack(train(make_optimizer(optim, 3)))
    kernels = [name for name in ours if "up/kernel" in name]
    labels = {name: "muon" if name in kernels else "adamw" for name in ours}
    undecayed = {name: "bias" not in name for name in ours}
    plain = optax.partition(
        {
            "muon": optax.contrib.muon(1e-2, weight_decay=0.1, consistent_rms=0.2),
            "adamw": optax.adamw(
                1e-2, weight_decay=0.1, mask=lambda tree: {n: undecayed[n] for n in tree}
            ),
        },
        labels,
    )
    assert len(kernels) == LAYERS
    assert_trees_close(ours, train(plain, unstack), rtol=1e-5)


def test_muons_update_is_torchs():
    """Writes out torch's formula of Muon in float32, as torch itself computes in bfloat16."""
    torch = pytest.importorskip("torch")
    optimizer = make_optimizer(optim_of("muon", learning_rate=1e-2), 1)
    params, gradients = make_params(), make_params(1)
    updates, _ = jax.jit(optimizer.update)(gradients, jax.jit(optimizer.init)(params), params)
    update = updates["encoder"]["backbone"]["layers"]["up"]["kernel"]
    gradient = gradients["encoder"]["backbone"]["layers"]["up"]["kernel"]
    for layer in range(LAYERS):
        x = torch.tensor(np.asarray(gradient[layer]), dtype=torch.float64)
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        expected = -1e-2 * 0.2 * max(INPUTS, OUTPUTS) ** 0.5 * x
        np.testing.assert_allclose(update[layer], expected, rtol=1e-3, atol=1e-6)


def test_adamw_is_as_it_was_for_configs_without_groups():
    """Values are equal to the bit, and the state has the same tree, as in old checkpoints."""
    optim = Optim(learning_rate=1e-2, weight_decay=0.1, warmup=0.4)
    schedule = make_learning_rate(optim, 5)
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=0.1, mask=decay_mask),
    )
    ours = make_optimizer(optim, 5)
    assert jax.tree.structure(ours.init(make_params())) == jax.tree.structure(
        plain.init(make_params())
    )
    for value, expected in zip(
        jax.tree.leaves(train(ours)), jax.tree.leaves(train(plain)), strict=True
    ):
        assert value.tobytes() == expected.tobytes()


def test_which_leaf_gets_muon():
    spec = random_spec("tiny", vocab_size=50)
    backbone = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))["backbone"]
    lora = jax.eval_shape(
        lambda params: init_lora(
            dataclasses.replace(spec, lora=LoraSpec(2, 4.0)), params, jax.random.key(0)
        ),
        backbone,
    )
    head = jax.eval_shape(Dense(32, 8).init, jax.random.key(0))
    params = {
        "encoder": {"backbone": backbone, "lora": lora, "heads": {"0": head}},
        "loss": {"kernel": jnp.zeros((2, 3, 4))},
        "auxiliary": {"mlm": {"dense": {"kernel": jnp.zeros((4, 4))}}},
    }
    labels = jax.tree_util.tree_flatten_with_path(muon_labels(params))[0]
    layers = "encoder/backbone/layers"
    names = ("down", "key", "output", "query", "up", "value")
    assert {path_name(path) for path, label in labels if label == "muon"} == {
        f"{layers}/{name}/kernel" for name in names
    }
    assert {path_name(path) for path, label in labels if label == "adamw"} == {
        *(f"encoder/backbone/embeddings/{n}" for n in ("token", "position", "token_type")),
        *(f"encoder/backbone/embeddings/norm/{n}" for n in ("scale", "bias")),
        *(
            f"{layers}/{norm}_norm/{n}"
            for norm in ("attention", "output")
            for n in ("scale", "bias")
        ),
        *(f"{layers}/{name}/bias" for name in names),
        *(f"encoder/lora/layers/{name}/{n}" for name in names for n in "ab"),
        "encoder/heads/0/kernel",
        "encoder/heads/0/bias",
        "loss/kernel",
        "auxiliary/mlm/dense/kernel",
    }


def test_wsd_rises_stays_and_falls():
    optim = Optim(learning_rate=2.0, schedule="wsd", warmup=0.2, decay=0.4)
    rates = [float(make_learning_rate(optim, 10)(count)) for count in range(10)]
    np.testing.assert_allclose(rates, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5])
    plain = optax.join_schedules(
        [optax.constant_schedule(2.0), optax.linear_schedule(2.0, 0.0, 4)], [6]
    )
    np.testing.assert_allclose(rates[2:], [plain(count) for count in range(2, 10)])


def test_wsd_from_a_checkpoint_is_the_schedule_of_a_longer_run():
    """A stable run, ended or not, and a decay of four updates from its sixth.

    The rates agree up to there.
    """
    stable = make_learning_rate(Optim(schedule="constant"), 100)
    branch = make_learning_rate(Optim(schedule="wsd", decay=0.4), 10)
    for count in range(7):
        assert np.float32(branch(count)) == np.float32(stable(count))
    assert float(branch(7)) < float(stable(7))


def test_wsd_has_room_for_both_ends():
    config = Experiment()
    config.optim.schedule, config.optim.warmup, config.optim.decay = "wsd", 0.6, 0.5
    with pytest.raises(InputError, match="config.optim.decay: expected at most 1 together with"):
        validate(config)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_in_shards_it_is_the_same_update(name):
    """Parameters and moments are split over four devices; row and column sums are whole."""
    mesh = make_mesh(4, fsdp=4)
    rules = [("backbone/layers/up/kernel", (None, "fsdp", None))]
    optimizer = make_optimizer(optim_of(name, learning_rate=1e-2, weight_decay=0.1), 3)
    state = init_state(make_params(), optimizer)
    shardings = state_shardings(state, optimizer, training_specs(state.params, rules, mesh), mesh)
    state = place_on_mesh(state, shardings)
    params, opt_state = state.params, state.opt_state
    update = jax.jit(optimizer.update, out_shardings=(shardings.params, shardings.opt_state))
    for step in range(1, 4):
        gradients = place_on_mesh(make_params(step), shardings.params)
        updates, opt_state = update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
    kernel = params["encoder"]["backbone"]["layers"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (LAYERS, INPUTS // 4, OUTPUTS)
    split = [leaf for leaf in jax.tree.leaves(opt_state) if not leaf.sharding.is_fully_replicated]
    assert len(split) == {"adamw": 2, "adafactor": 0, "muon": 1}[name]
    reference = unstack(
        train(make_optimizer(optim_of(name, learning_rate=1e-2, weight_decay=0.1), 3))
    )
    for path, value in unstack(params).items():
        error = np.linalg.norm(value - reference[path]) / np.linalg.norm(reference[path])
        assert error <= 1e-6, path
