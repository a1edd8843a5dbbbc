"""A cross-encoder as tasks see it: each pair of texts is scored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from embed_jax.data.positives import PairScorer
from embed_jax.errors import InputError


@runtime_checkable
class PairModel(Protocol):
    """A model that gives pairs logits, such as a CrossEncoder."""

    num_labels: int

    def logits(
        self, queries: Sequence[str], passages: Sequence[str], *, batch_tokens: int = 0
    ) -> Float[np.ndarray, "N L"]: ...


class Reranker:
    """Scores pairs of query and passage for tasks, each pair once for all tasks of a run.

    Attributes:
        name: the model's, for tables.
        scored: how many pairs the model was given.
    """

    def __init__(self, name: str, score: PairScorer):
        """Scores nothing yet.

        Args:
            name: the model's, for tables.
            score: `score(queries, passages)` gives the score of each query with the passage at the
                same place, [N]; higher is better.
        """
        self.name, self.scored = name, 0
        self._score = score
        self._scores: dict[tuple[str, str], float] = {}

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Float[np.ndarray, " N"]:
        """Returns the score of each query with the passage at the same place.

        Raises:
            InputError: if the model gives another number of scores than pairs, or a score that is
                not finite; and what `score` raises.
        """
        pairs = list(zip(queries, passages, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        if new:
            scores = np.asarray(self._score(*map(list, zip(*new, strict=True))), np.float64)
            if scores.shape != (len(new),):
                raise InputError(
                    f"{self.name}: expected one score for each of {len(new)} pairs, found the "
                    f"shape {list(scores.shape)}"
                )
            finite = np.isfinite(scores)
            if not finite.all():
                query, passage = new[int(np.argmin(finite))]
                raise InputError(
                    f"{self.name}: scores of {(~finite).sum()} pairs are not finite, such as of "
                    f"{query[:40]!r} and {passage[:40]!r}"
                )
            self._scores.update(zip(new, scores.tolist(), strict=True))
            self.scored += len(new)
        return np.array([self._scores[pair] for pair in pairs], np.float64)

    def describe_work(self) -> str:
        """Returns how many pairs the model was given, in words."""
        return f"{self.scored} pairs scored"


def cross_encoder_reranker(model: PairModel, name: str, *, batch_tokens: int = 0) -> Reranker:
    """Returns the Reranker of a cross-encoder with one label, whose scores are its logits.

    Logits rank as the model's scores do, without their ties: a sigmoid rounds to 1 from a logit of
    17 on.

    Args:
        model: the cross-encoder.
        name: of the model, for tables and messages.
        batch_tokens: see `CrossEncoder.logits`.

    Raises:
        InputError: for a model with several labels.
    """
    check_ranks(model, name)
    return Reranker(
        name,
        lambda queries, passages: model.logits(queries, passages, batch_tokens=batch_tokens)[:, 0],
    )


def check_ranks(model: PairModel, name: str) -> None:
    """Raises an InputError for a cross-encoder with several labels, which cannot rank passages."""
    if model.num_labels != 1:
        raise InputError(
            f"{name}: expected a cross-encoder with one label, which ranks passages, found "
            f"{model.num_labels} labels"
        )
