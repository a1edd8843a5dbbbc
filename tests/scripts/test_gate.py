"""scripts.gate: exit status, files, and what is refused."""

import json
from pathlib import Path

import pytest

from embed_jax.retrieval import build_index
from scripts import gate

CONFIGS = Path(__file__).parents[2] / "configs"
BM25 = ("--pipeline", CONFIGS / "pipelines" / "bm25.yaml")
CORPUS = {"a": "a kettle", "b": "a guitar", "c": "tides of the sea", "money": "salaries"}
CASES = """corpus: corpus.jsonl
cases:
  - {name: one, query: kettle, expected: a}
  - {name: two, query: guitar, expected: b}
  - {name: three, query: salaries, expected: [], where: {open: true}}
  - {name: four, query: tides, expected: c}
forbidden: [money]
thresholds: {recall@2: 1.0}
"""


@pytest.fixture
def files(tmp_path):
    pytest.importorskip("bm25s")
    records = [
        {"_id": name, "text": text, "open": name != "money"} for name, text in CORPUS.items()
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "gate.yaml").write_text(CASES)
    return tmp_path


def build_words(path, texts=CORPUS, **identity):
    documents = [(name, text, text, {"open": name != "money"}) for name, text in texts.items()]
    build_index(path, documents, identity={"kind": "bm25", "chunks": None, **identity}, kind="bm25")


def test_the_example_passes_and_fails_without_its_allow_list(run, tmp_path):
    pytest.importorskip("bm25s")
    example = CONFIGS / "gates" / "shop.yaml"
    status, out, err = run(gate, example, *BM25, "--output", tmp_path / "gate.json", "--html",
                           tmp_path / "gate.html")  # fmt: skip
    assert (status, err) == (0, ""), err
    assert "recall@2" in out and out.endswith("help pages of a shop: passed\n")
    content = json.loads((tmp_path / "gate.json").read_text())
    assert content["passed"] and content["checks"][2]["number"] == 1.0
    attack = next(each for each in content["cases"] if each["name"] == "attack")
    assert attack["served"] == {}
    assert "<script" not in (tmp_path / "gate.html").read_text()
    lines = [line for line in example.read_text().splitlines() if not line.startswith("allowed")]
    (tmp_path / "open.yaml").write_text("\n".join(lines))
    status, out, err = run(gate, tmp_path / "open.yaml", *BM25)
    assert (status, err) == (1, "")
    assert "case 'attack': 'salaries' is served at rank 1" in out and out.endswith("failed\n")


def test_indexes_are_gated_with_filters_and_a_baseline(run, files):
    build_words(files / "words")
    line = (files / "gate.yaml", "--index", files / "words")
    status, out, err = run(gate, *line, "--output", files / "gate.json")
    assert (status, err) == (0, ""), err
    status, out, err = run(gate, *line, "--baseline", files / "gate.json")
    assert (status, err) == (0, "") and "ndcg@10 - baseline" in out and "would raise" in out
    status, out, _ = run(gate, files / "gate.yaml", *BM25, "--indexes", files / "kept")
    assert status == 0 and list((files / "kept").glob("bm25-*"))
    (files / "gate.yaml").write_text(CASES.replace("expected: c", "expected: a"))
    status, out, err = run(gate, *line)
    assert (status, err) == (1, "") and "case 'four': 0.000: 'a' not served" in out


def test_stale_and_mismatched_indexes_are_refused(refused, files):
    build_words(files / "words", {**CORPUS, "a": "another kettle", "d": "new"})
    build_words(files / "few", {name: CORPUS[name] for name in "abc"})
    build_words(files / "whole")
    path = files / "gate.yaml"
    message = refused(gate, path, "--index", files / "words")
    assert "words: a stale index" in message and "0 added, 1 updated, 1 deleted" in message
    assert "few: a stale index" in refused(gate, path, "--index", files / "few")
    path.write_text(CASES.replace("corpus: corpus.jsonl\n", ""))
    two = ("--index", files / "few", "--index", files / "whole")
    assert "have other documents: 1 are in one only, such as 'money'" in refused(gate, path, *two)
    path.write_text(
        CASES.replace("corpus: corpus.jsonl\n", "").replace("expected: a", "expected: x")
    )
    (files / "model").mkdir()
    (files / "model" / "config.json").write_text("{}")
    assert "'x' is not among the 4" in refused(gate, path, "--index", files / "whole")
    build_index(
        files / "dense",
        [("a", [1.0, 0.0])],
        identity={"model": "of another", "name": str(files / "model")},
    )
    assert "model was 'of another'" in refused(gate, path, "--index", files / "dense")


def test_wrong_uses_are_one_line(refused, files):
    path, index = files / "gate.yaml", ("--index", files / "no")
    for message, arguments in {
        "expected --index, once or more, or --pipeline": (path,),
        "--model, --rerank: only with --index": (path, *BM25, "--rerank", "m"),
        "--models, --indexes: only with --pipeline": (path, *index, "--models", "a=b"),
        "--timed-queries: expected 1 or more": (path, *index, "--timed-queries", 0),
        "no.yaml: cannot be read": (files / "no.yaml", *index),
        "no index, or its first build": (path, *index),
        "no.json: cannot be read": (path, *index, "--baseline", files / "no.json"),
        "--models: expected ROLE=NAME": (path, *BM25, "--models", "b"),
    }.items():
        assert message in refused(gate, *arguments), message
    path.write_text(CASES.replace("corpus: corpus.jsonl\n", ""))
    assert "--pipeline: needs documents" in refused(gate, path, *BM25)
    path.write_text(CASES.replace("open: true", "public: true"))
    assert "no document has the field 'public'" in refused(gate, path, *BM25)
