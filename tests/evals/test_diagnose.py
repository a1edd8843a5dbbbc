"""A planted fault is found, a sound model has no fault, and the figures equal their definitions."""

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals import diagnose
from embed_jax.evals import ranks as ranking
from embed_jax.evals.diagnose import FAULT, NOT_CHECKED, OK
from embed_jax.evals.geometry import average_cosine
from embed_jax.evals.ranks import judged_rows, ndcg_of_ranks, recall_of_ranks, relevant_ranks
from embed_jax.evals.search import evaluate_retrieval
from embed_jax.scores import SIMILARITIES, truncate

DOCUMENTS, QUERIES, DIM = 400, 60, 32
JUDGED = judged_rows(
    {f"d{n}": "" for n in range(DOCUMENTS)},
    {f"q{n}": "" for n in range(QUERIES)},
    {f"q{n}": {f"d{n}": 2, f"d{n + QUERIES}": 1, f"d{n + 1}": 0} for n in range(QUERIES)},
)


def made(noise=0.5, offset=0.0, seed=0):
    """Makes queries and documents; two documents of each query are the query with noise.

    All are moved in one direction.
    """
    rng = np.random.default_rng(seed)
    queries, corpus = rng.normal(size=(QUERIES, DIM)), rng.normal(size=(DOCUMENTS, DIM))
    for part in (slice(0, QUERIES), slice(QUERIES, 2 * QUERIES)):
        corpus[part] = queries + noise * corpus[part]
    return (queries + offset).astype(np.float32), (corpus + offset).astype(np.float32)


def discrimination(queries, corpus, judged=JUDGED, similarity="cosine"):
    relevant, random = diagnose.against_random(queries, corpus, judged, similarity)
    return diagnose.discrimination(relevant, random, judged.query, average_cosine(corpus))


def score(queries, corpus, judged=JUDGED):
    return ndcg_of_ranks(relevant_ranks(queries, corpus, judged), judged)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("ignore", [False, True])
def test_scores_of_ranks_are_those_of_a_search(similarity, ignore, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK", 7 * 50)  # several blocks of queries
    rng = np.random.default_rng(1)
    queries, corpus = (
        rng.integers(-2, 3, size=(n, 3)).astype(np.float32) for n in (20, 50)
    )  # many equal scores
    if similarity == "cosine":  # whose equal scores are equal except for rounding
        corpus = rng.normal(size=(50, 3)).astype(np.float32)
    names = [f"x{n}" for n in range(50)]
    texts, query_names = (
        {name: name for name in names},
        {name: name for name in reversed(names[:20])},
    )
    drawn = (rng.choice(50, 5, replace=False) for _ in query_names)
    qrels = {
        name: {names[n]: int(rng.integers(0, 4)) for n in rows}
        for name, rows in zip(query_names, drawn, strict=True)
    }
    qrels["x3"] = {
        "x3": 1,
        "x9": 2,
    }  # its own text is right, and no result where equal ids are left out

    def encode_with(vectors):
        return lambda batch: np.array([vectors[names.index(text)] for text in batch])

    expected = evaluate_retrieval(
        encode_with(queries),
        encode_with(corpus),
        texts,
        query_names,
        qrels,
        ks=(7, 10),
        similarity=similarity,
        ignore_identical_ids=ignore,
    )
    judged = judged_rows(texts, query_names, qrels, ignore_identical_ids=ignore)
    rows = [names.index(name) for name in qrels]
    ranks = relevant_ranks(queries[rows], corpus, judged, similarity)
    np.testing.assert_allclose(
        ndcg_of_ranks(ranks, judged), expected.per_query["ndcg@10"], rtol=1e-12
    )
    np.testing.assert_array_equal(recall_of_ranks(ranks, judged, 7), expected.per_query["recall@7"])


def test_a_healthy_search_has_no_fault():
    queries, corpus = made()
    ranks = relevant_ranks(queries, corpus, JUDGED)
    whole = ndcg_of_ranks(ranks, JUDGED)
    assert discrimination(queries, corpus).status == OK
    assert diagnose.missing_prompt({"as used": whole}, expects=False, prompted=False).status == OK
    assert diagnose.truncation({DIM: whole}, full=DIM, used=DIM).status == OK
    assert diagnose.shortlist(ranks, JUDGED, k=100, target=0.95, documents=DOCUMENTS).status == OK


def test_scores_that_do_not_discriminate():
    queries, corpus = made(noise=30.0)
    result = discrimination(queries, corpus)
    assert result.status == FAULT and result.cause == ""
    assert 0.4 < result.figures["auc"] < 0.65
    assert abs(result.figures["separation"]) < 0.5
    assert discrimination(*made(noise=30.0, offset=5.0)).cause == "cone"


def test_high_cosines_that_rank_well_are_no_fault():
    result = discrimination(*made(noise=0.2, offset=3.0))
    assert result.figures["mean_cosine_of_documents"] > 0.8
    assert result.status == OK and "narrow cone" in result.line


def test_right_on_average_but_seldom_near_the_top_is_a_fault():
    random = np.tile(np.linspace(0, 1, 200), (10, 1))
    result = diagnose.discrimination(np.full(10, 0.97), random, np.arange(10), 0.0)
    assert (
        result.figures["auc"] > diagnose.LEAST_AUC and result.figures["above_99th_percentile"] == 0
    )
    assert result.status == FAULT


def test_the_auc_is_that_of_all_pairs_and_depends_on_order_alone():
    rng = np.random.default_rng(2)
    relevant, random = rng.integers(0, 9, size=12) / 9.0, rng.integers(0, 9, size=(5, 40)) / 9.0
    query = rng.integers(0, 5, size=12)
    pairs = list(zip(relevant, query, strict=True))
    won = [
        (value > other) + 0.5 * (value == other) for value, row in pairs for other in random[row]
    ]
    auc = diagnose.discrimination(relevant, random, query, 0.0).figures["auc"]
    assert auc == pytest.approx(np.mean(won))
    assert (
        diagnose.discrimination(np.exp(9 * relevant), np.exp(9 * random), query, 0.0).figures["auc"]
        == auc
    )
    same = diagnose.discrimination(np.ones(12), np.ones((5, 40)), query, 1.0)
    assert (same.figures["auc"], same.figures["separation"], same.status) == (0.5, 0.0, FAULT)


def test_random_documents_are_never_relevant_nor_the_query_itself():
    rng = np.random.default_rng(3)
    names = [f"x{n}" for n in range(30)]
    qrels = {name: {names[n]: 1 for n in rng.choice(30, 4, replace=False)} for name in names[:8]}
    texts = dict.fromkeys(names, "")
    judged = judged_rows(texts, texts, qrels, ignore_identical_ids=True)
    corpus = np.eye(30, dtype=np.float32)
    relevant, random = diagnose.against_random(
        np.ones((8, 30), np.float32) * np.arange(30), corpus, judged, "dot"
    )
    for row, (name, right) in enumerate(qrels.items()):
        others = set(random[row].astype(int))
        assert len(others) == random.shape[1] >= 25
        assert not others & {names.index(document) for document in (name, *right)}
    np.testing.assert_array_equal(relevant, judged.document)


def test_too_few_documents_to_compare_with():
    assert (
        diagnose.discrimination(np.ones(2), np.zeros((2, 9)), np.arange(2), 0.0).status
        == NOT_CHECKED
    )


@pytest.mark.parametrize(
    ("others", "flags", "status", "cause"),
    [
        ({}, {"expects": False, "prompted": False}, OK, ""),
        ({"own": 0.3}, {"expects": True, "prompted": False}, FAULT, "unused"),
        ({"own": 0.0}, {"expects": True, "prompted": False}, FAULT, "unused"),
        (
            {"own": 0.2, "other": 0.3, "none": -0.1},
            {"expects": True, "prompted": True},
            FAULT,
            "other",
        ),
        ({"none": -0.3}, {"expects": True, "prompted": True}, OK, ""),
        ({"none": 0.005}, {"expects": True, "prompted": True}, OK, ""),
        (
            {"none": -0.3},
            {"expects": True, "prompted": True, "recorded": False},
            FAULT,
            "unrecorded",
        ),
        ({"s2p": 0.2}, {"expects": False, "prompted": False}, FAULT, "s2p"),
    ],
)
def test_prompts(others, flags, status, cause):
    used = np.random.default_rng(4).uniform(0.3, 0.6, size=80)
    result = diagnose.missing_prompt(
        {"used": used} | {name: used + gain for name, gain in others.items()}, **flags
    )
    assert (result.status, result.cause) == (status, cause)
    assert result.figures["ndcg@10 used"] == pytest.approx(used.mean())
    assert all(f"{used.mean() + gain:.4f}" in result.line for gain in others.values())


def test_another_prompt_that_may_be_better_by_chance_is_no_fault():
    rng = np.random.default_rng(5)
    used = rng.uniform(size=30)
    other = used + rng.normal(size=30)
    other += 0.05 - np.mean(other - used)  # the mean is ahead, the interval is not
    assert (
        diagnose.missing_prompt({"used": used, "own": other}, expects=True, prompted=True).status
        == OK
    )


def test_a_size_that_was_not_trained_and_loses():
    queries, corpus = made(noise=0.3)
    queries[:, :8], corpus[:, :8] = (
        np.random.default_rng(6).normal(size=(QUERIES, 8)),
        1.0,
    )  # nothing is known there
    scores = {size: score(truncate(queries, size), truncate(corpus, size)) for size in (DIM, 24, 8)}
    assert scores[24].mean() > 0.9 > 0.3 > scores[8].mean()
    result = diagnose.truncation(scores, full=DIM, used=8)
    assert result.status == FAULT
    assert (
        result.figures["ndcg@10 8"] == scores[8].mean()
        and f"{scores[DIM].mean() - scores[8].mean():+.4f}" in result.line
    )
    assert diagnose.truncation(scores, full=DIM, used=8, trained=(DIM, 8)).status == OK
    assert diagnose.truncation(scores, full=DIM, used=DIM).status == OK
    same = {DIM: scores[DIM], 24: scores[DIM] - 0.005}
    assert diagnose.truncation(same, full=DIM, used=24).status == OK


def test_a_shortlist_below_the_target():
    ranks = relevant_ranks(*made(noise=3.0), JUDGED)
    recalls = [recall_of_ranks(ranks, JUDGED, k).mean() for k in range(1, DOCUMENTS + 1)]
    for k, target in ((5, 0.5), (100, 0.8), (100, 0.95), (DOCUMENTS, 1.0)):
        result = diagnose.shortlist(ranks, JUDGED, k=k, target=target, documents=DOCUMENTS)
        assert result.status == (OK if recalls[k - 1] >= target else FAULT)
        assert result.figures["recall"] == recalls[k - 1]
        assert result.figures["low"] <= recalls[k - 1] <= result.figures["high"]
        assert result.figures["needed"] == 1 + np.argmax(np.array(recalls) >= target - 1e-9)
    assert recalls[4] < 0.5  # the fault was there to be found


def test_a_target_that_no_shortlist_reaches():
    texts = {name: "" for name in "abc"}
    judged = judged_rows(texts, texts, {"a": {"a": 1}, "b": {"c": 1}}, ignore_identical_ids=True)
    ranks = relevant_ranks(np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32), judged)
    result = diagnose.shortlist(ranks, judged, k=3, target=0.9, documents=3)
    assert (result.status, result.cause) == (FAULT, "never") and np.isnan(result.figures["needed"])


def test_negatives():
    rng = np.random.default_rng(7)
    random, positive = rng.normal(size=(200, 500)), np.full(200, 6.0)
    row = np.repeat(np.arange(200), 2)
    easy = diagnose.negatives(positive, rng.normal(size=400), row, random)
    assert easy.status == FAULT and easy.figures["easy"] > 0.9
    assert easy.figures["below_margin"] == 1.0 and easy.figures["above_positive"] == 0.0
    negative = np.full(400, 5.0)
    negative[:40] = 6.5
    hard = diagnose.negatives(positive, negative, row, random)
    assert hard.status == OK and hard.figures["easy"] == 0.0
    assert hard.figures["above_positive"] == pytest.approx(0.1)
    assert hard.figures["gap"] == pytest.approx(0.9 * 1.0 - 0.1 * 0.5)
    # Whatever the scale: a narrow band of scores hides nothing, as only the order counts.
    band = [0.7 + 0.02 * values for values in (positive, negative)]
    assert diagnose.negatives(*band, row, 0.7 + 0.02 * random).figures["easy"] == 0.0


def test_one_in_64_random_ones_nearer_makes_a_negative_easy():
    random = np.tile(np.arange(640.0), (1, 1))
    for nearer, easy in ((9, 0.0), (10, 1.0)):
        result = diagnose.negatives(
            np.array([700.0]), np.array([639.5 - nearer]), np.array([0]), random
        )
        assert result.figures["easy"] == easy


def test_a_negative_margin_is_below_a_positive_of_any_sign():
    random = np.tile(np.arange(-20.0, 0.0), (2, 1))
    result = diagnose.negatives(
        np.array([1.0, -1.0]), np.array([0.96, -1.04]), np.array([0, 1]), random
    )
    assert result.figures["below_margin"] == 0.0
    result = diagnose.negatives(
        np.array([1.0, -1.0]), np.array([0.94, -1.06]), np.array([0, 1]), random
    )
    assert result.figures["below_margin"] == 1.0


@pytest.mark.parametrize(("number", "copies"), [(300, 3), (300, 80)])
def test_positives_of_other_rows_share_no_text(number, copies):
    anchors = ["a", "a ", "b", "c", "d", *(f"anchor {n}" for n in range(copies))]
    positives = ["x", "y", "a", "z", "d", *(f"positive {n}" for n in range(copies))]
    for mine, drawn in enumerate(diagnose.others_positives(anchors, positives, number)):
        result = {other for other in drawn.tolist() if other >= 0}
        expected = {
            other
            for other in range(len(anchors))
            if not {anchors[mine].strip(), positives[mine]}
            & {anchors[other].strip(), positives[other]}
        }
        assert result == expected
    nowhere = np.full((2, 5), np.nan)
    result = diagnose.negatives(np.ones(2), np.zeros(2), np.arange(2), nowhere)
    assert result.status == NOT_CHECKED and not result.figures


def test_nothing_relevant_is_refused():
    with pytest.raises(InputError, match="none of 1 queries has a relevant document"):
        judged_rows({"d": ""}, {"q": ""}, {"q": {"d": 0}})
