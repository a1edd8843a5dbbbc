"""Reranking data read as a retrieval task."""

import json

import pytest

from embed_jax.data.sources import open_retrieval_task
from embed_jax.errors import InputError

RECORDS = {
    "train": [{"query": "a", "positive": ["x"], "negative": ["y", "z"]}],
    "test": [
        {"query": "b", "positive": ["z"], "negative": ["x"]},
        {"query": ["c", "b"], "positive": ["w"], "negative": []},
        {"query": "none", "positive": [], "negative": ["v"]},
    ],
}


@pytest.fixture
def pool(tmp_path):
    for split, records in RECORDS.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{split}.jsonl").write_text(text)
    return f"pool:{tmp_path}"


def test_candidates_of_all_splits_are_the_corpus(pool):
    corpus, queries, qrels = open_retrieval_task(pool, "test")
    assert sorted(corpus.values()) == ["v", "w", "x", "y", "z"]
    assert corpus == open_retrieval_task(pool, "train")[0]
    relevant = {
        queries[query]: {corpus[document] for document in grades} for query, grades in qrels.items()
    }
    assert relevant == {"b": {"z", "w"}, "c": {"w"}}


def test_an_unknown_split_is_refused(pool, tmp_path):
    with pytest.raises(InputError, match="no split 'dev'; there are test, train"):
        open_retrieval_task(pool, "dev")
    (tmp_path / "dev.jsonl").write_text(json.dumps(RECORDS["test"][2]))
    with pytest.raises(InputError, match="no query of the split 'dev' has a positive"):
        open_retrieval_task(pool, "dev")
