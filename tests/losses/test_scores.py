"""MaxSim over tokens as the score of every loss that compares, against loops, in every form.

XTR is in the same programs; test_xtr.py has its values.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from embed_jax.errors import InputError
from embed_jax.losses import distillation, in_batch, listwise, pointwise
from embed_jax.losses.base import bind
from embed_jax.losses.compose import symmetric
from embed_jax.losses.expression import build_loss
from embed_jax.losses.nested import matryoshka
from embed_jax.maxsim import MAXSIM
from embed_jax.parallel import tiled, world
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.parallel.queue import advance, init_queue, queue_columns, queue_entries
from embed_jax.parallel.world import device_world, local_world
from embed_jax.scores import COSINE, DOT, find_score
from embed_jax.types import Batch, Encoder, TokenBatch
from embed_jax.vectors import normalize
from embed_jax.world import LocalWorld, make_columns
from embed_jax.xtr import xtr

BATCH, DIM, LENGTHS, DEVICES = 8, 4, (3, 7, 7), 4
# Compiling is most of the time.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def token_columns():
    """Returns columns of 3 query tokens and 7 document tokens, some of them masked.

    The hard negative of example 2 has no tokens.
    """
    rng = np.random.default_rng(0)
    columns = []
    for column, length in enumerate(LENGTHS):
        mask = np.arange(length) < rng.integers(1, length + 1, BATCH)[:, None]
        mask[2] &= column != 2
        tokens = rng.normal(size=(BATCH, length, DIM)).astype(np.float32)
        columns.append({"tokens": normalize(tokens), "mask": jnp.asarray(mask)})
    guide = jnp.asarray(rng.normal(size=(3, BATCH, 5)).astype(np.float32))
    score = jnp.asarray(rng.normal(size=(BATCH, 2)).astype(np.float32))
    return make_columns(columns, guide=guide, score=score)


def scores_by_loops(columns):
    """Returns maxsim(query, document) of each (column, example), token by token."""
    tokens = [np.asarray(column["tokens"], np.float64) for column in columns.embeddings]
    masks = [np.asarray(column["mask"]) for column in columns.embeddings]

    def present(column, example):
        pairs = zip(tokens[column][example], masks[column][example], strict=True)
        return [token for token, there in pairs if there]

    def score(query, document):
        others = present(*document)
        best = [max(token @ other for other in others) for token in present(*query) if others]
        return sum(best)

    return score


EVERY = {
    "info_nce": bind(
        in_batch.info_nce, similarity=MAXSIM, temperature=0.5, hard_negative_weight=2.0
    ),
    "info_nce, qp,pq": bind(in_batch.info_nce, similarity=MAXSIM, temperature=0.5, terms="qp,pq"),
    "info_nce, symmetric": bind(
        in_batch.info_nce, similarity=MAXSIM, temperature=0.5, symmetric=True, label_smoothing=0.1
    ),
    "gist": bind(
        in_batch.gist,
        similarity=MAXSIM,
        temperature=0.5,
        contrast_anchors=False,
        contrast_positives=False,
    ),
    "dcl": bind(in_batch.dcl, similarity=MAXSIM, temperature=0.5, sigma=0.5),
    "siglip": bind(in_batch.siglip, similarity=MAXSIM, bias=-2.0, temperature=0.5),
    "mega_batch_margin": bind(
        in_batch.mega_batch_margin, similarity=MAXSIM, positive_margin=3.0, negative_margin=-1.0
    ),
    "margin_mse": bind(distillation.margin_mse, similarity=MAXSIM),
    "kl": bind(distillation.kl, similarity=MAXSIM),
    "score_mse": bind(pointwise.score_mse, similarity=MAXSIM),
    "own_candidates": bind(listwise.own_candidates, similarity=MAXSIM),
    "info_nce, xtr": bind(in_batch.info_nce, similarity=xtr(20), temperature=0.5, symmetric=True),
    "kl, xtr": bind(distillation.kl, similarity=xtr(20)),
}


# These look at an example's own candidates only (except by XTR): how the world is held is nothing
# to them.
OF_LISTS = ("margin_mse", "kl", "score_mse", "own_candidates")


def losses_of(form):
    return {name: loss for name, loss in EVERY.items() if form == "dense" or name not in OF_LISTS}


def tokens_of(columns):
    return tuple(column["tokens"] for column in columns.embeddings)


def with_tokens(columns, tokens):
    pairs = zip(columns.embeddings, tokens, strict=True)
    return columns.replace(embeddings=tuple({**column, "tokens": each} for column, each in pairs))


def mean(loss, own, of, params, total=lambda value: value):
    values, weights, _ = loss.on_world(own, of, params)
    return total(jnp.sum(values * weights)) / total(jnp.sum(weights))


def assert_same(ours, reference, tolerance=1e-6):
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)]) for x in (ours, reference)
    ]
    assert np.linalg.norm(flat[1]) > 1e-3
    assert np.linalg.norm(flat[0] - flat[1]) <= tolerance * np.linalg.norm(flat[1])


@functools.cache
def dense_gradients():
    """Returns {name: (value, gradient by tokens)} on one device, all pairs at once."""
    columns = token_columns()

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(tokens):
        def value(tokens, loss):
            own = with_tokens(columns, tokens)
            return mean(loss, own, LocalWorld(own), loss.init(DIM, jax.random.key(0)))

        return {name: jax.value_and_grad(value)(tokens, loss) for name, loss in EVERY.items()}

    return each(tokens_of(columns))


# ---- values --------------------------------------------------------------------------------------


def values_of(loss, columns, params=None):
    """Returns a loss's values, compiled, which is faster than single operations."""
    compiled = jax.jit(
        lambda columns: loss.on_world(columns, LocalWorld(columns), params or {})[0],
        compiler_options=QUICKLY,
    )
    return compiled(columns)


def test_maxsim_equals_loops_for_all_pairs_and_for_lists():
    """A score is the sum of three cosines of four products each.

    So its rounding errors are those of numbers near 1, even if the sum is small.
    """
    columns = token_columns()
    by_loops = scores_by_loops(columns)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(embeddings):
        query, *documents = (MAXSIM.prepare(column, ()) for column in embeddings)
        pairs = [(MAXSIM.matrix(query, d, ())[0], MAXSIM.pairs(query, d, ())[0]) for d in documents]
        return pairs, MAXSIM.of_lists(embeddings[0], embeddings[1:])

    pairs, lists = each(columns.embeddings)
    rounding = {"rtol": 0.0, "atol": 1e-6}
    for column, (matrix, diagonal) in enumerate(pairs, 1):
        expected = [[by_loops((0, i), (column, j)) for j in range(BATCH)] for i in range(BATCH)]
        np.testing.assert_allclose(matrix, expected, **rounding)
        np.testing.assert_allclose(diagonal, np.diagonal(expected), **rounding)
        np.testing.assert_allclose(lists[column - 1], np.diagonal(expected), **rounding)
    assert lists[1][2] == pairs[1][1][2] == 0.0, "the empty document"


def test_info_nce_with_both_directions_equals_loops():
    """In "pq" the rows are documents: s(candidate anchor, row's positive), transposed."""
    columns = token_columns()
    by_loops = scores_by_loops(columns)
    values = values_of(EVERY["info_nce, qp,pq"], columns)
    for i in range(BATCH):
        positive = by_loops((0, i), (1, i))
        others = [by_loops((0, i), (1, j)) for j in range(BATCH) if j != i]
        others += [by_loops((0, i), (2, j)) for j in range(BATCH)]
        others += [by_loops((0, j), (1, i)) for j in range(BATCH) if j != i]
        expected = np.log1p(np.sum(np.exp((np.array(others) - positive) / 0.5)))
        assert float(values[i]) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_equals_slopes_of_the_loops():
    columns = token_columns()
    _, gradient = dense_gradients()["margin_mse"]

    def value(columns):
        score, total = scores_by_loops(columns), 0.0
        for i in range(BATCH):
            margin = score((0, i), (1, i)) - score((0, i), (2, i))
            total += (margin - float(columns.score[i, 0] - columns.score[i, 1])) ** 2
        return total / BATCH

    step = 1e-3
    for column, example, token, number in ((0, 0, 0, 1), (1, 3, 0, 2), (2, 1, 0, 0)):
        slope = 0.0
        for sign in (1, -1):
            tokens = [np.array(each, np.float64) for each in tokens_of(columns)]
            tokens[column][example, token, number] += sign * step
            slope += sign * value(with_tokens(columns, tokens)) / (2 * step)
        assert float(gradient[column][example, token, number]) == pytest.approx(slope, rel=1e-3)


def test_what_is_masked_has_no_gradient():
    columns = token_columns()
    for name, (_, gradient) in dense_gradients().items():
        for column, slopes in zip(columns.embeddings, gradient, strict=True):
            assert not np.any(np.asarray(slopes)[~np.asarray(column["mask"])]), name
            assert np.isfinite(slopes).all(), name


# ---- forms and devices ---------------------------------------------------------------------------


def test_tiles_give_the_same():
    columns = token_columns()

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(tokens):
        def value(tokens, loss):
            own = with_tokens(columns, tokens)
            of = local_world(own, "tiled", tile=3)
            return mean(loss, own, of, loss.init(DIM, jax.random.key(0)))

        losses = losses_of("tiled").items()
        return {name: jax.value_and_grad(value)(tokens, loss) for name, loss in losses}

    for name, result in each(tokens_of(columns)).items():
        assert_same(result, dense_gradients()[name])


@pytest.mark.slow  # a program of all losses for each form, on four devices
@pytest.mark.parametrize("form", ["dense", "ring"])
def test_four_devices_give_the_same(form):
    columns = token_columns()

    def on_device(tokens, own, loss):
        own = with_tokens(own, tokens)
        of = dataclasses.replace(device_world(own, form, ("data",)), tile=2)
        params = lax.pcast(loss.init(DIM, jax.random.key(0)), "data", to="varying")
        return mean(loss, own, of, params, lambda value: lax.psum(value, "data"))

    mesh = jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )
    specs = columns.map_examples(lambda leaf, axis: PartitionSpec(*[None] * axis, "data"))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(tokens, columns):
        def value(tokens, loss):
            split = jax.shard_map(
                functools.partial(on_device, loss=loss),
                mesh=mesh,
                in_specs=(tokens_of(specs), specs),
                out_specs=PartitionSpec(),
            )
            return split(tokens, columns)

        losses = losses_of(form).items()
        return {name: jax.value_and_grad(value)(tokens, loss) for name, loss in losses}

    for name, result in each(tokens_of(columns), columns).items():
        assert_same(result, dense_gradients()[name])


@pytest.mark.parametrize("groups, devices, form", [(4, 1, "auto"), (4, 4, "ring")])
def test_an_encoder_of_tokens_trains_in_groups_on_devices(groups, devices, form):
    """Gradient caching: columns differ in their number of tokens, and the mask is not a float."""
    vocabulary = 20

    def apply(params, tokens, key, read=None):
        ids = tokens.token_ids[0].reshape(
            3, -1
        )  # a sentence is one token; it becomes several vectors

        def column(c):
            made = params["table"][ids[c]][:, : LENGTHS[c]]
            return {"tokens": made, "mask": jnp.arange(LENGTHS[c])[None] <= ids[c][:, None] % 3}

        return tuple(column(c) for c in range(3))

    def init(key):
        return {"table": jax.random.normal(key, (vocabulary, max(LENGTHS), DIM))}

    encoder = Encoder(init, apply, None, DIM, layers=())
    ids = np.random.default_rng(1).integers(1, vocabulary, (3, BATCH)).astype(np.int32)

    def value(params, groups, devices, form):
        each = BATCH // groups
        dealt = ids.reshape(3, groups, each).swapaxes(0, 1).reshape(groups, 1, -1)
        sentence = np.broadcast_to(np.arange(3 * each, dtype=np.int32), dealt.shape)
        tokens = TokenBatch(dealt, sentence, 0 * sentence, sentence >= 0, sentences=3 * each)
        hashes = np.arange(1, 2 * 3 * BATCH + 1, dtype=np.uint32).reshape(groups, 3, each, 2)
        batch = Batch(
            {"encoder": tokens},
            np.ones((groups, 3, each), bool),
            hashes,
            np.arange(BATCH).reshape(groups, each),
        )
        mesh = make_mesh(devices)
        objective = global_loss(encoder, EVERY["info_nce"], mesh, form=form)
        return objective(params, split_groups(batch, mesh), None)[0]

    params = {"encoder": init(jax.random.key(0)), "loss": {}}
    gradient = jax.jit(
        jax.value_and_grad(value), static_argnums=(1, 2, 3), compiler_options=QUICKLY
    )
    assert_same(gradient(params, groups, devices, form), gradient(params, 1, 1, "dense"))


# ---- size, queue, prefixes -----------------------------------------------------------------------


def test_numbers_of_a_pair_decide_the_form_and_the_tile(monkeypatch):
    """The number of query tokens counts, not the number of pairs."""
    chosen = []
    for name in ("reduce_dense", "reduce_tiled"):
        function = getattr(world, name)
        monkeypatch.setattr(
            world,
            name,
            lambda *args, f=function, n=name, **options: chosen.append(n) or f(*args, **options),
        )
    columns = token_columns()
    pairs = BATCH * 2 * BATCH
    for limit, expected in ((pairs * 3, "reduce_dense"), (pairs * 3 - 1, "reduce_tiled")):
        monkeypatch.setattr(world, "DENSE_NUMBERS", limit)
        jax.eval_shape(lambda: EVERY["info_nce"].on_world(columns, local_world(columns), {})[0])
        assert chosen.pop() == expected

    def block(rows, candidates, _):
        return jnp.zeros((1, 512, 4096))

    assert tiled.tile_of(block, None, None, None) == 2**20 // 512
    assert tiled.tile_of(block, None, None, None, numbers=32 * 180) == 1


def test_a_queue_holds_trees():
    """Documents of an earlier batch, which are trees, are negatives of the queries."""
    columns = token_columns()
    entry = jax.tree.map(lambda leaf: leaf[0], columns.embeddings[1])
    extra = init_queue(5, entry, {})
    entries = queue_entries(columns)
    extra = advance(extra, entries, {}, 0.0)
    queue = queue_columns(extra["queue"], columns)
    later = columns.map_examples(lambda leaf, axis: jnp.roll(leaf, 1, axis)).replace(
        text_hash=columns.text_hash + 1000
    )
    loss = bind(in_batch.info_nce, similarity=MAXSIM, temperature=0.5)
    world_of_later = LocalWorld(later)
    values = jax.jit(
        lambda own: loss.on_world(own, world_of_later, {})[0], compiler_options=QUICKLY
    )(later.replace(queue=queue))
    score = scores_by_loops(columns)
    without = values_of(loss, later)
    for i in range(BATCH):
        mine = (i - 1) % BATCH
        queued = sum(
            np.exp((score((0, mine), (1, j)) - score((0, mine), (1, mine))) / 0.5) for j in range(5)
        )
        assert float(values[i]) == pytest.approx(
            np.log(np.exp(float(without[i])) + queued), rel=1e-5
        )


def test_prefixes_of_tokens_are_those_of_short_tokens():
    columns = token_columns()
    plain = bind(in_batch.info_nce, similarity=MAXSIM, temperature=0.5)
    result = values_of(matryoshka(plain, dims="4,2"), columns)
    expected = 0.0
    for size in (4, 2):
        short = [normalize(tokens[..., :size]) for tokens in tokens_of(columns)]
        expected += values_of(plain, with_tokens(columns, short))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_anchors_and_positives_swapped_keep_their_sides():
    columns = token_columns().select([0, 1])
    swapped = values_of(symmetric(EVERY["info_nce"]), columns)
    both = bind(in_batch.info_nce, similarity=MAXSIM, temperature=0.5, symmetric=True)
    np.testing.assert_allclose(swapped, values_of(both, columns), rtol=1e-5)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        bind(in_batch.info_nce, similarity=MAXSIM, terms="qp,qq"),
        bind(in_batch.gte, similarity=MAXSIM),
        bind(in_batch.qwen3, similarity=MAXSIM),
        bind(in_batch.gist, similarity=MAXSIM, contrast_positives=False),
        symmetric(EVERY["info_nce"]),  # with hard negatives, which are documents
    ],
    ids=lambda loss: loss.name,
)
def test_two_texts_of_one_side_are_refused_in_one_line(loss):
    columns = token_columns()
    with pytest.raises(InputError, match="'maxsim' compares a query with a document") as refused:
        jax.eval_shape(lambda: loss.on_world(columns, LocalWorld(columns), {}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["info_nce", "cosent", "triplet", "uniformity", "embedding_mse"])
def test_a_loss_of_vectors_refuses_tokens_in_one_line(name):
    columns = token_columns()
    with pytest.raises(InputError, match="expected one vector for each text"):
        loss = build_loss(name)
        most = loss.about.columns[1] or 3
        columns = columns.select(range(most))
        jax.eval_shape(lambda: loss.on_world(columns, LocalWorld(columns), {}))


def test_scores_by_name():
    assert find_score("cosine") is COSINE and find_score("dot") is DOT
    assert find_score(f"{__name__}:MAXSIM") is MAXSIM and find_score(MAXSIM) is MAXSIM
    with pytest.raises(
        InputError, match="similarity: unknown score 'cosin' .did you mean 'cosine'"
    ):
        find_score("cosin")
    built = build_loss(f"info_nce(similarity='{__name__}:MAXSIM', temperature=0.5)")
    columns = token_columns()
    plain = bind(in_batch.info_nce, similarity=MAXSIM, temperature=0.5)
    np.testing.assert_array_equal(values_of(built, columns), values_of(plain, columns))
