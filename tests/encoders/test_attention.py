"""All attention bodies compute the same values, dropout included.

Masked slots have no influence at all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders import attention as module
from embed_jax.encoders import segments
from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import make_mask
from embed_jax.encoders.layers import MaskPositions, Queries
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

LENGTHS = [[3, 2], [7, 1], [], [8]]  # tokens of the sentences of each row of eight slots
# Rows of 48 slots; the longest sentence is longer than the blocks of all bodies.
LONG = [[5, 1, 20, 9, 3], [40], [], [16, 16, 16], [2, 3, 4, 5]]
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def pack(lengths, slots):
    """Makes a group of rows of sentences of these lengths."""
    sentences = sum(map(len, lengths))
    sentence, position = (np.full((len(lengths), slots), fill, np.int32) for fill in (sentences, 0))
    number = 0
    for row, own in enumerate(lengths):
        start = 0
        for length in own:
            sentence[row, start : start + length] = number
            position[row, start : start + length] = np.arange(length)
            start, number = start + length, number + 1
    return TokenBatch(sentence, sentence, position, sentence < sentences, sentences)


SHORT, TOKENS = pack(LENGTHS, 8), pack(LONG, 48)
SENTENCE = SHORT.sentence


def random_arrays(tokens, heads=2, key_heads=2, size=4, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    rows, slots = tokens.sentence.shape
    arrays = [
        jax.random.normal(key, (rows, slots, count, size), dtype)
        for key, count in zip(keys, (heads, key_heads, key_heads), strict=False)
    ]
    return arrays, jax.random.normal(keys[3], (rows, heads, slots, slots))


@pytest.fixture(scope="module")
def inputs():
    return random_arrays(SHORT)


def textbook(query, key, value, bias):
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) / jnp.sqrt(query.shape[-1]) + bias
    return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), value)


@pytest.mark.parametrize("implementation", ["xla", "blocks", "pieces"])
def test_equals_the_textbook_and_its_gradient(inputs, implementation, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2 * 2 * 64)  # two rows of two heads at a time
    if implementation == "pieces":
        monkeypatch.setattr(module, "BLOCK", 4 * 2 * 8)  # four queries of a row at a time
        monkeypatch.setattr(module, "SHORT", 4)
        implementation = "blocks"
    (query, key, value), relative = inputs
    mask = make_mask(SHORT, dense=True)

    def run(body, *arrays):
        out, pullback = jax.vjp(body, *arrays)
        return out, pullback(jnp.cos(out))

    def of_bias(query, key, value, relative):
        own = mask.add_bias(relative)
        return attention(query, key, value, own, implementation=implementation)

    result = jax.jit(partial(run, of_bias))(query, key, value, relative)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=2e-6),
        result,
        run(lambda *x: textbook(*x[:3], mask.bias + x[3]), query, key, value, relative),
    )


@pytest.mark.parametrize("implementation", ["xla", "blocks", "segments"])
def test_other_sentences_count_for_nothing(inputs, implementation, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    (query, key, value), _ = inputs
    run = jax.jit(partial(attention, implementation=implementation))
    mask = make_mask(SHORT, dense=implementation != "segments")
    own = SENTENCE == 0
    changed = jnp.where(own[..., None, None], value, 1e6)
    np.testing.assert_array_equal(
        run(query, key, value, mask)[own], run(query, key, changed, mask)[own]
    )
    assert np.isfinite(run(query * 1e4, key, value, mask)).all()


def test_same_dropout_in_every_body(inputs, monkeypatch):
    (query, key, value), relative = inputs
    mask = make_mask(SHORT, dense=True).add_bias(relative)

    @partial(jax.jit, static_argnames=["implementation"])
    def run(seed, implementation):
        options = dict(dropout_rate=0.3, dropout_key=seed, implementation=implementation)
        return jax.value_and_grad(
            lambda q: jnp.sum(attention(q, key, value, mask, **options) ** 2)
        )(query)

    whole = run(jax.random.key(1), "xla")
    for block, short in ((2 * 2 * 64, 512), (4 * 2 * 8, 4)):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "SHORT", short)
        jax.clear_caches()
        result = run(jax.random.key(1), "blocks")
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), result, whole)
    assert run(jax.random.key(2), "xla")[0] != whole[0]


# ---- segments ------------------------------------------------------------------------------------

RANDOM = {"dropout_rate": 0.3, "dropout_key": jax.random.key(1)}
PLACES = MaskPositions(jnp.asarray(TOKENS.sentence) % 3, jnp.asarray(TOKENS.position))
# (options of the mask, whether some tokens are unseen, options of attention)
CASES = {
    "packed": ({}, True, RANDOM),
    "window": (
        {"windows": (0, 6), "causal": True},
        False,
        {"softcap": 2.0, "queries": Queries(jnp.asarray(TOKENS.sentence), PLACES), **RANDOM},
    ),
}


def results(case, implementation, dtype=jnp.float32):
    """Returns attention and gradients at tokens; those of padding are not used."""
    options, unseen, extra = CASES[case]
    tokens = TOKENS
    if unseen:
        hidden = (tokens.position % 4 == 3) & (tokens.sentence % 2 == 0)
        keys = np.where(hidden, tokens.sentences, tokens.sentence)
        tokens = tokens.replace(key_sentence=keys)
    arrays, _ = random_arrays(tokens, heads=4, dtype=dtype)
    real = jnp.asarray(tokens.sentence < tokens.sentences)[..., None, None]
    weights = jnp.where(real, jax.random.normal(jax.random.key(5), arrays[0].shape), 0)

    def total(arrays, kind):
        mask = make_mask(tokens, dense=implementation == "xla", **options)
        mask = mask.of_kind(kind if len(mask.windows) > 1 else None)
        out = attention(*arrays, mask, implementation=implementation, **extra)
        out = jnp.where(real, out.astype(jnp.float32), 0)
        return jnp.sum(out * weights), out

    run = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICKLY)
    (_, out), gradients = run(arrays, jnp.asarray(1))
    return out, gradients


@pytest.mark.parametrize("implementation", ["segments", "pallas"])
@pytest.mark.parametrize("case", CASES)
def test_bodies_that_skip_slots_equal_the_dense_one(case, implementation, monkeypatch):
    """A block of queries sees several chunks of keys, and the last chunk is cut at the row's end.

    The kernels of "pallas" are interpreted.
    """
    monkeypatch.setattr(segments, "QUERIES", 16)
    monkeypatch.setattr(segments, "KEYS", 20)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5),
        results(case, implementation),
        results(case, "xla"),
    )


@pytest.mark.parametrize("implementation", ["segments", "pallas"])
def test_they_equal_it_in_bfloat16(implementation, monkeypatch):
    monkeypatch.setattr(segments, "QUERIES", 32)  # the row ends in half a block
    expected = results("packed", "xla", jnp.bfloat16)
    for leaf, other in zip(
        jax.tree.leaves(results("packed", implementation, jnp.bfloat16)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        assert leaf.dtype == other.dtype
        leaf, other = (np.asarray(x, np.float32) for x in (leaf, other))
        assert np.linalg.norm(leaf - other) < 1e-2 * np.linalg.norm(other)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 6, 100])
def test_ranges_hold_what_a_block_sees_and_no_more(window, causal):
    mask = make_mask(TOKENS, dense=False, windows=(window,), causal=causal)
    real = TOKENS.sentence < TOKENS.sentences
    seen = (np.asarray(mask.dense_bias())[:, 0] == 0) & real[:, :, None] & real[:, None, :]
    for ranges, sees in ((mask.key_ranges, seen), (mask.query_ranges, seen.transpose(0, 2, 1))):
        starts, stops = (np.asarray(x) for x in ranges(8))
        for row, number in np.ndindex(starts.shape):
            slots = np.flatnonzero(sees[row, 8 * number : 8 * number + 8].any(axis=0))
            start, stop = starts[row, number], stops[row, number]
            if not len(slots):
                assert stop <= start, "all padding"
            else:
                assert (start, stop) == (slots[0], slots[-1] + 1)


def test_memory_holds_no_row_of_scores():
    """Values and gradients of a row of 4,096 slots, without running them."""
    slots, tokens = 4096, pack([[4000, 50]], 4096)
    arrays = [jax.ShapeDtypeStruct((1, slots, 2, 8), jnp.float32)] * 3
    mask = make_mask(tokens, dense=False, windows=(65,))

    def total(query, key, value, mask):
        return jnp.sum(attention(query, key, value, mask) ** 2)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)), compiler_options=QUICKLY)
    compiled = gradient.lower(*arrays, mask).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < slots**2 / 2


def test_unknown_implementation(inputs):
    (query, key, value), relative = inputs
    mask = make_mask(SHORT, dense=True)
    with pytest.raises(
        InputError,
        match="unknown attention 'flash'.*known: auto, blocks, cudnn, pallas, segments, xla",
    ):
        attention(query, key, value, mask, implementation="flash")
    with pytest.raises(InputError, match="no dropout"):
        attention(
            query,
            key,
            value,
            mask,
            dropout_rate=0.1,
            dropout_key=jax.random.key(0),
            implementation="cudnn",
        )
    with pytest.raises(InputError, match="'segments' adds no bias by distance"):
        attention(query, key, value, mask.add_bias(relative), implementation="segments")
