"""Readers of evaluation data: files of each format, data sets of the hub, and their errors."""

import gzip
import json

import pytest

from embed_jax.data.sources.tasks import (
    read_bitext,
    read_labelled_pairs,
    read_labelled_texts,
    read_reranking,
    read_summaries,
    read_text_sets,
)
from embed_jax.errors import InputError


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def file(tmp_path):
    """`file(content, name)` writes a file and returns its path."""

    def file(content, name="test.jsonl"):
        path = tmp_path / name
        (gzip.open if name.endswith(".gz") else open)(path, "wt").write(content)
        return str(path)

    return file


@pytest.fixture
def saved(tmp_path):
    """`saved(columns)` is a data set like one from the hub, with a split "test"."""
    datasets = pytest.importorskip("datasets")

    def saved(columns):
        directory = tmp_path / "saved"
        datasets.DatasetDict(test=datasets.Dataset.from_dict(columns)).save_to_disk(directory)
        return f"hf:{directory}"

    return saved


@pytest.mark.parametrize(
    "name, content",
    [
        ("test.tsv", "text\tlabel\tfine_label\na b\t1\tx\nc\t0\t y\n"),
        ("test.csv.gz", 'fine_label,label,text\nx,1,"a b"\ny,0,c\n'),
        (
            "test.jsonl",
            lines(
                {"text": "a b", "label": 1, "fine_label": "x"},
                {"text": "c", "label": 0, "fine_label": "y"},
            ),
        ),
    ],
)
def test_labelled_texts(name, content, file, tmp_path):
    path = file(content, name)
    for data, split in ((path, "whatever"), (str(tmp_path), "test")):
        assert read_labelled_texts(data, split) == (["a b", "c"], ["1", "0"])
        assert read_labelled_texts(data, split, "fine_label") == (["a b", "c"], ["x", "y"])
        assert read_text_sets(data, split, "fine_label") == ([["a b", "c"]], [[("x",), ("y",)]])


def test_sets_and_levels(file):
    sets = file(
        lines({"sentences": ["a", "b"], "labels": [0, 1]}, {"sentences": ["c"], "labels": ["x"]})
    )
    assert read_text_sets(sets, "test") == ([["a", "b"], ["c"]], [[("0",), ("1",)], [("x",)]])
    levels = file(
        lines(
            {"sentences": "a", "labels": ["math", "math.AG"]}, {"sentences": "b", "labels": ["cs"]}
        )
    )
    assert read_text_sets(levels, "test") == ([["a", "b"]], [[("math", "math.AG"), ("cs",)]])


def test_labelled_pairs_are_rows_or_lists(file):
    rows = [
        {"sentence1": "a", "sentence2": "b", "label": 1},
        {"sentence1": "c", "sentence2": "d", "label": "0"},
    ]
    expected = (["a", "c"], ["b", "d"], [1, 0])
    assert read_labelled_pairs(file(lines(*rows)), "test") == expected
    assert (
        read_labelled_pairs(
            file("label\tsentence1\tsentence2\n1.0\ta\tb\n0\tc\td\n", "x.tsv"), "test"
        )
        == expected
    )
    one_row = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "labels": [1, 0]}
    assert read_labelled_pairs(file(lines(one_row)), "test") == expected


def test_reranking_and_summaries(file):
    rows = [
        {"query": "q", "positive": ["p"], "negative": []},
        {"query": ["r", "s"], "positive": [], "negative": ["n"]},
    ]
    assert read_reranking(file(lines(*rows)), "test") == (
        [["q"], ["r", "s"]],
        [["p"], []],
        [[], ["n"]],
    )
    row = {
        "text": "t",
        "human_summaries": ["h"],
        "machine_summaries": ["m", "n"],
        "relevance": [1, 2.5],
        "more": None,
    }
    assert read_summaries(file(lines(row)), "test") == (["t"], [["h"]], [["m", "n"]], [[1.0, 2.5]])


def test_bitext_columns_by_name(file):
    path = file("id\tde\ten\n1\tja\tyes\n2\tnein\tno\n", "test.tsv")
    assert read_bitext(path, "test") == (["ja", "nein"], ["yes", "no"])
    assert read_bitext(path, "test", "en", "de") == (["yes", "no"], ["ja", "nein"])
    usual = file(lines({"lang": "de-en", "sentence1": "ja", "sentence2": "yes"}))
    assert read_bitext(usual, "test") == (["ja"], ["yes"])
    with pytest.raises(InputError, match=r"test\.tsv:2: no field 'fr': found id, de, en"):
        read_bitext(path, "test", "fr", "de")
    for names in (("de", ""), ("de", "de")):
        with pytest.raises(InputError, match="source, target: expected two names"):
            read_bitext(path, "test", *names)
    with pytest.raises(InputError, match=r"three\.tsv: expected two columns.*found a, b, c"):
        read_bitext(file("a\tb\tc\n1\t2\t3\n", "three.tsv"), "test")


def test_data_sets_of_the_hub(saved):
    assert read_labelled_texts(saved({"text": ["a", "b"], "label": [1, 0]}), "test") == (
        ["a", "b"],
        ["1", "0"],
    )
    assert read_text_sets(saved({"sentences": [["a", "b"]], "labels": [["x", "y"]]}), "test") == (
        [["a", "b"]],
        [[("x",), ("y",)]],
    )
    pairs = {"sentence1": [["a", "c"]], "sentence2": [["b", "d"]], "labels": [[1, 0]]}
    assert read_labelled_pairs(saved(pairs), "test") == (["a", "c"], ["b", "d"], [1, 0])
    twice = {
        "id": ["same", "same"],
        "query": ["q", "r"],
        "positive": [["p"], ["x"]],
        "negative": [["n"], []],
    }
    assert read_reranking(saved(twice), "test") == ([["q"], ["r"]], [["p"], ["x"]], [["n"], []])
    with pytest.raises(
        InputError, match="hf:.*saved, split 'test', record 0: no field 'label': found text"
    ):
        read_labelled_texts(saved({"text": ["a", "b"]}), "test")


PAIR = {"sentence1": "a", "sentence2": "b", "label": 1}
QUERY = {"query": "q", "positive": ["p"], "negative": ["n"]}
SUMMARY = {
    "text": "t",
    "human_summaries": ["h"],
    "machine_summaries": ["m", "n"],
    "relevance": [1, 2],
}


@pytest.mark.parametrize(
    "read, rows, message",
    [
        (read_labelled_texts, [], r"test\.jsonl: empty, no records in it"),
        (read_labelled_texts, [{"text": "a"}], ":1: no field 'label': found text"),
        (read_labelled_texts, [{"text": "a", "label": None}], ":1: no field 'label': found text"),
        (
            read_labelled_texts,
            [{"text": "a", "label": [1]}],
            r":1: field 'label': expected a "
            r"string or number.*\[1\]",
        ),
        (
            read_labelled_texts,
            [{"text": "a", "label": " "}],
            ":1: field 'label': expected a string or number",
        ),
        (
            read_labelled_texts,
            [{"text": 3, "label": 1}],
            ":1: field 'text': expected a string, found int 3",
        ),
        (read_labelled_texts, [{"text": " ", "label": 1}], "all of 1 texts are empty"),
        (
            read_labelled_texts,
            [{"text": "a", "label": 1, "id": 7}, {"text": "b", "label": 0, "id": 7}],
            ":2: the id '7' stands twice, also in line 1",
        ),
        (read_text_sets, [{"label": 1}], ":1: no field 'text' or 'sentences': found label"),
        (
            read_text_sets,
            [{"text": ["a"], "label": [1]}, {"text": "b", "label": 1}],
            ":2: field 'text': expected a li",
        ),
        (
            read_text_sets,
            [{"text": ["a"], "label": 1}],
            ":1: field 'label': expected a list, found int 1",
        ),
        (
            read_text_sets,
            [{"text": ["a", "b"], "labels": [1]}],
            ":1: field 'labels'.*found 2 and 1",
        ),
        (
            read_text_sets,
            [{"text": [], "labels": []}],
            ":1: field 'labels': expected as many as texts, 1 or more",
        ),
        (
            read_text_sets,
            [{"text": "a", "labels": []}],
            ":1: field 'labels': expected a label or more",
        ),
        (
            read_labelled_pairs,
            [PAIR, PAIR],
            r"test\.jsonl: expected labels 0 and 1, some of each, "
            r"found only {1}",
        ),
        (
            read_labelled_pairs,
            [PAIR, PAIR | {"label": 2}],
            ":2: field 'label': expected 0 or 1, found 2",
        ),
        (read_labelled_pairs, [PAIR | {"label": "yes"}], "expected 0 or 1, found 'yes'"),
        (read_labelled_pairs, [PAIR | {"label": 0.5}], "expected 0 or 1, found 0.5"),
        (
            read_labelled_pairs,
            [{name: [value] * 2 for name, value in PAIR.items()} | {"label": [1]}],
            r":1: field 'label': expected lists of one length, found lengths \[2, 2, 1\]",
        ),
        (
            read_reranking,
            [QUERY | {"positive": "p"}],
            ":1: field 'positive': expected a list, found str 'p'",
        ),
        (
            read_reranking,
            [QUERY | {"negative": ["a", 1]}],
            ":1: field 'negative'.*list of strings, found one with int",
        ),
        (read_reranking, [QUERY | {"query": []}], ":1: field 'query': expected a query or more"),
        (
            read_reranking,
            [QUERY | {"_id": "x"}, QUERY, QUERY | {"_id": "x"}],
            ":3: the id 'x' stands twice.*line 1",
        ),
        (
            read_summaries,
            [SUMMARY | {"relevance": [1]}],
            "expected a rating for each of 2 summaries, found 1",
        ),
        (
            read_summaries,
            [SUMMARY | {"relevance": [1, float("nan")]}],
            "expected finite numbers, found nan",
        ),
        (read_summaries, [SUMMARY | {"relevance": [1, "2"]}], "expected finite numbers, found '2'"),
        (
            read_summaries,
            [SUMMARY | {"human_summaries": []}],
            "field 'human_summaries': expected a summary or more",
        ),
        (
            read_summaries,
            [SUMMARY | {"machine_summaries": [], "relevance": []}],
            "field 'machine_summaries'",
        ),
        (read_summaries, [SUMMARY | {"text": None}], ":1: no field 'text'"),
    ],
)
def test_bad_records_are_one_line(read, rows, message, file):
    with pytest.raises(InputError, match=message) as error:
        read(file(lines(*rows)), "test")
    assert "\n" not in str(error.value)


def test_bad_files_are_one_line(file, tmp_path):
    cases = {
        "nowhere.tsv": "nowhere.tsv: no such file or directory; accepted beside them: tfds:NAME, "
        "hf:NAME",
        file("text\tlabel\n", "header.tsv"): "header.tsv: empty, no records in it",
        file("text\tlabel\na\n", "short.tsv"): "short.tsv:2: found 1 fields, expected 2",
        file("a text\n", "plain.txt"): "plain.txt:1: no field 'label': found text",
        file("{", "broken.jsonl"): "broken.jsonl:1: invalid JSON",
        file("a", "test.parquet"): "unknown file type; accepted are .jsonl",
        str(tmp_path): "found 0 files for the split 'test', expected one",
    }
    for data, message in cases.items():
        with pytest.raises(InputError, match=message.replace(".", r"\.")) as error:
            read_labelled_texts(data, "test")
        assert "\n" not in str(error.value)
