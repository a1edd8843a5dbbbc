"""Distillation losses against sentence-transformers, or loops where it has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import distillation, pairwise, pointwise
from embed_jax.losses.base import bind
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.world import local_world
from embed_jax.vectors import normalize
from embed_jax.world import make_columns


def embeddings(columns, batch, dim=8, seed=0):
    return np.random.default_rng(batch + seed).normal(size=(columns, batch, dim)).astype(np.float32)


def scores(columns, batch):
    return np.random.default_rng(batch).normal(size=(batch, columns - 1)).astype(np.float32)


def values_of(loss, columns):
    return loss.on_world(columns, local_world(columns), {})[0]


@pytest.mark.parametrize("batch, columns", [(2, 1), (7, 2), (33, 3)])
@pytest.mark.parametrize(
    "ours, peer", [("embedding_mse", "MSELoss"), ("embedding_cosine", "EmbedDistillLoss")]
)
def test_teacher_embeddings(batch, columns, ours, peer, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    teacher = embeddings(columns, batch, seed=1)
    reference = getattr(peers, peer)(torch_model)
    equals_torch(
        getattr(distillation, ours),
        lambda features: reference(features, torch.tensor(teacher).transpose(0, 1)),
        embeddings(columns, batch),
        {"teacher": jnp.asarray(teacher)},
    )


@pytest.mark.parametrize("batch, columns", [(2, 3), (7, 5), (33, 3)])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margin_mse(batch, columns, similarity, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

    score = scores(columns, batch)
    reference = peers.MarginMSELoss(
        torch_model, {"dot": pairwise_dot_score, "cosine": pairwise_cos_sim}[similarity]
    )
    equals_torch(
        distillation.margin_mse,
        lambda features: reference(features, torch.tensor(score, dtype=torch.float64)),
        embeddings(columns, batch),
        {"score": jnp.asarray(score)},
        similarity=similarity,
    )


@pytest.mark.parametrize("batch, columns, temperature", [(2, 3, 1.0), (7, 5, 2.0), (33, 3, 0.5)])
def test_kl(batch, columns, temperature, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    score = scores(columns, batch)
    reference = peers.DistillKLDivLoss(torch_model, temperature=temperature)
    equals_torch(
        distillation.kl,
        lambda features: reference(features, torch.tensor(score, dtype=torch.float64)),
        embeddings(columns, batch),
        {"score": jnp.asarray(score)},
        temperature=temperature,
    )


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(
    "ours, peer", [("embedding_mse", "MSELoss"), ("embedding_cosine", "EmbedDistillLoss")]
)
def test_a_projection_to_the_teachers_size(columns, ours, peer, torch_model, peers, equals_torch):
    """The reference is a linear map before sentence-transformers' loss; its gradients count too."""
    torch = pytest.importorskip("torch")
    loss = bind(getattr(distillation, ours), projection=5)
    params = loss.init(8, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {"kernel": (8, 5), "bias": (5,)}
    params["bias"] += 0.5
    linear = {
        name: torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=True)
        for name, leaf in params.items()
    }
    teacher = embeddings(columns, 7, dim=5, seed=1)
    reference = getattr(peers, peer)(torch_model)

    def after_the_map(features):
        features = [
            {"embedding": column["embedding"] @ linear["kernel"] + linear["bias"]}
            for column in features
        ]
        return reference(features, torch.tensor(teacher).transpose(0, 1))

    equals_torch(
        loss,
        after_the_map,
        embeddings(columns, 7),
        {"teacher": jnp.asarray(teacher)},
        params=params,
        learnt=lambda: {name: leaf.grad.numpy() for name, leaf in linear.items()},
    )


def test_a_projection_and_prefixes():
    """Each prefix has its own projection.

    A teacher that is cut with the student needs no projection.
    """
    loss = build_loss("matryoshka(embedding_mse(projection=5), dims='8,4')")
    params = loss.init(8, jax.random.key(0))
    assert {size: leaf["kernel"].shape for size, leaf in params.items()} == {
        "4": (4, 5),
        "8": (8, 5),
    }
    student, teacher = jnp.asarray(embeddings(1, 3)), jnp.asarray(embeddings(1, 3, dim=5))
    value = loss(*student, teacher=teacher, params=params)
    expected = sum(
        distillation.embedding_mse_loss(
            distillation.project_student(normalize(student[0, :, :size]), params[str(size)]),
            teacher[0],
        )
        for size in (4, 8)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    with pytest.raises(InputError, match="expected embeddings of size 8, found 4$"):
        loss = build_loss("matryoshka(embedding_mse(projection=8), dims='8,4')")
        loss(*student, teacher=jnp.asarray(embeddings(1, 3)))


def normalized_by_loops(scores, normalization):
    """Normalises each list with numpy."""
    rows = []
    for row in scores.astype(np.float64):
        if normalization == "min_max":
            row = (row - row.min()) / (np.ptp(row) or 1.0)
        elif normalization == "z_score":
            row = (row - row.mean()) / (row.std() or 1.0)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("normalization", distillation.NORMALIZATIONS)
def test_scores_are_normalized_list_by_list(normalization):
    teacher = scores(5, 4) * 10.0 - 3.0
    teacher[1] = 0.7  # equal scores say nothing
    normalized = functools.partial(distillation.normalize_scores, normalization=normalization)
    expected = normalized_by_loops(teacher, normalization)
    if normalization != "none":
        assert not np.any(normalized(teacher)[1]) and np.max(np.abs(expected[1])) < 1e-6
    np.testing.assert_allclose(normalized(teacher), expected, rtol=1e-5, atol=1e-6)
    if normalization != "none":
        fewer = jnp.pad(teacher, [(0, 0), (0, 1)], constant_values=99.0)
        present = jnp.arange(5)[None] < jnp.full((4, 1), 4)
        result = normalized(fewer, present)
        np.testing.assert_allclose(result[:, :4], expected, rtol=1e-5, atol=1e-6)
        assert not np.any(result[:, 4])


@pytest.mark.parametrize(
    "normalization, temperature, teacher_temperature",
    [("none", 0.5, 2.0), ("min_max", 0.25, 1.0), ("z_score", 2.0, 0.5)],
)
@pytest.mark.parametrize("name", ["kl", "margin_mse"])
def test_two_temperatures(name, normalization, temperature, teacher_temperature, equals_numpy):
    score = scores(4, 5) * 3.0
    teacher = normalized_by_loops(score, normalization) / teacher_temperature

    def naive(embeddings):
        student = np.einsum("bd,kbd->bk", embeddings[0], embeddings[1:]) / temperature
        if name == "margin_mse":
            margins = [scores[:, :1] - scores[:, 1:] for scores in (student, teacher)]
            return np.mean((margins[0] - margins[1]) ** 2)
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, student))
        return temperature * teacher_temperature * np.mean(np.sum(p * np.log(p / q), axis=1))

    equals_numpy(
        getattr(distillation, name),
        naive,
        embeddings(4, 5, dim=3),
        {"score": jnp.asarray(score)},
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        normalization=normalization,
    )


def test_temperatures_decide_which_scores_can_be_fitted():
    def fits(arguments):
        return build_loss(f"margin_mse(similarity='cosine', {arguments})").about.fits

    (target,) = fits("temperature=0.5, teacher_temperature=3.0")
    assert (target.least, target.largest, target.of_margins) == (-12.0, 12.0, True)
    assert not fits("normalization='min_max'")
    assert not fits("temperature='linear(1, 0.5, 10)'")


@pytest.mark.parametrize(
    "expression, message",
    [
        ("kl(normalization='minmax')", "normalization of scores 'minmax'.*min_max"),
        ("kl(teacher_temperature=-1.0)", "teacher_temperature: expected more than 0, or 0 for"),
        ("margin_mse(teacher_temperature=0.0)", "teacher_temperature: expected more than 0"),
    ],
)
def test_wrong_arguments_of_scores_are_one_line(expression, message):
    columns = make_columns(jnp.ones((3, 2, 8)), score=jnp.ones((2, 2)))
    with pytest.raises(InputError, match=message):
        values_of(build_loss(expression), columns)


def test_kl_of_normalized_scores_depends_on_the_scale_of_neither_side():
    rng = np.random.default_rng(3)
    student, teacher = jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)
    both = functools.partial(
        distillation.kl_loss, normalization="min_max", student_normalization="min_max"
    )
    values = both(student, teacher).values
    moved = both(30 * student - 7, 4 * teacher + 1).values
    np.testing.assert_allclose(moved, values, rtol=1e-5, atol=1e-5)
    ready = [
        jnp.asarray(normalized_by_loops(np.asarray(each), "min_max"), jnp.float32)
        for each in (student, teacher)
    ]
    of_ready = distillation.kl_loss(*ready)
    np.testing.assert_allclose(values, of_ready.values, rtol=1e-5, atol=1e-6)


def test_kl_of_fewer_candidates_is_that_of_those_alone():
    score, given_embeddings = jnp.asarray(scores(4, 1)), jnp.asarray(embeddings(4, 1))
    whole = make_columns(given_embeddings[:3], score=score[:, :2])
    masked = make_columns(
        given_embeddings, score=score, present=jnp.array([[True], [True], [True], [False]])
    )
    values = [
        jax.jit(values_of, static_argnums=0)(distillation.kl, columns)
        for columns in (whole, masked)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("batch, columns", [(2, 2), (5, 4)])
def test_score_mse(batch, columns, equals_numpy):
    score = scores(columns, batch)

    def naive(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
        return np.mean(
            [(unit[0, i] @ unit[1 + k, i] - score[i, k]) ** 2 for i, k in np.ndindex(*score.shape)]
        )

    equals_numpy(
        pointwise.score_mse, naive, embeddings(columns, batch, 4), {"score": jnp.asarray(score)}
    )


def test_score_mse_of_pairs_is_cosine_mse():
    columns = make_columns(jnp.asarray(embeddings(2, 5)), score=jnp.asarray(scores(2, 5)))
    by_scores, by_cosine = (
        loss.on_world(columns, local_world(columns), {})[0]
        for loss in (pointwise.score_mse, pairwise.cosine_mse)
    )
    np.testing.assert_array_equal(by_scores, by_cosine)


@pytest.mark.parametrize("batch, columns", [(2, 1), (4, 2)])
def test_relational(batch, columns, equals_numpy):
    teacher = embeddings(columns, batch, dim=5, seed=1)

    def cosines(embeddings):
        texts = embeddings.reshape(columns * batch, -1)
        return [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in texts] for x in texts]

    def naive(embeddings):
        return np.mean(
            (np.array(cosines(embeddings)) - np.array(cosines(teacher.astype(np.float64)))) ** 2
        )

    student = embeddings(columns, batch, dim=3)
    equals_numpy(distillation.relational, naive, student, {"teacher": jnp.asarray(teacher)})


def test_wrong_sizes_are_one_line():
    columns = make_columns(
        jnp.ones((3, 2, 8)), teacher=jnp.ones((3, 2, 16)), score=jnp.ones((2, 1))
    )
    for name in ("embedding_mse", "embedding_cosine"):
        expected = (
            rf"the teacher of the loss {name}: expected embeddings of size 8, found 16; "
            rf"{name}\(projection=16\)"
        )
        with pytest.raises(InputError, match=expected):
            build_loss(name).on_world(columns, local_world(columns), {})
    for name in ("margin_mse", "kl", "score_mse"):
        expected = (
            f"scores of the loss {name}: expected 2 an example, one for each candidate, found 1"
        )
        with pytest.raises(InputError, match=expected):
            build_loss(name).on_world(columns, local_world(columns), {})
