"""Scores of pairs of texts: the functions that give them, checks of both, and the ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, RunError
from embed_jax.types import Params

SHOWN = 40  # characters of a text in a message
# Scores each query with the passage at the same position, higher is better.
PairScorer = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, " n"]]
# Compute scores from a cross-encoder's logits; a sigmoid gives probabilities.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda logits: logits,
    "sigmoid": lambda logits: np.exp(-np.logaddexp(0, -logits)),
}


@runtime_checkable
class PairModel(Protocol):
    """A model that gives pairs logits, such as a CrossEncoder."""

    num_labels: int
    activation: str

    def logits(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Float[np.ndarray, "N L"]: ...


@dataclasses.dataclass(frozen=True)
class BoundCrossEncoder:
    """A cross-encoder as a function of pairs of texts.

    Attributes:
        model: the cross-encoder.
        params: its parameters, as while it is trained; None: those that it has.
        batch_tokens: see `CrossEncoder.logits`.
        show_progress: whether there is a progress bar.
    """

    model: PairModel
    params: Params | None = None
    batch_tokens: int = 0
    show_progress: bool = False

    def __call__(
        self, queries: Sequence[str], passages: Sequence[str]
    ) -> Float[np.ndarray, " N"] | Float[np.ndarray, "N L"]:
        """Returns the logits of each query with the passage at the same position.

        Logits rank as the model's scores do, without their ties: a sigmoid rounds to 1 from a logit
        of 17 on.
        """
        logits = self.model.logits(
            queries,
            passages,
            batch_tokens=self.batch_tokens,
            show_progress=self.show_progress,
            params=self.params,
        )
        return logits[:, 0] if self.model.num_labels == 1 else logits


def check_pairs(queries: Sequence[str], passages: Sequence[str], name: str = "passages") -> None:
    """Raises an InputError unless there are two lists of texts of equal length.

    Args:
        queries: the first texts.
        passages: the second texts.
        name: what the caller calls the second texts, for messages.
    """
    if isinstance(queries, str) or isinstance(passages, str):
        raise InputError(f"queries and {name}: expected a list of strings each, found a string")
    if len(queries) != len(passages):
        raise InputError(
            f"expected as many {name} as queries, found {len(passages)} and {len(queries)}"
        )


def check_top_k(top_k: int | None) -> None:
    """Raises an InputError for a negative number of results; None stands for all."""
    if top_k is not None and top_k < 0:
        raise InputError(f"top_k: expected a number from 0, found {top_k}")


def best_first(
    texts: Sequence[str],
    scores: Float[np.ndarray, " N"],
    top_k: int | None = None,
    *,
    by: Float[np.ndarray, " N"] | None = None,
    return_documents: bool = False,
) -> list[dict[str, Any]]:
    """Ranks texts by their scores, in the form of sentence-transformers' `rank`.

    Args:
        texts: what is ranked; of equal scores the earlier is first.
        scores: of each text.
        top_k: return at most this many; None: all of them.
        by: numbers that order the texts where scores tie, such as logits; None: the scores.
        return_documents: whether the texts are returned too.

    Returns:
        The best text first, {"corpus_id": its index in `texts`, "score": a Python float} of each,
        with its "text" if asked for.

    >>> best_first(["a", "b"], np.array([1.0, 2.0]), top_k=1)
    [{'corpus_id': 1, 'score': 2.0}]
    """
    order = np.argsort(-(scores if by is None else by), kind="stable")[:top_k].tolist()
    return [
        {"corpus_id": index, "score": float(scores[index])}
        | ({"text": texts[index]} if return_documents else {})
        for index in order
    ]


def check_ranks(model: PairModel, name: str) -> None:
    """Raises an InputError for a cross-encoder with several labels, which cannot rank passages."""
    if model.num_labels != 1:
        raise InputError(
            f"{name}: expected a cross-encoder with one label, which ranks passages, found "
            f"{model.num_labels} labels"
        )


def score_pairs(
    score: PairScorer, pairs: Sequence[tuple[str, str]], name: str = "score"
) -> Float[np.ndarray, " n"]:
    """Scores pairs of texts in one call, and checks the scores.

    Args:
        score: the scorer; it is not called without a pair.
        pairs: first and second texts, such as queries and passages.
        name: of the scorer, for messages.

    Returns:
        The score of each pair, float64.

    Raises:
        InputError: for other than one score for each pair; and what `score` raises.
        RunError: for a score that is not finite.

    >>> score_pairs(lambda queries, passages: [len(text) for text in passages], [("a", "bcd")])
    array([3.])
    """
    if not pairs:
        return np.zeros(0)
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    scores = np.asarray(score(first, second), np.float64)
    if scores.shape != (len(pairs),):
        hint = ": does the model have several labels?" if scores.ndim == 2 else ""
        raise InputError(
            f"{name}: expected one score for each of {len(pairs)} pairs, found the shape "
            f"{list(scores.shape)}{hint}"
        )
    finite = np.isfinite(scores)
    if not finite.all():
        query, passage = pairs[int(np.argmin(finite))]
        raise RunError(
            f"{name}: no finite score for {query[:SHOWN]!r} and {passage[:SHOWN]!r}, one of "
            f"{(~finite).sum()} such pairs"
        )
    return scores
