"""A sweep's rows: what a way to store embeddings costs and keeps, the Pareto fronts, the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

METRIC = "ndcg@10"
SEARCHES = ("symmetric", "asymmetric")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to store embeddings and to search them.

    Attributes:
        dim: numbers kept of each embedding.
        asymmetric: float queries against the codes, from the start.
        rescore: that many times as many candidates are scored again; 0: none are.
        originals: the precision of what they are scored with, stored beside the codes; None: the codes.
    """

    dim: int
    precision: str
    asymmetric: bool = True
    rescore: int = 0
    originals: str | None = None

    @property
    def search(self) -> str:
        return "exact" if self.precision == "float32" else SEARCHES[self.asymmetric]

    @property
    def rescoring(self) -> str:
        return (
            f"x{self.rescore}{f' by {self.originals}' if self.originals else ''}"
            if self.rescore
            else "none"
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a setting costs and keeps.

    Attributes:
        quality: nDCG@10, a fraction.
        interval: of the quality, 95 %, over queries.
        share: the quality over that of float32 at the model's full dimension.
        bytes_read: a vector's bytes that the search goes through.
        bytes_beside: a vector's bytes that only rescoring reads.
        bytes_once: of ranges or centres, whatever the number of vectors.
        queries_per_second: see `queries_per_second`.
    """

    setting: Setting
    quality: float
    interval: tuple[float, float]
    share: float
    bytes_read: int
    bytes_beside: int
    bytes_once: int
    queries_per_second: float

    @property
    def bytes(self) -> int:
        """All that is stored of a vector."""
        return self.bytes_read + self.bytes_beside


def front(rows: Sequence[Measured], cost: Callable[[Measured], float]) -> list[Measured]:
    """The Pareto front: what no other row is better than at its cost or below, and none as good below; by cost.

    Of rows alike in both, the one that is fewer bytes or, then, faster.
    """
    found: list[Measured] = []
    for row in sorted(rows, key=lambda row: (cost(row), -row.quality, row.bytes, by_time(row))):
        if not found or row.quality > found[-1].quality:
            found.append(row)
    return found


def by_bytes(row: Measured) -> float:
    return row.bytes


def by_time(row: Measured) -> float:
    return 1 / row.queries_per_second


def cheapest(rows: Sequence[Measured], keep: float) -> Measured:
    """Of the rows that keep this share: fewest bytes, then fastest."""
    return min(
        (row for row in rows if row.share >= keep), key=lambda row: (row.bytes, by_time(row))
    )


def fronts(row: Measured, rows: Sequence[Measured]) -> list[str]:
    """Which fronts a row is on: "bytes", "speed"."""
    return [
        name for name, cost in (("bytes", by_bytes), ("speed", by_time)) if row in front(rows, cost)
    ]


def table(rows: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells."""
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
    """A setting and what it costs, for people."""
    setting = row.setting
    how = f"{setting.precision}, {setting.dim} dimensions, {setting.search} search, rescoring {setting.rescoring}"
    return f"{how}: {row.bytes} bytes a vector, {row.queries_per_second:.0f} queries/s, {row.share:.1%}"


def as_json(row: Measured, rows: Sequence[Measured]) -> dict[str, Any]:
    fields = {name: value for name, value in vars(row).items() if name != "setting"}
    return {**vars(row.setting), **fields, "bytes": row.bytes, "fronts": fronts(row, rows)}
