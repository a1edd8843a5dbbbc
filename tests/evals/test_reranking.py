import math

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.reranking import evaluate_reranking, reranking_metrics


@pytest.fixture(scope="module")
def records():
    """Up to 30 candidates each, some of them twice; positives have a word of the query more often."""
    rng = np.random.default_rng(0)

    def candidate(topic, share):
        word = f"topic{topic}" if rng.random() < share else f"topic{rng.integers(9)}"
        return f"{word} w{rng.integers(60)} w{rng.integers(60)}"

    queries, positives, negatives = [], [], []
    for n in range(40):
        topic = rng.integers(9)
        queries.append(f"topic{topic} w{rng.integers(60)}")
        positives.append([candidate(topic, 0.7) for _ in range(rng.integers(1, 8))])
        negatives.append([candidate(topic, 0.1) for _ in range(rng.integers(1, 22))])
        if n % 8 == 0:
            negatives[-1].append(positives[-1][0])
    return queries, positives, negatives


def test_equals_mteb(records, encode, mteb_scores):
    from datasets import Dataset

    queries, corpus, qrels, candidates = [], [], {}, {}
    for n, (query, positives, negatives) in enumerate(zip(*records, strict=True)):
        queries.append({"id": f"q{n}", "text": query})
        names = [f"apositive_q{n}_{i:05}" for i in range(len(positives))]
        names += [f"negative_q{n}_{i:05}" for i in range(len(negatives))]
        corpus += [
            {"id": name, "title": "", "text": text} for name, text in zip(names, positives + negatives, strict=True)
        ]
        qrels[f"q{n}"] = {name: int(name.startswith("a")) for name in names}
        candidates[f"q{n}"] = names
    data = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
    data |= {"relevant_docs": qrels, "top_ranked": candidates}
    theirs = mteb_scores("AbsTaskRetrieval", "Reranking", "map_at_1000", {"default": {"test": data}})
    ours = evaluate_reranking(encode, *records)
    assert 0.2 < ours["map"] < 0.9
    for name, their_name in (("map", "map_at_1000"), ("mrr@10", "mrr_at_10"), ("ndcg@10", "ndcg_at_10")):
        assert ours[name] == pytest.approx(theirs[their_name], abs=1e-4), name
    assert ours["map"] == pytest.approx(theirs["main_score"], abs=1e-4)


def test_by_hand():
    found = reranking_metrics([np.array([0.9, 0.2]), np.array([0.5])], [np.array([0.5]), np.array([0.7, 0.1])])
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert found["ndcg@10"] == pytest.approx((first + 1 / math.log2(3)) / 2)


def test_what_stands_beyond_the_tenth_place_counts_for_map_alone():
    found = reranking_metrics([np.array([0.0])], [np.ones(14)])
    assert found == pytest.approx({"map": 1 / 15, "mrr@10": 0, "ndcg@10": 0})


def test_equal_scores_are_the_negatives_first():
    assert reranking_metrics([np.ones(1)], [np.ones(3)])["map"] == 1 / 4


def test_of_several_queries_the_nearest_counts(encode):
    positives, negatives = [["north wind"]], [["east"]]
    assert evaluate_reranking(encode, ["east"], positives, negatives)["map"] == 1 / 2
    assert evaluate_reranking(encode, [["up", "north wind"]], positives, [["east up"]])["map"] == 1
    one = evaluate_reranking(encode, ["north"], positives, negatives)
    assert evaluate_reranking(encode, [["north"]], positives, negatives) == one


def test_each_distinct_text_is_encoded_once(records, recorded):
    evaluate_reranking(recorded, *records)
    queries, positives, negatives = records
    assert sorted(recorded.seen) == sorted({*queries, *sum(positives + negatives, [])})


def test_records_without_positives_or_negatives_are_left_out(encode):
    positives, negatives = [["a b"], [], ["c"]], [["c"], ["a"], []]
    with pytest.warns(UserWarning, match="2 of 3 records left out"):
        found = evaluate_reranking(encode, ["a", "a", "a"], positives, negatives)
    assert found == evaluate_reranking(encode, ["a"], positives[:1], negatives[:1])


@pytest.mark.parametrize(
    "columns, message",
    [
        ((["a"], [["b"]], []), r"lengths \[1, 1, 0\]"),
        (([], [], []), "none among 0"),
        ((["a", "b"], [["b"], []], [[], ["c"]]), "none among 2"),
        ((["a", []], [["b"], ["b"]], [["c"], ["c"]]), "found none in number 1"),
    ],
)
def test_bad_input_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_reranking(pytest.fail, *columns)
    assert "\n" not in str(error.value)


def test_bad_scores_are_refused():
    one = np.ones(1)
    with pytest.raises(InputError, match="finite.*number 1"):
        reranking_metrics([one, one], [one, one * np.nan])
    with pytest.raises(InputError, match=r"found \(1, 0\) for query number 1"):
        reranking_metrics([one, one], [one, one[:0]])
    with pytest.raises(InputError, match="found 1 and 2"):
        reranking_metrics([one], [one, one])
