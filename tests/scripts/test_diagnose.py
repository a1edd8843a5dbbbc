"""evaluate --diagnose: five findings, each with its figures and a command that can be run."""

import copy
import functools
import importlib.util
import json
import re

import pytest

import embed_jax
from embed_jax import packaged
from embed_jax.data.sources.beir import read_beir
from embed_jax.evals.search import evaluate_retrieval
from embed_jax.sentence import SentenceEncoder
from scripts.evaluate import __main__ as evaluate
from scripts.evaluate import diagnose as evaluate_diagnose

CHECKS = ["discrimination", "prompt", "dimension", "shortlist", "negatives"]


@pytest.fixture(scope="module")
def models(tiny_model):
    """Models by path, loaded once: they share their compiled programs."""
    return {str(tiny_model): embed_jax.load(tiny_model)}


@pytest.fixture
def diagnosed(run, beir, tmp_path, models, monkeypatch):
    """`diagnosed(model, *options) -> (findings by check, what is printed, what is written)`."""

    def diagnosed(model, *options):
        monkeypatch.setattr(
            evaluate_diagnose, "load_encoder", lambda name: models.get(name) or embed_jax.load(name)
        )
        output = tmp_path / "diagnosis.json"
        line = (
            "--model",
            model,
            "--task",
            "retrieval",
            "--data",
            beir,
            "--diagnose",
            "--output",
            output,
            *options,
        )
        status, out, err = run(evaluate, *line)
        assert status == 0, err
        content = json.loads(output.read_text())
        findings = {finding["check"]: finding for finding in content["findings"]}
        assert list(findings) == CHECKS
        for result in findings.values():
            assert result["name"] in out and result["line"] in out and result["what_to_do"] in out
            assert bool(result["what_to_do"]) == (result["status"] != "ok")
        return findings, out, content

    return diagnosed


@pytest.fixture
def renamed(tiny_model, models, tmp_path):
    """`renamed(name, **attributes)` writes the tiny model with other attributes under that name."""

    def renamed(name, **attributes):
        model = copy.copy(models[str(tiny_model)])
        for attribute, value in attributes.items():
            setattr(model, attribute, value)
        model.save(tmp_path / name)
        models[str(tmp_path / name)] = model
        return tmp_path / name

    return renamed


@pytest.fixture
def unrecorded(renamed, models):
    """Copies the tiny model to a directory named like a family with prompts, without prompts."""
    path = renamed("e5-small")
    settings = path / "config_sentence_transformers.json"
    recorded = json.loads(settings.read_text())
    settings.write_text(
        json.dumps(
            {
                name: recorded[name]
                for name in recorded
                if name not in ("prompts", "instruction_template")
            }
        )
    )
    with pytest.warns(UserWarning, match="no prompts are recorded"):
        models[str(path)] = embed_jax.load(path)
    return path


@pytest.fixture
def triplets(tmp_path, sentences):
    """Rows whose negatives are other sentences."""
    path = tmp_path / "triplets.jsonl"
    names = ("anchor", "positive", "negative_1", "negative_2")
    rows = [dict(zip(names, sentences[n : n + 4], strict=True)) for n in range(0, 120, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command(run, diagnosed, tiny_model, beir, triplets, tmp_path):
    findings, out, content = diagnosed(tiny_model, "--pairs", triplets, "--shortlist", 10)
    result = tmp_path / "result.json"
    line = (
        "--model",
        tiny_model,
        "--task",
        "retrieval",
        "--data",
        beir,
        "--k",
        "10",
        "--output",
        result,
    )
    assert run(evaluate, *line)[0] == 0
    expected = json.loads(result.read_text())
    assert content["metrics"]["ndcg@10"] == pytest.approx(expected["metrics"]["ndcg@10"])
    assert content["intervals"]["ndcg@10"] == pytest.approx(expected["intervals"]["ndcg@10"])
    assert findings["shortlist"]["figures"]["recall"] == pytest.approx(
        expected["metrics"]["recall@10"]
    )
    assert content["n"] == 5 and "jax" in content["versions"]
    assert "5 queries, 40 documents" in out.splitlines()[0]
    assert findings["prompt"]["status"] == "ok" and "none is recorded" in findings["prompt"]["line"]
    assert "all 32 numbers; lost at 16" in findings["dimension"]["line"]
    assert "of 60 negatives" in findings["negatives"]["line"]


def test_texts_are_embedded_once(diagnosed, renamed, monkeypatch):
    model = renamed("model", prompts={"query": "find: ", "document": ""})
    calls, encode = [], SentenceEncoder.encode

    def counted(self, texts, *, prompt, **options):
        calls.append((len(texts), prompt))
        return encode(self, texts, prompt=prompt, **options)

    monkeypatch.setattr(SentenceEncoder, "encode", counted)
    findings, *_ = diagnosed(model, "--dim", 8)
    assert sorted(calls) == [(5, ""), (5, "find: "), (40, "")]
    assert "without any" in findings["prompt"]["line"]


def test_a_size_is_compared_with_the_whole(diagnosed, tiny_model, models, beir):
    findings, _, content = diagnosed(tiny_model, "--dim", 4)
    for dim in (4, 32):
        encode = functools.partial(models[str(tiny_model)].encode, dim=dim)
        expected = evaluate_retrieval(encode, encode, *read_beir(beir)).metrics["ndcg@10"]
        assert findings["dimension"]["figures"][f"ndcg@10 {dim}"] == pytest.approx(expected)
        assert dim == 32 or content["metrics"]["ndcg@10"] == pytest.approx(expected)


def test_prompts_that_are_there_and_not_used(diagnosed, renamed):
    model = renamed("model", prompts={"query": "find: ", "plain": ""})
    findings, *_ = diagnosed(model, "--query-prompt-name", "plain")
    assert (findings["prompt"]["status"], findings["prompt"]["cause"]) == ("fault", "unused")
    assert "put 'find: ' before queries and '' before documents" in findings["prompt"]["what_to_do"]
    findings, *_ = diagnosed(renamed("other", prompts={"s2p_query": "find: "}))
    assert "'s2p_query' before queries" in findings["prompt"]["line"]


def test_negatives_are_judged_where_there_are_some(diagnosed, tiny_model, triplets, tmp_path):
    findings, *_ = diagnosed(tiny_model)
    assert (
        findings["negatives"]["status"] == "not checked"
        and "--pairs" in findings["negatives"]["what_to_do"]
    )
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("anchor\tpositive\n" + "".join(f"word {n}\ttext {n}\n" for n in range(5)))
    findings, *_ = diagnosed(tiny_model, "--pairs", pairs)
    assert (
        findings["negatives"]["status"] == "not checked"
        and "none of 5 rows" in findings["negatives"]["line"]
    )
    findings, *_ = diagnosed(tiny_model, "--pairs", triplets, "--pairs-limit", 3)
    assert (
        findings["negatives"]["status"] == "not checked"
        and findings["negatives"]["what_to_do"] == "give more rows"
    )


@pytest.mark.slow
def test_every_fault_has_commands_that_can_be_run(diagnosed, unrecorded, triplets, monkeypatch):
    monkeypatch.setattr("embed_jax.evals.diagnose.MOST_EASY", -1.0)
    monkeypatch.setattr("embed_jax.evals.diagnose.LEAST_AUC", 2.0)
    options = ("--dim", 4, "--pairs", triplets, "--shortlist", 1, "--target", 1)
    runs = []
    for lost in (True, False):
        monkeypatch.setattr("embed_jax.evals.diagnose._matters", lambda _, lost=lost: lost)
        runs.append(diagnosed(unrecorded, *options)[0])
    assert [finding["status"] for finding in runs[0].values()] == ["fault"] * 5
    assert (
        runs[0]["prompt"]["cause"] == "without any" and runs[1]["prompt"]["cause"] == "unrecorded"
    )
    assert 'prompt=""' in runs[0]["prompt"]["what_to_do"]
    text = "\n".join(finding["what_to_do"] for findings in runs for finding in findings.values())
    commands = [
        re.split(r"; |, or ", part)[0].split()
        for part in re.findall(r"python -m (.*)", text.replace("python", "\npython"))
    ]
    modules = {"retrieval", "matryoshka", "shrink", "mine", "audit", "export"}
    assert {module.partition(".")[2] for module, *_ in commands} == modules
    for module, *words in commands:
        if module.startswith("scripts."):
            importlib.import_module(packaged.main_module(module)).parse(words)
        else:
            assert importlib.util.find_spec(module)
            config = next(word.partition("=")[2] for word in words if word.startswith("--config="))
            assert packaged.config_path(config).is_file()


def test_what_cannot_be_diagnosed_is_refused(refused, tiny_model, beir, triplets, tmp_path):
    good = ("--model", tiny_model, "--task", "retrieval", "--data", beir, "--diagnose")
    (tmp_path / "half.jsonl").write_text(
        '{"anchor": "a", "positive": "b"}\n{"anchor": "a", "positive": ["b"]}\n'
    )
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    bad = {
        "--shortlist: expected 1 or more": ("--shortlist", "0"),
        "--target: expected a recall above 0": ("--target", "0"),
        "at most 1, found 1.5": ("--target", "1.5"),
        "--pairs-limit: expected 0 or more": ("--pairs-limit", "-1"),
        "--dim: expected 1 to 32": ("--dim", "33"),
        "unrecognized arguments: --training": ("--training", triplets),
        "unrecognized arguments: --set": ("--set", "passage_words=5"),
        "half.jsonl": ("--pairs", tmp_path / "half.jsonl"),
        "texts.jsonl": ("--pairs", tmp_path / "texts.jsonl"),
        "missing.jsonl": ("--pairs", tmp_path / "missing.jsonl"),
    }
    for message, options in bad.items():
        assert message in refused(evaluate, *good, *options)
    endpoint = ("--model", "openai:small", *good[2:])
    assert "not for an endpoint" in refused(evaluate, *endpoint)
    (beir / "qrels" / "one.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    assert "expects 2 judged queries or more, found 1" in refused(evaluate, *good, "--split", "one")
