"""Bitext mining: is a sentence's translation its nearest neighbour among all sentences of the other language?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.pairs import encode_columns
from embed_jax.retrieval.topk import Encode, top_k, unit_rows


def bitext_metrics(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "M D"], gold: Sequence[int] | None = None
) -> dict[str, float]:
    """Scores of the nearest neighbours in `second`, by cosine, of each row of `first`; in this direction only.

    Each row c of `second` is a class: with t_c of N sentences that it translates, p_c for which it was found and h_c of
    them rightly, precision is sum_c t_c/N h_c/p_c, recall sum_c h_c/N and F1 sum_c t_c/N 2 h_c / (t_c + p_c), which are
    scikit-learn's weighted averages. Agrees with mteb's AbsTaskBitextMining (2.26), whose main score is "f1". The first
    of equally near neighbours is taken, by mteb any.

    Args:
        first, second: embeddings.
        gold: the row of `second` that translates each row of `first`; the same row if not given.

    Returns:
        "f1", "precision", "recall" and "accuracy", which equals recall.

    Raises:
        InputError: if there is nothing to find, or no row of `second` for a row of `first`.
    """
    gold = _gold(len(first), len(second), gold)
    found = top_k(unit_rows(first), unit_rows(second), 1)[1][:, 0]
    size = len(second)
    translated, predicted = np.bincount(gold, minlength=size), np.bincount(found, minlength=size)
    hits = np.bincount(gold[gold == found], minlength=size)
    weights = translated / len(gold)
    accuracy = float(hits.sum() / len(gold))
    return {
        "f1": float(weights @ (2 * hits / np.maximum(translated + predicted, 1))),
        "precision": float(weights @ (hits / np.maximum(predicted, 1))),
        "recall": accuracy,
        "accuracy": accuracy,
    }


def evaluate_bitext(
    encode: Encode, sentences1: Sequence[str], sentences2: Sequence[str], gold: Sequence[int] | None = None
) -> dict[str, float]:
    """`bitext_metrics` of texts; each distinct text is encoded once.

    Raises:
        InputError: as `bitext_metrics`.
    """
    _gold(len(sentences1), len(sentences2), gold)
    return bitext_metrics(*encode_columns(encode, sentences1, sentences2), gold)


def _gold(first: int, second: int, gold: Sequence[int] | None) -> np.ndarray:
    """The numbers of the translations, checked."""
    if not first or not second:
        raise InputError(f"bitext: expected sentences on both sides, found {first} and {second}")
    if gold is None and first != second:
        raise InputError(f"bitext: expected as many sentences on both sides, or gold, found {first} and {second}")
    rows = np.arange(first) if gold is None else np.asarray(gold)
    if rows.shape != (first,):
        raise InputError(f"bitext: expected gold for each of {first} sentences, found {rows.size}")
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= second:
        bad = next((row for row in rows.tolist() if type(row) is not int or not 0 <= row < second), rows[0])
        raise InputError(f"bitext: expected gold of whole numbers from 0 to {second - 1}, found {bad!r}")
    return rows
