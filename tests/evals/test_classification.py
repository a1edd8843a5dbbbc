import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.classification import (
    classification_outcome,
    open_task,
    prediction_metrics,
    undersamples,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def made(labels, seed=0, train=150, test=60):
    """Makes texts, most of which have a word of their label, and a word of another label.

    The rarest label has fewer than 8 texts in the training split.
    """
    rng = np.random.default_rng(seed)
    shares = np.arange(1, labels + 1) ** 2 / np.sum(np.arange(1, labels + 1) ** 2)

    def split(size):
        drawn = [*range(labels), *rng.choice(labels, size=size - labels, p=shares).tolist()]
        topics = [label if rng.random() < 0.7 else int(rng.integers(labels)) for label in drawn]
        return [f"topic{t} topic{rng.integers(labels)} w{rng.integers(80)}" for t in topics], drawn

    return *split(train), *split(test)


@pytest.fixture
def open_made(write, tmp_path):
    """Opens the task of these texts, labels, test texts and test labels."""

    def open_made(train, train_labels, test, test_labels, **options):
        for name, texts, labels in (("train", train, train_labels), ("test", test, test_labels)):
            write(
                ({"text": t, "label": n} for t, n in zip(texts, labels, strict=True)),
                f"{name}.jsonl",
            )
        return open_task(str(tmp_path), name="Made", **options)

    return open_made


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("labels, experiments", [(2, 10), (5, 3)])
def test_equals_mteb(labels, experiments, open_made, recorded, mteb_scores):
    from datasets import Dataset, DatasetDict

    train, train_labels, test, test_labels = data = made(labels)
    assert labels == 2 or min(map(train_labels.count, range(labels))) < 8
    splits = {
        "train": {"text": train, "label": train_labels},
        "test": {"text": test, "label": test_labels},
    }
    splits = DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})
    reference = mteb_scores(
        "AbsTaskClassification", "Classification", "accuracy", splits, n_experiments=experiments
    )
    task = open_made(*data, **({} if experiments == 10 else {"experiments": experiments}))
    result = task.evaluate(recorded)
    ours = dict(result.metrics)
    assert 0.2 < ours["accuracy"] < 0.95 and ("ap" in ours) == (labels == 2)
    each = [ours.pop(f"accuracy_{number}") for number in range(1, experiments + 1)]
    assert each == pytest.approx(
        [scores["accuracy"] for scores in reference["scores_per_experiment"]], abs=1e-4
    )
    assert len(set(each)) > 1
    for name, value in ours.items():
        assert value == pytest.approx(reference[name], abs=1e-4), name
    assert len(ours) == 7 + (labels == 2) and result.intervals.keys() == ours.keys()

    assert result.items.score() == pytest.approx(result.score, abs=1e-12)
    assert result.items.interval() == pytest.approx(result.intervals["accuracy"], abs=1e-12)
    assert task.item_texts == [(text,) for text in test] and len(result.items) == len(test)


def test_samples_are_equally_many_of_each_label_and_repeatable():
    labels = ["a"] * 30 + ["b"] * 3 + ["c"] * 9
    drawn = undersamples(labels, samples_per_label=4, experiments=5, seed=7)
    for rows in drawn:
        assert len(set(rows.tolist())) == len(rows)
        assert sorted(labels[row] for row in rows) == ["a"] * 4 + ["b"] * 3 + ["c"] * 4
    assert len({tuple(rows.tolist()) for rows in drawn}) == 5
    again = undersamples(labels, samples_per_label=4, experiments=2, seed=7)
    assert all(np.array_equal(rows, others) for rows, others in zip(again, drawn[:2], strict=True))
    assert not np.array_equal(
        undersamples(labels, samples_per_label=4, experiments=1, seed=8)[0], drawn[0]
    )


def test_predictions_by_hand():
    result = prediction_metrics(np.array([0, 0, 0, 1]), np.array([[0, 0, 1, 1]]), 2, positive=1)
    expected = {
        "accuracy": 3 / 4,
        "f1": (4 / 5 + 2 / 3) / 2,
        "f1_weighted": (3 * 4 / 5 + 2 / 3) / 4,
    }
    expected |= {
        "precision": 3 / 4,
        "precision_weighted": (3 + 1 / 2) / 4,
        "recall": 5 / 6,
        "recall_weighted": 3 / 4,
    }
    assert result == pytest.approx(expected | {"ap": 1 / 2})
    third = prediction_metrics(np.array([0, 0, 1, 1]), np.array([[0, 2, 1, 1]]), 3, positive=1)
    assert third["ap"] == pytest.approx(2 / 3), "a third label scores highest"


def test_means_over_experiments_equal_scikit_learn():
    """Some labels are predicted in some experiments only, and one label never."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, size=50), rng.integers(0, 4, size=(6, 50))
    predicted[2:, 7] = 5
    result = prediction_metrics(labels, predicted, 7)
    for average, suffix in (("macro", ""), ("weighted", "_weighted")):
        each = [
            metrics.precision_recall_fscore_support(
                labels, predictions, average=average, zero_division=0
            )[:3]
            for predictions in predicted
        ]
        names = [f"{name}{suffix}" for name in ("precision", "recall", "f1")]
        assert [result[name] for name in names] == pytest.approx(np.mean(each, axis=0))
    binary = labels // 2
    each = [metrics.average_precision_score(binary, predictions) for predictions in predicted]
    assert prediction_metrics(binary, predicted, 7, positive=1)["ap"] == pytest.approx(
        np.mean(each)
    )


def test_items_are_shares_of_experiments():
    result = classification_outcome(np.array([0, 1, 2, 0]), np.array([[0, 1, 1, 1], [0, 0, 2, 1]]))
    assert result.items.values.tolist() == [1, 0.5, 0.5, 0]
    assert (
        result.score == 0.5
        and result.metrics["accuracy_2"] == 0.5
        and "accuracy_3" not in result.metrics
    )


def test_separable_labels_are_found(open_made):
    class Sides:
        similarity = "cosine"

        def __call__(self, texts, use):
            return np.array([[1.0 if text.startswith("r") else -1.0, 0.0] for text in texts])

    texts, labels = [f"{side}{n}" for n in range(20) for side in "lr"], ["left", "right"] * 20
    result = open_made(texts, labels, texts, labels, samples_per_label=2, experiments=3).evaluate(
        Sides()
    )
    assert set(result.metrics.values()) == {1.0} and result.intervals["f1"] == (1, 1)


def test_only_drawn_texts_are_encoded_and_each_once(open_made, recorded):
    train, train_labels, test, test_labels = data = made(3)
    few = {"samples_per_label": 2, "experiments": 2}
    open_made(*data, **few).evaluate(recorded)
    drawn = {train[row] for rows in undersamples(train_labels, **few) for row in rows}
    assert sorted(recorded.seen) == sorted({*drawn, *test})
    assert recorded.uses == {("Made", "Classification", "", "")}


def test_a_file_is_learnt_from_a_file(write, recorded):
    train, train_labels, test, test_labels = made(3)
    rows = (
        {"text": t, "label": 0, "fine_label": n} for t, n in zip(train, train_labels, strict=True)
    )
    learnt = write(rows, "learnt.jsonl")
    rows = (
        {"text": t, "label": 0, "fine_label": n} for t, n in zip(test, test_labels, strict=True)
    )
    data = write(rows)
    result = open_task(data, train=learnt, label="fine_label", experiments=2).evaluate(recorded)
    assert 0 < result.score < 1
    with pytest.raises(InputError, match=r"test\.jsonl: a file has no split 'train' to learn from"):
        open_task(data)
    with pytest.raises(
        InputError, match=r"learnt\.jsonl: expected two labels or more, found only '0'"
    ):
        open_task(data, train=learnt)


def test_a_label_that_training_lacks_counts_as_wrong(open_made, recorded):
    """Like mteb: the text stays in the accuracy, and its label in the means over labels."""
    texts = ["a", "b", "c", "d"]
    outcome = open_made(texts, ["x", "y", "x", "y"], texts, ["x", "y", "x", "w"]).evaluate(recorded)
    assert outcome.metrics["accuracy"] == 0.75
    assert outcome.metrics["recall"] == pytest.approx(2 / 3)  # x 1, y 1, w 0


@pytest.mark.parametrize("few", [{"samples_per_label": 0}, {"experiments": 0}])
def test_nothing_to_draw_is_refused(few):
    with pytest.raises(InputError, match="one or more of each"):
        open_task("nowhere", **few)
