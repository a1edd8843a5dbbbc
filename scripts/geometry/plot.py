"""The picture of one or two embedding spaces: cosines, singular values, neighbours, distances.

Also how sharp a softmax over candidates is at each temperature, and each space in two dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.evals.geometry import (
    NEIGHBOURS,
    distance_concentration,
    hubness,
    k_occurrence,
    rank_of_spectrum,
    singular_values,
)
from embed_jax.pictures import legend_below, picture_style
from embed_jax.scores import unit_length

COLORS = {"before": "#c2571a", "after": "#1f5fa8"}
RANDOM_PAIRS = 100_000
CANDIDATES = 256  # of a softmax: an ordinary batch
TEMPERATURES = np.geomspace(0.001, 1, 31)
SHOWN_TEXTS, SHOWN_PAIRS = 1000, 60  # in two dimensions
BINS = np.linspace(-1, 1, 51)
Space = tuple[
    Float[np.ndarray, "N D"], tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P D"]] | None
]


@picture_style()
def plot_geometry(spaces: Mapping[str, Space], output: Path, form: str, title: str = "") -> None:
    """Draws the spaces over each other in panels, each with a legend below it.

    Sharpness needs positive pairs. In two dimensions each space has its own panel, on one
    scale: a collapsed space is a small heap.

    Args:
        spaces: by "before" and "after", or only "after": embeddings of texts, and of the two sides
            of positive pairs.
        output: the file to write.
        form: "png", "svg" or "pdf".
        title: names the data and the models.
    """
    from matplotlib import pyplot

    draws = [_cosines, _spectrum, _occurrences, _concentration]
    draws += [_sharpness] * all(pairs for _, pairs in spaces.values())
    draws += [functools.partial(_plane, when=when) for when in spaces]
    columns = math.ceil(len(draws) / 2)
    figure, panels = pyplot.subplots(2, columns, figsize=(6 * columns, 10), layout="constrained")
    for axes in panels.flat[len(draws) :]:
        axes.remove()
    for draw, axes in zip(draws, panels.flat, strict=False):
        draw(axes, spaces)
        axes.spines[["top", "right"]].set_visible(False)
        legend_below(axes)
    if title:
        figure.suptitle(title)
    figure.savefig(output, format=form)
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


def _sharpness(axes: Any, spaces: Mapping[str, Space]) -> None:
    """Draws the effective number of candidates, exp(entropy), of a softmax over a batch's texts."""
    for when, (_, pairs) in spaces.items():
        if not pairs:
            continue
        first, second = (unit_length(side[:CANDIDATES]) for side in pairs)
        counts = effective_candidates(first @ second.T, TEMPERATURES)
        at = int(np.argmin(np.abs(TEMPERATURES - 0.05)))
        label = f"{_of(when, spaces)}{counts[at]:.1f} of {len(first)} at {TEMPERATURES[at]:.2g}"
        axes.plot(TEMPERATURES, counts, label=label, **_line(when))
    axes.set(
        title="Sharpness of a softmax over a batch",
        xlabel="temperature",
        ylabel="effective number of candidates, exp(entropy)",
        xscale="log",
        yscale="log",
    )


def effective_candidates(
    similarities: Float[np.ndarray, "N K"], temperatures: Float[np.ndarray, " T"]
) -> Float[np.ndarray, " T"]:
    """Computes exp(entropy) of softmax(similarities / t), the mean over rows, for each t.

    >>> print(effective_candidates(np.zeros((1, 4)), np.array([0.05])))
    [4.]
    """
    means = []
    for temperature in temperatures:
        logits = similarities / temperature
        logits = logits - logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        totals = weights.sum(axis=1)
        entropy = np.log(totals) - (weights * logits).sum(axis=1) / totals
        means.append(np.exp(entropy).mean())
    return np.array(means)


def _plane(axes: Any, spaces: Mapping[str, Space], when: str) -> None:
    """Draws a space on its first two principal components; lines join positive pairs."""
    embeddings, pairs = spaces[when]
    points, project, share = _principal_plane(embeddings)
    axes.plot(*points[:SHOWN_TEXTS].T, ".", color=COLORS[when], markersize=3, alpha=0.5)
    if pairs:
        for ends in zip(*(project(side[:SHOWN_PAIRS]) for side in pairs), strict=True):
            axes.plot(*np.array(ends).T, "-", color="black", linewidth=0.6, alpha=0.6)
    reach = max(np.abs(_principal_plane(other)[0]).max() for other, _ in spaces.values())
    title = f"{_of(when, spaces)}first two principal components"
    axes.set(
        title=title[0].upper() + title[1:],
        xlabel=f"they have {share:.0%} of the variance; lines: positive pairs",
        xlim=(-1.05 * reach, 1.05 * reach),
        ylim=(-1.05 * reach, 1.05 * reach),
        aspect="equal",
    )


def _principal_plane(
    embeddings: Float[np.ndarray, "N D"],
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], float]:
    """Returns the texts' places on the plane, a function that projects, its share of variance."""
    unit = unit_length(embeddings)
    mean = unit.mean(axis=0)
    _, values, directions = np.linalg.svd(unit - mean, full_matrices=False)

    def project(vectors: np.ndarray) -> np.ndarray:
        return (unit_length(vectors) - mean) @ directions[:2].T

    return project(embeddings), project, float((values[:2] ** 2).sum() / (values**2).sum())


def _of(when: str, spaces: Mapping[str, Space]) -> str:
    return f"{when}: " if len(spaces) > 1 else ""


def _line(when: str) -> dict[str, Any]:
    """Returns the style of a space's line: "before" is wide and shows beneath an equal one."""
    return {"color": COLORS[when], "linewidth": 3.2 if when == "before" else 1.6}
