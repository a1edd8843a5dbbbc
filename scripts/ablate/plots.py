"""Pictures of a table of runs: metrics by a config field, metrics and loss by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError, require
from embed_jax.registry import unknown
from embed_jax.train.ablation import AblationRun, spread
from embed_jax.train.ablation_table import Table
from embed_jax.train.agreement import student_interval
from embed_jax.train.plots import legend_below, line_style, series_by_name, smooth


def plot_against_x(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws each metric against the field X, a line for each value of LINES, with deviations."""
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
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
        axes.grid(alpha=0.3)
        legend_below(axes)
    figure.suptitle(_title(runs))
    figure.savefig(output, dpi=120, format=form)
    pyplot.close(figure)


def plot_rows(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws the first metric of each row, beside the paper's number if there are any.

    Dots are single seeds, bars 95 % intervals of the mean. The axes of the two panels differ: ours
    are of a smaller model and less data.
    """
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
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
    ours = panels[0][0]
    for place, row in enumerate(rows):
        own = [run for run in runs if run.row == row and metric in run.metrics]
        values = [table.scale * run.metrics[metric] for run in own]
        if not values:
            continue
        interval = student_interval(values)
        if len(values) > 1:
            ours.plot([interval.low, interval.high], [place, place], "-", color="C0", alpha=0.5)
        ours.plot(values, [place] * len(values), ".", color="C0", alpha=0.6)
        ours.plot(interval.mean, place, "o", color="C0", markersize=8)
    means = [line.get_xdata()[0] for line in ours.get_lines() if line.get_marker() == "o"]
    if means and max(means) > min(means):  # an interval of two seeds may be wider than the panel
        margin = 0.25 * (max(means) - min(means))
        ours.set_xlim(min(means) - margin, max(means) + margin)
    ours.set(title="ours", xlabel=metric, yticks=range(len(rows)), yticklabels=rows)
    ours.invert_yaxis()
    for axes in panels[0][1:]:
        shown = [(table.paper[row], place) for place, row in enumerate(rows) if row in table.paper]
        axes.plot(*zip(*shown, strict=True), "s", color="C1", markersize=8)
        axes.set(title=table.source, xlabel="published")
    for axes in panels[0]:
        axes.grid(alpha=0.3)
    figure.suptitle(table.title)
    figure.savefig(output, dpi=120, format=form)
    pyplot.close(figure)


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
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
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
        axes.grid(alpha=0.3)
    figure.suptitle(_title(runs))
    figure.savefig(output, dpi=120, format=form)
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


@dataclasses.dataclass(frozen=True)
class Curve:
    """A row's runs by step: means over the seeds, at the steps where each of them has a value.

    Attributes:
        label: what tells it from the others of its panel: the value of LINES, or the row's name.
        steps: where the metric was measured.
        means: of the metric, as measured, without SCALE.
        sds: standard deviations; nan of one run.
        best: the index in `steps` of the best mean; of equal ones the first.
        loss_steps: the training steps.
        loss: the training loss, smoothed.
    """

    label: str
    steps: Sequence[int]
    means: Sequence[float]
    sds: Sequence[float]
    best: int
    loss_steps: Sequence[int]
    loss: Sequence[float]


def curves(table: Table, runs: Sequence[AblationRun]) -> dict[tuple[str, str], list[Curve]]:
    """Returns the lines of each panel by (metric, title): lines by LINES, panels by X.

    Without X and LINES, or where these leave rows alike, all rows are lines of one panel. Metrics
    are those of METRICS that are measured while training; config.eval.metric stands for "best". A
    metric whose name ends in "loss" is best where it is lowest. Runs that failed are left out.

    Raises:
        InputError: if no run has such a metric.
    """
    runs = [run for run in runs if not run.error]
    logged = [(run.row, series_by_name(run.workdir / "metrics.jsonl")) for run in runs]
    selecting = dict.fromkeys(run.settings["eval.metric"] for run in runs)
    metrics = dict.fromkeys(
        name for metric in table.metrics for name in (selecting if metric == "best" else [metric])
    )
    metrics.pop("loss", None)  # it is drawn with each of the others
    rows = {run.row: run.settings for run in runs}
    panel_of = {
        row: (settings[table.x], settings[table.lines])
        for row, settings in rows.items()
        if table.x and table.lines
    }
    by_panel = bool(panel_of) and len(set(panel_of.values())) == len(rows)

    panels: dict[tuple[str, str], list[Curve]] = {}
    for metric in metrics:
        for row in sorted(panel_of, key=panel_of.__getitem__) if by_panel else rows:
            own = [series for name, series in logged if name == row]
            steps, means, sds = over_seeds([series.get(metric, {}) for series in own])
            if not steps:
                continue
            loss_steps, loss, _ = over_seeds([series.get("loss", {}) for series in own])
            title, label = (
                (f"{table.x} = {_text(panel_of[row][0])}", _text(panel_of[row][1]))
                if by_panel
                else ("", row)
            )
            best = (np.argmin if metric.endswith("loss") else np.argmax)(means)
            curve = Curve(label, steps, means, sds, int(best), loss_steps, smooth(loss).tolist())
            panels.setdefault((metric, title), []).append(curve)
    if not panels:
        raise InputError(
            f"{table.file}: --curves: nothing of METRICS is measured while training "
            "(config.eval.every)"
        )
    return panels


def over_seeds(series: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float], list[float]]:
    """Returns the steps that all series have, with means and standard deviations.

    So the curve has no jump where one series ends before the others.
    """
    steps = sorted(set.intersection(*map(set, series)))
    spreads = [spread([values[step] for values in series]) for step in steps]
    return steps, [mean for mean, _ in spreads], [sd for _, sd in spreads]


def _title(runs: Sequence[AblationRun]) -> str:
    """Returns the training data of the runs, and the model if they share one."""
    names = [
        dict.fromkeys(str(run.settings.get(field, "")) for run in runs)
        for field in ("data.train", "model.name")
    ]
    data = ", ".join(filter(None, names[0])) or "several data sets"
    return f"{data}: {Path(*names[1]).name}" if len(names[1]) == 1 else data


def _text(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def plot_against_step(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws `curves`: metric on the left axis, loss dashed on the right, best steps as stars.

    Panels of a metric have one scale, and all panels have one scale of the loss.

    Raises:
        InputError: as `curves`.
    """
    panels = curves(table, runs)
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    by_panel = any(title for _, title in panels)
    labels = list(dict.fromkeys(curve.label for panel in panels.values() for curve in panel))
    if by_panel and not isinstance(
        runs[0].settings[table.lines], str | bool
    ):  # numbers: from light to dark
        colors = pyplot.colormaps["viridis_r"](np.linspace(0.1, 1, len(labels)))
    else:
        colors = pyplot.colormaps["tab10" if len(labels) <= 10 else "tab20"](
            np.arange(len(labels)) % 20
        )
    color_of = dict(zip(labels, colors, strict=True))

    columns = min(len(panels), 2)
    num_rows = math.ceil(len(panels) / columns)
    size = (
        5.2 * columns if columns > 1 else 7.2,
        (3.3 + 0.2 * max(map(len, panels.values()))) * num_rows + 0.3,
    )
    figure, grid = pyplot.subplots(
        num_rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    alike: dict[str, list[Any]] = {}  # the axes of one scale
    for axes, ((metric, title), panel) in zip(grid.flat, panels.items(), strict=False):
        right = axes.twinx()
        axes.set_zorder(right.get_zorder() + 1)
        axes.patch.set_visible(False)
        for curve in panel:
            _draw(curve, axes, right, table, color_of[curve.label])
        axes.set(title=title, xlabel="step", ylabel=metric)
        right.set_ylabel("training loss")
        axes.grid(alpha=0.3)
        heading = table.lines if by_panel else None
        legend_below(axes, title=heading, fontsize=10)
        alike.setdefault(metric, []).append(axes)
        alike.setdefault("loss", []).append(right)
    for same in alike.values():
        limits = [axes.get_ylim() for axes in same]
        for axes in same:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    several = len({run.seed for run in runs}) > 1
    key = [
        Line2D(
            [],
            [],
            color="black",
            marker="o",
            markersize=3.5,
            label=f"metric{', mean ± sd' * several} (left)",
        ),
        Line2D(
            [],
            [],
            color="black",
            linestyle="--",
            linewidth=0.9,
            label="training loss, smoothed (right)",
        ),
        Line2D([], [], color="black", linestyle="", marker="*", markersize=12, label="best step"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(_title(runs))
    figure.savefig(output, dpi=120, format=form)
    pyplot.close(figure)


def _draw(curve: Curve, axes: Any, right: Any, table: Table, color: Any) -> None:
    step, best = curve.steps[curve.best], curve.means[curve.best]
    means, sds = (table.scale * np.array(values) for values in (curve.means, curve.sds))
    label = (
        f"{curve.label}: best {table.format_value(best)} at step "
        f"{step:,}{', the last' * (step == curve.steps[-1])}"
    )
    axes.plot(curve.steps, means, "o-", color=color, markersize=3.5, linewidth=1.8, label=label)
    axes.fill_between(curve.steps, means - sds, means + sds, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        step,
        table.scale * best,
        "*",
        color=color,
        markersize=15,
        markeredgecolor="black",
        markeredgewidth=0.7,
    )
    right.plot(curve.loss_steps, curve.loss, "--", color=color, linewidth=0.9, alpha=0.8)
