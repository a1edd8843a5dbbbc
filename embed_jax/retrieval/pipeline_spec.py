"""Pipelines as plain data, in YAML: what is searched, fused and reranked, and by which models.

    name: hybrid + cross-encoder
    models:
      dense: sentence-transformers/all-MiniLM-L6-v2
      reranker: runs/reranker/model
    retrievers:
      bm25: {kind: bm25}
      dense: {kind: hnsw, model: dense, search: {candidates: 200}}
    fusion: {method: rrf, constant: 60}
    rerank: {model: reranker, shortlist: 100}

The names under `models` are roles: a command can put another path in the place of each, or for the
reranker a file of scores.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.retrieval.fusion import FUSIONS
from embed_jax.retrieval.indexes import KINDS
from embed_jax.retrieval.search import Fusion
from embed_jax.yaml_files import check_keys, make_from_keys, read_yaml

NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)
WORDS_ONLY = ("bm25",)  # kinds of indexes without a model


@dataclasses.dataclass(frozen=True)
class ChunkSpec:
    """The chunks that long documents are cut into; see `text_chunks`.

    Attributes:
        tokens: of a chunk, at most.
        overlap: tokens that chunks share, at most.
        top: how many of a document's best chunks its score is the mean of.
        late: whether a model reads the whole document before its chunks are pooled; see
            `SentenceEncoder.encode_chunks`.
    """

    tokens: int
    overlap: int = 0
    top: int = 1
    late: bool = False


@dataclasses.dataclass(frozen=True)
class RetrieverSpec:
    """A retriever.

    Attributes:
        kind: of the index, one of `indexes.KINDS`.
        model: the role of its model; "" for BM25.
        dim: numbers of an embedding to keep; 0: all.
        query_prompt: put before queries; None: the model's own.
        document_prompt: put before documents; None: the model's own.
        build: options of the index' build.
        search: options of its search.
        chunks: None: documents are not cut.
    """

    kind: str
    model: str = ""
    dim: int = 0
    query_prompt: str | None = None
    document_prompt: str | None = None
    build: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chunks: ChunkSpec | None = None


@dataclasses.dataclass(frozen=True)
class RerankSpec:
    """A reranker.

    Attributes:
        model: the role of a cross-encoder or a late-interaction model.
        shortlist: how many documents it scores.
    """

    model: str
    shortlist: int = 100


@dataclasses.dataclass(frozen=True)
class PipelineSpec:
    """A pipeline; see the module.

    Attributes:
        name: for tables.
        models: names or directories by role.
        retrievers: by name.
        fusion: `method`, one of FUSIONS, and its options.
        rerank: None: no reranking.
    """

    name: str
    models: Mapping[str, str]
    retrievers: Mapping[str, RetrieverSpec]
    fusion: Mapping[str, Any]
    rerank: RerankSpec | None

    def fuse(self) -> Fusion:
        """Returns the function that fuses results."""
        options = {name: value for name, value in self.fusion.items() if name != "method"}
        return functools.partial(FUSIONS[self.fusion["method"]], **options)

    def with_models(self, models: Mapping[str, str]) -> PipelineSpec:
        """Returns the pipeline with other models; roles that it does not have are left out."""
        own = {role: name for role, name in models.items() if role in self.models}
        return dataclasses.replace(self, models={**self.models, **own})


def read_pipeline(path: str | Path) -> PipelineSpec:
    """Reads a pipeline from a YAML file.

    Raises:
        InputError: with file and key: it can't be read, or is not of this form.
    """
    content = read_yaml(path)
    try:
        return parse_pipeline(content, Path(path).stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_pipeline(content: Any, name: str = "pipeline") -> PipelineSpec:
    """Makes a pipeline of plain data.

    Args:
        content: see the module.
        name: for tables, unless it has one.

    Raises:
        InputError: with the key: for another form, an unknown key, kind or role of a model.

    >>> parse_pipeline({"retrievers": {"words": {"kind": "bm25"}}}).retrievers["words"].kind
    'bm25'
    """
    fields = [field.name for field in dataclasses.fields(PipelineSpec)]
    content = check_keys("pipeline", content, fields)
    models = check_keys("models", content.get("models") or {})
    retrievers = {
        _checked_name(key): _retriever(f"retrievers.{key}", value, models)
        for key, value in check_keys("retrievers", content.get("retrievers") or {}).items()
    }
    if not retrievers:
        raise InputError("retrievers: expected one or more, found none")
    fusion = {"method": "rrf"} | dict(check_keys("fusion", content.get("fusion") or {}))
    if fusion["method"] not in FUSIONS:
        raise InputError(f"fusion: {unknown('method', fusion['method'], tuple(FUSIONS))}")
    rerank = None
    if content.get("rerank") is not None:
        rerank = make_from_keys(RerankSpec, "rerank", content["rerank"])
        _check_role("rerank", rerank.model, models)
        _check_least("rerank.shortlist", rerank.shortlist, 1)
    return PipelineSpec(str(content.get("name") or name), models, retrievers, fusion, rerank)


def _retriever(where: str, value: Any, models: Mapping[str, str]) -> RetrieverSpec:
    spec = make_from_keys(RetrieverSpec, where, value)
    if spec.kind not in KINDS:
        raise InputError(f"{where}: {unknown('kind', spec.kind, KINDS)}")
    if spec.kind in WORDS_ONLY and spec.model:
        raise InputError(f"{where}: {spec.kind} has no model, found {spec.model!r}")
    if spec.kind not in WORDS_ONLY:
        _check_role(where, spec.model, models)
    if spec.chunks is not None:
        chunks = make_from_keys(ChunkSpec, f"{where}.chunks", spec.chunks)
        spec = dataclasses.replace(spec, chunks=chunks)
    return spec


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(
            f"retrievers: expected names of letters, digits, '_', '-', '+' and '.', found {name!r}"
        )
    return name


def _check_role(where: str, role: str, models: Mapping[str, str]) -> None:
    if role not in models:
        raise InputError(f"{where}: {unknown('role of a model', role, tuple(models))}")


def _check_least(where: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{where}: expected {least} or more, found {value!r}")
