"""Commands that evaluate cross-encoders, by themselves and after a search."""

import functools
import json
import shutil

import numpy as np
import pytest

import embed_jax
from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.data.sources.beir import read_beir
from embed_jax.evals.reranker import cross_encoder_reranker
from embed_jax.evals.reranking import open_task
from embed_jax.evals.search import score_run, search_task
from embed_jax.evals.significance import paired_difference
from embed_jax.retrieval.topk import dense_search
from scripts.evaluate import __main__ as evaluate


@pytest.fixture
def reranking(tmp_path, sentences):
    """A file of a reranking task: 12 queries, each with three positives and six negatives."""
    rows = [
        {
            "query": sentences[n],
            "positive": sentences[n + 20 : n + 23],
            "negative": sentences[n + 40 : n + 46],
        }
        for n in range(12)
    ]
    path = tmp_path / "data" / "reranking.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cross_encoder(tiny_cross_encoder):
    return tiny_cross_encoder()


def test_reranking(run, cross_encoder, reranking, tmp_path):
    output = tmp_path / "results.json"
    line = ["--model", cross_encoder, "--task", "reranking", "--data", reranking]
    status, out, err = run(evaluate, "run", *line, "--output", output)
    assert (status, err) == (0, "")
    model = load_cross_encoder(str(cross_encoder))
    expected = open_task(str(reranking)).evaluate_pairs(cross_encoder_reranker(model, "tiny"))
    result = json.loads(output.read_text())
    assert result["metrics"] == pytest.approx(dict(expected.metrics), abs=1e-6)
    assert np.ptp(expected.items.values) > 0.1
    assert result["items"]["values"] == pytest.approx(expected.items.values.tolist(), abs=1e-6)
    assert (result["task"], result["main"], result["n"]) == ("reranking", "map", 12)
    assert result["model"] == str(cross_encoder) and result["intervals"].keys() == {
        "map",
        "mrr@10",
        "ndcg@10",
    }
    assert f"{expected.score:.4f}" in out


def test_a_suite_compares_a_cross_encoder_with_an_embedder(
    run, cross_encoder, tiny_model, reranking, tmp_path
):
    suite, output = tmp_path / "suite.yaml", tmp_path / "results"
    suite.write_text(f"- {{task: reranking, data: {reranking}}}\n")
    line = ["suite", suite, "--model", f"{cross_encoder},{tiny_model}", "--output", output]
    status, out, err = run(evaluate, *line, "--compare")
    assert (status, err) == (0, "")
    assert "108 pairs scored" in out and "texts embedded" in out and "A - B" in out
    assert len(list(output.glob("*/reranking.json"))) == 2


@pytest.mark.parametrize("option, value", [("--dim", 8), ("--instruction", "find")])
def test_options_of_embedders_are_refused(refused, cross_encoder, reranking, option, value):
    line = ["--model", cross_encoder, "--task", "reranking", "--data", reranking, option, value]
    assert f"{option} is not for a cross-encoder" in refused(evaluate, "run", *line)


def test_other_tasks_and_several_labels_are_refused(
    refused, tiny_cross_encoder, cross_encoder, reranking
):
    line = ["run", "--task", "passkey", "--data", "64", "--model", cross_encoder]
    assert "a cross-encoder, which scores pairs" in refused(evaluate, *line)
    line = ["run", "--task", "reranking", "--data", reranking, "--model", tiny_cross_encoder(2)]
    assert "expected a cross-encoder with one label" in refused(evaluate, *line)


# ---- two stages ----------------------------------------------------------------------------------


def two_stages(beir, embedder, cross_encoder, ks, depth):
    """Computes the scores of both stages by hand: {metric: [before, after]} by query."""
    corpus, queries, qrels = read_beir(beir)
    encode = embed_jax.load(str(embedder)).encode
    search = functools.partial(dense_search, encode, encode, similarity="cosine")
    run = search_task(search, corpus, queries, qrels, ks=[*ks, depth])
    logits = load_cross_encoder(str(cross_encoder)).logits
    reranked = {}
    for query, results in run.items():
        documents = list(results)
        scores = logits(
            [queries[query]] * depth, [corpus[document] for document in documents[:depth]]
        )
        best = [documents[index] for index in np.argsort(-scores[:, 0])]
        reranked[query] = dict.fromkeys([*best, *documents[depth:]], 0.0)
    before, after = (score_run(each, qrels, ks=ks).per_query for each in (run, reranked))
    return {metric: [before[metric], after[metric]] for metric in before}


def test_retrieval_is_scored_before_and_after_reranking(
    run, tiny_model, cross_encoder, beir, tmp_path
):
    output = tmp_path / "results.json"
    line = ["--model", tiny_model, "--task", "retrieval", "--data", beir, "--k", "5,20"]
    line += ["--rerank", cross_encoder, "--depth", "10", "--output", output]
    status, out, err = run(evaluate, "run", *line)
    assert (status, err) == (0, "")
    result = json.loads(output.read_text())
    expected = two_stages(beir, tiny_model, cross_encoder, (5, 20), 10)
    for metric, (before, after) in expected.items():
        assert result["first_stage"]["metrics"][metric] == pytest.approx(before.mean())
        assert result["metrics"][metric] == pytest.approx(after.mean())
        low, high = result["intervals"][metric]
        assert low <= after.mean() <= high
        assert f"{before.mean():.4f}" in out and f"{after.mean():.4f}" in out
    assert result["items"]["values"] == pytest.approx(expected["ndcg@5"][1].tolist(), abs=1e-6)
    [(name, difference)] = result["differences"].items()
    paired = paired_difference(*reversed(expected["ndcg@5"]))
    assert (name, difference["metric"]) == ("beir", "ndcg@5")
    assert difference["difference"] == pytest.approx(paired.difference) != 0
    assert difference["interval"] == pytest.approx(paired.interval)
    assert difference["p"] == pytest.approx(paired.p_value)
    assert "reranked - first stage" in out and "ms a query" in out
    assert result["model"] == f"{tiny_model} + {cross_encoder}"
    assert result["first_stage"]["model"] == str(tiny_model)
    assert (result["reranker"], result["depth"]) == (str(cross_encoder), 10)


def test_every_relevant_document_is_reranked_if_asked_for(
    run, refused, tiny_model, cross_encoder, beir, tmp_path
):
    output = tmp_path / "results.json"
    line = ["--model", tiny_model, "--task", "retrieval", "--data", beir, "--k", "5,20"]
    assert "--with-positives is for --rerank" in refused(evaluate, "run", *line, "--with-positives")
    line += ["--rerank", cross_encoder, "--depth", "2", "--with-positives", "--output", output]
    assert run(evaluate, "run", *line)[0] == 0
    result = json.loads(output.read_text())
    assert result["first_stage"]["model"] == f"{tiny_model} with positives"
    assert result["metrics"]["recall@20"] == result["first_stage"]["metrics"]["recall@20"] == 1


def test_several_data_sets_have_a_table_for_each_stage(
    run, tiny_model, cross_encoder, beir, tmp_path
):
    other, output = tmp_path / "other", tmp_path / "results.json"
    shutil.copytree(beir, other)
    line = ["--model", tiny_model, "--task", "retrieval", "--data", f"{beir},{other}"]
    status, out, err = run(evaluate, "run", *line, "--rerank", cross_encoder, "--output", output)
    assert (status, err) == (0, "")
    result = json.loads(output.read_text())
    assert result["differences"].keys() == {"beir", "other"}
    for scores in (result, result["first_stage"]):
        assert scores["metrics"]["average/ndcg@10"] == scores["metrics"]["beir/ndcg@10"]
    assert out.count("average") == 2


@pytest.mark.parametrize(
    "rerank, message",
    [
        ("embedder", "expected a cross-encoder, found an embedding model"),
        ("two labels", "expected a cross-encoder with one label, which ranks passages, found 2"),
        ("nowhere", "nowhere"),
    ],
)
def test_what_cannot_rerank_is_refused(
    refused, tiny_model, tiny_cross_encoder, beir, rerank, message
):
    model = {"embedder": tiny_model, "two labels": tiny_cross_encoder(2)}.get(rerank, rerank)
    line = ["--model", tiny_model, "--task", "retrieval", "--data", beir, "--rerank", model]
    assert message in refused(evaluate, "run", *line)


def test_a_cross_encoder_is_no_first_stage(refused, cross_encoder, beir):
    line = ["--model", cross_encoder, "--task", "retrieval", "--data", beir]
    for options in ([], ["--rerank", cross_encoder]):
        assert "accepted: an embedding model" in refused(evaluate, "run", *line, *options)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task", "sts", "--rerank", "m"], "--rerank is for --task retrieval"),
        (["--task", "retrieval", "--depth", "5"], "--depth is for --rerank"),
        (
            ["--task", "retrieval", "--rerank", "m", "--depth", "0"],
            "--depth: expected 1 or more, found 0",
        ),
    ],
)
def test_bad_usage_is_refused(refused, options, message):
    assert message in refused(evaluate, "run", "--model", "m", "--data", "d", *options)
