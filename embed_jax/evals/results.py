"""Results of tasks as JSON files, with the scores of all items for later comparisons."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import plain_json, write_whole
from embed_jax.errors import InputError
from embed_jax.evals.overlap import find_overlap
from embed_jax.evals.task import Items, Outcome, Task

SMALL = (
    100  # items; below it an interval is hardly narrower than the differences between good models
)
SCORE_DIGITS = 7


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A model's scores on a task, and the data that they were measured on.

    Attributes:
        model: the model's name.
        name: the task's name.
        task: the kind by our name, such as "retrieval".
        unit: what its items are.
        outcome: scores, intervals, items, notes.
        details: all else that a file says, such as data, options, versions, seconds.
    """

    model: str
    name: str
    task: str
    unit: str
    outcome: Outcome
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file; undefined values are null."""
        outcome = self.outcome
        items = {"statistic": outcome.items.statistic, "values": _rounded(outcome.items.values)}
        items |= {} if outcome.items.gold is None else {"gold": _rounded(outcome.items.gold)}
        return plain_json({
            "task": self.task,
            "name": self.name,
            "model": self.model,
            "main": outcome.main,
            "metrics": dict(outcome.metrics),
            "intervals": dict(outcome.intervals),
            "n": len(outcome.items),
            "unit": self.unit,
            "notes": list(outcome.notes),
            **self.details,
            "items": items,
        })  # fmt: skip

    def write(self, path: Path) -> None:
        """Writes the whole file, an entry a line, so that the items take one line."""
        lines = [
            f" {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_json().items()
        ]
        write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def cautions(self) -> list[str]:
        """Returns sentences about what must not be concluded from it."""
        sentences = list(self.outcome.notes)
        n = len(self.outcome.items)
        if n < SMALL:
            sentences.append(
                f"only {n} {self.unit}: its interval is wide, and too narrow still below some "
                "thirty"
            )
        seen = self.details.get("overlap") or {}
        if seen:
            without = f": {_number(seen['clean'])} without them" if seen["items"] else ""
            sentences.append(
                f"{seen['items']} of {n} {self.unit} share {seen['words']} words in a row with the "
                f"training data{without}"
            )
        return sentences


def read_result(path: Path) -> TaskResult:
    """Reads a file that `TaskResult.write` wrote.

    Raises:
        InputError: for a file that is not a task's results.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no results of a task: {error}") from None
    try:
        gold = content["items"].get("gold")
        items = Items(
            _array(content["items"]["values"]),
            None if gold is None else _array(gold),
            content["items"]["statistic"],
        )
        metrics = {name: float(_or_nan(value)) for name, value in content["metrics"].items()}
        intervals = {name: (_or_nan(low), _or_nan(high))
                     for name, (low, high) in content["intervals"].items()}  # fmt: skip
        outcome = Outcome(content["main"], metrics, intervals, items, tuple(content["notes"]))
        known = (
            "task",
            "name",
            "model",
            "main",
            "metrics",
            "intervals",
            "n",
            "unit",
            "notes",
            "items",
        )
        details = {name: value for name, value in content.items() if name not in known}
        return TaskResult(
            content["model"], content["name"], content["task"], content["unit"], outcome, details
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: no results of a task: {type(error).__name__} {error}") from None


def read_results(path: Path) -> dict[str, TaskResult]:
    """Reads the results of one model, by the task's name.

    The path is a file, or a directory with a file for each task.

    Raises:
        InputError: for a path without results, or two of one name.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds no results (a JSON file for each task)")
    results: dict[str, TaskResult] = {}
    for file in files:
        result = read_result(file)
        if result.name in results:
            raise InputError(f"{file}: a second result of the task {result.name!r}")
        results[result.name] = result
    return results


def seen_in_training(
    task: Task, outcome: Outcome, training: Any, *, words: int = 8
) -> dict[str, Any]:
    """Finds a task's items that share words in a row with training texts; the score without them.

    See `embed_jax.evals.overlap` for what that does not say.

    Args:
        task: the task, with the texts of its items.
        outcome: a model's scores on the task.
        training: texts, read once.
        words: how many words in a row.

    Returns:
        "words", "items" (how many overlap), "share", "clean" (the score without them, nan if none
        is left), "interval" of it, and "examples".
    """
    owners = [number for number, texts in enumerate(task.item_texts) for _ in texts]
    shared = find_overlap([text for texts in task.item_texts for text in texts], training, n=words)
    flags = np.zeros(len(task.item_texts), bool)
    np.logical_or.at(flags, owners, shared.flags)
    rows = np.flatnonzero(~flags)
    left = None
    if len(rows) > 1:
        gold = outcome.items.gold
        left = Items(
            outcome.items.values[rows],
            None if gold is None else gold[rows],
            outcome.items.statistic,
        )
    return {
        "words": words,
        "items": int(flags.sum()),
        "share": float(flags.mean()),
        "clean": math.nan if left is None else left.score(),
        "interval": (math.nan, math.nan) if left is None else left.interval(),
        "examples": shared.examples(),
    }


def fingerprint(*parts: Any) -> str:
    """Computes 16 hex digits that differ where a part does.

    A part is a plain value, or a file or directory, which counts by its content.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for file in _files(part):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        digest.update(
            json.dumps(part if not isinstance(part, Path) else "", sort_keys=True).encode() + b"\0"
        )
    return digest.hexdigest()


def _files(part: Any) -> list[Path]:
    if not isinstance(part, Path):
        return []
    return sorted(file for file in part.rglob("*") if file.is_file()) if part.is_dir() else [part]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{SCORE_DIGITS}g}") for value in np.asarray(values, np.float64)]


def _array(values: list[float | None]) -> Float[np.ndarray, " N"]:
    return np.array([_or_nan(value) for value in values], np.float64)


def _or_nan(value: float | None) -> float:
    """Returns nan for null, which JSON has in its place."""
    return math.nan if value is None else value


def _number(value: float) -> str:
    return "no score" if math.isnan(value) else f"{value:.4f}"
