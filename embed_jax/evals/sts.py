"""Semantic textual similarity: how well similarities order pairs as people do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence, Sized

import numpy as np
from jaxtyping import Float, Int, Num

from embed_jax.data.sources.sts import open_sts
from embed_jax.errors import InputError
from embed_jax.evals.metrics import (
    bootstrap,
    bootstrap_interval,
    pearson,
    percentile_interval,
    spearman,
    spearman_of,
)
from embed_jax.evals.task import Embed, Items, NamedEvaluator, Outcome, Task, Use, encode_columns
from embed_jax.pair_scores import PairScorer
from embed_jax.registry import unknown
from embed_jax.retrieval.topk import Encode
from embed_jax.scores import SIMILARITIES, pairwise_similarity


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    similarity: str = "cosine",
    scale: str = "0,5",
) -> Task:
    """Opens an STS task by mteb's protocol.

    The main score is Spearman's correlation of the pairs' cosines with the gold scores.

    Args:
        data: a file, a directory or a data set of the hub; see `open_sts`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        similarity: the similarity that "spearman", "pearson" and their means over subsets are of;
            those of the others are called "dot_spearman" and so on.
        scale: lowest and highest possible score.

    Raises:
        InputError: for data that cannot be read, a score outside of the scale, or fewer than two
            pairs.
    """
    if similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    try:
        low, high = map(float, scale.split(","))
    except ValueError:
        raise InputError(
            f"scale: expected lowest and highest score, such as '0,5', found {scale!r}"
        ) from None
    first, second, scores, subsets = open_sts(data, split, scale=(low, high))
    _check_lengths(first, second, scores, subsets)
    gold = np.array(scores)

    def evaluate(embed: Embed) -> Outcome:
        a, b = encode_columns(functools.partial(embed, use=Use(name, "STS")), first, second)
        similarities = {kind: pairwise_similarity(a, b, kind) for kind in SIMILARITIES}
        metrics, items = (
            sts_metrics(similarities[similarity], gold, subsets),
            Items(similarities[similarity], gold, "spearman"),
        )
        for kind in SIMILARITIES:
            if kind != similarity:
                metrics |= {
                    f"{kind}_{metric}": value
                    for metric, value in sts_metrics(similarities[kind], gold).items()
                }
        intervals = _intervals(similarities[similarity], gold, subsets)
        return Outcome("spearman", metrics, intervals, items)

    def evaluate_pairs(score_pairs: PairScorer) -> Outcome:
        values = score_pairs(first, second)
        # Ranks are the same for logits and for scores; Pearson's correlation is not.
        scores = sts_metrics(values, gold, subsets)
        metrics = {name: scores[name] for name in scores if name.startswith("spearman")}
        ranges = _intervals(values, gold, subsets)
        intervals = {name: ranges[name] for name in metrics}
        return Outcome("spearman", metrics, intervals, Items(values, gold, "spearman"))

    items = list(zip(first, second, strict=True))
    return Task(name, "STS", "pairs", items, evaluate, evaluate_pairs)


def cosine_of_pairs(
    encode: Encode, sentences1: Sequence[str], sentences2: Sequence[str]
) -> Float[np.ndarray, " N"]:
    """Computes the cosine similarity of each pair; each distinct text is encoded once.

    A zero vector has cosine 0 with any other.
    """
    first, second = encode_columns(encode, sentences1, sentences2)
    return pairwise_similarity(first, second, "cosine")


def sts_metrics(
    similarities: Num[np.ndarray, " N"],
    scores: Sequence[float] | Num[np.ndarray, " N"],
    subsets: Sequence[str] | None = None,
) -> dict[str, float]:
    """Computes correlations of similarities with gold scores.

    Args:
        similarities: of each pair.
        scores: gold, on any scale.
        subsets: the subset each pair belongs to, if there are several.

    Returns:
        "spearman" and "pearson" over all pairs together: the `all` aggregation of SimCSE (Gao, Yao,
        Chen 2021, appendix B). With several subsets also "spearman_mean" and "pearson_mean", the
        mean over subsets, and "spearman_wmean" and "pearson_wmean", weighted by the subsets' sizes.
        nan where a side is constant.
    """
    similarities, gold = np.asarray(similarities), np.asarray(scores, np.float64)
    correlations = {"spearman": spearman, "pearson": pearson}
    metrics = {name: correlate(similarities, gold) for name, correlate in correlations.items()}
    members = _members(subsets if subsets is not None else [""] * len(gold))
    if len(members) > 1:
        sizes = [len(member) for member in members]
        for name, correlate in correlations.items():
            parts = [correlate(similarities[member], gold[member]) for member in members]
            metrics[f"{name}_mean"] = float(np.mean(parts))
            metrics[f"{name}_wmean"] = float(np.average(parts, weights=sizes))
    return metrics


def sts_evaluator(
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float] | Num[np.ndarray, " N"],
    subsets: Sequence[str] | None = None,
) -> NamedEvaluator:
    """Returns an evaluator for training: `encode -> {"spearman": ..., "pearson": ..., ...}`.

    See `sts_metrics`. Its attribute `metrics` lists the names of its metrics.

    Raises:
        InputError: if the columns' lengths differ or there are fewer than two pairs.
    """
    _check_lengths(sentences1, sentences2, scores, scores if subsets is None else subsets)

    def evaluate(encode: Encode) -> dict[str, float]:
        return sts_metrics(cosine_of_pairs(encode, sentences1, sentences2), scores, subsets)

    names = sts_metrics(np.arange(len(scores), dtype=np.float64), scores, subsets)
    return NamedEvaluator(evaluate, tuple(names))


def _bootstrap_subset(
    statistic: Callable[[Int[np.ndarray, " M"]], float], member: Int[np.ndarray, " M"], seed: int
) -> Float[np.ndarray, " R"]:
    """Computes `bootstrap` of the pairs with the indices `member`."""
    return bootstrap(len(member), lambda rows: statistic(member[rows]), seed=seed)


def _intervals(
    similarities: Float[np.ndarray, " N"], gold: Float[np.ndarray, " N"], subsets: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Computes bootstrap intervals of `sts_metrics`.

    For means over subsets each subset is resampled by itself.
    """
    correlations = {
        "spearman": spearman_of(similarities, gold),
        "pearson": lambda i: pearson(similarities[i], gold[i]),
    }
    members, intervals = _members(subsets), {}
    for name, correlate in correlations.items():
        intervals[name] = bootstrap_interval(len(gold), correlate)
        if len(members) > 1:
            parts = [
                _bootstrap_subset(correlate, member, seed=number)
                for number, member in enumerate(members)
            ]
            intervals[f"{name}_mean"] = percentile_interval(np.mean(parts, axis=0))
            sizes = [len(member) for member in members]
            intervals[f"{name}_wmean"] = percentile_interval(
                np.average(parts, axis=0, weights=sizes)
            )
    return intervals


def _members(subsets: Sequence[str]) -> list[Int[np.ndarray, " M"]]:
    """Returns the indices of each subset's pairs."""
    labels = np.asarray(subsets)
    return [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]


def _check_lengths(*columns: Sized) -> None:
    lengths = {len(column) for column in columns}
    if len(lengths) > 1 or min(lengths) < 2:
        raise InputError(
            f"STS data: expected columns of one length, 2 or more, found lengths {sorted(lengths)}"
        )
