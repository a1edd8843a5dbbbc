"""Pair classification: a threshold on the similarity tells pairs, such as duplicates, from others.

The best threshold is found on the data it is then scored on: accuracy and F1 are upper bounds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from embed_jax.data.sources.tasks import read_labelled_pairs
from embed_jax.errors import InputError
from embed_jax.evals.metrics import metric_intervals
from embed_jax.evals.task import Embed, Items, Outcome, Task, Use, encode_columns
from embed_jax.pair_scores import PairScorer
from embed_jax.scores import SIMILARITIES, pairwise_similarity, unit_length

KIND = "PairClassification"
METRICS = ("accuracy", "f1", "precision", "recall", "ap")


def open_task(data: str, split: str = "test", *, name: str = "") -> Task:
    """Opens a pair classification task by mteb's protocol.

    The main score is the best similarity's average precision, "max_ap".

    Args:
        data: a file, a directory or a data set of the hub; see `read_labelled_pairs`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.

    Raises:
        InputError: for data that cannot be read, or labels that are not 0 and 1, some of each.
    """
    first, second, labels = read_labelled_pairs(data, split)

    def evaluate(embed: Embed) -> Outcome:
        a, b = encode_columns(functools.partial(embed, use=Use(name, KIND)), first, second)
        return pair_outcome(a, b, labels)

    def evaluate_pairs(score_pairs: PairScorer) -> Outcome:
        return score_outcome(score_pairs(first, second), labels)

    items = list(zip(first, second, strict=True))
    return Task(name, KIND, "pairs", items, evaluate, evaluate_pairs)


def similarities_of_pairs(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"]
) -> dict[str, np.ndarray]:
    """Computes each of SIMILARITIES of the pairs, [N].

    The cosine is 1 - |x - y|^2 / 2 of the vectors at length 1, so that a text and itself have
    exactly 1.
    """
    similarities = {name: pairwise_similarity(first, second, name) for name in SIMILARITIES}
    return similarities | {
        "cosine": 1
        - pairwise_similarity(unit_length(first), unit_length(second), "euclidean") ** 2 / 2
    }


def threshold_metrics(
    similarities: Sequence[float] | Num[np.ndarray, " N"],
    labels: Sequence[int] | Int[np.ndarray, " N"],
) -> dict[str, float]:
    """Scores one threshold on the similarity that tells pairs (label 1) from others (label 0).

    Returns:
        "accuracy", the best there is, and "accuracy_threshold"; "f1", the best there is, with
        "precision", "recall" and "f1_threshold"; "ap", the average precision sum_n (R_n - R_(n-1))
        P_n. Thresholds lie halfway between two different similarities next to each other, so pairs
        of one similarity fall on one side, and never all pairs. With one similarity for all pairs
        there is no threshold: 0, at nan.

    Raises:
        InputError: if the lengths differ, a similarity is not finite, or the labels are not both 0
            and 1.
    """
    ranking = _Ranking.of(similarities, labels)
    return ranking.metrics() | ranking.thresholds()


def pair_outcome(
    first: Float[np.ndarray, "N D"],
    second: Float[np.ndarray, "N D"],
    labels: Sequence[int] | Int[np.ndarray, " N"],
) -> Outcome:
    """Computes `threshold_metrics` by each of four similarities, and the best of them.

    Agrees with mteb's AbsTaskPairClassification (2.26), whose usual main score is "max_ap"; mteb
    has no thresholds.

    Args:
        first: embeddings of each pair's first text.
        second: embeddings of each pair's second text.
        labels: 1 for a pair, 0 for any other two texts.

    Returns:
        Metrics "cosine_accuracy", "cosine_accuracy_threshold", "dot_ap", "euclidean_f1" and so on;
        thresholds are those of `similarities_of_pairs`, so of a negated distance; and
        "max_accuracy", "max_f1", "max_precision", "max_recall", "max_ap", each over the four
        similarities by itself. Intervals are of the thresholds found, and of the best similarity
        found. Items are the pairs, with the similarity of the largest "ap".

    Raises:
        InputError: see `threshold_metrics`; or if `first` and `second` have different shapes.
    """
    similarities = similarities_of_pairs(first, second)
    rankings = {name: _Ranking.of(values, labels) for name, values in similarities.items()}

    def of_resample(rows: Int[np.ndarray, " N"]) -> dict[str, float]:
        times = np.bincount(rows, minlength=len(labels))
        return {
            f"{name}_{metric}": value
            for name, ranking in rankings.items()
            for metric, value in ranking.metrics(times).items()
        }

    def best_similarity(metric: str) -> str:
        return max(rankings, key=lambda name: metrics[f"{name}_{metric}"])

    metrics: dict[str, float] = {}
    intervals = metric_intervals(len(labels), of_resample)
    for name, ranking in rankings.items():
        scores = ranking.metrics() | ranking.thresholds()
        metrics |= {f"{name}_{metric}": value for metric, value in scores.items()}
    best = {metric: best_similarity(metric) for metric in METRICS}
    for metric, name in best.items():
        metrics[f"max_{metric}"] = metrics[f"{name}_{metric}"]
        intervals[f"max_{metric}"] = intervals[f"{name}_{metric}"]
    items = Items(similarities[best["ap"]], np.asarray(labels, np.float64), "ap")
    return Outcome("max_ap", metrics, intervals, items)


def score_outcome(scores: Float[np.ndarray, " N"], labels: Sequence[int]) -> Outcome:
    """Computes `threshold_metrics` of a cross-encoder's scores; the main score is "ap".

    Args:
        scores: of each pair, higher for texts that belong together.
        labels: 1 for a pair, 0 for any other two texts.

    Raises:
        InputError: see `threshold_metrics`.
    """
    ranking = _Ranking.of(scores, labels)

    def of_resample(rows: Int[np.ndarray, " N"]) -> dict[str, float]:
        return ranking.metrics(np.bincount(rows, minlength=len(labels)))

    intervals = metric_intervals(len(labels), of_resample)
    items = Items(np.asarray(scores), np.asarray(labels, np.float64), "ap")
    return Outcome("ap", ranking.metrics() | ranking.thresholds(), intervals, items)


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """Pairs by falling similarity, and where among them the best thresholds are.

    Attributes:
        order, labels: the pairs' numbers and their labels, in that order.
        last: the place of the last pair of each similarity.
        between: the thresholds, each between one similarity and the next.
        accuracy, f1: index of the threshold that is best by it; -1: all pairs have one similarity.
    """

    order: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    last: Int[np.ndarray, " S"]
    between: Float[np.ndarray, " S-1"]
    accuracy: int = -1
    f1: int = -1

    @classmethod
    def of(
        cls,
        similarities: Sequence[float] | Num[np.ndarray, " N"],
        labels: Sequence[int] | Int[np.ndarray, " N"],
    ) -> _Ranking:
        """Ranks pairs by similarity and finds the best thresholds."""
        values, binary = np.asarray(similarities, np.float64), _binary(labels, len(similarities))
        if not np.isfinite(values).all():
            raise InputError(
                f"similarities: expected finite numbers, found {(~np.isfinite(values)).sum()} "
                "others"
            )
        order = np.argsort(-values, kind="stable")
        values, binary = values[order], binary[order]
        last = np.flatnonzero(np.append(values[:-1] != values[1:], True))
        ranking = cls(order, binary, last, (values[last[:-1]] + values[last[:-1] + 1]) / 2)
        if len(last) == 1:
            return ranking
        selected, correct = (counts[:-1] for counts in ranking._counts())
        by_accuracy, by_f1 = 2 * correct - selected, correct / (selected + binary.sum())
        return dataclasses.replace(
            ranking, accuracy=int(np.argmax(by_accuracy)), f1=int(np.argmax(by_f1))
        )

    def _counts(self, times: Int[np.ndarray, " N"] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Counts the pairs, and those with label 1, that have at least each similarity [S]."""
        times = np.ones_like(self.labels) if times is None else times[self.order]
        return np.cumsum(times)[self.last], np.cumsum(times * self.labels)[self.last]

    def metrics(self, times: Int[np.ndarray, " N"] | None = None) -> dict[str, float]:
        """Computes METRICS at the best thresholds, of the pairs or of a resample of them.

        In a resample each pair occurs `times` times.
        """
        selected, correct = self._counts(times)
        precision = correct / np.maximum(selected, 1)
        positives = correct[-1] or np.nan
        ap = float(np.diff(correct, prepend=0) @ precision / positives)
        if self.f1 < 0:
            return dict.fromkeys(METRICS, 0.0) | {"ap": ap}
        right = 2 * correct - selected + selected[-1] - correct[-1]
        return {
            "accuracy": float(right[self.accuracy] / selected[-1]),
            "f1": float(2 * correct[self.f1] / (selected[self.f1] + positives)),
            "precision": float(precision[self.f1]),
            "recall": float(correct[self.f1] / positives),
            "ap": ap,
        }

    def thresholds(self) -> dict[str, float]:
        """Returns the best thresholds; nan without one."""
        return {
            f"{metric}_threshold": float(self.between[place]) if place >= 0 else float("nan")
            for metric, place in (("accuracy", self.accuracy), ("f1", self.f1))
        }


def _binary(labels: Sequence[int] | Int[np.ndarray, " N"], n: int) -> Int[np.ndarray, " N"]:
    """Returns the checked labels."""
    values: Num[np.ndarray, " N"] = np.asarray(labels)
    if values.shape != (n,):
        raise InputError(f"pairs: expected a label for each of {n} pairs, found {values.size}")
    kinds = sorted(set(values.tolist()), key=str)
    if len(kinds) != 2 or set(kinds) != {0, 1}:
        raise InputError(f"pairs: expected labels 0 and 1, some of each, found {kinds[:5]}")
    return values.astype(np.int64)
