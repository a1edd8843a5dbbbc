"""Searches of several kinds of models side by side: scores, sizes, what they store."""

import numpy as np
import pytest

from embed_jax.data.sources.limit import limit_task
from embed_jax.errors import InputError
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.evals.searches import SizedEmbed, score_bm25, score_sizes, searches_table
from embed_jax.evals.task import Use

scipy_sparse = pytest.importorskip("scipy.sparse")


@pytest.fixture(scope="module")
def task():
    return make_retrieval_task(limit_task(queries=20), name="limit", ks=(2, 10))


class Model:
    """Words as dimensions: dense, sparse, or a vector for each."""

    def __init__(self, task, kind):
        words = (word for text in task.corpus.values() for word in self.words(text))
        self.number = {word: number for number, word in enumerate(dict.fromkeys(words))}
        self.kind, self.similarity = kind, "maxsim" if kind == "tokens" else "dot"

    @staticmethod
    def words(text):
        return [word.strip(",.?").lower() for word in text.split()]

    def __call__(self, texts, use):
        assert (use.task, use.kind) == ("limit", "Retrieval")
        rows = []
        for text in texts:
            known = [self.number[word] for word in self.words(text) if word in self.number]
            rows.append(np.eye(len(self.number), dtype=np.float32)[known])
        if self.kind == "tokens":
            return rows
        dense = np.array([np.minimum(row.sum(axis=0), 1) for row in rows])
        return scipy_sparse.csr_array(dense) if self.kind == "sparse" else dense


@pytest.mark.parametrize("kind", ["dense", "sparse", "tokens"])
def test_words_find_both_answers_by_each_kind(task, kind):
    model = Model(task, kind)
    (scores,) = score_sizes(task, model, "words")
    assert scores.outcome.metrics["recall@2"] == 1.0 and scores.name == "words"
    words = 49  # 45 things, two names, "likes" and "and"
    stored = {"dense": len(model.number), "sparse": words, "tokens": words * len(model.number)}
    assert scores.numbers == stored[kind]


def test_dense_vectors_are_cut_to_each_smaller_size(task):
    model = Model(task, "dense")
    whole = len(model.number)
    small, large, all_of_it = score_sizes(task, model, "words", [8, 400, whole, whole + 1])
    names = [each.name for each in (small, large, all_of_it)]
    assert names == ["words, 8", "words, 400", f"words, {whole}"]
    assert [each.numbers for each in (small, large, all_of_it)] == [8, 400, whole]
    recalls = [each.outcome.metrics["recall@2"] for each in (small, large, all_of_it)]
    assert recalls[0] < recalls[1] < recalls[2] == 1.0
    with pytest.raises(InputError, match="a sparse embedding has a number for each word"):
        SizedEmbed(Model(task, "sparse"), 8)(["Who?"], Use("limit", "Retrieval", "query"))


def test_a_table_has_intervals_and_refuses_unknown_metrics(task):
    pytest.importorskip("bm25s")
    bm25 = score_bm25(task)
    header, (row,) = searches_table([bm25], ["recall@2"])
    assert header == ["search", "numbers per document", "recall@2"]
    assert row == ["bm25", "", "1.0000 [1.000, 1.000]"]
    assert bm25.to_json()["intervals"]["recall@2"] == (1.0, 1.0)
    with pytest.raises(InputError, match="metrics: expected some of ndcg@2.*, found 'recall@3'"):
        searches_table([bm25], ["recall@3"])
