"""scripts.rerank: shortlists, comparisons of rerankers over them, and their table."""

import dataclasses
import functools
import json

import pytest

import embed_jax
from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.data.sources import open_retrieval_task
from embed_jax.data.sources.trec import read_trec_run
from embed_jax.evals.metrics import calibration_error
from embed_jax.evals.rerankers import sample_queries
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.evals.two_stages import make_shortlist
from embed_jax.pair_scores import BoundCrossEncoder
from embed_jax.retrieval.topk import dense_search
from scripts import annotate, rerank


def test_from_shortlists_to_a_table(run, beir, tiny_model, tiny_cross_encoder, tmp_path):
    """The figures are those of the model itself, though only score files are read."""
    model = tiny_cross_encoder()
    files = {"BM25": tmp_path / "bm25.trec", "tiny": tmp_path / "tiny.trec"}
    for (name, file), stage in zip(files.items(), ("bm25", tiny_model), strict=True):
        line = ["shortlist", "--data", beir, "--first-stage", stage, "--depth", 8, "--sample", 3]
        status, out, _ = run(rerank, *line, "--output", file)
        assert status == 0 and "3 queries" in out, name
    runs = [option for file in files.values() for option in ("--run", file)]
    line = ["--beir", beir, "--split", "test", *runs, "--model", model, "--activation", "identity"]
    scores = tmp_path / "scores.jsonl"
    assert run(annotate, *line, "--scores-only", "--output", scores)[0] == 0

    output = tmp_path / "beir.json"
    named = [option for name, file in files.items() for option in ("--run", f"{name}={file}")]
    line = ["compare", "--data", beir, *named, "--scores", f"CE={scores}", "--model", f"CE={model}"]
    status, out, err = run(rerank, *line, "--timed-queries", 1, "--output", output)
    assert (status, err) == (0, "")
    content = json.loads(output.read_text())

    task = sample_queries(open_retrieval_task(str(beir)), 3)
    encode = embed_jax.load(str(tiny_model)).encode
    scored = make_retrieval_task(task)
    shortlist = make_shortlist(scored, functools.partial(dense_search, encode, encode), "tiny")
    first = {query: dict([*results.items()][:8]) for query, results in shortlist.run.items()}
    run_of_file = read_trec_run(files["tiny"])
    assert {query: list(documents) for query, documents in run_of_file.items()} == {
        query: list(documents) for query, documents in first.items()
    }
    cross_encoder = load_cross_encoder(str(model))
    before = scored.score(first)
    shortlist = dataclasses.replace(shortlist, run=first)
    after = shortlist.rerank(BoundCrossEncoder(cross_encoder))
    figures = content["first_stages"]["tiny"]
    assert figures["none"]["ndcg@10"][0] == pytest.approx(before.score)
    assert figures["CE"]["mrr@10"][0] == pytest.approx(after.metrics["mrr@10"])
    assert figures["CE"]["gain"]["ndcg@10"] == pytest.approx(after.score - before.score)
    texts, labels = [], []
    for query, documents in first.items():
        texts += [(task[1][query], task[0][document]) for document in documents]
        labels += [int(task[2][query].get(document, 0) > 0) for document in documents]
    error = calibration_error(cross_encoder.score(*map(list, zip(*texts, strict=True))), labels)
    assert figures["CE"]["calibration_error"] == pytest.approx(error, abs=1e-5)
    assert content["ms_per_query"]["CE"] > 0 and content["queries"] == 3
    assert "rerank compare" in content["about"]["command"]

    table = tmp_path / "table.md"
    assert run(rerank, "table", output, "--output", table)[0] == 0
    lines = table.read_text().splitlines()
    assert len(lines) == 2 + 4 and lines[3].startswith("| beir | BM25 | CE | ")
    assert f"{after.metrics['mrr@10']:.3f}" in lines[5]


def test_bad_input_is_refused(refused, beir, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    output = ["--output", tmp_path / "new"]
    assert "expected a file of `rerank compare`" in refused(rerank, "table", other, *output)
    line = ["compare", "--data", beir, "--scores", "a=b", *output]
    assert "--run: expected NAME=VALUE, found 'x'" in refused(rerank, *line, "--run", "x")
    line = ["shortlist", "--data", beir, "--first-stage", "bm25", "--depth", "0", *output]
    assert "--depth: expected 1 or more, found 0" in refused(rerank, *line)
