"""Round-trip filtering: a pair stays if a search for its query finds its passage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError

Record = TypeVar("Record")
Search = Callable[[Sequence[str], int], tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]]

BLOCK = 8192  # queries searched for at a time


def round_trip_filter(
    records: Iterable[Record],
    search: Search,
    k: int,
    passages: Sequence[str],
    columns: Callable[[Record], tuple[str, str]] = lambda record: (
        record["anchor"],
        record["positive"],
    ),
) -> Iterator[Record]:
    """Yields, in order, the pairs whose passage is among the k best of all passages for their query.

    The round trip of Alberti et al. 2019, applied to generated queries as in Promptagator (Dai et al. 2022, k = 1), and
    the consistency filter of E5 for weak pairs (Wang et al. 2022, section 3.1, k = 2). Texts are compared without
    the white space around them. Memory does not grow with the number of records.

    Args:
        search: `search(queries, k) -> (scores, rows)`, rows of `passages`, best first; -1 where fewer are found. The
            method of the searchers of `retrieval.index` and `retrieval.bm25` made from `passages`.
        passages: all that is searched, each once: a copy of a passage would take a place among the k.
        columns: a record's (query, passage).

    Raises:
        InputError: for k below 1; if a record's passage is not among `passages`, or one stands there twice.
    """
    if k < 1:
        raise InputError(f"round_trip_filter: k must be 1 or more, found {k}")
    row_of = {passage.strip(): row for row, passage in enumerate(passages)}
    if len(row_of) < len(passages):
        raise InputError(
            f"found {len(passages) - len(row_of)} passages that stand in the corpus more than once"
        )
    records = iter(records)
    while block := list(itertools.islice(records, BLOCK)):
        texts = [columns(record) for record in block]
        for _, passage in texts:
            if passage.strip() not in row_of:
                raise InputError(f"no such passage in the corpus: {passage[:60]!r}")
        _, rows = search([query for query, _ in texts], k)
        own = np.array([row_of[passage.strip()] for _, passage in texts])
        found = (np.asarray(rows)[:, :k] == own[:, None]).any(axis=1)
        yield from itertools.compress(block, found.tolist())
