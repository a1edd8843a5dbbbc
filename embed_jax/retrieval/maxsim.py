"""Exact search by MaxSim: every query with every document, for small corpora and as the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.maxsim import maxsim_matrix
from embed_jax.retrieval.topk import Run, as_run

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
    vectors = encode_queries(list(queries.values()))
    scores: np.ndarray = np.zeros((len(queries), 0), np.float32)
    numbers: np.ndarray = np.zeros((len(queries), 0), np.int64)
    texts, start = iter(corpus.values()), 0
    while block := list(itertools.islice(texts, BLOCK)):
        new = maxsim_matrix(vectors, encode_documents(block), mean=mean)
        new_numbers = np.broadcast_to(start + np.arange(len(block)), new.shape)
        scores, numbers = np.hstack([scores, new]), np.hstack([numbers, new_numbers])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, numbers = (np.take_along_axis(each, best, axis=1) for each in (scores, numbers))
        start += len(block)
    return as_run(scores, numbers, list(queries), list(corpus))
