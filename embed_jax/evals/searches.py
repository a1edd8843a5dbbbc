"""Searches of one data set by several kinds of models, with how much each stores of a document."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from embed_jax.errors import InputError
from embed_jax.evals.report import Cells, format_score
from embed_jax.evals.retrieval import RetrievalTask
from embed_jax.evals.task import DOCUMENT, Embed, Outcome, Use
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.scores import truncate
from embed_jax.types import SparseRows


class SizedEmbed:
    """A model whose vectors are cut to their first numbers, and which counts those of documents.

    Attributes:
        similarity: that of the model.
        kind: "dense", "sparse" or "tokens", once it has embedded texts.
        size: numbers of a dense vector or of a token's vector before they are cut.
        numbers: how many of the embedded documents are stored; of sparse ones those above 0.
        documents: how many were embedded.
    """

    def __init__(self, embed: Embed, dim: int = 0):
        """Embeds nothing yet.

        Args:
            embed: the model.
            dim: how many numbers of each vector are kept, made length 1 again; 0: all.
        """
        self._embed, self._dim, self.similarity = embed, dim, embed.similarity
        self.kind, self.size, self.numbers, self.documents = "", 0, 0, 0

    def __call__(self, texts: Sequence[str], use: Use) -> Any:
        """Returns the vectors of texts.

        Raises:
            InputError: if sparse vectors are to be cut.
        """
        vectors = self._embed(texts, use)
        if isinstance(vectors, SparseRows):
            if self._dim:
                raise InputError("dim: a sparse embedding has a number for each word, all kept")
            self.kind, numbers = "sparse", vectors.tocsr().count_nonzero()
        elif isinstance(vectors, list):
            vectors = [self._cut(tokens) for tokens in vectors]
            self.kind, numbers = "tokens", sum(tokens.size for tokens in vectors)
        else:
            vectors = self._cut(vectors)
            self.kind, numbers = "dense", vectors.size
        if use.side == DOCUMENT:
            self.numbers, self.documents = self.numbers + int(numbers), self.documents + len(texts)
        return vectors

    def _cut(self, vectors: Any) -> Any:
        self.size = vectors.shape[-1]
        return truncate(vectors, self._dim) if self._dim else vectors


@dataclasses.dataclass(frozen=True)
class SearchScores:
    """The scores of a search.

    Attributes:
        name: of the search, for tables.
        outcome: its metrics and their intervals.
        numbers: that are stored of a document, on average; None: of words, as BM25 does.
        seconds: of embedding and searching. Vectors that the model gave before are not made again.
    """

    name: str
    outcome: Outcome
    numbers: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, without the scores of single queries."""
        return {
            "name": self.name,
            "numbers_per_document": self.numbers,
            "seconds": round(self.seconds, 1),
            "metrics": dict(self.outcome.metrics),
            "intervals": dict(self.outcome.intervals),
        }


def score_bm25(task: RetrievalTask, name: str = "bm25") -> SearchScores:
    """Searches a task by BM25 and scores the results."""
    began = time.perf_counter()
    outcome = task.score(task.search(bm25_search, 0))
    return SearchScores(name, outcome, None, time.perf_counter() - began)


def score_sizes(
    task: RetrievalTask, embed: Embed, name: str, dims: Sequence[int] = ()
) -> list[SearchScores]:
    """Searches a task by a model, by its whole vectors and by the first numbers of dense ones.

    Args:
        task: a task that `retrieval.open_task` or `make_retrieval_task` made.
        embed: the model: see `embedder.Embedder`, or `embedder.TokenEmbedder` for late interaction.
        name: of the model, for tables.
        dims: sizes that dense vectors are cut to; those not below the whole size are left out.

    Returns:
        The scores by size, the smallest first.
    """
    scores: list[SearchScores] = []
    sizes = [0]
    while sizes:
        dim, began = sizes.pop(), time.perf_counter()
        sized = SizedEmbed(embed, dim)
        outcome = task.score(task.search(task.search_by(sized), 0))
        if not dim and sized.kind == "dense":
            sizes = sorted({size for size in dims if size < sized.size})
        numbers = sized.numbers / sized.documents
        label = f"{name}, {dim or sized.size}" if dims and sized.kind == "dense" else name
        scores.append(SearchScores(label, outcome, numbers, time.perf_counter() - began))
    return scores[::-1]


def searches_table(scores: Sequence[SearchScores], metrics: Sequence[str]) -> Cells:
    """Returns a table with a row for each search and a column for each of the metrics.

    Raises:
        InputError: for a metric that was not computed.
    """
    for metric in metrics:
        if metric not in (known := scores[0].outcome.metrics):
            raise InputError(f"metrics: expected some of {', '.join(known)}, found {metric!r}")
    rows = [
        [
            each.name,
            "" if each.numbers is None else f"{each.numbers:,.0f}",
            *(
                format_score(each.outcome.metrics[name], each.outcome.intervals[name])
                for name in metrics
            ),
        ]
        for each in scores
    ]
    return ["search", "numbers per document", *metrics], rows
