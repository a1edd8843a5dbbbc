"""Semantic textual similarity: how well cosine similarities order pairs as people do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.metrics import pearson, spearman
from embed_jax.retrieval.topk import Encode, unit_rows


def pair_similarities(encode: Encode, sentences1: Sequence[str], sentences2: Sequence[str]) -> Float[np.ndarray, " N"]:
    """Cosine similarity of each pair; each distinct text is encoded once. A zero vector is similar to nothing: 0."""
    number = {text: i for i, text in enumerate(dict.fromkeys([*sentences1, *sentences2]))}
    embeddings = unit_rows(encode(list(number)))
    left, right = ([number[text] for text in side] for side in (sentences1, sentences2))
    return np.einsum("nd,nd->n", embeddings[left], embeddings[right])


def sts_metrics(
    similarities: Float[np.ndarray, " N"], scores: Sequence[float], subsets: Sequence[str] | None = None
) -> dict[str, float]:
    """Correlations of similarities with gold scores.

    Args:
        similarities: of each pair.
        scores: gold, on any scale.
        subsets: the subset each pair belongs to, if there are several.

    Returns:
        "spearman" and "pearson" over all pairs together: the `all` aggregation of SimCSE (Gao, Yao, Chen 2021,
        appendix B). With several subsets also "spearman_mean" and "pearson_mean", the mean over subsets, and
        "spearman_wmean" and "pearson_wmean", weighted by the subsets' sizes. nan where a side is constant.
    """
    similarities, scores = np.asarray(similarities), np.asarray(scores, np.float64)
    correlations = {"spearman": spearman, "pearson": pearson}
    metrics = {name: correlate(similarities, scores) for name, correlate in correlations.items()}
    labels = np.asarray(subsets if subsets is not None else [""] * len(scores))
    members = [labels == label for label in dict.fromkeys(labels.tolist())]
    if len(members) > 1:
        sizes = [member.sum() for member in members]
        for name, correlate in correlations.items():
            parts = [correlate(similarities[member], scores[member]) for member in members]
            metrics[f"{name}_mean"] = float(np.mean(parts))
            metrics[f"{name}_wmean"] = float(np.average(parts, weights=sizes))
    return metrics


def sts_evaluator(
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    subsets: Sequence[str] | None = None,
) -> Callable[[Encode], dict[str, float]]:
    """An evaluator for training: `encode -> {"spearman": ..., "pearson": ..., ...}`, see `sts_metrics`.

    Raises:
        InputError: if the columns' lengths differ or there are fewer than two pairs.
    """
    lengths = {len(sentences1), len(sentences2), len(scores), len(scores if subsets is None else subsets)}
    if len(lengths) > 1 or len(scores) < 2:
        raise InputError(f"STS data: expected columns of one length, 2 or more, found lengths {sorted(lengths)}")

    def evaluate(encode: Encode) -> dict[str, float]:
        return sts_metrics(pair_similarities(encode, sentences1, sentences2), scores, subsets)

    return evaluate
