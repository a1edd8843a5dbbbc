"""Whole pipelines: what each stage lost."""

import pytest

from embed_jax.evals.budget import Costs
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.evals.stages import evaluate_pipeline, pipelines_table, plot_pipelines
from embed_jax.retrieval.score_store import RememberedScores
from embed_jax.retrieval.search import Pipeline, Retriever

CORPUS = {f"d{number:02d}": f"text {number}" for number in range(30)}
QUERIES = {"q1": "one", "q2": "two"}
QRELS = {"q1": {"d00": 1, "d01": 1}, "q2": {"d02": 2}}


def fixed(*runs):
    """Returns a retriever with these results for q1 and q2, whatever batch they come in."""
    by_query = dict(zip(QUERIES.values(), runs, strict=True))
    return Retriever(lambda queries, k, allowed: [
        {name: 1.0 - rank / 100 for rank, name in enumerate(by_query[query][:k])}
        for query in queries
    ])  # fmt: skip


@pytest.fixture
def task():
    return make_retrieval_task((CORPUS, QUERIES, QRELS), name="tiny")


calls = []


def right(queries, passages):
    """A perfect reranker."""
    calls.append(queries)
    relevant = {(QUERIES[query], CORPUS[name]) for query in QRELS for name in QRELS[query]}
    return [float(pair in relevant) for pair in zip(queries, passages, strict=True)]


def test_what_retrieval_missed_and_what_the_order_lost_add_up(task):
    """q1 misses one of two documents; q2 finds its only one in second place."""
    search = fixed(["d09", "d00", "d08"], ["d07", "d02"])
    plain = Pipeline({"dense": search}, shortlist=20)
    outcome = evaluate_pipeline(plain, task, timed_queries=1)
    missed, order = outcome.shares["missed"][0], outcome.shares["order"][0]
    assert missed > 0 and order > 0 and outcome.gain is None
    assert abs(1 - missed - order - outcome.outcome.metrics["ndcg@10"]) < 1e-9
    assert outcome.shares["recall dense"][0] == 0.75
    calls.clear()
    texts = lambda ids: [CORPUS[name] for name in ids]  # noqa: E731
    perfect = Pipeline({"dense": search}, texts=texts, reranker=right, shortlist=20)
    remembered = RememberedScores(right)
    better = evaluate_pipeline(perfect, task, timed_queries=2, costs=Costs(rerank=15),
                               bytes_per_document=100, reranker=remembered)  # fmt: skip
    assert len(remembered) == 5
    assert len(calls) == 1 + 2 * 2  # all pairs, then each timed query twice
    assert better.shares["missed"][0] == missed and abs(better.shares["order"][0]) < 1e-9
    assert abs(better.gain.difference - order) < 1e-9
    assert better.milliseconds[0] > 15 * 20
    assert better.to_json()["gain"]["difference"] == better.gain.difference


def test_table_and_plot_have_every_pipeline(task, tmp_path):
    pytest.importorskip("matplotlib")
    pipelines = {
        "one": Pipeline({"a": fixed(["d00"], ["d02"])}, shortlist=5),
        "both": Pipeline({"a": fixed(["d00"], []), "b": fixed(["d01"], ["d02"])}, shortlist=5),
    }
    outcomes = {
        name: evaluate_pipeline(each, task, timed_queries=1) for name, each in pipelines.items()
    }
    assert outcomes["both"].outcome.metrics["ndcg@10"] == 1.0
    assert outcomes["both"].shares.keys() == {
        "missed", "order", "recall a", "recall b", "recall fused"}  # fmt: skip
    header, rows = pipelines_table(outcomes)
    assert [row[0] for row in rows] == ["one", "both"] and len(header) == len(rows[0])
    plot_pipelines({"tiny": outcomes}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
