"""Classification with a few examples of each label: logistic regression on frozen embeddings."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError, require
from embed_jax.evals.pairs import encode_columns
from embed_jax.retrieval.topk import Encode

Label = int | str
SAMPLES_PER_LABEL = 8
EXPERIMENTS = 10
SEED = 42  # mteb's


def undersamples(
    labels: Sequence[Label],
    *,
    samples_per_label: int = SAMPLES_PER_LABEL,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
) -> list[Int[np.ndarray, " S"]]:
    """The examples that each experiment is trained on: those that mteb draws with this seed.

    Each experiment shuffles the order left by the one before, by the same permutation, and takes the first examples of
    each label: `samples_per_label`, or all of a label that has fewer.

    Returns:
        Row numbers, in the order in which they were drawn, for each experiment.
    """
    if samples_per_label < 1 or experiments < 1:
        found = f"{samples_per_label} samples of each label, {experiments} experiments"
        raise InputError(f"classification: expected one or more of each, found {found}")
    order, drawn = np.arange(len(labels)), []
    for _ in range(experiments):
        np.random.RandomState(seed).shuffle(order)
        count: Counter[Label] = Counter()
        rows = []
        for row in order.tolist():
            count[labels[row]] += 1
            if count[labels[row]] <= samples_per_label:
                rows.append(row)
        drawn.append(np.array(rows))
    return drawn


def prediction_metrics(labels: Sequence[Label], predicted: Sequence[Label]) -> dict[str, float]:
    """Accuracy, and F1, precision and recall, each as the mean over labels and weighted by the labels' frequencies.

    Returns:
        "accuracy", "f1", "f1_weighted", "precision", "precision_weighted", "recall", "recall_weighted"; with two
        in `labels` also "ap", the average precision of the *predicted labels* as scores, by their order, for the larger
        of the two, as mteb has it. Labels only in `predicted` count in means over labels; what is 0/0 counts 0.
    """
    require("sklearn", "eval")
    from sklearn import metrics

    scores = {"accuracy": float(metrics.accuracy_score(labels, predicted))}
    for average, suffix in (("macro", ""), ("weighted", "_weighted")):
        found = metrics.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        for name, score in zip(("precision", "recall", "f1"), found, strict=False):  # the fourth is none
            scores[f"{name}{suffix}"] = float(score)
    if len({*labels}) == 2:
        order = {label: place for place, label in enumerate(sorted({*labels, *predicted}))}
        larger = max(labels)
        positive = [label == larger for label in labels]
        scores["ap"] = float(metrics.average_precision_score(positive, [order[label] for label in predicted]))
    return scores


def classification_metrics(
    train: Float[np.ndarray, "N D"],
    train_labels: Sequence[Label],
    test: Float[np.ndarray, "M D"],
    test_labels: Sequence[Label],
    *,
    samples_per_label: int = SAMPLES_PER_LABEL,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
) -> dict[str, float]:
    """Means over experiments that each train a logistic regression, 100 iterations at most, on few examples.

    Agrees with mteb's AbsTaskClassification (2.26), whose main score is "accuracy"; its "ap_weighted" is "ap". The
    cross-validation that a few of its tasks ask for is not done here.

    Args:
        train, test: embeddings; the examples to train on are drawn from the former, see `undersamples`.

    Returns:
        The means of `prediction_metrics`, and "accuracy_1", "accuracy_2", ..., of each experiment.

    Raises:
        InputError: if a split is empty, lengths differ, the training examples have one label only, or a test label is
            not among theirs.
    """
    drawn = _draw(train_labels, test_labels, (len(train), len(test)), samples_per_label, experiments, seed)
    return _mean_metrics([train[rows] for rows in drawn], drawn, train_labels, test, test_labels, seed)


def evaluate_classification(
    encode: Encode,
    train_texts: Sequence[str],
    train_labels: Sequence[Label],
    test_texts: Sequence[str],
    test_labels: Sequence[Label],
    *,
    samples_per_label: int = SAMPLES_PER_LABEL,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
) -> dict[str, float]:
    """`classification_metrics` of texts; each distinct text is encoded once, and none that no experiment draws.

    Raises:
        InputError: as `classification_metrics`.
    """
    lengths = len(train_texts), len(test_texts)
    drawn = _draw(train_labels, test_labels, lengths, samples_per_label, experiments, seed)
    used = np.unique(np.concatenate(drawn))
    train, test = encode_columns(encode, [train_texts[row] for row in used], test_texts)
    samples = [train[np.searchsorted(used, rows)] for rows in drawn]
    return _mean_metrics(samples, drawn, train_labels, test, test_labels, seed)


def _mean_metrics(
    samples: list[Float[np.ndarray, "S D"]],
    drawn: list[Int[np.ndarray, " S"]],
    train_labels: Sequence[Label],
    test: Float[np.ndarray, "M D"],
    test_labels: Sequence[Label],
    seed: int,
) -> dict[str, float]:
    scores = []
    for sample, rows in zip(samples, drawn, strict=True):
        predict = _fitted(sample, [train_labels[row] for row in rows], seed)
        scores.append(prediction_metrics(list(test_labels), predict(test)))
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return means | {f"accuracy_{number}": score["accuracy"] for number, score in enumerate(scores, 1)}


def _fitted(
    sample: Float[np.ndarray, "S D"], labels: Sequence[Label], seed: int
) -> Callable[[Float[np.ndarray, "M D"]], list[Label]]:
    require("sklearn", "eval")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at 100 iterations
        model = LogisticRegression(max_iter=100, random_state=seed).fit(sample, labels)
    return lambda vectors: model.predict(vectors).tolist()


def _draw(
    train_labels: Sequence[Label],
    test_labels: Sequence[Label],
    lengths: tuple[int, int],
    samples_per_label: int,
    experiments: int,
    seed: int,
) -> list[Int[np.ndarray, " S"]]:
    """`undersamples` of checked labels."""
    for split, labels, length in zip(("train", "test"), (train_labels, test_labels), lengths, strict=True):
        if len(labels) != length or not length:
            found = f"{length} texts and {len(labels)} labels"
            raise InputError(f"classification: {split} split: expected a label for each text, 1 or more, found {found}")
    known = set(train_labels)
    if len(known) < 2:
        raise InputError(f"classification: train split: expected two labels or more, found only {train_labels[0]!r}")
    unknown = list(dict.fromkeys(label for label in test_labels if label not in known))
    if unknown:
        few = ", ".join(map(repr, unknown[:5]))
        raise InputError(f"classification: test split: {len(unknown)} labels that no training example has: {few}")
    return undersamples(train_labels, samples_per_label=samples_per_label, experiments=experiments, seed=seed)
