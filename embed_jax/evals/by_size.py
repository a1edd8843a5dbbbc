"""Measures a model at each size of its embeddings and each number of its layers."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from embed_jax.atomic import replaced, write_whole
from embed_jax.errors import InputError
from embed_jax.pictures import picture_style
from embed_jax.scores import truncate
from embed_jax.types import Evaluator

BySize = dict[int, dict[int, float]]  # layers -> size -> score


def numbers(text: str, field: str, highest: int) -> list[int]:
    """Reads different numbers in a text, such as [384, 64] of "64,384", in descending order.

    Args:
        text: numbers separated by commas.
        field: the text's name in errors.
        highest: the largest number that is accepted.

    Raises:
        InputError: for a number that is not from 1 to `highest`, or is repeated.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= highest for part in parts) or len(
        set(parts)
    ) < len(parts):
        raise InputError(f"{field}: expected different numbers from 1 to {highest}, found {text!r}")
    return sorted(map(int, parts), reverse=True)


def spearman_by_size(
    encode: Callable[..., np.ndarray],
    tests: Mapping[str, Evaluator],
    sizes: Sequence[int],
    layers: Sequence[int],
) -> BySize:
    """Computes Spearman's correlation for embeddings of each size after each number of layers.

    The correlation is the mean over the test sets. Texts are encoded once for each number of
    layers. Sizes and depths that were not trained are evaluated without a warning.

    Args:
        encode: `(texts, layers=number of layers) -> embeddings`.
        tests: evaluators of STS test sets, by name.
        sizes: numbers kept of each embedding.
        layers: numbers of layers to run.
    """
    by_layers: BySize = {}
    for number in layers:

        @functools.cache
        def encode_at(texts: tuple[str, ...], number: int = number) -> np.ndarray:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="layers ")
                return encode(texts, layers=number)

        by_layers[number] = {}
        for size in sizes:

            def encode_cut(texts: Sequence[str], size: int = size) -> np.ndarray:
                return truncate(encode_at(tuple(texts)), size)

            scores = [test(encode_cut)["spearman"] for test in tests.values()]
            by_layers[number][size] = float(np.mean(scores))
    return by_layers


def print_by_size(scores: Mapping[str, BySize], trained: Sequence[int]) -> None:
    """Prints a line for each size: the models' scores, and their shares of the full scores.

    Args:
        scores: by the model's name.
        trained: the sizes that the models were trained for; other sizes are marked.
    """
    print(f"{'layers':>6} {'size':>5} " + "".join(f"{name:>20}" for name in scores))
    first = next(iter(scores.values()))
    for layers, by_size in first.items():
        for size in by_size:
            cells = [
                f"{by_layers[layers][size]:10.4f} "
                f"{by_layers[layers][size] / full_score(by_layers):8.1%}"
                if layers in by_layers
                else ""
                for by_layers in scores.values()
            ]
            mark = "" if size in trained else "  (size not trained)"
            print(f"{layers:6d} {size:5d} " + "".join(f"{cell:>20}" for cell in cells) + mark)


def full_score(scores: BySize) -> float:
    """Returns the score of all layers and the whole embedding."""
    by_size = scores[max(scores)]
    return by_size[max(by_size)]


def write_by_size(scores: Mapping[str, BySize], trained: Sequence[int], output: Path) -> None:
    """Writes the scores as JSON, null where a correlation is undefined."""
    models = {
        name: {
            str(layers): {
                str(size): value if math.isfinite(value) else None
                for size, value in by_size.items()
            }
            for layers, by_size in by_layers.items()
        }
        for name, by_layers in scores.items()
    }
    content = {"metric": "spearman", "trained": list(trained), "layers -> size -> score": models}
    write_whole(output, json.dumps(content, indent=1) + "\n")


def read_by_size(file: Path) -> dict[str, BySize]:
    """Reads the scores that `write_by_size` wrote, by the model's name; nan for null."""
    models = json.loads(file.read_text(encoding="utf-8"))["layers -> size -> score"]
    return {
        name: {
            int(layers): {
                int(size): math.nan if score is None else score for size, score in by_size.items()
            }
            for layers, by_size in by_layers.items()
        }
        for name, by_layers in models.items()
    }


def by_size_metrics(scores: BySize) -> dict[str, float]:
    """Returns a model's scores as metrics, and their shares of the full score.

    >>> by_size_metrics({6: {384: 0.5, 32: 0.25}})["kept/6/32"]
    0.5

    Returns:
        {"by_size/LAYERS/SIZE": score, "kept/LAYERS/SIZE": score / score of the whole embedding}.
    """
    flat = {
        f"{layers}/{size}": score
        for layers, by_size in scores.items()
        for size, score in by_size.items()
    }
    shares = {f"kept/{name}": score / full_score(scores) for name, score in flat.items()}
    return {f"by_size/{name}": score for name, score in flat.items()} | shares


@picture_style()
def plot_by_size(
    scores: Mapping[str, BySize],
    trained: Sequence[int],
    output: Path,
    title: str = "",
    *,
    form: str = "png",
) -> None:
    """Plots quality against size, a line for each model and number of layers.

    The right panel shows the share of the whole embedding's quality.

    Raises:
        InputError: if matplotlib is missing.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    every = sorted(
        {
            size
            for by_layers in scores.values()
            for by_size in by_layers.values()
            for size in by_size
        }
    )
    for axes, of_full in zip(panels, (False, True), strict=True):
        ends: list[tuple[float, str, str]] = []
        for number, (name, by_layers) in enumerate(scores.items()):
            for depth, (layers, by_size) in enumerate(by_layers.items()):
                sizes, color = sorted(by_size), f"C{number}"
                values = [
                    by_size[size] / (full_score(by_layers) if of_full else 1.0) for size in sizes
                ]
                axes.plot(
                    sizes,
                    values,
                    color=color,
                    linestyle=("-", "--", ":", "-.")[depth % 4],
                    linewidth=max(4.5 - 1.5 * number, 1),
                )
                for is_trained, marker in ((True, "o"), (False, "x")):
                    marked = [i for i, size in enumerate(sizes) if (size in trained) == is_trained]
                    axes.plot(
                        [sizes[i] for i in marked], [values[i] for i in marked], marker, color=color
                    )
                ends.append(
                    (values[0], name + (f", {layers} layers" if len(by_layers) > 1 else ""), color)
                )
        low, high = axes.get_ylim()
        places = _apart([value for value, *_ in ends], 0.05 * (high - low))
        for place, (_, label, color) in zip(places, ends, strict=True):
            axes.annotate(
                label,
                (every[0], place),
                (-8, 0),
                textcoords="offset points",
                color=color,
                ha="right",
                va="center",
            )
        axes.set_xscale("log", base=2)
        longest = max(len(label) for _, label, _ in ends)
        span = math.log2(every[-1] / every[0]) + 1.0
        axes.set_xlim(every[0] / 2 ** (0.022 * longest * span), every[-1] * 1.1)
        shown = [every[0]]
        for size in every[1:]:
            if size == every[-1] or (size >= 1.4 * shown[-1] and size * 1.3 <= every[-1]):
                shown.append(size)
        axes.set_xticks(shown, [str(size) for size in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("size of the embedding (dimensions; x: not trained)")
    panels[0].set(ylabel="Spearman's correlation", title="Quality by size")
    panels[1].set(ylabel="share of the whole embedding's", title="Share kept")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    if title:
        figure.suptitle(title)
    with replaced(output) as beside:
        figure.savefig(beside, format=form)
    pyplot.close(figure)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Moves places up where they are less than `gap` apart."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in zip(order, order[1:], strict=False):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
