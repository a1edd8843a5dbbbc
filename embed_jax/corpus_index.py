"""An index of a corpus by a model: its texts or chunks, their embeddings, and their changes.

    models = Models()
    texts = index_texts(spec, "a model", corpus, models)
    documents = index_documents(spec, "a model", texts, models)
    build_index("index", documents, identity=index_identity(spec, "a model", models))

`spec` is a `pipeline_spec.RetrieverSpec`. See `pipelines` for what is searched with them.
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
from embed_jax.retrieval.document_index import Changes, IndexDocument
from embed_jax.retrieval.indexes import Index
from embed_jax.retrieval.pipeline_spec import ChunkSpec, RetrieverSpec
from embed_jax.retrieval.text_chunks import (
    SEPARATOR,
    TokenOffsets,
    chunk_corpus,
    chunk_spans,
    document_of,
)

ENCODED = 4096  # documents whose embeddings are held at a time
LATE_ENCODED = 256  # documents whose chunks are encoded at a time
DENSE, SPARSE, TOKENS = "dense", "sparse", "multi-vector"  # what models give


class Models:
    """Models by name, each loaded once, with the embeddings of small corpora.

    Attributes:
        compute_dtype: "float32" or "bfloat16", of the models' layers.
    """

    def __init__(self, compute_dtype: str = "float32") -> None:
        self.compute_dtype = compute_dtype
        self._loaded: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._encoded: dict[tuple[Any, ...], list[Any]] = {}

    def load(self, name: str) -> Any:
        """Loads a model of any kind; see `embed_jax.load_model`."""
        if name not in self._loaded:
            from embed_jax.encoders.hub import resolve
            from embed_jax.loading import load_by_kind

            self._loaded[name] = load_by_kind(
                _directory(resolve(name)), compute_dtype=self.compute_dtype
            )
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


def is_late(spec: RetrieverSpec) -> bool:
    """Tells whether a retriever's chunks are pooled of whole documents."""
    return spec.chunks is not None and spec.chunks.late


def refresh_index(
    index: Index,
    texts: Mapping[str, str],
    documents: Callable[[Sequence[str]], Iterable[IndexDocument]],
    *,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    is_late: bool = False,
) -> Changes:
    """Adds, updates and deletes what differs from a corpus; other documents are not encoded.

    Args:
        index: the index.
        texts: of all documents, or their chunks, by id.
        documents: returns what `build_index` takes, of ids.
        fields: see `DocumentIndex.changes`.
        is_late: whether a chunk's vector depends on the whole document.

    Returns:
        The ids of what has changed.
    """
    changes = index.changes(texts, fields)
    if is_late:
        changes = change_whole_documents(changes, texts)
    for names, write in ((changes.updated, index.update), (changes.added, index.add)):
        if names:
            write(documents(names))
    if changes.deleted:
        index.delete(changes.deleted)
    return changes


def change_whole_documents(changes: Changes, chunks: Iterable[str]) -> Changes:
    """Returns changes with all chunks of every document of which one has changed.

    >>> change_whole_documents(Changes([], ["a#0"], ["b#2"]), ["a#0", "a#1", "b#0", "c#0"]).updated
    ['a#0', 'a#1', 'b#0']
    """
    new = set(changes.added)
    changed = {document_of(name) for name in (*new, *changes.updated, *changes.deleted)}
    updated = [name for name in chunks if name not in new and document_of(name) in changed]
    return dataclasses.replace(changes, updated=updated)


def index_identity(spec: RetrieverSpec, model: str, models: Models) -> dict[str, Any]:
    """Returns what an index depends on besides its documents: kind, model, prompts, chunks."""
    identity: dict[str, Any] = {
        "kind": spec.kind,
        "chunks": spec.chunks and {"tokens": spec.chunks.tokens, "overlap": spec.chunks.overlap},
    }
    if is_late(spec):
        identity["chunks"] |= {"late": True}
    if model:
        identity |= {
            "model": models.digest(model),
            "dim": spec.dim,
            "query_prompt": spec.query_prompt,
            "document_prompt": spec.document_prompt,
        }
        if models.compute_dtype != "float32":
            identity["compute_dtype"] = models.compute_dtype
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
    return chunk_corpus(corpus, token_offsets(model), chunks.tokens, chunks.overlap)


def token_offsets(model: Any) -> TokenOffsets:
    """Returns a function that says where the tokens of a text begin and end."""
    backend = model.tokenizer.unlimited
    return lambda text: backend.encode(text, add_special_tokens=False).offsets


def late_vectors(
    spec: RetrieverSpec, model: Any, chunks: Iterable[str], corpus: Mapping[str, str]
) -> Iterator[Any]:
    """Yields the vectors of chunks by late chunking; see `SentenceEncoder.encode_chunks`.

    Args:
        spec: how documents are cut, and their prompt.
        model: the model.
        chunks: ids.
        corpus: whole documents.

    Raises:
        InputError: for a model that has no token states to pool.
    """
    if not hasattr(model, "encode_chunks"):
        raise InputError("late chunks: expected a dense model of one encoder, which pools tokens")
    assert spec.chunks is not None, "called for chunks only"
    offsets, cut = token_offsets(model), (spec.chunks.tokens, spec.chunks.overlap)
    encode = functools.partial(model.encode_chunks, **side_options(spec, "document"))
    groups = itertools.groupby(chunks, key=document_of)
    members = ((name, list(own)) for name, own in groups)
    while block := list(itertools.islice(members, LATE_ENCODED)):
        texts = [corpus[name] for name, _ in block]
        spans = [chunk_spans(text, offsets(text), *cut) for text in texts]
        for (_, own), vectors in zip(block, encode(texts, spans), strict=True):
            yield from (vectors[int(chunk.rpartition(SEPARATOR)[2])] for chunk in own)


def index_documents(
    spec: RetrieverSpec,
    model: str,
    texts: Mapping[str, str],
    models: Models,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    corpus: Mapping[str, str] | None = None,
) -> Iterator[IndexDocument]:
    """Yields documents as `build_index` takes them.

    Args:
        spec: how they are encoded.
        model: the name of the model; "" for BM25.
        texts: of the documents, or their chunks, by id.
        models: loaded ones.
        fields: by id.
        corpus: the whole documents that chunks are parts of, for late chunking.
    """
    own = fields or {}
    vectors: Iterable[Any] = texts.values()
    if model and is_late(spec):
        vectors = late_vectors(spec, models.load(model), texts, corpus or {})
    elif model:
        vectors = models.documents(spec, model, texts)
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


def document_encoder(model: Any, spec: RetrieverSpec) -> Callable[[Sequence[str]], Any]:
    """Returns the function that embeds documents."""
    return functools.partial(model.encode_document, **side_options(spec, "document"))


def side_options(spec: RetrieverSpec, side: str) -> dict[str, Any]:
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
