"""Compressed token vectors: retrieval quality, bytes and time by residual bits and pooling."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.evals.metrics import mean_interval
from embed_jax.evals.significance import PairedDifference, paired_difference

K = 10
METRIC = "ndcg@10"
TIMED = 50  # queries at most, one after the other


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """The cost and the quality of a way to store token vectors.

    Attributes:
        pool: see `token_pooling.pool_tokens`; 1: every token has its vector.
        bits: of a dimension of a residual; 16: vectors in float16, which are searched exactly.
        quality: nDCG@10, a fraction.
        interval: of the quality, 95 %, over queries.
        difference: from the first row, paired by query; None for the first row itself.
        bytes_per_vector: codes and residuals of one token.
        bytes_per_document: all files of the index but its texts.
        milliseconds: median of one query, its embedding not counted; None for an exact search.
    """

    pool: float
    bits: int
    quality: float
    interval: tuple[float, float]
    difference: PairedDifference | None
    bytes_per_vector: float
    bytes_per_document: float
    milliseconds: float | None

    def as_json(self) -> dict[str, Any]:
        """Returns the figures as plain values."""
        return dataclasses.asdict(self)


def measure_tokens(
    documents: Sequence[np.ndarray],
    queries: Sequence[np.ndarray],
    names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    bits: Sequence[int],
    factors: Sequence[float],
    protected: int = 1,
    normalize: bool = True,
    ignore_identical_ids: bool = False,
) -> Iterator[TokenRow]:
    """Measures an index for each pooling factor and number of bits, and yields row by row.

    The first row is the exact search of all tokens as they are.

    Args:
        documents: token vectors of length 1, `[n, d]` each, in the order of `names`.
        queries: token vectors, `[q, d]` each, in the order of `qrels`.
        names: ids of the documents.
        qrels: {query id: {document id: relevance}}.
        bits: of a dimension of a residual, each number to try.
        factors: of token pooling, each to try; see `token_pooling.pool_tokens`.
        protected: tokens at the start of a document that are not pooled.
        normalize: whether pooled vectors are made length 1.
        ignore_identical_ids: see `search.evaluate_retrieval`.

    Raises:
        InputError: see `multi_vector.build_multi_vector`.
    """
    from embed_jax.evals.search import score_run
    from embed_jax.retrieval.maxsim import maxsim_search
    from embed_jax.retrieval.multi_vector import build_multi_vector
    from embed_jax.token_pooling import pool_tokens

    depth = K + ignore_identical_ids
    vectors = dict(zip(names, documents, strict=True))
    query_tokens = dict(zip(qrels, queries, strict=True))

    def scores(run: Mapping[str, Mapping[str, float]]) -> np.ndarray:
        served = {
            query: {
                name: score
                for name, score in own.items()
                if not (ignore_identical_ids and name == query)
            }
            for query, own in run.items()
        }
        return score_run(served, qrels, ks=(K,)).per_query[METRIC]

    exact = maxsim_search(
        lambda ids: [query_tokens[query] for query in ids],
        lambda ids: [vectors[name] for name in ids],
        {name: name for name in names},
        {query: query for query in qrels},
        depth,
    )
    first = scores(exact)
    dim = queries[0].shape[1]
    tokens = sum(map(len, documents))
    yield TokenRow(
        1.0,
        16,
        float(first.mean()),
        mean_interval(first),
        None,
        2.0 * dim,
        2.0 * dim * tokens / len(documents),
        None,
    )
    for factor in factors:
        pooled = [pool_tokens(each, factor, protected=protected, normalize=normalize)
                  for each in documents]  # fmt: skip
        centroids = None  # the same for all bits
        for number in bits:
            with tempfile.TemporaryDirectory() as folder:
                index = build_multi_vector(
                    Path(folder) / "index",
                    zip(names, pooled, strict=True),
                    identity={},
                    bits=number,
                    centroids=centroids,
                )
                centroids = index.codec.centroids
                values = scores(dict(zip(qrels, index.search(queries, depth), strict=True)))
                seconds = []
                for query in itertools.islice(queries, TIMED):  # compiled and read by now
                    began = time.perf_counter()
                    index.search([query], depth)
                    seconds.append(time.perf_counter() - began)
                size = index.size()
            yield TokenRow(
                factor,
                number,
                float(values.mean()),
                mean_interval(values),
                paired_difference(values, first),
                (size["codes"] + size["residuals"]) / size["tokens"],
                size["bytes per document"],
                1000 * statistics.median(seconds),
            )


def compressed_tokens_table(rows: Sequence[TokenRow]) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and cells of a table of the rows."""
    columns = ["pooling", "bits", METRIC, "difference", "bytes/vector", "bytes/document", "ratio"]
    whole = rows[0].bytes_per_document
    return [*columns, "ms/query"], [
        [
            f"{row.pool:g}",
            str(row.bits),
            "{:.4f} [{:.3f}, {:.3f}]".format(row.quality, *row.interval),
            "{:+.4f} [{:+.3f}, {:+.3f}]".format(row.difference.difference, *row.difference.interval)
            if row.difference
            else "",
            f"{row.bytes_per_vector:.0f}",
            f"{row.bytes_per_document:,.0f}",
            f"{whole / row.bytes_per_document:.1f}",
            "exact" if row.milliseconds is None else f"{row.milliseconds:.1f}",
        ]
        for row in rows
    ]
