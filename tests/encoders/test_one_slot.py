"""A pooling of one slot: the last layer computes no other, and nothing else changes by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.data.pack import UNSEEN, pack_sentences
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.pooling import pool
from embed_jax.encoders.spec import LoraSpec, find_shape, random_spec
from embed_jax.types import TokenBatch

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
CASES = [("tiny", "cls"), ("decoder-tiny", "last_token")]
SLOW_CASES = [
    ("modernbert-tiny", "cls"),
    ("nomic-tiny", "last_token"),
    ("t5-tiny", "cls"),
    ("deberta-tiny", "cls"),
    ("deberta-tiny", "last_token"),
    ("tiny", "last_token"),
]


@pytest.fixture(scope="module")
def tokens() -> TokenBatch:
    """Packs sentences of uneven length, two of them without a pooled token."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 50, n).astype(np.int32) for n in (5, 9, 0, 3, 12, 1, 7, 8)]
    segments = [np.arange(len(sentence), dtype=np.int32) % 2 for sentence in ids]
    marks = [np.zeros_like(sentence) for sentence in ids]
    marks[4][3:5] = UNSEEN
    skip = [0, 2, 0, 3, 1, 0, 0, 0]
    packed = pack_sentences(
        ids, row_length=16, sentences=8, skip=skip, segments=segments, marks=marks
    )
    return jax.tree.map(jnp.asarray, packed)


def of_shape(shape, pooling, rate=0.1):
    backbone = find_shape(shape)
    rates = {"hidden_dropout": rate, "attention_dropout": rate}
    spec = random_spec(shape, vocab_size=50, pooling=pooling, normalize=False)
    fields = {name: value for name, value in rates.items() if hasattr(backbone, name)}
    return dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **fields))


def random_params(encoder):
    params = encoder.init(jax.random.key(0))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )


def check_equal(spec, tokens, *keys, **options):
    """Checks embeddings and gradients against those of the states of all slots, for each key."""
    encoder = build_encoder(spec, **options)
    params = jax.jit(lambda: random_params(encoder), compiler_options=QUICKLY)()
    weights = jax.random.normal(jax.random.key(5), (tokens.sentences, encoder.dim))

    def of_one_slot(params, key):
        return encoder.apply(params, tokens, key)

    def of_all_slots(params, key):
        return pool(spec.pooling, encoder.hidden(params, tokens, key), tokens)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def results(params):
        def gradient(embed, key):
            def total(params):
                embeddings = embed(params, key)
                return jnp.sum(weights * embeddings), embeddings

            return jax.grad(total, has_aux=True)(params)

        return [(gradient(of_one_slot, key), gradient(of_all_slots, key)) for key in keys]

    for (grads, embeddings), (all_grads, all_embeddings) in results(params):
        np.testing.assert_allclose(embeddings, all_embeddings, atol=1e-6)
        assert not np.any(embeddings[jnp.array([2, 3])]), "zeros without pooled tokens"
        assert np.all(np.any(embeddings[jnp.array([0, 1, 4, 5, 6, 7])], axis=1))
        # Rounding is relative to the largest numbers that are summed.
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(all_grads))
        for leaf, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(all_grads), strict=True):
            np.testing.assert_allclose(leaf, expected, atol=1e-6 * max(largest, 1), rtol=1e-5)


@pytest.mark.parametrize(("shape", "pooling"), CASES)
def test_embeddings_and_gradients_are_those_of_all_slots(shape, pooling, tokens):
    """Without a key, and with dropout."""
    check_equal(of_shape(shape, pooling), tokens, None, jax.random.key(3))


@pytest.mark.slow  # two programs of each family, and their gradients
@pytest.mark.parametrize(("shape", "pooling"), SLOW_CASES)
def test_every_family_computes_one_slot(shape, pooling, tokens):
    check_equal(of_shape(shape, pooling), tokens, None, jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["layer", "dots"])
def test_recomputed_layers_and_shared_masks_give_the_same(remat, tokens):
    spec = of_shape("tiny", "cls")
    check_equal(spec, tokens, jax.random.key(3), remat=remat, same_mask_columns=2)


@pytest.mark.slow
def test_an_adapter_gives_the_same(tokens):
    spec = of_shape("decoder-tiny", "last_token")
    spec = dataclasses.replace(spec, lora=LoraSpec(rank=2, alpha=4.0))
    check_equal(spec, tokens, jax.random.key(3))


def test_the_last_layer_multiplies_pooled_slots_only(tokens):
    """The products with the weights of the feed-forward layer tell which slots are computed."""
    spec = of_shape("tiny", "cls")
    encoder = build_encoder(spec)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    slots, sentences = tokens.token_ids.size, tokens.sentences
    width, inner = spec.backbone.hidden_size, spec.backbone.intermediate_size
    text = str(jax.make_jaxpr(encoder.apply)(params, tokens, jax.random.key(3)))
    assert text.count(f"f32[{slots},{inner}] = dot_general") == 1, "in the loop of other layers"
    assert text.count(f"f32[{sentences},{inner}] = dot_general") == 1
    assert text.count(f"f32[{slots},{width}] = dot_general") == 5 + 2, "and keys and values"
