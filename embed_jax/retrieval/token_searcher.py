"""Search in compressed token embeddings: candidates by centroid, then MaxSim of decoded tokens.

Each query token looks at the lists of its nearest centroids. A document's estimate is the sum over
query tokens of the best centroid it was found under, or of the worst one looked at where it was not
found, as XTR does for tokens (Lee et al. 2023). The documents with the best estimates are decoded
and scored by all their tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int64, UInt8

from embed_jax.maxsim import best_matches
from embed_jax.retrieval.document_chunks import Chunk
from embed_jax.retrieval.residual_codec import ResidualCodec
from embed_jax.retrieval.token_lists import CODES, RESIDUALS

SLOTS = 8192  # tokens, padding included, that are decoded at a time
QUERY_STEP = 16  # queries are padded to a multiple of it: few shapes, hence few compilations


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSearcher:
    """Searches the documents of chunks, by their positions.

    Attributes:
        codec: decodes tokens.
        chunks: in the order of positions.
        lists: positions of documents, for one centroid after the other.
        list_lengths: how many each centroid has.
    """

    codec: ResidualCodec
    chunks: Sequence[Chunk]
    lists: Int64[np.ndarray, " m"]
    list_lengths: Int[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Returns the number of tokens of each document."""
        lengths = [chunk.lengths for chunk in self.chunks]
        return np.concatenate([np.zeros(0, np.int64), *lengths])

    def candidates(
        self,
        query: Float32[np.ndarray, "q d"],
        count: int,
        probes: int,
        tie_order: Int[np.ndarray, " N"],
        allowed: Bool[np.ndarray, " N"] | None = None,
    ) -> Int64[np.ndarray, " c"]:
        """Returns the positions of at most `count` documents, those with the best estimates.

        Args:
            query: token embeddings.
            count: how many.
            probes: centroids that each query token looks at.
            tie_order: the documents' ranks among equal estimates.
            allowed: which documents may be returned; None: all.
        """
        probes = min(probes, len(self._centroids))
        scores = query @ self._centroids.T
        nearest = np.argpartition(scores, -probes, axis=1)[:, -probes:]
        scores = np.take_along_axis(scores, nearest, axis=1)
        order = np.argsort(scores, axis=1)
        nearest, scores = (
            np.take_along_axis(array, order, axis=1).ravel() for array in (nearest, scores)
        )
        sizes = self.list_lengths[nearest].astype(np.int64)
        documents = np.asarray(self.lists[_ranges(self._list_starts[nearest], sizes)])
        above_worst = np.repeat(scores - np.repeat(scores[::probes], probes), sizes)
        estimates, best = (np.zeros(len(self), np.float32) for _ in range(2))
        is_candidate = np.zeros(len(self), bool)
        is_candidate[documents] = True
        bounds = np.concatenate([[0], np.cumsum(sizes)])[::probes]
        for start, end in zip(bounds, bounds[1:], strict=False):
            # A document that comes several times is assigned its last, and best, centroid, and is
            # added to once: NumPy reads all elements before it writes any.
            own = documents[start:end]
            best[own] = above_worst[start:end]
            estimates[own] += best[own]
        if allowed is not None:
            is_candidate &= allowed
        positions = np.flatnonzero(is_candidate)
        if len(positions) > count:
            order = np.lexsort((tie_order[positions], -estimates[positions]))
            positions = np.sort(positions[order[:count]])
        return positions

    def max_sim(
        self, query: Float32[np.ndarray, "q d"], positions: Int[np.ndarray, " c"]
    ) -> Float32[np.ndarray, " c"]:
        """Computes the sum over query tokens of the largest dot product with a document's tokens.

        Args:
            query: token embeddings.
            positions: of documents with at least one token, ascending.
        """
        codes, packed = self.encoded(positions)
        lengths = self.lengths[positions]
        starts = np.cumsum(lengths) - lengths
        padded = np.pad(query, [(0, -len(query) % QUERY_STEP), (0, 0)])
        scores = np.empty(len(positions), np.float32)
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            length = _shape_above(int(lengths[order[0]]))
            count = max(SLOTS // length, 1)
            own, order = order[:count], order[count:]
            slots = np.pad(starts[own], (0, count - len(own)))[:, None] + np.arange(length)
            slots = np.minimum(slots, len(codes) - 1)
            values = _max_sim(
                padded,
                self._device_centroids,
                self._device_table,
                codes[slots],
                packed[slots],
                np.pad(lengths[own], (0, count - len(own)), constant_values=1),
            )
            scores[own] = np.asarray(values)[: len(own)]
        return scores

    def encoded(
        self, positions: Int[np.ndarray, " c"]
    ) -> tuple[Int[np.ndarray, " t"], UInt8[np.ndarray, "t p"]]:
        """Reads the codes and residuals of documents, given by ascending positions."""
        codes, packed = [np.zeros(0, np.int32)], [np.zeros((0, self.codec.packed_dim), np.uint8)]
        first = 0
        for chunk in self.chunks:
            begin, end = np.searchsorted(positions, (first, first + len(chunk.ids)))
            if begin < end:
                own = positions[begin:end] - first
                starts = np.cumsum(chunk.lengths) - chunk.lengths
                rows = _ranges(starts[own], chunk.lengths[own])
                codes.append(chunk.arrays[CODES][rows])
                packed.append(chunk.arrays[RESIDUALS][rows])
            first += len(chunk.ids)
        return np.concatenate(codes), np.concatenate(packed)

    @functools.cached_property
    def _centroids(self) -> Float32[np.ndarray, "K d"]:
        return self.codec.centroids.astype(np.float32)

    @functools.cached_property
    def _list_starts(self) -> Int64[np.ndarray, " K"]:
        lengths = self.list_lengths.astype(np.int64)
        return np.cumsum(lengths) - lengths

    @functools.cached_property
    def _device_centroids(self) -> Float[Array, "K d"]:
        return jnp.asarray(self._centroids)

    @functools.cached_property
    def _device_table(self) -> Float[Array, "256 n"]:
        return jnp.asarray(self.codec.table)


@jax.jit
def _max_sim(
    query: Float[Array, "q d"],
    centroids: Float[Array, "K d"],
    table: Float[Array, "256 n"],
    codes: Int[Array, "c L"],
    packed: UInt8[Array, "c L p"],
    lengths: Int[Array, " c"],
) -> Float[Array, " c"]:
    """Decodes documents and scores them; rows of zeros in the query add nothing."""
    tokens = centroids[codes] + table[packed].reshape(*codes.shape, -1)
    norms = jnp.sqrt(jnp.sum(tokens * tokens, axis=-1, keepdims=True))
    is_token = jnp.arange(codes.shape[1]) < lengths[:, None]
    matches = best_matches(query[None], tokens / jnp.maximum(norms, 1e-12), is_token)
    return jnp.sum(matches[:, 0], axis=-1)


def _shape_above(length: int) -> int:
    """Returns the next of 8, 12, 16, 24, 32, 48, ..., so that few shapes are compiled."""
    power = 1 << max(length - 1, 7).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power


def _ranges(
    starts: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """Returns start, start + 1, ..., `length` numbers for each, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
