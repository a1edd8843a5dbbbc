import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.logistic_regression import (
    logistic_regressions,
    predict_by_each,
    rotate_vectors,
    turn_vectors,
)
from embed_jax.evals.transfer import cross_validate, open_task, train_and_test

pytestmark = pytest.mark.usefixtures("one_thread")
STRENGTHS = [0.001, 0.03, 1.0, 30.0]
FOLDS = 4


def drawn(size, classes=2, dim=6, seed=0, rare=False):
    """Draws vectors around their label's centre, with overlap, so that no classifier is perfect."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=size, p=[0.85, 0.12, 0.03] if rare else None)
    centers = np.random.default_rng(1).normal(size=(classes, dim))
    return rng.normal(size=(size, dim)) * np.geomspace(3, 0.3, dim) + centers[labels] + 5, labels


def their(C):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, tol=1e-9, max_iter=10_000)


@pytest.mark.parametrize("classes", [2, 3])
def test_regressions_equal_sklearns(classes):
    vectors, labels = drawn(90, classes)
    mask = np.random.default_rng(0).random((90, 4)) < 0.7
    rotated = rotate_vectors(vectors)
    weights = np.asarray(logistic_regressions(rotated, labels, mask, STRENGTHS))
    result = predict_by_each(weights, turn_vectors(rotated, vectors))
    for number, strength in enumerate(STRENGTHS):
        model = their(strength).fit(vectors[mask[:, number]], labels[mask[:, number]])
        ours = rotated.axes @ weights[:-1, number]
        expected = (
            model.coef_.T
            if classes > 2
            else np.concatenate([-model.coef_.T, model.coef_.T], axis=1) / 2
        )
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
        np.testing.assert_array_equal(result[:, number], model.predict(vectors))


@pytest.mark.parametrize("classes, rare", [(2, False), (3, False), (3, True)])
def test_cross_validation_equals_a_search_by_sklearn_for_each_fold(classes, rare):
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    vectors, labels = drawn(150, classes, rare=rare)
    folds = [
        test
        for _, test in StratifiedKFold(FOLDS, shuffle=True, random_state=7).split(vectors, labels)
    ]
    predicted, strengths, accuracies = np.zeros(150, int), [], []
    for number, test in enumerate(folds):
        rest = np.setdiff1d(np.arange(150), test)
        inner = [np.searchsorted(rest, fold) for other, fold in enumerate(folds) if other != number]
        splits = [(np.setdiff1d(np.arange(len(rest)), fold), fold) for fold in inner]
        search = GridSearchCV(their(1.0), {"C": STRENGTHS}, cv=splits).fit(
            vectors[rest], labels[rest]
        )
        predicted[test] = search.predict(vectors[test])
        strengths.append(search.best_params_["C"])
        accuracies.append(search.best_score_)
    result, chosen, accuracy = cross_validate(vectors, labels, FOLDS, STRENGTHS, seed=7)
    np.testing.assert_array_equal(result, predicted)
    assert chosen == strengths and accuracy == pytest.approx(np.mean(accuracies))
    assert 0.5 < np.mean(result == labels) < 0.97


def test_with_a_test_split_the_strength_is_chosen_over_folds_or_by_dev():
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    vectors, labels = ({}, {})
    for seed, (part, size) in enumerate({"train": 60, "dev": 40, "test": 80}.items()):
        vectors[part], labels[part] = drawn(size, 3, dim=20, seed=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=7)
    search = GridSearchCV(their(1.0), {"C": STRENGTHS}, cv=folds).fit(
        vectors["train"], labels["train"]
    )
    fitted = {
        strength: their(strength).fit(vectors["train"], labels["train"]) for strength in STRENGTHS
    }
    by_dev = {
        strength: model.score(vectors["dev"], labels["dev"]) for strength, model in fitted.items()
    }
    expected = {"dev": (max(by_dev, key=by_dev.get), max(by_dev.values()))}
    expected["folds"] = search.best_params_["C"], search.best_score_
    assert expected["dev"][0] != expected["folds"][0]
    for chooser, (strength, score) in expected.items():
        parts = {part: both for part, both in vectors.items() if part != "dev" or chooser == "dev"}
        result, chosen, accuracy = train_and_test(parts, labels, FOLDS, STRENGTHS, seed=7)
        np.testing.assert_array_equal(result, fitted[strength].predict(vectors["test"]))
        assert chosen == [strength] and accuracy == pytest.approx(score)


def texts(size, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=size).tolist()
    return [
        {
            "text": f"{'bad' if rng.random() < 0.2 else ('no', 'yes')[label]} w{rng.integers(60)}",
            "label": label,
        }
        for label in labels
    ]


def test_task_scores_each_text_once(write, recorded):
    rows = texts(80, 0)
    task = open_task(write(rows), name="MR", folds=4)
    outcome = task.evaluate(recorded)
    assert (task.kind, task.unit, outcome.main) == ("Classification", "texts", "accuracy")
    assert task.item_texts == [(row["text"],) for row in rows]
    assert sorted(recorded.seen) == sorted({row["text"] for row in rows})
    assert recorded.uses == {("MR", "Classification", "", "")}
    assert set(outcome.items.values) == {0.0, 1.0} and 0.6 < outcome.score < 1
    assert outcome.score == outcome.items.score() == outcome.metrics["accuracy"]
    low, high = outcome.intervals["accuracy"]
    assert low < outcome.score < high and 0.6 < outcome.metrics["accuracy_dev"] < 1
    assert sum(int(part.split("(")[1].split()[0]) for part in outcome.notes[0].split(",")) == 4
    easy = [
        bool(value)
        for value, row in zip(outcome.items.values, rows, strict=True)
        if "bad" not in row["text"]
    ]
    assert np.mean(easy) > 0.9


@pytest.mark.unchecked
def test_lengths_of_embeddings_do_not_count(write, encode):
    data = write(texts(80, 0))
    scores = [
        open_task(data, folds=4).evaluate(lambda texts, use, by=by: encode(texts) * by).metrics
        for by in (0.01, 1, 100)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_splits_of_a_directory_and_files(write, recorded, tmp_path):
    for part, size in (("train", 60), ("validation", 30), ("test", 40)):
        write(texts(size, size), f"{part}.jsonl")
    learnt = open_task(str(tmp_path), train="train", dev="validation", folds=4).evaluate(recorded)
    assert len(learnt.items) == 40 and learnt.metrics["accuracy_dev"] > 0.6
    files = {"train": str(tmp_path / "train.jsonl"), "dev": str(tmp_path / "validation.jsonl")}
    again = open_task(str(tmp_path / "test.jsonl"), **files).evaluate(recorded)
    assert again.metrics == learnt.metrics
    np.testing.assert_array_equal(again.items.values, learnt.items.values)
    by_folds = open_task(str(tmp_path), train="train", folds=4).evaluate(recorded)
    assert by_folds.metrics["accuracy_dev"] != learnt.metrics["accuracy_dev"]


def test_pairs_are_told_by_differences_and_products(write, recorded):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        words = rng.choice(50, size=4, replace=False)
        label = number % 2
        pair = (
            f"w{words[0]} w{words[1]}",
            f"w{words[0]} w{words[1]} v" if label else f"w{words[2]} w{words[3]} v",
        )
        rows.append(
            {"sentence1": pair[0], "sentence2": pair[1], "label": "same" if label else "other"}
        )
    task = open_task(write(rows), name="MRPC", folds=4)
    outcome = task.evaluate(recorded)
    assert (task.kind, task.unit) == ("PairClassification", "pairs")
    assert task.item_texts[3] == (rows[3]["sentence1"], rows[3]["sentence2"])
    assert recorded.uses == {("MRPC", "PairClassification", "", "")}
    assert outcome.score > 0.9
    turned = [row | {"sentence1": row["sentence2"], "sentence2": row["sentence1"]} for row in rows]
    assert open_task(write(turned), folds=4).evaluate(recorded).metrics == outcome.metrics


@pytest.mark.parametrize(
    "rows, options, message",
    [
        (texts(30, 0), {"folds": 2}, "3 folds or more"),
        (texts(30, 0), {"strengths": [1.0, 0.0]}, "strengths above 0"),
        (texts(30, 0), {"strengths": []}, "strengths above 0"),
        (texts(30, 0), {"dev": "dev"}, "expected the option train"),
        (texts(30, 0), {"train": "train"}, "a file has no split 'train'"),
        (texts(30, 0), {"label": "kind"}, "test.jsonl:1: no field 'kind'"),
        (texts(12, 0), {}, "expected two labels with 10 texts or more, found"),
        ([{"text": "a", "label": 1}] * 30, {}, r"expected two labels.*found '1' \(30 x\)"),
        ([{"sentence1": "a", "label": 1}], {}, "no field 'sentence2'"),
        (
            [{"text": " ", "label": 1}, {"text": "", "label": 0}],
            {"folds": 3},
            "all of 2 texts are empty",
        ),
    ],
)
def test_bad_input_is_one_line(rows, options, message, write):
    with pytest.raises(InputError, match=message) as error:
        open_task(write(rows), name="made", **options)
    assert "\n" not in str(error.value)


def test_labels_must_be_learnt(write, tmp_path):
    write(texts(30, 0), "train.jsonl")
    write([{"text": "a", "label": "maybe"}], "test.jsonl")
    with pytest.raises(InputError, match="test.jsonl: 1 labels that no training text has: 'maybe'"):
        open_task(str(tmp_path), train="train", folds=3)
    write([{"sentence1": "a", "sentence2": "b", "label": "0"}], "test.jsonl")
    with pytest.raises(InputError, match="train.jsonl:1: expected the fields of .*test.jsonl"):
        open_task(str(tmp_path), train="train", folds=3)
