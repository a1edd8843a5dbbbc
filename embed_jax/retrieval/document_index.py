"""An index of documents on disk: what the indexes of one vector and of many a document share.

A subclass says how documents are encoded and searched. Adding, replacing and removing them, their
ids, what the index was made of and the comparison with a corpus are here.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embed_jax.atomic import plain_json
from embed_jax.errors import InputError, first_difference
from embed_jax.retrieval.document_chunks import (
    TEXT_FILES,
    Chunk,
    IndexEntry,
    hash_of,
    merge_small,
)
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import (
    FORMAT,
    ShowProgress,
    check_build,
    check_identity,
    counted,
    describe_index,
    distinct,
    hashes_by_id,
    new_snapshot,
    no_progress,
    place_chunks,
)
from embed_jax.retrieval.index_state import IndexDocument, IndexState, IndexVectors
from embed_jax.snapshots import Snapshots

__all__ = ["Changes", "DocumentIndex", "IndexDocument", "IndexState", "IndexVectors"]


@dataclasses.dataclass(frozen=True)
class Changes:
    """The ids in which a corpus differs from an index."""

    added: Sequence[str]
    updated: Sequence[str]
    deleted: Sequence[str]


class DocumentIndex(abc.ABC):
    """An index that is open.

    It stays at the state in which it was opened, or which it wrote itself: of what another process
    writes it sees nothing until it is opened again, or writes.

    Attributes:
        path: the folder.
        kind: of the index, in its description.
    """

    kind: str

    def __init__(self, path: str | Path, identity: Mapping[str, Any] | None = None):
        """Opens the index; see `open_index`."""
        self.path, self._snapshots = Path(path), Snapshots(path, FORMAT)
        self._state = self._snapshots.read(self._load)
        check_identity(path, self.identity, identity)

    @classmethod
    @abc.abstractmethod
    def load(cls, description: Mapping[str, Any], folder: Path) -> Any:
        """Opens a snapshot; returns an `IndexState`."""

    @classmethod
    @abc.abstractmethod
    def checked(cls, documents: Iterable[IndexDocument], state: Any) -> Iterator[IndexEntry]:
        """Yields documents in the form in which they are encoded."""

    @classmethod
    @abc.abstractmethod
    def encoded(
        cls, entries: Iterable[IndexEntry], state: Any, folder: Path, numbers: Iterator[int]
    ) -> Iterator[Chunk]:
        """Encodes documents in chunks; see `encode_chunks`."""

    @classmethod
    @abc.abstractmethod
    def finish(cls, folder: Path, chunks: Sequence[Chunk], state: Any) -> Mapping[str, Any]:
        """Writes what a snapshot has besides its chunks; returns the details of its description."""

    @property
    @abc.abstractmethod
    def chunk_limit(self) -> int:
        """Returns the vectors of a chunk, at most."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Returns what the embeddings depend on."""
        return self._state.description["identity"]

    @property
    def ids(self) -> Sequence[str]:
        """Returns the ids of all documents."""
        return self._state.ids

    def texts(self, ids: Iterable[str]) -> list[str]:
        """Returns the stored texts of documents.

        Raises:
            InputError: a document is not in the index, or the index stores no texts.
        """
        if not self._state.description.get("stores_texts"):
            raise InputError(f"{self.path}: stores no texts; build it with store_texts=True")
        names = list(ids)
        for name in names:
            if name not in self:
                raise InputError(f"{self.path}: no document {name!r}")
        return [self._state.text(name) for name in names]

    def fields(self, document: str) -> Mapping[str, Any]:
        """Returns the fields of a document.

        Raises:
            InputError: the document is not in the index.
        """
        if document not in self:
            raise InputError(f"{self.path}: no document {document!r}")
        return self._state.fields[self._state.positions[document]]

    def select(self, where: Filter) -> set[str]:
        """Returns the ids of the documents that a filter selects; see `filters`.

        Raises:
            InputError: for a filter on a field that no document has.
        """
        mask = self._state.mask(None, where)
        return set(self.ids if mask is None else itertools.compress(self.ids, mask))

    def __len__(self) -> int:
        return len(self._state.ids)

    def __contains__(self, document: str) -> bool:
        return document in self._state.positions

    def add(
        self, documents: Iterable[IndexDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Adds documents, all of them or none.

        Raises:
            InputError: an id is in the index already, or comes twice; a vector cannot be used.
            RunError: the files can't be written.
        """
        self._write(documents, (), progress, is_update=False)

    def update(
        self, documents: Iterable[IndexDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Replaces documents by others with their ids, all of them or none.

        Raises:
            InputError: an id is not in the index, or comes twice; a vector cannot be used.
            RunError: the files can't be written.
        """
        self._write(documents, (), progress, is_update=True)

    def delete(self, ids: Iterable[str]) -> None:
        """Removes documents, all of them or none.

        Raises:
            InputError: an id is not in the index.
            RunError: the files can't be written.
        """
        self._write((), list(ids), no_progress, is_update=False)

    def version(self) -> Hashable:
        """Returns a value that changes with each write to the folder; None: the index is gone."""
        return self._snapshots.version()

    def file_sizes(self, patterns: Mapping[str, str]) -> dict[str, float]:
        """Returns the bytes of files by the name of a part, and those of each document.

        The part "texts" is that of the stored texts, and counts as the others do.

        Args:
            patterns: of the names of a part's files in the snapshot.
        """
        folder = self._state.folder
        sizes = {
            name: float(sum(file.stat().st_size for file in folder.glob(pattern)))
            for name, pattern in {**patterns, "texts": TEXT_FILES}.items()
        }
        per_document = sum(sizes.values()) / max(len(self), 1)
        return {"documents": len(self), **sizes, "bytes per document": per_document}

    def changes(
        self, texts: Mapping[str, str], fields: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Changes:
        """Compares the index with a corpus: which documents are to be added, updated and deleted.

        A document whose text was not given when it was added counts as changed.

        Args:
            texts: of all documents by id.
            fields: of the documents that have some, by id; None: they are not compared.
        """
        stored = hashes_by_id(self._state.chunks)

        def differs(name: str) -> bool:
            if fields is not None and plain_json(dict(fields.get(name, {}))) != self.fields(name):
                return True
            return stored[name] != hash_of(texts[name])

        return Changes(
            [name for name in texts if name not in stored],
            [name for name in texts if name in stored and differs(name)],
            [name for name in stored if name not in texts],
        )

    def _load(self, description: Mapping[str, Any], folder: Path) -> Any:
        if description.get("kind") != self.kind:
            other = description.get("kind")
            raise InputError(f"{self.path}: an index of kind {other!r}, expected {self.kind!r}")
        state = self.load(description, folder)
        if len(state.positions) != len(state.ids):
            raise InputError(f"{folder}: damaged: an id comes twice")
        return state

    def _write(
        self,
        documents: Iterable[IndexDocument],
        deleted: Sequence[str],
        progress: ShowProgress,
        *,
        is_update: bool,
    ) -> None:
        with new_snapshot(self._snapshots) as (folder, parts, description):
            state = self._snapshots.read(self._load)
            if difference := first_difference(state.description["identity"], self.identity):
                raise InputError(f"{self.path}: replaced by another index meanwhile: {difference}")
            for name in deleted:
                if name not in state.positions:
                    raise InputError(f"{self.path}: no document {name!r} to delete")
            numbers = itertools.count()
            entries = distinct(self.checked(documents, state), state.positions, is_update=is_update)
            new = list(counted(self.encoded(entries, state, parts, numbers), progress))
            gone = {*deleted, *(name for chunk in new for name in chunk.ids)}
            chunks = [*_without(gone, state.chunks, parts, numbers), *new]
            placed = place_chunks(merge_small(chunks, parts, numbers, self.chunk_limit), folder)
            details = dict(self.finish(folder, placed, state))
            details["stores_texts"] = bool(state.description.get("stores_texts"))
            description |= describe_index(self.kind, self.identity, placed, details)
        self._state = self._snapshots.read(self._load)


I = TypeVar("I", bound=DocumentIndex)


def build_documents(
    index: type[I],
    path: str | Path,
    documents: Iterable[IndexDocument],
    empty: IndexState,
    *,
    identity: Mapping[str, Any],
    replace: bool,
    progress: ShowProgress,
) -> I:
    """Builds and opens an index whose documents are read once.

    Args:
        index: its class.
        path: a folder, which is created.
        documents: see `build_index`.
        empty: a state without documents, whose description has the options of the index.
        identity: what the embeddings depend on, as JSON.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no document; ids are not
            strings, or not distinct; documents that cannot be used.
        RunError: the files can't be written.
    """
    snapshots = Snapshots(path, FORMAT)
    check_build(snapshots, replace)
    with new_snapshot(snapshots) as (folder, parts, description):
        entries = distinct(index.checked(documents, empty), ())
        chunks = index.encoded(entries, empty, parts, itertools.count())
        placed = place_chunks(counted(chunks, progress), folder)
        if not placed:
            raise InputError("no documents: nothing to index")
        details = dict(index.finish(folder, placed, empty))
        details["stores_texts"] = bool(empty.description.get("stores_texts"))
        description |= describe_index(index.kind, identity, placed, details)
    return index(path, identity)


def _without(
    gone: Collection[str], chunks: Sequence[Chunk], parts: Path, numbers: Iterator[int]
) -> Iterator[Chunk]:
    """Yields chunks of the other documents; those that lose none stay as they are."""
    for chunk in chunks:
        keep = np.array([name not in gone for name in chunk.ids], bool)
        if keep.all():
            yield chunk
        elif keep.any():
            yield chunk.take(keep, parts, next(numbers))
