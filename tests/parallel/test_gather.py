"""The global loss and its gradient are those of one device, however many there are."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder, random_spec
from embed_jax.losses.contrastive import in_batch_info_nce
from embed_jax.parallel.gather import columns_of, global_loss, sharded_encode
from embed_jax.parallel.mesh import make_mesh, num_groups, replicate, split_groups
from embed_jax.types import Batch, Columns, TokenBatch

GROUPS, EXAMPLES, VOCAB = 8, 32, 64


@pytest.fixture(scope="module")
def encoder():
    spec = random_spec("tiny", vocab_size=VOCAB)
    small = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 64, "num_heads": 4}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small))
    assert spec.backbone.hidden_dropout == spec.backbone.attention_dropout == 0.1
    return build_encoder(spec)


@pytest.fixture(scope="module")
def params(encoder):
    return {"encoder": encoder.init(jax.random.key(0)), "loss": {}}


def make_batch(groups: int, columns: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)] for _ in range(columns)
    ]
    present = np.ones((columns, EXAMPLES), bool)
    if columns > 2:
        present[2, ::5] = False  # some examples have no hard negative
        ids[2][::5] = [None] * len(ids[2][::5])
    tokens, order = pack_batch(ids, groups=groups, row_length=16)
    text_hash = rng.integers(0, 2**32, (columns, EXAMPLES, 2), np.uint32)
    text_hash[1, 3] = text_hash[1, 17]  # two examples with one positive
    text_hash[0, 4] = text_hash[0, 18]  # and two with one anchor

    def deal(leaf):  # [C, B, ...] -> [G, C, E, ...]
        return np.moveaxis(leaf[:, order], 1, 0)

    return Batch({"encoder": tokens}, deal(present), deal(text_hash), order)


def loss_and_gradient(encoder, params, batch, devices, **loss_arguments):
    mesh = make_mesh(devices)
    objective = global_loss(encoder, functools.partial(in_batch_info_nce, **loss_arguments), mesh)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    placed = replicate(params, mesh), split_groups(batch, mesh), jax.random.key(1)
    (loss, (metrics, finite)), gradient = step(*placed)
    vector = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    return float(loss), vector, {name: float(value) for name, value in metrics.items()}, step.lower(*placed)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_loss_and_gradient_do_not_depend_on_the_number_of_devices(encoder, params):
    """8 groups, dropout on, hard negatives, duplicates masked: 1, 2, 4 and 8 devices agree to 1e-6."""
    batch = make_batch(GROUPS)
    loss, gradient, metrics, _ = loss_and_gradient(encoder, params, batch, 1, symmetric=True)
    assert np.linalg.norm(gradient) > 1e-2
    for devices in (2, 4, 8):
        loss_n, gradient_n, metrics_n, _ = loss_and_gradient(encoder, params, batch, devices, symmetric=True)
        assert abs(loss_n - loss) <= 1e-6 * loss
        assert relative(gradient_n, gradient) <= 1e-6
        assert metrics_n == pytest.approx(metrics, rel=1e-5)


def test_dropout_is_on_and_differs_between_groups(encoder, params):
    """The invariance above would hold trivially without dropout, or with one mask for all groups."""
    tokens = make_batch(1, columns=2).tokens["encoder"]
    group = jax.tree.map(lambda leaf: leaf[0], tokens)
    keys = [jax.random.fold_in(jax.random.key(1), number) for number in (0, 0, 1)]
    one, same, other = (np.asarray(encoder.apply(params["encoder"], group, key)) for key in keys)
    still = np.asarray(encoder.apply(params["encoder"], group, None))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - still).max() > 1e-3


def test_groups_are_gradient_caching(encoder, params):
    """Without dropout, 1, 4 and 16 groups give the loss and gradient of one big batch."""
    spec_free = dataclasses.replace(encoder, apply=lambda params, tokens, key: encoder.apply(params, tokens, None))
    loss, gradient, _, _ = loss_and_gradient(spec_free, params, make_batch(1), 1)
    for groups, devices in ((4, 1), (16, 4)):
        loss_g, gradient_g, _, _ = loss_and_gradient(spec_free, params, make_batch(groups), devices)
        assert abs(loss_g - loss) <= 1e-6 * loss
        assert relative(gradient_g, gradient) <= 1e-6


@pytest.mark.parametrize("groups", [8, 16])
def test_parameters_gradients_are_reduced_once(encoder, params, groups):
    """One reduction of the parameters' gradients a step, whatever the number of groups a device maps over."""
    batch = make_batch(groups)
    text = loss_and_gradient(encoder, params, batch, 4)[3].compile().as_text()
    pattern = r"= (.*?) (all-reduce|reduce-scatter|all-gather|collective-permute|all-to-all)(?:-start)?\("
    everywhere = re.findall(pattern, text)
    # An instruction outside the entry computation may run once a group: it belongs to a loop's body.
    entry = re.findall(pattern, text[text.index("ENTRY ") :])
    assert sorted(entry) == sorted(everywhere)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    reduced = [size(shape) for shape, kind in entry if kind == "all-reduce" and size(shape) > GROUPS]
    assert reduced == [num_params], entry
    embeddings = [shape for shape, kind in entry if kind in ("all-gather", "reduce-scatter") and size(shape)]
    assert len(embeddings) == 2, "one gather of embeddings, and one scatter of their gradients"


def size(shape: str) -> int:
    """How many float32 numbers an instruction's result holds."""
    return sum(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"f32\[([\d,]*)\]", shape))


def test_rows_of_the_loss_match_a_naive_loop():
    """in_batch_info_nce against NumPy: hard negatives, an absent one, a duplicate positive, alpha, both directions."""
    rng = np.random.default_rng(1)
    batch = make_batch(1)
    embeddings = rng.normal(size=(1, 3 * EXAMPLES, 8)).astype(np.float32)
    world = columns_of(jnp.asarray(embeddings), jax.tree.map(jnp.asarray, batch))
    assert isinstance(world, Columns)
    values, weights, metrics = in_batch_info_nce(
        world, world, jnp.int32(0), {}, temperature=0.1, symmetric=True, hard_negative_weight=2.0
    )
    vectors = np.asarray(world.embeddings, np.float64)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    present, text = np.asarray(world.present), np.asarray(world.text_hash)
    expected = []
    for i in range(EXAMPLES):
        pos = np.exp(vectors[0, i] @ vectors[1, i] / 0.1)
        forward, back = pos, pos
        for j in range(EXAMPLES):
            for column in (1, 2):
                same = (text[column, j] == text[1, i]).all() or (text[column, j] == text[0, i]).all()
                same |= column == 1 and (text[0, j] == text[0, i]).all()
                if (column, j) != (1, i) and present[column, j] and not same:
                    alpha = 2.0 if (column, j) == (2, i) else 1.0
                    forward += alpha * np.exp(vectors[0, i] @ vectors[column, j] / 0.1)
            same = (text[0, j] == text[0, i]).all() or (text[0, j] == text[1, i]).all()
            same |= (text[1, j] == text[1, i]).all()
            if j != i and not same:
                back += np.exp(vectors[1, i] @ vectors[0, j] / 0.1)
        expected.append(0.5 * (-np.log(pos / forward) - np.log(pos / back)))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_array_equal(weights, np.ones(EXAMPLES))
    assert 0 <= float(metrics["accuracy"].mean()) <= 1


def test_sharded_encoding_is_encoding(encoder, params):
    tokens: TokenBatch = make_batch(8).tokens["encoder"]
    mesh = make_mesh(4)
    sharded = sharded_encode(encoder, mesh)(replicate(params["encoder"], mesh), split_groups(tokens, mesh))
    alone = [encoder.apply(params["encoder"], jax.tree.map(lambda leaf: leaf[g], tokens), None) for g in range(8)]  # noqa: B023
    np.testing.assert_allclose(sharded, np.stack(alone), atol=2e-6)


def test_counts_that_do_not_divide_are_refused():
    from embed_jax.errors import InputError

    mesh = make_mesh(4)
    assert num_groups(0, 8, mesh) == 4
    for groups, size in ((6, 12), (8, 12), (0, 6)):
        with pytest.raises(InputError, match="expected a multiple"):
            num_groups(groups, size, mesh)
    with pytest.raises(InputError, match="expected at most 8"):
        make_mesh(9)
