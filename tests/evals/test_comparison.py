"""The verdict on a fine-tuned model: adopt it or not, and the reason."""

import numpy as np

from embed_jax.evals.comparison import Comparison
from embed_jax.evals.search import RetrievalResult


def made(queries, documents, before=0.4, after=0.6, unchanged=""):
    names = [f"q{n}" for n in range(queries)]
    scores = {"bm25": 0.3, "before": before, "after": after}
    results = {
        name: RetrievalResult(names, {"ndcg@10": np.full(queries, value)})
        for name, value in scores.items()
    }
    corpus = {f"d{n}": "text" for n in range(documents)}
    judged = {name: {"d0": 1} for name in names}
    return Comparison(
        corpus, dict.fromkeys(names, "text"), judged, {}, results, unchanged=unchanged
    )


def test_a_model_that_is_the_old_one_is_not_adopted():
    reason = "the best step is 0"
    assert made(30, 100, after=0.4, unchanged=reason).verdict() == f"Do not adopt it: {reason}."
