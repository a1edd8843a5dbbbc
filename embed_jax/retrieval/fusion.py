"""Fusion of several searches' results of one query; of equal scores larger ids come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embed_jax.errors import InputError

Run = dict[str, dict[str, float]]  # query id -> {document id: score}, best first
Ranking = dict[str, float]
"""{document id: score} of one query, best first."""


def reciprocal_rank_fusion(
    results: Sequence[Mapping[str, float]],
    *,
    constant: float = 60.0,
    weights: Sequence[float] | None = None,
) -> Ranking:
    """Fuses results by their ranks, which need no common scale.

    score(d) = sum_i w_i / (constant + rank_i(d)), over the searches i that found d, with ranks from
    1 on (Cormack, Clarke and Buettcher 2009).

    Args:
        results: of each search, best first.
        constant: how little the first ranks stand out.
        weights: of each search; None: 1 each.

    Raises:
        InputError: for other than one weight for each search.

    >>> reciprocal_rank_fusion([{"a": 9.0, "b": 8.0}, {"b": 0.7}], constant=1)
    {'b': 0.8333333333333333, 'a': 0.5}
    """
    fused: Ranking = {}
    for weight, ranking in zip(_weights(results, weights), results, strict=True):
        for rank, document in enumerate(ranking, 1):
            fused[document] = fused.get(document, 0.0) + weight / (constant + rank)
    return sort_results(fused)


def convex_combination(
    results: Sequence[Mapping[str, float]], *, weights: Sequence[float] | None = None
) -> Ranking:
    """Fuses results by their scores, each search's brought to [0, 1] for this query.

    score(d) = sum_i w_i (s_i(d) - min_i) / (max_i - min_i), with minimum and maximum over what
    search i found, and 0 for what it did not find (Bruch, Gai and Ingber 2023). Where all its
    scores are equal, each is 1.

    Args:
        results: of each search, best first.
        weights: of each search; None: equal ones, with the sum 1.

    Raises:
        InputError: for other than one weight for each search.

    >>> convex_combination([{"a": 9.0, "b": 8.0, "c": 7.0}, {"b": 0.7}])
    {'b': 0.75, 'a': 0.5, 'c': 0.0}
    """
    equal = [1 / max(len(results), 1)] * len(results)
    fused: Ranking = {}
    for weight, ranking in zip(_weights(results, weights or equal), results, strict=True):
        low, high = min(ranking.values(), default=0.0), max(ranking.values(), default=0.0)
        for document, score in ranking.items():
            share = (score - low) / (high - low) if high > low else 1.0
            fused[document] = fused.get(document, 0.0) + weight * share
    return sort_results(fused)


FUSIONS = {"rrf": reciprocal_rank_fusion, "convex": convex_combination}


def sort_results(scores: Mapping[str, float], k: int | None = None) -> Ranking:
    """Returns the k best, or all; of equal scores the larger id first, as trec_eval has it."""
    order = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(order[:k])


def _weights(results: Sequence[object], weights: Sequence[float] | None) -> Sequence[float]:
    weights = [1.0] * len(results) if weights is None else weights
    if len(weights) != len(results):
        raise InputError(f"weights: expected one for each of {len(results)} searches, found "
                         f"{len(weights)}")  # fmt: skip
    return weights
