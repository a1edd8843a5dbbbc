"""Pictures of a run: legends beside the data, lines with data only, a smoothed loss."""

import json

import numpy as np
import pytest

from embed_jax.pictures import line_style
from embed_jax.train.plots import plot_curves, smooth


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """`draw(lines, title)`: the figure of a metrics.jsonl with these lines."""
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)

    def draw(lines, title=""):
        file = tmp_path / "metrics.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        plot_curves(file, tmp_path / "curves.png", title=title)
        return figures.pop() if figures else None

    yield draw
    monkeypatch.undo()
    pyplot.close("all")


def run_lines(*names):
    return [{"step": step, "loss": 1 / step} | dict.fromkeys(names, 0.5) for step in range(1, 41)]


def test_legends_stand_below_the_data_and_name_only_what_was_measured(draw, tmp_path):
    figure = draw(run_lines("sts/spearman", "sts/pearson", "validation/loss"), "sts: tiny, cosent")
    losses, scores = figure.axes  # no panel of similarities, which such a run lacks
    assert [text.get_text() for text in losses.get_legend().get_texts()] == [
        "training loss, smoothed",
        "validation/loss",
    ]
    for axes in (losses, scores):
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0
        labelled = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert all(len(line.get_xdata()) for line in labelled)
    assert figure.get_suptitle() == "sts: tiny, cosent"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_smoothed_loss_is_drawn_over_that_of_the_batches(draw):
    [losses] = draw(run_lines()).axes
    batches, smoothed = (line.get_ydata() for line in losses.lines)
    np.testing.assert_allclose(smoothed, smooth(batches))
    assert np.abs(np.diff(smoothed)).sum() < np.abs(np.diff(batches)).sum()


def test_equal_curves_differ_in_all_that_shows_beneath_another():
    styles = [line_style(index, [1, 2]) for index in range(4)]
    for field in ("color", "linestyle", "linewidth", "marker", "markersize"):
        assert len({style[field] for style in styles}) == 4


def test_a_run_without_numbers_has_no_picture(draw, tmp_path):
    assert draw([]) is None
    assert not (tmp_path / "curves.png").exists()
