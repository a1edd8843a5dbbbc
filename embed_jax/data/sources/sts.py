"""Pairs of sentences with people's scores, for evaluation: files, TFDS or the hub."""

from __future__ import annotations

from pathlib import Path

from embed_jax.data.sources import open_records
from embed_jax.data.sources.files import find_file, finite, place_in_file, read_sts
from embed_jax.errors import InputError

SCORES = ("score", "similarity_score", "label")  # what data sets of the hub and of TFDS call it
Columns = tuple[list[str], list[str], list[float], list[str]]


def open_sts(data: str, split: str = "test", *, scale: tuple[float, float] = (0, 5)) -> Columns:
    """First sentences, second sentences, scores, and each pair's subset ("" if there are none).

    Args:
        data: a file with the columns score, sentence1, sentence2 and optionally subset; a directory with such a file
            called SPLIT.tsv and so on; "tfds:NAME" or "hf:NAME" with those columns, the score also as "label".
        split: which part of it; a file is taken whole.
        scale: lowest and highest score there may be.

    Raises:
        InputError: for what cannot be read, and the first score outside of the scale.
    """
    if data.startswith(("tfds:", "hf:")):
        columns, place = _from_records(data, split), ""
    else:
        path = Path(data)
        file = find_file(data, split) if path.is_dir() else path
        columns, place = read_sts(file), str(file)
    low, high = scale
    for number, score in enumerate(columns[2]):
        if not low <= score <= high:
            where = place_in_file(place, "train", number) if place else f"{data}: record {number}"
            raise InputError(f"{where}: score {score:g} is out of range, expected {low:g} to {high:g} (another scale: "
                             "the option scale)")  # fmt: skip
    return columns


def _from_records(data: str, split: str) -> Columns:
    records = open_records(data, split)
    score = next((name for name in SCORES if name in records[0]), None)
    lacking = [name for name in ("sentence1", "sentence2") if name not in records[0]]
    if lacking or score is None:
        raise InputError(f"{data}: found the fields {', '.join(records[0])}; accepted: sentence1, sentence2 and one of "
                         f"{', '.join(SCORES)}")  # fmt: skip
    scores = [
        finite(record[score], f"{data}: record {number}: {score}")
        for number, record in enumerate(records)
    ]
    first, second = (
        [str(record[name]) for record in records] for name in ("sentence1", "sentence2")
    )
    return first, second, scores, [str(record.get("subset", "")) for record in records]
