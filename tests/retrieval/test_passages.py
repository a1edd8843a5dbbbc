import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import topk
from embed_jax.retrieval.passages import passage_search, split_passages
from embed_jax.retrieval.topk import dense_search


def encode(texts):
    """Counts letters: a text without letters is a zero vector."""
    return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)

    def text(words):
        return " ".join("".join(rng.choice(list("abcdefgh"), size=3)) for _ in range(words))

    return {f"d{n}": text(words) for n, words in enumerate([3, 60, 0, 10, 11, 31, 9, 10])}, {
        "q": text(3),
        "r": text(5),
    }


@pytest.mark.parametrize("words, overlap", [(1, 0), (4, 0), (4, 1), (4, 3), (7, 2)])
def test_windows_cover_each_word_and_none_is_needless(words, overlap):
    for length in range(30):
        tokens = [f"w{n}" for n in range(length)]
        passages, owner = split_passages({"d": " ".join(tokens)}, words, overlap)
        windows = [passage.split() for passage in passages]
        assert owner.tolist() == [0] * len(windows)
        assert all(len(window) == words for window in windows[:-1]) and len(windows[-1]) <= words
        assert (
            windows[0] + [token for window in windows[1:] for token in window[overlap:]] == tokens
        )
        assert all(len(window) > overlap for window in windows[1:])
        assert all(
            left[words - overlap :] == right[:overlap]
            for left, right in zip(windows, windows[1:], strict=False)
        )


def test_text_stands_in_passages_as_it_was():
    corpus = {
        "short": "  one\n two ",
        "none": "",
        "long": "one,\n\ttwo  three four",
        "kana": "日本語 かな abc",
    }
    passages, owner = split_passages(corpus, 2)
    expected = ["  one\n two ", "", "one,\n\ttwo", "three four", "日本", "語 か", "な abc"]
    assert passages == expected and owner.tolist() == [0, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("similarity, k", [*((name, 3) for name in topk.SIMILARITIES), ("dot", 8)])
def test_equals_the_best_of_all_passages(made, similarity, k, monkeypatch):
    monkeypatch.setattr(topk, "CORPUS_BLOCK", 4)
    monkeypatch.setattr(topk, "ENCODE_BLOCK", 8)
    corpus, queries = made
    run = passage_search(
        encode, encode, corpus, queries, k, similarity=similarity, words=5, overlap=2
    )
    passages, owner = split_passages(corpus, 5, 2)
    everything = {f"p{n}": passage for n, passage in enumerate(passages)}
    by_passage = dense_search(
        encode, encode, everything, queries, len(passages), similarity=similarity
    )
    names = list(corpus)
    for query, result in by_passage.items():
        best = dict.fromkeys(names, -np.inf)
        for passage, score in result.items():
            name = names[owner[int(passage[1:])]]
            best[name] = max(best[name], score)
        assert run[query] == pytest.approx({name: best[name] for name in run[query]}, rel=1e-5)
        assert list(run[query].values()) == pytest.approx(
            sorted(best.values(), reverse=True)[:k], rel=1e-5
        )


def test_short_documents_are_searched_as_by_dense_search(made):
    corpus, queries = made
    arguments = encode, encode, corpus, queries, 5
    assert passage_search(*arguments, words=60) == dense_search(*arguments)
    assert passage_search(*arguments, words=30) != dense_search(*arguments)


def test_finds_what_a_model_that_cuts_does_not_read():
    def reads_four(texts):
        return encode([" ".join(text.split()[:4]) for text in texts])

    corpus, queries = {"d0": "a b", "d1": "b c d e f g a a", "d2": "e f"}, {"q": "a"}
    arguments = reads_four, reads_four, corpus, queries, 1
    assert list(dense_search(*arguments)["q"]) == ["d0"]
    assert list(passage_search(*arguments, words=4, overlap=2)["q"]) == ["d1"]


@pytest.mark.parametrize("words, overlap", [(0, 0), (4, 4), (4, -1), (-3, 0)])
def test_impossible_windows_are_refused(words, overlap):
    with pytest.raises(InputError, match="passages: expected an overlap below"):
        split_passages({"d": "a"}, words, overlap)


def test_characters_of_scripts_without_blanks_are_counted():
    passages, owner = split_passages({"d": "我喜欢苹果 และ ไม่มี ok"}, 4)
    assert passages == ["我喜欢苹", "果 และ", "ไม่มี ok"] and owner.tolist() == [0, 0, 0]
