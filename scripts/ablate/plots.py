"""Pictures of a table of runs: metrics by a config field, metrics and loss by step."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError
from embed_jax.evals.by_size import BySize, plot_by_size
from embed_jax.pictures import legend_below, line_style, picture_style
from embed_jax.registry import unknown
from embed_jax.train.ablation import AblationRun, spread
from embed_jax.train.ablation_table import Table
from embed_jax.train.agreement import student_interval


@picture_style()
def plot_against_x(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws each metric against the field X, a line for each value of LINES, with deviations."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1,
        len(table.metrics),
        figsize=(5.5 * len(table.metrics), 5),
        layout="constrained",
        squeeze=False,
    )
    xs = sorted({run.settings[table.x] for run in runs})
    numeric = not isinstance(xs[0], str | bool)
    at = {x: x if numeric else index for index, x in enumerate(xs)}
    for axes, metric in zip(panels[0], table.metrics, strict=True):
        lines = sorted({run.settings[table.lines] for run in runs}) if table.lines else [None]
        for index, line in enumerate(lines):
            own = [
                run
                for run in runs
                if metric in run.metrics and line in (None, run.settings.get(table.lines))
            ]
            points = {at[x]: [run for run in own if run.settings[table.x] == x] for x in xs}
            points = {x: own_runs for x, own_runs in points.items() if own_runs}
            if not points:
                continue
            values = [
                [table.scale * run.metrics[metric] for run in own_runs]
                for own_runs in points.values()
            ]
            means, sds = zip(*map(spread, values), strict=True)
            label = "ours" if line is None else f"{table.lines} = {line}"
            (drawn, *_) = axes.errorbar(
                list(points), means, yerr=sds, capsize=3, label=label, **line_style(index, xs)
            )
            for x, scores in zip(points, values, strict=True):
                axes.plot([x] * len(scores), scores, ".", color=drawn.get_color(), alpha=0.4)
            published = table.paper if metric == table.metrics[0] else {}
            paper = {
                x: published[own_runs[0].row]
                for x, own_runs in points.items()
                if own_runs[0].row in published
            }
            style = {
                "color": drawn.get_color(),
                "mfc": "white",
                "label": "paper" if line is None else f"paper, {label}",
            }
            if paper:
                axes.plot(list(paper), list(paper.values()), "s--", **style)
        if numeric and xs[0] > 0 and xs[-1] >= 20 * xs[0]:
            axes.set_xscale("log")
        axes.set_xticks(list(at.values()), [f"{x:,}" if isinstance(x, int) else str(x) for x in xs])
        axes.minorticks_off()
        axes.set(xlabel=table.x, ylabel=metric)
        legend_below(axes)
    figure.suptitle(runs_title(runs))
    figure.savefig(output, format=form)
    pyplot.close(figure)


@picture_style()
def plot_rows(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws the first metric of each row, beside the paper's number if there are any.

    Dots are single seeds, bars 95 % intervals of the mean; where they are wider than the panel,
    which is at most three times as wide as the means differ, they have no ends. The axes of the two
    panels differ: ours are of a smaller model and less data.
    """
    from matplotlib import pyplot

    metric, rows = table.metrics[0], list(dict.fromkeys(run.row for run in runs))
    figure, panels = pyplot.subplots(
        1,
        1 + bool(table.paper),
        figsize=(4.6 * (1 + bool(table.paper)) + 1.5, 1.2 + 0.42 * len(rows)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    ours, widest = panels[0][0], 0.0
    for place, row in enumerate(rows):
        own = [run for run in runs if run.row == row and metric in run.metrics]
        values = [table.scale * run.metrics[metric] for run in own]
        if not values:
            continue
        interval = student_interval(values)
        if len(values) > 1:
            ends = [interval.low, interval.high]
            ours.plot(ends, [place, place], "|-", color="C0", alpha=0.5)
            widest = max(widest, interval.high - interval.low)
        ours.plot(values, [place] * len(values), ".", color="C0", alpha=0.6)
        ours.plot(interval.mean, place, "o", color="C0", markersize=8)
    means = [line.get_xdata()[0] for line in ours.get_lines() if line.get_marker() == "o"]
    if means and (reach := max(means) - min(means)):
        margin = min(max(0.25 * reach, 0.6 * widest), reach)
        ours.set_xlim(min(means) - margin, max(means) + margin)
    ours.locator_params(axis="x", nbins=5)
    ours.set(
        title="ours" if table.paper else "",
        xlabel=f"{metric}, 95 % intervals over seeds" if widest else metric,
        yticks=range(len(rows)),
        yticklabels=rows,
    )
    ours.invert_yaxis()
    for axes in panels[0][1:]:
        shown = [(table.paper[row], place) for place, row in enumerate(rows) if row in table.paper]
        axes.plot(*zip(*shown, strict=True), "s", color="C1", markersize=8)
        axes.set(title=textwrap.fill(table.source, 34), xlabel="published")
    write_title(figure, table)
    figure.savefig(output, format=form)
    pyplot.close(figure)


@picture_style()
def plot_against_metric(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws each metric against the metric X: a point for each row, in the order of X.

    Bars are standard deviations over the seeds. Where METRICS name the same metric of BM25
    ("bm25/..."), it is a level line of the panel.

    Raises:
        InputError: if no run has the metric X.
    """
    points = points_by_row(table, runs)
    if not points:
        known = dict.fromkeys(metric for run in runs for metric in run.metrics)
        raise InputError(f"{table.file}: X: {unknown('metric', table.x, known)}")
    from matplotlib import pyplot

    shown = [metric for metric in table.metrics if metric != table.x]
    levels = [metric for metric in shown if metric.startswith("bm25/")]
    drawn = [metric for metric in shown if metric not in levels] or shown
    figure, panels = pyplot.subplots(
        1, len(drawn), figsize=(5.5 * len(drawn), 5), layout="constrained", squeeze=False
    )
    for axes, metric in zip(panels[0], drawn, strict=True):
        rows = [row for row in points if metric in points[row]]
        xs, x_sds = zip(*(points[row][table.x] for row in rows), strict=True)
        means, sds = zip(*(points[row][metric] for row in rows), strict=True)
        axes.errorbar(xs, means, xerr=x_sds, yerr=sds, marker="o", capsize=3)
        for row, x, mean in zip(rows, xs, means, strict=True):
            axes.annotate(row, (x, mean), (4, 4), textcoords="offset points", fontsize=8)
        for level in levels:
            if level.partition("/")[2] == metric.rpartition("/")[2]:
                values = [own[level][0] for own in points.values() if level in own]
                axes.axhline(max(values), color="gray", linestyle="--", label="BM25")
                legend_below(axes)
        if min(xs) > 0 and max(xs) >= 20 * min(xs):
            axes.set_xscale("log")
        axes.set(xlabel=table.x, ylabel=metric)
    figure.suptitle(runs_title(runs))
    figure.savefig(output, format=form)
    pyplot.close(figure)


def points_by_row(
    table: Table, runs: Sequence[AblationRun]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns mean and standard deviation of X and METRICS of each row, in the order of X.

    Deviations of a single run are 0. Rows without X are left out; SCALE is applied to METRICS.
    """
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for row in dict.fromkeys(run.row for run in runs):
        own = [run.metrics for run in runs if run.row == row and not run.error]
        for metric in dict.fromkeys([table.x, *table.metrics]):
            values = [metrics[metric] for metrics in own if metric in metrics]
            scale = 1 if metric == table.x else table.scale
            if values:
                mean, sd = spread([scale * value for value in values])
                points.setdefault(row, {})[metric] = (mean, 0.0 if math.isnan(sd) else sd)
    some = [row for row, own in points.items() if table.x in own]
    return {row: points[row] for row in sorted(some, key=lambda row: points[row][table.x])}


def write_title(figure: Any, table: Table) -> None:
    """Writes a table's title over a picture, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(table.title, int(9.5 * figure.get_figwidth())))


def runs_title(runs: Sequence[AblationRun]) -> str:
    """Returns the training data of the runs, and the model if they share one."""
    names = [
        dict.fromkeys(str(run.settings.get(field, "")) for run in runs)
        for field in ("data.train", "model.name")
    ]
    data = ", ".join(filter(None, names[0])) or "several data sets"
    return f"{data}: {Path(*names[1]).name}" if len(names[1]) == 1 else data


def plot_against_size(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws each row's scores by the size of a cut embedding, means over the seeds.

    Raises:
        InputError: if no run was measured by size, as experiments.matryoshka does.
    """
    scores: dict[str, BySize] = {}
    for row in dict.fromkeys(run.row for run in runs):
        own = [run.metrics for run in runs if run.row == row and not run.error]
        for metric in own[0] if own else ():
            kind, _, place = metric.partition("/")
            if kind == "by_size":
                layers, size = map(int, place.split("/"))
                mean = table.scale * statistics.fmean(metrics[metric] for metrics in own)
                scores.setdefault(row, {}).setdefault(layers, {})[size] = mean
    if not scores:
        raise InputError(f"{table.file}: X: no run was measured by size")
    sizes = {size for by_layers in scores.values() for by in by_layers.values() for size in by}
    plot_by_size(scores, sorted(sizes), output, table.title, form=form)
