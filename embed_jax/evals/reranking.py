"""Reranking: are a query's positives nearer to it than its negatives?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.metrics import average_precision, mrr, ndcg
from embed_jax.evals.pairs import encode_columns
from embed_jax.retrieval.topk import Encode, unit_rows


def reranking_metrics(
    positives: Sequence[Float[np.ndarray, " P"]], negatives: Sequence[Float[np.ndarray, " C"]]
) -> dict[str, float]:
    """Means over queries of the metrics of each query's candidates, ordered by score.

    Of equal scores those of negatives come first, so that a constant scorer gains nothing; so has mteb, through its
    documents' names. Scores may be a cross-encoder's.

    Args:
        positives, negatives: the scores of each query's candidates, higher is better.

    Returns:
        "map": average precision over all candidates, which is mteb's "map_at_1000" (2.26: the main score of AskUbuntu,
        reranking tasks) for up to 1,000 candidates; "mrr@10"; "ndcg@10". See `embed_jax.evals.metrics`.

    Raises:
        InputError: if the lengths differ, a query has no positive or no negative, or a score is not finite.
    """
    if len(positives) != len(negatives) or not len(positives):
        raise InputError(f"reranking: expected scores for each query, found {len(positives)} and {len(negatives)}")
    sizes = [(len(relevant), len(other)) for relevant, other in zip(positives, negatives, strict=True)]
    if not np.all(sizes):
        number = next(i for i, size in enumerate(sizes) if not all(size))
        raise InputError(
            f"reranking: expected positives and negatives, found {sizes[number]} for query number {number}"
        )
    depth = max(map(sum, sizes))
    gains, ideal = np.zeros((2, len(sizes), depth))
    for row, (relevant, other) in enumerate(zip(positives, negatives, strict=True)):
        scores = np.concatenate([other, relevant])
        if not np.isfinite(scores).all():
            raise InputError(f"reranking: expected finite scores, found others for query number {row}")
        gains[row, : len(scores)] = np.argsort(-scores, kind="stable") >= len(other)
        ideal[row, : len(relevant)] = 1
    metrics = {"map": average_precision(gains, ideal, depth)}
    metrics |= {"mrr@10": mrr(gains, ideal, 10), "ndcg@10": ndcg(gains, ideal, 10)}
    return {name: float(values.mean()) for name, values in metrics.items()}


def evaluate_reranking(
    encode: Encode,
    queries: Sequence[str | Sequence[str]],
    positives: Sequence[Sequence[str]],
    negatives: Sequence[Sequence[str]],
) -> dict[str, float]:
    """`reranking_metrics` by cosine; each distinct text is encoded once.

    Args:
        queries: one for each record, or several: a candidate's score is then the largest of its cosines with them, the
            rule of mteb before version 2, which reads one query for each record.
        positives, negatives: each record's candidates. A record without either is left out, with a warning, as in mteb.

    Raises:
        InputError: if the columns' lengths differ, a record has no query, or none has positives and negatives.
    """
    lengths = [len(queries), len(positives), len(negatives)]
    if len(set(lengths)) > 1:
        raise InputError(f"reranking: expected columns of one length, found lengths {lengths}")
    asked = [[query] if isinstance(query, str) else list(query) for query in queries]
    if not all(asked):
        raise InputError(f"reranking: expected a query in each record, found none in number {asked.index([])}")
    records = [record for record in zip(asked, positives, negatives, strict=True) if len(record[1]) and len(record[2])]
    if not records:
        raise InputError(f"reranking: expected a record with positives and negatives, found none among {len(queries)}")
    if len(records) < len(queries):
        left_out = len(queries) - len(records)
        warnings.warn(
            f"reranking: {left_out} of {len(queries)} records left out: no positive or no negative", stacklevel=2
        )
    columns = [column for record in records for column in record]
    vectors = [unit_rows(column) for column in encode_columns(encode, *columns)]
    scores = [
        [np.einsum("cd,qd->cq", candidates, query).max(axis=1) for query, candidates in zip(*sides, strict=True)]
        for sides in ((vectors[::3], vectors[1::3]), (vectors[::3], vectors[2::3]))
    ]
    return reranking_metrics(*scores)
