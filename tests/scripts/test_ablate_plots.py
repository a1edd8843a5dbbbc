"""Curves of a table: means over seeds, best step of each line, rows in panels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.train.ablation import AblationRun, Table
from embed_jax.train.plots import series_by_name, smooth
from scripts.ablate.curves import (
    alignment_ways,
    curves,
    over_seeds,
    plot_against_step,
    plot_alignment,
)
from scripts.ablate.plots import plot_against_metric, plot_against_size, points_by_row

SIZES, RATES = (300, 100), (5e-5, 1e-5)
GRID = {
    f"{size} at {rate}": {"data.limit": size, "optim.learning_rate": rate}
    for size in SIZES
    for rate in RATES
}


def make_table(rows, **fields) -> Table:
    return Table(Path("table.py"), "retrieval", "a.py", rows, **fields)


@pytest.fixture
def make_run(tmp_path):
    """`make_run(row, seed, metrics by step, settings) -> AblationRun` with its metrics.jsonl."""

    def make_run(row, seed, lines, settings=None):
        workdir = tmp_path / row / str(seed)
        workdir.mkdir(parents=True)
        text = "".join(json.dumps({"step": step, **line}) + "\n" for step, line in lines.items())
        (workdir / "metrics.jsonl").write_text(text)
        return AblationRun(row, seed, workdir, [], {"eval.metric": "mrr", **(settings or {})}, [])

    return make_run


def test_the_best_step_is_that_of_the_mean_over_seeds(make_run):
    values = (
        {0: 0.1, 2: 0.9, 4: 0.6, 6: 0.2},
        {0: 0.1, 2: 0.1, 4: 0.6, 6: 0.7},
    )  # by themselves, their bests are at 2 and 6
    runs = [
        make_run("a", seed, {step: {"mrr": v} for step, v in own.items()})
        for seed, own in enumerate(values)
    ]
    [[curve]] = curves(make_table({"a": {}}, metrics=["mrr"], scale=100), runs).values()
    assert curve.steps == [0, 2, 4, 6] and curve.steps[curve.best] == 4
    assert curve.means == pytest.approx([0.1, 0.5, 0.6, 0.45]), "as measured, without SCALE"
    assert curve.sds == pytest.approx([0, 0.8 / math.sqrt(2), 0, 0.5 / math.sqrt(2)])

    [[curve]] = curves(make_table({"a": {}}, metrics=["mrr"]), runs[:1]).values()
    assert curve.steps[curve.best] == 2 and all(map(math.isnan, curve.sds))


def test_a_loss_is_best_where_it_is_lowest_and_of_equal_steps_the_first(make_run):
    lines = {
        step: {"validation/loss": loss, "mrr": 0.5}
        for step, loss in ((0, 2.0), (5, 1.0), (10, 1.5))
    }
    result = curves(
        make_table({"a": {}}, metrics=["validation/loss", "best", "mrr"]), [make_run("a", 0, lines)]
    )
    assert {
        metric: [curve.steps[curve.best] for curve in panel]
        for (metric, _), panel in result.items()
    } == {
        "validation/loss": [5],
        "mrr": [0],  # config.eval.metric, which is "best", is drawn once
    }


def test_a_panel_for_each_x_and_a_line_for_each_of_lines(make_run):
    # The row of size s and rate r is best at step s / 100 + (r > 2e-5).
    lines = {
        row: {
            step: {
                "mrr": -abs(
                    step - fields["data.limit"] / 100 - (fields["optim.learning_rate"] > 2e-5)
                )
            }
            for step in range(6)
        }
        for row, fields in GRID.items()
    }
    runs = [
        make_run(row, seed, lines[row], fields) for row, fields in GRID.items() for seed in (0, 1)
    ]
    axes = {"metrics": ["best"], "x": "data.limit", "lines": "optim.learning_rate"}
    result = curves(make_table(GRID, **axes), runs)
    assert {
        title: {curve.label: curve.steps[curve.best] for curve in panel}
        for (_, title), panel in result.items()
    } == {
        "data.limit = 100": {"1e-05": 1, "5e-05": 2},
        "data.limit = 300": {"1e-05": 3, "5e-05": 4},
    }
    assert [title for _, title in result] == ["data.limit = 100", "data.limit = 300"], (
        "in order, not as in ROWS"
    )

    expected = {("mrr", ""): list(GRID)}
    for table in (
        make_table(GRID, metrics=["best"]),
        make_table(GRID, metrics=["best"], x="data.limit"),
    ):
        assert {
            key: [c.label for c in panel] for key, panel in curves(table, runs).items()
        } == expected
    for run in runs:  # the command line gave all rows one size: X and LINES do not tell them apart
        run.settings["data.limit"] = 100
    assert {
        key: [c.label for c in panel]
        for key, panel in curves(make_table(GRID, **axes), runs).items()
    } == expected


def test_runs_that_failed_are_left_out(make_run):
    runs = [make_run("a", seed, {0: {"mrr": seed}}) for seed in (0, 1)] + [
        make_run("b", 0, {0: {"mrr": 1}})
    ]
    runs[1].error = runs[2].error = "error: loss not finite"
    [[curve]] = curves(make_table({"a": {}, "b": {}}), runs).values()
    assert (curve.label, curve.means) == ("a", [0])


def test_nothing_measured_is_said(make_run):
    with pytest.raises(
        InputError, match="table.py: --curves: nothing of METRICS is measured while training"
    ):
        curves(
            make_table({"a": {}}, metrics=["loss", "evaluated/mrr"]),
            [make_run("a", 0, {1: {"loss": 1.0}})],
        )


def test_steps_that_all_seeds_have():
    steps, means, _ = over_seeds([{0: 1.0, 5: 2.0, 10: 9.0}, {0: 3.0, 5: 4.0}])
    assert (steps, means) == ([0, 5], [2.0, 3.0]), (
        "one stopped early: no jump to the other's values"
    )


def test_values_that_are_no_numbers_are_no_points(make_run):
    run = make_run("a", 0, {0: {"mrr": None}, 1: {"mrr": 0.5, "loss": 1.0}})
    assert series_by_name(run.workdir / "metrics.jsonl")["mrr"] == {1: 0.5}


def test_smoothing_is_a_centred_mean():
    values = np.random.default_rng(0).normal(size=60)
    smoothed = smooth(values)
    assert len(smoothed) == 60
    for place in (0, 1, 30, 57, 59):
        assert smoothed[place] == pytest.approx(values[max(place - 3, 0) : place + 4].mean())
    assert smooth([3.0, 1.0]) == pytest.approx([3.0, 1.0]) and len(smooth([])) == 0


def test_what_is_drawn(make_run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    lines = {step: {"mrr": 0.5 - 0.01 * (step - 2) ** 2, "loss": 4.0 - step} for step in range(4)}
    runs = [make_run(row, 0, lines, fields) for row, fields in GRID.items()]
    table = make_table(
        GRID, metrics=["mrr"], scale=100, x="data.limit", lines="optim.learning_rate"
    )
    plot_against_step(table, runs, tmp_path / "a.png", "png")
    left = [axes for axes in figures[0].axes if axes.get_ylabel() == "mrr"]
    right = [axes for axes in figures[0].axes if axes.get_ylabel() == "training loss"]
    assert [axes.get_title() for axes in left] == ["data.limit = 100", "data.limit = 300"] and len(
        right
    ) == 2
    for axes in left:
        stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
        assert [(star.get_xdata()[0], star.get_ydata()[0]) for star in stars] == [
            (2, pytest.approx(50))
        ] * 2
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert texts == ["1e-05: best 50.00 at step 2", "5e-05: best 50.00 at step 2"]
    for same in (left, right):
        assert len({axes.get_ylim() for axes in same}) == 1, "panels have one scale"
    assert all(
        list(line.get_ydata()) == [4, 3, 2, 1] for axes in right for line in axes.get_lines()
    )


@pytest.fixture
def measured():
    """Runs of three rows with FLOPS, of which the last failed, and two seeds of the first."""

    def run(row, seed, flops, ndcg, **fields):
        metrics = {"sparse/flops": flops, "sparse/ndcg@10": ndcg, "bm25/ndcg@10": 0.66}
        return AblationRun(row, seed, Path(row), [], {}, [], metrics, **fields)

    return [
        run("light", 0, 30.0, 0.62),
        run("light", 1, 34.0, 0.64),
        run("heavy", 0, 1.0, 0.5),
        run("broken", 0, 9.0, 0.1, error="loss not finite"),
    ]


def flops_table(**fields):
    metrics = ["sparse/ndcg@10", "bm25/ndcg@10", "sparse/flops"]
    return make_table({}, metrics=metrics, x="sparse/flops", scale=100, **fields)


def test_points_against_a_metric_are_means_in_the_order_of_it(measured):
    points = points_by_row(flops_table(), measured)
    assert list(points) == ["heavy", "light"]
    assert points["light"]["sparse/flops"] == pytest.approx((32, math.sqrt(8))), "without SCALE"
    assert points["light"]["sparse/ndcg@10"] == pytest.approx((63, math.sqrt(2)))
    assert points["heavy"]["sparse/ndcg@10"] == (50, 0)
    without = [run for run in measured if run.row != "heavy"]
    without[0].metrics.pop("sparse/flops")
    without[1].metrics.pop("sparse/flops")
    assert points_by_row(flops_table(), without) == {}


def test_what_is_drawn_against_a_metric(measured, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    plot_against_metric(flops_table(), measured, tmp_path / "a.png", "png")
    (axes,) = figures[0].axes  # neither X nor BM25 is a panel
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sparse/flops", "sparse/ndcg@10")
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.texts] == [
        "heavy",
        "light",
    ]
    drawn, *_, level = axes.get_lines()
    assert list(drawn.get_xdata()) == [1, 32] and list(drawn.get_ydata()) == [50, 63]
    assert list(level.get_ydata()) == [66, 66] and level.get_label() == "BM25"
    with pytest.raises(InputError, match="X: unknown metric 'sparse/flop'"):
        table = make_table({}, metrics=["sparse/ndcg@10"], x="sparse/flop")
        plot_against_metric(table, measured, tmp_path / "a.png", "png")


def test_the_way_of_alignment_and_uniformity(make_run, tmp_path):
    pytest.importorskip("matplotlib")
    ways = {
        "dropout": [{0: (-1.0, 0.4), 5: (-2.0, 0.2)}, {0: (-1.0, 0.2), 5: (-3.0, 0.2)}],
        "unmeasured": [{}],
    }
    names = ("geometry/uniformity", "geometry/alignment")
    runs = [
        make_run(
            row, seed, {step: dict(zip(names, pair, strict=True)) for step, pair in way.items()}
        )
        for row, seeds in ways.items()
        for seed, way in enumerate(seeds)
    ]
    assert alignment_ways(runs) == {"dropout": ([-1.0, -2.5], [pytest.approx(0.3), 0.2])}
    table = make_table(dict.fromkeys(ways, {}))
    plot_alignment(table, runs, tmp_path / "a.png", "png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="--alignment: no run has measured it"):
        plot_alignment(table, runs[2:], tmp_path / "b.png", "png")


def test_scores_by_size_are_means_over_seeds(make_run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from scripts.ablate import plots

    runs = [make_run("a", seed, {}) for seed in (0, 1)]
    for run, score in zip(runs, (0.5, 0.7), strict=True):
        run.metrics = {"by_size/6/32": score, "kept/6/32": 1.0, "by_size/6/8": 0.4}
    drawn = []
    monkeypatch.setattr(plots, "plot_by_size", lambda *args, **_: drawn.append(args))
    table = make_table({"a": {}}, scale=100, x="by_size/")
    plot_against_size(table, runs, tmp_path / "a.png", "png")
    scores, sizes, *_ = drawn[0]
    assert scores == {"a": {6: {32: pytest.approx(60), 8: pytest.approx(40)}}} and sizes == [8, 32]
    with pytest.raises(InputError, match="X: no run was measured by size"):
        plot_against_size(table, [make_run("b", 0, {})], tmp_path / "a.png", "png")
