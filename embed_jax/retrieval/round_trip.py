"""Round-trip filtering: a pair stays if a search for its query finds its passage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError
from embed_jax.retrieval.copies import PassageIndex

AnyRecord = TypeVar("AnyRecord")
Search = Callable[[Sequence[str], int], tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]]

BLOCK = 8192  # queries searched for at a time


def _pair(record: Any) -> tuple[str, str]:
    """Returns the texts of a record that is a mapping."""
    return record["anchor"], record["positive"]


def round_trip_filter(
    records: Iterable[AnyRecord],
    search: Search,
    k: int,
    passages: Sequence[str],
    columns: Callable[[AnyRecord], tuple[str, str]] = _pair,
) -> Iterator[AnyRecord]:
    """Yields, in order, the pairs whose passage is among the k best for their query.

    The round trip of Alberti et al. 2019, applied to generated queries as in Promptagator (Dai et
    al. 2022, k = 1), and the consistency filter of E5 for weak pairs (Wang et al. 2022, section
    3.1, k = 2). A copy of the passage counts as the passage, see `retrieval.copies`. Memory does
    not grow with the number of records.

    Args:
        records: pairs of query and passage.
        search: `search(queries, k) -> (scores, rows)`, rows of `passages`, best first; -1 where
            fewer are found. The method of the searchers of `retrieval.index` and `retrieval.bm25`
            made from `passages`.
        k: how many passages are looked at.
        passages: all that is searched, each once: a copy of a passage would take a position among
            the k.
        columns: returns a record's (query, passage).

    Raises:
        InputError: for k below 1; if a record's passage is not among `passages`, or one stands
            there twice.
    """
    if k < 1:
        raise InputError(f"round_trip_filter: k must be 1 or more, found {k}")
    index = PassageIndex(passages)
    if repeated := int((index.same != np.arange(len(passages))).sum()):
        raise InputError(f"found {repeated} passages that stand in the corpus more than once")
    records = iter(records)
    while block := list(itertools.islice(records, BLOCK)):
        texts = [columns(record) for record in block]
        own = index.rows_of([passage for _, passage in texts])
        for rows, (_, passage) in zip(own, texts, strict=True):
            if not rows:
                raise InputError(f"no such passage in the corpus: {passage[:60]!r}")
        _, best = search([query for query, _ in texts], k)
        for record, rows, ranked, (_, passage) in zip(
            block, own, np.asarray(best)[:, :k], texts, strict=True
        ):
            ranked = ranked[ranked >= 0].tolist()
            if set(rows) & set(ranked) or index.copies(ranked, [passage]).any():
                yield record
