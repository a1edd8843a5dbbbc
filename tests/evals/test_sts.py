import types

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.metrics import pearson, spearman
from embed_jax.evals.sts import cosine_of_pairs, sts_evaluator, sts_metrics


def encode(texts):
    """Different texts get different fixed vectors; the empty text gets none."""
    rows = [
        np.random.default_rng(list(text.encode())).normal(size=8) * bool(text) for text in texts
    ]
    return np.array(rows, np.float32)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    words = [f"text {n}" for n in range(40)] + [""]
    left, right = rng.choice(words, size=(2, 120)).tolist()
    return (
        left,
        right,
        rng.integers(0, 6, size=120).tolist(),
        rng.choice(["a", "b", "c"], size=120).tolist(),
    )


def test_equals_sentence_transformers(pairs):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    left, right, scores, _ = pairs
    evaluator = evaluation.EmbeddingSimilarityEvaluator(
        left, right, scores, main_similarity="cosine"
    )
    model = types.SimpleNamespace(
        encode=lambda texts, **_: encode(texts),
        similarity_fn_name="cosine",
        model_card_data=types.SimpleNamespace(set_evaluation_metrics=lambda *_: None),
    )
    reference = evaluator(model)
    ours = sts_evaluator(left, right, scores)(encode)
    assert ours["spearman"] == pytest.approx(reference["spearman_cosine"], abs=1e-6)
    assert ours["pearson"] == pytest.approx(reference["pearson_cosine"], abs=1e-6)


def test_aggregations_over_subsets(pairs):
    left, right, scores, subsets = pairs
    similarities, scores, labels = (
        cosine_of_pairs(encode, left, right),
        np.array(scores),
        np.array(subsets),
    )
    result = sts_metrics(similarities, scores, subsets)
    parts = {name: labels == name for name in "abc"}
    for name, correlate in (("spearman", spearman), ("pearson", pearson)):
        by_subset = [correlate(similarities[part], scores[part]) for part in parts.values()]
        weights = [part.mean() for part in parts.values()]
        assert result[name] == correlate(similarities, scores)
        assert result[f"{name}_mean"] == pytest.approx(sum(by_subset) / 3)
        assert result[f"{name}_wmean"] == pytest.approx(np.dot(by_subset, weights))


def test_one_subset_has_no_aggregations(pairs):
    left, right, scores, _ = pairs
    assert sts_evaluator(left, right, scores, ["x"] * len(scores))(encode).keys() == {
        "spearman",
        "pearson",
    }


def test_each_distinct_text_is_encoded_once(pairs):
    left, right, scores, _ = pairs
    seen = []
    sts_evaluator(left, right, scores)(lambda texts: seen.extend(texts) or encode(texts))
    assert sorted(seen) == sorted({*left, *right})


def test_uneven_columns_are_refused():
    with pytest.raises(InputError, match=r"lengths \[1, 2\]"):
        sts_evaluator(["a", "b"], ["a"], [1.0, 2.0])
    with pytest.raises(InputError, match="2 or more"):
        sts_evaluator(["a"], ["a"], [1.0])
