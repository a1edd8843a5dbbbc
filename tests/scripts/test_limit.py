"""scripts.limit: its texts, its critical numbers, and one line for what is wrong."""

import json

import pytest

from embed_jax.data.sources.beir import read_beir
from embed_jax.data.sources.limit import limit_task
from scripts.limit import __main__ as limit


def test_data_are_written_in_beir_s_layout(run, tmp_path):
    line = ["data", "--documents", 50, "--queries", 30, "--seed", 3, "--output", tmp_path / "new"]
    status, out, err = run(limit, *line)
    assert (status, err) == (0, "") and "50 documents, 30 queries" in out
    assert read_beir(tmp_path / "new")[0] == limit_task(50, 30, 3)[0]


def test_critical_numbers_with_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "critical.json", tmp_path / "critical.png"
    line = ["critical", "--dims", "2,3", "--failures", 1, "--patience", 100, "--steps", 1000]
    status, out, err = run(limit, *line, "--output", output, "--plot", plot)
    assert status == 0 and "d 2, n 4, seed 0: " in err
    assert [line.split() for line in out.splitlines()[1:]] == [["2", "3"], ["3", "4"]]
    content = json.loads(output.read_text())
    assert [(row["dim"], row["documents"]) for row in content["critical"]] == [(2, 3), (3, 4)]
    assert content["training"]["patience"] == 100 and content["polynomial"] is None
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_dimensions_are_read_as_ranges():
    assert limit.read_dims("2-4, 8,3") == [2, 3, 4, 8]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["critical", "--dims", "1-3"], "--dims: expected dimensions from 2, such as 4-12"),
        (["critical", "--dims", "5-3"], "--dims: expected dimensions from 2, such as 4-12"),
        (["critical", "--dims", "4", "--seeds", "0"], "--seeds: expected 1 or more, found 0"),
        (["critical", "--dims", "4", "--plot", "a.txt"], "--plot: expected a name that ends in"),
        (["data", "--documents", "3", "--output", "new"], "expected 46 to 65,536 documents"),
    ],
)
def test_bad_options_are_refused(refused, line, message):
    assert message in refused(limit, *line)
