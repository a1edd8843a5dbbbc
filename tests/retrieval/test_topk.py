import jax
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


@pytest.mark.parametrize(
    ("queries", "corpus", "k"), [(20, 70, 5), (3, 16, 16), (8, 9, 40), (1, 1, 1)]
)
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
    queries, corpus = (
        rng.normal(size=(5, 8)).astype(np.float32),
        rng.normal(size=(50, 8)).astype(np.float32),
    )
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


def test_approximate_search_is_exact_on_a_cpu_also_of_blocks_on_the_device(small_blocks):
    rng = np.random.default_rng(0)
    queries, corpus = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 50))
    scores, rows = topk.top_k(queries, corpus, 7)
    blocks = [jax.device_put(block) for block in np.split(corpus, [16, 32])]
    for options in ({}, {"recall_target": 0.9}):
        results = topk.top_k(queries, blocks, 7, **options)
        np.testing.assert_array_equal(results[1], rows)
        np.testing.assert_allclose(results[0], scores, rtol=1e-6)
    with pytest.raises(InputError, match="recall_target: expected above 0, at most 1, found 0"):
        topk.top_k(queries, corpus, 7, recall_target=0)


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
    nearest = topk.dense_search(encode, encode, corpus, {"q": "7"}, 3, similarity="manhattan")
    assert nearest == {"q": {"d7": 0.0, "d6": -1.0, "d8": -1.0}}
    with pytest.raises(InputError, match="unknown similarity .hamming.*euclidean"):
        topk.dense_search(encode, encode, corpus, {"q": "1"}, 3, similarity="hamming")


DISTANCES = {
    "cosine": lambda a, b: (
        np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    ),
    "dot": lambda a, b: np.sum(a * b, -1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=-1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(-1),
}


@pytest.mark.parametrize("similarity", topk.SIMILARITIES)
@pytest.mark.parametrize("dim", [3, 40])
def test_similarities_equal_those_in_float64(small_blocks, similarity, dim):
    rng = np.random.default_rng(dim)
    queries, corpus = (rng.normal(size=(n, dim)).astype(np.float32) for n in (11, 75))
    scores, rows = topk.top_k(queries, corpus, 9, similarity=similarity)
    expected = DISTANCES[similarity](
        queries[:, None].astype(np.float64), corpus[None].astype(np.float64)
    )
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, rows, axis=1), rtol=3e-6, atol=1e-6
    )


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_near_points_far_from_the_origin_keep_their_distances(similarity):
    """Here |a|^2 + |b|^2 - 2ab in float32 is wrong by more than the distances themselves."""
    center = np.full(64, 100.0)
    corpus = (center + np.eye(64) * np.arange(1, 65)[::-1, None] / 8).astype(np.float32)
    scores, rows = topk.top_k(
        np.float32([center]), np.concatenate([corpus, [center]]), 65, similarity=similarity
    )
    np.testing.assert_array_equal(rows[0], np.arange(64, -1, -1))
    np.testing.assert_array_equal(scores[0], -np.arange(65) / 8)


@pytest.mark.parametrize("similarity", topk.SIMILARITIES)
def test_there_is_no_array_of_queries_by_documents_by_dimensions(similarity):
    queries, block, k = np.ones((64, 128), np.float32), np.ones((256, 128), np.float32), 5
    arguments = *topk._nothing(64, k), queries, block, 0, 256, None
    used = topk._merge.lower(*arguments, similarity).compile().memory_analysis().temp_size_in_bytes
    assert used < 64 * 256 * 128 * 4 / 8


@pytest.mark.parametrize(
    "similarity, k", [*((name, 4) for name in topk.SIMILARITIES), ("dot", 1), ("dot", 60)]
)
def test_documents_of_several_rows_count_by_their_best(small_blocks, similarity, k):
    rng = np.random.default_rng(k)
    sizes = [
        1,
        40,
        1,
        1,
        3,
        2,
        1,
        17,
        1,
        5,
        1,
        30,
    ]  # over the blocks of 16 rows: some begin before, some span three
    owner = np.repeat(np.arange(len(sizes)), sizes)
    queries, corpus = (rng.integers(-2, 3, size=(n, 4)).astype(np.float32) for n in (8, len(owner)))
    if similarity == "cosine":  # whose ties are not exact
        queries, corpus = (rng.normal(size=x.shape).astype(np.float32) for x in (queries, corpus))
    each, rows = topk.top_k(queries, corpus, len(owner), similarity=similarity)
    each = np.take_along_axis(each, np.argsort(rows, axis=1), axis=1)
    best = np.stack([each[:, owner == number].max(axis=1) for number in range(len(sizes))], axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    for blocks in (corpus, iter(np.split(corpus, [32, 80]))):
        scores, documents = topk.top_k(queries, blocks, k, similarity=similarity, owner=owner)
        np.testing.assert_array_equal(documents, order)
        np.testing.assert_allclose(scores, np.take_along_axis(best, order, axis=1), rtol=1e-6)
