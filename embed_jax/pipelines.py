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
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError
from embed_jax.pair_scores import BoundCrossEncoder, PairScorer, check_ranks
from embed_jax.retrieval.document_index import IndexDocument, ShowProgress, no_progress
from embed_jax.retrieval.indexes import Index, build_index, open_index
from embed_jax.retrieval.pipeline_spec import ChunkSpec, PipelineSpec, RetrieverSpec
from embed_jax.retrieval.search import Pipeline, Retriever, index_retriever
from embed_jax.retrieval.text_chunks import chunk_corpus, fold_chunks
from embed_jax.snapshots import DESCRIPTION

ENCODED = 4096  # documents whose embeddings are held at a time
DENSE, SPARSE, TOKENS = "dense", "sparse", "multi-vector"  # what models give


class Models:
    """Models by name, each loaded once, with the embeddings of small corpora."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._encoded: dict[tuple[Any, ...], list[Any]] = {}

    def load(self, name: str) -> Any:
        """Loads a model of any kind; see `embed_jax.load_model`."""
        if name not in self._loaded:
            from embed_jax.encoders.hub import resolve
            from embed_jax.loading import load_by_kind

            self._loaded[name] = load_by_kind(_directory(resolve(name)))
        return self._loaded[name]

    def digest(self, name: str) -> str:
        """Returns hex digits of a model's files; see `digest_files`."""
        if name not in self._digests:
            from embed_jax.encoders.hub import digest_files, resolve

            self._digests[name] = digest_files(_directory(resolve(name)))
        return self._digests[name]

    def documents(self, spec: RetrieverSpec, name: str, texts: Mapping[str, str]) -> Iterator[Any]:
        """Yields the embedding of each document; those of a corpus are kept for other indexes.

        The vectors of tokens, for which there is one kind of index, are not kept.
        """
        encode = document_encoder(self.load(name), spec)
        if len(texts) > 16 * ENCODED or spec.kind == TOKENS:
            yield from _in_blocks(encode, texts.values())
            return
        digest = hashlib.blake2b(json.dumps(list(texts.values())).encode()).hexdigest()
        key = (name, spec.dim, spec.document_prompt, digest)
        if key not in self._encoded:
            self._encoded[key] = list(_in_blocks(encode, texts.values()))
        yield from self._encoded[key]


def _directory(path: Path) -> Path:
    """Returns the model of a run's directory, or the directory itself."""
    return path / "model" if (path / "model" / "modules.json").is_file() else path


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
    if (path / DESCRIPTION).is_file():
        return refresh_index(open_index(path, identity), spec, model, texts, models)
    documents = index_documents(spec, model, texts, models)
    options = build_options(spec, model, models) | {"progress": progress}
    return build_index(path, documents, identity=identity, kind=spec.kind, **options)


def refresh_index(
    index: Index, spec: RetrieverSpec, model: str, texts: Mapping[str, str], models: Models
) -> Index:
    """Adds, updates and deletes what differs from a corpus; other documents are not encoded."""
    changes = index.changes(texts)
    for names, write in ((changes.updated, index.update), (changes.added, index.add)):
        if names:
            write(index_documents(spec, model, {name: texts[name] for name in names}, models))
    if changes.deleted:
        index.delete(changes.deleted)
    return index


def index_identity(spec: RetrieverSpec, model: str, models: Models) -> dict[str, Any]:
    """Returns what an index depends on besides its documents: kind, model, prompts, chunks."""
    identity: dict[str, Any] = {
        "kind": spec.kind,
        "chunks": spec.chunks and {"tokens": spec.chunks.tokens, "overlap": spec.chunks.overlap},
    }
    if model:
        identity |= {
            "model": models.digest(model),
            "dim": spec.dim,
            "query_prompt": spec.query_prompt,
            "document_prompt": spec.document_prompt,
        }
    return identity


def index_texts(
    spec: RetrieverSpec, model: str, corpus: Mapping[str, str], models: Models
) -> Mapping[str, str]:
    """Returns the texts of an index by id: the documents, or their chunks."""
    if spec.chunks is None:
        return corpus
    if not model:
        raise InputError("chunks: cut by a model's tokens, and BM25 has no model")
    return cut_corpus(corpus, models.load(model), spec.chunks)


def cut_corpus(corpus: Mapping[str, str], model: Any, chunks: ChunkSpec) -> dict[str, str]:
    """Cuts documents into chunks by a model's tokens; see `chunk_corpus`."""
    backend = model.tokenizer.unlimited

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        return backend.encode(text, add_special_tokens=False).offsets

    return chunk_corpus(corpus, offsets, chunks.tokens, chunks.overlap)


def index_documents(
    spec: RetrieverSpec,
    model: str,
    texts: Mapping[str, str],
    models: Models,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[IndexDocument]:
    """Yields documents as `build_index` takes them."""
    own = fields or {}
    vectors = models.documents(spec, model, texts) if model else texts.values()
    for (name, text), vector in zip(texts.items(), vectors, strict=True):
        yield name, vector, text, own.get(name, {})


def build_options(spec: RetrieverSpec, model: str, models: Models) -> dict[str, Any]:
    """Returns the options of an index' build.

    Raises:
        InputError: for a model of another kind than the index needs.
    """
    options = dict(spec.build)
    if not model:
        return options
    loaded = models.load(model)
    needed = spec.kind if spec.kind in (SPARSE, TOKENS) else DENSE
    if kind_of_model(loaded) != needed:
        raise InputError(
            f"{model}: a {kind_of_model(loaded)} model, an index of kind {spec.kind!r} needs a "
            f"{needed} one"
        )
    if needed == DENSE:
        options.setdefault("similarity", loaded.similarity_fn_name)
    return options


def kind_of_model(model: Any) -> str:
    """Returns DENSE, SPARSE or TOKENS; "cross-encoder" for one that scores pairs."""
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.late_interaction import LateInteractionEncoder
    from embed_jax.sparse import SparseEncoder

    kinds = {SparseEncoder: SPARSE, LateInteractionEncoder: TOKENS, CrossEncoder: "cross-encoder"}
    return next((kind for cls, kind in kinds.items() if isinstance(model, cls)), DENSE)


def open_retriever(index: Index, spec: RetrieverSpec, model: str, models: Models) -> Retriever:
    """Returns the search in an index by texts."""
    encode: Callable[[Sequence[str]], Any] = list
    if model:
        encode = functools.partial(models.load(model).encode_query, **_options(spec, "query"))
    retriever = index_retriever(index, encode, **spec.search)
    if spec.chunks is None:
        return retriever
    return fold_chunks(retriever, index.ids, top=spec.chunks.top)


def document_encoder(model: Any, spec: RetrieverSpec) -> Callable[[Sequence[str]], Any]:
    """Returns the function that embeds documents."""
    return functools.partial(model.encode_document, **_options(spec, "document"))


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


def _options(spec: RetrieverSpec, side: str) -> dict[str, Any]:
    prompt = spec.query_prompt if side == "query" else spec.document_prompt
    options: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    return options | ({"dim": spec.dim} if spec.dim else {})


def _in_blocks(encode: Callable[[Sequence[str]], Any], texts: Iterable[str]) -> Iterator[Any]:
    """Yields the embedding of each text; memory holds those of one block."""
    every = iter(texts)
    while block := list(itertools.islice(every, ENCODED)):
        vectors = encode(block)
        if hasattr(vectors, "tocsr"):
            rows = vectors.tocsr()
            yield from (rows[number : number + 1] for number in range(len(block)))
        else:
            yield from vectors
