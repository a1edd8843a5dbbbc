"""The sections of a model card with the model's scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embed_jax.export.record import TrainingRun
from embed_jax.export.scores import Scores

MANY = 5  # tasks
FAIR = (
    "Scores are fractions; in brackets the 95 % bootstrap interval over the test items. It covers "
    "the choice of these items only: not another seed, another data set or other texts, and two "
    "overlapping intervals do not say that two models are equal."
)


def describe_evaluation(scores_by_task: Sequence[Scores], run: TrainingRun | None) -> str:
    """Returns the section with the scores of tasks, and of the run itself; "" without any."""
    parts = []
    if scores_by_task:
        rows = [
            (
                f"{scores.name} {scores.split}".strip(),
                f"**{metric}**" if metric == scores.main else metric,
                _format_score(scores, metric),
                f"{scores.n:,} {scores.unit}".strip() if scores.n else "",
            )
            for scores in scores_by_task
            for metric in select_metrics(scores, scores_by_task)
        ]
        rows += _experiment_rows(scores_by_task)
        parts += [markdown_table(("task", "metric", "score", "of"), rows), FAIR]
        notes = [f"- {scores.name}: {note}" for scores in scores_by_task for note in scores.notes]
        parts += ["What must be known of these figures:\n\n" + "\n".join(notes)] if notes else []
    results = run.results if run else {}
    measured = results.get("metrics") or {}
    sides = [
        side
        for side in ("before", "after", "teacher")
        if any(name.startswith(f"{side}/") for name in measured)
    ]
    if "after" in sides:
        names = [name.partition("/")[2] for name in measured if name.startswith("after/")]
        rows = [
            (name, *(_format_number(measured.get(f"{side}/{name}")) for side in sides))
            for name in names
        ]
        what = "At the end of the training, on data that chose nothing"
        what += " (Spearman's correlation):" if results.get("task") == "sts" else ":"
        parts += [what, markdown_table(("", *sides), rows)]
    parts += _describe_reranking(run.reranking) if run and run.reranking else []
    return "\n\n".join(["## Evaluation", *parts]) if parts else ""


def _describe_reranking(report: Mapping[str, Any]) -> list[str]:
    """Returns the paragraphs of reranking.json: the scores of both stages, and the gain."""
    first = report["first_stage"]
    rows = [
        (
            metric,
            *(
                f"{stage['metrics'][metric]:.4f} [{low:.4f}, {high:.4f}]"
                for stage in (first, report)
                for low, high in [stage["intervals"][metric]]
            ),
        )
        for metric in report["intervals"]
    ]
    about = (
        f"On test, once, at the end of the training: the first {report['depth']} results of each "
        f"of {report['n']:,} queries, as the first stage has them and reranked "
        f"({report['rerank_ms_per_query']:.1f} ms a query); in brackets the 95 % interval over "
        "queries:"
    )
    verdicts = [str(difference["verdict"]) for difference in report["differences"].values()]
    return [about, markdown_table(("metric", first["model"], "reranked"), rows), *verdicts]


def select_metrics(scores: Scores, scores_by_task: Sequence[Scores]) -> dict[str, float]:
    """Returns all metrics of a task, except those of its single experiments.

    If there are more than MANY tasks, it is only the main metric.
    """
    if len(scores_by_task) > MANY:
        return {scores.main: scores.metrics[scores.main]}
    single = {name for names in _experiments(scores).values() for name in names}
    return {name: value for name, value in scores.metrics.items() if name not in single}


def _experiments(scores: Scores) -> dict[str, list[str]]:
    """Returns metrics of repeated experiments, such as accuracy_1 to accuracy_10, by their mean."""
    repeats: dict[str, list[str]] = {}
    for name in scores.metrics:
        mean, _, number = name.rpartition("_")
        if number.isdigit() and mean in scores.metrics:
            repeats.setdefault(mean, []).append(name)
    return repeats


def _experiment_rows(scores_by_task: Sequence[Scores]) -> Iterator[tuple[str, str, str, str]]:
    """Returns a row of the table for each task's repeated experiments: their range of scores."""
    for scores in scores_by_task if len(scores_by_task) <= MANY else ():
        for mean, names in _experiments(scores).items():
            values = [scores.metrics[name] for name in names]
            extent = f"{_format_number(min(values))} to {_format_number(max(values))}"
            yield scores.name, f"{mean}, single experiments", extent, f"{len(names)} experiments"


def _format_score(scores: Scores, metric: str) -> str:
    """Formats a score with its interval, if it has one."""
    if metric not in scores.intervals:
        return _format_number(scores.metrics[metric])
    low, high = scores.intervals[metric]
    return f"{scores.metrics[metric]:.4f} [{low:.4f}, {high:.4f}]"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]
) -> str:
    """Returns a Markdown table; bars in cells are escaped, and line breaks become spaces."""

    def escape(cell: str) -> str:
        return " ".join(str(cell).split()).replace("|", "\\|")

    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)
