"""Reads pairs of sentences with human scores, for evaluation: from files, TFDS or the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from embed_jax.data.record_values import is_missing
from embed_jax.data.sources.files import find_file, iter_rows
from embed_jax.data.sources.opening import open_raw
from embed_jax.data.sources.rows import Row
from embed_jax.errors import InputError

SENTENCES = ("sentence1", "sentence2")
SCORES = ("score", "similarity_score", "label")  # names in data sets of the hub and of TFDS
StsColumns = tuple[list[str], list[str], list[float], list[str]]


def open_sts(data: str, split: str = "test", *, scale: tuple[float, float] = (0, 5)) -> StsColumns:
    """Reads first sentences, second sentences, scores, and each pair's subset ("" without one).

    Args:
        data: a file with the columns score, sentence1, sentence2 and optionally subset; a directory
            with such a file SPLIT.tsv or the like; "tfds:NAME" or "hf:NAME" with those columns,
            where the score may be called "label".
        split: the split; a file is read as a whole.
        scale: the lowest and the highest possible score.

    Raises:
        InputError: the data cannot be read, a sentence or score is missing, or a score is outside
            of the scale.
    """
    if data.startswith(("tfds:", "hf:")):
        raw = open_raw(data, split)
        rows: Iterable[Row] = (
            Row(f"{data}: record {index}", raw[index]) for index in range(len(raw))
        )
        return _columns(rows, data, SCORES, scale)
    path = Path(data)
    return read_sts(find_file(data, split) if path.is_dir() else path, scale)


def read_sts(path: str | Path, scale: tuple[float, float] | None = None) -> StsColumns:
    """Reads a file of sentence pairs with similarity: `score sentence1 sentence2 [subset]`.

    Returns:
        First sentences, second sentences, scores, and the name of each pair's subset ("" without
        subsets).
    """
    rows = (Row(f"{path}:{line}", row) for line, row in iter_rows(path))
    return _columns(rows, str(path), SCORES[:1], scale)


def _columns(
    rows: Iterable[Row], name: str, scores: tuple[str, ...], scale: tuple[float, float] | None
) -> StsColumns:
    columns: StsColumns = ([], [], [], [])
    firsts, seconds, row_scores, subsets = columns
    for row in rows:
        if not firsts:
            _check_header(row, name, scores)
        score = row.score(*scores)
        if scale and not scale[0] <= score <= scale[1]:
            expected = f"{scale[0]:g} to {scale[1]:g} (another scale: the option scale)"
            raise InputError(f"{row.where}: score {score:g} is out of range, expected {expected}")
        subset = row.fields.get("subset")
        first, second = (row.text(sentence) for sentence in SENTENCES)
        firsts.append(first)
        seconds.append(second)
        row_scores.append(score)
        subsets.append("" if is_missing(subset) else str(subset))
    if not firsts:
        raise InputError(f"{name}: empty, no records in it")
    if not any(text.strip() for text in firsts + seconds):
        count = len(firsts)
        raise InputError(f"{name}: all texts are empty (sentence1, sentence2 of {count} records)")
    return columns


def _check_header(row: Row, name: str, scores: tuple[str, ...]) -> None:
    if not all(name in row.fields for name in SENTENCES) or not set(scores) & set(row.fields):
        field_names = ", ".join(row.fields) or "none"
        raise InputError(
            f"{name}: found the fields {field_names}; accepted: sentence1, sentence2 and one of "
            f"{', '.join(scores)}"
        )
