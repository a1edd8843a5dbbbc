"""Classification with a few examples of each label: logistic regression on frozen embeddings."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.pairs import parse_whole_number
from embed_jax.data.sources.files import FORMATS, file_format
from embed_jax.data.sources.tasks import describe_split, read_labelled_texts
from embed_jax.errors import InputError, require
from embed_jax.evals.metrics import metric_intervals
from embed_jax.evals.task import Embed, Items, Outcome, Task, Use, encode_columns

KIND = "Classification"
SAMPLES_PER_LABEL = 8
EXPERIMENTS = 10
SEED = 42  # mteb's


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    train: str = "train",
    label: str = "label",
    samples_per_label: int = SAMPLES_PER_LABEL,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
) -> Task:
    """Opens a classification task by mteb's protocol.

    The main score is the mean accuracy of experiments that each learn from a few examples. Training
    texts that no experiment draws are not embedded.

    Args:
        data: a file, a directory or a data set of the hub; see `read_labelled_texts`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        train: the split to learn from, or a file; data that is a file has no splits.
        label: the field of the label, such as "fine_label".
        samples_per_label: how many examples of each label an experiment learns from.
        experiments: how many experiments.
        seed: of the examples that are drawn; see `undersamples`.

    Raises:
        InputError: for data that cannot be read, training texts with one label only, or fewer than
            one sample or experiment.
    """
    if samples_per_label < 1 or experiments < 1:
        counts = f"{samples_per_label} samples of each label, {experiments} experiments"
        raise InputError(f"classification: expected one or more of each, found {counts}")
    named = file_format(Path(train)) in FORMATS
    if Path(data).is_file() and not named:
        raise InputError(f"{data}: a file has no split {train!r} to learn from: expected a "
                         "directory of files, or a "
                         "file as the option train")  # fmt: skip
    source, train_split = (train, split) if named else (data, train)
    train_texts, train_labels = read_labelled_texts(source, train_split, label)
    test_texts, test_labels = read_labelled_texts(data, split, label)
    if len(set(train_labels)) < 2:
        raise InputError(
            f"{describe_split(source, train_split)}: expected two labels or more, found only "
            f"{train_labels[0]!r}"
        )
    # As in mteb, a test text whose label no training text has is never labelled rightly.
    number = {kind: n for n, kind in enumerate(_sorted([*train_labels, *test_labels]))}
    learnt, gold = (
        np.array([number[kind] for kind in kinds]) for kinds in (train_labels, test_labels)
    )
    drawn = undersamples(
        train_labels, samples_per_label=samples_per_label, experiments=experiments, seed=seed
    )
    used = np.unique(np.concatenate(drawn))

    def evaluate(embed: Embed) -> Outcome:
        encode = functools.partial(embed, use=Use(name, KIND))
        vectors, test = encode_columns(encode, [train_texts[row] for row in used], test_texts)
        samples = [vectors[np.searchsorted(used, rows)] for rows in drawn]
        predicted = [
            predict_labels(sample, learnt[rows], test, seed=seed)
            for sample, rows in zip(samples, drawn, strict=True)
        ]
        return classification_outcome(gold, np.array(predicted))

    return Task(name, KIND, "texts", [(text,) for text in test_texts], evaluate)


def undersamples(
    labels: Sequence[Any],
    *,
    samples_per_label: int = SAMPLES_PER_LABEL,
    experiments: int = EXPERIMENTS,
    seed: int = SEED,
) -> list[Int[np.ndarray, " S"]]:
    """Draws the examples that each experiment is trained on, those that mteb draws with this seed.

    Each experiment shuffles the order left by the one before, by the same permutation, and takes
    the first examples of each label: `samples_per_label`, or all of a label that has fewer.

    Returns:
        Row numbers, in the order in which they were drawn, for each experiment.
    """
    order, drawn = np.arange(len(labels)), []
    for _ in range(experiments):
        np.random.RandomState(seed).shuffle(order)
        count: Counter[str] = Counter()
        rows = []
        for row in order.tolist():
            count[labels[row]] += 1
            if count[labels[row]] <= samples_per_label:
                rows.append(row)
        drawn.append(np.array(rows))
    return drawn


def predict_labels(
    sample: Float[np.ndarray, "S D"],
    labels: Int[np.ndarray, " S"],
    test: Float[np.ndarray, "N D"],
    *,
    seed: int = SEED,
) -> Int[np.ndarray, " N"]:
    """Predicts labels by a logistic regression trained on a sample, in at most 100 iterations."""
    require("sklearn")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at 100 iterations
        return LogisticRegression(max_iter=100, random_state=seed).fit(sample, labels).predict(test)


def classification_outcome(
    labels: Int[np.ndarray, " N"], predicted: Int[np.ndarray, "E N"]
) -> Outcome:
    """Scores the predictions of E experiments.

    Agrees with mteb's AbsTaskClassification (2.26), whose main score is "accuracy"; its
    "ap_weighted" is "ap". The cross-validation that a few of its tasks ask for is not done here.

    Args:
        labels: the right labels, numbers from 0.
        predicted: the labels predicted by each experiment, numbers from 0.

    Returns:
        The metrics of `prediction_metrics`, and "accuracy_1", "accuracy_2", ..., of each
        experiment. Items are the texts, with the share of experiments that labelled each rightly.
    """
    kinds = int(max(labels.max(), predicted.max())) + 1
    positive = int(labels.max()) if len(np.unique(labels)) == 2 else None

    def metrics(rows: Int[np.ndarray, " N"]) -> dict[str, float]:
        return prediction_metrics(labels[rows], predicted[:, rows], kinds, positive)

    right = predicted == labels
    each = {
        f"accuracy_{number}": float(share) for number, share in enumerate(right.mean(axis=1), 1)
    }
    overall = metrics(np.arange(len(labels)))
    return Outcome(
        "accuracy",
        overall | each,
        metric_intervals(len(labels), metrics),
        Items(right.mean(axis=0)),
    )


def prediction_metrics(
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, "E N"],
    kinds: int,
    positive: int | None = None,
) -> dict[str, float]:
    """Computes accuracy, F1, precision and recall of predicted labels.

    F1, precision and recall are means over labels, and means weighted by the labels' frequencies.

    Args:
        labels: the right labels, numbers from 0 to `kinds` - 1.
        predicted: the labels predicted by each of E experiments.
        kinds: how many labels there are.
        positive: the larger of two labels.

    Returns:
        Means over experiments: "accuracy", "f1", "f1_weighted", "precision", "precision_weighted",
        "recall", "recall_weighted"; with `positive` also "ap", the average precision for it of the
        *predicted labels* as scores, by their order, as mteb has it. Labels only in `predicted`
        count in means over labels, labels in neither do not; what is 0/0 counts 0, but "ap" without
        a positive is nan.
    """
    experiments = len(predicted)

    def counts(of: np.ndarray) -> np.ndarray:
        """Counts how often each experiment predicted each label for the chosen texts."""
        places = predicted + kinds * np.arange(experiments)[:, None]
        return np.bincount(places[of], minlength=experiments * kinds).reshape(experiments, kinds)

    right = predicted == labels
    label_counts, predicted_counts, hits = (
        np.bincount(labels, minlength=kinds),
        counts(np.ones_like(right)),
        counts(right),
    )
    each = {
        "f1": 2 * hits / np.maximum(label_counts + predicted_counts, 1),
        "precision": hits / np.maximum(predicted_counts, 1),
        "recall": hits / np.maximum(label_counts, 1),
    }
    seen = (label_counts > 0) | (predicted_counts > 0)
    metrics = {"accuracy": float(right.mean())}
    for name, values in each.items():
        metrics[name] = float(np.mean((values * seen).sum(axis=1) / seen.sum(axis=1)))
        metrics[f"{name}_weighted"] = float(np.mean(values @ label_counts) / len(labels))
    if positive is not None:
        gained = counts(np.broadcast_to(labels == positive, right.shape))[:, ::-1]
        precision = np.cumsum(gained, axis=1) / np.maximum(
            np.cumsum(predicted_counts[:, ::-1], axis=1), 1
        )
        metrics["ap"] = float(
            np.mean((gained * precision).sum(axis=1)) / (label_counts[positive] or np.nan)
        )
    return metrics


def _sorted(labels: Sequence[str]) -> list[str]:
    """Sorts the different labels, by value if all are whole numbers."""
    numbers = all(parse_whole_number(label) is not None for label in set(labels))
    return sorted(set(labels), key=float if numbers else None)
