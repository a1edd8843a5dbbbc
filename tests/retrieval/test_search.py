"""Search in stages, of functions only."""

import dataclasses

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import build_index
from embed_jax.retrieval.search import Pipeline, Retriever, index_retriever, search

TEXTS = {
    "d1": "How to descale a kettle with vinegar",
    "d2": "Kettles and the history of tea",
    "d3": "Descale a coffee machine",
    "d4": "The tides of the northern seas",
}
YEARS = {"d1": 2020, "d2": 2021, "d3": 2020, "d4": 2022}


def embed(texts):
    """Counts letters: a tiny model."""
    letters = [[text.lower().count(letter) for letter in "abcdeghiklmnorstv"] for text in texts]
    return np.array(letters, np.float32) + 0.01


def shared_words(queries, passages):
    pairs = zip(queries, passages, strict=True)
    return [len(set(q.lower().split()) & set(p.lower().split())) for q, p in pairs]


@pytest.fixture
def pipeline(tmp_path):
    documents = [
        (name, vector, TEXTS[name], {"year": YEARS[name]})
        for name, vector in zip(TEXTS, embed(list(TEXTS.values())), strict=True)
    ]
    words = [(name, text) for name, text in TEXTS.items()]
    dense = build_index(tmp_path / "dense", documents, identity={"model": "m"}, store_texts=True)
    bm25 = build_index(tmp_path / "words", words, identity={}, kind="bm25")
    retrievers = {"dense": index_retriever(dense, embed), "bm25": index_retriever(bm25)}
    return Pipeline(
        retrievers, texts=dense.texts, reranker=shared_words, shortlist=3, select=dense.select
    )


def test_every_stage_is_reported(pipeline):
    searched = search(pipeline, ["descale a kettle", "tea"], k=2)
    assert list(searched.stages) == ["dense", "bm25", "fused", "reranked"]
    assert list(searched.results[0]) == ["d1", "d3"] and list(searched.results[1])[0] == "d2"
    assert searched.results[0]["d1"] == 3.0
    assert all(len(each) == 3 for each in searched.stages["dense"])
    assert set(searched.seconds) == {"encode dense", "search dense", "encode bm25", "search bm25",
                                  "fused", "reranked"}  # fmt: skip


def test_the_reranking_example_of_a_textbook_is_in_order():
    """Retrieved: the wide document first; reranked: the one that answers."""
    first_stage = {"about kettles": 0.81, "how to descale": 0.79}
    scores = {"about kettles": 0.12, "how to descale": 0.97}
    pipeline = Pipeline(
        {"dense": Retriever(lambda queries, k, allowed: [first_stage for _ in queries])},
        texts=list,
        reranker=lambda queries, passages: [scores[text] for text in passages],
    )
    assert search(pipeline, ["how do I descale a kettle?"]).results == [
        {"how to descale": 0.97, "about kettles": 0.12}
    ]


def test_what_is_not_allowed_never_appears_whatever_its_score(pipeline):
    def careless(queries, k, allowed):
        return [{"d4": 99.0, "d1": 1.0} for _ in queries]

    everywhere = dataclasses.replace(
        pipeline, retrievers={**pipeline.retrievers, "careless": Retriever(careless)}
    )
    for allowed in (["d1", "d2"], {"d3"}, []):
        searched = search(everywhere, ["the tides of the northern seas"], allowed=allowed)
        for stage in [searched.results, *searched.stages.values()]:
            assert stage[0].keys() <= set(allowed)
    searched = search(everywhere, ["descale"], where={"year": 2020}, allowed=["d1", "d4"])
    assert list(searched.results[0]) == ["d1"]


def test_documents_beyond_the_shortlist_follow(pipeline):
    wide = search(dataclasses.replace(pipeline, shortlist=4), ["descale a kettle"], k=4)
    narrow = search(dataclasses.replace(pipeline, shortlist=1), ["descale a kettle"], k=4)
    assert narrow.results[0].keys() == wide.results[0].keys()
    assert list(narrow.results[0])[1:] == list(narrow.stages["fused"][0])[1:]
    values = list(narrow.results[0].values())
    assert values == sorted(values, reverse=True)


@pytest.mark.unchecked
def test_wrong_uses_are_one_line(pipeline):
    plain = dataclasses.replace(pipeline, select=None)
    for message, arguments, options in (
        ("query 1: empty", (pipeline, ["a", " "]), {}),
        ("query 0: contains a NUL", (pipeline, ["a\0b"]), {}),
        ("query 0: expected a text, found int", (pipeline, [3]), {}),
        ("queries: expected a list of texts, found a single", (pipeline, "a"), {}),
        ("allowed: expected a collection of ids", (pipeline, ["a"]), {"allowed": "d1"}),
        ("k: expected 1 or more, found 0", (pipeline, ["a"], 0), {}),
        ("unknown field 'yyear'", (pipeline, ["a"]), {"where": {"yyear": 2020}}),
        ("where: this pipeline has no fields", (plain, ["a"]), {"where": {"year": 2020}}),
    ):
        with pytest.raises(InputError, match=message) as caught:
            search(*arguments, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="retrievers: expected one or more"):
        Pipeline({})
    with pytest.raises(InputError, match="shortlist: expected 1 or more"):
        dataclasses.replace(pipeline, shortlist=0)
    with pytest.raises(InputError, match="reranker: needs texts"):
        dataclasses.replace(pipeline, texts=None)


def test_an_empty_index_finds_nothing(tmp_path):
    index = build_index(tmp_path / "i", [("a", "boat")], identity={}, kind="bm25")
    index.delete(["a"])
    assert search(Pipeline({"bm25": index_retriever(index)}), ["boat"]).results == [{}]


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch):
    """Models are replaced by functions of texts."""
    import types
    from pathlib import Path

    import embed_jax

    readme = Path(__file__).parents[2] / "embed_jax" / "retrieval" / "README.md"
    text = readme.read_text(encoding="utf-8").partition("## Search in stages")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if "=" in line]) <= 10
    model = types.SimpleNamespace(encode_document=embed, encode_query=embed)
    monkeypatch.setattr(embed_jax, "load", lambda name: model)
    scorer = types.SimpleNamespace(score=shared_words)
    monkeypatch.setattr(embed_jax, "load_cross_encoder", lambda name: scorer, raising=False)
    monkeypatch.chdir(tmp_path)
    names = {"corpus": TEXTS, "ids_to_serve": {"d1", "d2", "d4"}}
    exec(compile(code, "README.md", "exec"), names)
    (results,) = names["found"].results
    assert list(results)[0] == "d1" and "d3" not in results
