"""Pipelines as they are served: only what may be shown, and only while indexes are current."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from embed_jax.corpus_index import SPARSE, TOKENS, kind_of_model
from embed_jax.errors import InputError
from embed_jax.retrieval.fusion import Ranking
from embed_jax.retrieval.search import FUSED, RERANKED, Pipeline, search
from embed_jax.retrieval.text_chunks import SEPARATOR, describe_absent, document_ids
from embed_jax.serve.explanations import (
    Explanation,
    explain_tokens,
    explain_weights,
    explain_words,
    query_weights,
)
from embed_jax.serve.fields import Refused

MOST_RESULTS = 50
Explain = Callable[[str, str, Mapping[str, str]], dict[str, Explanation]]
"""Gets a stage, a query and texts by id."""


class ServedSearch:
    """A pipeline that is served.

    Attributes:
        pipeline: its stages.
        indexes: by the retrievers' names.
        models: of stages that have one, by the stages' names.
        names: of these models.
        allowed: ids of all documents that may be shown.
        stages: names of all stages.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        indexes: Mapping[str, Any],
        *,
        models: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
        allowed: Collection[str] | None = None,
    ):
        """Looks up ids.

        Args:
            pipeline: its stages.
            indexes: by the retrievers' names.
            models: of stages, for explanations.
            names: of these models.
            allowed: ids of documents that may be shown; None: all.

        Raises:
            InputError: an allowed id is in no index.
        """
        self.pipeline, self.indexes = pipeline, indexes
        self.models, self.names = models or {}, names or {}
        self.stages = (*pipeline.retrievers, *([FUSED] if len(pipeline.retrievers) > 1 else []))
        self.stages += (RERANKED,) if pipeline.reranker is not None else ()
        ids = document_ids(indexes.values())
        if allowed is not None and (strangers := describe_absent(allowed, ids)):
            raise InputError(f"allowed ids: {strangers}")
        self.allowed = ids if allowed is None else frozenset(allowed)
        self._is_limited = self.allowed != ids
        self._versions = {name: index.version() for name, index in indexes.items()}
        self._explainers = self._find_explainers()

    def _find_explainers(self) -> dict[str, Explain]:
        explainers: dict[str, Explain] = {}
        for stage, model in self.models.items():
            by_kind = {TOKENS: explain_tokens, SPARSE: explain_weights}
            if (explain := by_kind.get(kind_of_model(model))) is not None:
                explainers[stage] = _bind(explain, model)
        for stage, index in self.indexes.items():
            if index.kind == "bm25":
                explainers[stage] = _bind(explain_words, index)
        return explainers

    def check_current(self) -> None:
        """Raises a Refused if an index was changed since it was opened."""
        for name, index in self.indexes.items():
            if index.version() != self._versions[name]:
                raise Refused(f"the index {name} was changed since it was opened: restart", 409)

    def search(self, rerank: bool, queries: Sequence[str]) -> list[dict[str, Ranking]]:
        """Returns the rankings of each query by stage.

        Args:
            rerank: whether the reranker takes part.
            queries: texts.
        """
        self.check_current()
        pipeline = self.pipeline if rerank else dataclasses.replace(self.pipeline, reranker=None)
        allowed = self.allowed if self._is_limited else None
        stages = search(pipeline, queries, MOST_RESULTS, allowed=allowed).stages
        return [
            {stage: rankings[number] for stage, rankings in stages.items()}
            for number in range(len(queries))
        ]

    def explainers_of(self, stage: str) -> list[str]:
        """Returns the stages whose scores explain those of a stage, its own first.

        Of several searches those by tokens come before those by words.
        """
        several = list(self.pipeline.retrievers) if stage in (FUSED, RERANKED) else []
        several.sort(key=lambda name: name not in self.models)
        return [each for each in (stage, *several) if each in self._explainers]

    def explain(
        self, stage: str, requests: Sequence[tuple[str, Sequence[str]]]
    ) -> list[dict[str, Explanation]]:
        """Explains the scores of documents that a stage could have found.

        Args:
            stage: one of those of `explainers_of`.
            requests: queries, each with ids.

        Returns:
            By id, for each request; {} where the index stores no texts.
        """
        explanations = []
        for query, ids in requests:
            index = self.indexes.get(stage)
            own = [name for name in ids if index is None or name in index]
            texts = self.texts(own)
            present = {name: text for name, text in texts.items() if text is not None}
            explain = self._explainers[stage]
            explanations.append(explain(stage, query, present) if present else {})
        return explanations

    def query_words(self, query: str) -> dict[str, list[tuple[str, float]]]:
        """Returns the words and weights of a query by the stages with a sparse model."""
        sparse = {s: model for s, model in self.models.items() if kind_of_model(model) == SPARSE}
        return {stage: query_weights(model, query) for stage, model in sparse.items()}

    def texts(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Returns texts by id; None where they are not stored."""
        if self.pipeline.texts is None or not ids:
            return dict.fromkeys(ids)
        try:
            return dict(zip(ids, self.pipeline.texts(ids), strict=True))
        except InputError:
            return dict.fromkeys(ids)

    def fields(self, document: str) -> Mapping[str, Any]:
        """Returns the fields of a document."""
        for index in self.indexes.values():
            for name in (document, f"{document}{SEPARATOR}0"):
                if name in index:
                    return index.fields(name)
        return {}


def _bind(explain: Callable[..., dict[str, Explanation]], source: Any) -> Explain:
    """Returns an explainer of a model or an index."""
    return lambda stage, query, texts: explain(stage, source, query, texts)
