"""The fields that training takes from a record of each format."""

import pytest

from embed_jax.data.pairs import SAMPLE
from embed_jax.data.sources import Records, record_fields
from embed_jax.errors import InputError


def taken(records):
    """Returns columns, label, score and keys of each record."""
    fields = record_fields(records)
    functions = (fields.columns, fields.label, fields.score, fields.keys)
    return [tuple(function and function(record) for function in functions) for record in records]


def test_tuples_with_and_without_keys():
    records = [
        {"anchor": "a", "positive": "p", "negative_1": "n", "group": "g"},
        {"anchor": "b", "positive": "q", "negatives": ["m", "k"], "id": 7},
    ]
    assert taken(records) == [
        (("a", "p", "n"), None, None, (None, "g")),
        (("b", "q", "m", "k"), None, None, ("7", None)),
    ]
    assert record_fields([{"anchor": "a", "positive": "p", "id": None}]).keys is None
    assert record_fields([{"anchor": "a", "positive": "p", "group": "g"}]).keys({"group": "h"}) == (
        "h",
    )


@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2"), ("anchor", "positive"), ("query", "answer")]
)
def test_scored_and_labelled_pairs(names):
    pair = dict(zip(names, "ab", strict=True))
    assert taken([pair | {"score": "0.5", "label": "1"}]) == [(("a", "b"), 1, (0.5,), None)]
    assert taken([pair | {"label": -1}, pair | {"label": "2.0"}]) == [
        (("a", "b"), n, None, None) for n in (-1, 2)
    ]


def test_nli_labels_are_names_or_integers():
    rows = [
        {"premise": "a", "hypothesis": "b", "label": label}
        for label in ("entailment", " Neutral", "contradiction")
    ]
    assert [label for _, label, *_ in taken(rows)] == [0, 1, 2]
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in ("1", 0, 2)]
    assert taken(rows) == [(("a", "b"), label, None, None) for label in (1, 0, 2)]


def test_labels_of_texts_are_numbered_in_sorted_order():
    rows = [
        {"text": text, "label": label}
        for text, label in zip("abc", ("pear", "apple", "pear "), strict=True)
    ]
    assert taken(rows) == [
        ((text,), label, None, None) for text, label in zip("abc", (1, 0, 1), strict=True)
    ]
    assert [label for _, label, *_ in taken([{"text": "a", "label": n} for n in ("7", 3)])] == [
        7,
        3,
    ]
    with pytest.raises(
        InputError, match="label: expected one of the 2 of the training data, found 'plum'"
    ):
        record_fields(rows).label({"text": "d", "label": "plum"})


def test_scored_lists():
    rows = [
        {
            "query": "q",
            "answer": "no pair",
            "passages": ["a", "b"],
            "scores": [3, 0.5],
            "group": "g",
        }
    ]
    assert taken(rows) == [(("q", "a", "b"), None, [3.0, 0.5], ("g",))]


PAIR = {"sentence1": "a", "sentence2": "b"}
LIST = {"query": "q", "passages": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [PAIR | {"label": "1"}, PAIR | {"label": "same"}],
            "record 1: label: expected an integer or one of entailment,",
        ),
        ([PAIR | {"label": 0.5}], "record 0: label: expected an integer .*, found 0.5"),
        ([PAIR | {"label": 2**31}], "record 0: label: expected an integer"),
        (
            [PAIR | {"label": 1}, PAIR],
            "record 1: no label, which others have: found the fields sentence1, sentence2",
        ),
        (
            [PAIR | {"score": 1}, PAIR | {"score": "high"}],
            "record 1: score: expected a finite number, found 'high'",
        ),
        ([LIST, LIST | {"scores": [1]}], "record 1: found 2 passages and 1 scores"),
        (
            [LIST, LIST | {"scores": [1, None]}],
            "record 1: scores: expected a finite number, found None",
        ),
        ([LIST, LIST | {"passages": None}], "record 1: no passages"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], "record 1: no label"),
        (
            [{"text": "a"}],
            "no known format: found the fields text; accepted: anchor positive; .*; text label",
        ),
    ],
)
def test_what_cannot_be_used_names_the_record(records, message):
    with pytest.raises(InputError, match=message):
        record_fields(records)


def test_a_source_that_is_read_record_by_record_is_sampled():
    read = []
    source = Records(
        range(10 * SAMPLE), lambda n: read.append(n) or PAIR | {"score": n}, range(10 * SAMPLE)
    )
    assert record_fields(source).score(source[5]) == (5.0,)
    assert len(set(read)) < 1.1 * SAMPLE and max(read) == 10 * SAMPLE - 1
