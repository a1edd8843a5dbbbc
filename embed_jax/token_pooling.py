"""Fewer vectors for a document: its tokens in clusters, each with one vector."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from embed_jax.scores import unit_length


def pool_tokens(
    tokens: Float[np.ndarray, "n d"],
    factor: float,
    *,
    protected: int = 1,
    normalize: bool = True,
) -> Float[np.ndarray, "m d"]:
    """Replaces clusters of alike tokens by their means (Clavie et al. 2024, arXiv 2409.14683).

    Clusters are those of Ward's method on the cosine distances of tokens of length 1.

    >>> tokens = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    >>> pool_tokens(tokens, factor=2.0).tolist()
    [[0.0, 1.0], [1.0, 0.0]]

    Args:
        tokens: a document's token vectors, of length 1.
        factor: about one of this number of vectors is left; 1: all are.
        protected: the first tokens, which are left as they are.
        normalize: whether all vectors are made length 1.
    """
    first, rest = tokens[:protected], tokens[protected:]
    clusters = max(int(len(rest) // factor), 1)
    if clusters < len(rest):
        from scipy.cluster.hierarchy import fcluster, linkage

        distances = np.clip(1 - rest @ rest.T, 0, 2)[np.triu_indices(len(rest), 1)]
        labels = fcluster(linkage(distances, method="ward"), t=clusters, criterion="maxclust")
        _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(sizes), tokens.shape[1]), np.float32)
        np.add.at(sums, cluster, rest)
        tokens = np.concatenate([first, sums / sizes[:, None]])
    return unit_length(tokens) if normalize else np.asarray(tokens, np.float32)
