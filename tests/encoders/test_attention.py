"""All attention bodies compute the same values, dropout included.

Masked slots have no influence at all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders import attention as module
from embed_jax.encoders.attention import attention, sentence_bias
from embed_jax.errors import InputError

SENTENCE = np.array(
    [[0, 0, 0, 1, 1, 4, 4, 4], [2, 2, 2, 2, 2, 2, 2, 3], [4] * 8, [5] * 8], np.int32
)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(jax.random.normal(key, (4, 8, 2, 4)) for key in keys[:3]), jax.random.normal(
        keys[3], (4, 2, 8, 8)
    )


def textbook(query, key, value, bias):
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) / jnp.sqrt(query.shape[-1]) + bias
    return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), value)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_equals_the_textbook_and_its_gradient(inputs, implementation, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2 * 2 * 64)  # two rows of two heads at a time
    (query, key, value), relative = inputs
    bias = sentence_bias(SENTENCE) + relative

    def run(body, *arrays):
        out, pullback = jax.vjp(body, *arrays)
        return out, pullback(jnp.cos(out))

    result = jax.jit(partial(run, partial(attention, implementation=implementation)))(
        query, key, value, bias
    )
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=2e-6),
        result,
        run(textbook, query, key, value, bias),
    )


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_other_sentences_count_for_nothing(inputs, implementation, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    (query, key, value), _ = inputs
    run = jax.jit(partial(attention, implementation=implementation))
    bias = sentence_bias(SENTENCE)
    own = SENTENCE == 0
    changed = jnp.where(own[..., None, None], value, 1e6)
    np.testing.assert_array_equal(
        run(query, key, value, bias)[own], run(query, key, changed, bias)[own]
    )
    assert np.isfinite(run(query * 1e4, key, value, bias)).all()


def test_same_dropout_in_every_body(inputs, monkeypatch):
    (query, key, value), relative = inputs
    bias = sentence_bias(SENTENCE) + relative

    @partial(jax.jit, static_argnames=["implementation"])
    def run(seed, implementation):
        options = dict(dropout_rate=0.3, dropout_key=seed, implementation=implementation)
        return jax.value_and_grad(
            lambda q: jnp.sum(attention(q, key, value, bias, **options) ** 2)
        )(query)

    whole = run(jax.random.key(1), "xla")
    for block in (1, 2 * 2 * 64):
        monkeypatch.setattr(module, "BLOCK", block)
        jax.clear_caches()
        result = run(jax.random.key(1), "blocks")
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), result, whole)
    assert run(jax.random.key(2), "xla")[0] != whole[0]


def test_unknown_implementation(inputs):
    (query, key, value), _ = inputs
    with pytest.raises(
        InputError, match="unknown attention 'flash'.*known: auto, blocks, cudnn, xla"
    ):
        attention(query, key, value, sentence_bias(SENTENCE), implementation="flash")
    with pytest.raises(InputError, match="no dropout"):
        attention(
            query,
            key,
            value,
            sentence_bias(SENTENCE),
            dropout_rate=0.1,
            dropout_key=jax.random.key(0),
            implementation="cudnn",
        )
