"""SIGKILL at random moments of builds, additions, updates and deletions of indexes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from embed_jax.retrieval.indexes import KINDS, open_index

pytest.importorskip("faiss")
pytest.importorskip("bm25s")
if importlib.util.find_spec("lancedb") is None:
    KINDS = tuple(kind for kind in KINDS if kind != "lance")
FEW = dict.fromkeys(KINDS, 1) | {"multi-vector": 3, "hnsw": 2, "bm25": 2}
MANY = dict.fromkeys(KINDS, 15) | {"multi-vector": 40}


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
        assert len(list((tmp_path / kind).glob("snapshot-*"))) == (kind != "lance")
        query = np.ones((1, 16), np.float32)
        queries = {"multi-vector": [query], "bm25": ["w1 w2"], "sparse": csr_array(query)}
        (run,) = index.search(queries.get(kind, query), 5)
        assert len(run) == 5
