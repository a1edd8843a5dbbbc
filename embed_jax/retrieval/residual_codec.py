"""Token embeddings as the nearest of K centroids, and what is left in a few bits a dimension.

The compression of ColBERTv2 (Santhanam et al. 2022), in the form that fast-plaid stores: vectors
have length 1, and the buckets of a residual are the same for all dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32, UInt8

from embed_jax.errors import InputError, require
from embed_jax.retrieval.document_chunks import read_array
from embed_jax.retrieval.kmeans import learn_centroids

BITS = (1, 2, 4, 8)
ITERATIONS = 4  # of k-means
POINTS = 40  # tokens a centroid is learnt from; FAISS advises 39 or more
HELD_OUT = 50_000  # tokens, at most, whose residuals the buckets are learnt from
BUCKET_VALUES = 2**22  # numbers of those residuals, at most
LLOYD_STEPS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualCodec:
    """Compresses token embeddings of length 1, and gives back vectors of length 1 near them.

    Attributes:
        bits: of a dimension: 1, 2, 4 or 8.
        centroids: of length 1.
        cutoffs: the 2^bits - 1 limits between buckets of a residual, ascending.
        weights: the 2^bits values that stand for the buckets.
        avg_residual: the mean absolute residual of each dimension; not used here.
        threshold: three quarters of the tokens that the buckets were learnt from are nearer to
            their centroid than this.
    """

    bits: int
    centroids: Float16[np.ndarray, "K d"]
    cutoffs: Float32[np.ndarray, " limits"]
    weights: Float32[np.ndarray, " B"]
    avg_residual: Float32[np.ndarray, " d"]
    threshold: float

    def __post_init__(self):
        # fast-plaid reads them in float16: so both decode alike, and a codec is the same after it
        # was written and read.
        for name in ("cutoffs", "weights"):
            rounded = np.asarray(getattr(self, name)).astype(np.float16).astype(np.float32)
            object.__setattr__(self, name, rounded)

    @property
    def dim(self) -> int:
        """Returns d, the size of a token's embedding."""
        return self.centroids.shape[1]

    @property
    def packed_dim(self) -> int:
        """Returns the bytes of a token's residual."""
        return self.dim * self.bits // 8

    @functools.cached_property
    def table(self) -> Float32[np.ndarray, "256 n"]:
        """Returns the values of the 8 / bits dimensions that a byte stands for."""
        digits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        # A bucket's number stands with its lowest bit first.
        buckets = digits.reshape(256, 8 // self.bits, self.bits) @ (1 << np.arange(self.bits))
        return self.weights[buckets]

    @functools.cached_property
    def _nearest(self) -> Any:
        require("faiss")
        import faiss

        index = faiss.IndexFlatIP(self.dim)
        index.add(self.centroids.astype(np.float32))
        return index

    def encode(
        self, tokens: Float16[np.ndarray, "n d"]
    ) -> tuple[Int32[np.ndarray, " n"], UInt8[np.ndarray, "n p"]]:
        """Returns the number of each token's centroid, and its residual in bits.

        Raises:
            InputError: if FAISS is not installed.
        """
        if not len(tokens):
            return np.zeros(0, np.int32), np.zeros((0, self.packed_dim), np.uint8)
        vectors = tokens.astype(np.float32)
        codes = self._nearest.search(vectors, 1)[1][:, 0].astype(np.int32)
        residuals = vectors - self.centroids[codes]
        buckets = np.searchsorted(self.cutoffs, residuals).astype(np.uint8)
        digits = (buckets[..., None] >> np.arange(self.bits, dtype=np.uint8)) & 1
        return codes, np.packbits(digits.reshape(len(tokens), -1), axis=1)

    def decode(
        self, codes: Int32[np.ndarray, " n"], packed: UInt8[np.ndarray, "n p"]
    ) -> Float32[np.ndarray, "n d"]:
        """Returns vectors of length 1 near those that were encoded."""
        vectors = self.centroids[codes] + self.table[packed].reshape(len(codes), self.dim)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def save(self, folder: Path) -> None:
        """Writes the arrays under fast-plaid's names."""
        for name, array in (
            ("centroids", self.centroids),
            ("bucket_cutoffs", self.cutoffs),
            ("bucket_weights", self.weights),
            ("avg_residual", self.avg_residual),
            ("cluster_threshold", np.array([self.threshold], np.float32)),
        ):
            np.save(folder / f"{name}.npy", array)


FILES = ("centroids", "bucket_cutoffs", "bucket_weights", "avg_residual", "cluster_threshold")


def load_codec(folder: Path, bits: int) -> ResidualCodec:
    """Reads the arrays that `save` wrote, or fast-plaid.

    Raises:
        InputError: an array is damaged, or does not fit the others or `bits`.
    """
    centroids, cutoffs, weights, avg_residual, threshold = (
        read_array(folder / f"{name}.npy") for name in FILES
    )
    if (
        centroids.ndim != 2
        or cutoffs.shape != (2**bits - 1,)
        or weights.shape != (2**bits,)
        or avg_residual.shape != centroids.shape[1:]
        or threshold.size != 1
    ):
        shapes = f"{list(centroids.shape)}, {list(cutoffs.shape)} and {list(weights.shape)}"
        raise InputError(
            f"{folder}: centroids, bucket_cutoffs and bucket_weights of shapes {shapes} do not fit "
            f"{bits} bits"
        )
    return ResidualCodec(
        bits,
        centroids.astype(np.float16),
        cutoffs,
        weights,
        np.asarray(avg_residual, np.float32),
        float(threshold.reshape(())),
    )


def train_codec(
    sample: Float[np.ndarray, "n d"],
    bits: int,
    *,
    tokens: int | None = None,
    partitions: int | None = None,
    centroids: Float16[np.ndarray, "K d"] | None = None,
    seed: int = 0,
) -> ResidualCodec:
    """Learns centroids by k-means, and buckets from the residuals of tokens left out of it.

    The buckets are a k-means of the residuals' numbers as well (Lloyd 1982), where ColBERTv2 takes
    quantiles.

    Args:
        sample: tokens of length 1, in random order.
        bits: of a dimension: 1, 2, 4 or 8.
        tokens: how many the index will have; default: as many as the sample.
        partitions: K; default: 2^floor(log2(16 sqrt(tokens))), as in ColBERTv2, or fewer where the
            sample has fewer than 4 tokens for each.
        centroids: taken instead of learnt ones, such as those of a codec of other bits.
        seed: of k-means.

    Raises:
        InputError: for other bits, a dimension that is not a multiple of 8, a sample too small for
            `partitions`, or if FAISS is not installed.
    """
    if bits not in BITS:
        raise InputError(f"bits: expected 1, 2, 4 or 8, found {bits}")
    count, dim = sample.shape
    if dim % 8:
        raise InputError(f"dimension: expected a multiple of 8, found {dim}")
    held = min(HELD_OUT, max(count // 20, min(count // 2, 2048)))
    held_out, learnt = sample[:held], sample[held:]
    if centroids is None:
        centroids = _learn_centroids(learnt, partitions, tokens or count, seed)
    nothing = np.zeros(2**bits, np.float32)
    coarse = ResidualCodec(bits, centroids, nothing[1:], nothing, np.zeros(dim, np.float32), 0.0)
    held_out = held_out if held else learnt
    codes, _ = coarse.encode(held_out.astype(np.float16))
    residuals = held_out - centroids[codes].astype(np.float32)
    lengths = np.linalg.norm(residuals, axis=1)
    cutoffs, weights = _buckets(residuals.ravel()[:BUCKET_VALUES], 2**bits)
    avg_residual = np.abs(residuals).mean(axis=0).astype(np.float32)
    return ResidualCodec(
        bits, centroids, cutoffs, weights, avg_residual, float(np.quantile(lengths, 0.75))
    )


def _learn_centroids(
    learnt: Float[np.ndarray, "n d"], partitions: int | None, tokens: int, seed: int
) -> Float16[np.ndarray, "K d"]:
    """Returns the centroids of a k-means; see `train_codec`."""
    if partitions is None:
        limit = min(16 * math.sqrt(tokens), len(learnt) / 4)
        partitions = 2 ** max(math.floor(math.log2(max(limit, 1))), 0)
    elif not 1 <= partitions <= len(learnt):
        raise InputError(f"partitions: expected 1 to {len(learnt)}, found {partitions}")
    centroids = learn_centroids(
        learnt[: partitions * POINTS], partitions, iterations=ITERATIONS, points=POINTS, seed=seed
    )
    return centroids.astype(np.float16)


def _buckets(
    values: Float[np.ndarray, " n"], count: int
) -> tuple[Float32[np.ndarray, " m"], Float32[np.ndarray, " count"]]:
    """Returns the limits and the means of the buckets with the least squared error (k-means)."""
    values = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    weights = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(LLOYD_STEPS):
        ends = np.searchsorted(values, (weights[1:] + weights[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], ends, [len(values)]])
        sizes = np.diff(bounds)
        weights = np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), weights)
    return ((weights[1:] + weights[:-1]) / 2).astype(np.float32), weights.astype(np.float32)
