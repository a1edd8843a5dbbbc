"""Exact search by MaxSim: every query with every document, for small corpora and as the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.maxsim import maxsim_matrix
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.topk import search_by_matrices

BLOCK = 4096  # documents whose vectors are held at a time

EncodeTokens = Callable[[Sequence[str]], list[Float[np.ndarray, "_ d"]]]


def maxsim_search(
    encode_queries: EncodeTokens,
    encode_documents: EncodeTokens,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    k: int,
    *,
    mean: bool = False,
) -> Run:
    """Finds each query's k documents of the largest MaxSim; exact.

    >>> vectors = {"a": np.eye(2)[:1], "b": np.eye(2)[1:], "ab": np.eye(2)}
    >>> encode = lambda texts: [vectors[text] for text in texts]
    >>> maxsim_search(encode, encode, {"d1": "a", "d2": "ab"}, {"q": "ab"}, k=1)
    {'q': {'d2': 2.0}}

    Args:
        encode_queries: gives the vectors of each query's tokens.
        encode_documents: gives those of documents.
        corpus: documents by id.
        queries: queries by id.
        k: the number of documents for a query.
        mean: see `maxsim_matrix`.

    Returns:
        {query id: {document id: score}}, best first; equal scores in the corpus' order.
    """
    matrices = {"maxsim": functools.partial(maxsim_matrix, mean=mean)}
    encoders = encode_queries, encode_documents
    return search_by_matrices(*encoders, matrices, corpus, queries, k, block=BLOCK)["maxsim"]
