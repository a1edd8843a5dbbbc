"""K-means of vectors of length 1 (spherical), by FAISS."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64

from embed_jax.errors import require

BLOCK = 8192  # vectors compared with the centroids at a time


def learn_centroids(
    vectors: Float[np.ndarray, "n d"], count: int, *, iterations: int, points: int, seed: int
) -> Float32[np.ndarray, "K d"]:
    """Returns the centroids, of length 1, of a k-means of vectors by their cosine.

    Args:
        vectors: of length 1.
        count: K, at most n.
        iterations: passes over the vectors.
        points: vectors for each centroid; a random choice is made of more.
        seed: of that choice and of the first centroids.

    Raises:
        InputError: FAISS is not installed.
    """
    require("faiss")
    import faiss

    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=iterations,
        spherical=True,
        seed=seed,
        max_points_per_centroid=points,
        min_points_per_centroid=1,  # else FAISS warns of small samples
    )
    kmeans.train(np.ascontiguousarray(vectors, np.float32))
    assert kmeans.centroids is not None
    return kmeans.centroids


def nearest_centroids(
    vectors: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "K d"]
) -> Int64[np.ndarray, " n"]:
    """Returns the number of the centroid with the largest dot product with each vector."""
    blocks = (vectors[first : first + BLOCK] for first in range(0, len(vectors), BLOCK))
    return np.concatenate([np.argmax(block @ centroids.T, axis=1) for block in blocks])
