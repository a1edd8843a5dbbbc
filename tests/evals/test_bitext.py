import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.bitext import bitext_outcome, open_task


@pytest.fixture(scope="module")
def sentences():
    """Texts of three words; translations share one or two, so neighbours are often wrong."""
    rng = np.random.default_rng(0)
    first, second = [], []
    for n in range(130):
        a, b, c = rng.integers(25, size=3)
        first.append(f"w{a} w{b} x{n}")
        second.append(f"w{a} w{b if n % 3 else c} y{n}")
    return first, second


def test_equals_mteb(sentences, write, recorded, mteb_scores):
    from datasets import Dataset

    first, second = sentences
    data = {"test": Dataset.from_dict({"sentence1": first, "sentence2": second})}
    reference = mteb_scores("AbsTaskBitextMining", "BitextMining", "f1", data)
    path = write({"de": a, "en": b} for a, b in zip(first, second, strict=True))
    task = open_task(path, name="Made")
    ours = task.evaluate(recorded)
    assert 0.2 < ours.score < 0.9
    for name, value in ours.metrics.items():
        assert value == pytest.approx(reference[name], abs=1e-4), name
    assert (
        ours.items.score() == pytest.approx(ours.score, abs=1e-12)
        and ours.intervals.keys() == ours.metrics.keys()
    )
    assert recorded.uses == {("Made", "BitextMining", "", "")} and task.item_texts[2] == (
        first[2],
        second[2],
    )
    back = open_task(path, source="en", target="de")
    assert back.item_texts[2] == (second[2], first[2])
    assert back.evaluate(recorded).score != ours.score


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_equals_scikit_learn(similarity, sentences, encode, monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr("embed_jax.evals.bitext.BLOCK", 1000)  # 7 rows at a time
    first, second = (encode(side).astype(np.float64) for side in sentences)
    if similarity == "cosine":
        first, second = (
            side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)
        )
    differences = first[:, None] - second[None]
    result = {
        "euclidean": -np.linalg.norm(differences, axis=2),
        "manhattan": -np.abs(differences).sum(axis=2),
    }.get(similarity, first @ second.T).argmax(axis=1)
    ours = bitext_outcome(*(encode(side) for side in sentences), similarity=similarity)
    *expected, _ = metrics.precision_recall_fscore_support(
        range(130), result, average="weighted", zero_division=0
    )
    assert [ours.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)


def test_by_hand():
    first = np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 3.0]])
    second = np.array([[5.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    result = bitext_outcome(first, second)  # nearest: 0, 0, 2
    expected = {"f1": (2 / 3 + 1) / 3, "precision": 1.5 / 3, "recall": 2 / 3, "accuracy": 2 / 3}
    assert result.metrics == pytest.approx(expected)
    assert result.items.values == pytest.approx([2 / 3, 0, 1])


def test_each_distinct_text_is_encoded_once(write, recorded):
    open_task(write({"a": a, "b": b} for a, b in ("ab", "bc", "aa"))).evaluate(recorded)
    assert sorted(recorded.seen) == ["a", "b", "c"]


@pytest.mark.unchecked
def test_bad_input_is_one_line():
    for sizes in ((1, 2), (0, 0)):
        with pytest.raises(InputError, match="found {} and {}".format(*sizes)) as error:
            bitext_outcome(*(np.ones((size, 2)) for size in sizes))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="unknown similarity"):
        open_task("nowhere.tsv", similarity="near")
