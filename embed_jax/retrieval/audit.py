"""False negatives of training data: texts that are negatives in a batch and should not be.

`python -m scripts.audit --help` lists the kinds of false negatives.
"""

from __future__ import annotations

import array
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from embed_jax.data.pairs import CodePositions, normal_form, text_hash
from embed_jax.data.sources import iter_records, pair_columns
from embed_jax.errors import InputError, RunError
from embed_jax.retrieval.copies import contains

PairTexts = tuple[str, str, *tuple[str | None, ...]]  # anchor, positive, negatives
REASONS = ("text", "id", "group")
ROW_BLOCK, COLUMN_BLOCK = 1024, 8192  # similarities at a time: 32 MB


@dataclasses.dataclass(frozen=True)
class FalseNegative:
    """A text that counts as a negative of a row and should not.

    Attributes:
        row: the row whose negative it is.
        negative: the row of the text.
        why: text, id, group or similarity.
        value: the text, id or group that the two rows share, or how similar they are.
        column: the column of the text.
    """

    row: int
    negative: int
    why: str
    value: str | float
    column: str = "positive"


@dataclasses.dataclass(frozen=True)
class PairFile:
    """Training data that is read row by row, as often as needed.

    Attributes:
        data: file, directory or name of a data set, as for training.
        split: the split that is read.
        limit: how many rows are read; 0: all.
    """

    data: str
    split: str = "train"
    limit: int = 0

    def records(self) -> Iterator[tuple[dict[str, Any], PairTexts]]:
        """Yields each row's record and texts.

        Raises:
            InputError: for a row without anchor or positive.
        """
        columns = None
        for number, record in enumerate(
            itertools.islice(iter_records(self.data, self.split), self.limit or None)
        ):
            columns = columns or pair_columns([record])
            anchor, positive, *negatives = columns(record)
            if not isinstance(anchor, str) or not isinstance(positive, str):
                raise InputError(
                    f"{self.data}: row {number}: anchor and positive are needed, one is missing"
                )
            yield record, (anchor, positive, *negatives)


@dataclasses.dataclass(frozen=True)
class AuditedRows:
    """The hashes that the audit keeps of a data set of n rows.

    Attributes:
        count: n, the number of rows.
        codes: by reason, `[n, 2]` (text) or `[n, 1]`: numbers that are equal for equal texts, ids
            or groups, -1 without one. A row whose anchor is its positive has that text once.
        num_hard: how many hard negatives there are.
        hard: those that are the anchor or positive of some row: (row, k) for column negative_k.
        hard_places: which of `hard` are the text of a code.
        contained: by row, the (row, k) of hard negatives that contain its positive or are part of
            it.
        own: how many times a hard negative is a false one of the same row.
        others: how many times a hard negative is a false one of another row.
    """

    count: int
    codes: dict[str, Int[np.ndarray, "n w"]]
    num_hard: int
    hard: Int[np.ndarray, "h 2"]
    hard_places: CodePositions
    contained: Mapping[int, Sequence[tuple[int, int]]]
    own: int
    others: int

    def affected(self) -> Bool[np.ndarray, " n"]:
        """Returns the rows that have a false negative."""
        affected = np.zeros(self.count, bool)
        for name, codes in self.codes.items():
            false = CodePositions(codes).sizes > 1
            if name == "text":
                false[: len(self.hard_places.sizes)] |= self.hard_places.sizes > 0
            affected |= np.append(false, False)[codes].any(1)  # code -1 finds the appended one
        affected[list(self.contained)] = True
        return affected

    def share(
        self, first: Int[np.ndarray, " m"], second: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, " m"]:
        """Tells whether two rows share a text, an id or a group."""
        shared = np.zeros(len(first), bool)
        for codes in self.codes.values():
            mine, others = codes[first][:, :, None], codes[second][:, None, :]
            shared |= ((mine == others) & (mine >= 0)).any((1, 2))
        return shared


def read_audited(
    file: PairFile, by: Sequence[str] = REASONS, required: bool = False
) -> AuditedRows:
    """Reads the data once and keeps 64 bits of each text, id and group.

    Args:
        file: the training data.
        by: what rows may not share, some of REASONS.
        required: whether some row must have each field of `by`.

    Raises:
        InputError: for data that cannot be read, or lacks a required field.
    """

    def bits(text: str | None) -> int:
        high, low = text_hash(text)
        return high << 32 | low

    def form_bits(text: str) -> int:
        return bits(normal_form(text))

    hashes = {name: array.array("Q") for name in ("hard", *REASONS)}
    hard = array.array("q")  # row, k, row, k, ...
    for number, (record, columns) in enumerate(file.records()):
        hashes["text"].extend(map(form_bits, columns[:2]))
        for name in REASONS[1:]:
            key = record.get(name)
            hashes[name].append(bits(None if key is None else str(key).strip() or None))
        for place, text in enumerate(columns[2:], 1):
            if text is not None and "text" in by:
                hashes["hard"].append(form_bits(text))
                hard.extend((number, place))

    anchors = np.frombuffer(hashes["text"], np.uint64)[::2]
    codes, texts = {}, np.zeros(0, np.uint64)
    for name in by:
        values, inverse = np.unique(np.frombuffer(hashes[name], np.uint64), return_inverse=True)
        if name == "text":
            texts, codes[name] = values, inverse.reshape(-1, 2)
            codes[name][codes[name][:, 0] == codes[name][:, 1], 1] = -1
        else:
            codes[name] = np.where(values == 0, -1, np.arange(len(values)))[inverse][:, None]
            if required and not values.any():
                raise InputError(f"{file.data}: no row has the field {name!r}")

    hard_hashes = np.frombuffer(hashes["hard"], np.uint64)
    known = np.isin(hard_hashes, texts)
    code, where = (
        np.searchsorted(texts, hard_hashes[known]),
        np.frombuffer(hard, np.int64).reshape(-1, 2)[known],
    )
    own = others = 0
    if len(code):
        own = int((codes["text"][where[:, 0]] == code[:, None]).any(1).sum())
        others = int(CodePositions(codes["text"]).sizes[code].sum()) - own
    contained = find_contained(file, anchors) if len(hard_hashes) else {}
    mine = sum(row == other for row, negatives in contained.items() for other, _ in negatives)
    own, others = own + mine, others + sum(map(len, contained.values())) - mine
    hard_places = CodePositions(code[:, None])
    return AuditedRows(
        len(anchors), codes, len(hard_hashes), where, hard_places, contained, own, others
    )


def find_contained(
    file: PairFile, anchors: Integer[np.ndarray, " n"]
) -> dict[int, list[tuple[int, int]]]:
    """Finds hard negatives of an anchor that contain its positive or are part of it.

    Negatives that are equal to the row's anchor or positive are left out: their hashes show that.

    Args:
        file: the training data.
        anchors: numbers that are equal for equal anchors.

    Returns:
        The (row, k) of such negatives, by the row of the positive.
    """
    _, code, counts = np.unique(anchors, return_inverse=True, return_counts=True)
    shared: dict[int, list[tuple[int, str]]] = {}  # (row, positive) by anchor
    if (counts > 1).any():
        for row, (_, columns) in enumerate(file.records()):
            if row < len(code) and counts[code[row]] > 1:
                shared.setdefault(int(code[row]), []).append((row, normal_form(columns[1])))
    contained: dict[int, list[tuple[int, int]]] = {}
    for row, (_, columns) in enumerate(file.records()):
        anchor, own = map(normal_form, columns[:2])
        negatives = [text and normal_form(text) for text in columns[2:]]
        if not negatives or row >= len(code):
            continue
        for other, positive in shared.get(int(code[row]), [(row, own)]):
            for place, negative in enumerate(negatives, 1):
                if negative and negative not in (anchor, positive):
                    if contains(negative.casefold(), positive.casefold()):
                        contained.setdefault(other, []).append((row, place))
    return contained


def find_shared(file: PairFile, rows: AuditedRows) -> Iterator[FalseNegative]:
    """Finds texts, ids and groups that rows share, row by row, in a second reading of the data."""
    affected, number = rows.affected(), -1
    places = {name: CodePositions(codes) for name, codes in rows.codes.items()}
    for number, (record, columns) in enumerate(file.records()):
        if number >= rows.count:
            break
        if not affected[number]:
            continue
        seen = np.array([number])
        for why, codes in rows.codes.items():
            for place, code in enumerate(codes[number].tolist()):
                if code < 0:
                    continue
                value = (columns[:2][place] if why == "text" else str(record[why])).strip()
                new = np.setdiff1d(places[why][code], seen, assume_unique=True)
                yield from (
                    FalseNegative(number, negative, why, value) for negative in new.tolist()
                )
                seen = np.concatenate([seen, new])
                if why == "text":
                    for row, k in rows.hard[rows.hard_places[code]].tolist():
                        yield FalseNegative(number, row, why, value, f"negative_{k}")
        for row, k in rows.contained.get(number, ()):
            yield FalseNegative(number, row, "text", columns[1].strip(), f"negative_{k}")
    if number + 1 != rows.count:
        raise RunError(
            f"{file.data}: changed while it was read: {rows.count} rows at first, now others"
        )


def find_similar(
    file: PairFile,
    encode_blocks: Callable[[Iterator[str]], Iterable[Float[np.ndarray, "b D"]]],
    dim: int,
    count: int,
    threshold: float = 0.9,
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Yields pairs of rows whose positives are similar, a block at a time.

    The embeddings are kept in a temporary file.

    Args:
        file: the training data.
        encode_blocks: embeds texts block by block, such as `model.encode_blocks`.
        dim: the size of its embeddings.
        count: how many rows the data has, see `AuditedRows`.
        threshold: the cosine above which positives are similar.

    Yields:
        Row i, row j > i and the cosine of their positives.
    """
    import jax

    from embed_jax.scores import unit_length

    positives = (columns[1] for _, columns in file.records())
    # Accelerators round float32 products to fewer bits unless told not to.
    cosines = jax.jit(lambda first, second: jax.numpy.matmul(first, second.T, precision="highest"))
    with tempfile.TemporaryDirectory() as directory:
        shape = (count, dim)
        units = np.lib.format.open_memmap(
            Path(directory) / "units.npy", mode="w+", dtype=np.float32, shape=shape
        )
        done = 0
        for block in encode_blocks(positives):
            units[done : done + len(block)] = unit_length(block)[: max(count - done, 0)]
            done += len(block)
        if done != count:
            raise RunError(
                f"{file.data}: changed while it was read: {count} rows at first, then {done}"
            )
        for top in range(0, count, ROW_BLOCK):
            block = units[top : top + ROW_BLOCK]
            for left in range(top // COLUMN_BLOCK * COLUMN_BLOCK, count, COLUMN_BLOCK):
                similarities = np.asarray(cosines(block, units[left : left + COLUMN_BLOCK]))
                first, second = np.nonzero(similarities > threshold)
                upper = top + first < left + second
                first, second = first[upper], second[upper]
                yield top + first, left + second, similarities[first, second]
