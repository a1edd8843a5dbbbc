"""The files of a multi-vector index besides its chunks: documents of each centroid, and counts.

Together with the chunks and the codec it is the layout of fast-plaid, without pickles:

    I.codes.npy, I.residuals.npy         centroid and packed residual of each token of chunk I
    doclens.I.json, I.metadata.json      tokens of each document; counts
    ivf.npy, ivf_lengths.npy             for each centroid the positions of the documents that have
                                         a token there, ascending
    metadata.json, plan.json             counts of the whole

Codes are int32, which fast-plaid widens to its int64 when it opens them. `documents.I.json` is our
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from embed_jax.retrieval.document_chunks import Chunk, write_index_json
from embed_jax.retrieval.residual_codec import ResidualCodec

CODES, RESIDUALS = "codes", "residuals"  # arrays of a chunk


def write_lists(chunks: Sequence[Chunk], partitions: int, folder: Path) -> None:
    """Writes for each centroid the documents that have a token there.

    Goes over the chunks twice, and holds one of them at a time.
    """
    counts = np.zeros(partitions, np.int64)
    for chunk in chunks:
        counts += np.bincount(_pairs(chunk)[0], minlength=partitions)
    np.save(folder / "ivf_lengths.npy", counts.astype(np.int32))
    path, total = folder / "ivf.npy", int(counts.sum())
    if not total:
        np.save(path, np.zeros(0, np.int64))
        return
    lists = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(total,))
    ends = np.cumsum(counts) - counts
    first = 0
    for chunk in chunks:
        codes, documents = _pairs(chunk)
        sizes = np.bincount(codes, minlength=partitions)
        within = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        lists[ends[codes] + within] = documents + first
        ends += sizes
        first += len(chunk.ids)
    lists.flush()


def _pairs(chunk: Chunk) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Returns each centroid with each of its documents once, in the order of both."""
    count = max(len(chunk.ids), 1)
    documents = np.repeat(np.arange(len(chunk.ids)), chunk.lengths)
    pairs = np.unique(chunk.arrays[CODES].astype(np.int64) * count + documents)
    return np.divmod(pairs, count)


def write_counts(chunks: Sequence[Chunk], codec: ResidualCodec, folder: Path) -> None:
    """Writes the files that tell fast-plaid what there is."""
    tokens = 0
    for number, chunk in enumerate(chunks):
        counts = {"num_documents": len(chunk.ids), "num_embeddings": chunk.rows}
        write_index_json(folder / f"{number}.metadata.json", {**counts, "embedding_offset": tokens})
        tokens += chunk.rows
    documents = sum(len(chunk.ids) for chunk in chunks)
    plan = {"nbits": codec.bits, "num_chunks": len(chunks)}
    write_index_json(folder / "plan.json", plan)
    counts = {"num_documents": documents, "num_embeddings": tokens}
    averages = {"avg_doclen": tokens / max(documents, 1), "num_partitions": len(codec.centroids)}
    write_index_json(
        folder / "metadata.json", {**plan, **counts, **averages, "compress_only": False}
    )
