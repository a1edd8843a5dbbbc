"""Summarisation: do people rate a summary by a machine the higher, the nearer it is to one written by a person?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.metrics import pearson, spearman
from embed_jax.evals.pairs import encode_columns
from embed_jax.retrieval.topk import Encode, unit_rows

CORRELATIONS = {"spearman": spearman, "pearson": pearson}


def summarization_metrics(
    human: Sequence[Float[np.ndarray, "H D"]],
    machine: Sequence[Float[np.ndarray, "M D"]],
    relevance: Sequence[Sequence[float]],
) -> dict[str, float]:
    """Correlations, within each text, of ratings with similarities max_h sim(machine summary, human summary h).

    Agrees with mteb's AbsTaskSummarization (2.26), whose main score is "cosine_spearman": the mean over texts.
    Left out, with a warning, are texts all of whose ratings, cosines or dot products are equal. mteb's task SummEval
    averages p-values in with the correlations; SummEvalSummarization.v2 is what this is.

    Args:
        human, machine: the embeddings of each text's summaries.
        relevance: the ratings of each text's machine summaries, on any scale.

    Returns:
        "cosine_spearman", "cosine_pearson", "dot_spearman", "dot_pearson"; nan if the embeddings leave no text.

    Raises:
        InputError: if lengths differ, a text has no human summary, a rating is not finite, or in each text all ratings
            are equal.
    """
    _check([len(one) for one in human], [len(one) for one in machine], relevance)
    correlations: dict[str, list[float]] = {f"{sim}_{name}": [] for sim in ("cosine", "dot") for name in CORRELATIONS}
    left_out = 0
    for written, made, ratings in zip(human, machine, relevance, strict=True):
        nearest = {
            "cosine": _nearest(unit_rows(made), unit_rows(written)),
            "dot": _nearest(np.asarray(made), np.asarray(written)),
        }
        if any(len(set(values)) == 1 for values in (ratings, *(found.tolist() for found in nearest.values()))):
            left_out += 1
            continue
        for similarity, found in nearest.items():
            for name, correlate in CORRELATIONS.items():
                correlations[f"{similarity}_{name}"].append(correlate(np.asarray(ratings), found))
    if left_out:
        warnings.warn(
            f"summarization: {left_out} of {len(human)} texts left out: all ratings or similarities equal", stacklevel=2
        )
    return {name: float(np.mean(values)) if values else math.nan for name, values in correlations.items()}


def evaluate_summarization(
    encode: Encode,
    human_summaries: Sequence[Sequence[str]],
    machine_summaries: Sequence[Sequence[str]],
    relevance: Sequence[Sequence[float]],
) -> dict[str, float]:
    """`summarization_metrics` of texts; each distinct text is encoded once. The summarised texts are not used.

    Raises:
        InputError: as `summarization_metrics`.
    """
    _check([len(one) for one in human_summaries], [len(one) for one in machine_summaries], relevance)
    vectors = encode_columns(encode, *human_summaries, *machine_summaries)
    return summarization_metrics(vectors[: len(human_summaries)], vectors[len(human_summaries) :], relevance)


def _nearest(machine: Float[np.ndarray, "M D"], human: Float[np.ndarray, "H D"]) -> Float[np.ndarray, " M"]:
    return np.einsum("md,hd->mh", machine, human).max(axis=1)


def _check(human: list[int], machine: list[int], relevance: Sequence[Sequence[float]]) -> None:
    """Checks the numbers of summaries of each text, and the ratings."""
    lengths = [len(human), len(machine), len(relevance)]
    if len(set(lengths)) > 1 or not human:
        raise InputError(f"summarization: expected columns of one length, 1 or more, found lengths {lengths}")
    for number, (written, made, ratings) in enumerate(zip(human, machine, relevance, strict=True)):
        if not written or not made or made != len(ratings):
            found = f"{written} human and {made} machine summaries and {len(ratings)} ratings"
            raise InputError(f"summarization: text number {number}: expected a rating for each summary, found {found}")
        if not np.isfinite(np.asarray(ratings, np.float64)).all():
            raise InputError(f"summarization: text number {number}: expected finite ratings, found {list(ratings)}")
    if all(len(set(ratings)) == 1 for ratings in relevance):
        raise InputError(f"summarization: expected different ratings, found one in each of {len(relevance)} texts")
