import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.retrieval import (
    evaluate_retrieval,
    evaluate_search,
    retrieval_evaluator,
    score_run,
)

CORPUS = {"d1": "north", "d2": "east", "d3": "north east", "d4": "south"}
DIRECTIONS = {"north": (0, 1), "east": (1, 0), "south": (0, -1)}


def encode(texts, prompt=""):
    return np.array(
        [np.sum([DIRECTIONS[word] for word in (prompt + text).split()], axis=0) for text in texts],
        float,
    )


def test_finds_what_is_nearest():
    queries = {"q1": "north", "q2": "east", "unjudged": "south"}
    qrels = {"q2": {"d2": 2, "d3": 1, "d4": 0}, "q1": {"d4": 1}}
    result = evaluate_retrieval(encode, encode, CORPUS, queries, qrels, ks=(1, 4))
    assert result.query_ids == ["q2", "q1"]
    np.testing.assert_allclose(result.per_query["ndcg@4"], [1.0, 1 / np.log2(5)])
    np.testing.assert_allclose(result.per_query["recall@1"], [0.5, 0.0])
    assert result.metrics["mrr@4"] == (1 + 1 / 4) / 2
    low, high = result.intervals()["mrr@4"]
    assert low <= result.metrics["mrr@4"] <= high


def test_identical_ids_are_left_out_only_when_asked():
    queries, qrels = {"d1": "north"}, {"d1": {"d3": 1}}
    with_itself = evaluate_retrieval(encode, encode, CORPUS, queries, qrels, ks=(1, 2))
    without = evaluate_retrieval(
        encode, encode, CORPUS, queries, qrels, ks=(1, 2), ignore_identical_ids=True
    )
    assert (with_itself.metrics["mrr@1"], with_itself.metrics["mrr@2"]) == (0.0, 0.5)
    assert (without.metrics["mrr@1"], without.metrics["mrr@2"]) == (1.0, 1.0)


def test_prompts_reach_the_encoder():
    qrels = {"q": {"d3": 1}}
    evaluate = retrieval_evaluator(CORPUS, {"q": "north"}, qrels, ks=(1,), query_prompt="east ")
    assert evaluate(encode)["mrr@1"] == 1.0
    assert retrieval_evaluator(CORPUS, {"q": "north"}, qrels, ks=(1,))(encode)["mrr@1"] == 0.0


def test_a_missing_query_scores_zero_and_ties_keep_their_order():
    qrels = {"q1": {"b": 1}, "q2": {"b": 1}}
    assert score_run({"q1": {"a": 1.0, "b": 1.0}}, qrels, ks=(2,)).metrics["mrr@2"] == 0.25


def test_of_equal_scores_the_larger_id_comes_first_as_in_trec_eval():
    corpus = {"d1": "east", "d10": "east", "d2": "east", "d3": "north"}
    for judged, rank in (("d3", 1), ("d2", 2), ("d10", 3), ("d1", 4)):
        found = evaluate_retrieval(
            encode, encode, corpus, {"q": "north"}, {"q": {judged: 1}}, ks=(3, 4)
        )
        assert found.metrics["mrr@4"] == 1 / rank
        assert found.metrics["recall@3"] == (rank < 4)  # also where the list is cut


def test_unknown_ids_are_refused():
    search = pytest.fail
    with pytest.raises(InputError, match="query 'q9' is not among the 1 queries"):
        evaluate_search(search, CORPUS, {"q": "north"}, {"q9": {"d1": 1}})
    with pytest.raises(InputError, match="document 'd9'.*not in the corpus"):
        evaluate_search(search, CORPUS, {"q": "north"}, {"q": {"d9": 1}})
    with pytest.raises(InputError, match="no judgement"):
        retrieval_evaluator(CORPUS, {"q": "north"}, {})
