import warnings

import numpy as np
import pytest

from embed_jax.data.pairs import join_title
from embed_jax.errors import EmbedJaxWarning, InputError
from embed_jax.evals.comparison import compare
from embed_jax.evals.search import (
    evaluate_retrieval,
    evaluate_search,
    retrieval_evaluator,
    score_run,
    small_corpus,
)
from embed_jax.retrieval.topk import dense_search

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
        result = evaluate_retrieval(
            encode, encode, corpus, {"q": "north"}, {"q": {judged: 1}}, ks=(3, 4)
        )
        assert result.metrics["mrr@4"] == 1 / rank
        assert result.metrics["recall@3"] == (rank < 4)  # also where the list is cut


def test_judgements_that_fit_nothing_are_refused():
    search = pytest.fail
    with pytest.raises(InputError, match="query 'q9' is not among the 1 queries"):
        evaluate_search(search, CORPUS, {"q": "north"}, {"q9": {"d1": 1}})
    with pytest.raises(InputError, match="none of the judged documents is among the 4 documents"):
        evaluate_search(search, CORPUS, {"q": "north"}, {"q": {"d9": 1}})
    with pytest.raises(InputError, match="no judgement"):
        retrieval_evaluator(CORPUS, {"q": "north"}, {})


# ---- judgements as benchmarks hand them out ------------------------------------------------------

# Documents that are not in the corpus, grades below 0, queries without a relevant document.
ODD_QRELS = {
    "q1": {"d1": 2, "d2": -1, "d3": -2, "gone": 1, "d4": 0},
    "q2": {"d1": -1},
    "q3": {"gone": 1},
    "q4": {"d1": 1, "d2": -2, "d4": 2},
}


def odd_result():
    queries = {"q1": "east", "q2": "north", "q3": "south", "q4": "south east"}
    return queries, evaluate_retrieval(encode, encode, CORPUS, queries, ODD_QRELS, ks=(2, 4))


def test_odd_judgements_score_as_computed_by_hand():
    """q4 scores d2 and d4 equally; the larger id comes first.

    The order is d4, d2, d3 (0), d1 (-0.7).
    """
    _, result = odd_result()
    log2 = np.log2
    q1 = 2 / log2(5) / (2 + 1 / log2(3))
    q4 = (2 + 1 / log2(5)) / (2 + 1 / log2(3))
    np.testing.assert_allclose(result.per_query["ndcg@4"], [q1, 0, 0, q4])
    np.testing.assert_allclose(result.per_query["recall@4"], [0.5, 0, 0, 1])
    np.testing.assert_allclose(result.per_query["mrr@4"], [0.25, 0, 0, 1])
    np.testing.assert_allclose(result.per_query["map@4"], [0.125, 0, 0, (1 + 0.5) / 2])


def test_odd_judgements_score_as_in_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    queries, result = odd_result()
    run = dense_search(encode, encode, CORPUS, queries, 4)
    measures = {"ndcg_cut.2,4", "map_cut.2,4", "recall.2,4", "recip_rank"}
    reference = pytrec_eval.RelevanceEvaluator(ODD_QRELS, measures).evaluate(run)
    names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall"}
    for k in (2, 4):
        for ours, name in names.items():
            expected = [reference[query][f"{name}_{k}"] for query in result.query_ids]
            np.testing.assert_allclose(result.per_query[f"{ours}@{k}"], expected, atol=1e-6)
    expected = [reference[query]["recip_rank"] for query in result.query_ids]
    np.testing.assert_allclose(result.per_query["mrr@4"], expected, atol=1e-6)


# ---- queries that are documents ------------------------------------------------------------------

ARGUMENTS = {"d1": join_title("Title", "north"), "d2": "east", "d3": "north east", "d4": "south"}


def test_a_warning_counts_queries_that_find_themselves():
    queries, qrels = {"d1": "north ", "d2": "south", "q": "east"}, {"d1": {"d3": 1}, "q": {"d2": 1}}
    line = "1 of 2 queries are documents of the corpus, .* --ignore-identical-ids"
    with pytest.warns(EmbedJaxWarning, match=line):
        evaluator = retrieval_evaluator(ARGUMENTS, queries, qrels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retrieval_evaluator(ARGUMENTS, queries, qrels, ignore_identical_ids=True)
        for other in ({"d1": {"d3": 1, "d1": 1}}, {"d2": {"d3": 1}}):  # judged so; by chance
            retrieval_evaluator(ARGUMENTS, queries, other)
    assert callable(evaluator)


def test_every_search_leaves_the_query_out():
    """Training, the comparison at the end, suites and mteb's own evaluator all do so."""
    queries, qrels = {"d1": "north", "d4": "south"}, {"d1": {"d3": 1}, "d4": {"d2": 1}}
    options = {"ks": (1, 10), "ignore_identical_ids": True}
    result = evaluate_retrieval(encode, encode, CORPUS, queries, qrels, **options)
    expected = result.metrics["ndcg@10"]
    evaluator = retrieval_evaluator(CORPUS, queries, qrels, ks=(10,), ignore_identical_ids=True)
    assert evaluator(encode)["ndcg@10"] == expected
    task = CORPUS, queries, qrels
    comparison = compare((encode, encode), (encode, encode), task, ignore_identical_ids=True)
    assert comparison.results["after"].metrics["ndcg@10"] == expected
    for runs in comparison.runs.values():
        assert all(query not in scores for query, scores in runs.items())
    mteb = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    run = dense_search(encode, encode, CORPUS, queries, 10)
    run = {query: {d: s for d, s in scores.items() if d != query} for query, scores in run.items()}
    scores = mteb.calculate_retrieval_scores(run, qrels, [10]).ndcg
    assert scores["NDCG@10"] == pytest.approx(expected, abs=1e-5)


def test_a_search_among_few_documents_says_that_it_shows_nothing():
    line = "only 26 documents: in random order 38 % of the relevant ones are among the first 10; "
    assert small_corpus(26).startswith(line) and "can't show" in small_corpus(26)
    assert "100 %" in small_corpus(4) and small_corpus(99) and small_corpus(100) is None
    task = CORPUS, {"q": "north"}, {"q": {"d1": 1}}
    assert "only 4 documents" in compare((encode, encode), (encode, encode), task).table()
