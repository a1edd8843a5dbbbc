"""Copies of a text in an example have one dropout mask (SimCSE's "fixed 0.1") in any packing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.layers import MaskPositions, keep_mask
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError

SPEC = random_spec("tiny", vocab_size=60)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
EXAMPLES = 3


@pytest.fixture(scope="module")
def params():
    params = build_encoder(SPEC).init(jax.random.key(0))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


@pytest.fixture(scope="module")
def copies(make_batch, ids):
    """Packs three examples, of which 0 and 1 are one text.

    The copies (sentences 3 to 5) are packed elsewhere, beside other sentences.
    """
    texts = [ids[0], ids[0], ids[4]]
    rows = [
        [(0, texts[0]), (5, texts[2])],
        [(2, texts[2]), (4, texts[1])],
        [(1, texts[1])],
        [(3, texts[0])],
    ]
    return make_batch(rows, sentences=2 * EXAMPLES)


def embed(params, tokens, attention="xla", rates=(0.1, 0.1), **options):
    backbone = dataclasses.replace(
        SPEC.backbone, hidden_dropout=rates[0], attention_dropout=rates[1]
    )
    encoder = build_encoder(
        dataclasses.replace(SPEC, backbone=backbone), attention=attention, unroll=1, **options
    )
    result = jax.jit(encoder.apply, compiler_options=QUICKLY)(params, tokens, jax.random.key(3))
    return np.asarray(result).reshape(-1, EXAMPLES, encoder.dim)


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.0, 0.3), (0.3, 0.0)])
def test_copies_of_an_example_are_equal_and_examples_differ(params, copies, rates):
    first, second = embed(params, copies, rates=rates, same_mask_columns=2)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first[0] - first[1]).max() > 1e-2, "one text in two examples has two masks"
    first, second = embed(params, copies, rates=rates)
    assert np.abs(first - second).max(axis=-1).min() > 1e-2, (
        "by default copies have their own masks"
    )


def test_attention_in_blocks_has_the_same_masks(params, copies, monkeypatch):
    from embed_jax.encoders import attention

    expected = embed(params, copies, same_mask_columns=2)
    monkeypatch.setattr(attention, "BLOCK", 1)  # a row at a time
    np.testing.assert_allclose(
        embed(params, copies, "blocks", same_mask_columns=2), expected, atol=1e-6
    )


def test_sentences_that_are_no_columns_are_refused(params, copies):
    with pytest.raises(InputError, match="6 sentences are not 4 columns"):
        build_encoder(SPEC, same_mask_columns=4).apply(params, copies, jax.random.key(0))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rate_and_the_independence_of_examples_and_positions(rate):
    """The same position of an example's copies has one mask.

    All other masks agree as often as chance makes them.
    """
    example, position = (
        jnp.arange(64)[:, None] // 2 + jnp.zeros((1, 32), int),
        jnp.arange(32) + jnp.zeros((64, 1), int),
    )
    starts = MaskPositions(example, position).starts(128)
    dropped = ~np.asarray(keep_mask(jax.random.key(0), rate, (64, 32, 128), starts))
    np.testing.assert_array_equal(dropped[::2], dropped[1::2])
    different = dropped[::2]
    assert abs(different.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / different.size)
    for a, b in [(different[1:], different[:-1]), (different[:, 1:], different[:, :-1])]:
        assert abs((a & b).mean() - rate**2) < 5 * rate * np.sqrt(1 / a.size)
