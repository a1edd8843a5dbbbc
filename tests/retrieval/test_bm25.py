import math
import sys

import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.bm25 import bm25_search

CORPUS = {"d1": "red house", "d2": "blue house house", "d3": "the red red car", "d4": "red house"}


def test_scores_equal_lucenes_formula():
    pytest.importorskip("bm25s")
    run = bm25_search(CORPUS, {"q": "Red"}, 10, k1=1.2, b=0.5)
    lengths = {"d1": 2, "d2": 3, "d3": 3, "d4": 2}  # "the" is a stop word
    mean = sum(lengths.values()) / 4
    idf = math.log(1 + (4 - 3 + 0.5) / (3 + 0.5))

    def score(document, count):
        return idf * count / (count + 1.2 * (1 - 0.5 + 0.5 * lengths[document] / mean))

    expected = {"d3": score("d3", 2), "d1": score("d1", 1), "d4": score("d4", 1)}
    assert list(run["q"]) == list(
        expected
    )  # d1 before d4: equal scores in the corpus' order; d2 has no such word
    assert run["q"] == pytest.approx(expected, rel=1e-5)


def test_cuts_at_k_with_ties_in_order():
    pytest.importorskip("bm25s")
    corpus = {f"d{n}": "same words" for n in range(20)}
    assert list(bm25_search(corpus, {"q": "words"}, 3)["q"]) == ["d0", "d1", "d2"]


def test_queries_and_corpora_without_known_words_find_nothing():
    pytest.importorskip("bm25s")
    assert bm25_search(CORPUS, {"q1": "zebra", "q2": ""}, 2) == {"q1": {}, "q2": {}}
    assert bm25_search({"d": "", "e": "the"}, {"q": "zebra"}, 2) == {"q": {}}


def test_without_bm25s_one_line_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "bm25s", raising=False)
    with pytest.raises(InputError, match=r"run pip install -e '\.\[search\]' in the repository"):
        bm25_search(CORPUS, {"q": "red"}, 2)


def test_parts_of_an_identifier_are_words():
    pytest.importorskip("bm25s")
    assert list(
        bm25_search({"d": "def read_csv(path): ...", "e": "other"}, {"q": "Read a CSV"}, 2)["q"]
    ) == ["d"]
