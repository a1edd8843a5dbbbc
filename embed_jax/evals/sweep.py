"""Compressed embeddings: retrieval quality, bytes and speed by dimension, precision and search."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embed_jax.errors import InputError
from embed_jax.evals.metrics import mean_interval

K = 10
REPEATS, SECONDS = 7, 0.3  # a search is timed at least this often, and at least this long
ORIGINALS = ("int8", "float32")
METRIC = "ndcg@10"
SEARCHES = ("symmetric", "asymmetric")


@dataclasses.dataclass(frozen=True)
class SweepSetting:
    """A way to store embeddings and to search them.

    Attributes:
        dim: numbers kept of each embedding.
        precision: of the stored embeddings, see `retrieval.compress`.
        asymmetric: whether float queries are compared with the codes, from the start.
        rescore: candidates that are scored again, as a multiple of the results; 0: no rescoring.
        originals: the precision of the embeddings that candidates are scored again with, stored
            beside the codes; None: the codes.
    """

    dim: int
    precision: str
    asymmetric: bool = True
    rescore: int = 0
    originals: str | None = None

    @property
    def search(self) -> str:
        """Names the search: "exact", "symmetric" or "asymmetric"."""
        return "exact" if self.precision == "float32" else SEARCHES[self.asymmetric]

    @property
    def rescoring(self) -> str:
        """Describes the rescoring, such as "x4 by int8", or "none"."""
        return (
            f"x{self.rescore}{f' by {self.originals}' if self.originals else ''}"
            if self.rescore
            else "none"
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """The cost and the quality of a setting.

    Attributes:
        quality: nDCG@10, a fraction.
        interval: of the quality, 95 %, over queries.
        share: the quality over that of float32 at the model's full dimension.
        bytes_read: a vector's bytes that the search goes through.
        bytes_beside: a vector's bytes that only rescoring reads.
        bytes_once: of ranges or centres, whatever the number of vectors.
        queries_per_second: see `queries_per_second`.
    """

    setting: SweepSetting
    quality: float
    interval: tuple[float, float]
    share: float
    bytes_read: int
    bytes_beside: int
    bytes_once: int
    queries_per_second: float

    @property
    def bytes(self) -> int:
        """Returns the bytes that are stored of a vector."""
        return self.bytes_read + self.bytes_beside


def front(rows: Sequence[Measured], cost: Callable[[Measured], float]) -> list[Measured]:
    """Returns the rows of the Pareto front, by cost.

    No other row is better than one of these at its cost or below, or as good below its cost. Of
    rows equal in both, it is the one of fewer bytes or, then, the faster one.
    """
    front_rows: list[Measured] = []
    for row in sorted(rows, key=lambda row: (cost(row), -row.quality, row.bytes, by_time(row))):
        if not front_rows or row.quality > front_rows[-1].quality:
            front_rows.append(row)
    return front_rows


def by_bytes(row: Measured) -> float:
    """Returns a row's bytes for each vector, a cost for `front`."""
    return row.bytes


def by_time(row: Measured) -> float:
    """Returns a row's seconds for each query, a cost for `front`."""
    return 1 / row.queries_per_second


def cheapest(rows: Sequence[Measured], keep: float) -> Measured:
    """Returns the row that keeps this share with the fewest bytes, then the fastest."""
    return min(
        (row for row in rows if row.share >= keep), key=lambda row: (row.bytes, by_time(row))
    )


def fronts(row: Measured, rows: Sequence[Measured]) -> list[str]:
    """Returns the fronts that a row is on: "bytes", "speed"."""
    return [
        name for name, cost in (("bytes", by_bytes), ("speed", by_time)) if row in front(rows, cost)
    ]


def table(rows: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and cells of a table of the rows."""
    columns = [
        "dim",
        "precision",
        "search",
        "rescoring",
        METRIC,
        "share",
        "bytes/vector",
        "queries/s",
        "Pareto front",
    ]
    return columns, [
        [
            str(row.setting.dim),
            row.setting.precision,
            row.setting.search,
            row.setting.rescoring,
            f"{row.quality:.4f}",
            f"{row.share:.1%}",
            f"{row.bytes_read} + {row.bytes_beside}" if row.bytes_beside else str(row.bytes_read),
            f"{row.queries_per_second:.0f}",
            ", ".join(fronts(row, rows)),
        ]
        for row in rows
    ]


def described(row: Measured) -> str:
    """Describes a setting and what it costs, for people."""
    setting = row.setting
    return (
        f"{setting.precision}, {setting.dim} dimensions, {setting.search} search, rescoring "
        f"{setting.rescoring}: {row.bytes} bytes a vector, {row.queries_per_second:.0f} queries/s, "
        f"{row.share:.1%}"
    )


def as_json(row: Measured, rows: Sequence[Measured]) -> dict[str, Any]:
    """Returns a row's setting and figures, and the fronts that it is on, as plain values."""
    fields = {name: value for name, value in vars(row).items() if name != "setting"}
    return {**vars(row.setting), **fields, "bytes": row.bytes, "fronts": fronts(row, rows)}


def trained_sizes(model: Any) -> list[int]:
    """Returns the sizes that a model's embeddings were trained for, the largest first.

    The first one is the size of the whole embedding.
    """
    return sorted({model.dim, *getattr(model, "matryoshka_dims", ())}, reverse=True)


def settings(
    dim: int,
    dims: Sequence[int],
    precisions: Sequence[str],
    asymmetric: Sequence[bool],
    rescoring: Sequence[tuple[int, str | None]],
) -> list[SweepSetting]:
    """Combines settings: float32 at the model's dimension, and every other distinct search.

    Left out are other searches of float32, and rescoring with the embeddings that the scores
    already come from.

    Args:
        dim: the size of the model's embeddings.
        dims: numbers kept of each embedding; empty: `dim`.
        precisions: precisions to try.
        asymmetric: whether float queries are compared with the codes, each way to try.
        rescoring: (rescore, originals) of `SweepSetting`, each pair to try.

    Raises:
        InputError: for a dimension above the model's, or a precision that a dimension cannot have.
    """
    from embed_jax.retrieval.calibration import check_precision

    combinations = [SweepSetting(dim, "float32")]
    if max(dims, default=1) > dim:
        raise InputError(
            f"dims: expected 1 to {dim}, the size of the model's embeddings, found {max(dims)}"
        )
    for size in dims or [dim]:
        for precision in precisions:
            check_precision(precision, size)
            for float_queries, (rescore, originals) in itertools.product(asymmetric, rescoring):
                if precision == "float32":
                    combinations.append(SweepSetting(size, precision))
                elif originals != precision and (originals or not (rescore and float_queries)):
                    combinations.append(
                        SweepSetting(size, precision, float_queries, rescore, originals)
                    )
    return list(dict.fromkeys(combinations))


def measure(
    documents: Any,
    queries: Any,
    names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    chosen: Sequence[SweepSetting],
    ignore_identical_ids: bool = False,
) -> list[Measured]:
    """Measures each of the settings, in their order; shares are of the quality of the first.

    Args:
        documents: float embeddings, [N, D], in the order of `names`.
        queries: float embeddings, [Q, D], in the order of `qrels`.
        names: ids of the documents.
        qrels: {query id: {document id: relevance}}.
        chosen: the settings.
        ignore_identical_ids: see `search.evaluate_retrieval`.

    Raises:
        InputError: if the first setting has quality 0, or the documents are too few to calibrate
            on.
    """
    from embed_jax.evals.search import score_run
    from embed_jax.retrieval.calibration import SAMPLE, calibrate
    from embed_jax.retrieval.compressed import CompressedIndex
    from embed_jax.retrieval.quantize import compress
    from embed_jax.scores import truncate

    def prefix(embeddings, dim):
        return truncate(embeddings, dim) if dim < embeddings.shape[1] else embeddings

    @functools.lru_cache(
        maxsize=len(ORIGINALS) + 1
    )  # what is stored beside serves several settings
    def compressed(dim, precision):
        cut = prefix(documents, dim)
        return compress(cut, precision, calibrate(cut[:: -(-len(cut) // SAMPLE)], precision))

    measured: list[Measured] = []
    for (dim, precision), group in itertools.groupby(
        chosen, lambda setting: (setting.dim, setting.precision)
    ):
        index, cut_queries = CompressedIndex(compressed(dim, precision)), prefix(queries, dim)
        for setting in group:
            originals = compressed(dim, setting.originals) if setting.originals else None
            seconds, (_, rows) = timed(
                functools.partial(
                    index.search,
                    cut_queries,
                    K + ignore_identical_ids,
                    asymmetric=setting.asymmetric,
                    rescore=setting.rescore,
                    originals=originals,
                )
            )
            run = {
                query: {
                    names[row]: 0.0
                    for row in own
                    if not (ignore_identical_ids and names[row] == query)
                }
                for query, own in zip(qrels, rows.tolist(), strict=True)
            }
            values = score_run(run, qrels, ks=(K,)).per_query[METRIC]
            quality = float(values.mean())
            if not measured and not quality:
                raise InputError(
                    f"{METRIC} of the embeddings as they are is 0: there is nothing to keep a "
                    "share of"
                )
            measured.append(
                Measured(
                    setting,
                    quality,
                    mean_interval(values),
                    quality / (measured[0].quality if measured else quality),
                    index.bytes_per_vector,
                    originals.bytes_per_vector if originals else 0,
                    index.bytes_once,
                    len(queries) / seconds,
                )
            )
    return measured


def timed(search: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the median seconds of a search, and its result."""
    result = search()
    seconds: list[float] = []
    while len(seconds) < REPEATS or sum(seconds) < SECONDS:
        began = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result
