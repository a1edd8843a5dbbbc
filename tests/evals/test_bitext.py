import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.bitext import bitext_metrics, evaluate_bitext


@pytest.fixture(scope="module")
def sentences():
    """Of three words each; translations have one or two in common, so that neighbours are often wrong ones."""
    rng = np.random.default_rng(0)
    first, second = [], []
    for n in range(130):
        a, b, c = rng.integers(25, size=3)
        first.append(f"w{a} w{b} x{n}")
        second.append(f"w{a} w{b if n % 3 else c} y{n}")
    return first, second


def test_equals_mteb(sentences, encode, mteb_scores):
    from datasets import Dataset

    first, second = sentences
    data = {"test": Dataset.from_dict({"sentence1": first, "sentence2": second})}
    theirs = mteb_scores("AbsTaskBitextMining", "BitextMining", "f1", data)
    ours = evaluate_bitext(encode, first, second)
    assert 0.2 < ours["f1"] < 0.9
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-4), name


def test_given_translations_equal_scikit_learn(sentences, encode):
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = (encode(side) for side in sentences)
    gold = np.random.default_rng(1).integers(130, size=130)
    cosines = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]
    found = (cosines[0] @ cosines[1].T).argmax(axis=1)
    gold[::2] = found[::2]
    ours = bitext_metrics(first, second, gold)
    *expected, _ = metrics.precision_recall_fscore_support(gold, found, average="weighted", zero_division=0)
    assert [ours[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert ours["accuracy"] == pytest.approx(np.mean(gold == found))


def test_by_hand():
    first = np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 3.0]])
    second = np.array([[5.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = bitext_metrics(first, second)  # nearest: 0, 0, 2
    assert found == pytest.approx({"f1": (2 / 3 + 1) / 3, "precision": 1.5 / 3, "recall": 2 / 3, "accuracy": 2 / 3})
    assert bitext_metrics(first, second, [0, 0, 2])["f1"] == 1


def test_each_distinct_text_is_encoded_once(recorded):
    evaluate_bitext(recorded, ["a", "b", "a"], ["b", "c", "a"])
    assert sorted(recorded.seen) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "columns, message",
    [
        (([], []), "found 0 and 0"),
        ((["a"], ["b", "c"]), "or gold, found 1 and 2"),
        ((["a"], ["b", "c"], [0, 1]), "each of 1 sentences, found 2"),
        ((["a", "b"], ["b", "c"], [0, 2]), "from 0 to 1, found 2"),
        ((["a", "b"], ["b", "c"], [0, -1]), "found -1"),
        ((["a", "b"], ["b", "c"], [0, 0.5]), "whole numbers.*found 0.0"),
    ],
)
def test_bad_input_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_bitext(pytest.fail, *columns)
    assert "\n" not in str(error.value)
