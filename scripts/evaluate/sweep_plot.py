"""Picture of a sweep: quality by bytes per vector and queries per second, with Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.evals.sweep import METRIC, Measured, by_bytes, by_time, front
from embed_jax.pictures import picture_style

LABEL_GAP = 0.04  # between labels, of the range of quality
CORNER = {"ha": "right", "va": "bottom", "color": "0.4"}
MARKERS = {"exact": "*", "asymmetric": "^", "symmetric": "o"}


@picture_style()
def plot_sweep(rows: Sequence[Measured], keep: float, data: str, output: Path, form: str) -> None:
    """Draws two panels: the points of a front joined and named, the others faint.

    Args:
        rows: as `measure` returns them, the first is full quality.
        keep: a share, drawn as a line.
        data: named in the title.
        output: the file to write.
        form: "png", "svg" or "pdf".
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    precisions = list(dict.fromkeys(row.setting.precision for row in rows))
    colors = dict(
        zip(
            precisions,
            pyplot.colormaps["tab10"](range(10)).tolist() * len(precisions),
            strict=False,
        )
    )
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(14, 7), layout="constrained", sharey=True
    )
    left.set(
        xlabel="bytes per vector, all that is stored (log scale)", ylabel=f"{METRIC}, % of float32"
    )
    right.set(xlabel="queries per second (log scale)")
    panels: list[tuple[Any, Callable, Callable]] = [
        (left, by_bytes, lambda row: row.bytes),
        (right, by_time, lambda row: row.queries_per_second),
    ]
    shares = [100 * row.share for row in rows]
    gap = LABEL_GAP * (max(shares) - min(shares) + 1)
    top = max(shares)
    for axes, cost, position in panels:
        best = front(rows, cost)
        low, high = min(map(position, rows)), max(map(position, rows))
        labels = max(3.0, (high / low) ** 0.55)  # room for the names of the outermost points
        axes.set_xscale("log")
        axes.set_xlim(*((low / labels, high * 1.3) if axes is left else (low / 1.2, high * labels)))
        for row in rows:
            _point(axes, row, position(row), colors, alpha=0.9 if row in best else 0.22)
        axes.plot(
            [position(row) for row in best],
            [100 * row.share for row in best],
            "-",
            color="0.35",
            zorder=1,
        )
        axes.axhline(100 * keep, color="0.5", linestyle=":", linewidth=1)
        axes.annotate(
            f"{100 * keep:g} %", (0.995, 100 * keep), xycoords=axes.get_yaxis_transform(), **CORNER
        )
        steps = (1,) if axes is left else (1, 2, 5) if high < 30 * low else (1, 3)
        first, last = axes.get_xlim()
        axes.set_xticks(*_ticks(first, last, steps, 2 if axes is left else 10))
        axes.minorticks_off()
        top = max(top, _label(axes, best, position, colors, gap, on_left=axes is left))
    left.set_ylim(min(shares) - 2 * gap, top + 2 * gap)
    key = [
        Line2D([], [], color=color, marker="s", linestyle="", label=name)
        for name, color in colors.items()
    ]
    key += [
        Line2D([], [], color="0.3", marker=m, linestyle="", label=f"{name} search")
        for name, m in MARKERS.items()
    ]
    key.append(
        Line2D(
            [],
            [],
            color="0.3",
            marker="o",
            markersize=10,
            mfc="none",
            linestyle="",
            label="rescored (x candidates)",
        )
    )
    key.append(Line2D([], [], color="0.35", label="Pareto front"))
    figure.legend(handles=key, loc="outside lower center", ncols=min(len(key), 8), frameon=False)
    figure.suptitle(
        f"{Path(data).name}: {len(rows)} settings; 100 % is {METRIC} {rows[0].quality:.4f}"
    )
    figure.savefig(output, format=form)
    pyplot.close(figure)


def name(row: Measured) -> str:
    """Returns the name of a point in the picture."""
    setting = row.setting
    rescored = f", {setting.rescoring}" if setting.rescore else ""
    return f"{setting.precision} {setting.dim}d{rescored}"


def _point(axes: Any, row: Measured, x: float, colors: dict, alpha: float) -> None:
    color, marker = colors[row.setting.precision], MARKERS[row.setting.search]
    axes.plot(x, 100 * row.share, marker, color=color, alpha=alpha, markersize=6, markeredgewidth=0)
    if row.setting.rescore:
        axes.plot(x, 100 * row.share, "o", color=color, alpha=alpha, markersize=11, mfc="none")


def _label(
    axes: Any, best: Sequence[Measured], position: Callable, colors: dict, gap: float, on_left: bool
) -> float:
    """Writes the names of a front's points one above the other; returns the y of the topmost."""
    y = -math.inf
    for row in sorted(best, key=lambda row: row.share):
        y = max(100 * row.share + gap / 2, y + gap)
        axes.annotate(
            name(row),
            (position(row), 100 * row.share),
            (position(row) * (1 / 1.15 if on_left else 1.07), y),
            ha="right" if on_left else "left",
            va="center",
            fontsize=9,
            color=colors[row.setting.precision],
            arrowprops={
                "arrowstyle": "-",
                "color": "0.7",
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 5,
            },
        )
    return y


def _ticks(low: float, high: float, steps: Sequence[int], base: int) -> tuple[list[int], list[str]]:
    """Returns `steps` times the powers of `base` within a range, and their labels."""
    ticks = [
        step * base**power
        for power in range(30)
        for step in steps
        if low <= step * base**power <= high
    ]
    return ticks, [f"{tick:,}" for tick in ticks]
