"""Pipelines with their models: indexes are built or opened, and searched by functions of models.

    opened = open_pipeline(read_pipeline("hybrid.yaml"), corpus, "indexes")
    search(opened.pipeline, ["a query"], k=10).results

An index is built once for a corpus and the settings that it depends on. Later the documents that
changed are encoded only. See `retrieval.pipeline_spec` for the files and `retrieval.search` for the
stages.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.corpus_index import (
    TOKENS,
    Models,
    build_options,
    index_documents,
    index_identity,
    index_texts,
    is_late,
    kind_of_model,
    refresh_index,
    side_options,
)
from embed_jax.errors import InputError
from embed_jax.pair_scores import BoundCrossEncoder, PairScorer, check_ranks
from embed_jax.retrieval.document_index import IndexDocument
from embed_jax.retrieval.index_build import ShowProgress, no_progress
from embed_jax.retrieval.indexes import Index, build_index, index_exists, open_index
from embed_jax.retrieval.pipeline_spec import PipelineSpec, RetrieverSpec
from embed_jax.retrieval.search import Pipeline, Retriever, index_retriever
from embed_jax.retrieval.text_chunks import fold_chunks


@dataclasses.dataclass(frozen=True)
class OpenPipeline:
    """A pipeline that can be searched.

    Attributes:
        spec: of which it was made.
        pipeline: its stages.
        indexes: by the retrievers' names.
    """

    spec: PipelineSpec
    pipeline: Pipeline
    indexes: Mapping[str, Index]

    def bytes_per_document(self, documents: int) -> float:
        """Returns the size of the files of all indexes by the number of documents."""
        sizes = (index.size() for index in self.indexes.values())
        return sum(s["bytes per document"] * s["documents"] for s in sizes) / max(documents, 1)


def open_pipeline(
    spec: PipelineSpec,
    corpus: Mapping[str, str],
    folder: str | Path,
    *,
    models: Models | None = None,
    scores: Mapping[str, PairScorer] | None = None,
    progress: ShowProgress = no_progress,
) -> OpenPipeline:
    """Opens a pipeline over a corpus; indexes that the folder lacks are built.

    Args:
        spec: see `read_pipeline`.
        corpus: documents by id.
        folder: of the indexes.
        models: to share between pipelines; None: loaded here.
        scores: rerankers by role that take the place of models, such as `read_score_file` of scores
            that were computed before.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: for a model of another kind than an index needs; see `build_index`.
    """
    models = models or Models()
    indexes, retrievers = {}, {}
    for name, retriever in spec.retrievers.items():
        model = spec.models.get(retriever.model, "")
        try:
            index = _refreshed(retriever, model, corpus, Path(folder), models, progress)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        indexes[name] = index
        retrievers[name] = open_retriever(index, retriever, model, models)
    reranker = None
    if spec.rerank:
        reranker = (scores or {}).get(spec.rerank.model)
        if reranker is None:
            reranker = model_reranker(models.load(spec.models[spec.rerank.model]))
    shortlist = spec.rerank.shortlist if spec.rerank else 100
    pipeline = Pipeline(
        retrievers,
        texts=lambda ids: [corpus[name] for name in ids],
        fusion=spec.fuse(),
        reranker=reranker,
        shortlist=shortlist,
    )
    return OpenPipeline(spec, pipeline, indexes)


def _refreshed(
    spec: RetrieverSpec,
    model: str,
    corpus: Mapping[str, str],
    folder: Path,
    models: Models,
    progress: ShowProgress,
) -> Index:
    """Returns the index of a corpus, built or brought up to date."""
    identity = index_identity(spec, model, models)
    key = json.dumps([identity, spec.kind, dict(spec.build)], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    path = folder / f"{spec.kind}-{digest}"
    texts = index_texts(spec, model, corpus, models)

    def documents(names: Iterable[str]) -> Iterator[IndexDocument]:
        some = {name: texts[name] for name in names}
        return index_documents(spec, model, some, models, corpus=corpus)

    if index_exists(path):
        index = open_index(path, identity)
        refresh_index(index, texts, documents, is_late=is_late(spec))
        return index
    options = build_options(spec, model, models) | {"progress": progress}
    return build_index(path, documents(texts), identity=identity, kind=spec.kind, **options)


def open_retriever(index: Index, spec: RetrieverSpec, model: str, models: Models) -> Retriever:
    """Returns the search in an index by texts."""
    encode: Callable[[Sequence[str]], Any] = list
    if model:
        encode = functools.partial(models.load(model).encode_query, **side_options(spec, "query"))
    retriever = index_retriever(index, encode, **spec.search)
    if spec.chunks is None:
        return retriever
    return fold_chunks(retriever, index.ids, top=spec.chunks.top)


def model_reranker(model: Any) -> PairScorer:
    """Returns a model as a scorer of pairs: a cross-encoder's logits, or MaxSim.

    Raises:
        InputError: for a model that scores no pairs, or has several labels.
    """
    kind = kind_of_model(model)
    if kind == TOKENS:
        return model.score
    if kind != "cross-encoder":
        raise InputError(f"reranker: expected a cross-encoder or a late-interaction model, found a "
                         f"{kind} one")  # fmt: skip
    check_ranks(model, "reranker")
    return BoundCrossEncoder(model)
