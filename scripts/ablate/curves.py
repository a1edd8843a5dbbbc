"""Pictures of a table of runs by step: metrics and loss, alignment and uniformity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError
from embed_jax.pictures import PALETTE, legend_below, picture_style
from embed_jax.train.ablation import AblationRun, spread
from embed_jax.train.ablation_table import Table
from embed_jax.train.plots import series_by_name, smooth

from .plots import runs_title, write_title


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


def _text(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def row_colors(count: int) -> list[Any]:
    """Returns a colour for each row: of the project's, or of 20 where these are too few."""
    from matplotlib import pyplot

    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return list(pyplot.colormaps["tab20"](np.arange(count) % 20))


@picture_style()
def plot_against_step(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws `curves`: metric on the left axis, loss dashed on the right, best steps as stars.

    Panels of a metric have one scale, and all panels have one scale of the loss.

    Raises:
        InputError: as `curves`.
    """
    panels = curves(table, runs)
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    by_panel = any(title for _, title in panels)
    labels = list(dict.fromkeys(curve.label for panel in panels.values() for curve in panel))
    if by_panel and not isinstance(
        runs[0].settings[table.lines], str | bool
    ):  # numbers: from light to dark
        colors = list(pyplot.colormaps["viridis_r"](np.linspace(0.1, 1, len(labels))))
    else:
        colors = row_colors(len(labels))
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
    figure.suptitle(runs_title(runs))
    figure.savefig(output, format=form)
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


@picture_style()
def plot_alignment(table: Table, runs: Sequence[AblationRun], output: Path, form: str) -> None:
    """Draws each row's way through alignment and uniformity, a point for each evaluation.

    Both are measured with `eval.geometry`; lower is better, so the good corner is the lower left
    one. Lines are means over seeds. Wang and Isola (2020); Gao et al. (2021) draw this picture of
    SimCSE's variants.

    Raises:
        InputError: if no run has measured both.
    """
    ways = alignment_ways(runs)
    if not ways:
        raise InputError(
            f"{table.file}: --alignment: no run has measured it: set --config.eval.geometry=true, "
            "and data with positive pairs in config.eval.sts or config.eval.retrieval"
        )
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    for (row, (uniformity, alignment)), color in zip(
        ways.items(), row_colors(len(ways)), strict=True
    ):
        axes.plot(uniformity, alignment, "-", color=color, linewidth=1.2, alpha=0.8)
        axes.plot(uniformity[0], alignment[0], "o", color=color, markerfacecolor="white")
        axes.plot(uniformity[1:], alignment[1:], ".", color=color)
        axes.plot(uniformity[-1], alignment[-1], "o", color=color, label=row)
    write_title(figure, table)
    axes.set(
        xlabel="uniformity of all texts (lower: spread more evenly)",
        ylabel="alignment of positive pairs (lower: closer)",
    )
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1),  # beside the axes
        title="start: open, end: filled",
        alignment="left",
    )
    figure.savefig(output, format=form)
    pyplot.close(figure)


def alignment_ways(runs: Sequence[AblationRun]) -> dict[str, tuple[list[float], list[float]]]:
    """Returns uniformity and alignment of each row by step, means over the seeds."""
    ways = {}
    for row in dict.fromkeys(run.row for run in runs):
        series = [
            series_by_name(run.workdir / "metrics.jsonl")
            for run in runs
            if run.row == row and not run.error
        ]
        names = ("geometry/uniformity", "geometry/alignment")
        if series and all(name in each for each in series for name in names):
            uniformity, alignment = (
                over_seeds([each[name] for each in series])[1] for name in names
            )
            ways[row] = (uniformity, alignment)
    return ways
