"""The command writes pairs for training, splits them without a leak, and lists dropped ones."""

import json
import sys
import types

import numpy as np
import pytest

import embed_jax
from embed_jax.data.sources import open_records, record_fields
from scripts import pairs


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def clicks(tmp_path):
    """A log of 60 queries with two documents each, every tenth shared, and its corpus."""
    corpus = [{"_id": f"d{n}", "text": f"document {n}"} for n in range(120)]
    log = [{"query": f"query {n}", "doc_id": f"d{n}", "clicks": 1 + n % 3} for n in range(60)]
    log += [
        {
            "query": f"query {n}",
            "doc_id": f"d{60 + n // 10 if n % 10 == 0 else 60 + n}",
            "clicks": 2,
        }
        for n in range(60)
    ]
    return write(tmp_path / "log.jsonl", log), write(tmp_path / "corpus.jsonl", corpus)


def test_clicks_to_training_records(run, tmp_path, clicks):
    log, corpus = clicks
    output, listing = tmp_path / "pairs.jsonl", tmp_path / "dropped.jsonl"
    arguments = (
        "clicks",
        "--input",
        log,
        "--corpus",
        corpus,
        "--min-clicks",
        2,
        "--dropped",
        listing,
    )
    status, out, err = run(pairs, *arguments, "--output", output)
    assert status == 0, err
    records = open_records(str(output))
    few = sum(n % 3 == 0 for n in range(60))
    assert (
        len(records) == 120 - few
        and [row["why"] for row in lines(listing)] == ["too few clicks"] * few
    )
    assert out == f"{output}: {len(records)} pairs\ndropped: too few clicks {few}\n"
    fields = record_fields(records)
    assert len({fields.keys(record)[1] for record in records}) == len(
        {record["anchor"] for record in records}
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_without_a_leak(run, tmp_path, clicks, seed):
    log, corpus = clicks
    output = tmp_path / "split"
    arguments = ("clicks", "--input", log, "--corpus", corpus, "--holdout", 0.2, "--seed", seed)
    status, out, err = run(pairs, *arguments, "--output", output)
    assert status == 0, err
    sides = {name: open_records(str(output), name) for name in ("train", "validation", "test")}
    assert sum(map(len, sides.values())) == 120 and "dropped: nothing" in out
    assert "(" + ", ".join(f"{name} {len(side)}" for name, side in sides.items()) + ")" in out
    for field in ("anchor", "positive", "id", "group"):
        values = [{record[field] for record in side} for side in sides.values()]
        assert sum(map(len, values)) == len(set.union(*values))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.jsonl",
        "log.jsonl",
        "split",
    ]


def test_groups(run, tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text("question,id\n" + "".join(f"question {n},{n // 3}\n" for n in range(91)))
    arguments = (
        "groups",
        "--input",
        path,
        "--text-field",
        "question",
        "--group-field",
        "id",
        "--max-per-group",
        2,
    )
    status, out, _ = run(pairs, *arguments, "--output", tmp_path / "one.jsonl")
    assert status == 0 and "60 pairs" in out and "dropped: single text of its group 1" in out
    assert run(pairs, *arguments, "--holdout", 0.1, "--output", tmp_path / "split")[0] == 0
    groups = [
        {record["group"] for record in lines(tmp_path / "split" / f"{name}.jsonl")}
        for name in pairs_sides()
    ]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30


def pairs_sides():
    return ("train", "validation", "test")


def test_paraphrases_by_an_embedding_model(run, tmp_path, tiny_model, sentences):
    rows = [{"sentence1": sentences[n], "sentence2": sentences[n + 40]} for n in range(40)]
    rows += [{"sentence1": sentences[0], "sentence2": sentences[0] + " "}]
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    units = embed_jax.load(str(tiny_model)).encode(sentences[:80]).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = np.sum(units[:40] * units[40:], axis=1)
    ranked = np.sort(cosines)
    cut = 10 + np.argmax(np.diff(ranked[10:30]))  # no rounding decides there
    threshold = (ranked[cut] + ranked[cut + 1]) / 2
    arguments = ("--model", tiny_model, "--threshold", threshold, "--output", output)
    status, out, err = run(pairs, "paraphrases", "--input", path, *arguments)
    assert status == 0, err
    assert [row["anchor"] for row in lines(output)] == [
        sentences[n] for n in np.flatnonzero(cosines > threshold)
    ]
    assert f"below the threshold {np.sum(cosines < threshold)}" in out and "equal texts 1" in out


def test_paraphrases_by_a_cross_encoder(run, refused, tmp_path, monkeypatch):
    model = types.SimpleNamespace(
        num_labels=1,
        activation="identity",
        score=lambda a, b: np.array([len(y) - len(x) for x, y in zip(a, b, strict=True)]),
        logits=len,
    )
    module = types.ModuleType("embed_jax.cross_encoder")
    module.load_cross_encoder = {
        "some/model": model,
        "some/nli": types.SimpleNamespace(num_labels=3, activation="identity", logits=len),
    }.__getitem__
    monkeypatch.setitem(sys.modules, "embed_jax.cross_encoder", module)
    path = write(
        tmp_path / "a.jsonl", [{"sentence1": "a", "sentence2": "b" * n} for n in range(1, 6)]
    )
    arguments = (
        "--cross-encoder",
        "some/model",
        "--threshold",
        -0.5,
        "--output",
        tmp_path / "out.jsonl",
    )
    assert "expected a cross-encoder with one label, which ranks passages, found 3" in refused(
        pairs, "paraphrases", "--input", path, "--cross-encoder", "some/nli", *arguments[2:]
    )
    assert run(pairs, "paraphrases", "--input", path, *arguments)[0] == 0
    assert [row["positive"] for row in lines(tmp_path / "out.jsonl")] == [
        "b" * n for n in range(1, 6)
    ]


def test_what_cannot_be_used_is_one_line_and_leaves_nothing(refused, tmp_path, clicks, tiny_model):
    log, corpus = clicks
    base = ("clicks", "--input", log, "--corpus", corpus, "--output", tmp_path / "out.jsonl")
    assert "none of 120 pairs of query and document has 9 clicks or more" in refused(
        pairs, *base, "--min-clicks", 9
    )
    assert "--min-clicks: expected 1 or more" in refused(pairs, *base, "--min-clicks", 0)
    assert "--holdout: expected at least 0" in refused(pairs, *base, "--holdout", 0.5)
    split = (
        "clicks",
        "--input",
        log,
        "--corpus",
        corpus,
        "--holdout",
        0.001,
        "--output",
        tmp_path / "split",
    )
    assert "no pair falls into the validation split: 120 pairs with --holdout 0.001" in refused(
        pairs, *split
    )
    assert "corpus.jsonl: exists already" in refused(pairs, *split[:-1], corpus)
    short = write(tmp_path / "short.jsonl", [{"_id": "d0", "text": "a"}])
    listing = ("--dropped", tmp_path / "dropped.jsonl")
    assert "log.jsonl:2: the document 'd1' is not in" in refused(
        pairs, *base[:4], short, *base[5:], *listing
    )
    assert "ends in .jsonl" in refused(pairs, *base[:-1], tmp_path / "out")
    assert "are the same file" in refused(pairs, *base, "--dropped", tmp_path / "out.jsonl")
    assert "--corpus" in refused(
        pairs, "clicks", "--input", log, "--output", tmp_path / "out.jsonl"
    )
    rows = write(tmp_path / "rows.jsonl", [{"sentence1": "a", "sentence2": ""}])
    candidates = (
        "paraphrases",
        "--input",
        rows,
        "--threshold",
        0.5,
        "--output",
        tmp_path / "out.jsonl",
    )
    assert "one of the arguments --model --cross-encoder is required" in refused(pairs, *candidates)
    assert "rows.jsonl:1: field 'sentence2' is empty" in refused(
        pairs, *candidates, "--model", tiny_model
    )
    assert "not allowed with" in refused(pairs, *candidates, "--model", "a", "--cross-encoder", "b")
    assert "--prompt-name needs --model" in refused(
        pairs, *candidates, "--cross-encoder", "b", "--prompt-name", "q"
    )


def test_help_is_complete(run):
    status, out, _ = run(pairs, "--help")
    assert status == 0 and "examples:" in out
    for command, option in (
        ("clicks", "--top"),
        ("groups", "--max-per-group"),
        ("paraphrases", "--cross-encoder"),
    ):
        assert command in out
        status, text, _ = run(pairs, command, "--help")
        assert status == 0 and option in text


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ("clicks", ("query, doc_id, clicks", "_id (or id), text and optionally title")),
        ("groups", ("text, group",)),
        ("paraphrases", ("sentence1, sentence2",)),
    ],
)
def test_help_names_the_columns(run, command, columns):
    _, out, _ = run(pairs, command, "--help")
    assert all(names in " ".join(out.split()) for names in columns)
