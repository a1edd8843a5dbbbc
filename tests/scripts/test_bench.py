"""The bench runs with made text and random weights, and with few packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embed_jax.errors import InputError

ROOT = Path(__file__).parents[2]
# What need not be installed where speed is measured, such as on a borrowed accelerator.
HEAVY = ("bm25s", "datasets", "faiss", "grain", "ml_collections", "orbax", "tensorflow_datasets", "wandb")


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["encode", "--texts", "20", "--batch", "1,4"], ["encode/made", "encode/batch=1", "encode/batch=4"]),
        (["train", "--batch-size", "8", "--steps", "1"], ["train/made/batch=8"]),
    ],
)
def test_it_prints_json_lines_and_imports_nothing_heavy(arguments, names):
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"  # importing any of them fails
        "import scripts.bench\n"
        "scripts.bench.main()\n"
    )
    line = [sys.executable, "-c", code, *arguments, "--init", "random", "--shape", "tiny", "--repeat", "2", "--json"]
    found = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert found.returncode == 0, found.stderr
    results = [json.loads(line) for line in found.stdout.splitlines()]
    assert [result["name"] for result in results] == names
    for result in results:
        assert {"name", "unit", "ours", "theirs", "ratio", "n", "machine"} <= result.keys()
        assert result["ours"] > 0 and result["theirs"] is None and result["n"] >= 2


@pytest.mark.parametrize(
    "line, message",
    [
        (["encode", "--batch", "1,x"], "--batch: expected numbers from 1 up, separated by commas, found '1,x'"),
        (["encode", "--texts", "0"], "--texts: expected 1 or more, found 0"),
        (["train", "--batch-size", "-1"], "--batch-size: expected 1 or more, found -1"),
        (["train", "--texts", "9"], "unrecognized arguments: --texts 9"),
        (["encode", "--repeat", "x"], "argument --repeat: invalid int value: 'x'"),
        (["scaling"], "invalid choice: 'scaling'"),
        ([], "the following arguments are required: what"),
    ],
)
def test_a_wrong_option_is_one_line(monkeypatch, line, message):
    monkeypatch.syspath_prepend(str(ROOT))
    from scripts import bench

    with pytest.raises(InputError) as caught:
        bench.parse(line)
    assert message in str(caught.value) and "\n" not in str(caught.value)
