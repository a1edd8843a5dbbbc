"""A shortlist is compared in one way: while training, after it, and by scripts.evaluate."""

import json

import numpy as np
import pytest

from embed_jax.evals.results import read_result
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.evals.suite import Entry
from embed_jax.evals.two_stages import METRICS, compare_stages, make_shortlist
from embed_jax.retrieval.rerank import rerank

CORPUS = {f"d{number}": "x " * number for number in range(1, 21)}
QUERIES = {"q1": "a", "q2": "b", "q3": "c"}
QRELS = {"q1": {"d3": 1}, "q2": {"d9": 2, "d2": 1}, "q3": {"d20": 1}}


def longest_first(corpus, queries, k):
    """A first stage for which long documents are good."""
    ranking = sorted(corpus, key=lambda name: -len(corpus[name]))[:k]
    return {query: {name: float(len(corpus[name])) for name in ranking} for query in queries}


def shortest_first(queries, passages):
    return -np.array([len(passage) for passage in passages], np.float64)


@pytest.fixture
def task():
    return make_retrieval_task((CORPUS, QUERIES, QRELS))


def test_the_first_results_are_reranked_and_the_others_follow(task):
    shortlist = make_shortlist(task, longest_first, "long", depth=12)
    outcome = shortlist.rerank(shortest_first)
    # d20 ... d9 become d9 ... d20; d8 ... d1 follow: d9 is first, d3 is at 18, d20 at 12.
    assert outcome.metrics["mrr@100"] == pytest.approx((1 / 18 + 1 + 1 / 12) / 3)
    metrics = shortlist.evaluator()(shortest_first)
    assert tuple(metrics) == METRICS == shortlist.evaluator().metrics
    assert metrics == {name: outcome.metrics[name] for name in METRICS}


def test_positives_can_be_put_into_the_shortlist(task):
    shortlist = make_shortlist(task, longest_first, "long", depth=3, with_positives=True)
    assert {query: list(run) for query, run in shortlist.run.items()} == {
        "q1": ["d20", "d19", "d3"],
        "q2": ["d20", "d9", "d2"],
        "q3": ["d20", "d19", "d18"],
    }
    assert shortlist.rerank(shortest_first).metrics["mrr@10"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert shortlist.first_stage == "long with positives"


def test_scores_that_tell_nothing_apart_are_said_and_ties_go_by_id(task):
    shortlist = make_shortlist(task, longest_first, "long", depth=4)
    with pytest.warns(UserWarning) as caught:
        equal = shortlist.rerank(lambda queries, passages: np.full(len(passages), 0.5, np.float16))
    assert [str(warning.message) for warning in caught] == [
        "rerank: the scores of all documents are equal for each of 3 queries, so that this "
        "reranker cannot order them"
    ]
    # d20 is the largest of the ids d17 to d20, and of the whole shortlist.
    assert equal.metrics["mrr@10"] == task.score(shortlist.run).metrics["mrr@10"]

    def rounded(queries, passages):  # one is apart, the others round to the same number
        exact = [1.0 + 1e-5 * len(text) - ("x " * 19 == text) for text in passages]
        return np.array(exact, np.float16)

    ranking = rerank(rounded, shortlist.run, CORPUS, QUERIES, depth=4)
    assert [list(results) for results in ranking.values()] == 3 * [["d20", "d18", "d17", "d19"]]


def test_the_file_is_the_result_of_both_stages(task, tmp_path):
    shortlist = make_shortlist(task, longest_first, "long", depth=20)
    stages = compare_stages(
        Entry("retrieval", "data", name="n"), shortlist, shortest_first, "short"
    )
    stages.write(tmp_path / "reranking.json")
    result = read_result(tmp_path / "reranking.json")
    assert (result.model, result.name, result.unit) == ("long + short", "n", "queries")
    assert result.outcome.metrics == pytest.approx(dict(shortlist.rerank(shortest_first).metrics))
    content = json.loads((tmp_path / "reranking.json").read_text())
    assert content["first_stage"]["model"] == "long" and content["depth"] == 20
    first = task.score(shortlist.run)
    assert content["first_stage"]["metrics"] == pytest.approx(dict(first.metrics))
    difference = content["differences"]["n"]
    assert difference["metric"] == "ndcg@10"
    assert difference["difference"] == pytest.approx(result.outcome.score - first.score)
    assert difference["verdict"] in stages.summary() and "ms a query" in stages.summary()
