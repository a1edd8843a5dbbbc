"""The files of an index: its documents in chunks, each a few arrays and the documents' ids.

    I.NAME.npy           for each vector of chunk I something; what it is depends on the index
    doclens.I.json       how many vectors each document has
    documents.I.json     the ids of the documents, hashes of their texts, and their fields
    I.texts.npy, I.text_ends.npy    the texts in UTF-8, and where each ends; if texts are stored

A chunk never changes. Another snapshot of the index links its files, or has others in their place.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from embed_jax.errors import InputError
from embed_jax.snapshots import link_file

BLOCK = 2**15  # vectors encoded at a time
TEXTS, TEXT_ENDS = "texts", "text_ends"  # arrays of the stored texts
TEXT_FILES = "*.text*.npy"  # their files


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """A document on its way into an index.

    Attributes:
        id: any string.
        vectors: its embedding, or those of its tokens; for search by words, its words.
        text_hash: of its text; "" if the text is not known.
        fields: its metadata by name.
        text: to store; None: is not stored.
    """

    id: str
    vectors: Shaped[np.ndarray, "n ..."]
    text_hash: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str | None = None


def hash_of(text: str) -> str:
    """Returns 32 characters that identify a text.

    >>> hash_of("a")
    '27c35e6e9373877f29e562464e46497e'
    """
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class StoredTexts(Sequence[str]):
    """The texts of a chunk, read from a mapped file one by one."""

    def __init__(self, content: UInt8[np.ndarray, " b"], ends: Int64[np.ndarray, " n"]):
        self._content, self._ends = content, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        start = self._ends[position - 1] if position else 0
        content = bytes(self._content[start : self._ends[position]])
        return content.decode("utf-8", errors="surrogatepass")


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive documents of an index, in the files of number `number` in `folder`.

    Attributes:
        folder: of the files.
        number: in their names.
        names: of the arrays, which have a row for each vector.
        ids: of the documents.
        hashes: of their texts, or "".
        lengths: how many vectors each document has.
        fields: of each document.
        has_texts: whether texts are stored.
    """

    folder: Path
    number: int
    names: Sequence[str]
    ids: Sequence[str]
    hashes: Sequence[str]
    lengths: Int64[np.ndarray, " n"]
    fields: Sequence[Mapping[str, Any]]
    has_texts: bool = False

    @property
    def rows(self) -> int:
        """Returns how many vectors the documents have."""
        return int(self.lengths.sum())

    @functools.cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Returns the arrays by name, mapped from the files."""
        return {
            name: read_array(self.folder / f"{self.number}.{name}.npy", mapped=True)
            for name in self.names
        }

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Returns the stored texts; "" for each document without them."""
        if not self.has_texts:
            return [""] * len(self.ids)
        content, ends = (
            read_array(self.folder / f"{self.number}.{name}.npy", mapped=name == TEXTS)
            for name in (TEXTS, TEXT_ENDS)
        )
        return StoredTexts(content, ends)

    def place(self, folder: Path, number: int) -> Chunk:
        """Puts the chunk into a snapshot, where it gets another number."""
        for name in (*self.names, *((TEXTS, TEXT_ENDS) if self.has_texts else ())):
            link_file(self.folder / f"{self.number}.{name}.npy", folder / f"{number}.{name}.npy")
        write_index_json(folder / f"doclens.{number}.json", self.lengths.tolist())
        names: dict[str, Any] = {"ids": list(self.ids), "text_hashes": list(self.hashes)}
        if any(self.fields):
            names["fields"] = list(map(dict, self.fields))
        write_index_json(folder / f"documents.{number}.json", names)
        return dataclasses.replace(self, folder=folder, number=number)

    def take(self, keep: Bool[np.ndarray, " n"], folder: Path, number: int) -> Chunk:
        """Writes some of the documents as another chunk."""
        of_row = np.repeat(keep, self.lengths)
        return write_chunk(
            folder,
            number,
            list(itertools.compress(self.ids, keep)),
            list(itertools.compress(self.hashes, keep)),
            self.lengths[keep],
            {name: array[of_row] for name, array in self.arrays.items()},
            list(itertools.compress(self.fields, keep)),
            list(itertools.compress(self.texts, keep)) if self.has_texts else None,
        )


def write_chunk(
    folder: Path,
    number: int,
    ids: Sequence[str],
    hashes: Sequence[str],
    lengths: Int64[np.ndarray, " n"],
    arrays: Mapping[str, np.ndarray],
    fields: Sequence[Mapping[str, Any]],
    texts: Sequence[str] | None = None,
) -> Chunk:
    """Writes the arrays and texts of a chunk; `Chunk.place` writes the other files."""
    stored = dict(arrays)
    if texts is not None:
        contents = [text.encode("utf-8", errors="surrogatepass") for text in texts]
        stored[TEXTS] = np.frombuffer(b"".join(contents), np.uint8)
        stored[TEXT_ENDS] = np.cumsum([len(content) for content in contents], dtype=np.int64)
    for name, array in stored.items():
        np.save(folder / f"{number}.{name}.npy", array)
    has_texts = texts is not None
    return Chunk(folder, number, tuple(arrays), ids, hashes, lengths, fields, has_texts)


def encode_chunks(
    entries: Iterable[IndexEntry],
    encode: Callable[[Shaped[np.ndarray, "n ..."]], Mapping[str, np.ndarray]],
    folder: Path,
    numbers: Iterator[int],
    limit: int,
) -> Iterator[Chunk]:
    """Encodes documents, and yields each chunk when it is written.

    Memory holds the arrays of one chunk, and a block of vectors.

    Args:
        entries: documents.
        encode: makes the arrays of a block of vectors.
        folder: to write to.
        numbers: of chunks that are not in the folder yet.
        limit: vectors of a chunk, at most, unless a single document has more.
    """
    members: list[IndexEntry] = []  # without their vectors
    lengths: list[int] = []
    block: list[np.ndarray] = []
    encoded: list[Mapping[str, np.ndarray]] = []
    chunk_rows = block_rows = 0

    def encode_block() -> None:
        nonlocal block_rows
        if block:
            encoded.append(encode(np.concatenate(block)))
        block.clear()
        block_rows = 0

    def close_chunk() -> Chunk:
        nonlocal chunk_rows
        encode_block()
        chunk_rows = 0
        texts = [entry.text for entry in members]
        has_texts = any(text is not None for text in texts)
        chunk = write_chunk(
            folder,
            next(numbers),
            [entry.id for entry in members],
            [entry.text_hash for entry in members],
            np.array(lengths, np.int64),
            {name: np.concatenate([part[name] for part in encoded]) for name in encoded[0]},
            [entry.fields for entry in members],
            [text or "" for text in texts] if has_texts else None,
        )
        for values in (members, lengths, encoded):
            values.clear()
        return chunk

    for entry in entries:
        size = len(entry.vectors)
        if members and chunk_rows + size > limit:
            yield close_chunk()
        members.append(dataclasses.replace(entry, vectors=entry.vectors[:0]))
        lengths.append(size)
        block.append(entry.vectors)
        chunk_rows += size
        block_rows += size
        if block_rows >= BLOCK:
            encode_block()
    if members:
        yield close_chunk()


def merge_small(
    chunks: Iterable[Chunk], folder: Path, numbers: Iterator[int], limit: int
) -> Iterator[Chunk]:
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
            {
                name: np.concatenate([chunk.arrays[name] for chunk in group])
                for name in group[0].names
            },
            [fields for chunk in group for fields in chunk.fields],
            [text for chunk in group for text in chunk.texts]
            if any(chunk.has_texts for chunk in group)
            else None,
        )

    for chunk in chunks:
        if group and sum(each.rows for each in group) + chunk.rows > limit:
            yield joined()
            group = []
        group.append(chunk)
    if group:
        yield joined()


def load_chunks(folder: Path, count: int, names: Sequence[str]) -> list[Chunk]:
    """Reads what documents a snapshot has.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is damaged, or does not fit another.
    """
    chunks = []
    for number in range(count):
        members = read_index_json(folder / f"documents.{number}.json")
        lengths = np.array(read_index_json(folder / f"doclens.{number}.json"), np.int64)
        ids, hashes = members["ids"], members["text_hashes"]
        fields = members.get("fields") or [{}] * len(ids)
        has_texts = (folder / f"{number}.{TEXTS}.npy").exists()
        chunk = Chunk(folder, number, names, ids, hashes, lengths, fields, has_texts)
        # Mapped now: a writer may remove the files, which stay readable where they are mapped.
        rows = {chunk.rows, *map(len, chunk.arrays.values())}
        documents = {len(lengths), *map(len, (ids, hashes, fields, chunk.texts))}
        if len(rows) > 1 or len(documents) > 1:
            raise InputError(f"{folder}: the files of chunk {number} do not fit each other")
        chunks.append(chunk)
    return chunks


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Reads an .npy file without pickles.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: it is damaged.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged: {error}") from None


def write_index_json(path: Path, content: object) -> None:
    """Writes a file of a snapshot, which nobody reads yet."""
    path.write_text(json.dumps(content), encoding="utf-8")


def read_index_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}") from None
