"""evaluate --sweep: its settings, its measurements, the Pareto front, the picture."""

import argparse
import json

import numpy as np
import pytest

import embed_jax
from embed_jax.data.sources.beir import read_beir
from embed_jax.errors import InputError
from embed_jax.evals import sweep as evaluate_sweep
from embed_jax.evals.search import evaluate_retrieval
from embed_jax.evals.sweep import (
    Measured,
    SweepSetting,
    by_bytes,
    by_time,
    cheapest,
    front,
    measure,
    settings,
)
from embed_jax.scores import unit_length
from scripts.evaluate import __main__ as evaluate


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(evaluate_sweep, "REPEATS", 1)
    monkeypatch.setattr(evaluate_sweep, "SECONDS", 0)


@pytest.fixture
def task(tmp_path, sentences):
    """A directory in BEIR's layout: 120 documents, 10 queries."""
    directory = tmp_path / "task"
    (directory / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(sentences[:120])]
    queries = [{"_id": f"q{n}", "text": " ".join(sentences[n].split()[:3])} for n in range(10)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    judged = "".join(f"q{n}\td{n}\t2\nq{n}\td{n + 30}\t1\n" for n in range(10))
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return directory


def row(share, size=100, speed=1000.0, beside=0, setting=None):
    return Measured(
        setting or SweepSetting(32, "int8"), share / 2, (0.0, 1.0), share, size, beside, 0, speed
    )


def test_the_command(run, tiny_model, task, tmp_path):
    pytest.importorskip("faiss")
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "sweep.json", tmp_path / "sweep.png"
    arguments = (
        "--model",
        tiny_model,
        "--task",
        "retrieval",
        "--data",
        task,
        "--sweep",
        "--dims",
        "32,16",
    )
    options = (
        "--precisions",
        "float32,int8,binary",
        "--rescore",
        "0,4,3:int8",
        "--keep",
        0.5,
        "--plot",
        plot,
    )
    status, out, err = run(evaluate, *arguments, *options, "--output", output)
    assert (status, err) == (0, "")
    result = json.loads(output.read_text())
    encode = embed_jax.load(str(tiny_model)).encode
    expected = evaluate_retrieval(encode, encode, *read_beir(task)).metrics["ndcg@10"]
    assert result["metrics"]["ndcg@10"] == pytest.approx(expected)
    # For each dimension: float32; int8 searched in three ways, as rescoring its results by int8
    # changes nothing; binary in five.
    assert len(result["sweep"]) == 2 * (1 + 3 + 5)
    best = [setting for setting in result["sweep"] if setting["share"] >= 0.5]
    assert result["recommended"]["bytes"] == min(setting["bytes"] for setting in best)
    lines = out.splitlines()
    assert lines[0].endswith("10 queries, 120 documents") and len(lines) == 1 + 1 + 18 + 2
    assert "Pareto front" in lines[1] and " 4 + 32 " in out
    assert (
        lines[-1].startswith("cheapest that keeps 50 %")
        and f"{result['recommended']['bytes']} bytes" in lines[-1]
    )
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bad_options_are_refused(refused, tiny_model, task, tmp_path):
    pytest.importorskip("faiss")
    good = ("--model", tiny_model, "--task", "retrieval", "--data", task)
    (tmp_path / "out.png").mkdir()
    bad = {
        "--dims: expected numbers from 1 up": ("--dims", "0"),
        "--bits: expected some of 1,2,4,8, found '3'": ("--bits", "3"),
        "--pool: expected numbers from 1 up": ("--pool", "0.5"),
        "dims: expected 1 to 32": ("--dims", "16,64"),
        "unknown 'int3'": ("--precisions", "int3"),
        "binary: expected a dimension divisible by 8, found 20": (
            "--dims",
            "20",
            "--precisions",
            "binary",
        ),
        "pq5: expected a dimension divisible by 5": ("--precisions", "pq5"),
        "found '4:int3'": ("--rescore", "0,4:int3"),
        "found '-1'": ("--rescore=-1",),
        "found 'exact'": ("--search", "exact"),
        "--keep: expected a share": ("--keep", "1.5"),
        "--threads": ("--threads", "0"),
        "ends in .png": ("--plot", tmp_path / "sweep.gif"),
        "cannot be written": ("--plot", tmp_path / "out.png"),
        "unrecognized arguments: --k 5": ("--k", "5"),
        "calibration of pq8: expected at least 1,024 vectors, found 120": ("--precisions", "pq8"),
    }
    for message, options in bad.items():
        assert message in refused(evaluate, *good, "--sweep", *options)
    assert "unrecognized arguments: --keep 0.9" in refused(evaluate, *good, "--keep", "0.9")
    assert "--sweep is for --task retrieval" in refused(
        evaluate, "--model", "x", "--task", "sts", "--data", "y", "--sweep"
    )


def test_each_setting_is_a_search_of_its_own():
    rescoring = [(0, None), (4, None), (2, "int8")]
    result = settings(16, [8, 16], ["float32", "int8", "pq4"], [False, True], rescoring)
    assert (
        result[0] == SweepSetting(16, "float32")
        and len(result) == len(set(result)) == 1 + 8 + 8 + 1
    )
    of_int8 = [setting for setting in result if setting.dim == 8 and setting.precision == "int8"]
    assert [(setting.search, setting.rescoring) for setting in of_int8] == [
        ("symmetric", "none"),
        ("symmetric", "x4"),
        ("asymmetric", "none"),
    ]
    assert (
        SweepSetting(16, "pq4", True, 2, "int8") in result
        and SweepSetting(16, "pq4", True, 4) not in result
    )


def test_bytes_and_quality(sentences):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    documents = unit_length(rng.normal(size=(300, 32)))
    queries = unit_length(documents[:50] + 0.1 * rng.normal(size=(50, 32)))
    names = [f"d{n}" for n in range(300)]
    qrels = {
        f"d{n}": {names[row]: 1 for row in np.argsort(-documents @ queries[n])[:10]}
        for n in range(50)
    }
    chosen = [
        SweepSetting(32, "float32"),
        SweepSetting(32, "int8", False),
        SweepSetting(32, "binary", False),
        SweepSetting(32, "binary", False, 4),
        SweepSetting(32, "binary", False, 4, "float32"),
        SweepSetting(16, "int4"),
    ]
    result = measure(documents, queries, names, qrels, chosen)
    assert [measured.setting for measured in result] == chosen
    assert result[0].share == 1 and result[0].quality == pytest.approx(1)
    assert [
        (measured.bytes_read, measured.bytes_beside, measured.bytes) for measured in result
    ] == [
        (128, 0, 128),
        (32, 0, 32),
        (4, 0, 4),
        (4, 0, 4),
        (4, 128, 132),
        (8, 0, 8),
    ]
    assert result[1].share > 0.95 and result[2].share < result[3].share < result[4].share < 1
    assert all(
        measured.queries_per_second > 0
        and measured.interval[0] <= measured.quality <= measured.interval[1]
        for measured in result
    )
    without = measure(documents, queries, names, qrels, chosen[:1], ignore_identical_ids=True)[0]
    assert without.quality < 0.95, "each query's best document has its name"
    with pytest.raises(InputError, match="is 0"):
        measure(documents, queries, names, {f"q{n}": {"elsewhere": 1} for n in range(50)}, chosen)


@pytest.mark.parametrize("cost", [by_bytes, by_time])
def test_the_front_is_what_nothing_else_dominates(cost):
    rng = np.random.default_rng(0)
    values = rng.integers(1, 8, size=(200, 3))  # with many equal ones
    rows = [row(share / 8, int(size), float(speed)) for share, size, speed in values]

    def dominated(candidate):
        other = [(cost(two), -two.quality) for two in rows]
        mine = (cost(candidate), -candidate.quality)
        return any(two != mine and two[0] <= mine[0] and two[1] <= mine[1] for two in other)

    result = front(rows, cost)
    assert {(cost(point), point.quality) for point in result} == {
        (cost(point), point.quality) for point in rows if not dominated(point)
    }
    assert [cost(point) for point in result] == sorted({cost(point) for point in result})


def test_the_cheapest_has_fewest_bytes_and_then_is_fastest():
    rows = [
        row(1.0, 400),
        row(0.96, 48, 10.0),
        row(0.95, 48, 30.0),
        row(0.99, 48, 20.0, beside=40),
        row(0.9, 8, 99.0),
    ]
    assert cheapest(rows, 0.95) is rows[2]
    assert cheapest(rows, 0.951) is rows[1]
    assert cheapest(rows, 0.97) is rows[3]
    assert cheapest(rows, 1) is rows[0]


def test_the_picture_names_the_front_and_its_labels_are_apart(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot
    from matplotlib.text import Text

    from scripts.evaluate.sweep_plot import name, plot_sweep

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    rng = np.random.default_rng(0)
    rows = [row(1.0, 1536, 5000.0, setting=SweepSetting(384, "float32"))]
    for dim in (384, 256, 128):
        for precision, size in (
            ("int8", dim),
            ("int4", dim // 2),
            ("binary", dim // 8),
            ("pq16", 16),
        ):
            share = 0.5 + 0.5 * (size / 384) ** 0.2 * rng.uniform(0.95, 1.02)
            rows.append(
                row(
                    share,
                    size,
                    float(rng.uniform(2000, 20_000)),
                    setting=SweepSetting(dim, precision),
                )
            )
    outermost = SweepSetting(128, "binary", False, 4, "float32")
    rows.append(row(0.55, 12, 30_000.0, setting=outermost))
    plot_sweep(rows, 0.95, "some/scifact", tmp_path / "sweep.png", "png")
    monkeypatch.undo()
    [figure] = drawn
    assert "scifact" in figure.get_suptitle() and "some" not in figure.get_suptitle()
    for axes, cost in zip(figure.axes, (by_bytes, by_time), strict=True):
        assert axes.get_xscale() == "log" and "per" in axes.get_xlabel()
        labels = [text for text in axes.texts if text.get_text() != "95 %"]
        assert sorted(text.get_text() for text in labels) == sorted(
            name(point) for point in front(rows, cost)
        )
        boxes = [Text.get_window_extent(text) for text in labels]
        apart = [not box.overlaps(other) for n, box in enumerate(boxes) for other in boxes[:n]]
        assert len(boxes) > 2 and all(apart)
        frame = axes.get_window_extent()
        assert all(
            box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes
        )
    pyplot.close(figure)


@pytest.mark.parametrize(("dims", "sizes"), [((), [384]), ((128, 64), [384, 128, 64])])
def test_the_sizes_that_the_model_was_trained_for_are_the_default(dims, sizes):
    model = argparse.Namespace(dim=384, matryoshka_dims=dims)
    assert evaluate_sweep.trained_sizes(model) == sizes
