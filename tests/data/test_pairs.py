"""Splits of pairs leak nothing; retrieval tasks merge equal texts."""

import random

import pytest

from embed_jax.data.pairs import rename_columns, retrieval_task, split_pairs
from embed_jax.errors import InputError


def made_pairs(seed: int) -> list[dict[str, str]]:
    """Pairs with shared queries, shared passages, and negatives that are other pairs' positives."""
    chance = random.Random(seed)
    return [
        {
            "anchor": f"query {chance.randrange(120)}",
            "positive": f"passage {chance.randrange(240)}",
            "negative_1": f"passage {chance.randrange(240)}",
        }
        for _ in range(150)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_text_stands_on_two_sides(seed):
    records = made_pairs(seed)
    sides = split_pairs(records, 0.2)
    assert sum(map(len, sides.values())) == len(records)
    texts = {
        name: {text for r in side for text in (r["anchor"], r["positive"])}
        for name, side in sides.items()
    }
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    negatives = {record.get("negative_1") for record in sides["train"]}
    held_out = {record["positive"] for name in ("validation", "test") for record in sides[name]}
    assert not negatives & held_out
    assert negatives - {None}, "not every negative is taken out"


def test_a_query_here_is_no_passage_there():
    """A query is never a passage of another split; duplicate questions are listed both ways."""
    forth = [{"anchor": f"question {n}", "positive": f"the same as {n}"} for n in range(60)]
    back = [{"anchor": record["positive"] + " ", "positive": record["anchor"]} for record in forth]
    sides = split_pairs(forth + back, 0.2)
    texts = {
        name: {text.strip() for r in side for text in r.values()} for name, side in sides.items()
    }
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert sum(map(len, sides.values())) == 120


def test_the_split_does_not_depend_on_the_order_but_on_the_seed():
    records = made_pairs(0)
    shuffled = random.Random(1).sample(records, len(records))

    def anchors(records, seed=0):
        return {
            name: {r["anchor"] for r in side}
            for name, side in split_pairs(records, 0.2, seed).items()
        }

    assert anchors(records) == anchors(shuffled)
    assert anchors(records) != anchors(records, seed=1)


def test_pairs_that_are_all_linked_cannot_be_split():
    with pytest.raises(InputError, match="no pair falls into the .* split: 30 pairs"):
        split_pairs([{"anchor": "the same", "positive": f"passage {n}"} for n in range(30)], 0.2)


def test_equal_texts_are_one_query_or_one_document():
    records = [
        {"anchor": "a", "positive": "x"},
        {"anchor": "a ", "positive": "y"},
        {"anchor": "b", "positive": "x"},
    ]
    corpus, queries, relevant = retrieval_task(records, others=["x", "z"])
    assert sorted(corpus.values()) == ["x", "y", "z"] and sorted(queries.values()) == ["a", "b"]
    by_text = {
        queries[query]: {corpus[document] for document in result}
        for query, result in relevant.items()
    }
    assert by_text == {"a": {"x", "y"}, "b": {"x"}}


def test_records_are_renamed_by_their_columns():
    named = rename_columns(
        [{"q": "a", "p": "b"}], lambda record: (record["q"], record["p"], None, "c")
    )
    assert named == [{"anchor": "a", "positive": "b", "negative_2": "c"}]
