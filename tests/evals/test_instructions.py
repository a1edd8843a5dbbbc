import json

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.instructions import open_task, p_mrr

QUERIES, DOCUMENTS = [f"q{n}" for n in range(6)], [f"d{n}" for n in range(30)]


@pytest.fixture(scope="module")
def made():
    """Corpus, queries with two instructions, graded judgements under each, candidates."""
    rng = np.random.default_rng(0)

    def words(count):
        return " ".join(f"w{n}" for n in rng.integers(12, size=count))

    corpus = {document: words(6) for document in DOCUMENTS}
    queries = {
        query: {"text": words(3), "instruction": words(2), "changed_instruction": words(3)}
        for query in QUERIES
    }
    original = {
        query: {
            str(document): int(rng.integers(3))
            for document in rng.choice(DOCUMENTS, size=12, replace=False)
        }
        for query in QUERIES
    }
    changed = {
        query: {document: 0 if rng.random() < 0.5 else grade for document, grade in judged.items()}
        for query, judged in original.items()
    }
    changed["q4"] = original["q4"]  # nothing is excluded
    candidates = {query: sorted({*judged, *DOCUMENTS[:15]}) for query, judged in original.items()}
    return corpus, queries, original, changed, candidates


def excluded_of(original, changed):
    result = {
        q: [d for d, grade in original[q].items() if grade and not changed[q].get(d)]
        for q in original
    }
    return {query: documents for query, documents in result.items() if documents}


@pytest.fixture
def directory(made, tmp_path):
    corpus, queries, original, changed, candidates = made

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("corpus.jsonl", [{"_id": name, "text": text} for name, text in corpus.items()])
    write("queries.jsonl", [{"_id": name, **fields} for name, fields in queries.items()])
    write(
        "candidates.jsonl",
        [{"_id": name, "documents": listed} for name, listed in candidates.items()],
    )
    (tmp_path / "qrels").mkdir()
    for name, qrels in (("test", original), ("test_changed", changed)):
        rows = [f"{q}\t{d}\t{grade}" for q, judged in qrels.items() for d, grade in judged.items()]
        (tmp_path / "qrels" / f"{name}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
        )
    return tmp_path


def test_p_mrr_equals_mtebs():
    reference = pytest.importorskip("mteb._evaluators.retrieval_metrics").calculate_pmrr
    rng = np.random.default_rng(0)
    for _ in range(20):
        runs = [
            {
                query: {
                    str(document): int(rng.integers(8)) / 4
                    for document in rng.choice(DOCUMENTS, size=20, replace=False)
                }
                for query in QUERIES
            }
            for _ in range(2)
        ]
        excluded = {
            query: rng.choice(DOCUMENTS, size=rng.integers(1, 6), replace=False).tolist()
            for query in QUERIES
        }
        named = [
            {q + end: run[q] for q in run}
            for run, end in zip(runs, ("-og", "-changed"), strict=True)
        ]
        ordered = [
            {
                query: dict(sorted(scores.items(), key=lambda x: (x[1], x[0]), reverse=True))
                for query, scores in run.items()
            }
            for run in runs
        ]
        result = p_mrr(*ordered, excluded)
        assert list(result) == QUERIES
        assert np.mean(list(result.values())) == pytest.approx(
            reference(*named, excluded), abs=1e-9
        )


def test_p_mrr_by_hand():
    before, after = {"q": dict.fromkeys("abcd", 0.0)}, {"q": dict.fromkeys("dbac", 0.0)}
    expected = {"a": 1 - 1 / 3, "b": 0.0, "c": 1 - 3 / 4, "d": 1 / 4 - 1, "unknown": 0.0}
    for document, value in expected.items():
        assert p_mrr(before, after, {"q": [document]}) == {"q": pytest.approx(value)}
    assert p_mrr(before, after, {"q": list(expected)})["q"] == pytest.approx(
        np.mean(list(expected.values()))
    )
    assert p_mrr(after, before, {"q": ["a"]}) == {"q": pytest.approx(-(1 - 1 / 3))}, (
        "the other way round"
    )


@pytest.mark.parametrize("reranked", [True, False])
def test_all_metrics_equal_mtebs(made, directory, recorded, encode, reranked):
    scores_of = pytest.importorskip("mteb._evaluators.retrieval_metrics").evaluate_p_mrr_change
    corpus, queries, original, changed, candidates = made
    if not reranked:
        (directory / "candidates.jsonl").unlink()
    task = open_task(str(directory), name="Core17", similarity="dot")
    kind = "InstructionReranking" if reranked else "InstructionRetrieval"
    excluded = excluded_of(original, changed)
    assert (task.kind, task.unit, len(task.item_texts)) == (kind, "queries", len(excluded))
    assert len(excluded) == 5
    outcome = task.evaluate(recorded)
    assert recorded.uses == {("Core17", kind, side, "") for side in ("query", "document")}
    results, qrels = {}, {}
    documents = dict(zip(corpus, encode(list(corpus.values())), strict=True))
    for end, field, judged in (
        ("og", "instruction", original),
        ("changed", "changed_instruction", changed),
    ):
        for query in QUERIES:
            (vector,) = encode([f"{queries[query]['text']} {queries[query][field]}"])
            ranked = candidates[query] if reranked else DOCUMENTS
            results[f"{query}-{end}"] = {
                document: float(documents[document] @ vector) for document in ranked
            }
            qrels[f"{query}-{end}"] = judged[query]
    reference = scores_of(qrels, results, excluded, (1, 5, 1000))
    expected = {"p-MRR": reference["p-MRR"]}
    for end, suffix in (("og", ""), ("changed", "_changed")):
        expected |= {f"{ours}{suffix}": reference[end][name] for ours, name in
                     {"ndcg@5": "ndcg_at_5", "map@1000": "map_at_1000"}.items()}  # fmt: skip
    assert set(outcome.metrics) == set(expected) == set(outcome.intervals)
    for name, value in expected.items():
        assert outcome.metrics[name] == pytest.approx(value, abs=1e-5), (
            name
        )  # they round to 5 digits
    assert outcome.main == "p-MRR" and outcome.score == outcome.items.score() != 0
    assert len(outcome.items) == 5 and task.item_texts[0] == tuple(
        f"{queries['q0']['text']} {queries['q0'][field]}"
        for field in ("instruction", "changed_instruction")
    )


def test_a_model_that_reads_instructions_scores_above_one_that_does_not(directory, made, encode):
    """q: "apple ..."; its changed instruction excludes documents with the word "old"."""
    rows = [{"_id": f"d{n}", "text": f"apple {'old' if n % 2 else 'new'} w{n}"} for n in range(10)]
    (directory / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    query = {"_id": "q", "text": "apple", "instruction": "any", "changed_instruction": "not-old"}
    (directory / "queries.jsonl").write_text(json.dumps(query) + "\n")
    (directory / "candidates.jsonl").unlink()
    for name, grades in (("test", [1] * 10), ("test_changed", [1, 0] * 5)):
        rows = [f"q\td{n}\t{grade}" for n, grade in enumerate(grades)]
        (directory / "qrels" / f"{name}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
        )

    def model(weight):
        def embed(texts, use):
            sign = np.array(
                [[-1.0 if "not-old" in text else float("old" in text.split())] for text in texts]
            )
            return np.concatenate([encode(["apple"] * len(texts)), weight * sign], axis=1)

        embed.similarity = "dot"
        return embed

    scores = {
        weight: open_task(str(directory)).evaluate(model(weight)).metrics for weight in (0.0, 1.0)
    }
    assert scores[0.0]["p-MRR"] == 0
    assert scores[1.0]["p-MRR"] > 0.3 and scores[1.0]["ndcg@5_changed"] == 1.0


def test_the_hubs_layout_is_the_same_task(made, directory, recorded, tmp_path):
    corpus, queries, original, changed, candidates = made
    copy = tmp_path / "copy"
    copy.mkdir()
    ends = {"og": ("instruction", original), "changed": ("changed_instruction", changed)}
    files = {
        "corpus": [{"_id": name, "title": "", "text": text} for name, text in corpus.items()],
        "queries": [
            {"_id": f"{q}-{end}", "text": queries[q]["text"]} for end in ends for q in queries
        ],
        "instruction": [
            {"query-id": f"{q}-{end}", "instruction": queries[q][field]}
            for end, (field, _) in ends.items()
            for q in queries
        ],
        "test": [
            {"query-id": f"{q}-{end}", "corpus-id": document, "score": grade}
            for end, (_, qrels) in ends.items()
            for q in qrels
            for document, grade in qrels[q].items()
        ],
        "qrel_diff": [
            {"query-id": q, "corpus-ids": result}
            for q, result in excluded_of(original, changed).items()
        ],
        "top_ranked": [
            {"query-id": f"{q}-{end}", "corpus-ids": candidates[q]} for end in ends for q in queries
        ],
    }
    config = ["---", "configs:"]
    for name, rows in files.items():
        (copy / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config += [f"- config_name: {'default' if name == 'test' else name}", "  data_files:"]
        config += [f"  - split: {name}", f"    path: {name}.jsonl"]
    (copy / "README.md").write_text("\n".join([*config, "---", ""]))
    hub, files = open_task(f"hf:{copy}", name="made"), open_task(str(directory), name="made")
    assert hub.item_texts == files.item_texts and hub.kind == files.kind
    assert hub.evaluate(recorded).metrics == files.evaluate(recorded).metrics


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        (
            "queries.jsonl",
            '"changed_instruction"',
            '"other"',
            "queries.jsonl:1: no field 'changed_instruction'",
        ),
        ("qrels/test_changed.tsv", "q3\t", "q2\t", "judged twice"),
        ("candidates.jsonl", '"q3"', '"q9"', "candidates: the query 'q3' has none"),
        (
            "candidates.jsonl",
            '"d1"',
            '"d99"',
            "candidates: 'd99', of query 'q0', is not in the corpus",
        ),
    ],
)
def test_bad_data_is_one_line(directory, file, old, new, message):
    path = directory / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        open_task(str(directory))
    assert "\n" not in str(error.value)


def test_judgements_must_differ_and_be_of_the_same_queries(directory):
    changed = directory / "qrels" / "test_changed.tsv"
    changed.write_text((directory / "qrels" / "test.tsv").read_text())
    with pytest.raises(
        InputError,
        match="no document is relevant by an original instruction and not by the changed",
    ):
        open_task(str(directory))
    changed.write_text(
        "".join(line for line in changed.read_text().splitlines(True) if not line.startswith("q3"))
    )
    with pytest.raises(
        InputError, match="the query 'q3' has no judgements for its changed instruction"
    ):
        open_task(str(directory))
    changed.unlink()
    with pytest.raises(InputError, match="test_changed.tsv: no such file"):
        open_task(str(directory))
    with pytest.raises(InputError, match="unknown similarity 'cosin' .did you mean 'cosine'"):
        open_task(str(directory), similarity="cosin")
