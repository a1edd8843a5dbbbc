import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import topk


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(topk, "QUERY_BLOCK", 8)
    monkeypatch.setattr(topk, "CORPUS_BLOCK", 16)


def reference(queries, corpus, k):
    scores = queries @ corpus.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize(("queries", "corpus", "k"), [(20, 70, 5), (3, 16, 16), (8, 9, 40), (1, 1, 1)])
def test_equals_sorting_everything(small_blocks, queries, corpus, k):
    rng = np.random.default_rng(queries)
    # Small whole numbers: sums are exact and there are many ties.
    left, right = (rng.integers(-2, 3, size=(n, 4)).astype(np.float32) for n in (queries, corpus))
    scores, rows = topk.top_k(left, right, k)
    expected_scores, expected_rows = reference(left, right, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_a_corpus_in_blocks_is_the_same_corpus(small_blocks):
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(50, 8)).astype(np.float32)
    whole = topk.top_k(queries, corpus, 7)
    parts = topk.top_k(queries, iter(np.split(corpus, [3, 20, 40])), 7)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)


def test_compiles_once_for_full_and_last_blocks(small_blocks):
    queries = np.ones((8, 4), np.float32)
    topk.top_k(queries, np.ones((64, 4), np.float32), 3)
    before = topk._merge._cache_size()
    topk.top_k(queries, np.ones((4 * 16 + 15, 4), np.float32), 3)
    assert topk._merge._cache_size() == before


def test_nothing_to_search():
    scores, rows = topk.top_k(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert scores.shape == rows.shape == (0, 2)
    scores, rows = topk.top_k(np.ones((2, 4), np.float32), np.ones((0, 4), np.float32), 2)
    assert scores.shape == rows.shape == (2, 0)


def test_dense_search_encodes_the_corpus_a_piece_at_a_time(monkeypatch):
    monkeypatch.setattr(topk, "ENCODE_BLOCK", 4)
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return np.array([[float(text), 1.0] for text in texts], np.float32)

    corpus = {f"d{n}": str(n) for n in range(10)}
    run = topk.dense_search(encode, encode, corpus, {"q": "1"}, 3, similarity="dot")
    assert run == {"q": {"d9": 10.0, "d8": 9.0, "d7": 8.0}}
    assert sizes == [1, 4, 4, 2]
    assert list(topk.dense_search(encode, encode, corpus, {"q": "1"}, 2)["q"]) == ["d1", "d2"]
    with pytest.raises(InputError, match="similarity"):
        topk.dense_search(encode, encode, corpus, {"q": "1"}, 3, similarity="euclidean")
