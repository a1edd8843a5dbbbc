"""A cross-encoder as tasks see it: each pair of texts is scored once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.pair_scores import (
    BoundCrossEncoder,
    PairModel,
    PairScorer,
    check_ranks,
    score_pairs,
)


class Reranker:
    """Scores pairs of query and passage for tasks, each pair once for all tasks of a run.

    Attributes:
        name: the model's, for tables.
        scored: how many pairs the model was given.
        activation: computes what the scores stand for: "sigmoid" if they are the logits of
            probabilities, else "identity".
    """

    def __init__(self, name: str, score: PairScorer, activation: str = "identity"):
        """Scores nothing yet.

        Args:
            name: the model's, for tables.
            score: `score(queries, passages)` gives the score of each query with the passage at the
                same place, [N]; higher is better.
            activation: see the attribute.
        """
        self.name, self.scored, self.activation = name, 0, activation
        self._score = score
        self._scores: dict[tuple[str, str], float] = {}

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Float[np.ndarray, " N"]:
        """Returns the score of each query with the passage at the same place.

        Raises:
            InputError, RunError: see `score_pairs`.
        """
        pairs = list(zip(queries, passages, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        scores = score_pairs(self._score, new, self.name)
        self._scores.update(zip(new, scores.tolist(), strict=True))
        self.scored += len(new)
        return np.array([self._scores[pair] for pair in pairs], np.float64)

    def describe_work(self) -> str:
        """Returns how many pairs the model was given, in words."""
        return f"{self.scored} pairs scored"


def cross_encoder_reranker(
    model: PairModel, name: str, *, batch_tokens: int = 0, show_progress: bool = False
) -> Reranker:
    """Returns the Reranker of a cross-encoder with one label, whose scores are its logits.

    Args:
        model: the cross-encoder.
        name: of the model, for tables and messages.
        batch_tokens: see `CrossEncoder.logits`.
        show_progress: whether there is a progress bar.

    Raises:
        InputError: for a model with several labels.
    """
    check_ranks(model, name)
    score = BoundCrossEncoder(model, batch_tokens=batch_tokens, show_progress=show_progress)
    return Reranker(name, score, model.activation)
