"""Steps of building and changing an index on disk: documents are checked, chunks placed, described.

They are the same for all kinds of indexes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from embed_jax.atomic import plain_json
from embed_jax.errors import InputError, first_difference
from embed_jax.retrieval.document_chunks import Chunk, IndexEntry, hash_of
from embed_jax.retrieval.filters import check_metadata
from embed_jax.retrieval.index_state import IndexDocument
from embed_jax.snapshots import Snapshots

FORMAT = "embed-jax index 1"
PARTS = "parts"  # a folder of a snapshot that is being written

ShowProgress = Callable[[str, int], None]
"""Gets a stage, and how many documents passed it since it was called last."""


def no_progress(stage: str, documents: int) -> None:
    """Shows nothing."""


@contextlib.contextmanager
def new_snapshot(snapshots: Snapshots) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Yields the folder of a new snapshot, one for parts of it, and a description to fill in."""
    with snapshots.written() as (folder, description):
        parts = folder / PARTS
        parts.mkdir()
        yield folder, parts, description
        shutil.rmtree(parts)


def place_chunks(chunks: Iterable[Chunk], folder: Path) -> list[Chunk]:
    """Puts chunks into a snapshot, numbered from 0 on."""
    return [chunk.place(folder, number) for number, chunk in enumerate(chunks)]


def describe_index(
    kind: str, identity: Mapping[str, Any], chunks: Sequence[Chunk], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the description of an index.

    "texts" is a hash of all ids and texts, whatever their order; null if a text is not known.
    """
    hashes, texts = hashes_by_id(chunks), hashlib.blake2b(digest_size=16)
    for name in sorted(hashes):
        texts.update(f"{hash_of(name)}{hashes[name]}".encode())
    return {
        "kind": kind,
        "identity": plain_json(dict(identity)),
        "documents": len(hashes),
        "chunks": len(chunks),
        "texts": texts.hexdigest() if all(hashes.values()) else None,
        **details,
    }


def hashes_by_id(chunks: Iterable[Chunk]) -> dict[str, str]:
    """Returns the hashes of the texts by id."""
    return {
        name: text_hash
        for chunk in chunks
        for name, text_hash in zip(chunk.ids, chunk.hashes, strict=True)
    }


def distinct(
    entries: Iterable[IndexEntry], stored: Collection[str], *, is_update: bool = False
) -> Iterator[IndexEntry]:
    """Yields documents, whose ids must be new, or stored for an update, and come once.

    Raises:
        InputError: an id is not as it must be.
    """
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry.id, str):
            raise InputError(f"document {entry.id!r}: expected a string as its id")
        if entry.id in seen:
            raise InputError(f"document {entry.id!r} comes twice")
        if is_update and entry.id not in stored:
            raise InputError(f"document {entry.id!r} is not in the index; add it")
        if not is_update and entry.id in stored:
            raise InputError(f"document {entry.id!r} is in the index already; update it")
        seen.add(entry.id)
        yield entry


def make_entry(
    document: IndexDocument, vectors: Shaped[np.ndarray, "n ..."], store_texts: bool
) -> IndexEntry:
    """Returns a document with its vectors in the form in which they are encoded.

    Raises:
        InputError: for fields that cannot be stored.
    """
    name, own, *rest = document
    text: Any = rest[0] if rest else own if isinstance(own, str) else None
    fields: Any = rest[1] if len(rest) > 1 else {}
    check_metadata(f"document {name!r}", fields)
    text_hash = "" if text is None else hash_of(text)
    return IndexEntry(name, vectors, text_hash, fields, text if store_texts else None)


def counted(chunks: Iterable[Chunk], progress: ShowProgress) -> Iterator[Chunk]:
    """Yields chunks, and reports their documents as compressed."""
    for chunk in chunks:
        progress("compress", len(chunk.ids))
        yield chunk


def check_build(snapshots: Snapshots, replace: bool) -> None:
    """Raises an InputError if there is an index already, which is not to be replaced."""
    if snapshots.exists() and not replace:
        raise InputError(f"{snapshots.path}: holds an index already; replace=True builds it anew")


def check_identity(
    path: str | Path, stored: Mapping[str, Any], identity: Mapping[str, Any] | None
) -> None:
    """Raises an InputError if an index is of embeddings that depend on something else.

    Args:
        path: of the index.
        stored: its identity.
        identity: that of the queries; None: not compared.
    """
    if identity is not None:
        if difference := first_difference(stored, plain_json(dict(identity))):
            raise InputError(f"{path}: of embeddings of another kind: {difference}; build it anew")


def check_counts(**counts: int) -> None:
    """Raises an InputError for an argument below 1."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}: expected 1 or more, found {value}")
