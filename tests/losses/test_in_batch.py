"""In-batch losses: textbook values, sentence-transformers' values, naive sums, and masks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import in_batch
from embed_jax.losses.base import Loss
from embed_jax.losses.in_batch import dcl, gist, gte, info_nce, mega_batch_margin, qwen3, siglip
from embed_jax.parallel.tiled import reduce_tiled
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns, reduce_dense

LOSSES = [info_nce, gte, qwen3, gist, dcl, siglip, mega_batch_margin]
FORMS = ["dense", "tiled"]
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def results_and_gradient(loss, columns, form, params, arguments):
    def total(embeddings):
        changed = columns.replace(embeddings=embeddings)
        values, weights, metrics = loss.on_world(
            changed, local_world(changed, form, tile=3), params, **dict(arguments)
        )
        return jnp.sum(values * weights), (values, metrics)

    return jax.value_and_grad(total, has_aux=True)(columns.embeddings)


compiled = jax.jit(results_and_gradient, static_argnums=(0, 2, 4), compiler_options=QUICKLY)


def run(loss, columns, form="dense", params=None, **arguments):
    """Returns the values, and the gradient of their sum by the embeddings."""
    (_, (values, metrics)), gradient = compiled(
        loss, columns, form, params or {}, tuple(arguments.items())
    )
    return np.asarray(values), np.stack(gradient), metrics


@pytest.fixture
def embeddings():
    """Random embeddings: `(columns, batch, dim=16, seed=0) -> float32 [C, B, D]`."""
    return lambda columns, batch, dim=16, seed=0: (
        np.random.default_rng([columns, batch, seed])
        .normal(size=(columns, batch, dim))
        .astype(np.float32)
    )


# ---- textbook cases ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_two_queries(form):
    columns = make_columns(jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.95, 0.05], [0.10, 0.90]]]))
    values, _, metrics = run(info_nce, columns, form, temperature=0.2)
    assert values.mean() == pytest.approx(0.0104, abs=5e-5)
    np.testing.assert_array_equal(metrics["accuracy"], [1.0, 1.0])


def one_query(positive, negative, form, temperatures):
    """Makes a query with given dot products with its positive and with one hard negative.

    Returns the value and the gradient for each temperature, of one program.
    """
    columns = make_columns(jnp.array([[[1.0, 0.0]], [[positive, 0.0]], [[negative, 1.0]]]))

    def each(embeddings):
        def value(embeddings, temperature):
            own = columns.replace(embeddings=embeddings)
            of = local_world(own, form, tile=3)
            return info_nce.on_world(own, of, {}, similarity="dot", temperature=temperature)[0][0]

        return [jax.value_and_grad(value)(embeddings, temperature) for temperature in temperatures]

    results = jax.jit(each, compiler_options=QUICKLY)(columns.embeddings)
    return [(float(value), np.stack(gradient)) for value, gradient in results]


@pytest.mark.parametrize("form", FORMS)
def test_one_query(form):
    ((value, _),) = one_query(0.20, 0.90, form, [0.05])
    assert value == pytest.approx(14.0, abs=1e-4)
    expected = {1.0: 0.668188, 0.1: 0.999089, 0.05: 0.999999, 0.01: 1.0}
    values = [value for value, _ in one_query(0.70, 0.0, form, list(expected))]
    np.testing.assert_allclose(
        np.exp(-np.array(values)), list(expected.values()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_far_below_float32_resolution_is_not_zero(form):
    """log(1 + e^-14) = 8.315e-7, but logsumexp(logits) - logit rounds to 0 at 1000 and 986."""
    ((value, gradient),) = one_query(1000.0, 986.0, form, [1.0])
    assert value == pytest.approx(8.315e-7, rel=0.01)
    assert np.isfinite(gradient).all()
    assert gradient[2, 0, 0] == pytest.approx(8.315e-7, rel=0.01)


# ---- sentence-transformers -----------------------------------------------------------------------

QP, PQ, QQ, PP = "query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"


@pytest.mark.parametrize("negatives, batch", [(0, 2), (2, 33)])
@pytest.mark.parametrize(
    "ours,settings",
    [
        ({}, {}),
        ({"terms": "qp,qq,pq,pp", "repeat_positive": True}, {"directions": (QP, QQ, PQ, PP)}),
        ({"symmetric": True}, {"directions": (QP, PQ), "partition_mode": "per_direction"}),
        (
            {"hardness": "in_batch_negatives", "hardness_strength": 3.0},
            {"hardness_mode": "in_batch_negatives", "hardness_strength": 3.0},
        ),
        (
            {"hardness": "hard_negatives", "hardness_strength": 3.0},
            {"hardness_mode": "hard_negatives", "hardness_strength": 3.0},
        ),
    ],
)
def test_multiple_negatives_ranking(
    equals_torch, torch_model, embeddings, batch, negatives, ours, settings
):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    reference = losses.MultipleNegativesRankingLoss(torch_model, scale=20.0, **settings)
    equals_torch(
        info_nce,
        lambda features: reference(features, None),
        embeddings(2 + negatives, batch),
        **ours,
    )


@pytest.mark.parametrize("batch", [3, 8, 16, 25])
def test_multiple_negatives_ranking_of_any_batch(equals_torch, torch_model, embeddings, batch):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    reference = losses.MultipleNegativesRankingLoss(torch_model, scale=20.0)
    equals_torch(info_nce, lambda features: reference(features, None), embeddings(3, batch))


@pytest.mark.parametrize("negatives, batch", [(0, 2), (2, 33)])
def test_multiple_negatives_symmetric_ranking(
    equals_torch, torch_model, embeddings, batch, negatives
):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    reference = losses.MultipleNegativesSymmetricRankingLoss(torch_model, scale=20.0)
    equals_torch(
        info_nce,
        lambda features: reference(features, None),
        embeddings(2 + negatives, batch),
        symmetric=True,
    )


@pytest.mark.parametrize("batch", [2, 33])
def test_mega_batch_margin(equals_torch, torch_model, embeddings, batch):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    reference = losses.MegaBatchMarginLoss(torch_model, use_mini_batched_version=False)
    equals_torch(
        mega_batch_margin, lambda features: reference(features, None), embeddings(2, batch)
    )


@pytest.mark.parametrize("negatives, batch", [(0, 33), (1, 2)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"margin": 0.1},
        {"margin": 0.3, "margin_strategy": "relative", "contrast_anchors": False},
    ],
)
def test_gist(equals_torch, torch_model, embeddings, batch, negatives, arguments):
    """The guide's embeddings have another size, like those of another model and tokenizer."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    guide = embeddings(2 + negatives, batch, dim=5, seed=9)
    views = iter(torch.tensor(guide, dtype=torch.float64))

    class Guide(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": next(views)}

    reference = object.__new__(losses.GISTEmbedLoss)  # its constructor wants tokenizers
    torch.nn.Module.__init__(reference)
    settings = {
        "temperature": 0.01,
        "margin": 0.0,
        "margin_strategy": "absolute",
        "gather_across_devices": False,
    }
    settings |= {
        "contrast_anchors": True,
        "contrast_positives": True,
        "must_retokenize": False,
    } | arguments
    for name, value in {**settings, "model": torch_model, "guide": Guide()}.items():
        setattr(reference, name, value)
    reference.similarity_fct, reference.cross_entropy_loss = (
        torch.nn.CosineSimilarity(dim=-1),
        torch.nn.CrossEntropyLoss(),
    )
    renamed = {
        {"margin": "mask_margin", "margin_strategy": "mask_strategy"}.get(k, k): v
        for k, v in arguments.items()
    }
    fields = {"guide": jnp.asarray(guide, jnp.float32)}
    equals_torch(
        gist,
        lambda features: reference(features, None),
        embeddings(2 + negatives, batch),
        fields,
        **renamed,
    )


# ---- naive sums ----------------------------------------------------------------------------------


def cosines(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return lambda first, second: unit[first] @ unit[second]


def naive_info_nce(
    embeddings,
    terms,
    temperature,
    alpha=1.0,
    own_only=False,
    limit=np.inf,
    smoothing=0.0,
    joint=True,
):
    """Computes the formula one pair at a time."""
    s, (columns, batch) = cosines(embeddings), embeddings.shape[:2]
    negatives = range(2, columns)
    losses = []
    for i in range(batch):
        positive = s((0, i), (1, i))
        gaps = {term: [] for term in terms}

        def add(term, first, second, weight=1.0, i=i, positive=positive, gaps=gaps):
            similarity = s(first, second)
            if term in gaps and similarity <= positive + limit:
                gaps[term].append((similarity - positive) / temperature + np.log(weight))

        for j in range(batch):
            if j != i:
                add("qp", (0, i), (1, j))
                add("pq", (0, j), (1, i))
                add("qq", (0, i), (0, j))
                add("pp", (1, i), (1, j))
            for k in negatives:
                if j == i or not own_only:
                    add("qp", (0, i), (k, j), alpha if j == i else 1.0)
                if j != i and not own_only:
                    add("pp", (1, i), (k, j))
        softmaxes = [sum(gaps.values(), [])] if joint else list(gaps.values())
        for each in softmaxes:
            value = np.log1p(np.sum(np.exp(each)))
            value -= smoothing * np.sum(each) / (1 + len(each))
            losses.append(value / len(softmaxes))
    return np.sum(losses) / batch


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize(
    "loss,arguments,naive",
    [
        (
            info_nce,
            {"hard_negative_weight": 3.0},
            {"terms": ["qp"], "temperature": 0.05, "alpha": 3.0},
        ),
        (
            info_nce,
            {"label_smoothing": 0.2},
            {"terms": ["qp"], "temperature": 0.05, "smoothing": 0.2},
        ),
        (info_nce, {"terms": "qp,pp"}, {"terms": ["qp", "pp"], "temperature": 0.05}),
        (
            info_nce,
            {"symmetric": True, "temperature": 0.2},
            {"terms": ["qp", "pq"], "temperature": 0.2, "joint": False},
        ),
        (gte, {"temperature": 0.1}, {"terms": ["qp", "qq", "pq", "pp"], "temperature": 0.1}),
        (
            qwen3,
            {"temperature": 0.1},
            {"terms": ["qp", "qq", "pp"], "temperature": 0.1, "own_only": True, "limit": 0.1},
        ),
    ],
)
def test_softmaxes_by_the_formula(equals_numpy, embeddings, negatives, loss, arguments, naive):
    equals_numpy(
        loss,
        lambda columns: naive_info_nce(columns, **naive),
        embeddings(2 + negatives, 5, dim=4),
        **arguments,
    )


@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_decoupled_by_the_formula(equals_numpy, embeddings, negatives, sigma):
    def naive(embeddings):
        s, (columns, batch) = cosines(embeddings), embeddings.shape[:2]
        positive = np.array([s((0, i), (1, i)) for i in range(batch)])
        weights = (
            2 - np.exp(positive / sigma) / np.mean(np.exp(positive / sigma))
            if sigma
            else np.ones(batch)
        )
        total = 0.0
        for i in range(batch):
            others = [
                s((0, i), (c, j))
                for c in range(1, columns)
                for j in range(batch)
                if (c, j) != (1, i)
            ]
            total += -weights[i] * positive[i] / 0.1 + np.log(
                np.sum(np.exp(np.array(others) / 0.1))
            )
        return total / batch

    equals_numpy(dcl, naive, embeddings(2 + negatives, 5, dim=4), temperature=0.1, sigma=sigma)


@pytest.mark.parametrize("negatives", [0, 1])
def test_sigmoid_by_the_formula(embeddings, negatives):
    """Compares the value, and the gradients by embeddings, scale and bias."""
    values = jnp.asarray(embeddings(2 + negatives, 5, dim=4), jnp.float32)

    def naive(embeddings, log_scale, bias):
        s, (columns, batch) = cosines(embeddings), embeddings.shape[:2]
        total = 0.0
        for i, j, c in itertools.product(range(batch), range(batch), range(1, columns)):
            sign = 1.0 if (c, j) == (1, i) else -1.0
            total += np.log1p(np.exp(-sign * (np.exp(log_scale) * s((0, i), (c, j)) + bias)))
        return total / batch

    def ours(embeddings, params):
        columns = make_columns(embeddings)
        world = local_world(columns, "tiled", tile=3)
        return jnp.mean(siglip.on_world(columns, world, params)[0])

    params = {"log_scale": jnp.float32(1.5), "bias": jnp.float32(-2.0)}
    compiled = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)), compiler_options=QUICKLY)
    value, (gradient, by_params) = compiled(values, params)
    exact, h = np.asarray(values, np.float64), 1e-6
    assert float(value) == pytest.approx(naive(exact, 1.5, -2.0), rel=1e-5)
    slope = (naive(exact, 1.5 + h, -2.0) - naive(exact, 1.5 - h, -2.0)) / (2 * h)
    assert float(by_params["log_scale"]) == pytest.approx(slope, rel=1e-5)
    slope = (naive(exact, 1.5, -2.0 + h) - naive(exact, 1.5, -2.0 - h)) / (2 * h)
    assert float(by_params["bias"]) == pytest.approx(slope, rel=1e-5)
    for index in np.ndindex(*exact.shape):
        moved = np.zeros_like(exact)
        moved[index] = h
        slope = (naive(exact + moved, 1.5, -2.0) - naive(exact - moved, 1.5, -2.0)) / (2 * h)
        assert float(gradient[index]) == pytest.approx(
            slope, abs=1e-5 * float(jnp.abs(gradient).max())
        )


def test_siglip_and_temperature_start_where_they_are_told():
    key = jax.random.key(0)
    start = siglip.about.init(4, key, temperature=0.1, bias=-10.0)
    assert float(start["log_scale"]) == pytest.approx(np.log(10)) and float(start["bias"]) == -10.0
    assert info_nce.about.init(4, key, temperature=0.05, learn_temperature=False) == {}
    params = info_nce.about.init(4, key, temperature=0.05, learn_temperature=True)
    columns = make_columns(
        jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    )
    learnt, _, _ = run(info_nce, columns, params=params)
    np.testing.assert_allclose(learnt, run(info_nce, columns, temperature=0.05)[0], rtol=1e-6)


# ---- which texts are negatives -------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
def gradient_of_the_first(columns, mask_duplicates):
    def first(embeddings):
        own = columns.replace(embeddings=embeddings)
        values, weights, _ = info_nce.on_world(
            own, local_world(own), {}, mask_duplicates=mask_duplicates
        )
        return values[0], weights

    return jax.grad(first, has_aux=True)(columns.embeddings)


def negatives_of_the_first(mask_duplicates=True, **leaves):
    """Returns which of 4 examples' positives get a gradient from the first example's loss."""
    rng = np.random.default_rng(0)
    columns = make_columns(jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32), **leaves)
    gradient, _ = gradient_of_the_first(columns, mask_duplicates)
    return np.flatnonzero(np.abs(gradient[1]).sum(-1) > 0).tolist()


@pytest.mark.parametrize("mine,other", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_examples_that_share_a_text_are_no_negatives(mine, other):
    """An example's anchor or positive equals another example's anchor or positive."""
    text_hash = jnp.arange(1, 17, dtype=jnp.uint32).reshape(2, 4, 2)
    assert negatives_of_the_first(text_hash=text_hash) == [0, 1, 2, 3]
    text_hash = text_hash.at[other, 2].set(text_hash[mine, 0])
    assert negatives_of_the_first(text_hash=text_hash) == [0, 1, 3]
    assert negatives_of_the_first(False, text_hash=text_hash) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [0, 1])
def test_examples_of_one_id_or_group_are_no_negatives(kind):
    keys = jnp.zeros((4, 2, 2), jnp.uint32).at[jnp.array([0, 3]), kind].set(5)
    assert negatives_of_the_first(keys=keys) == [0, 1, 2]  # the zeros of the others are not keys


def test_absent_texts_are_no_negatives_and_weigh_nothing():
    present = jnp.ones((2, 4), bool).at[1, 2].set(False)
    assert negatives_of_the_first(present=present) == [0, 1, 3]
    columns = make_columns(jnp.ones((2, 4, 6)), present=present)
    np.testing.assert_array_equal(gradient_of_the_first(columns, True)[1], [1, 1, 0, 1])


@pytest.mark.parametrize(
    "strategy,margin,limit",
    [("absolute", 0.2, 0.6), ("relative", 0.5, 0.4), ("threshold", 0.3, 0.3)],
)
def test_similar_texts_are_masked(strategy, margin, limit):
    """Positives have cosines 0.8, 0.1, 0.35, 0.5, 0.7 with an anchor.

    Those at or below the limit are negatives.
    """
    similarities = np.array([0.8, 0.1, 0.35, 0.5, 0.7])
    positives = np.stack([similarities, np.sqrt(1 - similarities**2)], axis=1)
    embeddings = jnp.asarray(np.stack([np.tile([1.0, 0.0], (5, 1)), positives]), jnp.float32)
    arguments = {
        "mask_margin": margin,
        "mask_strategy": strategy,
        "temperature": 1.0,
        "mask_duplicates": False,
    }
    for by, columns in (
        ("model", make_columns(embeddings)),
        ("guide", make_columns(embeddings, guide=embeddings)),
    ):
        values, _, _ = run(info_nce, columns, mask_by=by, **arguments)
        gaps = [c - 0.8 for c in similarities[1:] if c <= limit]
        assert values[0] == pytest.approx(np.log1p(np.sum(np.exp(gaps))), rel=1e-5)


# ---- safety --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_degenerate_batches_are_finite(loss):
    """All texts equal (no negatives), zero vectors, equal vectors, a batch of one example."""
    params = {"log_scale": jnp.float32(1.0), "bias": jnp.float32(0.0)} if loss is siglip else {}
    different, equal = make_columns(jnp.ones((3, 4, 3))).text_hash, jnp.ones((3, 4, 2), jnp.uint32)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def in_each_form(columns):
        return [results_and_gradient(loss, columns, form, params, ()) for form in FORMS]

    for embeddings, text_hash in (
        (jnp.ones((3, 4, 3)), equal),
        (jnp.zeros((3, 4, 3)), different),
        (jnp.ones((3, 4, 3)), different),
        (jnp.ones((2, 1, 3)), jnp.arange(4, dtype=jnp.uint32).reshape(2, 1, 2)),
    ):
        columns = make_columns(embeddings, guide=embeddings, text_hash=text_hash)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(in_each_form(columns)))


@pytest.mark.parametrize(
    "loss,arguments,message",
    [
        (info_nce, {"terms": "pq"}, "expected 'qp' and others of pp, pq, qp, qq"),
        (
            info_nce,
            {"terms": "qp,qq", "partition": "per_direction"},
            "of pq, qp, and the partition",
        ),
        (info_nce, {"hardness": "very"}, "hardness: expected one of"),
        (info_nce, {"similarity": "cosin"}, "similarity: .*did you mean 'cosine'"),
        (info_nce, {"temperature": 0.0}, "temperature: expected more than 0, found 0.0"),
        (gist, {}, "needs config.model.guide"),
    ],
)
def test_wrong_use_is_refused_in_one_line(loss, arguments, message):
    columns = make_columns(jnp.ones((2, 4, 3)))
    with pytest.raises(InputError, match=message) as refused:
        loss.on_world(columns, local_world(columns), {}, **arguments)
    assert "\n" not in str(refused.value)


# ---- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logsumexp", "sum", "max"])
def test_tiles_are_the_whole(kind):
    """Tiles may have any size, also one that does not divide the candidates.

    Rows, candidates and shared values have gradients.
    """
    rng = np.random.default_rng(0)
    rows, candidates = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (5, 11))

    def block(rows, candidates, scale):
        similarities = rows["x"] @ candidates["x"].T * scale
        masked = rows["id"][:, None] == candidates["id"][None, :]
        return jnp.stack(
            [
                jnp.where(masked, 0.0 if kind == "sum" else -jnp.inf, similarities),
                0.5 * similarities,
            ]
        )

    def total(reduce, rows, candidates, scale, *options):
        trees = {"x": rows, "id": jnp.arange(5)}, {"x": candidates, "id": jnp.arange(11)}
        result, _ = reduce(kind, block, *trees, scale, *options)
        return jnp.sum(result * jnp.arange(1.0, 6.0))

    arguments = rows, candidates, jnp.float32(0.7)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def each(*arguments):
        def of(*options):
            return jax.value_and_grad(lambda *x: total(*options[:1], *x, *options[1:]), (0, 1, 2))(
                *arguments
            )

        return of(reduce_dense), [of(reduce_tiled, tile) for tile in (1, 3, 7, 100)]

    expected, of_tiles = each(*arguments)
    for tiled in of_tiles:
        for value, reference in zip(jax.tree.leaves(tiled), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(value, reference, atol=2e-6 * np.abs(reference).max())


def test_every_contrastive_loss_is_tested_here():
    assert {f for f in vars(in_batch).values() if isinstance(f, Loss)} == set(LOSSES)
