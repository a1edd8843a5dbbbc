"""Reranking: are a query's positives nearer to it than its negatives?"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.data.sources.tasks import describe_split, read_reranking
from embed_jax.errors import InputError
from embed_jax.evals.metrics import average_precision, calibration_error, mrr, ndcg
from embed_jax.evals.reranker import Reranker
from embed_jax.evals.task import (
    DOCUMENT,
    QUERY,
    Embed,
    Outcome,
    Task,
    Use,
    encode_columns,
    mean_outcome,
)
from embed_jax.pair_scores import ACTIVATIONS, PairScorer
from embed_jax.registry import unknown
from embed_jax.scores import SIMILARITIES, similarity_matrix

KIND = "Reranking"


def open_task(data: str, split: str = "test", *, name: str = "", similarity: str = "") -> Task:
    """Opens a reranking task by mteb's protocol; the main score is "map".

    It is the mean average precision of each query's own candidates. A candidate's score is its
    similarity with the query, or a cross-encoder's score of the two; of several queries of a record
    the largest, the rule of mteb before version 2, which reads one query for each record. Records
    without a positive or without a negative are left out, with a note, as in mteb.

    Args:
        data: a file, a directory or a data set of the hub; see `read_reranking`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        similarity: one of SIMILARITIES; the model's own if empty.

    Raises:
        InputError: for data that cannot be read, or if no record has positives and negatives.
    """
    if similarity and similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    records = list(zip(*read_reranking(data, split), strict=True))
    usable = [record for record in records if record[1] and record[2]]
    if not usable:
        raise InputError(
            f"{describe_split(data, split)}: expected a record with positives and negatives, found "
            f"none among {len(records)}"
        )
    queries, positives, negatives = zip(*usable, strict=True)
    # A repeated text is scored once: the order of equal texts must not depend on rounding.
    candidates = [
        list(dict.fromkeys([*right, *wrong]))
        for right, wrong in zip(positives, negatives, strict=True)
    ]
    unusable = len(records) - len(usable)
    left_out = f"{unusable} of {len(records)} records left out: no positive or no negative"

    def outcome(scores: Sequence[Mapping[str, float]], *, probabilities: bool = False) -> Outcome:
        sides = (
            [
                np.array([query_scores[text] for text in texts])
                for query_scores, texts in zip(scores, side, strict=True)
            ]
            for side in (positives, negatives)
        )
        notes = [left_out] if unusable else []
        return reranking_outcome(*sides, notes=notes, probabilities=probabilities)

    def evaluate(embed: Embed) -> Outcome:
        query, document = (
            functools.partial(embed, use=Use(name, KIND, side)) for side in (QUERY, DOCUMENT)
        )
        scores = []
        columns = zip(
            candidates,
            encode_columns(query, *queries),
            encode_columns(document, *candidates),
            strict=True,
        )
        for texts, query_vectors, vectors in columns:
            matrix = similarity_matrix(query_vectors, vectors, similarity or embed.similarity)
            scores.append(dict(zip(texts, matrix.max(axis=0).tolist(), strict=True)))
        return outcome(scores)

    def evaluate_pairs(score_pairs: PairScorer) -> Outcome:
        pairs = [
            (number, query, text)
            for number, texts in enumerate(candidates)
            for query in queries[number]
            for text in texts
        ]
        _, firsts, seconds = zip(*pairs, strict=True)
        scores: list[dict[str, float]] = [{} for _ in candidates]
        for (number, _, text), score in zip(
            pairs, score_pairs(firsts, seconds).tolist(), strict=True
        ):
            scores[number][text] = max(score, scores[number].get(text, -math.inf))
        probabilities = isinstance(score_pairs, Reranker) and score_pairs.activation == "sigmoid"
        return outcome(scores, probabilities=probabilities)

    items = [tuple(query) for query in queries]
    return Task(name, KIND, "queries", items, evaluate, evaluate_pairs)


def reranking_outcome(
    positives: Sequence[Float[np.ndarray, " _"]],
    negatives: Sequence[Float[np.ndarray, " _"]],
    *,
    notes: Sequence[str] = (),
    probabilities: bool = False,
) -> Outcome:
    """Computes means over queries of the metrics of each query's candidates, ordered by score.

    Of equal scores those of negatives come first, so that a constant scorer gains nothing; mteb
    does the same, through its documents' names. Scores may be a cross-encoder's.

    Args:
        positives: the scores of each query's positives, higher is better.
        negatives: the scores of each query's negatives.
        notes: of the outcome.
        probabilities: whether the scores are the logits of probabilities.

    Returns:
        Metrics "map": average precision over all candidates, which is mteb's "map_at_1000" (2.26:
        the main score of reranking tasks) for up to 1,000 candidates; "mrr@10"; "ndcg@10". See
        `embed_jax.evals.metrics`. With `probabilities` also "calibration_error", over all
        candidates; see `metrics.calibration_error`.

    Raises:
        InputError: if the lengths differ, a query has no positive or no negative, or a score is not
            finite.
    """
    if len(positives) != len(negatives) or not len(positives):
        raise InputError(
            f"reranking: expected scores for each query, found {len(positives)} and "
            f"{len(negatives)}"
        )
    sizes = [
        (len(relevant), len(other)) for relevant, other in zip(positives, negatives, strict=True)
    ]
    if not np.all(sizes):
        number = next(i for i, size in enumerate(sizes) if not all(size))
        raise InputError(
            f"reranking: expected positives and negatives, found {sizes[number]} for query number "
            f"{number}"
        )
    depth = max(map(sum, sizes))
    gains, ideal = np.zeros((2, len(sizes), depth))
    for row, (relevant, other) in enumerate(zip(positives, negatives, strict=True)):
        scores = np.concatenate([other, relevant])
        if not np.isfinite(scores).all():
            raise InputError(
                f"reranking: expected finite scores, found others for query number {row}"
            )
        gains[row, : len(scores)] = np.argsort(-scores, kind="stable") >= len(other)
        ideal[row, : len(relevant)] = 1
    per_query = {"map": average_precision(gains, ideal, depth)}
    per_query |= {"mrr@10": mrr(gains, ideal, 10), "ndcg@10": ndcg(gains, ideal, 10)}
    others = {}
    if probabilities:
        logits = np.concatenate([*positives, *negatives])
        labels = np.repeat([1.0, 0.0], [sum(map(len, side)) for side in (positives, negatives)])
        others["calibration_error"] = calibration_error(ACTIVATIONS["sigmoid"](logits), labels)
    return mean_outcome("map", per_query, others=others, notes=notes)
