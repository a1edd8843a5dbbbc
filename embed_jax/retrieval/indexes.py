"""One interface to the indexes on disk.

    index = build_index("index", zip(ids, vectors), identity={"model": "..."}, kind="exact")
    index = open_index("index", identity={"model": "..."})
    index.search(queries, k=10, allowed=ids)       # [{id: score}], best first
    index.add(documents), index.update(documents), index.delete(ids)

Every write leaves the old state or the whole new one, whatever ends the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.retrieval.document_index import FORMAT, Changes, IndexDocument, IndexVectors
from embed_jax.retrieval.multi_vector import MultiVectorIndex, build_multi_vector
from embed_jax.retrieval.vector_index import VectorIndex, build_vector_index
from embed_jax.snapshots import Snapshots


@runtime_checkable
class Index(Protocol):
    """Documents on disk that can be searched and changed."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __contains__(self, document: str) -> bool: ...

    def search(
        self, queries: Sequence[IndexVectors], k: int, *, allowed: Collection[str] | None = None
    ) -> list[dict[str, float]]: ...

    def add(self, documents: Iterable[IndexDocument]) -> None: ...

    def update(self, documents: Iterable[IndexDocument]) -> None: ...

    def delete(self, ids: Iterable[str]) -> None: ...

    def changes(self, texts: Mapping[str, str]) -> Changes: ...

    def size(self) -> dict[str, float]: ...


_BUILD: Mapping[str, Callable[..., Index]] = {
    "exact": build_vector_index,
    "hnsw": functools.partial(build_vector_index, factory="HNSW32"),
    "multi-vector": build_multi_vector,
}
KINDS = tuple(_BUILD)
_OPEN: Mapping[str, Callable[..., Index]] = {
    VectorIndex.kind: VectorIndex,
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
        path: a folder, which is created.
        documents: (id, embedding) or (id, embedding, text). The embedding is a vector `[D]`, or for
            "multi-vector" those of the tokens, `[n, d]`.
        identity: what the embeddings depend on, as JSON: model, prompts, ...
        kind: "exact"; "hnsw" (Malkov and Yashunin 2018, by FAISS); "multi-vector".
        **options: of `build_vector_index` (another FAISS index: `factory`) or `build_multi_vector`.

    Raises:
        InputError: for an unknown kind; see these two.
        RunError: the files can't be written.
    """
    if kind not in _BUILD:
        raise InputError(unknown("kind", kind, KINDS))
    return _BUILD[kind](path, documents, identity=identity, **options)


def open_index(path: str | Path, identity: Mapping[str, Any] | None = None) -> Index:
    """Opens an index of any kind; its large files are mapped, not read.

    Args:
        path: the folder.
        identity: what the queries' embeddings depend on; None: not compared with the index's.

    Raises:
        InputError: there is no whole index, it is damaged, or has another identity.
    """
    kind = Snapshots(path, FORMAT).read(lambda description, folder: str(description.get("kind")))
    if kind not in _OPEN:
        raise InputError(f"{path}: {unknown('kind of index', kind, tuple(_OPEN))}")
    return _OPEN[kind](path, identity)
