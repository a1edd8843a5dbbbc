"""Heads over the vocabulary: equality with the form that holds all logits, and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders import vocabulary
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.mlm import head_logits
from embed_jax.encoders.spec import EncoderSpec, find_shape
from embed_jax.encoders.static import StaticConfig
from embed_jax.encoders.token_heads import NAMES
from embed_jax.encoders.vocabulary import Splade, TokenWeights, saturate, token_table
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

WORDS, SENTENCES = 301, 4
ONE_TILE, FIVE_TILES = 2**20, 16 * 70


def some_tokens():
    """Two rows of sentences; one token of each is not pooled, and one sentence has none."""
    rng = np.random.default_rng(0)
    sentence = np.array([[0, 0, 0, 1, 1, 1, 1, 4], [2, 2, 2, 2, 2, 2, 4, 4]])
    position = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]])
    ids = rng.integers(0, WORDS, (2, 8))
    pooled = (sentence < SENTENCES) & (position != 1)
    return TokenBatch(ids, sentence, position, pooled, sentences=SENTENCES)


def naive(encoder, head, config, params, tokens):
    """Holds the logits of all tokens, and loops over sentences."""
    states = encoder.hidden(params, tokens).reshape(tokens.token_ids.size, -1)
    logits = head_logits(config, params["vocabulary"], states, token_table(params))
    weights = saturate(logits, head.logs)
    reduce = jnp.max if head.pooling == "max" else jnp.sum
    rows = []
    for sentence in range(SENTENCES):
        here = (tokens.pooled & (tokens.sentence == sentence)).reshape(-1, 1)
        rows.append(reduce(jnp.where(here, weights, 0.0), axis=0))
    return jnp.stack(rows)


@pytest.mark.parametrize(
    "head, tile",
    [(Splade("max"), FIVE_TILES), (Splade("max", 2), ONE_TILE), (Splade("sum"), FIVE_TILES)],
    ids=repr,
)
def test_weights_and_gradients_are_those_of_all_logits(head, tile, monkeypatch):
    """The last tile overlaps the one before: what both compute must count once."""
    monkeypatch.setattr(vocabulary, "TILE", tile)
    monkeypatch.setattr(vocabulary, "SHORTEST", 1)
    config = dataclasses.replace(find_shape("tiny"), vocab_size=WORDS, num_layers=1)
    encoder = build_encoder(EncoderSpec(config, vocabulary=head))
    params = encoder.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    params["vocabulary"]["bias"] = jnp.asarray(rng.normal(size=WORDS), jnp.float32)
    tokens, factors = some_tokens(), jnp.asarray(rng.normal(size=(SENTENCES, WORDS)), jnp.float32)

    @jax.jit
    def both(params):
        def value(params, function):
            weights = function(params)
            return jnp.sum(weights * factors), weights

        gradient = jax.value_and_grad(value, has_aux=True)
        ours = gradient(params, lambda params: encoder.apply(params, tokens))
        return ours, gradient(params, lambda params: naive(encoder, head, config, params, tokens))

    ((_, weights), gradient), ((_, expected), slopes) = both(params)
    assert encoder.dim == WORDS
    assert not np.any(weights[3]) and np.count_nonzero(weights[:3]) > WORDS
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert np.abs(gradient["vocabulary"]["bias"]).max() > 0.1
    for ours, peer_values in zip(jax.tree.leaves(gradient), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(ours, peer_values, atol=2e-5)


def test_a_table_gives_present_words_their_weight_once():
    spec = EncoderSpec(StaticConfig(vocab_size=9, hidden_size=1), vocabulary=TokenWeights())
    encoder = build_encoder(spec)
    assert np.all(encoder.init(jax.random.key(0))["backbone"]["token"] == 1.0)
    table = jnp.arange(9.0)[:, None]
    ids = np.array([[3, 5, 3, 7]])
    tokens = TokenBatch(
        ids, np.array([[0, 0, 0, 2]]), np.array([[0, 1, 2, 0]]), ids < 7, sentences=2
    )

    @jax.jit
    def weights(table):
        return encoder.apply({"backbone": {"token": table}, "heads": {}}, tokens)

    np.testing.assert_array_equal(weights(table)[0], [0, 0, 0, 3, 0, 5, 0, 0, 0])
    assert not np.any(weights(table)[1])
    gradient = jax.jit(jax.grad(lambda table: jnp.sum(weights(table))))(table)
    np.testing.assert_array_equal(gradient[:, 0], [0, 0, 0, 1, 0, 1, 0, 0, 0])
    frozen = build_encoder(dataclasses.replace(spec, vocabulary=TokenWeights(frozen=True)))
    params = {"backbone": {"token": table}, "heads": {}}
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(frozen.apply(params, tokens))))(params)
    assert not np.any(gradient["backbone"]["token"])


def test_the_head_s_families_are_those_that_files_name():
    assert set(vocabulary.FAMILIES) == set(NAMES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Splade("mean"), "unknown pooling of a sparse model 'mean'"),
        (
            lambda: build_encoder(EncoderSpec(find_shape("t5-tiny"), vocabulary=Splade())),
            "encoder has no head of a language model that is known here",
        ),
        (
            lambda: build_encoder(
                EncoderSpec(find_shape("tiny"), "first_last_mean", vocabulary=Splade())
            ),
            "a sparse encoder has no pooling and no heads",
        ),
    ],
    ids=["pooling", "t5", "several layers"],
)
def test_what_cannot_be_built_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_plan_never_has_the_logits_of_all_tokens():
    """Beside the arguments, the result and gradients the head needs a few tiles."""
    from scripts.bench.vocabulary import all_logits, planned_bytes, tiled

    texts, tokens, size, width = 8, 64, 20_000, 16
    logits = 4 * texts * tokens * size
    needed = 4 * (2 * (texts * tokens * width + size * width + size) + 3 * texts * size)
    assert planned_bytes(tiled, texts, tokens, size, width) < needed + 0.5 * logits
    assert planned_bytes(all_logits, texts, tokens, size, width) > needed + logits
