"""Geometry equals textbook cases, naive loops, losses that measure it, and scipy."""

import importlib
import itertools
import math
import types
from pathlib import Path

import numpy as np
import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.errors import InputError
from embed_jax.evals import geometry
from embed_jax.evals.geometry import (
    average_cosine,
    dimension_variances,
    distance_concentration,
    effective_rank,
    first_component,
    geometry_evaluator,
    geometry_metrics,
    hubness,
    isotropy,
    judged_texts,
    k_occurrence,
    log_uniformity,
    mean_alignment,
    nearest_to_farthest,
    sts_texts,
)
from embed_jax.losses import regularization
from embed_jax.sentence import truncate
from embed_jax.vectors import cosine_matrix, dot_matrix, euclidean

ROOT = Path(__file__).parents[2]


@pytest.fixture
def vectors():
    """Returns vectors of uneven length, with a common direction and uneven spread.

    No metric is at an end of its range.
    """
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 0.1, 12)
    return (rng.normal(size=(60, 12)) * scales + 0.3) * rng.uniform(0.5, 2, size=(60, 1))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 7)


def simplex(dim):
    """Returns dim + 1 points at equal distances.

    They are the axes of one more dimension, minus their mean.
    """
    centred = np.eye(dim + 1) - 1 / (dim + 1)
    return centred @ np.linalg.svd(centred)[2][:dim].T


# Textbook cases.


@pytest.mark.parametrize("dim", [2, 7, 20])
def test_an_orthonormal_basis(dim):
    basis = 3.0 * np.eye(dim)
    assert average_cosine(basis) == 0
    assert log_uniformity(basis) == pytest.approx(-4)
    assert effective_rank(basis) == pytest.approx(dim)
    assert nearest_to_farthest(basis) == pytest.approx(1)
    np.testing.assert_allclose(dimension_variances(basis), (1 - 1 / dim) / dim)
    assert mean_alignment(basis, np.roll(basis, 1, axis=0)) == pytest.approx(2)
    assert mean_alignment(basis, -basis) == pytest.approx(4)


@pytest.mark.parametrize("dim", [2, 7, 20])
def test_a_simplex(dim):
    points = simplex(dim)
    assert average_cosine(points) == pytest.approx(-1 / dim)
    assert log_uniformity(points) == pytest.approx(-4 - 4 / dim)
    assert effective_rank(points) == pytest.approx(dim)
    assert nearest_to_farthest(points) == pytest.approx(1)
    assert first_component(points) == pytest.approx(1 / dim)


def test_both_ends_of_each_axis_are_isotropic():
    assert isotropy(np.concatenate([np.eye(9), -np.eye(9)])) == pytest.approx(1)
    assert average_cosine(np.concatenate([np.eye(9), -np.eye(9)])) == pytest.approx(-1 / 17)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_direction_is_a_collapse(dtype):
    direction = np.random.default_rng(1).normal(size=16)
    collapsed = np.outer(np.linspace(0.5, 2, 15), direction).astype(dtype)
    result = geometry_metrics(collapsed, (collapsed, collapsed[::-1]))
    assert result["average_cosine"] == pytest.approx(1)
    assert result["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert result["isotropy"] == pytest.approx(math.exp(-2))
    assert result["nearest_to_farthest"] == 1
    assert math.isnan(result["first_component"])
    for name in ("alignment", "uniformity", "min_variance", "max_variance"):
        assert result[name] == pytest.approx(0, abs=1e-12)


def test_two_opposite_directions_are_one_component():
    line = np.outer([1.0, -1.0, 1.0, -1.0], [3.0, 4.0])
    assert first_component(line) == pytest.approx(1)
    assert effective_rank(line) == pytest.approx(1)
    np.testing.assert_allclose(dimension_variances(line), [0.36, 0.64])


def test_distances_concentrate_as_dimensions_grow():
    points = np.random.default_rng(2).normal(size=(60, 4096))
    result = distance_concentration(points)
    assert list(result) == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert all(a < b for a, b in itertools.pairwise(result.values()))
    assert result[16] < 0.6 and 0.9 < result[4096] < 1


def test_a_hub_is_everyone_s_neighbour():
    """Points on a cone are nearer to its axis than to each other."""
    others, cos = 30, 0.8
    cone = np.concatenate(
        [np.full((others, 1), cos), math.sqrt(1 - cos**2) * np.eye(others)], axis=1
    )
    points = np.concatenate([np.eye(1, others + 1), cone])
    counts = k_occurrence(points, 1)
    assert counts[0] == others and counts.sum() == others + 1
    assert hubness(points, 1) > 5


def test_without_hubs_there_is_no_skewness():
    angles = 2 * np.pi * np.arange(24) / 24
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_array_equal(k_occurrence(circle, 2), 2)
    assert hubness(circle, 2) == 0


# References.


def test_equal_to_loops_over_pairs(vectors, small_blocks):
    unit = [
        vector / math.sqrt(sum(x * x for x in vector))
        for vector in vectors.tolist()
        for vector in [np.array(vector)]
    ]
    n = len(unit)
    distance = [[math.dist(x, y) for y in unit] for x in unit]
    others = [[j for j in range(n) if j != i] for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in others[i]]
    assert log_uniformity(vectors) == pytest.approx(
        math.log(np.mean([math.exp(-2 * distance[i][j] ** 2) for i, j in pairs]))
    )
    assert average_cosine(vectors) == pytest.approx(np.mean([unit[i] @ unit[j] for i, j in pairs]))
    ratios = [
        min(distance[i][j] for j in others[i]) / max(distance[i][j] for j in others[i])
        for i in range(n)
    ]
    assert nearest_to_farthest(vectors) == pytest.approx(np.mean(ratios))
    nearest = [sorted(others[i], key=lambda j, i=i: distance[i][j])[:10] for i in range(n)]
    np.testing.assert_array_equal(
        k_occurrence(vectors), [sum(i in result for result in nearest) for i in range(n)]
    )
    sums = []
    for direction in np.linalg.svd(np.array(unit))[2]:
        sums += [sum(math.exp(sign * (direction @ x)) for x in unit) for sign in (1, -1)]
    assert isotropy(vectors) == pytest.approx(min(sums) / max(sums))
    shares = [
        value / sum(values) for values in [np.linalg.svd(np.array(unit))[1]] for value in values
    ]
    assert effective_rank(vectors) == pytest.approx(
        math.exp(-sum(share * math.log(share) for share in shares))
    )
    eigenvalues = np.linalg.eigvalsh(np.cov(np.array(unit).T))
    assert first_component(vectors) == pytest.approx(eigenvalues[-1] / eigenvalues.sum())


def test_skewness_is_scipy_s(vectors):
    from scipy.stats import skew

    for k in (1, 5, 10):
        assert hubness(vectors, k) == pytest.approx(skew(k_occurrence(vectors, k)), rel=1e-9)


def test_alignment_and_uniformity_are_the_losses(vectors):
    first, second = vectors[:30], vectors[30:]
    assert mean_alignment(first, second) == pytest.approx(
        float(np.mean(regularization.alignment(first, second))), rel=1e-5
    )
    for t in (0.5, 2.0):
        assert log_uniformity(vectors, t=t) == pytest.approx(
            float(regularization.uniformity(vectors, t=t)[0]), rel=1e-5
        )


def test_prefixes_are_those_of_truncate(vectors):
    result = distance_concentration(vectors, [1, 5, 12])
    assert result == {
        dim: pytest.approx(nearest_to_farthest(truncate(vectors, dim)), rel=1e-4)
        for dim in (1, 5, 12)
    }
    assert distance_concentration(vectors) == {12: nearest_to_farthest(vectors)}
    assert list(distance_concentration(np.tile(vectors, 4))) == [16, 32, 48]
    assert list(distance_concentration(np.tile(vectors, 4)[:, :32])) == [16, 32]


# Invariances.


def test_on_unit_vectors_cosine_dot_product_and_euclidean_distance_rank_identically(vectors):
    def rankings(vectors):
        near = -np.stack([np.asarray(euclidean(vector[None], vectors)) for vector in vectors])
        result = [
            cosine_matrix(vectors, vectors),
            dot_matrix(vectors, vectors),
            near,
        ]
        return [np.argsort(-np.asarray(values), axis=1, kind="stable")[:, 1:] for values in result]

    unit = np.asarray(truncate(vectors, 12))
    cosine, dot, near = rankings(unit)
    np.testing.assert_array_equal(cosine, dot)
    np.testing.assert_array_equal(cosine, near)
    raw = rankings(vectors.astype(np.float32))
    assert not np.array_equal(raw[0], raw[1]) and not np.array_equal(raw[0], raw[2]), (
        "unlike vectors of any length"
    )


def test_rotation_and_lengths_change_nothing(vectors):
    rng = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    moved = vectors @ rotation * rng.uniform(0.1, 10, size=(60, 1))
    before = geometry_metrics(vectors, (vectors[:30], vectors[30:]))
    after = geometry_metrics(moved, (moved[:30], moved[30:]))
    for name in before.keys() - {
        "min_variance",
        "median_variance",
        "max_variance",
    }:  # these are of the axes
        assert after[name] == pytest.approx(before[name], rel=1e-9), name
    assert dimension_variances(moved).sum() == pytest.approx(dimension_variances(vectors).sum())


def test_order_and_blocks_change_nothing(vectors, monkeypatch):
    whole = geometry_metrics(vectors)
    monkeypatch.setattr(geometry, "BLOCK", 9)
    assert geometry_metrics(vectors[::-1]) == pytest.approx(whole, rel=1e-9)


# Texts, pairs, the evaluator.


def encoder(dim=8):
    """A fake `encode`: a text's vector depends on the text and prompt only."""
    calls = []

    def encode(texts, prompt=""):
        calls.append((list(texts), prompt))
        seeds = [np.frombuffer((prompt + text).encode().ljust(16), np.uint8) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=dim) for seed in seeds]).astype(
            np.float32
        )

    encode.calls = calls
    return encode


def test_positives_of_sts_score_above_four_fifths():
    texts, pairs = sts_texts(list("abcd"), list("efga"), [5.0, 4.0, 4.2, 0.0], ["x"] * 4)
    assert texts == list("abcdefg")
    assert pairs == [("a", "e"), ("c", "g")]
    assert sts_texts(list("abcd"), list("efga"), [1.0, 0.8, 0.84, 0.0]) == (texts, pairs), (
        "on any scale"
    )
    with pytest.raises(InputError, match="above 0"):
        sts_texts(["a"], ["b"], [0.0])


def test_positives_of_judgements_are_relevant():
    corpus, queries = {"d1": "one", "d2": "two", "d3": "two"}, {"q": "ask"}
    texts, pairs = judged_texts(corpus, queries, {"q": {"d1": 2, "d2": 0, "d3": 1}})
    assert (texts, pairs) == (["one", "two"], [("ask", "one"), ("ask", "two")])
    assert judged_texts(corpus, queries, {"q": {"d1": 1, "gone": 1}})[1] == [("ask", "one")]
    with pytest.raises(InputError, match="none of the judged documents"):
        judged_texts(corpus, queries, {"q": {"d9": 1}})


def test_the_evaluator_measures_the_same_texts_again():
    texts = [f"text {n}" for n in range(50)]
    pairs = [(f"text {n}", f"text {n + 1}") for n in range(40)]
    encode = encoder()
    assert geometry_evaluator(texts, pairs)(encode) == geometry_metrics(
        encode(texts),
        (encode([first for first, _ in pairs]), encode([second for _, second in pairs])),
    )
    assert "alignment" not in geometry_evaluator(texts)(encode)

    encode = encoder()
    evaluate = geometry_evaluator([*texts, *texts], pairs, limit=20, seed=1)
    assert evaluate(encode) == evaluate(encode)
    assert [len(texts) for texts, _ in encode.calls] == 2 * [20, 10, 10]
    assert len(set(encode.calls[0][0])) == 20 and encode.calls[:3] == encode.calls[3:]
    assert geometry_evaluator(texts, pairs, limit=20, seed=2)(encode) != evaluate(encode)


def test_prompts_are_those_of_queries_and_documents():
    encode = encoder()
    texts = [f"text {n}" for n in range(12)]
    geometry_evaluator(
        texts, [("ask", "text 1")], query_prompt="query: ", corpus_prompt="passage: "
    )(encode)
    assert encode.calls == [(texts, "passage: "), (["ask"], "query: "), (["text 1"], "passage: ")]


# Bad input.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_vectors_are_one_line(vectors, bad):
    vectors[3, 5] = bad
    metrics = [
        log_uniformity,
        average_cosine,
        isotropy,
        effective_rank,
        dimension_variances,
        first_component,
    ]
    metrics += [
        k_occurrence,
        hubness,
        nearest_to_farthest,
        distance_concentration,
        geometry_metrics,
    ]
    for metric in (*metrics, lambda vectors: mean_alignment(vectors[:9], vectors[9:18])):
        with pytest.raises(InputError, match="finite.*1 of .*number 3") as error:
            metric(vectors)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dim", [0, -1, 13])
def test_a_dimension_that_there_is_not_is_one_line(vectors, dim):
    with pytest.raises(InputError, match=f"1 to 12.*found {dim}$"):
        distance_concentration(vectors, [4, dim])


@pytest.mark.unchecked
def test_too_few_vectors_are_one_line(vectors):
    for few in (vectors[:1], vectors[:0], vectors[0], vectors[:, :0]):
        with pytest.raises(InputError, match="2 vectors or more, found the shape"):
            log_uniformity(few)
    for k in (0, 60):
        with pytest.raises(InputError, match=f"1 to 59.*found {k}$"):
            k_occurrence(vectors, k)
    with pytest.raises(InputError, match="1 to 9, .*found 10$"):
        geometry_metrics(vectors[:10])
    with pytest.raises(InputError, match="11 different texts or more, found 2$"):
        geometry_evaluator(["a", "b"] * 20)
    with pytest.raises(InputError, match="one shape"):
        mean_alignment(vectors[:3], vectors[:4])


# In training.


@pytest.fixture
def evaluators(monkeypatch, tmp_path):
    """`evaluators(experiment, **fields)` returns what an experiment passes to `fit`.

    Nothing is trained.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    rows = [f"{n % 6}\tsentence {n}\tsentence {n + 1}" for n in range(30)]
    (tmp_path / "sts.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n")
    pairs = [f"query {n}\tpassage {n}" for n in range(60)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["anchor\tpositive", *pairs]) + "\n")
    (tmp_path / "texts.txt").write_text("\n".join(pairs) + "\n")

    def evaluators(name, **fields):
        module = importlib.import_module(f"experiments.{name}")
        handed = {}
        monkeypatch.setattr(
            module,
            "fit",
            lambda *_, **arguments: (
                handed.update(arguments) or types.SimpleNamespace(finished=False)
            ),
        )
        monkeypatch.setattr(module, "plot_curves", lambda *_: None, raising=False)
        module.run(override(Experiment(), **fields), tmp_path)
        return handed["evaluators"]

    evaluators.files = {
        name: str(tmp_path / name) for name in ("sts.tsv", "pairs.tsv", "texts.txt")
    }
    return evaluators


@pytest.mark.parametrize("name, data", [("simcse", "texts.txt"), ("nli", "pairs.tsv")])
def test_experiments_log_it_of_the_sts_texts(evaluators, name, data):
    fields = {"data__train": evaluators.files[data], "eval__sts": evaluators.files["sts.tsv"]}
    assert set(evaluators(name, **fields)) == {"sts"}
    result = evaluators(name, **fields, eval__geometry=True)
    assert set(result) == {"sts", "geometry"}
    assert np.isfinite(list(result["geometry"](encoder()).values())).all()


def test_retrieval_logs_it_of_the_validation_documents(evaluators):
    pytest.importorskip("bm25s")
    pytest.importorskip("matplotlib")
    fields = {
        "data__train": evaluators.files["pairs.tsv"],
        "data__holdout": 0.35,
        "data__anchor_prompt": "query: ",
    }
    encode = encoder()
    evaluators("retrieval", **fields, eval__geometry=True)["geometry"](encode)
    (documents, prompt), (queries, query_prompt), (positives, _) = encode.calls
    assert (prompt, query_prompt) == ("", "query: ")
    assert all(text.startswith("passage") for text in documents) and documents == positives
    assert [text.replace("passage", "query") for text in positives] == queries
    fields = {
        "data__train": evaluators.files["pairs.tsv"],
        "eval__sts": evaluators.files["sts.tsv"],
    }
    assert set(evaluators("retrieval", **fields, eval__geometry=True)) == {"sts", "geometry"}


def test_without_texts_to_measure_it_is_refused():
    with pytest.raises(InputError, match="config.eval.geometry.*eval.sts"):
        override(Experiment(), eval__geometry=True)
    for field, value in (
        ("eval__sts", "sts.tsv"),
        ("eval__retrieval", "beir"),
        ("data__holdout", 0.1),
    ):
        assert override(Experiment(), eval__geometry=True, **{field: value}).eval.geometry
