"""Pictures of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import replaced
from embed_jax.config import Experiment
from embed_jax.pictures import legend_below, line_style, picture_style

# Metrics with a panel, or without any.
NOT_SCORES = ("validation/", "geometry/", "loss/")
OF_BATCHES = {  # measured on each training batch, and noisy: smoothed
    "loss": "training loss",
    "positive_similarity": "positive",
    "hardest_negative_similarity": "hardest in-batch negative",
    "accuracy": "in-batch accuracy",
}


@picture_style()
def plot_curves(metrics_file: Path, output: Path, *, title: str = "") -> None:
    """Plots the losses, the similarities in the batch, and evaluated metrics against the step.

    Values of each training batch are smoothed, with the batches' own values faint behind them.
    Panels and legend entries are only for what the run measured; legends stand below their panels.

    Args:
        metrics_file: a run's metrics.jsonl.
        output: a PNG file, replaced as a whole.
        title: names the run's data and model, see `run_title`.

    Raises:
        InputError: if matplotlib is missing.
    """
    from matplotlib import pyplot

    series = series_by_name(metrics_file)
    scores = [name for name in series if "/" in name and not name.startswith(NOT_SCORES)]
    panels = [
        ("Loss", "loss", ["loss", "validation/loss"]),
        (
            "Similarity in the batch",
            "cosine; accuracy: share",
            [name for name in OF_BATCHES if name != "loss"],
        ),
        ("Evaluation", "score", scores),
    ]
    panels = [
        (title, unit, [name for name in names if name in series]) for title, unit, names in panels
    ]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return
    entries = max(len(names) for *_, names in panels)
    figure, grid = pyplot.subplots(
        1,
        len(panels),
        figsize=(5.5 * len(panels), 4 + 0.22 * entries),
        layout="constrained",
        squeeze=False,
    )
    for axes, (heading, ylabel, names) in zip(grid[0], panels, strict=True):
        for index, name in enumerate(names):
            steps, values = list(series[name]), list(series[name].values())
            if name in OF_BATCHES:
                axes.plot(steps, values, color=f"C{index}", alpha=0.25, linewidth=0.8)
                label = f"{OF_BATCHES[name]}, smoothed"
                axes.plot(steps, smooth(values), color=f"C{index}", label=label)
            else:
                axes.plot(steps, values, label=name, **line_style(index, steps))
        axes.set(title=heading, xlabel="step", ylabel=ylabel)
        legend_below(axes)
    if title:
        figure.suptitle(title)
    with replaced(output) as beside:
        figure.savefig(beside, format="png")
    pyplot.close(figure)


def run_title(config: Experiment) -> str:
    """Names a run's data, model and loss, for the top of a picture."""
    data = config.data.train or " + ".join(
        source.train for source in vars(config.mixture.sources).values()
    )
    model = Path(config.model.name).name if Path(config.model.name).is_dir() else config.model.name
    return f"{data}: {model}, {config.loss.name}"


def series_by_name(metrics_file: Path) -> dict[str, dict[int, float]]:
    """Returns name -> step -> value for every number of a metrics.jsonl; none without the file."""
    series: dict[str, dict[int, float]] = {}
    if not metrics_file.exists():
        return series
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if value is not None:
                series.setdefault(name, {})[entry["step"]] = value
    return series


def smooth(values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " N"]:
    """Computes the centred running mean over a tenth of the values.

    At both ends it is over the values that are there.
    """
    half = len(values) // 20
    sums = np.cumsum([0.0, *values])
    positions = np.arange(len(values))
    first, last = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
