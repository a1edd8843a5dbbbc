"""The bench runs with made text and random weights, and with few packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
