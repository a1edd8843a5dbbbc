"""A teacher's embeddings of a data set's texts, which training reads from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError

ROW = "teacher_row"  # field of a record: its row in the file


@dataclasses.dataclass(frozen=True)
class TeacherVectors:
    """Returns a teacher's embeddings [C, T] of a record's texts; see `RecordFields.teacher`.

    Attributes:
        path: the file.
        vectors: [N, C, T], memory-mapped: each row has the embeddings of C texts.
        rows: the row of each record by its id; None: the record has it as a field, see
            `number_records`.
    """

    path: str
    vectors: np.ndarray
    rows: Mapping[str, int] | None = None

    def __call__(self, record: Mapping[str, Any]) -> Float[np.ndarray, "C T"]:
        if self.rows is None:
            row = record[ROW]
        else:
            name = record.get("id")
            row = self.rows.get(str(name))
            if row is None:
                raise InputError(f"id {name!r} has no vector in {self.path}")
        return np.asarray(self.vectors[row], np.float32)


@dataclasses.dataclass(frozen=True)
class NumberedRecords(Sequence):
    """Records read one by one, each with its index as the field ROW; slices keep the indices."""

    records: Sequence[Mapping[str, Any]]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, indices=self.indices[index])
        row = self.indices[index]
        return {**self.records[row], ROW: row}


def number_records(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the records with their indices as the field ROW.

    So a record keeps its row when others are left out later.
    """
    if isinstance(records, list):
        return [{**record, ROW: row} for row, record in enumerate(records)]
    return NumberedRecords(records, range(len(records)))


def open_teacher_vectors(path: str, ids: str = "", num_records: int = 0) -> TeacherVectors:
    """Opens a file of embeddings without reading it.

    Args:
        path: a .npy file of floats, as `scripts.encode` writes it: [N, T], or [N, C, T] for records
            with C texts.
        ids: a text file with the id of each row, one per line; "": rows are in the order of the
            records.
        num_records: the expected number of rows if there are no ids.

    Raises:
        InputError: a file cannot be read, or has another shape or number of rows.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "no .npy file"
        raise InputError(f"{path}: {reason}") from None
    floats = np.issubdtype(getattr(vectors, "dtype", np.dtype(object)), np.floating)
    if not floats or vectors.ndim not in (2, 3) or not vectors.size:
        description = (
            f"{vectors.dtype} {list(vectors.shape)}" if hasattr(vectors, "dtype") else "others"
        )
        raise InputError(
            f"{path}: expected floats [records, size] or [records, texts, size], "
            f"found {description}"
        )
    vectors = vectors if vectors.ndim == 3 else vectors[:, None]
    if not ids:
        if len(vectors) != num_records:
            raise InputError(
                f"{path}: expected {num_records} rows, one for each record, found {len(vectors)}"
            )
        return TeacherVectors(path, vectors)
    try:
        names = Path(ids).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{ids}: no such file, or not UTF-8 text") from None
    if len(names) != len(vectors):
        raise InputError(
            f"{ids}: expected {len(vectors)} ids, one for each row of {path}, found {len(names)}"
        )
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if rows.setdefault(name, row) != row:
            raise InputError(f"{ids}:{row + 1}: id {name!r} is that of line {rows[name] + 1} too")
    return TeacherVectors(path, vectors, rows)
