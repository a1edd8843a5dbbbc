"""A teacher's scores of (query, passage) pairs, in a file that is read by later runs.

The first line is the teacher, `{"format": ..., "name": ..., "teacher": {...}}`. Every other line is
`{KEY: SCORE, ...}`, where a key is a hash of the two texts: the file knows nothing of ids, so that
one file serves every shortlist, data set and table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import replaced
from embed_jax.errors import InputError, RunError, first_difference
from embed_jax.journal import Journal, whole_lines
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.types import QueryPassage

FORMAT = "embed-jax scores 1"
SHOWN = 60  # characters of a text in messages


def pair_key(query: str, passage: str) -> bytes:
    """Returns 16 bytes that identify a query and a passage by their texts.

    >>> pair_key("a", "b").hex()
    'c95b5b0a5d45c522dc032df817b0abc7'
    """
    # JSON tells ("a", "bc") from ("ab", "c"), and has a form for half a surrogate pair.
    return hashlib.blake2b(json.dumps([query, passage]).encode(), digest_size=16).digest()


class ScoreStore:
    """A context manager of a score file that is being written, by one process.

    Scores are on disk when `add` returns: each call writes one line, and of a line that was cut off
    nothing counts. So the calls that a killed process had finished are whole, and the others have
    left nothing.
    """

    def __init__(self, path: Path, teacher: Mapping[str, Any], name: str = ""):
        """Opens or creates the file, and reads its scores.

        Args:
            path: the file.
            teacher: everything that the scores depend on except the texts, as JSON.
            name: of the teacher, for the reader of the file; does not have to be the same again.

        Raises:
            InputError: the file can't be written, is in use by another process, is damaged, or has
                scores of another teacher.
        """
        self.path = path
        self._header: dict[str, Any] = {"format": FORMAT, "name": name, "teacher": dict(teacher)}
        self._scores: dict[bytes, float] = {}
        self._has_header = self._is_sorted = False
        self._journal = Journal(path, self._read_line)

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_) -> None:
        if not self._scores:
            self.path.unlink(missing_ok=True)
        self._journal.close()

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, pair: QueryPassage) -> bool:
        return pair_key(*pair) in self._scores

    def __getitem__(self, pair: QueryPassage) -> float:
        return self._scores[pair_key(*pair)]

    def add(self, pairs: Sequence[QueryPassage], scores: Float[np.ndarray, " n"]) -> None:
        """Adds the scores of pairs: all of them, or none if the process is killed.

        Raises:
            RunError: a score is not finite, or they can't be written.
        """
        with np.errstate(over="ignore"):
            scores = np.asarray(scores, np.float32)
        if not np.isfinite(scores).all():
            query, passage = pairs[int(np.argmin(np.isfinite(scores)))]
            raise RunError(f"no finite score for {query[:SHOWN]!r} and {passage[:SHOWN]!r}")
        # The number with the fewest digits that is the same in float32.
        values = {
            pair_key(*pair): float(str(score)) for pair, score in zip(pairs, scores, strict=True)
        }
        if not self._has_header:
            self._journal.append(_line(self._header))
            self._has_header = True
        self._journal.append(_line({key.hex(): score for key, score in values.items()}))
        self._scores |= values
        self._is_sorted = False

    def sort(self) -> None:
        """Replaces the file by one with a line for each pair, in the order of the keys.

        So it depends on the scores only, not on the order in which they came. Nothing can be added
        afterwards.

        Raises:
            RunError: it can't be written.
        """
        if self._is_sorted or not self._scores:
            return
        try:
            with replaced(self.path) as beside:
                with beside.open("wb") as file:
                    file.write(_line(self._header))
                    for key in sorted(self._scores):
                        file.write(_line({key.hex(): self._scores[key]}))
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None
        self._journal.close()

    def _read_line(self, line_number: int, line: bytes) -> None:
        if line_number == 1:
            header = _parse_header(self.path, line)
            if difference := first_difference(header["teacher"], self._header["teacher"]):
                raise InputError(
                    f"{self.path}: scores of another teacher, {header['name']!r}: {difference}; "
                    "name another file"
                )
            self._header = header
            self._has_header = self._is_sorted = True
            return
        values = _parse_scores(self.path, line_number, line)
        last = next(reversed(self._scores), b"")
        self._is_sorted &= len(values) == 1 and min(values) > last
        self._scores |= values


class StoredScores:
    """A scorer of (query, passage) pairs that reads a score file; made by `read_score_file`.

    Attributes:
        path: the file.
        teacher: everything that the scores depend on except the texts.
    """

    def __init__(self, path: Path, teacher: Mapping[str, Any], scores: Mapping[bytes, float]):
        self.path, self.teacher, self._scores = path, teacher, scores

    def __len__(self) -> int:
        return len(self._scores)

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Returns the score of each query with the passage at the same position, float32.

        Raises:
            InputError: the file has no score of a pair.
        """
        scores = np.zeros(len(queries), np.float32)
        for row, (query, passage) in enumerate(zip(queries, passages, strict=True)):
            score = self._scores.get(pair_key(query, passage))
            if score is None:
                raise InputError(
                    f"{self.path}: no score of the query {query[:SHOWN]!r} and the passage "
                    f"{passage[:SHOWN]!r}; score the shortlist with scripts.annotate first"
                )
            scores[row] = score
        return scores


class RememberedScores:
    """A scorer of pairs that asks another one for each pair once.

    >>> shortest = RememberedScores(lambda queries, passages: [-len(text) for text in passages])
    >>> shortest(["a", "a"], ["b", "cd"])
    array([-1., -2.])
    """

    def __init__(self, score: PairScorer):
        self._score, self._scores = score, dict[bytes, float]()

    def __len__(self) -> int:
        return len(self._scores)

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Returns the score of each query with the passage at the same position, float64.

        Raises:
            InputError, RunError: see `score_pairs`.
        """
        keys = list(map(pair_key, queries, passages))
        new = {
            key: pair
            for key, *pair in zip(keys, queries, passages, strict=True)
            if key not in self._scores
        }
        scores = score_pairs(self._score, [(query, passage) for query, passage in new.values()])
        self._scores |= dict(zip(new, scores.tolist(), strict=True))
        return np.array([self._scores[key] for key in keys])


def read_score_file(path: str | Path) -> StoredScores:
    """Reads a score file, in place of the teacher that wrote it.

    Raises:
        InputError: it can't be read, is not a score file, or is damaged.
    """
    path = Path(path)
    scores: dict[bytes, float] = {}
    header: dict[str, Any] | None = None
    for line_number, line in whole_lines(path):
        if header is None:
            header = _parse_header(path, line)
        else:
            scores |= _parse_scores(path, line_number, line)
    if header is None:
        raise InputError(f"{path}: empty, no scores in it")
    return StoredScores(path, header["teacher"], scores)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _parse_header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
        is_ours = header["format"] == FORMAT and isinstance(header["teacher"], dict)
        name = header["name"]
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise InputError(f"{path}:1: not a score file, whose first line has the format {FORMAT!r}")
    return {"format": FORMAT, "name": name, "teacher": header["teacher"]}


def _parse_scores(path: Path, line_number: int, line: bytes) -> dict[bytes, float]:
    try:
        values = {bytes.fromhex(key): float(score) for key, score in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError):
        values = {}
    if not values or not all(len(key) == 16 for key in values):
        raise InputError(
            f"{path}:{line_number}: damaged; take the line out to score its pairs again"
        )
    if not all(map(math.isfinite, values.values())):
        raise InputError(f"{path}:{line_number}: a score that is not finite")
    return values
