"""An index of one vector for each document on disk, searched exactly or through FAISS.

FAISS only finds candidates: scores come from the stored vectors. A vector's number in FAISS is its
serial, which it keeps: of a deleted one the FAISS index still knows, and it is passed over until so
many are gone that the FAISS index is built anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from embed_jax.errors import InputError, require
from embed_jax.retrieval.document_chunks import (
    Chunk,
    IndexEntry,
    encode_chunks,
    load_chunks,
)
from embed_jax.retrieval.document_index import (
    DocumentIndex,
    IndexDocument,
    IndexState,
    IndexVectors,
    build_documents,
)
from embed_jax.retrieval.faiss_files import (
    FAISS_FILE,
    add_faiss,
    read_faiss,
    save_faiss,
    search_faiss,
    write_faiss,
)
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import ShowProgress, check_counts, make_entry, no_progress
from embed_jax.snapshots import link_file

CHUNK_ROWS = 2**16  # vectors of a chunk, at most
DEAD_SHARE = 0.25  # of the vectors that FAISS knows; with more deleted it is built anew
IVF_PQ = "ivf-pq"  # a factory string that is made for the number of vectors
VECTORS, SERIALS = "vectors", "serials"  # arrays of a chunk


def build_vector_index(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any],
    similarity: str = "cosine",
    factory: str = "",
    parameters: str = "",
    store_texts: bool = False,
    replace: bool = False,
    progress: ShowProgress = no_progress,
) -> VectorIndex:
    """Builds an index; memory holds one chunk of vectors, and what FAISS needs.

    Args:
        path: a folder, which is created.
        documents: (id, vector `[D]`), and perhaps text and fields, in any order. Of a text a hash
            is stored, for `changes`; fields are what filters read.
        identity: what the vectors depend on, as JSON: model, prompts, ...
        similarity: "cosine" or "dot".
        factory: FAISS's index factory string: "HNSW32", "IVF256,PQ32", "SQ8" (a byte a dimension),
            "BFlat" (a bit: signs and Hamming distances), ...; "": exact search; "ivf-pq": sizes
            that suit the number of vectors.
        parameters: FAISS's search-time settings: "nprobe=16", "efSearch=128", ...
        store_texts: store the texts, for `texts`.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no document; ids are not
            strings, or not distinct; vectors are not finite, zero for "cosine", or of several
            sizes; FAISS is not installed, or cannot make the index.
        RunError: the files can't be written.
    """
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity: expected 'cosine' or 'dot', found {similarity!r}")
    if factory:
        require("faiss")
    options: dict[str, Any] = {
        "similarity": similarity,
        "factory": factory,
        "parameters": parameters,
    }
    options |= {"dim": None, "serials": 0, "stores_texts": store_texts}
    return build_documents(
        VectorIndex,
        path,
        documents,
        VectorState(options, Path(path), (), None),
        identity=identity,
        replace=replace,
        progress=progress,
    )


def ivf_pq(documents: int, dim: int) -> str:
    """Returns the factory string of inverted lists with product quantisation.

    About 4 sqrt(N) lists, of at least 39 vectors as FAISS advises for training, and a byte for each
    8 dimensions, or fewer.

    >>> ivf_pq(1_000_000, 384)
    'IVF4096,PQ48'
    """
    lists = min(4 * math.sqrt(documents), documents / 39)
    parts = max(dim // 8, 1)
    while dim % parts:
        parts -= 1
    return f"IVF{2 ** round(math.log2(max(lists, 1)))},PQ{parts}"


@dataclasses.dataclass(frozen=True, eq=False)
class VectorState(IndexState):
    """A snapshot of an index of vectors, opened; `faiss_index` is None for exact search."""

    faiss_index: Any

    @functools.cached_property
    def serials(self) -> Int64[np.ndarray, " N"]:
        """Returns the vectors' numbers in FAISS, ascending."""
        serials = [chunk.arrays[SERIALS] for chunk in self.chunks]
        return np.concatenate([np.zeros(0, np.int64), *serials])

    def blocks(self, mask: Bool[np.ndarray, " N"] | None) -> Iterator[Float[np.ndarray, "n D"]]:
        """Yields all vectors, or those that are marked."""
        first = 0
        for chunk in self.chunks:
            vectors = chunk.arrays[VECTORS]
            if mask is None:
                yield np.asarray(vectors)
            else:
                yield vectors[mask[first : first + chunk.rows]]
            first += chunk.rows

    @functools.cached_property
    def all_blocks(self) -> Sequence[Any]:
        """Returns all vectors: on an accelerator, from now on, or mapped from the files."""
        import jax

        blocks = list(self.blocks(None))
        return blocks if jax.default_backend() == "cpu" else list(map(jax.device_put, blocks))

    def rows(self, positions: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        """Returns the vectors at ascending positions."""
        parts, first = [np.zeros((0, self.description["dim"]), np.float32)], 0
        for chunk in self.chunks:
            begin, end = np.searchsorted(positions, (first, first + chunk.rows))
            if begin < end:
                parts.append(chunk.arrays[VECTORS][positions[begin:end] - first])
            first += chunk.rows
        return np.concatenate(parts)


class VectorIndex(DocumentIndex):
    """An open index of vectors; made by `build_vector_index` and `open_index`.

    Attributes:
        path: the folder.
    """

    kind = "vectors"
    _state: VectorState

    @property
    def factory(self) -> str:
        """Returns FAISS's index factory string; "" for exact search."""
        return self._state.description["factory"]

    def search(
        self,
        queries: Sequence[IndexVectors] | IndexVectors,
        k: int,
        *,
        candidates: int = 128,
        probes: int = 0,
        recall_target: float = 1.0,
        allowed: Collection[str] | None = None,
        where: Filter | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents most similar to each query, best first.

        Of equal scores larger ids come first. With FAISS this holds among its candidates.

        Args:
            queries: vectors `[Q, D]`.
            k: how many documents; fewer are returned where fewer are found.
            candidates: documents that FAISS finds, at least k; of no meaning for exact search.
            probes: lists that an IVF index of FAISS looks at; 0: as it was built.
            recall_target: below 1, exact search may miss this share, for speed on accelerators; see
                `top_k`.
            allowed: ids that may be returned; None: all. If they are at most `candidates`, the
                search is exact.
            where: a filter on fields; see `filters`.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for k or candidates below 1, or queries of another dimension or with numbers
                that are not finite.
        """
        check_counts(k=k, candidates=candidates)
        state = self._state
        dim, similarity = state.description["dim"], state.description["similarity"]
        if not len(queries):
            return []
        vectors = check_vectors("queries", np.asarray(queries), dim, similarity, ndim=2)
        mask = state.mask(allowed, where)
        size = len(self) if mask is None else int(mask.sum())
        candidates = min(max(candidates, k), size)
        if not size:
            return [{} for _ in vectors]
        if state.faiss_index is None or size <= candidates:
            return _exact(state, vectors, min(k, size), mask, recall_target)
        some = None
        if mask is not None or len(self) < state.faiss_index.ntotal:  # it knows deleted ones too
            some = state.serials if mask is None else state.serials[mask]
        numbers = search_faiss(state.faiss_index, vectors, candidates, some, probes)
        results = []
        for query, serials in zip(vectors, numbers, strict=True):
            positions = np.searchsorted(state.serials, np.sort(serials[serials >= 0]))
            results.append(state.best(positions, state.rows(positions) @ query, k))
        return results

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document.

        Returns:
            "documents"; "vectors", "faiss", "ids", "texts" in bytes; "bytes per document" of all.
        """
        files = {"vectors": f"*.{VECTORS}.npy", "faiss": FAISS_FILE, "ids": "doc*.json"}
        return self.file_sizes(files)

    @classmethod
    def load(cls, description: Mapping[str, Any], folder: Path) -> VectorState:
        """Opens a snapshot; vectors are mapped, and a FAISS index is read."""
        chunks = load_chunks(folder, description["chunks"], (VECTORS, SERIALS))
        factory = description["factory"]
        index = read_faiss(folder, factory) if factory else None
        return VectorState(description, folder, chunks, index)

    @classmethod
    def checked(
        cls, documents: Iterable[IndexDocument], state: VectorState
    ) -> Iterator[IndexEntry]:
        """Yields documents whose vectors fit, of length 1 for "cosine"."""
        return vector_entries(documents, state.description)

    @classmethod
    def encoded(
        cls,
        entries: Iterable[IndexEntry],
        state: VectorState,
        folder: Path,
        numbers: Iterator[int],
    ) -> Iterator[Chunk]:
        """Writes documents in chunks."""
        return _encoded(entries, folder, numbers, state.description["serials"])

    @classmethod
    def finish(cls, folder: Path, chunks: Sequence[Chunk], state: VectorState) -> dict[str, Any]:
        """Adds what is new to the FAISS index, or builds it anew if much of it is gone."""
        names = ("similarity", "dim", "factory", "parameters", "serials")
        details = {name: state.description[name] for name in names}
        before, last = details["serials"], [int(chunk.arrays[SERIALS].max()) for chunk in chunks]
        details["serials"] = max([before, *(serial + 1 for serial in last)])
        blocks = [chunk.arrays[VECTORS] for chunk in chunks]
        if details["dim"] is None:
            details["dim"] = blocks[0].shape[1]
        factory, alive = details["factory"], sum(map(len, blocks))
        if not factory:
            return details
        if state.faiss_index is None:  # the first build
            if factory == IVF_PQ:
                factory = details["factory"] = ivf_pq(alive, details["dim"])
            write_faiss(folder, blocks, details["dim"], factory, details["parameters"])
        elif alive and alive < (1 - DEAD_SHARE) * details["serials"]:
            details["serials"] = _renumber(folder, chunks)
            index = read_faiss(state.folder, factory)
            index.reset()  # it keeps what it has learnt, for which the rest may be too few
            for block in blocks:
                add_faiss(index, block)
            save_faiss(index, folder)
        elif details["serials"] == before:
            link_file(state.folder / FAISS_FILE, folder / FAISS_FILE)
        else:
            index = read_faiss(state.folder, factory)
            for chunk, block in zip(chunks, blocks, strict=True):
                new = chunk.arrays[SERIALS] >= before
                if new.any():
                    add_faiss(index, block[new])
            save_faiss(index, folder)
        return details

    @property
    def chunk_limit(self) -> int:
        """Returns the vectors of a chunk, at most."""
        return CHUNK_ROWS


def check_vectors(
    where: str, vectors: np.ndarray, dim: int | None, similarity: str, ndim: int = 1
) -> Float[np.ndarray, "..."]:
    """Returns a vector, or a matrix of them, in float32, of length 1 for "cosine"."""
    if vectors.ndim != ndim or vectors.dtype.kind not in "fV":  # V: bfloat16
        shape = f"{vectors.dtype} {list(vectors.shape)}"
        form = "[D]" if ndim == 1 else "[Q, D]"
        raise InputError(f"{where}: expected floating-point numbers {form}, found {shape}")
    if dim is not None and vectors.shape[-1] != dim:
        raise InputError(f"{where}: of {vectors.shape[-1]} dimensions, the index has {dim}")
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise InputError(f"{where}: a number that is not finite")
    if similarity == "dot":
        return vectors
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if ndim == 1 and not norms.all():
        raise InputError(f"{where}: a zero vector has no cosine")
    return vectors / np.maximum(norms, 1e-12)


def vector_entries(
    documents: Iterable[IndexDocument], description: Mapping[str, Any]
) -> Iterator[IndexEntry]:
    """Yields documents whose vectors fit, of length 1 for "cosine".

    Args:
        documents: see `build_vector_index`.
        description: of the index: "dim", or None if the first vector decides; "similarity";
            "stores_texts".

    Raises:
        InputError: for a vector that can't be used.
    """
    dim, similarity = description["dim"], description["similarity"]
    for document in documents:
        name, vector = document[:2]
        array = check_vectors(f"document {name!r}", np.asarray(vector), dim, similarity)
        dim = len(array)
        yield make_entry(document, array[None], bool(description.get("stores_texts")))


def _encoded(
    entries: Iterable[IndexEntry], folder: Path, numbers: Iterator[int], first_serial: int
) -> Iterator[Chunk]:
    serials = itertools.count(first_serial)

    def encode(vectors: np.ndarray) -> dict[str, np.ndarray]:
        own = np.fromiter(itertools.islice(serials, len(vectors)), np.int64, len(vectors))
        return {VECTORS: vectors, SERIALS: own}

    return encode_chunks(entries, encode, folder, numbers, CHUNK_ROWS)


def _exact(
    state: VectorState, queries: np.ndarray, k: int, mask: np.ndarray | None, recall_target: float
) -> list[dict[str, float]]:
    """Searches all vectors, or the marked ones."""
    from embed_jax.retrieval.topk import top_k

    size = len(state.ids) if mask is None else int(mask.sum())
    every = np.arange(size) if mask is None else np.flatnonzero(mask)
    count = min(k + 1, size)
    while True:
        blocks = state.blocks(mask) if mask is not None else state.all_blocks
        scores, rows = top_k(queries, blocks, count, recall_target=recall_target)
        # The order of equal scores is the ids', so all that equal the last one are needed.
        if count == size or (scores[:, -1] < scores[:, k - 1]).all():
            break
        count = min(2 * count, size)
    return [state.best(every[row], values, k) for values, row in zip(scores, rows, strict=True)]


def _renumber(folder: Path, chunks: Sequence[Chunk]) -> int:
    """Gives the vectors of a new snapshot serials from 0 on; returns how many there are."""
    first = 0
    for chunk in chunks:
        file = folder / f"{chunk.number}.{SERIALS}.npy"
        beside = file.with_name("serials.npy")
        np.save(beside, np.arange(first, first + chunk.rows))
        os.replace(beside, file)  # the file itself may be the old snapshot's too
        first += chunk.rows
    return first
