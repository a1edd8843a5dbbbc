"""Indexes in LanceDB tables: what they do differently from the others; see test_indexes.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

from embed_jax.errors import InputError, RunError
from embed_jax.retrieval import lance_index, lance_table
from embed_jax.retrieval.indexes import build_index, index_exists, open_index
from embed_jax.scores import unit_length

pytest.importorskip("lancedb")
DIM = 16
MODEL = {"model": "m"}


def vectors_of(count, seed=0):
    return np.asarray(unit_length(np.random.default_rng(seed).normal(size=(count, DIM))))


def named(vectors, prefix="d"):
    return [(f"{prefix}{number}", vector) for number, vector in enumerate(vectors)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An index of 600 documents that LanceDB has indexed, with an address instead of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance_table, "INDEXED_FROM", 300)
        path = f"file://{tmp_path_factory.mktemp('lance')}/index"
        options = {"partitions": 4, "bytes_per_code": 4}
        build_index(path, named(vectors_of(600)), identity=MODEL, kind="lance", **options)
        yield path


def test_its_own_index_finds_candidates_and_vectors_score_them(large):
    index = open_index(large, MODEL)
    assert index_exists(large) and index.factory == "IVF_PQ" and len(index) == 600
    queries, documents = vectors_of(20, 1), vectors_of(600)
    scores = queries @ documents.T
    exact = [{f"d{row}" for row in np.argsort(-each)[:10]} for each in scores]
    wide = index.search(queries, 10, candidates=400, probes=4)
    narrow = index.search(queries, 10, candidates=10, probes=1)
    recall = [
        np.mean([len(set(run) & best) / 10 for run, best in zip(runs, exact, strict=True)])
        for runs in (narrow, wide)
    ]
    assert recall[0] < recall[1] and recall[1] > 0.95
    for query, run in zip(scores, wide, strict=True):
        assert list(run.values()) == sorted(run.values(), reverse=True)
        assert all(abs(query[int(name[1:])] - value) < 1e-6 for name, value in run.items())
    size = index.size()
    assert size["index"] > 0 and size["bytes per document"] >= 4 * DIM and size["documents"] == 600


@pytest.mark.parametrize("listed", [10, 10_000])
def test_only_allowed_ids_are_found_however_many_they_are(large, monkeypatch, listed):
    monkeypatch.setattr(lance_index, "SELECTED", listed)
    index, queries = open_index(large), vectors_of(5, 2)
    scores = queries @ vectors_of(600).T
    rows = np.random.default_rng(3).permutation(600)
    for count in (3, 40, 300):
        allowed = {f"d{row}" for row in rows[:count]} | {"unknown"}
        runs = index.search(queries, 5, candidates=600, probes=4, allowed=allowed)  # exact
        for each, run in zip(scores, runs, strict=True):
            assert run.keys() <= allowed and len(run) == min(5, count)
            best = max(rows[:count], key=lambda row: each[row])
            assert f"d{best}" in run
    assert index.search(queries, 5, allowed=[]) == [{}] * 5


def test_new_vectors_are_found_before_and_after_the_index_is_extended(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_table, "INDEXED_FROM", 300)
    path, options = tmp_path / "index", {"partitions": 2, "bytes_per_code": 2}
    index = build_index(path, named(vectors_of(280)), identity=MODEL, kind="lance", **options)
    assert index.factory == ""
    for number, added in enumerate((30, 20, 60)):  # the first write that reaches 300, 6 %, 18 %
        new = named(vectors_of(added, 5 + number), f"n{number}.")
        index.add(new)
        stats = index._table.index_stats("vector_idx")
        assert index.factory == "IVF_PQ" and stats.num_unindexed_rows == (20 if number == 1 else 0)
        run = index.search(np.array([new[-1][1]]), 1, probes=2)[0]
        assert list(run) == [new[-1][0]]
    assert len(open_index(path)) == 390


def test_ids_are_any_text_and_never_code(tmp_path):
    names = ["d'1", "') OR 1=1 --", "é\\n", '"', "a\nb", "", "%", "NULL"]
    vectors = vectors_of(len(names))
    index = build_index(tmp_path, zip(names, vectors, strict=True), identity=MODEL, kind="lance")
    assert sorted(index.ids) == sorted(names) and all(name in index for name in names)
    assert "x" not in index and "d1" not in index
    for name in names:
        assert list(index.search(vectors[:1], 9, allowed=[name])[0]) == [name]
    index.delete(["') OR 1=1 --"])
    assert sorted(open_index(tmp_path).ids) == sorted(set(names) - {"') OR 1=1 --"})


def test_a_write_is_all_or_nothing_and_readers_keep_their_state(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_table, "BATCH", 8)
    monkeypatch.setattr(lance_index, "BATCH", 8)
    vectors = vectors_of(60)
    index = build_index(tmp_path, named(vectors[:40]), identity=MODEL, kind="lance")
    reader = open_index(tmp_path)
    version = reader.version()
    bad = [*named(vectors[40:], "n"), ("d3", vectors[0])]
    for write, documents, message in (
        (index.add, bad, "document 'd3' is in the index already; update it"),
        (index.add, [*bad[:-1], ("n", vectors[0] * np.nan)], "'n': a number that is not finite"),
        (index.add, [*bad[:-1], bad[0]], "document 'n0' comes twice"),
        (index.update, [*named(vectors[:20]), ("x", vectors[0])], "'x' is not in the index; add"),
        (index.delete, ["d1", "y"], "no document 'y' to delete"),
    ):
        with pytest.raises(InputError, match=message):
            write(documents)
        assert sorted(open_index(tmp_path).ids) == sorted(f"d{number}" for number in range(40))
    assert reader.version() == version, "what failed has written nothing"
    index.delete(["d0"])
    assert reader.version() != version, "who serves it can tell"
    index.update([("d1", vectors[50])])
    assert "d0" in reader and list(reader.search(vectors[:1], 1)[0]) == ["d0"]
    assert list(open_index(tmp_path).search(vectors[50:51], 1)[0]) == ["d1"]
    with lance_table.one_writer(tmp_path):
        with pytest.raises(InputError, match="another process is writing to it"):
            index.delete(["d2"])


@pytest.mark.unchecked
def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    vectors, path = vectors_of(3), tmp_path / "index"

    def build(**options):
        return build_index(path, named(vectors), identity=MODEL, kind="lance", **options)

    def refused(message, function, *arguments, error=InputError, **options):
        with pytest.raises(error, match=message) as caught:
            function(*arguments, **options)
        assert "\n" not in str(caught.value)

    refused("bytes_per_code: expected a divisor of 16, found 5", build, bytes_per_code=5)
    refused("no documents", build_index, path, [], identity={}, kind="lance")
    refused("no index, or its first build", open_index, path)
    assert not index_exists(path) and not path.exists()
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    refused("not an index of LanceDB, it has the file 'notes.txt'", build, replace=True)
    (path / "notes.txt").unlink()
    index = build()
    refused("holds an index already", build)
    refused("model was 'm', is 'n'", open_index, path, {"model": "n"})
    refused("stores no texts", index.texts, ["d0"])
    refused("no document 'x'", index.fields, "x")
    assert build(replace=True, store_texts=True).texts(["d1"]) == [""]
    (tmp_path / "other").mkdir()
    refused("no index, or its first build", open_index, f"file://{tmp_path}/other")
    refused("can't be read: .*scheme", index_exists, "s4://bucket/index")
    refused("expected an address as a string", open_index, Path("s3://bucket/index"))
    for kind, documents in (("exact", named(vectors)), ("bm25", [("a", "text")])):
        refused("expected a folder, found an address", build_index, "s3://bucket/index",
                documents, identity={}, kind=kind)  # fmt: skip
    table = path / "documents.lance"
    for file in (table / "data").iterdir():
        file.write_bytes(b"damaged")
    refused("LanceDB", open_index(path).search, vectors, 1, error=RunError)
    for file in (table / "_versions").iterdir():
        file.write_bytes(b"damaged")
    refused("damaged, or can't be read", open_index, path)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    refused(r"package 'lancedb' is not installed: pip install \"embed-jax\[lance\]\"", build,
            replace=True)  # fmt: skip
