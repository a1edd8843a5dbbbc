"""The picture of one or two embedding spaces: cosines, singular values, neighbours, distances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.errors import require
from embed_jax.evals.geometry import (
    NEIGHBOURS,
    distance_concentration,
    hubness,
    k_occurrence,
    rank_of_spectrum,
    singular_values,
)
from embed_jax.scores import unit_length
from embed_jax.train.plots import legend_below

COLORS = {"before": "#c2571a", "after": "#1f5fa8"}
RANDOM_PAIRS = 100_000
BINS = np.linspace(-1, 1, 51)
Space = tuple[
    Float[np.ndarray, "N D"], tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P D"]] | None
]


def plot_geometry(spaces: Mapping[str, Space], output: Path, form: str, title: str = "") -> None:
    """Draws the spaces over each other in four panels, each with a legend below it.

    Args:
        spaces: by "before" and "after", or only "after": embeddings of texts, and of the two sides
            of positive pairs.
        output: the file to write.
        form: "png", "svg" or "pdf".
        title: names the data and the models.
    """
    require("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 10), layout="constrained")
    for draw, axes in zip(
        (_cosines, _spectrum, _occurrences, _concentration), panels.flat, strict=True
    ):
        draw(axes, spaces)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        legend_below(axes)
    if title:
        figure.suptitle(title)
    figure.savefig(output, dpi=120, format=form)
    pyplot.close(figure)


def _cosines(axes: Any, spaces: Mapping[str, Space]) -> None:
    """Draws histograms: the model after training above the axis, the one before below."""
    for when, (embeddings, pairs) in spaces.items():
        unit = unit_length(embeddings)
        rng = np.random.default_rng(0)
        first = rng.integers(len(unit), size=RANDOM_PAIRS)
        second = (first + rng.integers(1, len(unit), size=RANDOM_PAIRS)) % len(unit)
        cosines = {"random pairs": np.einsum("nd,nd->n", unit[first], unit[second])}
        if pairs:
            cosines["positive pairs"] = np.einsum("nd,nd->n", *map(unit_length, pairs))
        side = -1 if when == "before" else 1
        for kind, values in cosines.items():
            shares = side * np.histogram(np.clip(values, -1, 1), BINS)[0] / len(values)
            first, last = np.flatnonzero(shares)[[0, -1]]
            style = {"fill": True, "alpha": 0.3} if kind == "random pairs" else {"linewidth": 1.8}
            label = f"{_of(when, spaces)}{kind}, mean {values.mean():.2f}"
            axes.stairs(
                shares[first : last + 1],
                BINS[first : last + 2],
                color=COLORS[when],
                label=label,
                **style,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        title="Cosines",
        xlabel="cosine of a pair",
        ylabel=f"share of pairs, by {BINS[1] - BINS[0]:g} of cosine",
        xlim=(-1, 1),
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.2f}")


def _spectrum(axes: Any, spaces: Mapping[str, Space]) -> None:
    highest = 0.0
    for when, (embeddings, _) in spaces.items():
        values = singular_values(embeddings)
        shares = values / values.sum()
        highest = max(highest, shares[0])
        label = f"{_of(when, spaces)}effective rank {rank_of_spectrum(values):.0f} of {len(values)}"
        axes.plot(np.arange(1, len(values) + 1), shares, label=label, **_line(when))
    axes.set(
        title="Singular values",
        xlabel="rank, largest first",
        ylabel="share of their sum",
        yscale="log",
        ylim=(1e-4 * highest, 2 * highest),  # below lie dead dimensions
    )


def _occurrences(axes: Any, spaces: Mapping[str, Space]) -> None:
    for when, (embeddings, _) in spaces.items():
        counts = np.sort(k_occurrence(embeddings))
        at = np.unique(counts)
        shares = 1 - np.searchsorted(counts, at) / len(counts)
        label = f"{_of(when, spaces)}skewness {hubness(embeddings):.1f}, at most {counts[-1]}"
        axes.step(at, shares, where="pre", label=label, **_line(when))
    axes.set(
        title="Hubness",
        xlabel=f"n: a text is among the {NEIGHBOURS} nearest of n others or more",
        ylabel="share of texts",
        yscale="log",
    )


def _concentration(axes: Any, spaces: Mapping[str, Space]) -> None:
    lines = {when: distance_concentration(embeddings) for when, (embeddings, _) in spaces.items()}
    for when, ratios in lines.items():
        last = max(ratios)
        label = f"{_of(when, spaces)}{ratios[last]:.2f} at {last}"
        style = {"marker": "o", "markersize": 7 if when == "before" else 4, **_line(when)}
        axes.plot(list(ratios), list(ratios.values()), label=label, **style)
    dims = sorted({dim for ratios in lines.values() for dim in ratios})
    axes.set(
        title="Concentration of distances",
        xlabel="dimensions: the first numbers of the embedding",
        ylabel="nearest / farthest distance, mean over texts",
        ylim=(0, 1.02),
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()


def _of(when: str, spaces: Mapping[str, Space]) -> str:
    return f"{when}: " if len(spaces) > 1 else ""


def _line(when: str) -> dict[str, Any]:
    """Returns the style of a space's line: "before" is wide and shows beneath an equal one."""
    return {"color": COLORS[when], "linewidth": 3.2 if when == "before" else 1.6}
