"""Checkpoints: bitwise, surviving damage, refusing another architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.config import Optim
from embed_jax.errors import InputError, RunError
from embed_jax.train.checkpoint import Checkpoints
from embed_jax.train.optim import make_optimizer
from embed_jax.train.step import init_state


def state_of(seed: int, rows: int = 50):
    kernel = jax.random.normal(jax.random.key(seed), (rows, 40))
    params = {"encoder": {"dense": {"kernel": kernel, "bias": kernel[0]}}, "loss": {}}
    return init_state(params, make_optimizer(Optim(accumulate=2), 10))


def equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def test_a_state_comes_back_bit_for_bit_although_its_buffers_were_given_away(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state, copies = state_of(0), []
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(state) is None and checkpoints.latest_step() is None
        for step in (1, 2, 3):
            copies.append(jax.tree.map(np.array, state))
            checkpoints.save(step, state, {"best": {"value": step}})
            state = advance(state)  # while the save is under way
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored, notes = checkpoints.restore(state_of(1))
    assert equal(restored, copies[-1]) and notes == {"best": {"value": 3}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    first = state_of(0)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, first, {})
        checkpoints.save(2, state_of(1), {})
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        restored, _ = checkpoints.restore(state_of(2))
        assert checkpoints.latest_step() == 1
    assert equal(restored, first)
    assert "checkpoint 2 is damaged" in capsys.readouterr().err
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    with Checkpoints(tmp_path, keep=3) as checkpoints, pytest.raises(RunError, match="can be read"):
        checkpoints.restore(state_of(2))


def test_another_architecture_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state_of(0), {})
        with pytest.raises(
            InputError, match=r"dense/kernel has shape \[50, 40\], this model's has \[60, 40\]"
        ):
            checkpoints.restore(state_of(0, rows=60))
        assert checkpoints.restore(state_of(1)) is not None


def test_what_decays_and_what_multiplies_in_a_real_encoder():
    """All leaves except biases, norms and the loss's parameters decay.

    All except the embedding tables cost FLOPs per token.
    """
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.train.optim import decay_mask
    from embed_jax.train.speed import training_flops_per_token

    shapes = jax.eval_shape(build_encoder(random_spec("tiny")).init, jax.random.key(0))
    mask = decay_mask({"encoder": shapes, "loss": {"temperature": jnp.ones(())}})
    assert not mask["loss"]["temperature"]
    backbone = mask["encoder"]["backbone"]
    assert backbone["embeddings"] == {
        "norm": {"bias": False, "scale": False},
        "position": True,
        "token": True,
        "token_type": True,
    }
    assert backbone["layers"]["up"] == {"bias": False, "kernel": True}
    assert not any(backbone["layers"]["attention_norm"].values())
    layers = sum(leaf.size for leaf in jax.tree.leaves(shapes["backbone"]["layers"]))
    assert training_flops_per_token(shapes) == 6 * layers


def test_weight_decay_leaves_biases_and_norms_alone():
    params = {
        "layers": {
            "kernel": jnp.ones((2, 3, 3)),
            "bias": jnp.ones((2, 3)),
            "scale": jnp.ones((2, 3)),
        }
    }
    optimizer = make_optimizer(
        Optim(learning_rate=0.1, weight_decay=0.5, clip_norm=0.0, schedule="constant"), 10
    )
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.05, rtol=1e-6)
    assert not updates["layers"]["bias"].any() and not updates["layers"]["scale"].any()


def test_accumulation_is_the_update_of_the_mean_gradient():
    params = {"kernel": jnp.ones((4, 4))}
    gradients = [{"kernel": jax.random.normal(jax.random.key(n), (4, 4))} for n in range(2)]
    settings = {"learning_rate": 0.1, "clip_norm": 0.5, "schedule": "linear"}
    optimizer = make_optimizer(Optim(**settings), 5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    expected, _ = optimizer.update(mean, optimizer.init(params), params)
    two = make_optimizer(Optim(**settings, accumulate=2), 5)
    nothing, state = two.update(gradients[0], two.init(params), params)
    result, _ = two.update(gradients[1], state, params)
    assert not nothing["kernel"].any()
    np.testing.assert_allclose(result["kernel"], expected["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    "schedule, middle, end", [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_schedules(schedule, middle, end):
    from embed_jax.train.optim import make_learning_rate

    rate = make_learning_rate(Optim(learning_rate=1.0, schedule=schedule, warmup=0.1), 100)
    np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.1, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose([rate(55), rate(100)], [middle, end], atol=1e-6)
