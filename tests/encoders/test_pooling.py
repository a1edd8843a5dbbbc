"""Poolings equal sentence-transformers' Pooling, packed, with and without the prompt's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders.modules import POOLING_NAMES
from embed_jax.encoders.pooling import POOLINGS, check_pooling, pool
from embed_jax.errors import InputError

LENGTHS = (7, 3, 11, 5, 4)


@pytest.fixture(scope="module", params=[0, 2], ids=["all tokens", "without prompt"])
def group(request, make_batch):
    ids = [np.full(n, 9, np.int32) for n in LENGTHS]
    rows = [[(4, ids[4]), (0, ids[0])], [(2, ids[2])], [], [(3, ids[3]), (1, ids[1])]]
    return make_batch(rows, 16, 6, request.param), request.param


@pytest.mark.parametrize("name", [n for n in POOLINGS if n != "first_last_mean"])
def test_equals_sentence_transformers(name, group, states):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.models")
    tokens, skip = group
    hidden = jax.random.normal(jax.random.key(0), (4, 16, 8))

    padded = np.zeros((5, 12, 8), np.float32)
    for i, state in enumerate(states(hidden, tokens)[:5]):
        padded[i, : len(state)] = state
    mask = np.arange(12) < np.array(LENGTHS)[:, None]
    reference = torch.tensor(padded, requires_grad=True)
    layer = modules.Pooling(8, pooling_mode=POOLING_NAMES[name][0], include_prompt=skip == 0)
    expected = layer(
        {
            "token_embeddings": reference,
            "attention_mask": torch.tensor(mask).long(),
            "prompt_length": skip,
        }
    )
    expected = expected["sentence_embedding"]
    weight = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    result, pullback = jax.vjp(jax.jit(lambda h: pool(name, h, tokens)), hidden)
    np.testing.assert_allclose(result[:5], expected.detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(result[5], 0.0)  # a sentence without tokens
    (gradient,) = pullback(jnp.zeros((6, 8)).at[:5].set(weight))
    for ours, other, length in zip(
        states(gradient, tokens), reference.grad.numpy(), LENGTHS, strict=False
    ):
        np.testing.assert_allclose(ours, other[:length], atol=1e-6)
    np.testing.assert_array_equal(gradient[tokens.sentence == 6], 0.0)


def test_first_last_mean_and_several(group):
    tokens, _ = group
    layers = jax.random.normal(jax.random.key(0), (3, 4, 16, 8))
    both = (pool("mean", layers[0], tokens) + pool("mean", layers[2], tokens)) / 2
    np.testing.assert_allclose(pool("first_last_mean", layers, tokens), both, atol=1e-6)
    several = pool("cls+first_last_mean", layers, tokens)
    np.testing.assert_allclose(
        several, np.concatenate([pool("cls", layers[2], tokens), both], 1), atol=1e-6
    )


def test_a_token_with_huge_states_elsewhere_does_not_matter(group):
    tokens, _ = group
    hidden = jax.random.normal(jax.random.key(0), (4, 16, 8))
    shouted = jnp.where((tokens.sentence == 2)[..., None], 1e6, hidden)
    for name in ("mean", "max", "cls", "weighted_mean"):
        np.testing.assert_allclose(
            pool(name, hidden, tokens)[0], pool(name, shouted, tokens)[0], rtol=1e-6
        )


def test_unknown_pooling():
    with pytest.raises(InputError, match="unknown pooling 'meen' .did you mean 'mean'"):
        check_pooling("cls+meen")
