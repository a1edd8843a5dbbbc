import itertools

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import round_trip
from embed_jax.retrieval.round_trip import round_trip_filter


@pytest.fixture
def corpus():
    """30 passages, 100 pairs of a query and a passage, and a search by known scores."""
    rng = np.random.default_rng(0)
    passages = [f"p{n}" for n in range(30)]
    records = [{"anchor": f"q{n}", "positive": f" p{rng.integers(30)}", "n": n} for n in range(100)]
    scores = rng.standard_normal((100, 30))

    def search(queries, k):
        every = scores[[int(query[1:]) for query in queries]]
        rows = np.argsort(-every, axis=1)[:, :k]
        return np.take_along_axis(every, rows, axis=1), rows

    return records, passages, scores, search


@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_a_pair_stays_if_fewer_than_k_passages_score_above_its_own(corpus, monkeypatch, k):
    records, passages, scores, search = corpus
    monkeypatch.setattr(round_trip, "BLOCK", 17)
    own = [passages.index(record["positive"].strip()) for record in records]
    better = (scores > scores[range(100), own][:, None]).sum(axis=1)
    expected = [record for record, above in zip(records, better, strict=True) if above < k]
    assert list(round_trip_filter(records, search, k, passages)) == expected
    assert 0 < len(expected) < 100 or k == 30


def test_what_a_search_does_not_find_is_dropped(corpus):
    records, passages, _, _ = corpus

    def search(queries, k):
        return np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)

    assert list(round_trip_filter(records, search, 3, passages)) == []


def test_records_are_read_as_they_are_needed(corpus, monkeypatch):
    records, passages, _, search = corpus
    monkeypatch.setattr(round_trip, "BLOCK", 10)
    endless = itertools.cycle(records)
    assert len(list(itertools.islice(round_trip_filter(endless, search, 30, passages), 250))) == 250


def test_other_columns(corpus):
    records, passages, _, search = corpus
    items = [(record["n"], record["anchor"], record["positive"]) for record in records]
    numbers = [
        item[0] for item in round_trip_filter(items, search, 3, passages, lambda item: item[1:])
    ]
    assert numbers == [record["n"] for record in round_trip_filter(records, search, 3, passages)]


def test_bad_input_is_refused(corpus):
    records, passages, _, search = corpus
    for bad, k, message in (
        (passages[:5], 1, "no such passage"),
        ([*passages, "p3 "], 1, "1 passages that stand in the corpus more than once"),
        (passages, 0, "k must be"),
    ):
        with pytest.raises(InputError, match=message):
            list(round_trip_filter(records, search, k, bad))
