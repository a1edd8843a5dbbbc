"""A snapshot of an index, opened: its documents, and what selects and orders them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from embed_jax.retrieval.document_chunks import Chunk
from embed_jax.retrieval.filters import Filter, select_documents

IndexVectors = Any
"""An embedding, dense or scipy's sparse; those of the tokens of a text; for BM25 the text itself.

Arrays are of NumPy or JAX, which is not imported here: it takes longer than a small write.
"""
IndexDocument = (
    tuple[str, IndexVectors]
    | tuple[str, IndexVectors, str]
    | tuple[str, IndexVectors, str, Mapping[str, Any]]
)
"""The id and embedding of a document, and perhaps its text and its fields by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class IndexState:
    """A snapshot of an index, opened."""

    description: Mapping[str, Any]
    folder: Path
    chunks: Sequence[Chunk]

    @functools.cached_property
    def ids(self) -> list[str]:
        """Returns the ids of all documents, in the order of the chunks."""
        return [name for chunk in self.chunks for name in chunk.ids]

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        """Returns where each id is."""
        return {name: position for position, name in enumerate(self.ids)}

    @functools.cached_property
    def tie_order(self) -> Int64[np.ndarray, " N"]:
        """Returns the rank of each document among equal scores: larger ids first, as trec_eval."""
        order = np.empty(len(self.ids), np.int64)
        by_id = sorted(range(len(self.ids)), key=self.ids.__getitem__, reverse=True)
        order[by_id] = np.arange(len(self.ids))
        return order

    @functools.cached_property
    def fields(self) -> list[Mapping[str, Any]]:
        """Returns the fields of all documents."""
        return [fields for chunk in self.chunks for fields in chunk.fields]

    def mask(
        self, allowed: Collection[str] | None, where: Filter | None = None
    ) -> Bool[np.ndarray, " N"] | None:
        """Marks the documents of these ids that a filter selects; None: all documents.

        Ids that are not in the index mark nothing.

        Raises:
            InputError: for a filter on a field that no document has.
        """
        if allowed is None and not where:
            return None
        mask = np.ones(len(self.ids), bool)
        if allowed is not None:
            mask[:] = False
            mask[[self.positions[name] for name in allowed if name in self.positions]] = True
        return mask & select_documents(self.fields, where) if where else mask

    def text(self, document: str) -> str:
        """Returns the stored text of a document, "" if it is not stored."""
        position = self.positions[document]
        for chunk in self.chunks:
            if position < len(chunk.ids):
                return chunk.texts[position]
            position -= len(chunk.ids)
        raise IndexError(document)

    def best(
        self,
        positions: Int64[np.ndarray, " c"],
        scores: Float[np.ndarray, " c"],
        k: int,
    ) -> dict[str, float]:
        """Returns the k documents with the largest scores; of equal scores larger ids first."""
        if k < len(scores):  # only those that may be among them are sorted
            chosen = scores >= np.partition(scores, -k)[-k]
            positions, scores = positions[chosen], scores[chosen]
        rows = np.lexsort((self.tie_order[positions], -scores))[:k]
        return {self.ids[positions[row]]: float(scores[row]) for row in rows}
