"""LIMIT: what its texts promise, in both forms, and the same in files."""

import itertools

import pytest

from embed_jax.data.sources import open_retrieval_task
from embed_jax.data.sources.beir import read_beir, write_beir
from embed_jax.data.sources.limit import PAIRS, limit_task
from embed_jax.data.sources.limit_words import LIKED_THINGS
from embed_jax.errors import InputError


def likes(text):
    """Returns what a document says that its person likes."""
    return text.removesuffix(".").split(" likes ")[1].replace(" and ", ", ").split(", ")


def test_every_pair_shares_one_thing_and_each_query_has_two_answers():
    corpus, queries, qrels = limit_task(queries=1035)
    assert len(corpus) == 46 and queries.keys() == qrels.keys()
    liked = {name: likes(text) for name, text in corpus.items()}
    assert {len(words) for words in liked.values()} == {len(set(liked["d0"]))} == {45}
    for a, b in itertools.combinations(corpus, 2):
        assert len(set(liked[a]) & set(liked[b])) == 1
    answers = set()
    for query, judged in qrels.items():
        thing = queries[query].removeprefix("Who likes ").removesuffix("?")
        assert {name for name, words in liked.items() if thing in words} == judged.keys()
        assert list(judged.values()) == [1, 1]
        answers.add(frozenset(judged))
    assert len(answers) == len(PAIRS) == 1035


def test_the_form_with_more_documents_has_the_small_one_in_it():
    small, queries, qrels = limit_task()
    large, *queries_and_qrels = limit_task(documents=500)
    assert (len(large), len(queries)) == (500, 1000)
    assert small.items() <= large.items() and queries_and_qrels == [queries, qrels]
    asked_for = {text.removeprefix("Who likes ").removesuffix("?") for text in queries.values()}
    names = {text.split(" likes ")[0] for text in large.values()}
    assert len(names) == 500
    for text in list(large.values())[46:]:
        assert len(set(likes(text))) == 45 and not asked_for & set(likes(text))


def test_the_seed_decides_the_texts():
    assert limit_task(seed=1) == limit_task(seed=1)
    assert not set(limit_task()[0].values()) & set(limit_task(seed=1)[0].values())


def test_no_two_words_are_alike():
    singular = {word.removesuffix("s") for word in LIKED_THINGS}
    assert len(singular - {"marble"}) >= len(LIKED_THINGS) - 2  # marble and marbles, toast


def test_files_and_names_open_the_same_task(tmp_path, monkeypatch):
    task = limit_task(documents=60)
    write_beir(tmp_path / "limit", task)
    corpus, queries, qrels = read_beir(tmp_path / "limit")
    assert (corpus, list(queries.items()), qrels) == (task[0], list(task[1].items()), task[2])
    assert open_retrieval_task("limit:60") == task
    monkeypatch.chdir(tmp_path)
    assert open_retrieval_task("limit")[0] == task[0], "a directory of the name comes first"
    with pytest.raises(InputError, match="limit: expected an empty directory, or a new one"):
        write_beir(tmp_path / "limit", task)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written: "):
        write_beir(tmp_path / "file", task)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("limit", "train", "limit: expected the split 'test', found 'train'"),
        ("limit:all", "test", "limit:all: expected limit:DOCUMENTS, such as limit:50000"),
        ("limit:45", "test", "limit: expected 46 to 65,536 documents, found 45"),
        ("limit:70000", "test", "limit: expected 46 to 65,536 documents, found 70,000"),
    ],
)
def test_impossible_forms_are_refused(name, split, message):
    with pytest.raises(InputError, match=message):
        open_retrieval_task(name, split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 1036}, "expected 1 to 1,035 queries, found 1,036"),
        ({"seed": -1}, "expected a seed of 0 or more, found -1"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        limit_task(**options)
