"""Documents on their way into a multi-vector index: checked, and read twice from one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from embed_jax.errors import InputError
from embed_jax.retrieval.document_chunks import IndexEntry
from embed_jax.retrieval.document_index import IndexDocument
from embed_jax.retrieval.index_build import ShowProgress, make_entry
from embed_jax.retrieval.residual_codec import HELD_OUT, POINTS, ResidualCodec, train_codec


def check_tokens(where: str, tokens: Any, dim: int | None) -> Float[np.ndarray, "n d"]:
    """Returns token embeddings in float32.

    Args:
        where: begins the message.
        tokens: `[n, d]`.
        dim: d; None: any.

    Raises:
        InputError: they are of another shape or dimension, or not finite.
    """
    array = np.asarray(tokens)
    if array.ndim != 2 or array.dtype.kind not in "fV":  # V: bfloat16
        raise InputError(
            f"{where}: expected floating-point numbers [tokens, dimension], found {array.dtype} "
            f"{list(array.shape)}"
        )
    if dim is not None and array.shape[1] != dim:
        raise InputError(f"{where}: of {array.shape[1]} dimensions, the index has {dim}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: a number that is not finite")
    return array


def token_entries(
    documents: Iterable[IndexDocument], dim: int | None, store_texts: bool = False
) -> Iterator[IndexEntry]:
    """Yields documents with tokens of length 1."""
    for document in documents:
        name, tokens = document[:2]
        array = check_tokens(f"document {name!r}", tokens, dim)
        dim = array.shape[1]
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not norms.all():
            raise InputError(f"document {name!r}: token {int(np.argmin(norms))} is a zero vector")
        yield make_entry(document, (array / norms).astype(np.float16), store_texts)


class Spool:
    """Documents in a file, from which centroids can be learnt before they are read again."""

    def __init__(self, file: Path, entries: Iterable[IndexEntry], progress: ShowProgress):
        """Writes all documents to the file, in float16."""
        self._file = file
        self._entries: list[IndexEntry] = []  # without their vectors
        lengths: list[int] = []
        self._dim = 0
        with file.open("wb") as stream:
            for entry in entries:
                stream.write(np.ascontiguousarray(entry.vectors).data)
                self._entries.append(dataclasses.replace(entry, vectors=entry.vectors[:0]))
                lengths.append(len(entry.vectors))
                self._dim = entry.vectors.shape[1]
                if len(lengths) % 1024 == 0:
                    progress("read", 1024)
        progress("read", len(lengths) % 1024)
        self._lengths = np.array(lengths, np.int64)

    def train(
        self,
        bits: int,
        partitions: int | None,
        centroids: Float16[np.ndarray, "K d"] | None,
        seed: int,
    ) -> ResidualCodec:
        """Learns a codec from documents drawn at random; see `train_codec`.

        Raises:
            InputError: there is no token; by `train_codec`.
        """
        total = int(self._lengths.sum())
        if not total:
            what = "documents without tokens only" if self._entries else "no documents"
            raise InputError(f"{what}: nothing to index")
        # What `train_codec` makes of `tokens`, or fewer.
        clusters = partitions or 2 ** int(np.log2(16 * np.sqrt(total)))
        limit = clusters * POINTS + HELD_OUT
        ends = np.cumsum(self._lengths)
        order = np.random.default_rng(seed).permutation(len(ends))
        chosen = order[: int(np.searchsorted(np.cumsum(self._lengths[order]), limit)) + 1]
        sample = np.empty((int(self._lengths[chosen].sum()), self._dim), np.float32)
        source, done = self._open(), 0
        for row in chosen:
            length = int(self._lengths[row])
            sample[done : done + length] = source[ends[row] - length : ends[row]]
            done += length
        return train_codec(
            sample, bits, tokens=total, partitions=partitions, centroids=centroids, seed=seed
        )

    def __iter__(self) -> Iterator[IndexEntry]:
        end = 0
        for position, (entry, length) in enumerate(
            zip(self._entries, self._lengths.tolist(), strict=True)
        ):
            if position % 1024 == 0:
                # Mapped anew: pages of a mapping that was let go do not count as memory.
                source = self._open()
            yield dataclasses.replace(entry, vectors=np.array(source[end : end + length]))
            end += length

    def _open(self) -> np.ndarray:
        shape = int(self._lengths.sum()), self._dim
        return np.memmap(self._file, np.float16, "r", shape=shape)
