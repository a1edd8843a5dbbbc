"""Pairs from clicks, groups and candidates are those described; the rest is counted."""

import collections
import itertools
import json
import random

import numpy as np
import pytest

from embed_jax.data import positives
from embed_jax.data.positives import click_pairs, group_pairs, paraphrase_pairs
from embed_jax.errors import InputError, RunError


class Dropped(list):
    def __call__(self, why, row):
        self.append((why, row))

    def count(self, why):
        return sum(reason == why for reason, _ in self)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path):
    documents = [
        {"_id": f"d{n}", "title": "T" if n % 2 else "", "text": f"text {n}"} for n in range(12)
    ]
    return write(tmp_path / "corpus.jsonl", documents)


def made_clicks(seed, count=120):
    chance = random.Random(seed)
    return [
        {
            "query": f"query {chance.randrange(15)}",
            "doc_id": f"d{chance.randrange(12)}",
            "clicks": chance.randrange(4),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_clicks,top", [(1, 0), (3, 0), (2, 2), (1, 1)])
def test_pairs_of_clicks_are_those_of_adding_up(tmp_path, corpus, seed, min_clicks, top):
    rows = made_clicks(seed)
    dropped = Dropped()
    pairs = click_pairs(
        write(tmp_path / "log.jsonl", rows), corpus, dropped, min_clicks=min_clicks, top=top
    )
    total = collections.Counter()
    for row in rows:
        total[row["query"], row["doc_id"]] += row["clicks"]
    result = {(pair["anchor"], pair["id"]) for pair in pairs}
    assert len(result) == len(pairs)
    enough = {key for key, clicks in total.items() if clicks >= min_clicks}
    assert result <= enough and (top or result == enough)
    for query in {query for query, _ in enough}:
        mine = sorted((total[key] for key in enough if key[0] == query), reverse=True)
        assert (
            sorted((total[key] for key in result if key[0] == query), reverse=True)
            == mine[: top or None]
        )
    assert dropped.count("too few clicks") == len(total) - len(enough)
    assert dropped.count("beyond the top") == len(enough) - len(result)
    for pair in pairs:
        number = int(pair["id"][1:])
        assert pair["positive"] == (f"T text {number}" if number % 2 else f"text {number}")
    for first, second in itertools.combinations(
        pairs, 2
    ):  # what shares nothing is a negative, and nothing else
        assert (first["group"] == second["group"]) == (first["anchor"] == second["anchor"])
        assert (first["id"] == second["id"]) == (first["positive"] == second["positive"])


def test_a_table_and_a_file_of_objects_are_the_same_log(tmp_path, corpus):
    rows = made_clicks(0)
    table = tmp_path / "log.tsv"
    table.write_text(
        "query\tdoc_id\tclicks\n"
        + "".join("\t".join(map(str, row.values())) + "\n" for row in rows)
    )
    assert click_pairs(table, corpus, Dropped()) == click_pairs(
        write(tmp_path / "log.jsonl", rows), corpus, Dropped()
    )


def test_documents_of_equal_text_are_one_pair(tmp_path):
    corpus = write(
        tmp_path / "corpus.jsonl",
        [{"id": n, "text": text} for n, text in enumerate(["same", " same", "q"])],
    )
    log = write(
        tmp_path / "log.jsonl", [{"query": "q", "doc_id": n, "clicks": 1} for n in range(3)]
    )
    dropped = Dropped()
    (pair,) = click_pairs(log, corpus, dropped)
    assert (pair["anchor"], pair["positive"], pair["id"]) == ("q", "same", "0")
    assert [why for why, _ in dropped] == ["a pair twice", "equal texts"]


GOOD = {"query": "q", "doc_id": "d1", "clicks": 1}


@pytest.mark.parametrize(
    "row,message",
    [
        ({"doc_id": "gone"}, r"log.jsonl:2: the document 'gone' is not in .*corpus.jsonl"),
        ({"clicks": -1}, "log.jsonl:2: clicks: expected an integer from 0 up, found -1"),
        ({"clicks": 0.5}, "log.jsonl:2: clicks: expected an integer from 0 up, found 0.5"),
        ({"clicks": "many"}, "log.jsonl:2: clicks: expected a finite number, found 'many'"),
        (
            {"clicks": None},
            "log.jsonl:2: no field 'clicks': found query, doc_id, clicks; needed: query, doc_id, "
            "clicks",
        ),
        ({"query": " "}, "log.jsonl:2: field 'query' is empty"),
        ({"query": 3}, "log.jsonl:2: field 'query' must be a string, found int"),
        (
            {"doc_id": ["d1"]},
            "log.jsonl:2: field 'doc_id' must be a string or a number, found list",
        ),
    ],
)
def test_a_log_that_cannot_be_used(tmp_path, corpus, row, message):
    with pytest.raises(InputError, match=message) as caught:
        click_pairs(write(tmp_path / "log.jsonl", [GOOD, GOOD | row]), corpus, Dropped())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "documents,message",
    [
        (
            [{"_id": "d1", "text": " "}],
            "corpus.jsonl:1: the document 'd1', which was clicked, is empty",
        ),
        ([{"_id": "d1", "text": "a"}] * 2, "corpus.jsonl:2: the id 'd1' stands twice"),
        (
            [{"_id": "d1", "body": "a"}],
            "corpus.jsonl:1: found the fields _id, body; needed: _id or id, and text",
        ),
        ([{"_id": "d1", "text": 1}], "corpus.jsonl:1: field 'text' must be a string, found int"),
        ([], "corpus.jsonl: empty, no documents in it"),
    ],
)
def test_a_corpus_that_cannot_be_used(tmp_path, documents, message):
    with pytest.raises(InputError, match=message):
        click_pairs(
            write(tmp_path / "log.jsonl", [GOOD]),
            write(tmp_path / "corpus.jsonl", documents),
            Dropped(),
        )


def test_an_empty_document_that_nobody_clicked_is_no_error(tmp_path):
    corpus = write(
        tmp_path / "corpus.jsonl", [{"_id": "d0", "text": ""}, {"_id": "d1", "text": "a"}]
    )
    assert len(click_pairs(write(tmp_path / "log.jsonl", [GOOD]), corpus, Dropped())) == 1


def test_a_log_without_positives(tmp_path, corpus):
    log = write(tmp_path / "log.jsonl", made_clicks(0, 20))
    with pytest.raises(
        InputError, match=r"log.jsonl: no positives: none of \d+ pairs .* has 99 clicks or more"
    ):
        click_pairs(log, corpus, Dropped(), min_clicks=99)
    header = tmp_path / "log.tsv"
    header.write_text("query\tdoc_id\tclicks\n")
    with pytest.raises(InputError, match="log.tsv: empty, no records in it"):
        click_pairs(header, corpus, Dropped())


def made_groups(seed):
    """Returns groups of 1 to 9 texts, some of them twice."""
    chance = random.Random(seed)
    rows = [{"text": f"text {g} {n}", "group": g} for g in range(12) for n in range(1 + g % 9)]
    rows += chance.sample(rows, 5)
    chance.shuffle(rows)
    return rows


@pytest.mark.parametrize("most", [0, 1, 3, 8, 100])
def test_pairs_of_groups(tmp_path, most):
    rows, dropped = made_groups(0), Dropped()
    pairs = group_pairs(write(tmp_path / "a.jsonl", rows), dropped, max_per_group=most)
    assert dropped.count("twice in its group") == 5
    left_out = 0
    for group in range(12):
        texts = {row["text"] for row in rows if row["group"] == group}
        mine = [
            frozenset((pair["anchor"], pair["positive"]))
            for pair in pairs
            if pair["group"] == str(group)
        ]
        possible = len(texts) * (len(texts) - 1) // 2
        assert len(mine) == len(set(mine)) == min(possible, most or possible)
        assert all(len(pair) == 2 and pair <= texts for pair in mine)
        # All linked: of one family when pairs are split by texts.
        linked = set(mine[0]) if mine else set()
        for _ in mine:
            linked |= set().union(*(pair for pair in mine if pair & linked))
        assert linked == set().union(*mine)
        counts = collections.Counter(itertools.chain(*mine))
        if most >= len(texts):
            assert set(counts) == texts or len(texts) == 1
            assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 2
        left_out += len(texts) - len(linked) if len(texts) > 1 else 0
    assert dropped.count("single text of its group") == 2
    assert dropped.count("beyond the pairs of a group") == left_out


def test_pairs_of_groups_depend_on_the_seed_and_not_on_the_order(tmp_path):
    def pairs(rows, seed):
        result = group_pairs(
            write(tmp_path / "a.jsonl", rows), Dropped(), max_per_group=3, seed=seed
        )
        return {tuple(pair.values()) for pair in result}

    rows = made_groups(0)
    assert pairs(rows, 0) == pairs(rows[::-1], 0) != pairs(rows, 1)


def test_fields_by_other_names_and_groups_that_are_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,cluster\na,x\nb,x\nc,y\nd,y\n")
    result = group_pairs(path, Dropped(), text_field="question", group_field="cluster")
    assert [pair["group"] for pair in result] == ["x", "y"]
    with pytest.raises(
        InputError, match="a.csv:1: no field 'text': found question, cluster; needed: text, group"
    ):
        group_pairs(path, Dropped())
    path.write_text("text,group\na,x\nb,\n")
    with pytest.raises(InputError, match="a.csv:3: field 'group' is empty"):
        group_pairs(path, Dropped())
    path.write_text("text,group\na,x\nb,y\n")
    with pytest.raises(InputError, match="no pairs: none of the 2 groups has two different texts"):
        group_pairs(path, Dropped())


def test_paraphrases_that_a_scorer_accepts(tmp_path, monkeypatch):
    monkeypatch.setattr(positives, "BLOCK", 7)
    rows = [{"sentence1": f"{n}", "sentence2": f" {(n * n) % 30} "} for n in range(30)] * 2
    rows += [{"sentence1": row["sentence2"], "sentence2": row["sentence1"]} for row in rows]
    sizes = []

    def score(first, second):
        sizes.append(len(first))
        return np.array(
            [abs(int(a) - int(b)) for a, b in zip(first, second, strict=True)], np.float32
        )

    dropped = Dropped()
    pairs = paraphrase_pairs(write(tmp_path / "a.jsonl", rows), score, 9, dropped)
    distinct = {frozenset((n, n * n % 30)) for n in range(30)}
    expected = {pair for pair in distinct if len(pair) == 2 and max(pair) - min(pair) >= 9}
    result = [frozenset((int(pair["anchor"]), int(pair["positive"]))) for pair in pairs]
    assert len(result) == len(set(result)) and set(result) == expected
    unequal = sum(len(pair) == 2 for pair in distinct)
    assert sum(sizes) == unequal and max(sizes) == 7
    assert dropped.count("below the threshold") == unequal - len(expected)
    assert dropped.count("equal texts") == 4 * sum(n == n * n % 30 for n in range(30))
    assert len(pairs) + len(dropped) == len(rows)


def test_scores_that_accept_nothing_or_are_none(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"sentence1": "a", "sentence2": "b"}, {"sentence1": "a", "sentence2": "c"}],
    )
    with pytest.raises(
        InputError, match="no pairs: none of 2 reaches the threshold 0.9, the best 0.25"
    ):
        paraphrase_pairs(path, lambda a, b: np.array([0.0, 0.25]), 0.9, Dropped())
    with pytest.raises(RunError, match="no finite score for 'a' and 'c'"):
        paraphrase_pairs(path, lambda a, b: np.array([0.0, np.nan]), 0.9, Dropped())
    same = write(tmp_path / "b.jsonl", [{"sentence1": "a", "sentence2": " a"}])
    with pytest.raises(InputError, match="all 1 are of equal texts"):
        paraphrase_pairs(same, lambda a, b: np.ones(len(a)), 0.5, Dropped())
