"""An index of token embeddings on disk: built, changed and searched without torch or pickle.

    index = build_multi_vector("index", zip(ids, embeddings), identity={"model": "..."})
    index.search([query], k=10)      # [{id: score}], best first
    index.add(documents), index.update(documents), index.delete(ids)
    index = open_index("index", identity={"model": "..."})

Tokens are compressed as in ColBERTv2 (Santhanam et al. 2022) and found as in PLAID (Santhanam et
al. 2022b). Every write leaves the old state or the whole new one, whatever ends the process. The
folder `snapshot-N` inside of the index is in the layout of fast-plaid, which can open a copy of it;
in the folder itself it would replace our files by its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from embed_jax.errors import InputError
from embed_jax.retrieval.document_chunks import (
    Chunk,
    IndexEntry,
    encode_chunks,
    load_chunks,
    read_array,
)
from embed_jax.retrieval.document_index import (
    DocumentIndex,
    IndexDocument,
    IndexState,
    IndexVectors,
)
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.index_build import (
    FORMAT,
    ShowProgress,
    check_build,
    check_counts,
    counted,
    describe_index,
    distinct,
    new_snapshot,
    no_progress,
    place_chunks,
)
from embed_jax.retrieval.residual_codec import ResidualCodec, load_codec
from embed_jax.retrieval.token_documents import Spool, check_tokens, token_entries
from embed_jax.retrieval.token_lists import CODES, RESIDUALS, write_counts, write_lists
from embed_jax.snapshots import Snapshots

CHUNK_TOKENS = 2**19  # of a chunk, at most, unless a single document has more


def build_multi_vector(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any],
    bits: int = 4,
    partitions: int | None = None,
    codec: ResidualCodec | None = None,
    centroids: Float16[np.ndarray, "K d"] | None = None,
    seed: int = 0,
    store_texts: bool = False,
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
        documents: (id, token embeddings `[n, d]`), and perhaps text and fields, in any order; see
            `build_vector_index`.
        identity: what the embeddings depend on, as JSON: model, prompts, markers, ...
        bits: of a dimension of a residual: 1, 2, 4 or 8.
        partitions: the number of centroids; see `train_codec`.
        codec: centroids and buckets to use instead of learning them, such as those of an index of
            which this is a part.
        centroids: the same of centroids only, such as those of an index of other bits.
        seed: of the sample and of k-means.
        store_texts: store the texts, for `texts`.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: the folder holds an index or something else; there is no token; ids are not
            strings, or not distinct; embeddings are not finite, zero, or of several sizes; see
            `train_codec`.
        RunError: the files can't be written.
    """
    snapshots = Snapshots(path, FORMAT)
    check_build(snapshots, replace)
    with new_snapshot(snapshots) as (folder, parts, description):
        dim = codec.dim if codec else None
        entries = distinct(token_entries(documents, dim, store_texts), ())
        if codec is None:
            spool = Spool(parts / "tokens", entries, progress)
            codec = spool.train(bits, partitions, centroids, seed)
            entries = iter(spool)
        chunks = list(counted(_encoded(entries, codec, parts, itertools.count()), progress))
        if not chunks:
            raise InputError("no documents: nothing to index")
        placed = place_chunks(chunks, folder)
        details = _finish(folder, placed, codec) | {"stores_texts": store_texts}
        description |= describe_index(MultiVectorIndex.kind, identity, placed, details)
    return MultiVectorIndex(path, identity)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenState(IndexState):
    """A snapshot of a multi-vector index, opened."""

    codec: ResidualCodec
    lists: np.ndarray
    list_lengths: np.ndarray

    @functools.cached_property
    def searcher(self):
        """Returns what searches the chunks."""
        # Here, so that building needs no JAX.
        from embed_jax.retrieval.token_searcher import TokenSearcher

        return TokenSearcher(self.codec, self.chunks, self.lists, self.list_lengths)


class MultiVectorIndex(DocumentIndex):
    """An open index of token embeddings; made by `build_multi_vector` and `open_index`.

    What is added is compressed with the centroids and buckets of the build.

    Attributes:
        path: the folder.
    """

    kind = "multi-vector"
    _state: TokenState

    @property
    def codec(self) -> ResidualCodec:
        """Returns centroids and buckets."""
        return self._state.codec

    def search(
        self,
        queries: Sequence[IndexVectors],
        k: int,
        *,
        probes: int = 8,
        candidates: int = 1024,
        allowed: Collection[str] | None = None,
        where: Filter | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents with the largest MaxSim with each query, best first.

        MaxSim(q, d) = sum_i max_j q_i . d_j, over the tokens i of the query and j of the document
        (Khattab and Zaharia 2020), of the documents' tokens as decoded. Of equal scores larger ids
        come first. With as many probes as centroids, and as many candidates as documents, the
        search is exact.

        Args:
            queries: token embeddings of each query. A query without tokens finds nothing.
            k: how many documents; fewer are returned where fewer are found.
            probes: centroids that each query token looks at.
            candidates: documents that are decoded and scored, those with the best estimates; at
                least k.
            allowed: ids that may be returned; None: all. If they are at most `candidates`, all of
                them are scored.
            where: a filter on fields; see `filters`.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for a k, probes or candidates below 1, or queries of another dimension or
                with numbers that are not finite.
        """
        check_counts(k=k, probes=probes, candidates=candidates)
        state = self._state
        searcher = state.searcher
        candidates = max(candidates, k)
        every = None
        mask = state.mask(allowed, where)
        if mask is not None:
            mask &= searcher.lengths > 0
            every = np.flatnonzero(mask) if mask.sum() <= candidates else None
        results = []
        for number, tokens in enumerate(queries):
            query = check_tokens(f"query {number}", tokens, self.codec.dim)
            positions = every
            if not len(query):
                positions = np.zeros(0, np.int64)
            elif positions is None:
                positions = searcher.candidates(query, candidates, probes, state.tie_order, mask)
            results.append(state.best(positions, searcher.max_sim(query, positions), k))
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

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document, beside one float32 vector for each document.

        Returns:
            "documents", "tokens"; "codes", "residuals", "lists", "ids", "centroids" and "texts" in
            bytes; "bytes per document" of all of them; "dense bytes per document" of a vector of
            the tokens' size; "float16 bytes per document" of the tokens as they are.
        """
        state, codec = self._state, self.codec
        tokens = state.description["tokens"]
        parts = {"codes": "*.codes.npy", "residuals": "*.residuals.npy", "lists": "ivf*.npy"}
        parts |= {"ids": "doc*.json", "centroids": "[abc]*.npy"}
        return {
            **self.file_sizes(parts),
            "tokens": tokens,
            "float16 bytes per document": 2 * codec.dim * tokens / max(len(self), 1),
            "dense bytes per document": 4 * codec.dim,
        }

    @classmethod
    def load(cls, description: Mapping[str, Any], folder: Path) -> TokenState:
        """Opens a snapshot; its large files are mapped, not read."""
        return TokenState(
            description,
            folder,
            load_chunks(folder, description["chunks"], (CODES, RESIDUALS)),
            load_codec(folder, description["bits"]),
            read_array(folder / "ivf.npy", mapped=True),
            read_array(folder / "ivf_lengths.npy"),
        )

    @classmethod
    def checked(cls, documents: Iterable[IndexDocument], state: TokenState) -> Iterator[IndexEntry]:
        """Yields documents with tokens of length 1."""
        stores_texts = bool(state.description.get("stores_texts"))
        return token_entries(documents, state.codec.dim, stores_texts)

    @classmethod
    def encoded(
        cls, entries: Iterable[IndexEntry], state: TokenState, folder: Path, numbers: Iterator[int]
    ) -> Iterator[Chunk]:
        """Compresses documents in chunks."""
        return _encoded(entries, state.codec, folder, numbers)

    @classmethod
    def finish(cls, folder: Path, chunks: Sequence[Chunk], state: TokenState) -> dict[str, Any]:
        """Writes the centroids, and the documents of each."""
        return _finish(folder, chunks, state.codec)

    @property
    def chunk_limit(self) -> int:
        """Returns the tokens of a chunk, at most."""
        return CHUNK_TOKENS


def _encoded(
    entries: Iterable[IndexEntry], codec: ResidualCodec, folder: Path, numbers: Iterator[int]
) -> Iterator[Chunk]:
    def encode(tokens: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip((CODES, RESIDUALS), codec.encode(tokens), strict=True))

    return encode_chunks(entries, encode, folder, numbers, CHUNK_TOKENS)


def _finish(folder: Path, chunks: Sequence[Chunk], codec: ResidualCodec) -> dict[str, Any]:
    codec.save(folder)
    write_lists(chunks, len(codec.centroids), folder)
    write_counts(chunks, codec, folder)
    return {"dim": codec.dim, "bits": codec.bits, "tokens": sum(chunk.rows for chunk in chunks)}
