import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.pairs import evaluate_pairs, pair_metrics, pair_similarities, threshold_metrics


@pytest.fixture(scope="module")
def pairs():
    """Pairs with one or two words in common, more often if the label is 1; some pairs come again, some are one text."""
    rng = np.random.default_rng(0)
    left, right, labels = [], [], []
    for n in range(120):
        label = int(rng.random() < 0.4)
        topics = rng.integers(8, size=2)
        common = rng.random() < (0.8 if label else 0.3)
        left.append(f"topic{topics[0]} word{n}")
        right.append(left[-1] if n % 40 == 0 else f"topic{topics[0 if common else 1]} word{n + 1000 * (n % 3)}")
        labels.append(label)
    return left + left[:9], right + right[:9], labels + [1 - label for label in labels[:9]]


def test_equals_mteb(pairs, encode, mteb_scores):
    from datasets import Dataset

    left, right, labels = pairs
    data = {"test": Dataset.from_dict({"sentence1": left, "sentence2": right, "labels": labels})}
    theirs = mteb_scores("AbsTaskPairClassification", "PairClassification", "max_ap", data)
    ours = evaluate_pairs(encode, left, right, labels)
    compared = {name: value for name, value in ours.items() if not name.endswith("threshold")}
    assert len(compared) == 25
    for name, value in compared.items():
        assert value == pytest.approx(theirs[name], abs=1e-4), name
    assert len({ours[f"{name}_ap"] for name in ("cosine", "dot", "euclidean", "manhattan")}) == 4


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, labels = rng.integers(0, 9, size=30), rng.integers(0, 2, size=30)
        assert threshold_metrics(values, labels)["ap"] == pytest.approx(metrics.average_precision_score(labels, values))


def test_thresholds_by_hand():
    found = threshold_metrics([0.9, 0.8, 0.6, 0.5, 0.1], [1, 0, 1, 0, 0])
    assert found["accuracy"] == 4 / 5 and found["accuracy_threshold"] == pytest.approx(0.85)
    assert found["f1"] == pytest.approx(4 / 5) and found["f1_threshold"] == pytest.approx(0.55)
    assert (found["precision"], found["recall"]) == pytest.approx((2 / 3, 1))
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)


def test_equal_similarities_fall_on_one_side():
    found = threshold_metrics([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0])
    assert (found["accuracy"], found["f1"], found["ap"]) == pytest.approx((1 / 2, 1 / 2, 1 / 3))
    constant = threshold_metrics([0.5, 0.5], [1, 0])
    assert (constant["accuracy"], constant["f1"], constant["ap"]) == (0, 0, 0.5)
    assert np.isnan(constant["accuracy_threshold"])


def test_similarities_by_hand():
    found = pair_similarities(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.0], [0.0, -2.0]]))
    expected = {"cosine": [1, 0], "dot": [25, 0], "euclidean": [0, -np.sqrt(5)], "manhattan": [0, -3]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12)


def test_each_distinct_text_is_encoded_once(pairs, recorded):
    left, right, labels = pairs
    evaluate_pairs(recorded, left, right, labels)
    assert sorted(recorded.seen) == sorted({*left, *right})


@pytest.mark.parametrize(
    "columns, message",
    [
        ((["a"], ["b", "c"], [0, 1]), "found 1 and 2 texts"),
        ((["a", "b"], ["c", "d"], [0, 1, 1]), "each of 2 pairs, found 3"),
        ((["a", "b"], ["c", "d"], [1, 1]), r"some of each, found \[1\]"),
        ((["a", "b"], ["c", "d"], [1, 2]), r"found \[1, 2\]"),
        ((["a", "b"], ["c", "d"], ["yes", "no"]), r"found \['no', 'yes'\]"),
        (([], [], []), r"found \[\]"),
    ],
)
def test_bad_input_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_pairs(pytest.fail, *columns)
    assert "\n" not in str(error.value)


def test_bad_embeddings_are_refused():
    columns = ["a", "b"], ["c", "d"], [0, 1]
    with pytest.raises(InputError, match="4 texts: 'a'"):
        evaluate_pairs(lambda texts: np.full((len(texts), 2), np.nan), *columns)
    with pytest.raises(InputError, match=r"expected \[4, D\].*found \[3, 2\]"):
        evaluate_pairs(lambda texts: np.ones((3, 2)), *columns)
    with pytest.raises(InputError, match="one shape"):
        pair_metrics(np.ones((2, 3)), np.ones((2, 4)), [0, 1])
    with pytest.raises(InputError, match="found 1 others"):
        threshold_metrics([np.inf, 0.0], [0, 1])
