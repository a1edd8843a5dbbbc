import math

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.reranking import open_task, reranking_outcome


@pytest.fixture(scope="module")
def records():
    """Makes records of at most 30 candidates, some of them twice.

    Positives share a word with the query more often.
    """
    rng = np.random.default_rng(0)

    def candidate(topic, share):
        word = f"topic{topic}" if rng.random() < share else f"topic{rng.integers(9)}"
        return f"{word} w{rng.integers(60)} w{rng.integers(60)}"

    made = []
    for n in range(40):
        topic = rng.integers(9)
        query = f"topic{topic} w{rng.integers(60)}"
        positives = [candidate(topic, 0.7) for _ in range(rng.integers(1, 8))]
        negatives = [candidate(topic, 0.1) for _ in range(rng.integers(1, 22))]
        if n % 8 == 0:
            negatives.append(positives[0])
        made.append({"query": query, "positive": positives, "negative": negatives})
    return made


@pytest.fixture
def scores(write, recorded):
    """Returns the outcome of a file with these records."""
    return lambda records, **options: open_task(write(records), **options).evaluate(recorded)


def test_equals_mteb(records, scores, mteb_scores):
    from datasets import Dataset

    queries, corpus, qrels, candidates = [], [], {}, {}
    for n, record in enumerate(records):
        queries.append({"id": f"q{n}", "text": record["query"]})
        names = [f"apositive_q{n}_{i:05}" for i in range(len(record["positive"]))]
        names += [f"negative_q{n}_{i:05}" for i in range(len(record["negative"]))]
        texts = zip(names, record["positive"] + record["negative"], strict=True)
        corpus += [{"id": name, "title": "", "text": text} for name, text in texts]
        qrels[f"q{n}"] = {name: int(name.startswith("a")) for name in names}
        candidates[f"q{n}"] = names
    data = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
    data |= {"relevant_docs": qrels, "top_ranked": candidates}
    reference = mteb_scores(
        "AbsTaskRetrieval", "Reranking", "map_at_1000", {"default": {"test": data}}
    )
    ours = scores(records).metrics
    assert 0.2 < ours["map"] < 0.9
    for name, their_name in (
        ("map", "map_at_1000"),
        ("mrr@10", "mrr_at_10"),
        ("ndcg@10", "ndcg_at_10"),
    ):
        assert ours[name] == pytest.approx(reference[their_name], abs=1e-4), name
    assert ours["map"] == pytest.approx(reference["main_score"], abs=1e-4)


def test_by_hand():
    result = reranking_outcome(
        [np.array([0.9, 0.2]), np.array([0.5])], [np.array([0.5]), np.array([0.7, 0.1])]
    )
    assert result.items.values == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
    assert result.score == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2) == result.items.score()
    assert result.metrics["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert result.metrics["ndcg@10"] == pytest.approx((first + 1 / math.log2(3)) / 2)


def test_what_stands_beyond_the_tenth_place_counts_for_map_alone():
    result = reranking_outcome([np.array([0.0])], [np.ones(14)])
    assert result.metrics == pytest.approx({"map": 1 / 15, "mrr@10": 0, "ndcg@10": 0})


def test_equal_scores_are_the_negatives_first(scores):
    assert reranking_outcome([np.ones(1)], [np.ones(3)]).score == 1 / 4
    texts = [f"w{n} w{n + 1}" for n in range(30)]
    rows = [{"query": "w1 w7", "positive": [text], "negative": [text]} for text in texts]
    assert set(scores(rows).items.values) == {1 / 2}


def test_of_several_queries_the_nearest_counts(scores):
    def score(query, negative):
        return scores([{"query": query, "positive": ["north wind"], "negative": [negative]}]).score

    assert score("east", "east") == 1 / 2
    assert score(["up", "north wind"], "east up") == 1
    assert score("north", "east") == score(["north"], "east")


def test_the_similarity_is_the_models_own(scores, recorded, encode):
    """A long candidate is nearest by dot product, a short one by distance."""
    rows = [{"query": "a", "positive": ["a a a a b"], "negative": ["a b"]}]
    dot, far = ([float(encode(["a"])[0] @ v), float(np.linalg.norm(encode(["a"])[0] - v))] for v in
                encode(["a a a a b", "a b"]))  # fmt: skip
    assert dot[0] > far[0] and dot[1] > far[1]
    result = {
        name: scores(rows, similarity=name).score for name in ("dot", "euclidean", "manhattan")
    }
    assert result == {"dot": 1, "euclidean": 1 / 2, "manhattan": 1 / 2}
    for name, score in result.items():
        recorded.similarity = name
        assert scores(rows).score == score
    with pytest.raises(InputError, match="unknown similarity 'cos'"):
        scores(rows, similarity="cos")


def test_each_distinct_text_is_encoded_once_for_its_side(records, write, recorded):
    task = open_task(write(records), name="Made")
    task.evaluate(recorded)
    candidates = {text for record in records for text in record["positive"] + record["negative"]}
    assert sorted(recorded.seen) == sorted([*{record["query"] for record in records}, *candidates])
    assert recorded.uses == {("Made", "Reranking", side, "") for side in ("query", "document")}
    assert task.item_texts == [(record["query"],) for record in records]


def test_records_without_positives_or_negatives_are_left_out(scores):
    whole = {"query": "a", "positive": ["a b"], "negative": ["c"]}
    result = scores([whole, whole | {"positive": []}, whole | {"negative": []}])
    assert result.notes == ("2 of 3 records left out: no positive or no negative",)
    assert result.metrics == scores([whole]).metrics and len(result.items) == 1
    with pytest.raises(
        InputError, match=r"test\.jsonl: expected a record with positives and negatives.*among 1"
    ):
        scores([whole | {"positive": []}])


def test_bad_scores_are_refused():
    scores = np.ones(1)
    with pytest.raises(InputError, match="finite.*number 1"):
        reranking_outcome([scores, scores], [scores, scores * np.nan])
    with pytest.raises(InputError, match=r"found \(1, 0\) for query number 1"):
        reranking_outcome([scores, scores], [scores, scores[:0]])
    with pytest.raises(InputError, match="found 1 and 2"):
        reranking_outcome([scores], [scores, scores])
