"""Dropout's masks are random enough, and a function of the key only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from embed_jax.encoders.layers import ACTIVATIONS, dropout, keep_mask, matrix_product
from embed_jax.errors import InputError

SHAPE = (16, 250, 250)


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5])
def test_rate_and_independence(rate):
    def dropped(seed):
        return ~np.asarray(keep_mask(jax.random.key(seed), rate, SHAPE))

    first, second = dropped(0), dropped(1)
    n = first.size
    assert abs(first.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    # Neighbours along each axis, and two keys: together as often as independent events are.
    pairs = [
        (first[1:], first[:-1]),
        (first[:, 1:], first[:, :-1]),
        (first[..., 1:], first[..., :-1]),
        (first, second),
    ]
    for a, b in pairs:
        assert abs((a & b).mean() - rate**2) < 5 * rate * np.sqrt(1 / a.size) + 1e-6
    # Sums over rows and columns spread as a binomial's do.
    for axis in (1, 2):
        spread = first.mean(axis).std() / np.sqrt(rate * (1 - rate) / 250)
        assert 0.95 < spread < 1.05


def test_masks_of_many_keys_are_independent():
    masks = jax.vmap(lambda key: keep_mask(key, 0.5, (64,)))(
        jax.random.split(jax.random.key(0), 2000)
    )
    centred = 2.0 * np.asarray(masks) - 1
    assert abs(centred.mean()) < 5 / np.sqrt(centred.size)
    correlation = centred.T @ centred / len(centred) - np.eye(64)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(2000)


def test_scales_by_the_kept_share_and_passes_the_gradient():
    x = jnp.full(SHAPE, 2.0)
    out, pullback = jax.vjp(lambda x: dropout(x, 0.1, jax.random.key(0)), x)
    np.testing.assert_allclose(out[out > 0], 2.0 / 0.9, rtol=1e-6)
    assert abs(out.mean() - 2.0) < 2e-3
    np.testing.assert_allclose(pullback(jnp.ones_like(x))[0], out / 2, rtol=1e-6)
    assert dropout(x, 0.1, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_same_key_same_mask_wherever_it_is_made():
    keys = jax.random.split(jax.random.key(0), 8)
    expected = np.stack([keep_mask(key, 0.1, (7, 9)) for key in keys])
    made = jax.jit(lambda keys: lax.map(lambda key: keep_mask(key, 0.1, (7, 9)), keys))
    np.testing.assert_array_equal(made(keys), expected)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    np.testing.assert_array_equal(
        jax.jit(jax.shard_map(made, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(keys),
        expected,
    )


def test_a_piece_of_a_mask_is_that_piece():
    whole = keep_mask(jax.random.key(0), 0.3, (4, 6, 5))
    piece = jax.jit(lambda row: keep_mask(jax.random.key(0), 0.3, (2, 6, 5), row * 30))(2)
    np.testing.assert_array_equal(piece, whole[2:])


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu", "tanh"])
def test_activations_equal_torch(name):
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.tensor(x)).numpy(), atol=2e-6
    )


def test_unknown_activation():
    from embed_jax.encoders.layers import activation

    with pytest.raises(InputError, match="unknown activation 'gelo' .did you mean 'gelu'"):
        activation("gelo")


def test_products_in_bfloat16_and_their_gradients_are_rounded_once():
    """Sums are of float32 products of the rounded numbers, and only the results are rounded."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, weights = (
        jax.random.normal(key, shape).astype(jnp.bfloat16)
        for key, shape in zip(keys, [(96, 700), (700, 24), (96, 24)], strict=True)
    )

    def backward(product, *inputs):
        value, pull = jax.vjp(product, *inputs)
        return value, *pull(weights.astype(value.dtype))

    exact = backward(jnp.matmul, *(a.astype(jnp.float32) for a in (x, kernel)))
    for got, expected in zip(backward(matrix_product, x, kernel), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        got = got.astype(jnp.float32)
        # Half a unit in the last of bfloat16's eight places, and float32's own rounding.
        assert jnp.all(jnp.abs(got - expected) <= 2.0**-8 * jnp.abs(expected) + 1e-4)


def test_products_in_bfloat16_and_of_their_gradients_are_of_rows_in_memory():
    """Only of such matrices does XLA's library for CPUs multiply bfloat16."""
    x, kernel = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 48), jnp.bfloat16)
    backward = jax.grad(lambda *both: jnp.sum(matrix_product(*both) ** 2), argnums=(0, 1))
    program = jax.jit(backward).lower(x, kernel).compile().as_text()
    products = [line for line in program.splitlines() if " dot(" in line]
    assert len(products) == 3
    for product in products:
        assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in product


def test_the_gradient_of_a_bfloat16_kernel_is_summed_over_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (8, 16)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (16, 4)).astype(jnp.bfloat16)
    parted = jax.shard_map(
        matrix_product, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )

    def gradient(product):
        return jax.jit(jax.grad(lambda k: (product(x, k).astype(jnp.float32) ** 2).sum()))(kernel)

    np.testing.assert_allclose(
        np.float32(gradient(parted)), np.float32(gradient(matrix_product)), rtol=2e-2, atol=0.25
    )
