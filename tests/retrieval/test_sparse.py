"""Search by sparse embeddings: equality with sorting everything, files for Lucene, refusals."""

import json

import numpy as np
import pytest
import scipy.sparse

from embed_jax.errors import InputError
from embed_jax.retrieval import sparse
from embed_jax.retrieval.sparse import sparse_searcher, sparse_top_k, write_word_weights
from embed_jax.retrieval.topk import dense_search, top_k


def some_rows(count, seed, words=12):
    """Small whole numbers, half of them 0: sums are exact and there are many ties."""
    rng = np.random.default_rng(seed)
    return scipy.sparse.csr_array(np.maximum(rng.integers(-2, 3, (count, words)), 0).astype("f4"))


@pytest.mark.parametrize(
    ("queries", "corpus", "k"), [(20, 70, 5), (3, 16, 16), (8, 9, 40), (1, 1, 1)]
)
def test_equals_sorting_everything(monkeypatch, queries, corpus, k):
    monkeypatch.setattr(sparse, "QUERY_BLOCK", 8)
    left, right = some_rows(queries, 0), some_rows(corpus, 1)
    products = (left @ right.T).toarray()
    expected = np.where(products > 0, products, -np.inf)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    ranked = np.take_along_axis(expected, order, axis=1)
    missing = ((0, 0), (0, k - order.shape[1]))
    ranked = np.pad(ranked, missing, constant_values=-np.inf)
    rows = np.where(ranked > 0, np.pad(order, missing), -1)
    blocks = [right[start : start + 7] for start in range(0, corpus, 7)]
    for searched in (right, blocks):
        scores, indices = sparse_top_k(left, searched, k)
        np.testing.assert_array_equal(scores, ranked)
        np.testing.assert_array_equal(indices, rows)
    np.testing.assert_array_equal(top_k(left, right, k)[1], rows)


def test_a_search_by_texts_leaves_out_what_shares_no_word():
    rows = {"a": [1, 0, 0], "b": [2, 1, 0], "c": [0, 0, 3], "": [0, 0, 0]}

    def encode(texts):
        return scipy.sparse.csr_array(np.array([rows[text] for text in texts], np.float32))

    corpus, queries = {"1": "a", "2": "b", "3": "c"}, {"x": "b", "y": ""}
    run = dense_search(encode, encode, corpus, queries, 3, similarity="dot")
    assert run == {"x": {"2": 5.0, "1": 2.0}, "y": {}}
    searcher = sparse_searcher(encode, encode, list(corpus.values()))
    scores, indices = searcher.search(["b", ""], 2)
    assert indices.tolist() == [[1, 0], [-1, -1]] and scores[0].tolist() == [5.0, 2.0]
    assert searcher.score(["b", "c"], np.array([[2, 1], [2, -1]])).tolist() == [
        [0.0, 5.0],
        [9.0, -np.inf],
    ]


def test_word_weights_are_written_for_lucene(tmp_path):
    rows = scipy.sparse.csr_array(np.array([[0.5, 0, 1.234], [0, 0.004, 0]], np.float32))
    path = tmp_path / "vectors.jsonl"
    write_word_weights(path, ["1", "2"], ["one", "two"], rows, ["a", "b", "\N{SNOWMAN}"])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"id": "1", "contents": "one", "vector": {"a": 50, "\N{SNOWMAN}": 123}}
    assert lines[1]["vector"] == {}


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    rows = some_rows(3, 0)
    for call, message in (
        (lambda: sparse_top_k(rows, some_rows(2, 1, words=5), 2), "the corpus' 5 words, found 12"),
        (lambda: top_k(rows, rows, 2, similarity="cosine"), "searched by 'dot'"),
        (lambda: sparse_searcher(lambda texts: rows, lambda texts: rows, []), "corpus is empty"),
        (
            lambda: write_word_weights(tmp_path / "x", ["1"], ["one"], rows, ["a"]),
            "expected as many ids and texts as rows",
        ),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
