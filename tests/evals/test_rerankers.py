"""Rerankers compared over shortlists."""

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.rerankers import compare_rerankers, ms_per_query, sample_queries
from embed_jax.evals.retrieval import score_run

CORPUS = {f"d{n}": text for n, text in enumerate(["a b", "a c", "b c", "c d", "e"])}
QUERIES = {"q0": "a b", "q1": "c d", "q2": "e"}
QRELS = {"q0": {"d0": 1, "d2": 1}, "q1": {"d3": 2, "gone": 1}, "q2": {"d4": 1}}
TASK = (CORPUS, QUERIES, QRELS)
RUNS = {
    "good": {"q0": {"d0": 3.0, "d1": 2.0}, "q1": {"d3": 2.0, "d2": 1.0}},
    "bad": {"q0": {"d1": 3.0, "d3": 2.5, "d0": 2.0}},
}


def logits(queries, passages):
    """Scores a pair by its shared words: 2 each, minus 3."""
    pairs = zip(queries, passages, strict=True)
    return np.array([2.0 * len({*a.split()} & {*b.split()}) - 3 for a, b in pairs])


def test_rerankers_are_compared_on_the_union_of_queries():
    """A query that only one first stage answers scores 0 for the other."""
    content = compare_rerankers(TASK, RUNS, {"words": logits}, {"words"})
    assert (content["queries"], content["depth"]) == (2, 3)
    judged = {query: QRELS[query] for query in ("q0", "q1")}
    for name, run in RUNS.items():
        figures = content["first_stages"][name]
        expected = score_run(run, judged, ks=(10,)).metrics
        assert figures["none"]["ndcg@10"][0] == pytest.approx(expected["ndcg@10"])
        gain = figures["words"]["ndcg@10"][0] - figures["none"]["ndcg@10"][0]
        assert figures["words"]["gain"]["ndcg@10"] == pytest.approx(gain)
    assert content["first_stages"]["bad"]["words"]["gain"]["ndcg@10"] > 0
    # good: logits 1, -1, 1, -1 for labels 1, 0, 1, 0.
    error = content["first_stages"]["good"]["words"]["calibration_error"]
    assert error == pytest.approx(1 / (1 + np.e))
    assert (
        "calibration_error"
        not in compare_rerankers(TASK, RUNS, {"words": logits})["first_stages"]["good"]["words"]
    )


@pytest.mark.parametrize("run", [{"other": {"d0": 1.0}}, {"q0": {"other": 1.0}}, {}])
def test_a_run_of_another_task_is_refused(run):
    with pytest.raises(InputError, match="expected runs of this task, found"):
        compare_rerankers(TASK, {"run": run}, {})


def test_larger_samples_contain_smaller_ones():
    queries = {f"q{n}": "text" for n in range(20)}
    task = CORPUS, queries, {name: {"d0": 1} for name in queries}
    samples = [sample_queries(task, number, seed=1)[2] for number in (5, 12, 99)]
    assert [*map(len, samples)] == [5, 12, 20]
    assert samples[0].keys() < samples[1].keys() < samples[2].keys()
    assert list(samples[2]) == list(queries)
    assert sample_queries(task, 5, seed=2)[2] != samples[0]


def test_time_counts_the_first_queries_only():
    calls = []

    def score(queries, passages):
        calls.append(set(queries))
        return np.zeros(len(queries))

    assert ms_per_query(score, TASK, RUNS["good"], 1) >= 0
    assert calls == [{"a b"}] * 2  # once before, to compile
