"""Opens what is searched: indexes of scripts.index with their models, and a reranker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError


def open_stages(
    paths: Sequence[Path],
    names: Sequence[str],
    reranker: str,
    fusion: str,
    models: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """Opens indexes, models and reranker; returns the pipeline and the indexes by name.

    Args:
        paths: of the indexes.
        names: models of the indexes that have one, where they are not those of the index.
        reranker: a model or a score file; "": no reranking.
        fusion: one of FUSIONS.
        models: to share with others, `corpus_index.Models`.

    Raises:
        InputError: an index is of another model, or several have the same name.
    """
    from embed_jax import pipelines
    from embed_jax.corpus_index import Models
    from embed_jax.retrieval.fusion import FUSIONS
    from embed_jax.retrieval.indexes import open_index
    from embed_jax.retrieval.pipeline_spec import ChunkSpec, RetrieverSpec
    from embed_jax.retrieval.search import Pipeline

    models, own_names = models or Models(), iter(names)
    indexes, retrievers, first = {}, {}, None
    for path in paths:
        index = open_index(path)
        stored = dict(index.identity)
        model = (next(own_names, "") or stored.get("name", "")) if stored.get("model") else ""
        chunks = stored.get("chunks")
        spec = RetrieverSpec(
            "exact",
            "model" if model else "",
            stored.get("dim", 0),
            stored.get("query_prompt"),
            stored.get("document_prompt"),
            chunks=ChunkSpec(**chunks) if chunks else None,
        )
        if model:  # another model with the same files is the same
            identity = {**stored, "model": models.digest(model)}
            index = open_index(path, identity)
        if path.name in retrievers:
            raise InputError(f"--index: two have the name {path.name!r}")
        indexes[path.name] = index
        retrievers[path.name] = pipelines.open_retriever(index, spec, model, models)
        first = first or (index, bool(chunks))
    if rest := list(own_names):
        raise InputError(f"--model: no index for {rest[0]}")
    assert first is not None, "parse asks for an index"
    scorer = None
    if reranker:
        scorer = open_scorer(reranker, models)
    texts, select = document_access(*first)
    return Pipeline(retrievers, texts, FUSIONS[fusion], scorer, select=select), indexes


def open_scorer(name: str, models: Any) -> Any:
    """Returns a reranker: a model, or a file of scores that scripts.annotate wrote."""
    from embed_jax import pipelines
    from embed_jax.retrieval.score_store import read_score_file

    if Path(name).is_file():
        return read_score_file(name)
    return pipelines.model_reranker(models.load(name))


def document_access(index: Any, is_cut: bool) -> tuple[Any, Any]:
    """Returns the functions that give texts and filter documents, also of documents in chunks."""
    from embed_jax.retrieval.text_chunks import document_of, join_chunks

    if not is_cut:
        return index.texts, index.select
    members: dict[str, list[str]] = {}
    for chunk in index.ids:
        members.setdefault(document_of(chunk), []).append(chunk)

    def texts(ids: Sequence[str]) -> list[str]:
        return [join_chunks(dict(zip(members[d], index.texts(members[d]), strict=True)))
                for d in ids]  # fmt: skip

    return texts, lambda where: {document_of(chunk) for chunk in index.select(where)}


def stored_texts(pipeline: Any, ids: Sequence[str]) -> list[str | None]:
    """Returns texts, None where the index stores none."""
    try:
        return list(pipeline.texts(ids))
    except InputError:
        return [None] * len(ids)
