"""Chunks of long documents and their scores."""

import re

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.search import Retriever
from embed_jax.retrieval.text_chunks import (
    chunk_corpus,
    chunk_spans,
    document_of,
    fold_chunks,
    fold_results,
)


def words(text):
    return [match.span() for match in re.finditer(r"\S+", text)]


def random_text(rng):
    sentences = [" ".join(["w"] * rng.integers(1, 12)) + "." for _ in range(rng.integers(1, 9))]
    return " ".join(sentences)


def test_chunks_are_short_enough_overlap_and_lose_nothing():
    rng = np.random.default_rng(0)
    for _ in range(100):
        text = random_text(rng)
        offsets, tokens = words(text), int(rng.integers(2, 14))
        overlap = int(rng.integers(0, tokens))
        spans = chunk_spans(text, offsets, tokens, overlap)
        inside = [[n for n, (start, end) in enumerate(offsets) if a <= start and end <= b]
                  for a, b in spans]  # fmt: skip
        assert all(1 <= len(own) <= tokens for own in inside)
        assert sorted({n for own in inside for n in own}) == list(range(len(offsets)))
        last = -1
        for (_, stop), own in zip(spans, inside, strict=True):
            new = [n for n in own if n > last]
            assert new and len(own) - len(new) <= overlap
            ends_sentence = [n for n in new if text[offsets[n][1] - 1] == "."]
            assert text[stop - 1] == "." or not ends_sentence
            last = own[-1]


def test_ids_of_chunks_are_those_of_documents_also_with_the_separator():
    chunks = chunk_corpus({"a#1": "One. Two. Three.", "": "x"}, words, tokens=1)
    assert chunks == {"a#1#0": "One.", "a#1#1": "Two.", "a#1#2": "Three.", "#0": "x"}
    assert [document_of(name) for name in chunks] == ["a#1", "a#1", "a#1", ""]


def test_documents_are_found_through_their_chunks_until_there_are_enough():
    scores = {f"a#{n}": 1 - n / 1000 for n in range(50)} | {"b#0": 0.5, "c#0": 0.4, "c#1": 0.39}

    def find(queries, k, allowed):
        own = {name: score for name, score in scores.items() if allowed is None or name in allowed}
        return [dict(list(own.items())[:k]) for _ in queries]

    retriever = fold_chunks(Retriever(find), list(scores))
    assert retriever.find(["q"], 3, None) == [{"a": 1.0, "b": 0.5, "c": 0.4}]
    assert retriever.find(["q"], 3, ["c", "b", "unknown"]) == [{"b": 0.5, "c": 0.4}]
    assert retriever.find(["q"], 3, []) == [{}]
    averaged = fold_chunks(Retriever(find), list(scores), top=2)
    np.testing.assert_allclose(averaged.find(["q"], 3, None)[0]["c"], 0.395)
    assert fold_results({"a#0": 0.9, "b#0": 0.8}, {"a": 9, "b": 1}, 2, top=9)["b"] == 0.8


def test_an_overlap_of_whole_chunks_is_refused():
    text = "One two. Three four."
    with pytest.raises(InputError, match="chunks: expected an overlap below the tokens"):
        chunk_spans(text, words(text), 2, 2)
