"""Reads the results of `scripts.evaluate` for a model card."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError
from embed_jax.registry import unknown

SMALL = 100  # items
MAIN = {"sts": "spearman", "retrieval": "ndcg@10"}  # of results that do not name their main metric


@dataclasses.dataclass(frozen=True)
class Scores:
    """A model's scores on one task; scores are fractions, or correlations.

    Attributes:
        model: the model's name in the evaluation.
        task: the kind of task, such as "retrieval".
        name: the task's own name.
        split: the split of the data, or "".
        main: the name of the task's main metric.
        metrics, intervals: values and 95 % intervals by name, without undefined ones.
        n, unit: the number and the name of the test items, such as 300 "queries".
        notes: cautions about these figures.
    """

    model: str
    task: str
    name: str
    split: str
    main: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n: int
    unit: str
    notes: tuple[str, ...]


def read_scores(paths: Sequence[Path]) -> list[Scores]:
    """Reads results from JSON files, and from directories, whose other files are skipped.

    The files of a directory are read in the order of their names.

    Raises:
        InputError: there is no such file, a file has no results, or no file of a directory has any.
    """
    scores = []
    for path in paths:
        if not path.is_dir():
            scores.append(_read(path))
            continue
        several = [_read(file) for file in sorted(path.rglob("*.json")) if _has_results(file)]
        if not several:
            raise InputError(f"{path}: no .json file with results in it")
        scores += several
    return scores


def _has_results(path: Path) -> bool:
    content = _content(path)
    return (
        isinstance(content, dict) and isinstance(content.get("metrics"), dict) and "task" in content
    )


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def _read(path: Path) -> Scores:
    try:
        return _scores(_content(path))
    except InputError as error:
        raise (
            error if str(error).startswith(str(path)) else InputError(f"{path}: {error}")
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: no results of scripts.evaluate, which have task, data, metrics, intervals "
            f"({error!r})"
        ) from None


def _scores(result: Mapping[str, Any]) -> Scores:
    metrics = {name: float(value) for name, value in result["metrics"].items() if _is_number(value)}
    if not metrics:
        raise InputError("no metric with a number")
    main = result.get("main") or MAIN.get(result["task"]) or next(iter(metrics))
    main = (
        main
        if main in metrics
        else next((name for name in metrics if name.endswith(f"average/{main}")), main)
    )
    if main not in metrics:
        raise InputError(unknown("main metric", main, metrics))
    return Scores(
        model=str(result.get("model") or ""),
        task=str(result["task"]),
        name=str(result.get("name") or Path(str(result["data"]).split(",")[0].rstrip("/")).name),
        split=str(result.get("split") or ""),
        main=main,
        metrics=metrics,
        intervals={
            name: (float(low), float(high))
            for name, (low, high) in result.get("intervals", {}).items()
            if _is_number(low) and _is_number(high)
        },
        n=int(result.get("n") or 0),
        unit=str(result.get("unit") or ""),
        notes=(*_cautions(result), *map(str, result.get("notes") or ())),
    )


def _cautions(result: Mapping[str, Any]) -> Iterator[str]:
    """Returns cautions about the settings of a measurement and what may distort its figures."""
    if result.get("dim"):
        yield f"embeddings cut to {result['dim']} numbers"
    if result.get("layers"):
        yield f"stopped after {result['layers']} layers"
    if result.get("instruction"):
        yield f"with the instruction {result['instruction']!r}"
    n, unit = result.get("n") or 0, result.get("unit") or "items"
    if 0 < n < SMALL:
        yield f"only {n} {unit}: its interval is wide, and too narrow still below some thirty"
    seen = result.get("overlap")
    if seen:
        without = seen.get("clean")
        clean = f": {without:.4f} without them" if seen["items"] and _is_number(without) else ""
        yield (
            f"{seen['items']} of {n} {unit} share {seen['words']} words in a row with training data"
            f"{clean}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
