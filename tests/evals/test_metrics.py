import math

import numpy as np
import pytest

from embed_jax.evals import metrics
from embed_jax.evals.search import score_run


@pytest.fixture(scope="module")
def made():
    """Makes random graded judgements and rankings.

    Some queries have no relevant document, one hit, or no hit.
    """
    rng = np.random.default_rng(1)
    qrels, run = {}, {}
    for q in range(60):
        judged = rng.choice(200, size=rng.integers(1, 25), replace=False)
        grades = rng.integers(0, 4, size=len(judged)) if q % 10 else np.zeros(len(judged), int)
        qrels[f"q{q}"] = {f"d{d:03}": int(grade) for d, grade in zip(judged, grades, strict=True)}
        results = rng.choice(200, size=rng.integers(0, 60), replace=False)
        run[f"q{q}"] = {f"d{d:03}": -float(rank) for rank, d in enumerate(results)}
    return qrels, run


def test_correlations_equal_scipy_with_ties():
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, size=(2, 50))
        assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


def test_correlation_of_a_constant_is_not_a_number():
    assert math.isnan(metrics.spearman(np.ones(5), np.arange(5)))
    assert math.isnan(metrics.pearson(np.arange(1), np.arange(1)))


def test_ranking_metrics_equal_pytrec_eval(made):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, run = made
    ks = (1, 3, 10, 100)
    ours = score_run(run, qrels, ks=ks)
    names = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut"}
    measures = {f"{name}.{','.join(map(str, ks))}" for name in names.values()}
    reference = pytrec_eval.RelevanceEvaluator(qrels, measures | {"recip_rank"}).evaluate(run)
    # A query for which nothing was found is left out by trec_eval; for us it scores 0.
    assert {query for query in qrels if not run[query]} == set(qrels) - set(reference)
    for row, query in enumerate(ours.query_ids):
        for name, theirs_name in names.items():
            for k in ks:
                expected = reference[query][f"{theirs_name}_{k}"] if run[query] else 0.0
                assert ours.per_query[f"{name}@{k}"][row] == pytest.approx(expected, abs=1e-9), (
                    query,
                    name,
                    k,
                )
        expected = reference[query]["recip_rank"] if run[query] else 0.0
        assert ours.per_query["mrr@100"][row] == pytest.approx(expected, abs=1e-9)


def test_ndcg_equals_the_formula_by_hand():
    result = score_run(
        {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"a": 1, "c": 3, "x": 2}}, ks=(2, 3)
    )
    ideal = 3 + 2 / math.log2(3)
    assert result.metrics["ndcg@2"] == pytest.approx(1 / ideal)
    assert result.metrics["ndcg@3"] == pytest.approx((1 + 3 / 2) / (ideal + 1 / 2))
    assert result.metrics["mrr@2"] == 1.0
    assert result.metrics["recall@2"] == pytest.approx(1 / 3)
    assert result.metrics["map@3"] == pytest.approx((1 + 2 / 3) / 3)


def test_ranking_metrics_equal_sentence_transformers(made):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    ks = [1, 5, 10]
    qrels, run = made
    relevant = {q: {d for d, grade in judged.items() if grade > 0} for q, judged in qrels.items()}
    relevant = {
        q: documents for q, documents in relevant.items() if documents
    }  # it refuses queries without any
    evaluator = evaluation.InformationRetrievalEvaluator(
        queries=dict.fromkeys(relevant, ""),
        corpus={f"d{d:03}": "" for d in range(200)},
        relevant_docs=relevant,
        ndcg_at_k=ks,
        mrr_at_k=ks,
        precision_recall_at_k=ks,
        map_at_k=[100],  # where its division by min(k, relevant) is trec_eval's by all relevant
    )
    hits = [
        [{"corpus_id": d, "score": s} for d, s in run[q].items()] for q in evaluator.queries_ids
    ]
    reference = evaluator.compute_metrics(hits)
    binary = {q: dict.fromkeys(documents, 1) for q, documents in relevant.items()}
    ours = score_run(run, binary, ks=(*ks, 100)).metrics
    for k in ks:
        for name in ("ndcg", "mrr", "recall"):
            assert ours[f"{name}@{k}"] == pytest.approx(float(reference[f"{name}@k"][k]), abs=1e-9)
    assert ours["map@100"] == pytest.approx(float(reference["map@k"][100]), abs=1e-9)


def test_bootstrap_interval_is_repeatable_and_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        values = rng.normal(1.0, 2.0, size=80)
        interval = metrics.bootstrap_interval(
            80, lambda i, v=values: v[i].mean(), resamples=200, seed=trial
        )
        assert interval == metrics.bootstrap_interval(
            80, lambda i, v=values: v[i].mean(), resamples=200, seed=trial
        )
        covered += interval[0] <= 1.0 <= interval[1]
    assert 88 <= covered <= 99  # 95 expected
