"""Transfer like SentEval's (Conneau and Kiela 2018): logistic regression on frozen embeddings.

Without a split to learn from, texts are cross-validated (MR, CR, SUBJ, MPQA); else a classifier
learns from `train` and is tested on `split` (TREC; SST2 also has a `dev` split, for the strength of
L2). Of a pair (MRPC) the features are |u - v| and u * v, of a text its embedding.

What differs from SentEval:
- The classifier is trained until it converges, as SentEval's without PyTorch. Most published
  figures, those of SimCSE too, are of a linear layer trained by PyTorch until dev accuracy stops to
  rise: by Adam on batches of 64 with 10 folds (SimCSE's "test" mode), or by RMSprop on batches of
  128 with 5 folds ("fasttest").
- Embeddings are scaled first, by one number, so that the strengths of L2 mean the same for all
  lengths of embeddings. They span more than SentEval's, whose `C` is 2^-2 to 2^3, or 2^-1 to 2^5
  over folds of a training split.
- The strength for a fold is chosen by leaving out each other fold in turn, not over new folds
  within the rest, so that each classifier without two folds serves both: half the work.
- The accuracy of cross-validation is over all texts, not the mean over folds, which may differ by
  one text in size.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.sources.files import FORMATS, file_format
from embed_jax.data.sources.tasks import describe_split, read_rows
from embed_jax.errors import InputError, require
from embed_jax.evals.classification import prediction_metrics
from embed_jax.evals.logistic_regression import (
    logistic_regressions,
    predict_by_each,
    rotate_vectors,
    turn_vectors,
)
from embed_jax.evals.metrics import metric_intervals
from embed_jax.evals.task import Embed, Items, Outcome, Task, Use, encode_columns

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
SEED = 1111  # SentEval's

Chosen = tuple[
    Int[np.ndarray, " N"], list[float], float
]  # predictions, strengths, accuracy where they were chosen


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    train: str = "",
    dev: str = "",
    label: str = "label",
    folds: int = 10,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = SEED,
) -> Task:
    """Opens a transfer task whose main score is "accuracy"; see the module.

    Args:
        data: a file, a directory or a data set of the hub; see `read_rows`. Fields are `text`, or
            `sentence1` and `sentence2` for pairs.
        split: the split to classify.
        name: the task's name, in tables and for prompts made for it.
        train: the split to learn from, or a file; empty: cross-validation of `split`.
        dev: the split, or a file, to choose the strength by; empty: it is chosen over folds of
            `train`.
        label: the field of the label, such as "fine_label".
        folds: of cross-validation, stratified.
        strengths: C, the inverse strengths of L2 to choose from, as sklearn's; the first of equally
            good ones.
        seed: of the folds.

    Returns:
        The task; its metrics are those of `prediction_metrics`, and "accuracy_dev", where strengths
        were chosen.

    Raises:
        InputError: for data that cannot be read, a label that no training text has, labels too rare
            for the folds, or impossible options.
    """
    require("sklearn")
    strengths = [float(strength) for strength in strengths]
    if folds < 3 or min(strengths, default=0) <= 0:
        raise InputError(
            f"transfer: expected 3 folds or more and strengths above 0, found {folds} and "
            f"{strengths}"
        )
    if dev and not train:
        raise InputError(f"transfer: expected the option train beside dev, found only {dev!r}")
    places, learnt = _places(data, split, train, dev), "train" if train else "test"
    texts, labels = _read(places, label, learnt, 1 if dev else folds)
    kind, unit = (
        ("Classification", "texts")
        if len(texts["test"][0]) == 1
        else ("PairClassification", "pairs")
    )

    def evaluate(embed: Embed) -> Outcome:
        columns = [column for part in texts.values() for column in zip(*part, strict=True)]
        encoded = iter(encode_columns(functools.partial(embed, use=Use(name, kind)), *columns))
        vectors = _features(
            {part: [next(encoded) for _ in items[0]] for part, items in texts.items()}, learnt
        )
        if train:
            predicted, chosen, accuracy = train_and_test(vectors, labels, folds, strengths, seed)
        else:
            predicted, chosen, accuracy = cross_validate(
                vectors["test"], labels["test"], folds, strengths, seed
            )

        def metrics(rows: Int[np.ndarray, " M"]) -> dict[str, float]:
            return prediction_metrics(
                labels["test"][rows], predicted[None, rows], int(labels[learnt].max()) + 1
            )

        times = ", ".join(
            f"{strength:g} ({count} x)" for strength, count in sorted(Counter(chosen).items())
        )
        return Outcome(
            "accuracy",
            metrics(np.arange(len(predicted))) | {"accuracy_dev": accuracy},
            metric_intervals(len(predicted), metrics),
            Items((predicted == labels["test"]).astype(np.float64)),
            (f"C chosen: {times}",),
        )

    return Task(name, kind, unit, texts["test"], evaluate)


def cross_validate(
    vectors: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    folds: int = 10,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = SEED,
) -> Chosen:
    """Predicts each fold by a classifier trained on the other folds.

    Its strength is chosen on the other folds too.

    Args:
        vectors: features of the texts.
        labels: numbers from 0 up.
        folds: of cross-validation, stratified.
        strengths: C, the inverse strengths of L2 to choose from.
        seed: of the folds.

    Returns:
        The predicted label of each row, the strength chosen for each fold, and the mean accuracy of
        these on the folds left out to choose them.
    """
    fold, rotated = _folds(labels, folds, seed), rotate_vectors(vectors)
    pairs = list(itertools.combinations(range(folds), 2))
    included = np.stack([(fold != first) & (fold != second) for first, second in pairs], axis=1)
    accuracy = np.zeros(
        (len(strengths), folds, folds)
    )  # [s, i, j]: on fold j without the folds i and j
    weights = None
    for number, strength in enumerate(strengths):
        weights = logistic_regressions(rotated, labels, included, [strength] * len(pairs), weights)
        right = predict_by_each(weights, rotated.vectors) == labels[:, None]
        for model, (first, second) in enumerate(pairs):
            accuracy[number, first, second] = right[fold == second, model].mean()
            accuracy[number, second, first] = right[fold == first, model].mean()
    means = accuracy.sum(axis=2) / (folds - 1)
    best = means.argmax(axis=0)
    chosen = [strengths[number] for number in best]
    weights = logistic_regressions(rotated, labels, fold[:, None] != np.arange(folds), chosen)
    predicted = np.take_along_axis(
        predict_by_each(weights, rotated.vectors), fold[:, None], axis=1
    )[:, 0]
    return predicted, chosen, float(means.max(axis=0).mean())


def train_and_test(
    vectors: dict[str, Float[np.ndarray, "_ D"]],
    labels: dict[str, Int[np.ndarray, " _"]],
    folds: int = 10,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = SEED,
) -> Chosen:
    """Predicts "test" by a classifier trained on "train".

    Its strength is chosen on "dev", or without it over folds of "train".

    Args:
        vectors: features of the texts, by split.
        labels: numbers from 0 up, by split.
        folds: of cross-validation, stratified.
        strengths: C, the inverse strengths of L2 to choose from.
        seed: of the folds.

    Returns:
        See `cross_validate`, with one strength.
    """
    rotated, gold = rotate_vectors(vectors["train"]), labels["train"]
    everything = np.ones((len(gold), 1), bool)
    if "dev" in vectors:
        included, scored, answers = everything, turn_vectors(rotated, vectors["dev"]), labels["dev"]
        parts = [slice(None)]
    else:
        fold = _folds(gold, folds, seed)
        included, scored, answers = fold[:, None] != np.arange(folds), rotated.vectors, gold
        parts = [fold == number for number in range(folds)]
    accuracy, weights = [], None
    for strength in strengths:
        weights = logistic_regressions(rotated, gold, included, [strength] * len(parts), weights)
        right = predict_by_each(weights, scored) == answers[:, None]
        accuracy.append(
            float(np.mean([right[part, model].mean() for model, part in enumerate(parts)]))
        )
    best = int(np.argmax(accuracy))
    weights = logistic_regressions(rotated, gold, everything, [strengths[best]])
    return (
        predict_by_each(weights, turn_vectors(rotated, vectors["test"]))[:, 0],
        [strengths[best]],
        accuracy[best],
    )


def _features(
    columns: dict[str, list[Float[np.ndarray, "_ D"]]], learnt: str
) -> dict[str, Float[np.ndarray, "_ F"]]:
    """Computes the features by split: embeddings, or |u - v| and u * v.

    Embeddings are scaled first, so that the mean variance of those that are learnt from is 1.
    """
    train = np.concatenate(columns[learnt]).astype(np.float64)
    scale = np.sqrt(np.mean(np.square(train - train.mean(axis=0)))) or 1.0

    def features(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        return (
            first
            if second is None
            else np.concatenate([np.abs(first - second), first * second], axis=1)
        )

    return {
        part: features(*(column.astype(np.float64) / scale for column in sides))
        for part, sides in columns.items()
    }


def _folds(labels: Int[np.ndarray, " N"], folds: int, seed: int) -> Int[np.ndarray, " N"]:
    """Returns the fold of each row: those of sklearn's StratifiedKFold, shuffled."""
    from sklearn.model_selection import StratifiedKFold

    fold = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        made = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
        for number, (_, rows) in enumerate(made):
            fold[rows] = number
    return fold


def _places(data: str, split: str, train: str, dev: str) -> dict[str, tuple[str, str]]:
    """Returns (data, split) of "test", and of "train" and "dev" if they are given."""
    places = {"test": (data, split)}
    for part, source in (("train", train), ("dev", dev)):
        if file_format(Path(source)) in FORMATS:
            places[part] = source, split
        elif source and Path(data).is_file():
            raise InputError(
                f"{data}: a file has no split {source!r}: expected a directory, or a file as {part}"
            )
        elif source:
            places[part] = data, source
    return places


def _read(
    places: dict[str, tuple[str, str]], label: str, learnt: str, folds: int
) -> tuple[dict[str, list[tuple[str, ...]]], dict[str, Int[np.ndarray, " _"]]]:
    """Reads texts, or pairs, and the numbers of their labels, by split.

    Two labels or more are in each fold of `learnt`.
    """
    texts, labels = {}, {}
    for part, where in places.items():
        rows = read_rows(*where)
        fields = ("text",) if "text" in rows[0].fields else ("sentence1", "sentence2")
        texts[part] = [tuple(row.text(field) for field in fields) for row in rows]
        if not any(text.strip() for item in texts[part] for text in item):
            raise InputError(f"{describe_split(*where)}: all of {len(rows)} texts are empty")
        labels[part] = [row.label(label) for row in rows]
        if len(fields) != len(texts["test"][0]):
            raise InputError(
                f"{rows[0].where}: expected the fields of {describe_split(*places['test'])}, texts "
                "or pairs"
            )
    counts = Counter(labels[learnt]).most_common()
    if len(counts) < 2 or counts[1][1] < folds:
        few = ", ".join(f"{kind!r} ({count} x)" for kind, count in counts[:5])
        raise InputError(
            f"{describe_split(*places[learnt])}: expected two labels with {folds} texts or more, "
            f"found {few}"
        )
    names = sorted(dict(counts))
    for part, kinds in labels.items():
        unknown = sorted(set(kinds).difference(names))
        if unknown:
            few = ", ".join(map(repr, unknown[:5]))
            raise InputError(
                f"{describe_split(*places[part])}: {len(unknown)} labels that no training text "
                f"has: {few}"
            )
    return texts, {part: np.searchsorted(names, kinds) for part, kinds in labels.items()}
