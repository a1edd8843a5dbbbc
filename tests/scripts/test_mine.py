import json

import numpy as np
import pytest

import embed_jax
from embed_jax.data.sources import open_records, record_fields
from embed_jax.errors import InputError
from scripts import audit, mine
from scripts.bench import __main__ as bench
from scripts.bench import mining as bench_mining


@pytest.fixture
def files(tmp_path, sentences):
    """Writes pairs, two of which share an anchor, and a corpus that lacks one positive.

    Returns (options, pairs, passages).
    """
    passages = [
        {"_id": f"d{n}", "title": f"title {n}" if n % 2 else "", "text": sentences[n]}
        for n in range(40)
    ]
    texts = [f"{passage['title']} {passage['text']}".strip() for passage in passages]
    positives = [*texts[:8], "a positive from elsewhere"]
    anchors = [" ".join(sentences[n % 8].split()[:4]) for n in range(9)]
    pairs = [
        {"anchor": a, "positive": p, "negative": "old"}
        for a, p in zip(anchors, positives, strict=True)
    ]
    for name, records in (("pairs", pairs), ("corpus", passages)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    return (
        ("--pairs", tmp_path / "pairs.jsonl", "--corpus", tmp_path / "corpus.jsonl"),
        pairs,
        [*texts, positives[-1]],
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mines_with_bm25_and_a_model(run, files, tmp_path, tiny_model):
    pytest.importorskip("bm25s")
    options, pairs, passages = files
    output = tmp_path / "mined.jsonl"
    mined = (
        *options,
        "--output",
        output,
        "--strategy",
        "bm25,dense",
        "--model",
        tiny_model,
        "--number",
        "3",
    )
    status, out, err = run(mine, *mined)
    assert (status, err) == (0, "")
    assert (
        "9 pairs" in out
        and "9 n-tuples from 41 passages, 1 of them" in out
        and "27  negatives" in out
    )
    records = read(output)
    assert {(record["anchor"], record["positive"]) for record in records} == {
        (pair["anchor"], pair["positive"]) for pair in pairs
    }
    for record in records:
        negatives = {record[f"negative_{number}"] for number in (1, 2, 3)}
        positives = {pair["positive"] for pair in pairs if pair["anchor"] == record["anchor"]}
        assert len(negatives) == 3 and negatives <= set(passages) - positives
    content = output.read_bytes()
    assert run(mine, *mined, "--on-disk")[0] == 0  # the same, and nothing is left behind
    assert output.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.jsonl",
        "mined.jsonl",
        "pairs.jsonl",
    ]


def test_pairs_without_titles_and_a_corpus_with_them(run, tmp_path, sentences):
    """The passage nearest to each query is its positive, joined with a title."""
    pytest.importorskip("bm25s")
    texts = [text for text in sentences if len(text) > 20][:30]
    passages = [{"title": f"On {text.split()[1]}", "text": f" {text}"} for text in texts]
    joined = [{"text": f"{passage['title']}: {passage['text']}"} for passage in passages]
    pairs = [{"anchor": text.lower(), "positive": text.replace(" ", "\u00a0", 1)} for text in texts]
    for name, records in (("pairs", pairs), ("titles", passages), ("joined", joined)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    output = tmp_path / "mined.jsonl"
    for name, warned in (("titles", False), ("joined", True)):
        corpus = tmp_path / f"{name}.jsonl"
        data = ("--pairs", tmp_path / "pairs.jsonl", "--corpus", corpus, "--number", "3")
        status, out, _ = run(mine, *data, "--output", output)
        assert status == 0 and ("warning: the corpus lacks 30 of 30 positives" in out) == warned
        assert read(output)
        for record in read(output):
            own = record["positive"].replace("\u00a0", " ")
            assert not [text for name, text in record.items() if name[:3] == "neg" and own in text]
        assert "0 times their own row's" in run(audit, "--data", output)[1]


def test_dense_search_is_the_models_and_scored_lists_carry_its_similarities(
    run, files, tmp_path, tiny_model
):
    options, pairs, passages = files
    output = tmp_path / "lists.jsonl"
    search = (
        "--strategy",
        "dense",
        "--model",
        tiny_model,
        "--query-prompt",
        "dog ",
        "--format",
        "scored-lists",
    )
    assert run(mine, *options, *search, "--number", "40", "--output", output)[0] == 0
    model = embed_jax.load(str(tiny_model))
    similarity = (
        model.encode([pair["anchor"] for pair in pairs], prompt="dog ") @ model.encode(passages).T
    )
    for record in read(output):
        number = next(
            n for n, pair in enumerate(pairs) if pair["positive"] == record["passages"][0]
        )
        expected = dict(zip(passages, similarity[number], strict=True))
        np.testing.assert_allclose(
            record["scores"], [expected[text] for text in record["passages"]], atol=1e-5
        )
        assert record["scores"][1:] == sorted(record["scores"][1:], reverse=True)
        assert (
            len(record["passages"])
            == 41 - len([p for p in pairs if p["anchor"] == record["query"]]) + 1
        )
    fields = record_fields(open_records(str(output)))
    assert fields.score is not None


def test_a_cross_encoder_scores_lists_and_decides(run, files, tmp_path, monkeypatch):
    pytest.importorskip("bm25s")

    class Stub:
        def score(self, queries, passages):
            return np.array([-len(passage) for passage in passages], np.float32)

    monkeypatch.setattr(
        "embed_jax.cross_encoder.load_cross_encoder",
        lambda name, compute_dtype: {("stub", "float32"): Stub()}[name, compute_dtype],
    )
    output = tmp_path / "lists.jsonl"
    choice = (
        "--cross-encoder",
        "stub",
        "--margin",
        "1",
        "--number",
        "3",
        "--format",
        "scored-lists",
    )
    assert run(mine, *files[0], *choice, "--output", output)[0] == 0
    for record in read(output):
        positive, *negatives = record["scores"]
        assert record["scores"] == [-len(passage) for passage in record["passages"]]
        assert negatives == sorted(negatives, reverse=True) and max(negatives) <= positive - 1


@pytest.mark.parametrize("form", mine.FORMATS)
def test_beir_and_formats(run, beir, tmp_path, tiny_model, form):
    output = tmp_path / "mined.jsonl"
    search = ("--strategy", "dense", "--model", tiny_model, "--number", "2")
    data = ("--beir", beir, "--split", "test")
    assert run(mine, *data, *search, "--format", form, "--output", output)[0] == 0
    lines = {"triplets": 20, "n-tuples": 10, "labelled-pairs": 20, "scored-lists": 10}[
        form
    ]  # 5 queries, 2 positives
    assert len(read(output)) == lines
    assert record_fields(open_records(str(output))).columns


def test_bad_data_is_refused_with_file_and_line(refused, files, beir, tmp_path):
    pytest.importorskip("bm25s")
    options, _, _ = files
    output = ("--output", tmp_path / "mined.jsonl")
    contents = {
        "no_text.jsonl": ('{"text": "x"}\n{"body": "y"}\n', "no_text.jsonl:2: no field 'text'"),
        "blank.jsonl": ('{"text": "x"}\n{"text": " "}\n', "blank.jsonl:2: empty passage"),
        "none.tsv": ("text\n", "none.tsv: empty"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_text(content)
        assert message in refused(mine, *options[:2], "--corpus", tmp_path / name, *output)
    assert "no such file" in refused(
        mine, *options[:2], "--corpus", tmp_path / "nothing.jsonl", *output
    )
    pairs = {
        "blank.csv": ('anchor,positive\n"two\nlines",\ny, \n', "blank.csv: no record is left"),
        "columns.tsv": ("text\nx\n", "columns.tsv: no pairs: found the fields text"),
        "changed.jsonl": (
            '{"anchor": "x", "positive": "y"}\n{"anchor": "x"}\n',
            "changed.jsonl:2: no field 'positive'",
        ),
    }
    for name, (content, message) in pairs.items():
        (tmp_path / name).write_text(content)
        assert message in refused(mine, "--pairs", tmp_path / name, *output)
    qrels = beir / "qrels" / "train.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\td99\t1\n")
    assert "train.tsv: none of the judged documents is in the corpus" in refused(
        mine, "--beir", beir, *output
    )
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    assert "no passage is judged relevant" in refused(mine, "--beir", beir, *output)
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n{"_id": "q0", "text": ""}\n')
    assert "queries.jsonl:2: empty text" in refused(mine, "--beir", beir, *output)


def test_if_nothing_is_left_nothing_is_written(refused, files, tmp_path):
    pytest.importorskip("bm25s")
    err = refused(mine, *files[0], "--output", tmp_path / "mined.jsonl", "--max-score", "-1")
    assert "none of 9 pairs has a negative" in err and "outside score_min" in err


def test_bad_usage_is_refused(refused, files, tmp_path):
    data, output = files[0], ("--output", tmp_path / "mined.jsonl")
    for options, message in (
        (("--strategy", "dence"), "did you mean 'dense'"),
        (("--strategy", "bm25,dense"), "needs --model"),
        (("--model", "some"), "--model goes with"),
        (
            ("--strategy", "dense", "--model", "some", "--index-factory", "Flat"),
            "--index-factory goes with",
        ),
        (
            ("--strategy", "bm25,dense", "--model", "some", "--format", "scored-lists"),
            "cross-encoder",
        ),
        (("--number", "0"), "number: expected 1 or more"),
        (("--rank-min", "100"), "no room"),
        (("--beir", "some"), "not allowed with"),
    ):
        assert message in refused(mine, *data, *output, *options)
    assert ".jsonl" in refused(mine, *data, "--output", tmp_path / "mined.tsv")
    assert "one of the arguments" in refused(mine, *output)
    assert "--beir has its own" in refused(mine, "--beir", "some", *data[2:], *output)


@pytest.mark.parametrize("strategy", [pytest.param("dense", marks=pytest.mark.slow), "bm25"])
def test_the_bench_measures_time_and_memory(strategy):
    pytest.importorskip("bm25s")
    options = {
        "model": None,
        "shape": "tiny",
        "on_disk": True,
        "block": 4,
        "rank_max": 10,
        "strategy": strategy,
    }
    result = bench_mining.measure_mining(queries=8, passages=2000, words=20.0, **options)
    assert result["corpus"] > 0 and result["mining"] > 0 and result["memory"] >= 0
    assert result["all similarities"] == 8 * 2000 * 4 / 2**20
    with pytest.raises(InputError, match="at most --passages 10"):
        bench.parse(["mining", "--queries", "100", "--passages", "10"])
