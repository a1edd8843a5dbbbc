"""Files are read as documented, and what is wrong with one is said in one line with its place."""

import gzip
import json

import pytest

from embed_jax.data.sources import (
    iter_records,
    open_records,
    open_retrieval_task,
    pair_columns,
    place_in_file,
    read_table,
    record_fields,
)
from embed_jax.data.sources.sts import read_sts
from embed_jax.errors import EmbedJaxWarning, InputError

PAIRS = [
    {"anchor": "a cat", "positive": "ein „Kater“, alt"},
    {"anchor": 'he said "no"', "positive": "  x  "},
    {"anchor": "?", "positive": "שלום"},
]
FORMATS = {
    ".jsonl": "\n".join(json.dumps(pair) for pair in PAIRS),
    ".tsv": "\n".join(["anchor\tpositive"] + ["\t".join(pair.values()) for pair in PAIRS]),
    ".csv": 'anchor,positive\na cat,"ein „Kater“, alt"\n"he said ""no""",  x  \n?,שלום',
}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_format_gives_the_same_records(tmp_path, ending, gz, end, mark):
    path = tmp_path / f"train{ending}{gz}"
    content = (mark + FORMATS[ending] + end).encode()
    path.write_bytes(gzip.compress(content) if gz else content)
    assert open_records(str(path)) == PAIRS
    assert list(iter_records(str(path))) == PAIRS
    assert open_records(str(tmp_path), "train") == PAIRS


def test_plain_text_is_one_sentence_a_line(tmp_path):
    (tmp_path / "wiki.txt").write_text("One, two.\n\tthree  \n")
    assert open_records(str(tmp_path / "wiki.txt")) == [
        {"text": "One, two."},
        {"text": "\tthree  "},
    ]


def test_csv_fields_may_hold_lines(tmp_path):
    (tmp_path / "a.csv").write_text('anchor,positive\n"a\n\nb",c\nd,e\n')
    assert [record["anchor"] for record in read_table(tmp_path / "a.csv")] == ["a\n\nb", "d"]


def test_negatives_in_every_spelling(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"negatives": ["n", "m"]},
        {"negative": "n"},
        {"negative_1": "n", "negative_2": None},
        {},
        {"negative": "n", "negatives": ["m"]},
    ]
    path.write_text("\n".join(json.dumps({"anchor": "a", "positive": "p"} | row) for row in rows))
    records = open_records(str(path))
    columns = pair_columns(records)
    texts = [
        ("a", "p", "n", "m"),
        ("a", "p", "n"),
        ("a", "p", "n"),
        ("a", "p"),
        ("a", "p", "n", "m"),
    ]
    assert [columns(record) for record in records] == texts
    (tmp_path / "a.tsv").write_text(
        'anchor\tpositive\tnegative\tnegatives\na\tp\t\t["n"]\na\tp\tn\t\n'
    )
    assert [columns(record) for record in open_records(str(tmp_path / "a.tsv"))] == [
        ("a", "p", "n")
    ] * 2


def test_pairs_by_other_names(tmp_path):
    (tmp_path / "a.tsv").write_text("score\tsentence1\tsentence2\n0.5\ta\tb\n")
    records = open_records(str(tmp_path / "a.tsv"))
    assert pair_columns(records)(records[0]) == ("a", "b")
    with pytest.raises(
        InputError, match="no pairs: found the fields text; accepted: anchor positive;"
    ):
        pair_columns([{"text": "a"}])


def test_json_values_and_fields_of_no_use(tmp_path):
    row = {
        "id": 7,
        "anchor": "a",
        "positive": "p",
        "score": 0.5,
        "label": 1,
        "meta": {"x": [1]},
        "group": None,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    expected = {"id": "7", "anchor": "a", "positive": "p", "score": 0.5, "label": 1}
    assert open_records(str(tmp_path / "a.jsonl")) == [expected]


LIST = {"query": "q", "passages": ["a", "b\tc"], "scores": [1, 0.25]}


def test_scored_lists_in_every_format(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(LIST | {"extra": ["x"]}))
    (tmp_path / "a.tsv").write_text('query\tpassages\tscores\nq\t["a", "b\\tc"]\t[1, 0.25]\n')
    (tmp_path / "a.csv").write_text('query,passages,scores\nq,"[""a"", ""b\\tc""]","[1, 0.25]"\n')
    for ending in ("jsonl", "tsv", "csv"):
        assert open_records(str(tmp_path / f"a.{ending}")) == [LIST]


def test_passages_without_scores_are_of_no_use(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"query": "q", "answer": "a", "passages": {"text": ["x"]}})
    )
    assert open_records(str(tmp_path / "a.jsonl")) == [{"query": "q", "answer": "a"}]


def test_an_index_without_a_name_and_a_comma_at_the_end(tmp_path):
    contents = {
        "index.csv": ",anchor,positive\n0,a,p\n1,b,q\n",  # DataFrame.to_csv
        "index.tsv": "\tanchor\tpositive\n0\ta\tp\n1\tb\tq\n",
        "comma.csv": "anchor,positive,\na,p,\nb,q,\n",
        "lines.csv": "anchor,positive\na,p,\nb,q,\n",
        "header.csv": "anchor,positive,\na,p\nb,q\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        pairs = [{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "q"}]
        assert open_records(str(tmp_path / name)) == pairs


def test_quotes_of_tsv(tmp_path):
    rows = ['"he said ""hi"""\tp', '"No," he said.\t"', 'a "b"\t"say ""x']
    (tmp_path / "a.tsv").write_text("\n".join(["anchor\tpositive", *rows]))
    assert [tuple(record.values()) for record in open_records(str(tmp_path / "a.tsv"))] == [
        ('he said "hi"', "p"),
        ('"No," he said.', '"'),
        ('a "b"', '"say ""x'),
    ]


def test_names_of_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("ID,Anchor, POSITIVE\n1,a,p\n")
    assert open_records(str(path)) == [{"id": "1", "anchor": "a", "positive": "p"}]
    path.write_text("id,Prompt,Completion,Bad\n1,a,p,n\n")
    with pytest.raises(InputError, match="name the columns with data.columns=ANCHOR,POSITIVE"):
        open_records(str(path))
    named = open_records(str(path), columns=["prompt", "completion", "bad"])
    assert named == [{"id": "1", "anchor": "a", "positive": "p", "negative_1": "n"}]
    assert list(iter_records(str(path), columns=["Bad"])) == [{"id": "1", "text": "n"}]
    with pytest.raises(InputError, match="a.csv:1: no field 'answer': found id, Prompt"):
        open_records(str(path), columns=["prompt", "answer"])


def test_what_is_left_out_is_counted_and_lines_stay_right(tmp_path):
    rows = [("a", "p", 1), ("b", "", 0), ("c", "q", -1), ("d", " ", 1), ("e", "r", 1)]
    names = ("question", "answer", "label")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    message = "3 of 5 records are left out: 2 with no text in 'answer', 1 with no gold label"
    with pytest.warns(UserWarning, match=message):
        records = open_records(str(tmp_path / "a.jsonl"))
    assert [record["question"] for record in records] == ["a", "e"]
    assert place_in_file(str(tmp_path / "a.jsonl"), "train", 1) == f"{tmp_path}/a.jsonl:5"
    (tmp_path / "b.txt").write_text("a\n\nb\n")
    with pytest.warns(UserWarning, match="1 of 3 records are left out"):
        assert open_records(str(tmp_path / "b.txt")) == [{"text": "a"}, {"text": "b"}]


def test_nan_is_missing_in_ids_groups_and_labels(tmp_path):
    row = {"anchor": "a", "positive": "p", "id": float("nan"), "group": float("nan")}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"label": float("nan")}))
    records = open_records(str(tmp_path / "a.jsonl"))
    assert records == [{"anchor": "a", "positive": "p"}]
    assert record_fields([row | {"label": None}]).keys is None


def test_sts(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "score\tsentence1\tsentence2\tsubset\n5\ta\tb\tnews\n0.25\tc\td\timages\n"
    )
    assert read_sts(tmp_path / "a.tsv") == (["a", "c"], ["b", "d"], [5.0, 0.25], ["news", "images"])
    (tmp_path / "b.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\n")
    assert read_sts(tmp_path / "b.tsv") == (["a"], ["b"], [1.0], [""])


BAD = {
    "fields.tsv": (
        b"anchor\tpositive\na\tb\na\n",
        ":3: found 1 fields, expected 2: anchor, positive",
    ),
    "more.tsv": (b"anchor\tpositive\na\tb\tc\n", ":2: found 3 fields, expected 2"),
    "fields.csv": (b"anchor,positive\na,b,c\n", ":2: found 3 fields, expected 2"),
    "quote.csv": (b'anchor,positive\na,"b\n', ":2: invalid CSV"),
    "header.tsv": (
        b"ancor\tpositive\na\tb\n",
        ":1: unknown fields: found ancor, positive; accepted: anchor positive;",
    ),
    "same.tsv": (b"anchor\tanchor\na\tb\n", ":1: the header's names must be different"),
    "utf8.tsv": (b"anchor\tpositive\na\tb\nc\t\xff\n", ":3: invalid UTF-8 (byte 3 of the line)"),
    "utf8.txt": (b"a\n\xe9t\xe9\n", ":2: invalid UTF-8"),
    "empty.tsv": (b"", ": empty"),
    "only_header.csv": (b"anchor,positive\n", ": empty"),
    "empty.jsonl": (b"\n\n", ": empty"),
    "blank.tsv": (b"anchor\tpositive\na\tb\n\na\tb\n", ":3: blank line"),
    "texts.tsv": (
        b"anchor\tpositive\n\t\n \t\n",
        ": no record is left, 2 of 2 records are left out: 2 with no text in 'anchor'",
    ),
    "cut.txt.gz": (
        gzip.compress(b"a\n" * 5000 + bytes(range(97, 120)) * 50)[:-20],
        "damaged or cut-off gzip data",
    ),
    "not.tsv.gz": (b"anchor\tpositive\n", ":1: damaged or cut-off gzip data"),
    "json.jsonl": (b'{"anchor": "a", "positive": "b"}\n{"anchor": \n', ":2: invalid JSON"),
    "list.jsonl": (b"[1]\n", ":1: expected a JSON object, found list"),
    "type.jsonl": (
        b'{"anchor": "a", "positive": 3}\n',
        ":1: field 'positive' must be a string, found int",
    ),
    "lacks.jsonl": (
        b'{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n',
        ":2: no field 'positive': found anchor; accepted: anchor positive",
    ),
    "surrogate.jsonl": (
        b'{"anchor": "\\ud800", "positive": "b"}\n',
        ":1: '\\ud800' is half of a surrogate pair, which is no text",
    ),
    "negatives.jsonl": (
        b'{"anchor": "a", "positive": "b", "negatives": ["c", 1]}\n',
        ":1: field 'negatives' must be",
    ),
    "negatives.tsv": (
        b"anchor\tpositive\tnegatives\na\tb\t[c]\n",
        ":2: field 'negatives' must be a JSON list",
    ),
    "passages.jsonl": (
        b'{"query": "q", "passages": ["a", 1], "scores": [1, 2]}\n',
        ":1: field 'passages' must be a JSON",
    ),
    "scores.jsonl": (
        b'{"query": "q", "passages": ["a"], "scores": [NaN]}\n',
        ":1: field 'scores' must be a JSON list of f",
    ),
    "scores.tsv": (
        b"query\tpassages\tscores\nq\t[]\t1,2\n",
        ":2: field 'scores' must be a JSON list of finite",
    ),
    "fewer.jsonl": (
        b'{"query": "q", "passages": ["a", "b"], "scores": [1]}\n',
        ":1: found 2 passages and 1 scores, expected as many, and at least one",
    ),
    "none.tsv": (b"query\tpassages\tscores\nq\t[]\t[]\n", ":2: found 0 passages and 0 scores"),
    "score.tsv": (
        b"score\tsentence1\tsentence2\n1\ta\tb\nx\ta\tb\n",
        ":3: score: expected a finite number, found 'x'",
    ),
    "infinite.jsonl": (
        b'{"anchor": "a", "positive": "b", "score": Infinity}\n',
        ":1: score: expected a finite number",
    ),
    "infinite.csv": (
        b"sentence1,sentence2,score\na,b,inf\n",
        ":2: score: expected a finite number, found 'inf'",
    ),
    "table.parquet": (b"PAR1", ": unknown file type; accepted are .jsonl, .tsv, .csv, .txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_records(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_splits_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="gone.tsv: no such file"):
        open_records(str(tmp_path / "gone.tsv"))
    (tmp_path / "dev.tsv").write_text("anchor\tpositive\na\tb\n")
    with pytest.raises(
        InputError, match="found 0 files for the split 'train', expected one; there are dev.tsv"
    ):
        open_records(str(tmp_path), "train")
    with pytest.raises(InputError, match="has no split 'validation'"):
        open_records(str(tmp_path / "dev.tsv"), "validation")
    with pytest.raises(InputError, match="sentence1"):
        read_sts(tmp_path / "dev.tsv")


# ---- BEIR ----------------------------------------------------------------------------------------

CORPUS = (
    '{"_id": "d1", "title": "T", "text": "one", "metadata": {}}\n'
    '{"_id": "d2", "title": "", "text": "two"}\n'
)
QUERIES = '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "unjudged"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n"


@pytest.fixture
def beir(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(CORPUS.encode()))
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def test_beir(beir):
    expected = {"d1": "T one", "d2": "two"}, {"q1": "first"}, {"q1": {"d1": 2, "d2": 0}}
    assert open_retrieval_task(str(beir), "test") == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\tnone\t1\n",
            "test.tsv: none of the judged documents is in the corpus, such as 'none'",
        ),
        (
            "qrels/test.tsv",
            QRELS + "q9\td1\t1\n",
            "test.tsv:4: the id 'q9' is not in queries.jsonl",
        ),
        (
            "qrels/test.tsv",
            QRELS + "q1\td1\t1\n",
            "test.tsv:4: query 'q1' and document 'd1' are judged twice, 2 and 1",
        ),
        (
            "qrels/test.tsv",
            QRELS + "q2\td1\t0.5\n",
            "test.tsv:4: score: expected an integer, found '0.5'",
        ),
        (
            "qrels/test.tsv",
            "q1\t0\td1\t1\nq1\t0\td2\t1\n",
            "test.tsv:1: found the columns q1, 0, d1, 1; accepted",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv: empty"),
        ("queries.jsonl", QUERIES + '{"_id": "q3"}\n', "queries.jsonl:3: no field 'text'"),
        (
            "queries.jsonl",
            QUERIES + '{"_id": 3.5, "text": "a"}\n',
            "queries.jsonl:3: field '_id' must be a string or an integer, found float",
        ),
        (
            "queries.jsonl",
            QUERIES + QUERIES.replace("first", "second"),
            "queries.jsonl:3: the id 'q1' stands twice, with different texts",
        ),
    ],
)
def test_beir_errors_name_file_and_line(beir, file, content, message):
    (beir / file).write_text(content)
    with pytest.raises(InputError) as caught:
        open_retrieval_task(str(beir), "test")
    assert message in str(caught.value)


def test_beir_takes_judgements_as_benchmarks_hand_them_out(tmp_path):
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": 1, "title": "T", "text": "one"}, {"_id": "2", "text": "two"}]
    lines = [json.dumps(document) + "\n" for document in [*documents, documents[0]]]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    (tmp_path / "queries.jsonl").write_text('{"_id": 7, "text": "first"}\n')
    judged = ["7\t1\t2", "7\t2\t-1", "7\t1\t2", "7\tgone\t1", "7\tlost\t-2"]
    header = "query-id\tcorpus-id\tscore"
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join([header, *judged]) + "\n")
    with pytest.warns(EmbedJaxWarning) as caught:
        corpus, queries, qrels = open_retrieval_task(str(tmp_path), "test")
    assert corpus == {"1": "T one", "2": "two"} and queries == {"7": "first"}
    assert qrels == {"7": {"1": 2, "2": -1, "gone": 1, "lost": -2}}
    (warning,) = caught
    counts = (
        "1 documents listed twice, 1 judgements listed twice, 2 grades below 0, not relevant, "
        "2 judged documents that aren't in the corpus; scores are those of trec_eval"
    )
    assert counts in str(warning.message)
    pairs = open_records(f"beir:{tmp_path}", "test")
    assert pairs == [{"anchor": "first", "positive": "T one", "group": "7"}]


def test_integer_ids_of_the_hub_are_strings(tmp_path):
    files = {
        "corpus": [{"_id": 1, "title": "T", "text": "one"}, {"_id": 2, "title": "", "text": "two"}],
        "queries": [{"_id": 7, "text": "first"}],
        "test": [{"query-id": 7, "corpus-id": 1, "score": 2}],
    }
    config = ["---", "configs:"]
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config += [f"- config_name: {'default' if name == 'test' else name}", "  data_files:"]
        config += [f"  - split: {name}", f"    path: {name}.jsonl"]
    (tmp_path / "README.md").write_text("\n".join([*config, "---", ""]))
    corpus, queries, qrels = open_retrieval_task(f"hf:{tmp_path}", "test")
    assert (corpus, queries) == ({"1": "T one", "2": "two"}, {"7": "first"})
    assert qrels == {"7": {"1": 2}}


def test_beir_calls_the_validation_split_dev(beir):
    qrels, expected = beir / "qrels", open_retrieval_task(str(beir), "test")
    (qrels / "test.tsv").rename(qrels / "dev.tsv")
    assert open_retrieval_task(str(beir), "validation") == expected
    (qrels / "validation.tsv").write_text("")  # a file of that name comes first
    with pytest.raises(InputError, match="validation.tsv: empty"):
        open_retrieval_task(str(beir), "validation")


def test_beir_lists_the_splits_there_are(beir):
    with pytest.raises(InputError, match="dev.tsv: no such file; there are the splits test"):
        open_retrieval_task(str(beir), "dev")
    with pytest.raises(InputError, match="BEIR's layout"):
        open_retrieval_task(str(beir / "gone"), "test")
