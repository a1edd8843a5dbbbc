import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embed_jax
from scripts import encode

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def expected(tiny_model, sentences):
    return embed_jax.load(str(tiny_model)).encode(sentences)


def write(directory, kind, sentences):
    path = directory / f"input.{kind}"
    lines = {
        "txt": sentences,
        "tsv": ["text\tnumber", *(f"{text}\t{n}" for n, text in enumerate(sentences))],
        "jsonl": [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(sentences)],
    }[kind.removesuffix(".gz")]
    with (gzip.open if kind.endswith("gz") else open)(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "tsv", "txt.gz"])
def test_embeds_in_input_order(run, tiny_model, sentences, expected, tmp_path, kind):
    path, output = write(tmp_path, kind, sentences), tmp_path / "out.npy"
    status, out, err = run(encode, "--model", tiny_model, "--input", path, "--output", output)
    assert (status, err) == (0, "")
    found = np.load(output)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "200 texts" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "out.npy"]


def test_joins_fields_as_evaluate_does(run, tiny_model, tmp_path):
    path, output = tmp_path / "corpus.jsonl", tmp_path / "out.npy"
    records = [{"title": "red house", "text": "a dog"}, {"title": "", "text": "the cat"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ("--model", tiny_model, "--input", path, "--output", output, "--field", "title,text")
    assert run(encode, *arguments)[0] == 0
    expected = embed_jax.load(str(tiny_model)).encode(["red house a dog", "the cat"])
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)


def test_an_output_that_is_there_is_replaced_whole_or_not_at_all(run, tiny_model, tmp_path):
    path, output = tmp_path / "input.txt", tmp_path / "out.npy"
    path.write_text("a dog\n")
    output.write_bytes(b"old")
    assert run(encode, "--model", "nobody/nothing", "--input", path, "--output", output)[0] == 2
    assert output.read_bytes() == b"old"
    assert run(encode, "--model", tiny_model, "--input", path, "--output", output)[0] == 0
    assert np.load(output).shape[0] == 1


def test_bad_inputs_are_refused(refused, tiny_model, tmp_path):
    files = {
        "missing.txt": (None, "no such file"),
        "empty.txt": (b"", "empty"),
        "blank.tsv": (b"text\tn\n \t1\n", "empty"),
        "not_utf8.txt": (b"fine\ncaf\xe9\n", "not_utf8.txt:2"),
        "no_text.jsonl": (b'{"title": "x"}\n', "'text'"),
        "broken.jsonl": (b'{"text": "x"}\n{"text": \n', "broken.jsonl:2"),
        "number.jsonl": (b'{"text": 5}\n', "number.jsonl:1"),
        "few.tsv": (b"text\tn\nonly\n", "few.tsv:2"),
        "cut.txt.gz": (gzip.compress(b"some text\n" * 1000)[:30], "gzip"),
        "table.xlsx": (b"PK", "unknown file type"),
    }
    for name, (content, message) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        output = tmp_path / "out.npy"
        err = refused(encode, "--model", tiny_model, "--input", tmp_path / name, "--output", output)
        assert name in err and message in err, err


def test_bad_usage_is_refused(refused, tiny_model, tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("a dog and a cat\n")
    good = ("--model", tiny_model, "--input", path)
    assert ".npy" in refused(encode, *good, "--output", tmp_path / "out.bin")
    assert "cannot be written" in refused(encode, *good, "--output", tmp_path / "nowhere" / "out.npy")
    assert "batch_tokens" in refused(encode, *good, "--output", tmp_path / "out.npy", "--batch-tokens", "2")
    assert "'query'" in refused(encode, *good, "--output", tmp_path / "out.npy", "--prompt-name", "query")
    assert "--output" in refused(encode, *good)


def test_an_input_that_changes_is_a_failure_that_leaves_nothing(run, tiny_model, tmp_path, monkeypatch):
    path = tmp_path / "input.txt"
    path.write_text("a dog\na cat\n")
    monkeypatch.setattr(encode, "check_input", lambda args: 1)
    status, _, err = run(encode, "--model", tiny_model, "--input", path, "--output", tmp_path / "out.npy")
    assert status == 1 and "changed" in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["input.txt"]


def test_as_a_command(tiny_model, tmp_path):
    """The command as typed: exit status, one line, no traceback."""
    (tmp_path / "input.txt").write_bytes(b"\xff\n")
    files = ["--input", str(tmp_path / "input.txt"), "--output", str(tmp_path / "out.npy")]
    command = [sys.executable, "-m", "scripts.encode", "--model", str(tiny_model), *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    shown = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0 and "example" in shown.stdout
