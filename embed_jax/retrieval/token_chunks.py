"""The files of a multi-vector index: encoded documents in chunks, and lists of them by centroid.

The layout of fast-plaid, without pickles:

    I.codes.npy, I.residuals.npy         centroid and packed residual of each token of chunk I
    doclens.I.json, I.metadata.json      tokens of each document; counts
    ivf.npy, ivf_lengths.npy             for each centroid the positions of the documents that have
                                         a token there, ascending
    metadata.json, plan.json             counts of the whole

and `documents.I.json`, our own: the ids of the documents, and hashes of their texts. Codes are
int32, which fast-plaid widens to its int64 when it opens them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from embed_jax.errors import InputError
from embed_jax.retrieval.residual_codec import ResidualCodec, read_array
from embed_jax.retrieval.token_documents import IndexEntry
from embed_jax.snapshots import link_file

CHUNK_TOKENS = 2**19  # of a chunk, at most, unless a single document has more
BLOCK_TOKENS = 2**15  # encoded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive documents of an index, encoded, in the files of number `number` in `folder`."""

    folder: Path
    number: int
    ids: Sequence[str]
    hashes: Sequence[str]
    lengths: Int64[np.ndarray, " n"]

    @property
    def tokens(self) -> int:
        """Returns how many tokens the documents have."""
        return int(self.lengths.sum())

    @functools.cached_property
    def codes(self) -> Int32[np.ndarray, " t"]:
        """Returns the tokens' centroids, mapped from the file."""
        return read_array(self.folder / f"{self.number}.codes.npy", mapped=True)

    @functools.cached_property
    def packed(self) -> UInt8[np.ndarray, "t p"]:
        """Returns the tokens' residuals, mapped from the file."""
        return read_array(self.folder / f"{self.number}.residuals.npy", mapped=True)

    def place(self, folder: Path, number: int, first_token: int) -> Chunk:
        """Puts the chunk into a snapshot, where it gets another number."""
        for name in ("codes.npy", "residuals.npy"):
            link_file(self.folder / f"{self.number}.{name}", folder / f"{number}.{name}")
        counts = {"num_documents": len(self.ids), "num_embeddings": self.tokens}
        _write_json(folder / f"doclens.{number}.json", self.lengths.tolist())
        _write_json(folder / f"{number}.metadata.json", {**counts, "embedding_offset": first_token})
        names = {"ids": list(self.ids), "text_hashes": list(self.hashes)}
        _write_json(folder / f"documents.{number}.json", names)
        return dataclasses.replace(self, folder=folder, number=number)

    def take(self, keep: Bool[np.ndarray, " n"], folder: Path, number: int) -> Chunk:
        """Writes some of the documents as another chunk."""
        of_token = np.repeat(keep, self.lengths)
        return write_chunk(
            folder,
            number,
            list(itertools.compress(self.ids, keep)),
            list(itertools.compress(self.hashes, keep)),
            self.lengths[keep],
            self.codes[of_token],
            self.packed[of_token],
        )


def write_chunk(
    folder: Path,
    number: int,
    ids: Sequence[str],
    hashes: Sequence[str],
    lengths: Int64[np.ndarray, " n"],
    codes: Int32[np.ndarray, " t"],
    packed: UInt8[np.ndarray, "t p"],
) -> Chunk:
    """Writes the two large files of a chunk; `Chunk.place` writes the others."""
    np.save(folder / f"{number}.codes.npy", codes)
    np.save(folder / f"{number}.residuals.npy", packed)
    return Chunk(folder, number, ids, hashes, lengths)


def encode_chunks(
    entries: Iterable[IndexEntry], codec: ResidualCodec, folder: Path, numbers: Iterator[int]
) -> Iterator[Chunk]:
    """Encodes documents, and yields each chunk when it is written.

    Memory holds the codes of one chunk, and a block of embeddings.
    """
    ids: list[str] = []
    hashes: list[str] = []
    lengths: list[int] = []
    block: list[np.ndarray] = []
    encoded: list[tuple[np.ndarray, np.ndarray]] = []
    chunk_tokens = block_tokens = 0

    def encode_block() -> None:
        nonlocal block_tokens
        if block:
            encoded.append(codec.encode(np.concatenate(block)))
        block.clear()
        block_tokens = 0

    def close_chunk() -> Chunk:
        nonlocal chunk_tokens
        encode_block()
        empty = codec.encode(np.zeros((0, codec.dim), np.float16))
        codes, packed = map(np.concatenate, zip(empty, *encoded, strict=True))
        chunk = write_chunk(
            folder,
            next(numbers),
            ids.copy(),
            hashes.copy(),
            np.array(lengths, np.int64),
            codes,
            packed,
        )
        for values in (ids, hashes, lengths, encoded):
            values.clear()
        chunk_tokens = 0
        return chunk

    for entry in entries:
        size = len(entry.tokens)
        if ids and chunk_tokens + size > CHUNK_TOKENS:
            yield close_chunk()
        ids.append(entry.id)
        hashes.append(entry.text_hash)
        lengths.append(size)
        block.append(entry.tokens)
        chunk_tokens += size
        block_tokens += size
        if block_tokens >= BLOCK_TOKENS:
            encode_block()
    if ids:
        yield close_chunk()


def merge_small(chunks: Iterable[Chunk], folder: Path, numbers: Iterator[int]) -> Iterator[Chunk]:
    """Joins neighbouring chunks that fit into one, so that many small writes leave few chunks."""
    group: list[Chunk] = []

    def joined() -> Chunk:
        if len(group) == 1:
            return group[0]
        return write_chunk(
            folder,
            next(numbers),
            [name for chunk in group for name in chunk.ids],
            [text_hash for chunk in group for text_hash in chunk.hashes],
            np.concatenate([chunk.lengths for chunk in group]),
            np.concatenate([chunk.codes for chunk in group]),
            np.concatenate([chunk.packed for chunk in group]),
        )

    for chunk in chunks:
        if group and sum(each.tokens for each in group) + chunk.tokens > CHUNK_TOKENS:
            yield joined()
            group = []
        group.append(chunk)
    if group:
        yield joined()


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
    pairs = np.unique(chunk.codes.astype(np.int64) * count + documents)
    return np.divmod(pairs, count)


def write_counts(chunks: Sequence[Chunk], codec: ResidualCodec, folder: Path) -> None:
    """Writes the two files that tell fast-plaid what there is."""
    documents = sum(len(chunk.ids) for chunk in chunks)
    tokens = sum(chunk.tokens for chunk in chunks)
    plan = {"nbits": codec.bits, "num_chunks": len(chunks)}
    _write_json(folder / "plan.json", plan)
    counts = {"num_documents": documents, "num_embeddings": tokens}
    averages = {"avg_doclen": tokens / max(documents, 1), "num_partitions": len(codec.centroids)}
    _write_json(folder / "metadata.json", {**plan, **counts, **averages, "compress_only": False})


def load_chunks(folder: Path) -> list[Chunk]:
    """Reads what documents a snapshot has.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is damaged, or does not fit another.
    """
    count = _read_json(folder / "metadata.json")["num_chunks"]
    chunks = []
    for number in range(count):
        names = _read_json(folder / f"documents.{number}.json")
        lengths = np.array(_read_json(folder / f"doclens.{number}.json"), np.int64)
        chunk = Chunk(folder, number, names["ids"], names["text_hashes"], lengths)
        # Mapped now: a writer may remove the files, which stay readable where they are mapped.
        shapes = {len(chunk.codes), len(chunk.packed), chunk.tokens}
        if len(shapes) > 1 or not len(chunk.ids) == len(chunk.hashes) == len(lengths):
            raise InputError(f"{folder}: the files of chunk {number} do not fit each other")
        chunks.append(chunk)
    return chunks


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from None
