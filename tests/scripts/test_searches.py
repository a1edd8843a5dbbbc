"""evaluate searches, and late interaction in evaluate run."""

import dataclasses
import functools
import json

import pytest

import embed_jax
from embed_jax.data.sources.beir import read_beir
from embed_jax.encoders.heads import Normalize
from embed_jax.evals.search import evaluate_retrieval, evaluate_search
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.retrieval.maxsim import maxsim_search
from scripts.evaluate import __main__ as evaluate


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Loads each model once, as each loading compiles again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embed_jax.load", functools.cache(embed_jax.load), raising=False)
        yield


@pytest.fixture(scope="module")
def late_model(tiny_model, tmp_path_factory):
    """The directory of a model whose tokens have the vectors of an embedder's last layer."""
    model = embed_jax.load(str(tiny_model))
    spec = dataclasses.replace(model.spec, pooling="", heads=(Normalize(),))
    directory = tmp_path_factory.mktemp("late") / "model"
    LateInteractionEncoder(spec, model.params, model.tokenizer).save(directory)
    return directory


def test_kinds_side_by_side_are_scored_as_by_the_library(
    run, beir, tiny_model, late_model, tmp_path
):
    pytest.importorskip("bm25s")
    output = tmp_path / "searches.json"
    models = ["--model", "BM25=bm25", "--model", f"tiny={tiny_model}", "--model", late_model]
    line = ["searches", "--data", beir, *models, "--dims", "8", "--k", "2,10"]
    status, out, err = run(evaluate, *line, "--metrics", "recall@2", "--output", output)
    assert status == 0, err
    content = json.loads(output.read_text())
    rows = {row["name"]: row for row in content["searches"]}
    assert list(rows) == ["BM25", "tiny, 8", "tiny, 32", str(late_model)]
    assert all(name in out for name in rows) and "only 40 documents" in out
    assert (content["queries"], content["documents"]) == (5, 40)

    dense, late, task = (*map(embed_jax.load, map(str, (tiny_model, late_model))), read_beir(beir))
    tokens = functools.partial(maxsim_search, late.encode_query, late.encode_document)
    whole = evaluate_retrieval(dense.encode, dense.encode, *task, ks=(2, 10))
    for name, expected in (
        ("tiny, 32", whole),
        (str(late_model), evaluate_search(tokens, *task, ks=(2, 10))),
    ):
        assert rows[name]["metrics"] == pytest.approx(expected.metrics)
        low, high = rows[name]["intervals"]["recall@2"]
        assert low <= rows[name]["metrics"]["recall@2"] <= high
    vectors = late.encode_document(list(task[0].values()))
    stored = sum(tokens.size for tokens in vectors) / len(vectors)
    assert rows[str(late_model)]["numbers_per_document"] == pytest.approx(stored)
    assert rows["tiny, 8"]["numbers_per_document"] == 8


def test_late_interaction_takes_part_in_retrieval_only(run, refused, beir, sts, late_model):
    status, out, err = run(
        evaluate, "run", "--model", late_model, "--task", "retrieval", "--data", beir, "--k", "10"
    )
    assert (status, err) == (0, "") and "ndcg@10" in out
    line = ["run", "--model", late_model, "--data"]
    assert "a task of the kind sts needs a vector for each text" in refused(
        evaluate, *line, sts, "--task", "sts"
    )
    assert "--layers is not for a late-interaction model" in refused(
        evaluate, *line, beir, "--task", "retrieval", "--layers", "1"
    )
    assert "passage_words: not for late interaction" in refused(
        evaluate, *line, beir, "--task", "retrieval", "--set", "passage_words=4"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "8"], "searches take several sizes: --dims instead of --dim"),
        (["--dims", "8,x"], "--dims: expected numbers from 1 up"),
        (["--metrics", "recall@3"], "--metrics: expected some of ndcg@10"),
        (["--model", "a=b", "--model", "a=c"], "--model: the name 'a' stands twice"),
    ],
)
def test_bad_options_are_refused(refused, beir, options, message):
    line = ["searches", "--data", beir, "--model", "m", *options]
    assert message in refused(evaluate, *line)


def test_a_sweep_of_token_vectors_has_every_index_beside_the_exact_search(
    run, beir, late_model, tmp_path
):
    pytest.importorskip("faiss")
    output = tmp_path / "sweep.json"
    line = ["sweep", "--model", late_model, "--data", beir, "--bits", "1,8", "--pool", "1,2"]
    status, out, err = run(evaluate, *line, "--output", output)
    assert status == 0, err
    rows = json.loads(output.read_text())["sweep"]
    assert [(row["pool"], row["bits"]) for row in rows] == [
        (1, 16), (1, 1), (1, 8), (2, 1), (2, 8)
    ]  # fmt: skip
    late, task = embed_jax.load(str(late_model)), read_beir(beir)
    tokens = functools.partial(maxsim_search, late.encode_query, late.encode_document)
    expected = evaluate_search(tokens, *task, ks=(10,)).metrics["ndcg@10"]
    assert rows[0]["quality"] == pytest.approx(expected)
    assert rows[2]["quality"] == pytest.approx(
        expected, abs=0.02
    )  # eight bits lose next to nothing
    sizes = [row["bytes_per_document"] for row in rows]
    assert (
        rows[0]["bytes_per_vector"] == 2 * late.dim and sizes[2] > sizes[1] and sizes[2] > sizes[4]
    )
    assert rows[2]["bytes_per_vector"] - rows[1]["bytes_per_vector"] == late.dim * 7 / 8
    assert "difference" in out and "exact" in out
    assert [line.split(":")[0] for line in err.splitlines()[1:3]] == [
        "pooling 1, 1 bits", "pooling 1, 8 bits"
    ]  # fmt: skip
