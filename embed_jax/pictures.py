"""The style of all pictures, and the parts that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from embed_jax.errors import require

# Colours that people with any kind of colour blindness tell apart: Okabe and Ito (2008), "Color
# Universal Design", with a darker yellow that shows on white.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#9C8A00",
    "#000000",
)
MARKERS, DASHES = "os^Dv<>P", ("-", "--", ":", "-.")


@contextlib.contextmanager
def picture_style() -> Iterator[None]:
    """Lets matplotlib draw in the project's style, without a window; also a decorator.

    Settings of the caller's own pictures are as before afterwards.

    Raises:
        InputError: if matplotlib is missing.
    """
    require("matplotlib")
    import matplotlib
    from matplotlib.rcsetup import cycler

    matplotlib.use("Agg")
    style: Any = {
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "legend.frameon": False,
        "savefig.dpi": 120,
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        yield


def line_style(index: int, steps: Sequence[int]) -> dict[str, Any]:
    """Returns colour, dashes, marker and width by which equal curves are told apart.

    Later lines are thinner and their markers smaller, so that a line beneath another still shows.
    """
    rank = index % 4
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[rank],
        "linewidth": 3.4 - 0.7 * rank,
        "marker": MARKERS[index % len(MARKERS)] if len(steps) <= 50 else None,
        "markersize": 9 - 1.6 * rank,
        "markerfacecolor": "none",
        "alpha": 0.85,
    }


def legend_below(axes: Any, **options: Any) -> None:
    """Puts the legend below the panel, where it can't cover data; none without labels."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            **{"fontsize": 9} | options,
        )
