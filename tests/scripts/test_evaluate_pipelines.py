"""evaluate run --pipeline: files of pipelines, models and scores by role, table and plot."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

import embed_jax
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Normalize
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.vocabulary import Splade
from embed_jax.errors import InputError
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.retrieval.pipeline_spec import parse_pipeline, read_pipeline
from embed_jax.sparse import SparseEncoder
from scripts import annotate
from scripts.evaluate import __main__ as evaluate

CONFIGS = Path(__file__).parents[2] / "configs" / "pipelines"


def test_the_files_have_each_search_with_and_without_a_reranker():
    specs = [read_pipeline(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    assert len(specs) == len({spec.name for spec in specs}) == 20
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


@pytest.fixture
def roles(tiny_model, tiny_cross_encoder, tmp_path):
    """`ROLE=MODEL,...` with a tiny model for each role of the files, except the dense one."""
    dense = embed_jax.load(str(tiny_model))
    late = dataclasses.replace(dense.spec, pooling="", heads=(Normalize(),))
    LateInteractionEncoder(late, dense.params, dense.tokenizer).save(tmp_path / "late")
    spec = EncoderSpec(random_spec("tiny", vocab_size=dense.tokenizer.vocab_size).backbone,
                       vocabulary=Splade())  # fmt: skip
    params = build_encoder(spec).init(jax.random.key(0))
    settings = EncodingSettings(similarity="dot")
    SparseEncoder(spec, params, dense.tokenizer, settings).save(tmp_path / "sparse")
    models = {
        "sparse": tmp_path / "sparse",
        "tokens": tmp_path / "late",
        "reranker": tiny_cross_encoder(),
    }
    return ",".join(f"{role}={path}" for role, path in models.items())


def test_kinds_of_models_take_their_roles(run, beir, roles, tmp_path):
    for extra in ("matplotlib", "bm25s"):
        pytest.importorskip(extra)
    names = ("bm25_reranked", "late_interaction", "sparse")
    pipelines = ",".join(str(CONFIGS / f"{name}.yaml") for name in names)
    files = {name: tmp_path / f"out.{name}" for name in ("json", "md", "png")}
    status, out, err = run(evaluate, "run", "--task", "retrieval", "--data", beir, "--pipeline",
                           pipelines, "--models", roles, "--sample", 2, "--timed-queries", 1,
                           "--output", files["json"], "--table", files["md"], "--plot",
                           files["png"])  # fmt: skip
    assert status == 0, err
    assert "2 queries, 40 documents" in out and files["png"].stat().st_size > 1000
    (results,) = json.loads(files["json"].read_text()).values()
    assert list(results) == ["BM25 + reranker", "late interaction", "sparse"]
    for name, each in results.items():
        assert name in files["md"].read_text() and each["bytes_per_document"] > 0
        assert 0 < each["milliseconds"][0] <= each["milliseconds"][1]
        assert (each["gain"] is None) == (not name.endswith("reranker"))
        assert all(low <= high for low, high in each["intervals"].values())


def test_scores_that_were_computed_once_are_read(
    run, refused, beir, tiny_model, tiny_cross_encoder, tmp_path
):
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "one.yaml").write_text((CONFIGS / "bm25_reranked.yaml").read_text())
    scores = tmp_path / "scores.jsonl"
    every = tmp_path / "all.trec"
    lines = [f"q{q} Q0 d{d} 1 {40 - d} x" for q in range(5) for d in range(40)]
    every.write_text("\n".join(lines))
    status, _, err = run(annotate, "--beir", beir, "--split", "test", "--run", every, "--model",
                         tiny_cross_encoder(), "--scores-only", "--output", scores)  # fmt: skip
    assert status == 0, err
    arguments = ("run", "--task", "retrieval", "--data", beir, "--pipeline", folder, "--scores",
                 f"reranker={scores}", "--costs", "rerank=15", "--timed-queries", 2,
                 "--indexes", tmp_path / "indexes", "--output", tmp_path / "out.json")  # fmt: skip
    for _ in range(2):  # the index is kept
        status, out, err = run(evaluate, *arguments)
        assert status == 0, err
    (results,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert results["BM25 + reranker"]["milliseconds"][0] > 15 * 100
    assert "no pipeline has the role 'x'" in refused(evaluate, *arguments, "--models", "x=y")
    assert "--k: not for --pipeline" in refused(evaluate, *arguments, "--k", "5")
    assert "expected --model, or --pipeline" in refused(
        evaluate, "run", "--task", "retrieval", "--data", beir
    )
