import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from embed_jax.data.sources import open_records, record_fields
from embed_jax.retrieval.annotate import read_score_file
from scripts import annotate

ROOT = Path(__file__).parent.parent.parent
KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture
def mined(tmp_path, sentences):
    """A file of n-tuples: 9 queries with a positive and two or three negatives."""
    records = [
        {
            "anchor": " ".join(sentences[n].split()[:4]),
            "positive": sentences[n],
            **{f"negative_{k}": sentences[(n * k + 9) % 40] for k in range(1, 3 + n % 2)},
            "id": f"i{n}",
        }
        for n in range(9)
    ]
    path = tmp_path / "mined.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory, tiny_tokenizer):
    """A directory of a random BERT with one label."""
    torch = pytest.importorskip("torch")
    import transformers

    directory = tmp_path_factory.mktemp("cross_encoder") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class Reranker:
    """A server's answers in Cohere's form."""

    def __init__(self):
        self.documents = []
        self.behave = lambda content: None
        self.lock = threading.Lock()

    def __call__(self, path, headers, content):
        with self.lock:
            self.documents += [(content["query"], text) for text in content["documents"]]
        assert path == "/v2/rerank"
        results = [
            {"index": index, "relevance_score": remote_score(content["query"], text)}
            for index, text in enumerate(content["documents"])
        ]
        return self.behave(content) or {"results": results}


def remote_score(query, text):
    return float(np.float32(zlib.crc32(f"{query}|{text}".encode()) / 2**32))


@pytest.fixture
def reranker(json_server, monkeypatch):
    """A server, with the options to use it."""
    monkeypatch.setenv("CO_API_KEY", KEY)
    server = Reranker()
    server.options = ["--interface", "cohere", "--base-url", json_server(server), "--model", "m"]
    server.options += ["--first-wait", 0.001, "--retries", 1]
    return server


def read_lists(path):
    records = open_records(str(path))
    fields = record_fields(records)
    return records, [fields.columns(record) for record in records], list(map(fields.score, records))


def queries_and_passages(path):
    records = open_records(str(path))
    columns = [record_fields(records).columns(record) for record in records]
    return (
        [query for query, *passages in columns for _ in passages],
        [passage for _, *passages in columns for passage in passages],
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_of_a_cross_encoder_are_those_of_the_model(run, mined, tmp_path, tiny_cross_encoder):
    from embed_jax.cross_encoder import load_cross_encoder

    output = tmp_path / "lists.jsonl"
    arguments = ["--data", mined, "--model", tiny_cross_encoder, "--output", output]
    status, out, err = run(annotate, *arguments)
    assert status == 0, err
    scores_path = tmp_path / "lists.scores.jsonl"
    assert out.splitlines()[0].startswith(f"{scores_path}: ") and "0 before" in out
    assert out.splitlines()[1] == f"{output}: 9 lists"
    records, columns, scores = read_lists(output)
    model = load_cross_encoder(str(tiny_cross_encoder))
    queries, passages = queries_and_passages(mined)
    expected = model.score(queries, passages)
    np.testing.assert_allclose(np.concatenate(scores), expected, atol=1e-5)
    assert [record["id"] for record in records] == [f"i{n}" for n in range(9)]
    np.testing.assert_allclose(read_score_file(scores_path)(queries, passages), expected, atol=1e-5)

    # The second time nothing is scored, and the model is not even loaded.
    before = {path: path.read_bytes() for path in (output, scores_path)}
    status, out, _ = run(annotate, *arguments)
    assert status == 0 and ": 0 pairs scored now" in out
    assert {path: path.read_bytes() for path in before} == before

    # Logits have another range, and their own file.
    status, _, err = run(annotate, *arguments, "--activation", "identity")
    assert status == 2 and err.count("\n") == 1
    assert "scores of another teacher" in err and "activation was None, is 'identity'" in err
    other = ["--activation", "identity", "--scores", tmp_path / "logits.jsonl"]
    assert run(annotate, *arguments, *other)[0] == 0
    logits = model.logits(queries, passages)[:, 0]
    np.testing.assert_allclose(np.concatenate(read_lists(output)[2]), logits, atol=1e-5)


def test_scores_of_an_embedding_model_are_its_similarities(run, mined, tmp_path, tiny_model):
    from embed_jax import load

    output = tmp_path / "pairs.jsonl"
    arguments = ["--data", mined, "--model", tiny_model, "--format", "scored-pairs"]
    status, _, err = run(
        annotate, *arguments, "--query-prompt", "find ", "--block", 7, "--output", output
    )
    assert status == 0, err
    model = load(str(tiny_model))
    queries, passages = queries_and_passages(mined)
    expected = model.similarity_pairwise(
        model.encode_query(queries, prompt="find "), model.encode_document(passages)
    )
    records, columns, scores = read_lists(output)
    np.testing.assert_allclose(np.concatenate(scores), expected, atol=1e-5)
    assert columns == list(zip(queries, passages, strict=True)) and records[0]["id"] == "i0"


def test_a_model_is_known_by_its_files(run, mined, tmp_path, tiny_model):
    """Under another name, or with another README, it is the same teacher; else it is not."""
    arguments = ["--data", mined, "--scores-only", "--output", tmp_path / "scores.jsonl"]
    assert run(annotate, *arguments, "--model", tiny_model)[0] == 0
    before = (tmp_path / "scores.jsonl").read_bytes()
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    (moved / "README.md").write_text("Another text.")
    status, out, _ = run(annotate, *arguments, "--model", moved)
    assert status == 0 and ": 0 pairs scored now" in out
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    status, _, err = run(annotate, *arguments, "--model", moved)
    assert status == 2 and err.count("\n") == 1
    assert f"scores of another teacher, {str(tiny_model)!r}: files was " in err
    assert (tmp_path / "scores.jsonl").read_bytes() == before


def test_lists_without_a_margin_are_dropped(run, mined, tmp_path, reranker):
    output, arguments = tmp_path / "lists.jsonl", ["--data", mined, *reranker.options]
    assert run(annotate, *arguments, "--output", output)[0] == 0
    lists = lines(output)
    margins = [scores[0] - max(scores[1:]) for scores in (item["scores"] for item in lists)]
    least = sorted(margins)[4]
    filtered = tmp_path / "filtered.jsonl"
    options = ["--scores", tmp_path / "lists.scores.jsonl", "--output", filtered]
    status, out, _ = run(annotate, *arguments, *options, "--min-margin", least)
    assert status == 0 and out.endswith(f"{filtered}: 5 lists, 4 dropped by --min-margin\n")
    assert lines(filtered) == [
        item for item, margin in zip(lists, margins, strict=True) if margin >= least
    ]
    before = filtered.read_bytes()
    status, _, err = run(annotate, *arguments, *options, "--min-margin", 2)
    assert status == 2 and "--min-margin 2: none of 9 lists has this margin" in err
    assert filtered.read_bytes() == before


def write_run(path, results):
    path.write_text(
        "".join(
            f"{query} Q0 {document} {rank} {-rank} tag\n"
            for query, documents in results.items()
            for rank, document in enumerate(documents, 1)
        )
    )
    return path


def test_shortlists_of_several_runs_are_scored_once_for_all_tables(
    run, beir, tmp_path, sentences, reranker
):
    first = write_run(tmp_path / "a.trec", {"q0": ["d0", "d3", "d9"], "q1": ["d7"]})
    second = write_run(tmp_path / "b.trec", {"q1": ["d7", "d1"], "q0": ["d4", "d0", "d8"]})
    store = tmp_path / "scores.jsonl"
    common = ["--beir", beir, "--split", "test", *reranker.options]
    arguments = ["--depth", 2, "--scores-only", "--output", store]
    assert run(annotate, *common, "--run", first, "--run", second, *arguments)[0] == 0
    assert len(reranker.documents) == len(set(reranker.documents)) == 5  # d0 d3 d4, d7 d1
    reranker.documents.clear()
    status, out, _ = run(annotate, *common, "--run", second, *arguments)
    assert status == 0 and out == f"{store}: 0 pairs scored now, 5 before\n"
    assert not reranker.documents
    output = tmp_path / "lists.jsonl"
    options = ["--with-relevant", "--scores", store, "--output", output]
    assert run(annotate, *common, "--run", first, *options)[0] == 0
    query, other = (" ".join(sentences[n].split()[:4]) for n in range(2))
    # Beyond the depth of before, and the relevant documents that the run lacks.
    expected = [(query, sentences[9]), (query, sentences[5]), (other, sentences[6])]
    assert sorted(reranker.documents) == sorted(expected)
    assert lines(output) == [
        {
            "query": text,
            "passages": [sentences[n] for n in documents],
            "scores": pytest.approx([remote_score(text, sentences[n]) for n in documents]),
            "id": name,
            "passage_ids": [f"d{n}" for n in documents],
        }
        for name, text, documents in (("q0", query, [0, 3, 9, 5]), ("q1", other, [7, 1, 6]))
    ]
    assert [len(scores) for scores in read_lists(output)[2]] == [4, 3]


def test_a_request_that_fails_leaves_the_other_scores(run, mined, tmp_path, reranker):
    output, store = tmp_path / "lists.jsonl", tmp_path / "lists.scores.jsonl"
    arguments = ["--data", mined, *reranker.options, "--output", output]
    bad = lines(mined)[4]["anchor"]
    reranker.behave = lambda content: (500, {}, b"{}") if content["query"] == bad else None
    status, _, err = run(annotate, *arguments)
    assert status == 1 and err.count("\n") == 1, err
    assert "1 requests got no answer, the first: " in err and "HTTP 500" in err
    assert store.exists() and not output.exists()
    reranker.documents.clear()
    reranker.behave = lambda content: None
    assert run(annotate, *arguments)[0] == 0
    assert {query for query, _ in reranker.documents} == {bad}
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir() if path.is_file())
    before = output.read_bytes(), store.read_bytes()
    for path in (output, store):
        path.unlink()
    assert run(annotate, *arguments)[0] == 0
    assert (output.read_bytes(), store.read_bytes()) == before


def test_killed_at_any_time_it_ends_with_the_same_bytes(run, mined, tmp_path, reranker):
    """A real process gets SIGKILL again and again, until one comes to the end."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "lists.jsonl"
    arguments = ["--data", mined, *reranker.options, "--batch-size", 1, "--concurrency", 1]
    assert run(annotate, *arguments, "--output", whole)[0] == 0
    pairs = len(reranker.documents)
    reranker.documents.clear()
    reranker.behave = lambda content: time.sleep(0.02)
    command = [sys.executable, "-m", "scripts.annotate", *map(str, arguments), "--output", output]
    store, starts = tmp_path / "lists.scores.jsonl", 0
    for stop in (1, 9, pairs + 9):
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL)
        starts += 1
        while process.poll() is None and len(reranker.documents) < stop:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == 0
    assert output.read_bytes() == whole.read_bytes()
    assert store.read_bytes() == (tmp_path / "whole.scores.jsonl").read_bytes()
    # Of each process that was killed, one request may have been under way.
    assert len(reranker.documents) <= pairs + starts - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "lists.json"], "--output: expected the name of a file that ends in .jsonl"),
        (["--scores-only", "--min-margin", 0], "--scores-only: goes with neither"),
        (["--output", "mined.jsonl"], "expected another file than those of the other options"),
        (["--scores", "lists.jsonl"], "expected another file than those of the other options"),
        (["--run", "a.trec"], "--beir and --run go together"),
        (["--depth", 3], "--depth and --with-relevant go with --run"),
        (["--block", 0], "--block: expected 1 or more, found 0"),
        (["--no-key"], "--no-key: goes with --interface"),
        (["--settings", "{}"], "--settings: goes with --interface"),
        (
            ["--interface", "cohere", "--activation", "sigmoid"],
            "--activation: not with --interface",
        ),
        (["--interface", "cohere", "--settings", '{"query": 1}'], "--settings: expected a JSON"),
        (["--interface", "cohere", "--retries", -1], "--retries: expected a number from 0 up"),
        (["--interface", "cohere", "--timeout", 0], "--timeout: expected seconds above 0"),
        (["--interface", "cohere"], "CO_API_KEY is not set"),
        (["--interface", "tei"], "base URL: expected http"),
        (["--min-margin", "nan"], "--min-margin: expected a finite number"),
        (["--activation", "sigmoid"], "--activation: not for"),
        (["--data", "texts.jsonl"], "texts.jsonl: expected a query and passages"),
        (["--output", "nowhere/lists.jsonl"], "cannot be written: No such file"),
        (["--model", "nowhere/model"], "not found: no such directory"),
    ],
)
def test_bad_options_end_in_one_line(
    refused, mined, tmp_path, tiny_model, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CO_API_KEY", raising=False)
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "label": 1}\n')
    defaults = ["--data", "mined.jsonl", "--model", tiny_model, "--output", "lists.jsonl"]
    assert message in refused(annotate, *defaults, *arguments)


def test_a_run_of_something_else_ends_in_one_line(refused, beir, tmp_path, tiny_model):
    common = ["--beir", beir, "--model", tiny_model, "--output", tmp_path / "lists.jsonl"]
    run = write_run(tmp_path / "a.trec", {"q0": ["d99"]})
    message = refused(annotate, *common, "--split", "test", "--run", run)
    assert f"{run} with {beir}, split 'test': the document 'd99'" in message
    run.write_text("q0 d1\n")
    message = refused(annotate, *common, "--split", "test", "--run", run)
    assert f"{run}:1: found 2 fields" in message
    assert "the splits test" in refused(annotate, *common, "--run", run)
