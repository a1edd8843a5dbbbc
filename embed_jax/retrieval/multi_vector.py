"""An index of token embeddings on disk: built, changed and searched without torch or pickle.

    index = build_multi_vector("index", zip(ids, embeddings), identity={"model": "..."})
    index.search([query], k=10)      # [{id: score}], best first
    index.add(documents), index.update(documents), index.delete(ids)
    index = open_multi_vector("index", identity={"model": "..."})

Tokens are compressed as in ColBERTv2 (Santhanam et al. 2022) and found as in PLAID (Santhanam et
al. 2022b). Every write leaves the old state or the whole new one, whatever ends the process. The
folder `snapshot-N` inside of the index is in the layout of fast-plaid, which can open it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import plain_json
from embed_jax.errors import InputError, first_difference
from embed_jax.retrieval.residual_codec import ResidualCodec, load_codec, read_array
from embed_jax.retrieval.token_chunks import (
    Chunk,
    encode_chunks,
    load_chunks,
    merge_small,
    write_counts,
    write_lists,
)
from embed_jax.retrieval.token_documents import (
    ShowProgress,
    Spool,
    TokenDocument,
    Tokens,
    check_tokens,
    checked_documents,
    distinct_documents,
    hash_of,
    no_progress,
)
from embed_jax.snapshots import Snapshots

FORMAT = "embed-jax multi-vector index 1"
PARTS = "parts"  # of a snapshot that is being written


def build_multi_vector(
    path: str | Path,
    documents: Iterable[TokenDocument],
    *,
    identity: Mapping[str, Any],
    bits: int = 4,
    partitions: int | None = None,
    codec: ResidualCodec | None = None,
    seed: int = 0,
    replace: bool = False,
    progress: ShowProgress = no_progress,
) -> MultiVectorIndex:
    """Builds an index.

    The documents are read once, and kept in a file in float16 until centroids are learnt from some
    of them: 2 d bytes of disk for a token. Memory holds the sample, at most 40 K + 50,000 tokens in
    float32, and one chunk of codes. Tokens are brought to length 1, as the format has no other. A
    document without tokens is kept, and never found.

    Args:
        path: a folder, which is created.
        documents: (id, token embeddings `[n, d]`) or (id, token embeddings, text), in any order.
            Of a text a hash is stored, for `MultiVectorIndex.changes`.
        identity: what the embeddings depend on, as JSON: model, prompts, markers, ...
        bits: of a dimension of a residual: 1, 2, 4 or 8.
        partitions: the number of centroids; see `train_codec`.
        codec: centroids and buckets to use instead of learning them, such as those of an index of
            which this is a part.
        seed: of the sample and of k-means.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no token; ids are not
            strings, or not distinct; embeddings are not finite, zero, or of several sizes; see
            `train_codec`.
        RunError: the files can't be written.
    """
    snapshots = Snapshots(path, FORMAT)
    if snapshots.exists() and not replace:
        raise InputError(f"{path}: holds an index already; replace=True builds it anew")
    with snapshots.written() as (folder, description):
        parts = folder / PARTS
        parts.mkdir()
        entries = distinct_documents(checked_documents(documents, codec.dim if codec else None), ())
        if codec is None:
            spool = Spool(parts / "tokens", entries, progress)
            codec = spool.train(bits, partitions, seed)
            entries = iter(spool)
        chunks = list(_counted(encode_chunks(entries, codec, parts, itertools.count()), progress))
        if not chunks:
            raise InputError("no documents: nothing to index")
        _finish(folder, description, chunks, codec, plain_json(dict(identity)))
    return open_multi_vector(path, identity)


def open_multi_vector(
    path: str | Path, identity: Mapping[str, Any] | None = None
) -> MultiVectorIndex:
    """Opens an index; its large files are mapped, not read.

    Args:
        path: the folder.
        identity: what the queries' embeddings depend on; None: not compared with the index's.

    Raises:
        InputError: there is no whole index, it is damaged, or has another identity.
    """
    return MultiVectorIndex(Snapshots(path, FORMAT), identity)


@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """A snapshot of an index, opened."""

    description: Mapping[str, Any]
    folder: Path
    codec: ResidualCodec
    chunks: Sequence[Chunk]
    lists: np.ndarray
    list_lengths: np.ndarray

    @functools.cached_property
    def searcher(self):
        # Here, so that building needs no JAX.
        from embed_jax.retrieval.max_sim_search import TokenSearcher

        return TokenSearcher(self.codec, self.chunks, self.lists, self.list_lengths)

    @functools.cached_property
    def ids(self) -> list[str]:
        return [name for chunk in self.chunks for name in chunk.ids]

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids)}

    @functools.cached_property
    def tie_order(self) -> np.ndarray:
        order = np.empty(len(self.ids), np.int64)
        order[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return order


class MultiVectorIndex:
    """An open index; made by `build_multi_vector` and `open_multi_vector`.

    It stays at the state in which it was opened, or which it wrote itself: of what another process
    writes it sees nothing until it is opened again, or writes.

    Attributes:
        path: the folder.
    """

    def __init__(self, snapshots: Snapshots, identity: Mapping[str, Any] | None):
        self._snapshots, self.path = snapshots, snapshots.path
        self._state = snapshots.read(_load)
        if identity is not None:
            difference = first_difference(self.identity, plain_json(dict(identity)))
            if difference:
                raise InputError(
                    f"{self.path}: of embeddings of another kind: {difference}; build it anew"
                )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Returns what the embeddings depend on."""
        return self._state.description["identity"]

    @property
    def codec(self) -> ResidualCodec:
        """Returns centroids and buckets."""
        return self._state.codec

    @property
    def ids(self) -> Sequence[str]:
        """Returns the ids of all documents."""
        return self._state.ids

    def __len__(self) -> int:
        return len(self._state.ids)

    def __contains__(self, document: str) -> bool:
        return document in self._state.positions

    def search(
        self,
        queries: Sequence[Tokens],
        k: int,
        *,
        probes: int = 8,
        candidates: int = 1024,
        allowed: Collection[str] | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents with the largest MaxSim with each query, best first.

        MaxSim(q, d) = sum_i max_j q_i . d_j, over the tokens i of the query and j of the document
        (Khattab and Zaharia 2020), of the documents' tokens as decoded. Equal scores are in the
        order of the ids. With as many probes as centroids, and as many candidates as documents, the
        search is exact.

        Args:
            queries: token embeddings of each query. A query without tokens finds nothing.
            k: how many documents; fewer are returned where fewer are found.
            probes: centroids that each query token looks at.
            candidates: documents that are decoded and scored, those with the best estimates; at
                least k.
            allowed: ids that may be returned; None: all. If they are at most `candidates`, all of
                them are scored.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for a k, probes or candidates below 1, or queries of another dimension or
                with numbers that are not finite.
        """
        for name, value in (("k", k), ("probes", probes), ("candidates", candidates)):
            if value < 1:
                raise InputError(f"{name}: expected 1 or more, found {value}")
        state = self._state
        searcher, tie_order = state.searcher, state.tie_order
        candidates = max(candidates, k)
        mask = every = None
        if allowed is not None:
            mask = np.zeros(len(state.ids), bool)
            mask[[state.positions[name] for name in allowed if name in state.positions]] = True
            mask &= searcher.lengths > 0
            every = np.flatnonzero(mask) if mask.sum() <= candidates else None
        results = []
        for number, tokens in enumerate(queries):
            query = check_tokens(f"query {number}", tokens, self.codec.dim)
            positions = every
            if not len(query):
                positions = np.zeros(0, np.int64)
            elif positions is None:
                positions = searcher.candidates(query, candidates, probes, tie_order, mask)
            scores = searcher.max_sim(query, positions)
            best = np.lexsort((tie_order[positions], -scores))[:k]
            results.append({state.ids[positions[row]]: float(scores[row]) for row in best})
        return results

    def tokens(self, document: str) -> Float[np.ndarray, "n d"]:
        """Decodes the token embeddings of a document.

        Raises:
            InputError: the document is not in the index.
        """
        if document not in self:
            raise InputError(f"{self.path}: no document {document!r}")
        position = np.array([self._state.positions[document]])
        return self.codec.decode(*self._state.searcher.encoded(position))

    def add(
        self, documents: Iterable[TokenDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Adds documents; see `build_multi_vector`. Centroids stay as they are.

        Raises:
            InputError: an id is in the index already, or comes twice; see `build_multi_vector`.
            RunError: the files can't be written.
        """
        self._write(documents, (), progress, is_update=False)

    def update(
        self, documents: Iterable[TokenDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Replaces documents by others with their ids.

        Raises:
            InputError: an id is not in the index, or comes twice; see `build_multi_vector`.
            RunError: the files can't be written.
        """
        self._write(documents, (), progress, is_update=True)

    def delete(self, ids: Iterable[str]) -> None:
        """Removes documents.

        Raises:
            InputError: an id is not in the index.
            RunError: the files can't be written.
        """
        self._write((), list(ids), no_progress, is_update=False)

    def changes(self, texts: Mapping[str, str]) -> Changes:
        """Compares the index with a corpus: which documents are to be added, updated and deleted.

        A document whose text was not given when it was added counts as changed.
        """
        stored = {
            name: text_hash
            for chunk in self._state.chunks
            for name, text_hash in zip(chunk.ids, chunk.hashes, strict=True)
        }
        return Changes(
            [name for name in texts if name not in stored],
            [
                name
                for name, text in texts.items()
                if stored.get(name, "=") != hash_of(text) and name in stored
            ],
            [name for name in stored if name not in texts],
        )

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document, beside one float32 vector for each document.

        Returns:
            "documents", "tokens"; "codes", "residuals", "lists", "ids" and "centroids" in bytes;
            "bytes per document" of all of them; "dense bytes per document" of a vector of the
            tokens' size; "float16 bytes per document" of the tokens as they are.
        """
        state, codec = self._state, self.codec
        tokens, documents = state.description["tokens"], len(self)
        parts = {"codes": "*.codes.npy", "residuals": "*.residuals.npy", "lists": "ivf*.npy"}
        parts |= {"ids": "doc*.json", "centroids": "[abc]*.npy"}
        sizes = {
            name: float(sum(file.stat().st_size for file in state.folder.glob(pattern)))
            for name, pattern in parts.items()
        }
        per_document = max(documents, 1)
        return {
            "documents": documents,
            "tokens": tokens,
            **sizes,
            "bytes per document": sum(sizes.values()) / per_document,
            "float16 bytes per document": 2 * codec.dim * tokens / per_document,
            "dense bytes per document": 4 * codec.dim,
        }

    def _write(
        self,
        documents: Iterable[TokenDocument],
        deleted: Sequence[str],
        progress: ShowProgress,
        *,
        is_update: bool,
    ) -> None:
        with self._snapshots.written() as (folder, description):
            state = self._snapshots.read(_load)
            if difference := first_difference(state.description["identity"], self.identity):
                raise InputError(f"{self.path}: replaced by another index meanwhile: {difference}")
            for name in deleted:
                if name not in state.positions:
                    raise InputError(f"{self.path}: no document {name!r} to delete")
            parts = folder / PARTS
            parts.mkdir()
            numbers = itertools.count()
            entries = distinct_documents(
                checked_documents(documents, state.codec.dim), state.positions, is_update=is_update
            )
            new = list(_counted(encode_chunks(entries, state.codec, parts, numbers), progress))
            gone = {*deleted, *(name for chunk in new for name in chunk.ids)}
            remaining = []
            for chunk in state.chunks:
                keep = np.array([name not in gone for name in chunk.ids], bool)
                if keep.all():
                    remaining.append(chunk)
                elif keep.any():
                    remaining.append(chunk.take(keep, parts, next(numbers)))
            chunks = list(merge_small([*remaining, *new], parts, numbers))
            _finish(folder, description, chunks, state.codec, state.description["identity"])
        self._state = self._snapshots.read(_load)


@dataclasses.dataclass(frozen=True)
class Changes:
    """The ids in which a corpus differs from an index."""

    added: Sequence[str]
    updated: Sequence[str]
    deleted: Sequence[str]


def _counted(chunks: Iterable[Chunk], progress: ShowProgress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress("compress", len(chunk.ids))
        yield chunk


def _finish(
    folder: Path,
    description: dict[str, Any],
    chunks: Sequence[Chunk],
    codec: ResidualCodec,
    identity: Mapping[str, Any],
) -> None:
    """Writes the files of a snapshot around its chunks, and the description."""
    placed, tokens = [], 0
    for number, chunk in enumerate(chunks):
        placed.append(chunk.place(folder, number, tokens))
        tokens += chunk.tokens
    codec.save(folder)
    write_lists(placed, len(codec.centroids), folder)
    write_counts(placed, codec, folder)
    shutil.rmtree(folder / PARTS)
    hashes = {
        name: text_hash
        for chunk in placed
        for name, text_hash in zip(chunk.ids, chunk.hashes, strict=True)
    }
    description |= {
        "identity": identity,
        "dim": codec.dim,
        "bits": codec.bits,
        "documents": len(hashes),
        "tokens": tokens,
        "texts": _hash_of_all(hashes) if all(hashes.values()) else None,
    }


def _hash_of_all(hashes: Mapping[str, str]) -> str:
    """Returns a hash of all ids and texts, whatever their order."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(hashes):
        total.update(f"{hash_of(name)}{hashes[name]}".encode())
    return total.hexdigest()


def _load(description: Mapping[str, Any], folder: Path) -> _State:
    state = _State(
        description,
        folder,
        load_codec(folder, description["bits"]),
        load_chunks(folder),
        read_array(folder / "ivf.npy", mapped=True),
        read_array(folder / "ivf_lengths.npy"),
    )
    if len(state.positions) != len(state.ids):
        raise InputError(f"{folder}: damaged: an id comes twice")
    return state
