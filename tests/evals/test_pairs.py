import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.metrics import bootstrap_interval
from embed_jax.evals.pairs import open_task, pair_outcome, similarities_of_pairs, threshold_metrics


@pytest.fixture(scope="module")
def pairs():
    """Makes pairs with one or two common words, more often if the label is 1.

    Some pairs are repeated, some consist of one text twice.
    """
    rng = np.random.default_rng(0)
    left, right, labels = [], [], []
    for n in range(120):
        label = int(rng.random() < 0.4)
        topics = rng.integers(8, size=2)
        common = rng.random() < (0.8 if label else 0.3)
        left.append(f"topic{topics[0]} word{n}")
        right.append(
            left[-1]
            if n % 40 == 0
            else f"topic{topics[0 if common else 1]} word{n + 1000 * (n % 3)}"
        )
        labels.append(label)
    return left + left[:9], right + right[:9], labels + [1 - label for label in labels[:9]]


@pytest.fixture
def task(pairs, write):
    names = "sentence1", "sentence2", "label"
    return open_task(
        write(dict(zip(names, row, strict=True)) for row in zip(*pairs, strict=True)), name="Made"
    )


def test_equals_mteb(pairs, task, recorded, mteb_scores):
    from datasets import Dataset

    left, right, labels = pairs
    data = {"test": Dataset.from_dict({"sentence1": left, "sentence2": right, "labels": labels})}
    reference = mteb_scores("AbsTaskPairClassification", "PairClassification", "max_ap", data)
    ours = task.evaluate(recorded)
    compared = {
        name: value for name, value in ours.metrics.items() if not name.endswith("threshold")
    }
    assert len(compared) == 25 and ours.intervals.keys() == compared.keys()
    for name, value in compared.items():
        assert value == pytest.approx(reference[name], abs=1e-4), name
    assert (
        len({ours.metrics[f"{name}_ap"] for name in ("cosine", "dot", "euclidean", "manhattan")})
        == 4
    )


def test_each_distinct_text_is_encoded_once_for_this_task(pairs, task, recorded):
    left, right, _ = pairs
    task.evaluate(recorded)
    assert sorted(recorded.seen) == sorted({*left, *right})
    assert recorded.uses == {("Made", "PairClassification", "", "")}
    assert (task.unit, task.item_texts[3]) == ("pairs", (left[3], right[3]))


def test_items_give_the_main_score_and_its_interval(task, recorded):
    outcome = task.evaluate(recorded)
    assert len(outcome.items) == len(task.item_texts)
    assert outcome.items.score() == pytest.approx(outcome.score, abs=1e-12)
    assert outcome.items.interval() == pytest.approx(outcome.intervals["max_ap"], abs=1e-12)


def test_intervals_are_of_resampled_pairs_at_the_thresholds_found():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, size=40)
    first = rng.normal(size=(40, 3)).astype(np.float32)
    second = (first * labels[:, None] + rng.normal(size=(40, 3))).astype(np.float32)
    outcome = pair_outcome(first, second, labels)
    called = similarities_of_pairs(first, second)["dot"] > outcome.metrics["dot_f1_threshold"]

    def f1(rows):
        return 2 * np.sum(called[rows] & labels[rows]) / np.sum(called[rows] + labels[rows])

    assert f1(np.arange(40)) == pytest.approx(outcome.metrics["dot_f1"])
    assert outcome.intervals["dot_f1"] == pytest.approx(bootstrap_interval(40, f1))
    called = similarities_of_pairs(first, second)["dot"] > outcome.metrics["dot_accuracy_threshold"]
    expected = bootstrap_interval(40, lambda rows: np.mean(called[rows] == labels[rows]))
    assert outcome.intervals["dot_accuracy"] == pytest.approx(expected)


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, labels = rng.integers(0, 9, size=30), rng.integers(0, 2, size=30)
        assert threshold_metrics(values, labels)["ap"] == pytest.approx(
            metrics.average_precision_score(labels, values)
        )


def test_thresholds_by_hand():
    metrics = threshold_metrics([0.9, 0.8, 0.6, 0.5, 0.1], [1, 0, 1, 0, 0])
    assert metrics["accuracy"] == 4 / 5 and metrics["accuracy_threshold"] == pytest.approx(0.85)
    assert metrics["f1"] == pytest.approx(4 / 5) and metrics["f1_threshold"] == pytest.approx(0.55)
    assert (metrics["precision"], metrics["recall"]) == pytest.approx((2 / 3, 1))
    assert metrics["ap"] == pytest.approx((1 + 2 / 3) / 2)


def test_equal_similarities_fall_on_one_side():
    metrics = threshold_metrics([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0])
    assert (metrics["accuracy"], metrics["f1"], metrics["ap"]) == pytest.approx(
        (1 / 2, 1 / 2, 1 / 3)
    )
    constant = threshold_metrics([0.5, 0.5], [1, 0])
    assert (constant["accuracy"], constant["f1"], constant["ap"]) == (0, 0, 0.5)
    assert np.isnan(constant["accuracy_threshold"])


def test_similarities_by_hand():
    similarities = similarities_of_pairs(
        np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.0], [0.0, -2.0]])
    )
    expected = {
        "cosine": [1, 0],
        "dot": [25, 0],
        "euclidean": [0, -np.sqrt(5)],
        "manhattan": [0, -3],
    }
    assert similarities.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(similarities[name], values, atol=1e-6)


def test_a_text_and_itself_are_equally_near_whatever_the_text():
    vectors = np.random.default_rng(0).normal(size=(500, 33)).astype(np.float32)
    assert set(similarities_of_pairs(vectors, vectors)["cosine"].tolist()) == {1.0}


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, 1], "each of 2 pairs, found 3"),
        ([1, 1], r"some of each, found \[1\]"),
        ([1, 2], r"found \[1, 2\]"),
    ],
)
def test_bad_labels_are_one_line(labels, message):
    with pytest.raises(InputError, match=message) as error:
        threshold_metrics([0.5, 0.1], labels)
    assert "\n" not in str(error.value)


@pytest.mark.unchecked
def test_bad_embeddings_are_refused(write):
    rows = [{"sentence1": a, "sentence2": b, "label": n} for n, (a, b) in enumerate(["ab", "cd"])]
    task = open_task(write(rows))
    with pytest.raises(InputError, match="4 texts: 'a'"):
        task.evaluate(lambda texts, use: np.full((len(texts), 2), np.nan))
    with pytest.raises(InputError, match=r"expected \[4, D\].*found \[3, 2\]"):
        task.evaluate(lambda texts, use: np.ones((3, 2)))
    with pytest.raises(InputError, match=r"found \(2, 3\), \(2, 4\)"):
        pair_outcome(np.ones((2, 3)), np.ones((2, 4)), [0, 1])
    with pytest.raises(InputError, match="found 1 others"):
        threshold_metrics([np.inf, 0.0], [0, 1])
