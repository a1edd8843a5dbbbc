"""SIGKILL at random moments of builds, additions, updates and deletions of indexes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embed_jax.retrieval.indexes import open_index

pytest.importorskip("faiss")
FEW = {"multi-vector": 4, "exact": 2, "hnsw": 3}
MANY = {"multi-vector": 40, "exact": 15, "hnsw": 15}


@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_kills_leave_the_old_state_or_the_new_one(tmp_path, kills):
    """The old index answers or the new one does, whole: no id is lost or doubled."""
    script = Path(__file__).with_name("kill_index.py")
    arguments = [f"{kind}={count}" for kind, count in kills.items()]
    done = subprocess.run(
        [sys.executable, script, tmp_path, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["kind"]: entry["kills"] for entry in counts} == kills
    interrupted = [sum(entry["in the midst of"].values()) for entry in counts]
    assert sum(interrupted) >= sum(kills.values()) // 2
    for kind in kills:
        index = open_index(tmp_path / kind)
        assert len(list((tmp_path / kind).glob("snapshot-*"))) == 1
        query = np.ones((1, 16), np.float32)
        (run,) = index.search([query] if kind == "multi-vector" else query, 5)
        assert len(run) == 5
