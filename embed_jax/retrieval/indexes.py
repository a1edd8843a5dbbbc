"""One interface to the indexes on disk.

    index = build_index("index", zip(ids, vectors), identity={"model": "..."}, kind="exact")
    index = open_index("index", identity={"model": "..."})
    index.search(queries, k=10, allowed=ids)       # [{id: score}], best first
    index.add(documents), index.update(documents), index.delete(ids)

Every write leaves the old state or the whole new one, whatever ends the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.retrieval.document_index import Changes, IndexDocument
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import FORMAT
from embed_jax.retrieval.lance_index import LanceIndex, build_lance_index
from embed_jax.retrieval.lance_table import lance_exists
from embed_jax.retrieval.multi_vector import MultiVectorIndex, build_multi_vector
from embed_jax.retrieval.sparse_index import SparseIndex, build_sparse_index
from embed_jax.retrieval.vector_index import IVF_PQ, VectorIndex, build_vector_index
from embed_jax.retrieval.word_index import WordIndex, build_word_index
from embed_jax.snapshots import Snapshots, is_address


@runtime_checkable
class Index(Protocol):
    """Documents on disk that can be searched and changed."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __contains__(self, document: str) -> bool: ...

    # The options differ between the kinds.
    @property
    def search(self) -> Callable[..., list[dict[str, float]]]: ...

    def texts(self, ids: Iterable[str]) -> list[str]: ...

    def fields(self, document: str) -> Mapping[str, Any]: ...

    def select(self, where: Filter) -> set[str]: ...

    def add(self, documents: Iterable[IndexDocument]) -> None: ...

    def update(self, documents: Iterable[IndexDocument]) -> None: ...

    def delete(self, ids: Iterable[str]) -> None: ...

    def changes(
        self, texts: Mapping[str, str], fields: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Changes: ...

    def size(self) -> dict[str, float]: ...

    def version(self) -> Hashable: ...


_BUILD: Mapping[str, Callable[..., Index]] = {
    "exact": build_vector_index,
    "int8": functools.partial(build_vector_index, factory="SQ8"),
    "binary": functools.partial(build_vector_index, factory="BFlat"),
    "hnsw": functools.partial(build_vector_index, factory="HNSW32"),
    "ivf-pq": functools.partial(build_vector_index, factory=IVF_PQ, parameters="nprobe=16"),
    "lance": build_lance_index,
    "bm25": build_word_index,
    "sparse": build_sparse_index,
    "multi-vector": build_multi_vector,
}
KINDS = tuple(_BUILD)
_OPEN: Mapping[str, Callable[..., Index]] = {
    VectorIndex.kind: VectorIndex,
    WordIndex.kind: WordIndex,
    SparseIndex.kind: SparseIndex,
    MultiVectorIndex.kind: MultiVectorIndex,
}


def build_index(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any],
    kind: str = "exact",
    **options: Any,
) -> Index:
    """Builds an index of one of the KINDS.

    Args:
        path: a folder, which is created; for "lance" also an address such as "s3://bucket/index".
        documents: (id, embedding), and perhaps text and fields. The embedding is a vector `[D]`;
            for "bm25" the text; for "sparse" a row of scipy's CSR; for "multi-vector" those of the
            tokens, `[n, d]`.
        identity: what the embeddings depend on, as JSON: model, prompts, ...
        kind: "exact"; "int8" and "binary", codes of 8 bits and 1 bit a dimension whose best are
            scored by the vectors; "hnsw" (Malkov and Yashunin 2018) and "ivf-pq" (Jégou et al.
            2011), by FAISS; "lance", a LanceDB table on disk or in an object store; "bm25";
            "sparse"; "multi-vector".
        **options: of `build_vector_index` (another FAISS index: `factory`), `build_lance_index`,
            `build_word_index`, `build_sparse_index` or `build_multi_vector`.

    Raises:
        InputError: for an unknown kind, or an address of another kind than "lance"; see these
            functions.
        RunError: the files can't be written.
    """
    if kind not in _BUILD:
        raise InputError(unknown("kind", kind, KINDS))
    return _BUILD[kind](path, documents, identity=identity, **options)


def index_exists(path: str | Path) -> bool:
    """Tells whether a folder, or an address such as "s3://bucket/index", has a whole index.

    Raises:
        InputError: an address can't be read.
    """
    return lance_exists(path) or not is_address(path) and Snapshots(path, FORMAT).exists()


def open_index(path: str | Path, identity: Mapping[str, Any] | None = None) -> Index:
    """Opens an index of any kind; its large files are mapped, not read.

    Args:
        path: the folder; of a LanceDB index also an address such as "s3://bucket/index".
        identity: what the queries' embeddings depend on; None: not compared with the index's.

    Raises:
        InputError: there is no whole index, it is damaged, or has another identity.
    """
    if is_address(path) or lance_exists(path):
        return LanceIndex(path, identity)
    kind = Snapshots(path, FORMAT).read(lambda description, folder: str(description.get("kind")))
    if kind not in _OPEN:
        raise InputError(f"{path}: {unknown('kind of index', kind, tuple(_OPEN))}")
    return _OPEN[kind](path, identity)
