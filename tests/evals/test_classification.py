import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.classification import (
    classification_metrics,
    evaluate_classification,
    prediction_metrics,
    undersamples,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def made(labels, seed=0, train=150, test=60):
    """Texts with a word of their label, most of them, and of another; the rarest label has fewer than 8 in train."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, labels + 1) ** 2 / np.sum(np.arange(1, labels + 1) ** 2)

    def split(size):
        drawn = [*range(labels), *rng.choice(labels, size=size - labels, p=shares).tolist()]
        topics = [label if rng.random() < 0.7 else int(rng.integers(labels)) for label in drawn]
        return [f"topic{t} topic{rng.integers(labels)} w{rng.integers(80)}" for t in topics], drawn

    return *split(train), *split(test)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("labels, experiments", [(2, 10), (5, 3)])
def test_equals_mteb(labels, experiments, encode, mteb_scores):
    from datasets import Dataset, DatasetDict

    train, train_labels, test, test_labels = data = made(labels)
    assert labels == 2 or min(map(train_labels.count, range(labels))) < 8
    splits = {"train": {"text": train, "label": train_labels}, "test": {"text": test, "label": test_labels}}
    splits = DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})
    theirs = mteb_scores("AbsTaskClassification", "Classification", "accuracy", splits, n_experiments=experiments)
    ours = evaluate_classification(encode, *data, **({} if experiments == 10 else {"experiments": experiments}))
    assert 0.2 < ours["accuracy"] < 0.95 and ("ap" in ours) == (labels == 2)
    each = [ours.pop(f"accuracy_{number}") for number in range(1, experiments + 1)]
    assert each == pytest.approx([one["accuracy"] for one in theirs["scores_per_experiment"]], abs=1e-4)
    assert len(set(each)) > 1
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-4), name
    assert len(ours) == 7 + (labels == 2)


def test_samples_are_equally_many_of_each_label_and_repeatable():
    labels = ["a"] * 30 + ["b"] * 3 + ["c"] * 9
    drawn = undersamples(labels, samples_per_label=4, experiments=5, seed=7)
    for rows in drawn:
        assert len(set(rows.tolist())) == len(rows)
        assert sorted(labels[row] for row in rows) == ["a"] * 4 + ["b"] * 3 + ["c"] * 4
    assert len({tuple(rows.tolist()) for rows in drawn}) == 5
    again = undersamples(labels, samples_per_label=4, experiments=2, seed=7)
    assert all(np.array_equal(rows, others) for rows, others in zip(again, drawn[:2], strict=True))
    assert not np.array_equal(undersamples(labels, samples_per_label=4, experiments=1, seed=8)[0], drawn[0])


def test_predictions_by_hand():
    found = prediction_metrics([0, 0, 0, 1], [0, 0, 1, 1])
    expected = {"accuracy": 3 / 4, "f1": (4 / 5 + 2 / 3) / 2, "f1_weighted": (3 * 4 / 5 + 2 / 3) / 4}
    expected |= {"precision": 3 / 4, "precision_weighted": (3 + 1 / 2) / 4, "recall": 5 / 6, "recall_weighted": 3 / 4}
    assert found == pytest.approx(expected | {"ap": 1 / 2})
    names = np.array(["no", "yes"])
    assert prediction_metrics(names[[0, 0, 0, 1]].tolist(), names[[0, 0, 1, 1]].tolist()) == found
    assert "ap" not in prediction_metrics([0, 1, 2], [0, 1, 2])
    assert prediction_metrics([0, 0, 1, 1], [0, 2, 1, 1])["ap"] == pytest.approx(2 / 3), "a third label scores highest"


def test_separable_labels_are_found():
    labels = ["left", "right"] * 20
    vectors = np.array([[-1.0, 0.0], [1.0, 0.0]] * 20)
    found = classification_metrics(vectors, labels, vectors, labels, samples_per_label=2, experiments=3)
    assert set(found.values()) == {1.0} and "accuracy_3" in found and "accuracy_4" not in found


def test_only_drawn_texts_are_encoded_and_each_once(recorded, encode):
    train, train_labels, test, test_labels = made(3)
    few = {"samples_per_label": 2, "experiments": 2}
    found = evaluate_classification(recorded, train, train_labels, test, test_labels, **few)
    drawn = {train[row] for rows in undersamples(train_labels, **few) for row in rows}
    assert sorted(recorded.seen) == sorted({*drawn, *test})
    assert found == classification_metrics(encode(train), train_labels, encode(test), test_labels, **few)


@pytest.mark.parametrize(
    "columns, message",
    [
        ((["a"], [0, 1], ["b"], [0]), "train split.*1 texts and 2 labels"),
        ((["a", "b"], [0, 1], ["b"], []), "test split.*1 texts and 0 labels"),
        (([], [], ["b"], [0]), "train split.*0 texts"),
        ((["a", "b"], [0, 1], [], []), "test split.*0 texts"),
        ((["a", "b"], [3, 3], ["b"], [3]), "two labels or more, found only 3"),
        ((["a", "b"], ["x", "y"], ["b", "c"], ["x", "z"]), "1 labels that no training example has: 'z'"),
    ],
)
def test_bad_input_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_classification(pytest.fail, *columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("few", [{"samples_per_label": 0}, {"experiments": 0}])
def test_nothing_to_draw_is_refused(few):
    with pytest.raises(InputError, match="one or more of each"):
        evaluate_classification(pytest.fail, ["a", "b"], [0, 1], ["a"], [0], **few)
