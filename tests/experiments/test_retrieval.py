"""The retrieval experiment on a file of pairs: split, train, compare, print the verdict."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from embed_jax.errors import exit_with_one_line
from embed_jax.evals.search import evaluate_retrieval
from embed_jax.sentence import load_sentence_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_data(tmp_path, tiny_model, sentences, monkeypatch, capsys):
    """A function that runs the experiment on 120 made pairs in this process."""
    pytest.importorskip("bm25s")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from embed_jax import config_file
    from experiments import retrieval

    rows = [{"anchor": " ".join(text.split()[::2]), "positive": text} for text in sentences[:120]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in sentences[120:])
    )
    arguments = [
        "--config=configs/retrieval/own_data.py:small",
        f"--config.model.name={tiny_model}",
        f"--config.data.train={tmp_path}/pairs.jsonl",
        f"--config.data.corpus={tmp_path}/corpus.jsonl",
        "--config.data.max_length=32",
        "--config.train.devices=1",
        "--config.tracking.wandb=disabled",
        f"--workdir={tmp_path}/run",
    ]

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["experiments/retrieval.py", *arguments, *overrides])
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(retrieval.main)
        return exit.value.code, *capsys.readouterr()

    run.config = lambda *overrides: config_file.load_config(
        ["experiments/retrieval.py", *arguments, *overrides]
    )[0]
    run.read_data = retrieval.read_data
    return run


def test_own_data_ends_with_a_verdict_and_runs_once(own_data, tmp_path):
    status, out, err = own_data()
    assert status == 0, err
    assert out.count("dopt it") == 1 and "bm25" in out and "query:" in out
    assert out.startswith("on 1 device (cpu), 1 host, in float32\n")
    assert "held-out records do not fill one of 16" in out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    evaluated = [line for line in map(json.loads, lines) if "retrieval/ndcg@10" in line]
    assert len(evaluated) > 2 and all("validation/loss" in line for line in evaluated)
    result = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert set(result["metrics"]) == {"bm25", "before", "after"}
    assert 0 <= result["metrics"]["after"]["ndcg@10"] <= 1
    for name in ("curves.png", "comparison.png", "metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    status, again, _ = own_data()
    assert status == 0 and "resuming" in again, "the run was over: nothing is trained again"
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines


def test_bad_pairs_are_one_line(own_data, tmp_path):
    (tmp_path / "bad.tsv").write_text("anchor\tpositive\na\n")
    status, _, err = own_data(f"--config.data.train={tmp_path}/bad.tsv")
    assert status == 2 and err.count("\n") == 1 and "bad.tsv:2" in err


@pytest.mark.slow
def test_prompts_of_the_training_are_those_of_the_evaluation_and_of_the_result(own_data, tmp_path):
    prompts = ["--config.data.anchor_prompt=find : ", "--config.data.candidate_prompt=this is a "]
    status, _, err = own_data(*prompts, "--config.train.steps=2", "--config.eval.every=2")
    assert status == 0, err
    model = load_sentence_encoder(str(tmp_path / "run" / "model"))
    assert model.prompts == {"query": "find : ", "document": "this is a "}

    corpus, queries, qrels = own_data.read_data(own_data.config(*prompts), tmp_path)[2]["test"]
    encode = [functools.partial(model.encode, prompt_name=name) for name in ("query", "document")]
    expected = evaluate_retrieval(*encode, corpus, queries, qrels).metrics
    result = json.loads((tmp_path / "run" / "comparison.json").read_text())["metrics"]["after"]
    assert result == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    without = evaluate_retrieval(model.encode, model.encode, corpus, queries, qrels).metrics
    assert result != {name: pytest.approx(value, abs=1e-6) for name, value in without.items()}


def test_a_corpus_without_texts_is_one_line(own_data, tmp_path):
    status, _, err = own_data(f"--config.data.corpus={tmp_path}/pairs.jsonl")
    assert (status, err.count("\n")) == (2, 1)
    assert "pairs.jsonl: expected records with a text, found the fields anchor, positive" in err


def test_a_metric_that_nothing_gives_is_one_line_before_training(own_data, tmp_path):
    status, _, err = own_data("--config.data.holdout=0")
    assert (status, err.count("\n")) == (2, 1) and "config.eval.metric: 'retrieval/ndcg@10'" in err


@pytest.mark.parametrize("package", ["bm25s", "matplotlib"])
def test_a_missing_package_is_said_before_training(own_data, tmp_path, monkeypatch, package):
    result = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else result(name)
    )
    status, _, err = own_data()
    assert (
        status == 2
        and f"package {package!r} is not installed" in err
        and not (tmp_path / "run").exists()
    )
