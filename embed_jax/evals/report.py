"""Results of tasks side by side, as tables and as the content of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embed_jax.evals.results import TaskResult

Cells = tuple[list[str], list[list[str]]]  # the header and the rows of a table


def format_score(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """Formats a score with its interval, such as "0.8203 [0.801, 0.838]"; "" for None.

    >>> format_score(0.82034, (0.8011, 0.8378))
    '0.8203 [0.801, 0.838]'
    """
    if value is None:
        return ""
    return f"{value:.4f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{value:.4f}"


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table as lines of aligned text.

    >>> print(format_table(["metric", "bm25"], [["mrr", "0.5"]]))
    metric  bm25
    mrr     0.5
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *rows)
    )


def systems_table(results: Sequence[TaskResult]) -> Cells:
    """Returns a table of one data set: a row for each metric, a column for each system."""
    outcomes = [result.outcome for result in results]
    return ["metric", *(result.model for result in results)], [
        [
            metric,
            *(
                format_score(outcome.metrics[metric], outcome.intervals.get(metric))
                for outcome in outcomes
            ),
        ]
        for metric in outcomes[0].metrics
    ]


def data_sets_table(results: Sequence[TaskResult]) -> Cells:
    """Returns a table of one system: a row for each data set, and one for their average.

    A column is a metric with an interval.
    """
    metrics = list(
        dict.fromkeys(metric for result in results for metric in result.outcome.intervals)
    )
    rows = [
        [
            result.name,
            str(len(result.outcome.items)),
            *(
                format_score(
                    result.outcome.metrics.get(metric), result.outcome.intervals.get(metric)
                )
                for metric in metrics
            ),
        ]
        for result in results
    ]
    average = averages(results)
    rows.append(["average", "", *(format_score(average.get(metric)) for metric in metrics)])
    return ["data", results[0].unit, *metrics], rows


def averages(results: Sequence[TaskResult]) -> dict[str, float]:
    """Returns means over data sets of the metrics for which all have an interval."""
    common = [
        name
        for name in results[0].outcome.intervals
        if all(name in result.outcome.intervals for result in results)
    ]
    return {
        name: float(np.mean([result.outcome.metrics[name] for result in results]))
        for name in common
    }


def scores_by_name(results: Sequence[TaskResult]) -> dict[str, dict[str, Any]]:
    """Returns "metrics" and "intervals": those of one data set, or DATA/METRIC with the average."""
    if len(results) == 1:
        outcome = results[0].outcome
        return {"metrics": dict(outcome.metrics), "intervals": dict(outcome.intervals)}
    scores: dict[str, dict[str, Any]] = {
        part: {
            f"{result.name}/{metric}": value
            for result in results
            for metric, value in getattr(result.outcome, part).items()
        }
        for part in ("metrics", "intervals")
    }
    scores["metrics"] |= {f"average/{name}": value for name, value in averages(results).items()}
    return scores
