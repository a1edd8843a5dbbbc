"""Tasks score cross-encoders by the same rules as embedders."""

import numpy as np
import pytest

from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.errors import InputError, RunError
from embed_jax.evals.metrics import calibration_error
from embed_jax.evals.reranker import Reranker, cross_encoder_reranker
from embed_jax.evals.reranking import open_task
from embed_jax.evals.suite import Entry, evaluate
from embed_jax.registry import lookup


def shared_words(queries, passages):
    """Scores a pair by the number of words that both texts have."""
    pairs = zip(queries, passages, strict=True)
    return np.array([len({*query.split()} & {*passage.split()}) for query, passage in pairs])


ROWS = [
    {"query": "a b c", "positive": ["a b x", "x"], "negative": ["a y", "y z"]},
    {"query": ["d", "e f"], "positive": ["e f"], "negative": ["d", "x", "d"]},
    {"query": "none", "positive": [], "negative": ["x"]},
]


def test_reranking_by_hand(write):
    """Of several queries the best score counts; equal scores are the negatives first."""
    outcome = open_task(write(ROWS)).evaluate_pairs(Reranker("words", shared_words))
    assert outcome.main == "map" and outcome.intervals.keys() == outcome.metrics.keys()
    assert outcome.items.values == pytest.approx([(1 + 2 / 4) / 2, 1])
    assert outcome.notes == ("1 of 3 records left out: no positive or no negative",)


def test_probabilities_have_a_calibration_error(write):
    """All candidates count, each as often as it is listed."""
    task = open_task(write(ROWS))
    outcome = task.evaluate_pairs(Reranker("words", shared_words, "sigmoid"))
    logits, labels = np.array([2, 0, 1, 0, 2, 1, 0, 1]), [1, 1, 0, 0, 1, 0, 0, 0]
    expected = calibration_error(1 / (1 + np.exp(-logits)), labels)
    assert outcome.metrics["calibration_error"] == pytest.approx(expected)
    assert "calibration_error" not in outcome.intervals


def test_each_pair_is_scored_once():
    calls = []

    def score(queries, passages):
        calls.append(list(zip(queries, passages, strict=True)))
        return shared_words(queries, passages)

    reranker = Reranker("words", score)
    assert reranker(["a", "a", "b"], ["a", "a", "a"]).tolist() == [1, 1, 0]
    assert reranker(["b", "a"], ["b", "a"]).tolist() == [1, 1]
    assert calls == [[("a", "a"), ("b", "a")], [("b", "b")]]
    assert reranker([], []).shape == (0,)
    assert (reranker.scored, reranker.describe_work()) == (3, "3 pairs scored")


@pytest.mark.parametrize(
    "scores, error, message",
    [
        (
            [1.0],
            InputError,
            r"words: expected one score for each of 2 pairs, found the shape \[1\]",
        ),
        ([[1.0], [2.0]], InputError, r"found the shape \[2, 1\]: does the model have several"),
        ([1.0, np.nan], RunError, "words: no finite score for 'b' and 'd', one of 1 such pairs"),
    ],
)
def test_bad_scores_are_refused(scores, error, message):
    with pytest.raises(error, match=message):
        Reranker("words", lambda queries, passages: scores)(["a", "b"], ["c", "d"])


def test_a_cross_encoder_ranks_by_its_logits(tiny_cross_encoder, sentences):
    model = load_cross_encoder(str(tiny_cross_encoder()))
    assert model.activation == "sigmoid"
    queries, passages = sentences[:9], sentences[9:18]
    np.testing.assert_allclose(
        cross_encoder_reranker(model, "tiny")(queries, passages),
        model.logits(queries, passages)[:, 0],
        atol=1e-5,
    )


def test_several_labels_and_tasks_of_embeddings_are_refused(tiny_cross_encoder, write):
    model = load_cross_encoder(str(tiny_cross_encoder(num_labels=2)))
    with pytest.raises(InputError, match="m: expected a cross-encoder with one label.*found 2"):
        cross_encoder_reranker(model, "m")
    rows = [{"sentence1": text, "sentence2": text} for text in "ab"]
    with pytest.raises(InputError, match="m: a cross-encoder.*kind bitext needs"):
        evaluate(Entry("bitext", write(rows), name="n"), "m", Reranker("m", shared_words))


def test_labelled_and_graded_pairs_are_scored_by_rank(write):
    """Accuracy and F1 are at the best threshold; correlations are of ranks only."""
    texts = [("a b c", "a b c"), ("a b c", "a b"), ("a b c", "a x"), ("a b c", "x")]
    rows = [
        {"sentence1": first, "sentence2": second, "label": label, "score": score}
        for (first, second), label, score in zip(texts, (1, 1, 0, 0), (5, 4, 1, 2), strict=True)
    ]
    reranker = Reranker("words", shared_words)
    outcome = lookup("task", "pairs")(write(rows, "pairs.jsonl")).evaluate_pairs(reranker)
    assert outcome.main == "ap" and outcome.items.score() == outcome.score == 1
    assert (outcome.metrics["accuracy"], outcome.metrics["f1"]) == (1, 1)
    assert outcome.metrics["accuracy_threshold"] == 1.5
    outcome = lookup("task", "sts")(write(rows, "sts.jsonl")).evaluate_pairs(reranker)
    assert outcome.metrics.keys() == outcome.intervals.keys() == {"spearman"}
    assert outcome.score == pytest.approx(0.8)
    assert reranker.scored == 4
