import gzip
import json

import pytest

from embed_jax.errors import exit_with_one_line


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command's `main` in this process.

    `run(module, *arguments) -> (exit status, stdout, stderr)`.
    """
    monkeypatch.setattr("embed_jax.runtime.enable_compilation_cache", lambda: None)

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(module.main)
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Checks that a command ends with status 2 and one line, and writes nothing.

    Returns the line.
    """

    def refused(module, *arguments):
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(module, *arguments)
        assert status == 2, err
        assert err.count("\n") == 1 and err.startswith("error: "), err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refused


@pytest.fixture
def beir(tmp_path, sentences):
    """A directory in BEIR's layout: 40 documents, 5 queries that are beginnings of documents."""
    directory = tmp_path / "beir"
    (directory / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(sentences[:40])]
    queries = [{"_id": f"q{n}", "text": " ".join(sentences[n].split()[:4])} for n in range(5)]
    with gzip.open(directory / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in corpus)
    (directory / "queries.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in queries)
    )
    judged = "".join(f"q{n}\td{n}\t2\nq{n}\td{n + 5}\t1\n" for n in range(5))
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return directory


@pytest.fixture
def sts(tmp_path, sentences):
    """An STS file with two subsets."""
    path = tmp_path / "sts" / "test.tsv"
    path.parent.mkdir()
    rows = [f"{n % 6}\t{sentences[n]}\t{sentences[n + 1]}\t{'ab'[n % 2]}" for n in range(30)]
    path.write_text("\n".join(["score\tsentence1\tsentence2\tsubset", *rows]) + "\n")
    return path
