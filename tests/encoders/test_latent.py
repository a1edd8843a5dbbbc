"""Latent attention equals torch's, value and gradient, and sees one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError

HEAD = LatentAttention(width=16, latents=6, heads=4)
apply = jax.jit(HEAD.apply)
STATES = jax.random.normal(jax.random.key(0), (2, 5, 16))


def made(head, seed=1):
    """Makes parameters that all matter, biases and norms included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.4, x.shape), jnp.float32), shapes)


@pytest.mark.parametrize("head", [HEAD, dataclasses.replace(HEAD, head_size=16, mlp_size=24)])
def test_equals_torch(head):
    """Compares with scaled_dot_product_attention of torch.

    Also with multi_head_attention_forward, where heads are together as wide as the model.
    """
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    params = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), made(head))
    x = torch.tensor(np.asarray(STATES), requires_grad=True)

    def norm(name, y):
        return functional.layer_norm(y, (16,), params[name]["scale"], params[name]["bias"])

    latents = norm("latents_norm", params["latents"])
    query, key, value = (
        (y @ params[name]["kernel"]).reshape(-1, 4, head.size).transpose(0, 1)
        for name, y in (
            ("query", norm("norm", x).reshape(-1, 16)),
            ("key", latents),
            ("value", latents),
        )
    )
    read = (
        functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(2, 5, -1)
    )
    if not head.head_size:
        maps = torch.cat([params[name]["kernel"].T for name in ("query", "key", "value")])
        read_by_torch, _ = functional.multi_head_attention_forward(
            *(norm("norm", x).reshape(10, 1, 16), latents[:, None], latents[:, None]),
            *(16, 4, maps, None, None, None, False, 0.0, params["out"]["kernel"].T, None),
            training=False,
        )
        np.testing.assert_allclose(
            (read @ params["out"]["kernel"]).detach().reshape(10, 16),
            read_by_torch.detach()[:, 0],
            atol=1e-5,
        )
    x1 = x + read @ params["out"]["kernel"]
    up, gate = (norm("mlp_norm", x1) @ params["up"]["kernel"] + params["up"]["bias"]).chunk(
        2, dim=-1
    )
    expected = x1 + (up * functional.gelu(gate)) @ params["down"]["kernel"] + params["down"]["bias"]
    weight = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    result, pullback = jax.vjp(jax.jit(head.apply), made(head), STATES)
    np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-4)
    gradients = pullback(jnp.asarray(weight))
    reference = jax.tree.map(lambda y: y.grad.numpy(), (params, x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max())),
        gradients,
        reference,
    )


def test_the_order_of_the_latents_does_not_matter():
    params = made(HEAD)
    shuffled = params | {"latents": params["latents"][np.array([3, 1, 5, 0, 2, 4])]}
    np.testing.assert_allclose(apply(shuffled, STATES), apply(params, STATES), atol=1e-5)


def test_a_token_does_not_see_the_others():
    """Tokens are independent, so rows may be packed and padded in any way."""
    params = made(HEAD)
    whole = apply(params, STATES)
    order = np.random.default_rng(0).permutation(10)
    rows = STATES.reshape(-1, 16)[order].reshape(5, 2, 16)
    np.testing.assert_allclose(
        apply(params, rows).reshape(10, 16), whole.reshape(10, 16)[order], atol=1e-5
    )
    shouted = STATES.at[:, 3:].set(1e4)
    np.testing.assert_allclose(apply(params, shouted)[:, :3], whole[:, :3], atol=1e-5)


def test_gradient_equals_finite_differences():
    """Compares along random directions, in float32, as norms use it in any dtype.

    The central differences have a step of 1e-2.
    """
    head = LatentAttention(width=4, latents=3, heads=2)
    flat, unravel = ravel_pytree((made(head), STATES[:1, :2, :4]))
    weight = jax.random.normal(jax.random.key(2), (1, 2, 4))
    value = jax.jit(lambda x: jnp.sum(head.apply(*unravel(x)) * weight))
    gradient = np.asarray(jax.grad(value)(flat))
    for seed in range(5):
        direction = np.random.default_rng(seed).normal(size=flat.shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        slope = (value(flat + 1e-2 * direction) - value(flat - 1e-2 * direction)) / 2e-2
        np.testing.assert_allclose(
            slope, gradient @ direction, atol=2e-3 * np.linalg.norm(gradient)
        )


def test_bfloat16_is_near():
    params = made(HEAD)
    half = apply(params, STATES.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    full = apply(params, STATES)
    assert np.linalg.norm(half.astype(jnp.float32) - full) / np.linalg.norm(full) < 0.02


def test_sizes_that_do_not_fit_are_one_line():
    with pytest.raises(
        InputError, match="heads: expected a divisor of the width 10, or a head_size, found 4"
    ):
        LatentAttention(width=10, heads=4)
    with pytest.raises(InputError, match="latents: expected 1 or more, found 0"):
        LatentAttention(width=16, latents=0)
    assert HEAD.init(jax.random.key(0)).keys() == made(HEAD).keys()


# ---- in an encoder -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_encoder_pools_what_comes_out(packed, unpacked):
    """The embeddings equal those of the same parts one by one, in any packing."""
    spec = random_spec("tiny", vocab_size=60, normalize=False)
    head = LatentAttention(spec.backbone.hidden_size, latents=6, heads=4)
    encoder = build_encoder(dataclasses.replace(spec, token_head=head))
    params = jax.jit(encoder.init)(jax.random.key(0))
    params |= {"token_head": made(head)}
    run = jax.jit(encoder.apply)
    result = run(params, unpacked, None)
    np.testing.assert_allclose(run(params, packed, None), result, atol=1e-5)
    hidden = jax.jit(encoder.hidden)(params, unpacked, None)
    states = jax.jit(head.apply)(params["token_head"], hidden)
    for pooled, same in ((states, True), (hidden, False)):
        means = np.stack([np.asarray(pooled)[i][unpacked.pooled[i]].mean(0) for i in range(5)])
        assert (np.abs(result - means).max() < 1e-5) == same


def test_what_a_token_head_cannot_follow_is_one_line():
    spec = random_spec("tiny")
    with pytest.raises(
        InputError,
        match="first_last_mean.* reads several layers: a token head is for the last one's",
    ):
        build_encoder(
            dataclasses.replace(spec, pooling="first_last_mean", token_head=LatentAttention(32))
        )
    with pytest.raises(
        InputError, match="token head: expected the width 32 of the backbone's states, found 64"
    ):
        build_encoder(dataclasses.replace(spec, token_head=LatentAttention(64)))
