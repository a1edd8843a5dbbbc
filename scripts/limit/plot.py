"""Picture of the critical number of documents by dimension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embed_jax.pictures import legend_below, line_style, picture_style


@picture_style()
def plot_critical(
    dims: Sequence[int],
    numbers: Sequence[int],
    fit: tuple[Sequence[float], float] | None,
    output: Path,
    form: str,
) -> None:
    """Draws critical n against d, the polynomial through it, and n = d + 1.

    Args:
        dims: dimensions.
        numbers: the critical n of each.
        fit: the polynomial's coefficients, the constant first, and R squared; None: no polynomial.
        output: the file to write.
        form: "png", "svg" or "pdf".
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5.5), layout="constrained")
    points = line_style(0, dims) | {"linestyle": ""}
    axes.plot(dims, numbers, label="free embeddings, trained", **points)
    at = np.linspace(min(dims), max(dims), 200)
    if fit is not None:
        coefficients, r_squared = fit
        powers = ("", "d", "d²", "d³")
        terms = " ".join(
            f"{value:+.3g} {power}".strip()
            for value, power in zip(coefficients, powers, strict=True)
        )
        label = f"n = {terms}, R² {r_squared:.4f}"
        axes.plot(
            at, np.polynomial.polynomial.polyval(at, coefficients), "-", color="0.35", label=label
        )
    axes.plot(at, at + 1, ":", color="0.5", label="d + 1 documents: the corners of a simplex")
    for dim, number in zip(dims, numbers, strict=True):
        axes.annotate(
            f"{number}", (dim, number), xytext=(-6, 6), textcoords="offset points", ha="right"
        )
    axes.set(
        title="The most documents of which every pair is found",
        xlabel="d, numbers of a vector",
        ylabel="critical n, documents",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    legend_below(axes)
    figure.savefig(output, format=form)
    pyplot.close(figure)
