"""scripts.index and scripts.search: from a corpus to results, within a time."""

import json

import numpy as np
import pytest

from embed_jax.data.sources.trec import read_trec_run
from embed_jax.retrieval import open_index
from scripts import index
from scripts.search import __main__ as search


@pytest.fixture
def corpus(tmp_path):
    """Twelve documents with years, one with an id that is not ASCII."""
    topics = ["how to descale a kettle", "tides of the sea", "a guitar and a drum"]
    records = [
        {"_id": f"é{n}", "text": f"{topics[n % 3]} number {n}", "year": 2010 + n} for n in range(12)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_words_are_indexed_searched_filtered_and_updated(run, corpus, tmp_path):
    path = tmp_path / "words"
    arguments = ("--corpus", corpus, "--kind", "bm25", "--fields", "year", "--output", path)
    status, out, err = run(index, *arguments)
    assert status == 0 and "12 documents" in out, err
    status, out, _ = run(search, "--index", path, "descale the kettle", "tides", "--k", 2)
    assert status == 0 and out.splitlines()[0] == "descale the kettle"
    assert out.splitlines()[1].split()[1] in ("é0", "é3", "é6", "é9") and "descale" in out
    where = '{"year": {"min": 2018}}'
    run(search, "--index", path, "kettle", "--where", where, "--format", "json", "--output",
        tmp_path / "out.json")  # fmt: skip
    (answer,) = json.loads((tmp_path / "out.json").read_text())
    assert [each["id"] for each in answer["results"]] == ["é9"]
    assert answer["results"][0]["stages"].keys() == {"words"}
    lines = corpus.read_text().splitlines()
    changed = [*lines[1:], json.dumps({"_id": "new", "text": "kettle kettle", "year": 1})]
    corpus.write_text("\n".join(changed).replace("number 3", "kettle 3"))
    status, out, err = run(index, *arguments)
    assert "1 added, 1 updated, 1 deleted" in out, err
    corpus.write_text(corpus.read_text().replace('"year": 2015', '"year": 1815'))
    status, out, err = run(index, *arguments)
    assert "0 added, 1 updated, 0 deleted" in out, err
    assert open_index(path).fields("é5") == {"year": 1815}
    allowed = tmp_path / "allowed.txt"
    allowed.write_text("é3\né1\né0\n")
    queries = tmp_path / "queries.jsonl"
    queries.write_text(json.dumps({"_id": "q", "text": "kettle"}))
    status, out, err = run(search, "--index", path, "--queries", queries, "--allowed", allowed,
                           "--format", "trec", "--output", tmp_path / "run.trec")  # fmt: skip
    assert (status, err) == (0, "warning: --allowed: 1 in no index, the first: 'é0'\n")
    assert list(read_trec_run(tmp_path / "run.trec")["q"]) == ["é3"]


@pytest.fixture
def dense(run, corpus, tiny_model, tmp_path):
    path = tmp_path / "dense"
    status, _, err = run(index, "--corpus", corpus, "--model", tiny_model, "--output", path)
    assert status == 0, err
    return path


def test_dense_hybrid_and_reranked(run, dense, corpus, tmp_path, tiny_cross_encoder):
    words = tmp_path / "words"
    run(index, "--corpus", corpus, "--kind", "bm25", "--output", words)
    output = tmp_path / "out.json"
    status, _, err = run(search, "--index", dense, "--index", words, "--rerank",
                         tiny_cross_encoder(), "--shortlist", 4, "--k", 3, "--format", "json",
                         "--output", output, "a guitar")  # fmt: skip
    assert status == 0, err
    (answer,) = json.loads(output.read_text())
    stages = {"dense", "words", "fused", "reranked"}
    assert len(answer["results"]) == 3
    assert {stage for each in answer["results"] for stage in each["stages"]} <= stages
    status, out, err = run(search, "--index", dense, "--rerank", tiny_cross_encoder(), "a guitar",
                           "--budget-ms", 100_000, "--documents", 2_000_000)  # fmt: skip
    assert status == 0, err
    assert "p95 ms" in out and "chosen: exact" in out and "hours a query" in out
    assert "recall of exact" in out and "1.000 to 1.000" in out


def test_documents_in_chunks_are_found_as_documents(run, corpus, tiny_model, tmp_path):
    path = tmp_path / "chunks"
    run(index, "--corpus", corpus, "--model", tiny_model, "--chunk-tokens", 4, "--chunk-overlap", 1,
        "--fields", "year", "--output", path)  # fmt: skip
    assert len(open_index(path)) > 12
    status, out, err = run(search, "--index", path, "tides of the sea", "--k", 3, "--where",
                           '{"year": 2011}', "--format", "json")  # fmt: skip
    assert status == 0, err
    (answer,) = json.loads(out)
    assert [each["id"] for each in answer["results"]] == ["é1"]
    assert answer["results"][0]["text"] == "tides of the sea number 1"


def test_late_chunks_change_with_their_document(run, refused, corpus, tiny_model, tmp_path):
    path = tmp_path / "late"
    arguments = ("--corpus", corpus, "--model", tiny_model, "--chunk-tokens", 4, "--late-chunks",
                 "--output", path)  # fmt: skip
    status, _, err = run(index, *arguments)
    assert status == 0, err
    names = [name for name in open_index(path).ids if name.startswith("é1#")]
    assert len(names) > 1
    corpus.write_text(corpus.read_text().replace('tides of the sea number 1"', 'tides of the sea"'))
    status, out, err = run(index, *arguments)
    left = sum(name.startswith("é1#") for name in open_index(path).ids)
    assert 1 < left < len(names), err
    assert f"0 added, {left} updated, {len(names) - left} deleted" in out  # not only the last one
    new = tmp_path / "new"
    run(index, *arguments[:-1], new)
    query = np.arange(32, dtype=np.float32)[None]
    runs = [open_index(each).search(query, 100)[0] for each in (path, new)]
    assert runs[0] == pytest.approx(runs[1], abs=1e-6)
    assert "chunks" in refused(index, *arguments[:6], "--output", path)
    status, out, _ = run(search, "--index", path, "a guitar", "--k", 2)
    assert status == 0 and "guitar" in out


def test_ready_vectors_are_indexed(run, corpus, tiny_model, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    path = tmp_path / "ready"
    status, _, err = run(index, "--corpus", corpus, "--model", tiny_model, "--vectors",
                         tmp_path / "vectors.npy", "--output", path)  # fmt: skip
    assert status == 0, err
    assert list(open_index(path).search(vectors[3:4], 1)[0]) == ["é3"]


def test_the_textbook_budget(run, refused):
    costs = ("--costs", "encode=10,search=40,rerank=15", "--budget-ms", 200)
    status, out, err = run(search, *costs, "--documents", 2_000_000)
    assert status == 0, err
    assert "shortlist: 10, 200 of 200 ms" in out and "8.3 hours" in out
    assert "at most 10 fit" in refused(search, *costs, "--shortlist", 100)
    assert "not even one" in refused(search, "--costs", "search=40,rerank=15", "--budget-ms", 50)


def test_wrong_uses_are_one_line(refused, dense, corpus, tiny_model, tmp_path, tiny_cross_encoder):
    name = ("--index", dense)
    for message, arguments in (
        ("query 0: empty", (*name, " ")),
        ("query 0: contains a NUL", (*name, "a\0b")),
        ("unknown field 'year'", (*name, "a", "--where", '{"year": 1}')),
        ("--where: expected a JSON object", (*name, "a", "--where", "year")),
        ("model was", (*name, "a", "--model", tiny_cross_encoder())),
        ("no index, or its first build", ("--index", tmp_path / ".." / "no", "a")),
        ("--index: two have the name", (*name, *name, "a")),
        ("--model: no index for", (*name, "a", "--model", tiny_model, "--model", "b")),
        ("are not enough for any setting", (*name, "a", "--budget-ms", "1e-6")),
        ("expected queries", name),
        ("--index: expected one or more", ("a",)),
        ("reranker: expected a cross-encoder", (*name, "a", "--rerank", tiny_model)),
    ):
        assert message in refused(search, *arguments), arguments
    base = ("--corpus", corpus, "--output", dense)
    assert "--kind bm25: expected no --model" in refused(
        index, *base, "--kind", "bm25", "--model", "m"
    )
    assert "dim was 0, is 4" in refused(index, *base, "--model", tiny_model, "--dim", 4)
    prompt = ("--model", tiny_model, "--document-prompt", "x: ")
    assert "document_prompt was None, is 'x: '" in refused(index, *base, *prompt)
    assert "kind was 'exact', is 'int8'" in refused(
        index, *base, "--model", tiny_model, "--kind", "int8"
    )
    assert "has the field 'yyear'" in refused(
        index, *base, "--model", tiny_model, "--fields", "yyear"
    )
    assert "a dense model, an index of kind 'sparse'" in refused(
        index,
        "--corpus",
        corpus,
        "--output",
        tmp_path / "s",
        "--kind",
        "sparse",
        "--model",
        tiny_model,
    )
