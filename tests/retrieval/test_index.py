import sys
import zlib

import numpy as np
import pytest

from embed_jax.errors import InputError, RunError
from embed_jax.retrieval import bm25, index, topk
from embed_jax.scores import unit_length

CORPUS = [f"passage {n}" for n in range(50)]
QUERIES = [f"query {n}" for n in range(7)]


def encode(texts):
    rng = (np.random.default_rng(zlib.crc32(text.encode())) for text in texts)
    return np.array([generator.normal(size=8) for generator in rng], np.float32).reshape(
        len(texts), 8
    )


def dot_encode(texts):
    """Returns small whole numbers, so that sums are exact and ties occur."""
    return np.round(encode(texts))


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (index, topk):
        monkeypatch.setattr(module, "CORPUS_BLOCK", 16)


def similarities(similarity):
    left, right = dot_encode(QUERIES), dot_encode(CORPUS)
    return unit_length(left) @ unit_length(right).T if similarity == "cosine" else left @ right.T


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_dense_search_is_sorting_by_similarity(small_blocks, tmp_path, similarity, stored):
    store = tmp_path / "corpus.npy" if stored else None
    searcher = index.dense_searcher(
        dot_encode, dot_encode, CORPUS, similarity=similarity, store=store
    )
    expected = similarities(similarity)
    scores, rows = searcher.search(QUERIES, 60)
    assert scores.shape == rows.shape == (7, 60)
    assert (rows[:, 50:] == -1).all() and (scores[:, 50:] == -np.inf).all()
    np.testing.assert_allclose(scores[:, :50], -np.sort(-expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(
        scores[:, :50], np.take_along_axis(expected, rows[:, :50], axis=1), atol=1e-6
    )
    if similarity == "dot":  # exact numbers: equal scores in the corpus' order
        np.testing.assert_array_equal(rows[:, :50], np.argsort(-expected, axis=1, kind="stable"))
    if stored:
        vectors = unit_length(dot_encode(CORPUS)) if similarity == "cosine" else dot_encode(CORPUS)
        np.testing.assert_array_equal(np.load(store), vectors)


def test_every_searcher_scores_rows_as_it_scores_what_it_finds(tmp_path):
    texts = [*QUERIES[:3], "passage 3 query", "passage 9"]
    searchers = [index.dense_searcher(encode, encode, CORPUS, store=tmp_path / "corpus.npy")]
    if not missing("bm25s"):
        searchers.append(bm25.bm25_searcher(CORPUS))
    if not missing("faiss"):
        searchers.append(index.faiss_searcher(encode, encode, CORPUS))
    for searcher in searchers:
        scores, rows = searcher.search(texts, 20)
        np.testing.assert_allclose(searcher.score(texts, rows), scores, rtol=1e-5)
        assert searcher.score(texts, np.full((5, 1), -1)).tolist() == [[-np.inf]] * 5
        assert searcher.score(texts, np.zeros((5, 0), int)).shape == (5, 0)


def missing(module):
    import importlib.util

    return importlib.util.find_spec(module) is None


def test_a_corpus_is_encoded_once_and_queries_once_a_block(small_blocks):
    calls = {"queries": 0, "corpus": 0}

    def counted(kind):
        def count(texts):
            calls[kind] += len(texts)
            assert kind == "queries" or len(texts) <= 16
            return encode(texts)

        return count

    searcher = index.dense_searcher(counted("queries"), counted("corpus"), CORPUS)
    for start in (0, 4):
        _, rows = searcher.search(QUERIES[start : start + 4], 3)
        searcher.score(QUERIES[start : start + 4], rows)
    assert calls == {"queries": 7, "corpus": 50}


@pytest.mark.parametrize(
    ("factory", "parameters"), [("Flat", ""), ("IVF4,Flat", "nprobe=4"), ("HNSW32", "")]
)
def test_faiss_finds_what_exact_search_finds(small_blocks, factory, parameters):
    pytest.importorskip("faiss")
    # Small enough that these settings look at every passage.
    exact = index.dense_searcher(encode, encode, CORPUS).search(QUERIES, 10)
    result = index.faiss_searcher(
        encode, encode, CORPUS, factory=factory, parameters=parameters
    ).search(QUERIES, 10)
    np.testing.assert_array_equal(result[1], exact[1])
    np.testing.assert_allclose(result[0], exact[0], rtol=1e-5)


def test_faiss_that_finds_few_says_so_and_scores_exactly():
    pytest.importorskip("faiss")
    scores, rows = index.faiss_searcher(encode, encode, CORPUS, factory="IVF8,PQ4x4").search(
        QUERIES, 40
    )
    assert ((rows >= 0).sum(axis=1) < 40).all()  # one cluster of eight is searched
    assert (scores[rows < 0] == -np.inf).all()
    similarity = unit_length(encode(QUERIES)) @ unit_length(encode(CORPUS)).T
    there = np.where(rows >= 0, np.take_along_axis(similarity, rows, axis=1), -np.inf)
    np.testing.assert_allclose(scores, there, atol=1e-6)
    assert (np.diff(np.where(rows >= 0, scores, -9)) <= 0).all()


def test_what_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    def refused(match, make, *arguments, **options):
        with pytest.raises(InputError, match=match) as error:
            make(encode, encode, *arguments, **options)
        assert "\n" not in str(error.value)

    refused("similarity", index.dense_searcher, CORPUS, similarity="euclidean")
    refused("empty", index.dense_searcher, [])
    refused(
        "cannot be written", index.dense_searcher, CORPUS, store=tmp_path / "nowhere" / "corpus.npy"
    )
    with pytest.raises(RunError, match="not finite"):
        index.dense_searcher(encode, lambda texts: encode(texts) * np.nan, CORPUS)
    if not missing("faiss"):
        refused("'Nonsense'", index.faiss_searcher, CORPUS, factory="Nonsense")
        refused("'IVF999,Flat' of 50 passages", index.faiss_searcher, CORPUS, factory="IVF999,Flat")
        refused("probes=3", index.faiss_searcher, CORPUS, parameters="probes=3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    refused(r"embed-jax\[search\]", index.faiss_searcher, CORPUS)
