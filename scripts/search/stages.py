"""Opens what is searched: indexes of scripts.index with their models, and a reranker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError

from ..commands import index_name


def query_models(paths: Sequence[Path | str], names: Sequence[str]) -> dict[str, str]:
    """Returns the name of the model of each index' queries, by the indexes' names; "" for BM25.

    Args:
        paths: of the indexes.
        names: models of those that have one, in their order; the others have the one in their
            files.

    Raises:
        InputError: several indexes have the same name, or fewer have a model than are named.
    """
    from embed_jax.retrieval.indexes import open_index

    own_names, models = iter(names), {}
    for path in paths:
        stored = open_index(path).identity
        name = index_name(path)
        if name in models:
            raise InputError(f"--index: two have the name {name!r}")
        has_model = bool(stored.get("model"))
        models[name] = (next(own_names, "") or stored.get("name", "")) if has_model else ""
    if rest := list(own_names):
        raise InputError(f"--model: no index for {rest[0]}")
    return models


def open_stages(
    paths: Sequence[Path | str],
    names: Sequence[str],
    reranker: str,
    fusion: str,
    models: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """Opens indexes, models and reranker; returns the pipeline and the indexes by name.

    Args:
        paths: of the indexes.
        names: see `query_models`.
        reranker: see `open_scorer`; "": no reranker.
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

    models = models or Models()
    model_of = query_models(paths, names)
    indexes, retrievers, first = {}, {}, None
    for path in paths:
        index = open_index(path)
        stored = dict(index.identity)
        name = index_name(path)
        model = model_of[name]
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
        indexes[name] = index
        retrievers[name] = pipelines.open_retriever(index, spec, model, models)
        first = first or (index, bool(chunks))
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
