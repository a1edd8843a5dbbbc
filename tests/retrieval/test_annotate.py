import gzip
import itertools
import json
import zlib

import numpy as np
import pytest

from embed_jax.data.sources import open_records, record_fields
from embed_jax.data.sources.trec import read_trec_run, write_trec_run
from embed_jax.errors import InputError, RunError
from embed_jax.retrieval.annotate import (
    SCORED_FORMS,
    PassageList,
    RunLists,
    ScoreStore,
    in_blocks,
    read_score_file,
    record_lists,
    score_missing,
    scored_lists,
    similarity_scorer,
    teacher_margin,
)

TEACHER = {"kind": "test", "files": "0"}
RECORDS = [
    {
        "anchor": f"query {n // 2}",
        "positive": f"passage {n}",
        "negative_1": f"passage {n + 1}",
        "negative_2": f"passage {(n * 7) % 5}",
        "id": f"i{n}",
    }
    for n in range(12)
]


def value(query, passage):
    return float(np.float32(zlib.crc32(f"{query}|{passage}".encode()) / 2**31 - 1))


class Scorer:
    """Scores pairs by their texts, notes them, and stops before block number `stop`."""

    def __init__(self, stop=-1):
        self.pairs, self.blocks, self.stop = [], 0, stop

    def __call__(self, queries, passages):
        if self.blocks == self.stop:
            raise KeyboardInterrupt
        self.blocks += 1
        # As with a model, the last bits depend on what else is in the block.
        noise = 1e-6 * (zlib.crc32("".join(passages).encode()) % 7)
        self.pairs += zip(queries, passages, strict=True)
        pairs = zip(queries, passages, strict=True)
        return np.array([value(*pair) + noise for pair in pairs], np.float32)


def annotate(path, scorer, records=RECORDS, block=4, teacher=TEACHER):
    lists = record_lists(records)
    with ScoreStore(path, teacher) as store:
        score_missing(lists, store, in_blocks(scorer, block))
        store.sort()
        return list(scored_lists(lists, store))


def test_each_pair_is_scored_once_and_each_list_gets_its_scores(tmp_path):
    scorer = Scorer()
    lists = annotate(tmp_path / "s.jsonl", scorer)
    expected = {
        (record["anchor"], record[name])
        for record in RECORDS
        for name in ("positive", "negative_1", "negative_2")
    }
    assert sorted(scorer.pairs) == sorted(expected) and len(expected) < 36
    for record, (passage_list, scores) in zip(RECORDS, lists, strict=True):
        texts = [record[name] for name in ("positive", "negative_1", "negative_2")]
        assert passage_list.passages == texts
        np.testing.assert_allclose(
            scores, [value(record["anchor"], text) for text in texts], atol=1e-5
        )
    stored = read_score_file(tmp_path / "s.jsonl")
    assert len(stored) == len(expected) and stored.teacher == TEACHER
    for passage_list, scores in lists:
        queries = [passage_list.query] * len(scores)
        assert stored(queries, passage_list.passages).tolist() == np.float32(scores).tolist()
    with pytest.raises(InputError, match="no score of the query 'query 0' and the passage 'x'"):
        stored(["query 0"], ["x"])


def test_stopped_before_any_block_it_ends_with_the_same_bytes(tmp_path):
    """An interrupted block leaves nothing; no pair whose score was written is scored again."""
    whole = Scorer()
    expected = annotate(tmp_path / "whole.jsonl", whole)
    for stop in range(whole.blocks):
        path, first, second = tmp_path / f"{stop}.jsonl", Scorer(stop), Scorer()
        with pytest.raises(KeyboardInterrupt):
            annotate(path, first)
        assert path.exists() == (stop > 0)
        assert annotate(path, second) == expected
        assert first.pairs + second.pairs == whole.pairs
        assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_cut_off_anywhere_it_ends_with_the_same_bytes(tmp_path):
    whole, path = Scorer(), tmp_path / "s.jsonl"
    annotate(tmp_path / "whole.jsonl", whole)
    with pytest.raises(KeyboardInterrupt):
        annotate(path, Scorer(stop=3))
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in [*range(0, len(content), 17), *ends, *(end - 1 for end in ends)]:
        path.write_bytes(content[:cut])
        scorer = Scorer()
        annotate(path, scorer)
        blocks = max(sum(end <= cut for end in ends) - 1, 0)  # the first line is the teacher
        assert scorer.pairs == whole.pairs[4 * blocks :]
        assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_depends_on_the_pairs_not_on_their_order(tmp_path):
    """Shortlists in any order, one by one or together, give one file; nothing is scored twice."""

    def exact(queries, passages):
        return np.array([value(*pair) for pair in zip(queries, passages, strict=True)])

    contents = set()
    for number, order in enumerate(itertools.permutations(range(3))):
        for record in order:
            annotate(tmp_path / f"{number}.jsonl", exact, RECORDS[record : record + 3])
        contents.add((tmp_path / f"{number}.jsonl").read_bytes())
    annotate(tmp_path / "all.jsonl", exact, RECORDS[:5])
    assert contents == {(tmp_path / "all.jsonl").read_bytes()}
    scorer = Scorer()
    annotate(tmp_path / "all.jsonl", scorer, RECORDS[1:4])
    assert not scorer.pairs


def test_another_teacher_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "s.jsonl"
    annotate(path, Scorer())
    before = path.read_bytes()
    for teacher, message in (
        ({**TEACHER, "files": "1"}, "files was '0', is '1'"),
        ({**TEACHER, "max_length": 64}, "max_length was None, is 64"),
        ({"kind": "test"}, "files was '0', is None"),
    ):
        with pytest.raises(InputError, match=f"scores of another teacher.*{message}"):
            annotate(path, Scorer(), teacher=teacher)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (0, "1: not a score file"),
        (1, "2: damaged; take the line out"),
        (2, "3: damaged; take the line out"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, line, message):
    path = tmp_path / "s.jsonl"
    annotate(path, Scorer())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line][:9] + b"\0" + lines[line][10:]
    path.write_bytes(b"".join(lines))
    for use in (lambda: annotate(path, Scorer()), lambda: read_score_file(path)):
        with pytest.raises(InputError, match=message):
            use()
    assert path.read_bytes() == b"".join(lines)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"}\n')
    for use in (lambda: annotate(path, Scorer()), lambda: read_score_file(path)):
        with pytest.raises(InputError, match="s.jsonl:1: not a score file"):
            use()
    path.write_text("")
    with pytest.raises(InputError, match="empty, no scores in it"):
        read_score_file(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_score_file(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        ScoreStore(tmp_path / "nowhere" / "s.jsonl", TEACHER)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "s.jsonl"
    with ScoreStore(path, TEACHER), pytest.raises(InputError, match="in use"):
        ScoreStore(path, TEACHER)
    assert not path.exists()


def test_scores_that_cannot_be(tmp_path):
    path = tmp_path / "s.jsonl"
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(RunError, match="no finite score for 'query 0' and 'passage 1'"):
            annotate(path, lambda queries, passages, bad=bad: np.array([0.5, bad]), block=2)
        assert not path.exists()
    with pytest.raises(InputError, match=r"found the shape \[4, 2\]: does the model have several"):
        annotate(path, lambda queries, passages: np.zeros((len(queries), 2)))
    with pytest.raises(InputError, match="block: expected 1 or more"):
        in_blocks(Scorer(), 0)


@pytest.mark.parametrize(
    ("record", "passages", "relevant"),
    [
        ({"anchor": "q", "positive": "a"}, ["a"], [True]),
        ({"anchor": "q", "positive": "a", "negative": "b"}, ["a", "b"], [True, False]),
        (
            {"query": "q", "answer": "a", "negatives": ["b", "c"]},
            ["a", "b", "c"],
            [True, False, False],
        ),
        ({"sentence1": "q", "sentence2": "a", "label": 0}, ["a"], [False]),
        ({"sentence1": "q", "sentence2": "a", "label": 1}, ["a"], [True]),
        ({"premise": "q", "hypothesis": "a", "label": "entailment"}, ["a"], [True]),
        ({"premise": "q", "hypothesis": "a", "label": 2}, ["a"], [False]),
        ({"query": "q", "passages": ["a", "b"], "scores": [1, 2]}, ["a", "b"], [True, False]),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"id": "7", "group": "g"}])
def test_every_form_of_records_is_a_list(tmp_path, record, passages, relevant, keys):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record | keys) + "\n")
    (passage_list,) = record_lists(open_records(str(path)))
    assert passage_list == PassageList("q", passages, relevant, keys)


def test_single_texts_are_no_lists():
    with pytest.raises(InputError, match="expected a query and passages, found the fields text"):
        record_lists([{"text": "a", "label": 1}])


@pytest.mark.parametrize("form", list(SCORED_FORMS))
def test_training_reads_the_scores(tmp_path, form):
    lists = annotate(tmp_path / "s.jsonl", Scorer())
    records = [record for item in lists for record in SCORED_FORMS[form](*item)]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    read = open_records(str(path))
    fields = record_fields(read)
    scores = [score for record in read for score in fields.score(record)]
    assert scores == [score for _, list_scores in lists for score in list_scores]
    assert len(read) == (12 if form == "scored-lists" else 36)
    assert fields.keys(read[0]) == ("i0",)
    # Scored lists are scored anew from the file: the same pairs, so nothing is left to do.
    scorer = Scorer()
    annotate(tmp_path / "s.jsonl", scorer, read)
    assert not scorer.pairs


def test_a_margin_is_that_of_the_worst_pair():
    def margin(relevant, scores):
        return teacher_margin(PassageList("q", ["p"] * len(scores), relevant), scores)

    assert margin([True, False, False], [2.0, 0.5, 1.5]) == 0.5
    assert margin([True, False, True], [2.0, 1.0, 0.0]) == -1.0
    assert margin([True], [2.0]) == np.inf
    assert margin([False], [2.0]) == -np.inf


def test_an_embedding_model_embeds_each_text_of_a_call_once():
    texts = []

    def encode(batch):
        texts.append(batch)
        return np.array([[len(text), 1.0] for text in batch])

    score = similarity_scorer(encode, encode, lambda a, b: (a * b).sum(1))
    assert score(["q", "q", "long"], ["a", "bcd", "a"]).tolist() == [2.0, 4.0, 5.0]
    assert texts == [["q", "long"], ["a", "bcd"]]


# ---- runs ----------------------------------------------------------------------------------------

CORPUS = {f"d{n}": f"text {n}" for n in range(6)}
QUERIES = {"q1": "one", "q2": "two", "q3": "three"}
QRELS = {"q1": {"d0": 2, "d4": 1, "d1": 0, "gone": 1}, "q2": {"d5": 1}}


def test_the_lists_of_runs_are_their_union():
    runs = [
        {"q1": {"d1": 3.0, "d0": 2.0}, "q2": {"d5": 1.0}},
        {"q3": {"d2": 1.0}, "q1": {"d0": 9.0, "d3": 8.0}},
    ]
    first, second, third = RunLists(CORPUS, QUERIES, QRELS, runs)
    carried = {"id": "q1", "passage_ids": ["d1", "d0", "d3"]}
    assert first == PassageList(
        "one", ["text 1", "text 0", "text 3"], [False, True, False], carried
    )
    assert (second.query, third.query, third.relevant) == ("two", "three", [False])
    first, *_ = RunLists(CORPUS, QUERIES, QRELS, runs, with_relevant=True)
    assert first.carried["passage_ids"] == ["d1", "d0", "d3", "d4"]
    for run, message in (
        ({"q9": {"d1": 1.0}}, "the query 'q9'"),
        ({"q1": {"d9": 1.0}}, "the document 'd9' that a run has for the query 'q1'"),
    ):
        with pytest.raises(InputError, match=message):
            RunLists(CORPUS, QUERIES, QRELS, [run])


def test_a_run_is_ordered_by_scores_as_in_trec_eval(tmp_path):
    path = tmp_path / "run.trec"
    text = "b Q0 d1 1 0.5 tag\na Q0 d2 1 7 tag\nb\tQ0\td3\t2\t0.5\ttag\n\nb Q0 d2 3 1e1 tag\n"
    path.write_text(text)
    expected = {"b": {"d2": 10.0, "d3": 0.5, "d1": 0.5}, "a": {"d2": 7.0}}
    run = read_trec_run(path)
    assert [(name, list(run[name].items())) for name in run] == [
        (name, list(documents.items())) for name, documents in expected.items()
    ]
    assert read_trec_run(path, depth=1) == {"b": {"d2": 10.0}, "a": {"d2": 7.0}}
    with gzip.open(tmp_path / "run.gz", "wt") as file:
        file.write(text)
    assert read_trec_run(tmp_path / "run.gz") == run


def test_a_written_run_is_read_back(tmp_path):
    run = {"b": {"d2": 10.0, "d3": 0.1, "d1": 1e-9}, "a": {"d2": -7.25}}
    write_trec_run(tmp_path / "run", run, "tag")
    assert read_trec_run(tmp_path / "run") == run
    with pytest.raises(
        InputError, match="expected ids and a tag without blanks, found 'two words'"
    ):
        write_trec_run(tmp_path / "bad", {"two words": {"d": 1.0}}, "tag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run: empty, no results in it"),
        ("q Q0 d 1 0.5\n", "run:1: found 5 fields, expected 6: query Q0 document rank score tag"),
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t\n", "run:2: the document 'd' of query 'q' stands twice"),
        ("q Q0 d 1 high t\n", "run:1: score: expected a finite number, found 'high'"),
    ],
)
def test_a_bad_run_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "run").write_text(text)
    with pytest.raises(InputError, match=message):
        read_trec_run(tmp_path / "run")
