"""Shared types of all evaluations: a task with its data, a model as tasks see it, an outcome.

A kind of task is one file with a function `open_task(data, split, *, name, ...options) -> Task`,
and a line in the registry under "task".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError
from embed_jax.evals.metrics import bootstrap, percentile_interval, spearman, spearman_of
from embed_jax.pair_scores import PairScorer
from embed_jax.types import Evaluator

QUERY, DOCUMENT = "query", "document"


@dataclasses.dataclass(frozen=True)
class Use:
    """The purpose of embedding texts; it decides which of a model's prompts stands before them.

    Attributes:
        task: the task's name, such as "SciFact".
        kind: its kind by mteb's name, such as "Retrieval" or "STS".
        side: QUERY or DOCUMENT where a task has the two, else "".
        instruction: for models with a template for instructions; the document side has none.
    """

    task: str = ""
    kind: str = ""
    side: str = ""
    instruction: str = ""


@runtime_checkable
class Embed(Protocol):
    """A model as tasks see it: see `embedder.Embedder` and `embedder.TokenEmbedder`.

    It gives embeddings [N, D], scipy's CSR of this shape, or of late interaction a list with the
    vectors [L, d] of each text's tokens.

    Attributes:
        similarity: "cosine", "dot", "euclidean" or "manhattan", or of late interaction "maxsim" or
            "mean_maxsim": how its embeddings are meant to be compared.
    """

    similarity: str

    def __call__(self, texts: Sequence[str], use: Use) -> Any: ...


def binary_average_precision(
    values: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
) -> float:
    """Computes sum_n (R_n - R_(n-1)) P_n of ranking items by value against labels 0 and 1.

    Equal values are one step, as in scikit-learn's average_precision_score. nan without a 1.
    """
    order = np.argsort(-values, kind="stable")
    values, labels = values[order], labels[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    hits = np.cumsum(labels)[last]
    if not len(hits) or hits[-1] == 0:
        return math.nan
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1])


STATISTICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mean": lambda values, _: float(values.mean()),
    "spearman": spearman,
    "ap": binary_average_precision,
}


@dataclasses.dataclass(frozen=True)
class Items:
    """The parts of a task's main score, item by item.

    Intervals, comparisons and overlap checks work on them.

    Attributes:
        values: of each item (query, pair, text): its own score, or a similarity to compare with
            `gold`.
        gold: what is right, for a statistic of both; None for "mean".
        statistic: one of STATISTICS; the main score is this of all items.
    """

    values: Float[np.ndarray, " N"]
    gold: Float[np.ndarray, " N"] | None = None
    statistic: str = "mean"

    def __len__(self) -> int:
        return len(self.values)

    def score(self, rows: Int[np.ndarray, " M"] | slice = slice(None)) -> float:
        """Computes the statistic of the items with these indices, or of all."""
        values = np.asarray(self.values)[rows]
        return STATISTICS[self.statistic](
            values, values if self.gold is None else np.asarray(self.gold)[rows]
        )

    def resampled(self, resamples: int = 1000, seed: int = 0) -> Float[np.ndarray, " R"]:
        """Computes the score of items drawn with replacement, again and again.

        The draws are the same for the same number of items.
        """
        of: Callable[[np.ndarray], float] = self.score
        if self.statistic == "spearman" and self.gold is not None:
            of = spearman_of(np.asarray(self.values), np.asarray(self.gold))
        return bootstrap(len(self), of, resamples=resamples, seed=seed)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Computes the bootstrap interval of the score, over items."""
        return percentile_interval(self.resampled(), confidence)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A model's scores on a task; scores are fractions, or correlations.

    Attributes:
        main: which of `metrics` stands for the task.
        metrics: by name; nan for what is undefined.
        intervals: 95 % bootstrap intervals over items, by metric; of `main` at least.
        items: what the main score is made of.
        notes: what must be known of these figures: records left out, documents cut.
    """

    main: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    items: Items
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Returns the main score."""
        return self.metrics[self.main]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task on its data, read and checked.

    Attributes:
        name: what it is called in tables and by prompts made for it, such as "SciFact".
        kind: by mteb's name, such as "Retrieval".
        unit: what its items are, in the plural: "pairs", "queries", "texts".
        item_texts: the test texts of each item, in the order of `Outcome.items`: what training must
            not have seen.
        evaluate: scores a model. It embeds each text as `embed(texts, Use(name, kind, ...))`.
        evaluate_pairs: scores a model of pairs, such as `reranker.Reranker`; None: the kind of task
            needs embeddings.
    """

    name: str
    kind: str
    unit: str
    item_texts: Sequence[tuple[str, ...]]
    evaluate: Callable[[Embed], Outcome]
    evaluate_pairs: Callable[[PairScorer], Outcome] | None = None


def mean_outcome(
    main: str,
    per_item: Mapping[str, Float[np.ndarray, " N"]],
    *,
    others: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Makes the outcome of metrics that are means over the same items.

    Args:
        main: one of `per_item`.
        per_item: the values of each item, by metric.
        others: more metrics, which have no interval.
        notes: of the outcome.
    """
    scored = {name: Items(np.asarray(values, np.float64)) for name, values in per_item.items()}
    if not len(scored[main]):
        raise InputError(f"{main}: no items to score")
    metrics = {name: items.score() for name, items in scored.items()} | dict(others or {})
    return Outcome(
        main,
        metrics,
        {name: items.interval() for name, items in scored.items()},
        scored[main],
        tuple(notes),
    )


@dataclasses.dataclass(frozen=True)
class NamedEvaluator:
    """An evaluator for training that knows the names of its metrics before it runs.

    Attributes:
        evaluate: `encode -> {metric: value}`.
        metrics: the names.
    """

    evaluate: Evaluator
    metrics: tuple[str, ...]

    def __call__(self, encode: Callable[..., np.ndarray]) -> Mapping[str, float]:
        return self.evaluate(encode)


def encode_columns(
    encode: Callable[[Sequence[str]], np.ndarray], *columns: Sequence[str]
) -> list[Float[np.ndarray, "_ D"]]:
    """Embeds each column of texts; each distinct text is encoded once.

    Raises:
        InputError: if the embeddings are not one finite vector for each text.
    """
    number = {
        text: i
        for i, text in enumerate(dict.fromkeys(text for column in columns for text in column))
    }
    embeddings = np.asarray(encode(list(number)))
    if embeddings.ndim != 2 or len(embeddings) != len(number):
        raise InputError(
            f"embeddings: expected [{len(number)}, D] for as many texts, found "
            f"{list(embeddings.shape)}"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        text = list(number)[int(np.argmin(finite))]
        raise InputError(
            f"embeddings: expected finite numbers, found others for {(~finite).sum()} texts: "
            f"{text[:40]!r}"
        )
    return [embeddings[[number[text] for text in column]] for column in columns]
