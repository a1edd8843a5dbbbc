"""evaluate run --pipeline: files of pipelines, models and scores by role, table and plot."""

import json
from pathlib import Path

import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.pipeline_spec import parse_pipeline, read_pipeline
from scripts import annotate
from scripts.evaluate import __main__ as evaluate

CONFIGS = Path(__file__).parents[2] / "configs" / "pipelines"


def test_the_files_have_each_search_with_and_without_a_reranker():
    specs = [read_pipeline(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    assert len(specs) == len({spec.name for spec in specs}) == 16
    kinds = {tuple(each.kind for each in spec.retrievers.values()) for spec in specs}
    for kind in kinds:
        several = [
            spec.rerank is not None
            for spec in specs
            if tuple(each.kind for each in spec.retrievers.values()) == kind
        ]
        assert sorted(several) == [False, True]
    assert {"bm25", "exact", "int8", "binary", "hnsw", "sparse", "multi-vector"} <= {
        name for kind in kinds for name in kind
    }


@pytest.mark.parametrize(
    "message, content",
    [
        ("pipeline: expected keys and values, found 3", 3),
        ("retrievers: expected one or more", {}),
        ("pipeline: unknown key 'retriever' .did you mean", {"retriever": {}}),
        ("retrievers.a: unknown kind 'hsnw'", {"retrievers": {"a": {"kind": "hsnw"}}}),
        ("retrievers.a: expected the key 'kind'", {"retrievers": {"a": {}}}),
        ("retrievers.a: unknown role of a model", {"retrievers": {"a": {"kind": "hnsw"}}}),
        ("retrievers: expected names of letters", {"retrievers": {"../a": {"kind": "bm25"}}}),
        ("fusion: unknown method 'sum'",
         {"retrievers": {"a": {"kind": "bm25"}}, "fusion": {"method": "sum"}}),
        ("rerank: unknown role", {"retrievers": {"a": {"kind": "bm25"}}, "rerank": {"model": "x"}}),
    ],
)  # fmt: skip
def test_a_wrong_pipeline_is_one_line(message, content):
    with pytest.raises(InputError, match=message) as caught:
        parse_pipeline(content)
    assert "\n" not in str(caught.value)


def test_pipelines_are_scored_with_scores_that_were_computed_once(
    run, refused, beir, tiny_model, tiny_cross_encoder, tmp_path
):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "pipelines"
    folder.mkdir()
    for name in ("bm25", "hybrid", "bm25_reranked"):
        (folder / f"{name}.yaml").write_text((CONFIGS / f"{name}.yaml").read_text())
    scores = tmp_path / "scores.jsonl"
    every = tmp_path / "all.trec"
    lines = [f"q{q} Q0 d{d} 1 {40 - d} x" for q in range(5) for d in range(40)]
    every.write_text("\n".join(lines))
    status, _, err = run(annotate, "--beir", beir, "--split", "test", "--run", every, "--model",
                         tiny_cross_encoder(), "--scores-only", "--output", scores)  # fmt: skip
    assert status == 0, err
    arguments = ("run", "--task", "retrieval", "--data", beir, "--pipeline", folder, "--scores",
                 f"reranker={scores}", "--costs", "rerank=15", "--models", f"dense={tiny_model}",
                 "--timed-queries", 2, "--indexes", tmp_path / "indexes")  # fmt: skip
    files = {name: tmp_path / f"out.{name}" for name in ("json", "md", "png")}
    status, out, err = run(evaluate, *arguments, "--output", files["json"], "--table",
                           files["md"], "--plot", files["png"])  # fmt: skip
    assert status == 0, err
    (results,) = json.loads(files["json"].read_text()).values()
    assert set(results) == {"BM25", "BM25 + reranker", "hybrid"}
    assert results["BM25 + reranker"]["milliseconds"][0] > 15 * 100
    assert results["hybrid"]["shares"].keys() >= {"recall bm25", "recall dense", "recall fused"}
    assert "BM25 + reranker" in files["md"].read_text() and files["png"].stat().st_size > 1000
    assert "5 queries, 40 documents" in out
    again, _, err = run(evaluate, *arguments)  # indexes are kept
    assert again == 0, err
    assert "no pipeline has the role 'x'" in refused(evaluate, *arguments, "--models", "x=y")
    assert "expected --model, or --pipeline" in refused(
        evaluate, "run", "--task", "retrieval", "--data", beir
    )
