"""Searches within a time."""

import pytest

from embed_jax.errors import InputError
from embed_jax.evals.budget import (
    Costs,
    choose_setting,
    measure_settings,
    parse_costs,
    time_stages,
    wider_shortlists,
)
from embed_jax.retrieval.search import Pipeline, Retriever

TEXTBOOK = parse_costs("encode=10,search=40,rerank=15")


def find_first(count):
    """Returns a retriever that finds only the first `count` documents of the right order."""
    order = {f"d{number:03d}": 1 - number / 1000 for number in range(200)}
    return Retriever(lambda queries, k, allowed: [dict(list(order.items())[: min(k, count)])
                                                  for _ in queries])  # fmt: skip


def reverse(queries, passages):
    return [float(text[1:]) for text in passages]


def test_the_textbook_budget():
    """10 ms to encode, 40 to search, 15 a pair: 200 ms hold 10 documents, and not 100."""
    assert TEXTBOOK == Costs(10, 40, 15) and TEXTBOOK.shortlist(200) == 10
    assert TEXTBOOK.total(10) == 200 and TEXTBOOK.total(100) == 1550
    TEXTBOOK.check(10, 200)
    message = r"a shortlist of 100 takes 1,550 ms .*the budget is 200 ms: at most 10 fit"
    with pytest.raises(InputError, match=message):
        TEXTBOOK.check(100, 200)
    assert round(TEXTBOOK.hours(2_000_000), 1) == 8.3
    assert Costs(rerank=0.1).shortlist(0.3) == 3


@pytest.mark.parametrize("text", ["encode", "encode=x", "encode=1,encode=2", "load=3", "rerank=-1"])
def test_wrong_costs_are_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_costs(text)
    assert "\n" not in str(caught.value)


def test_the_setting_that_brings_most_right_documents_is_chosen():
    """More probes find more, and leave less time for reranking."""
    exact = Pipeline({"x": find_first(200)}, shortlist=50)
    few, many = (Pipeline({"x": find_first(count)}, shortlist=50) for count in (5, 50))
    queries = ["a", "b"]
    (fast,) = measure_settings(
        {"few": few}, exact, queries, budget_ms=200, declared=Costs(10, 10, 2)
    )
    (slow,) = measure_settings(
        {"many": many}, exact, queries, budget_ms=200, declared=Costs(10, 150, 2)
    )
    assert (fast.shortlist, slow.shortlist) == (90, 20)
    assert slow.recall == 1.0 and fast.recall == 5 / 90
    assert choose_setting([fast, slow], 200) is slow
    (none,) = measure_settings({"x": few}, exact, queries, budget_ms=20, declared=Costs(10, 40, 1))
    with pytest.raises(InputError, match="budget: 20 ms are not enough for any setting: .*, x, takes 51.0"):  # fmt: skip  # noqa: E501
        choose_setting([none], 20)


def test_stages_are_timed_and_a_wider_shortlist_is_compared():
    pipeline = Pipeline({"x": find_first(200)}, texts=list, reranker=reverse, shortlist=10)
    times = time_stages(pipeline, ["a", "b", "c"])
    assert set(times.percentiles()) == {"encode x", "search x", "reranked", "total"}
    assert all(len(each) == 3 and each == sorted(each) for each in times.percentiles().values())
    costs = times.costs()
    assert 0 < costs.rerank <= times.totals.max() / 10 and costs.encode >= 0
    rows = wider_shortlists(pipeline, Costs(1, 2, 1), ["a", "b"], [10, 95, 100])
    assert [(row.shortlist, row.milliseconds, row.gained) for row in rows] == [
        (10, 13, 0.0),
        (95, 98, 0.5),
        (100, 103, 1.0),
    ]
    with pytest.raises(InputError, match="queries: expected one or more"):
        time_stages(pipeline, [])
