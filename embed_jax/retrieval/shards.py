"""Embeddings in shards: Parquet files with ids that several processes write, and their merge.

    DIR/shard-00002-of-00008.parquet    id and embedding of consecutive texts of the input
    DIR/shard-00002-of-00008.json       the texts, the settings, and the hash of that file

A model packs the texts of a block into batches together, so an embedding's last bits depend on its
block. A shard is therefore whole blocks: however many shards there are, each block is encoded as a
single process would, and the merged array is the same bit by bit.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from embed_jax.atomic import plain_json, replaced, write_whole
from embed_jax.errors import InputError, first_difference, require

FORMAT_OF_SHARDS = "embed-jax shard 1"
ID, EMBEDDING = "id", "embedding"  # columns


@dataclasses.dataclass(frozen=True)
class TextSurvey:
    """A summary of all texts of an input, which every shard reads.

    Attributes:
        texts: how many there are.
        solid: how many have more than white space.
        ids: a hash of their ids, in order.
        content: a hash of ids and texts, in order.
    """

    texts: int
    solid: int
    ids: str
    content: str


def survey_texts(
    records: Callable[[], Iterable[tuple[str, str]]], where: str = "texts"
) -> TextSurvey:
    """Reads all (id, text) once, and once more if ids may repeat.

    Memory grows by 8 bytes for each text.

    Args:
        records: reads the input from its beginning.
        where: names the input in errors.

    Raises:
        InputError: an id stands twice.
    """
    content, names, solid = hashlib.blake2b(digest_size=16), IdDigest(), 0
    for name, text in records():
        names.add(name)
        solid += bool(text.strip())
        content.update(json.dumps([name, text]).encode())
    names.check(lambda: (name for name, _ in records()), where)
    return TextSurvey(len(names), solid, names.hexdigest(), content.hexdigest())


class IdDigest:
    """A hash of ids in order, which also notices an id that comes twice."""

    def __init__(self) -> None:
        self._digest, self._hashes = hashlib.blake2b(digest_size=16), array.array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, name: str) -> None:
        """Takes the next id."""
        self._digest.update(json.dumps(name).encode())
        self._hashes.append(_short_hash(name))

    def hexdigest(self) -> str:
        """Returns the hash of all ids."""
        return self._digest.hexdigest()

    def check(self, names: Callable[[], Iterable[str]], where: str) -> None:
        """Raises an InputError if an id came twice.

        Args:
            names: reads the ids again, if two hashes of 64 bits are equal.
            where: names their source in errors.
        """
        hashes = np.sort(np.frombuffer(self._hashes, np.uint64))
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not suspects:
            return
        counts = collections.Counter(name for name in names() if _short_hash(name) in suspects)
        for name, count in counts.items():
            if count > 1:
                raise InputError(f"{where}: the id {name!r} stands {count} times")


def _short_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A share of the texts of an input.

    Attributes:
        index: from 0 to count - 1.
        count: of shards.
        survey: of all texts.
        block: texts that are encoded together.
        settings: what the embeddings depend on, as JSON: model, prompt, dimension, ...
    """

    index: int
    count: int
    survey: TextSurvey
    block: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Returns the name of the files, without an ending."""
        return f"shard-{self.index:05}-of-{self.count:05}"

    @property
    def rows(self) -> range:
        """Returns the positions of its texts: whole blocks, as evenly as they can be shared out.

        >>> survey = TextSurvey(100, 100, "", "")
        >>> [list(Shard(index, 3, survey, 40, {}).rows)[::20] for index in range(3)]
        [[0, 20], [40, 60], [80]]
        """
        blocks = -(-self.survey.texts // self.block)
        start, stop = (
            min(blocks * index // self.count * self.block, self.survey.texts)
            for index in (self.index, self.index + 1)
        )
        return range(start, stop)

    def describe(self) -> dict[str, Any]:
        """Returns what its manifest says, except of the file."""
        return {
            "format": FORMAT_OF_SHARDS,
            "index": self.index,
            "count": self.count,
            "rows": [self.rows.start, self.rows.stop],
            "block": self.block,
            **{f"input {name}": value for name, value in dataclasses.asdict(self.survey).items()},
            **plain_json(dict(self.settings)),
        }


def parse_shard(text: str) -> tuple[int, int]:
    """Reads "I/N".

    Raises:
        InputError: for another form, or an index that is not from 0 to N - 1.

    >>> parse_shard("2/8")
    (2, 8)
    """
    parts = text.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        index, count = map(int, parts)
        if index < count:
            return index, count
    raise InputError(f"shard: expected I/N with I from 0 to N - 1, such as 0/8, found {text!r}")


def has_shard(folder: Path, shard: Shard) -> bool:
    """Tells whether a shard is there, whole and of the same input and settings."""
    try:
        manifest = _read_manifest(folder / f"{shard.name}.json")
        _check_file(folder, manifest)
    except (FileNotFoundError, InputError):
        return False
    return not first_difference(_without_file(manifest), shard.describe())


def write_shard(
    folder: Path,
    shard: Shard,
    ids: Iterable[str],
    blocks: Iterable[Shaped[np.ndarray, "n D"]],
) -> None:
    """Writes a shard; until all of it is written, the old one or none is there.

    Args:
        folder: of all shards, which is created.
        shard: its texts.
        ids: of its texts, in order.
        blocks: the embeddings of its texts, in order.

    Raises:
        InputError: pyarrow is not installed, the folder can't be written to, or the ids and
            embeddings are not as many as the shard's texts.
    """
    require("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    file = folder / f"{shard.name}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(f".{shard.name}.*"):  # by a process that was killed
            left_over.unlink(missing_ok=True)
        (folder / f"{shard.name}.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    names, written = iter(ids), 0
    with replaced(file) as beside:
        writer = None
        for block in blocks:
            own = list(itertools.islice(names, len(block)))
            if len(own) < len(block):
                break
            values = pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(block).reshape(-1)), block.shape[1]
            )
            table = pa.table({ID: pa.array(own, pa.string()), EMBEDDING: values})
            writer = writer or parquet.ParquetWriter(beside, table.schema, compression="none")
            writer.write_table(table)
            written += len(block)
        if writer is None:  # more shards than blocks
            empty = pa.schema({ID: pa.string(), EMBEDDING: pa.list_(pa.float32())})
            writer = parquet.ParquetWriter(beside, empty)
        writer.close()
        if written != len(shard.rows):
            raise InputError(
                f"{file}: expected {len(shard.rows)} embeddings, found {written}: the input "
                "changed while it was read"
            )
        size, content = beside.stat().st_size, _hash_file(beside)
    manifest = {**shard.describe(), "file": file.name, "bytes": size, "blake2b": content}
    write_whole(folder / f"{shard.name}.json", json.dumps(manifest, indent=1) + "\n")


def merge_shards(folder: Path, output: Path, ids_output: Path) -> tuple[int, int, int]:
    """Writes the embeddings of all shards as one .npy file `[N, D]`, in the order of the input.

    The ids are checked: each of the input is there once, in its place. Memory holds one block, and
    8 bytes for each id.

    Args:
        folder: of the shards.
        output: the .npy file.
        ids_output: a JSON file for the list of ids.

    Returns:
        N, D and the number of shards.

    Raises:
        InputError: a shard is missing, damaged, or of another input or other settings.
    """
    require("pyarrow")
    manifests = _check_manifests(folder)
    texts, ids, result, done = manifests[0]["input texts"], IdDigest(), None, 0
    with ids_output.open("w", encoding="utf-8") as file:
        for names, values in _read_blocks(folder, manifests):
            if result is None:
                shape = texts, values.shape[1]
                result = np.lib.format.open_memmap(
                    output, mode="w+", dtype=values.dtype, shape=shape
                )
            if values.shape[1:] != result.shape[1:] or values.dtype != result.dtype:
                raise InputError(f"{folder}: shards of several dimensions or precisions")
            for name in names:
                file.write(("[" if not len(ids) else ",\n") + json.dumps(name))
                ids.add(name)
            result[done : done + len(values)] = values
            done += len(values)
        file.write("]\n")
    if result is None:
        raise InputError(f"{folder}: shards without texts")
    result.flush()
    ids.check(lambda: (name for names, _ in _read_blocks(folder, manifests) for name in names),
              str(folder))  # fmt: skip
    if (done, ids.hexdigest()) != (texts, manifests[0]["input ids"]):
        raise InputError(f"{folder}: the shards do not have each id of the input once, in order")
    return done, result.shape[1], len(manifests)


def _read_blocks(
    folder: Path, manifests: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[list[str], Shaped[np.ndarray, "n D"]]]:
    from pyarrow import parquet

    for manifest in manifests:
        with parquet.ParquetFile(folder / manifest["file"]) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number)
                if not len(table):
                    continue
                values = table[EMBEDDING].combine_chunks()
                flat = values.flatten().to_numpy(zero_copy_only=False)
                yield table[ID].to_pylist(), flat.reshape(len(values), -1)


def _check_manifests(folder: Path) -> list[dict[str, Any]]:
    """Returns the manifests of all shards, in order; see `merge_shards` for errors."""
    files = sorted(folder.glob("shard-*-of-*.json"))
    if not files:
        raise InputError(f"{folder}: no shards; scripts.encode --shard I/N writes them")
    manifests = {file: _read_manifest(file) for file in files}
    counts = {manifest["count"] for manifest in manifests.values()}
    if len(counts) > 1:
        raise InputError(f"{folder}: shards of several runs, of {_listed(sorted(counts))} shards")
    count = counts.pop()
    by_index = {manifest["index"]: manifest for manifest in manifests.values()}
    if missing := sorted(set(range(count)) - by_index.keys()):
        raise InputError(
            f"{folder}: {len(missing)} of {count} shards missing: run again with --shard "
            + _listed(f"{index}/{count}" for index in missing)
        )
    first = by_index[0]
    for file, manifest in manifests.items():
        own = {"index", "rows", "file", "bytes", "blake2b"}
        shared, expected = (
            {name: value for name, value in each.items() if name not in own}
            for each in (manifest, first)
        )
        if difference := first_difference(expected, shared):
            raise InputError(f"{file}: of other texts or settings than shard 0: {difference}")
        _check_file(folder, manifest)
    ordered = [by_index[index] for index in range(count)]
    ends = [manifest["rows"] for manifest in ordered]
    starts = [0, *(stop for _, stop in ends)]
    if [start for start, _ in ends] != starts[:-1] or starts[-1] != first["input texts"]:
        raise InputError(f"{folder}: the rows of the shards do not follow each other")
    return ordered


def _check_file(folder: Path, manifest: Mapping[str, Any]) -> None:
    file = folder / manifest["file"]
    again = f"run again with --shard {manifest['index']}/{manifest['count']}"
    if not file.is_file():
        raise InputError(f"{file}: missing: {again}")
    if file.stat().st_size != manifest["bytes"] or _hash_file(file) != manifest["blake2b"]:
        raise InputError(f"{file}: damaged: {again}")


def _read_manifest(file: Path) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
        FileNotFoundError: it does not exist.
        InputError: it is not a manifest of a shard, or its name is another's.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        index, count = int(manifest["index"]), int(manifest["count"])
        start, stop = map(int, manifest["rows"])
        name = f"shard-{index:05}-of-{count:05}"
        is_ours = manifest["format"] == FORMAT_OF_SHARDS and 0 <= index < count and start <= stop
        is_ours &= (file.stem, manifest["file"]) == (name, f"{name}.parquet")
        is_ours &= {"bytes", "blake2b", "input texts", "input ids"} <= manifest.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        is_ours = False
    if not is_ours:
        raise InputError(f"{file}: not the manifest of a shard ({FORMAT_OF_SHARDS!r})")
    return manifest


def _without_file(manifest: Mapping[str, Any]) -> dict[str, Any]:
    own = {"file", "bytes", "blake2b"}
    return {name: value for name, value in manifest.items() if name not in own}


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
