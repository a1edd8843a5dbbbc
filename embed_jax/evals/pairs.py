"""Pair classification: are two texts a pair (paraphrases, duplicates), judged by one threshold on their similarity?

The best threshold is found on the data it is then scored on: accuracy and F1 are upper bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from embed_jax.errors import InputError
from embed_jax.retrieval.topk import Encode

METRICS = ("accuracy", "f1", "precision", "recall", "ap")


def encode_columns(encode: Encode, *columns: Sequence[str]) -> list[Float[np.ndarray, "_ D"]]:
    """The embeddings of each column of texts; each distinct text is encoded once.

    Raises:
        InputError: if the embeddings are not one finite vector for each text.
    """
    number = {text: i for i, text in enumerate(dict.fromkeys(text for column in columns for text in column))}
    embeddings = np.asarray(encode(list(number)))
    if embeddings.ndim != 2 or len(embeddings) != len(number):
        raise InputError(f"embeddings: expected [{len(number)}, D] for as many texts, found {list(embeddings.shape)}")
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        text = list(number)[int(np.argmin(finite))]
        raise InputError(
            f"embeddings: expected finite numbers, found others for {(~finite).sum()} texts: {text[:40]!r}"
        )
    return [embeddings[[number[text] for text in column]] for column in columns]


def pair_similarities(first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"]) -> dict[str, np.ndarray]:
    """Similarities [N] of the pairs: "cosine", "dot", and "euclidean" and "manhattan", the negated distances.

    The cosine is 1 - |x - y|^2 / 2 of the vectors at length 1, so that a text and itself have exactly 1.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, second)]
    return {
        "cosine": 1 - np.sum((units[0] - units[1]) ** 2, axis=1) / 2,
        "dot": np.sum(first * second, axis=1),
        "euclidean": -np.linalg.norm(first - second, axis=1),
        "manhattan": -np.abs(first - second).sum(axis=1),
    }


def threshold_metrics(similarities: Float[np.ndarray, " N"], labels: Sequence[int]) -> dict[str, float]:
    """How well one threshold on the similarity tells pairs (label 1) from others (label 0).

    Returns:
        "accuracy", the best there is, and "accuracy_threshold"; "f1", the best there is, with "precision", "recall" and
        "f1_threshold"; "ap", the average precision sum_n (R_n - R_(n-1)) P_n. Thresholds lie halfway between two
        different similarities next to each other, so pairs of one similarity fall on one side, and never all pairs.
        With one similarity for all pairs there is no threshold: 0, at nan.

    Raises:
        InputError: if the lengths differ, a similarity is not finite, or the labels are not both 0 and 1.
    """
    similarities, labels = np.asarray(similarities, np.float64), _binary(labels, len(similarities))
    if not np.isfinite(similarities).all():
        raise InputError(f"similarities: expected finite numbers, found {(~np.isfinite(similarities)).sum()} others")
    order = np.argsort(-similarities, kind="stable")
    similarities, labels = similarities[order], labels[order]
    found, correct, positives = np.arange(1, len(labels) + 1), np.cumsum(labels), labels.sum()
    precision, recall = correct / found, correct / positives
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros(len(labels)), where=correct > 0)
    accuracy = (correct + (len(labels) - positives) - (found - correct)) / len(labels)

    last = np.append(similarities[:-1] != similarities[1:], True)  # of the pairs of its similarity
    ap = np.sum(np.diff(recall[last], prepend=0) * precision[last])
    cuts = np.flatnonzero(last[:-1])
    if not len(cuts):
        nothing = dict.fromkeys(METRICS, 0.0) | {"ap": float(ap)}
        return nothing | {"accuracy_threshold": float("nan"), "f1_threshold": float("nan")}
    between = (similarities[cuts] + similarities[cuts + 1]) / 2
    by_accuracy, by_f1 = int(np.argmax(accuracy[cuts])), int(np.argmax(f1[cuts]))
    return {
        "accuracy": float(accuracy[cuts[by_accuracy]]),
        "f1": float(f1[cuts[by_f1]]),
        "precision": float(precision[cuts[by_f1]]),
        "recall": float(recall[cuts[by_f1]]),
        "ap": float(ap),
        "accuracy_threshold": float(between[by_accuracy]),
        "f1_threshold": float(between[by_f1]),
    }


def pair_metrics(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"], labels: Sequence[int]
) -> dict[str, float]:
    """`threshold_metrics` by each of four similarities, and the best of them.

    Agrees with mteb's AbsTaskPairClassification (2.26), whose usual main score is "max_ap"; mteb has no thresholds.

    Args:
        first, second: embeddings of each pair's texts.
        labels: 1 for a pair, 0 for none.

    Returns:
        {"cosine_accuracy": ..., "cosine_accuracy_threshold": ..., "dot_ap": ..., "euclidean_f1": ...}; thresholds are
        those of `pair_similarities`, so of a negated distance; and "max_accuracy", "max_f1", "max_precision",
        "max_recall", "max_ap", each over the four similarities by itself.

    Raises:
        InputError: as `threshold_metrics`, or if `first` and `second` have different shapes.
    """
    if np.shape(first) != np.shape(second):
        raise InputError(f"pairs: expected embeddings of one shape, found {np.shape(first)} and {np.shape(second)}")
    scores = {name: threshold_metrics(values, labels) for name, values in pair_similarities(first, second).items()}
    metrics = {f"{name}_{metric}": value for name, found in scores.items() for metric, value in found.items()}
    return metrics | {f"max_{metric}": max(found[metric] for found in scores.values()) for metric in METRICS}


def evaluate_pairs(
    encode: Encode, sentences1: Sequence[str], sentences2: Sequence[str], labels: Sequence[int]
) -> dict[str, float]:
    """`pair_metrics` of texts; each distinct text is encoded once.

    Raises:
        InputError: if the columns' lengths differ, or as `pair_metrics`.
    """
    if len(sentences1) != len(sentences2):
        raise InputError(f"pairs: expected columns of one length, found {len(sentences1)} and {len(sentences2)} texts")
    _binary(labels, len(sentences1))
    return pair_metrics(*encode_columns(encode, sentences1, sentences2), labels)


def _binary(labels: Sequence[int], n: int) -> Int[np.ndarray, " N"]:
    """The labels, checked."""
    found: Num[np.ndarray, " N"] = np.asarray(labels)
    if found.shape != (n,):
        raise InputError(f"pairs: expected a label for each of {n} pairs, found {found.size}")
    kinds = sorted(set(found.tolist()), key=str)
    if len(kinds) != 2 or set(kinds) != {0, 1}:
        raise InputError(f"pairs: expected labels 0 and 1, some of each, found {kinds[:5]}")
    return found.astype(np.int64)
