"""The interface that all indexes on disk share, and those of one vector a document."""

import importlib.util

import numpy as np
import pytest
import scipy.sparse

from embed_jax.errors import InputError
from embed_jax.retrieval import sparse_index, vector_index, word_index
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.indexes import KINDS, Index, build_index, open_index
from embed_jax.scores import unit_length

DIM = 16
MODEL = {"model": "m", "prompts": {"query": "q: "}}
OPTIONS = {"multi-vector": {"bits": 8, "partitions": 16}}
OPTIONS["ivf-pq"] = {"factory": "IVF4,PQ4x4"}
EXACT = ("exact", "lance", "bm25", "sparse")
LANCE = pytest.mark.skipif(importlib.util.find_spec("lancedb") is None, reason="no LanceDB")
MARKED = {kind: pytest.param(kind, marks=LANCE if kind == "lance" else ()) for kind in KINDS}
WORDS = ["ähre", "boat", "cloud", "dune", "elm", "fjord", "grain", "harbour", "ivy", "jay"]


def make_vectors(kind, seed, count):
    rng = np.random.default_rng([seed, 5])
    if kind == "bm25":
        return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(count)]
    if kind == "sparse":
        rows = np.where(rng.random((count, DIM)) < 0.6, rng.random((count, DIM)), 0)
        return [scipy.sparse.csr_array(row[None].astype(np.float32)) for row in rows]
    if kind != "multi-vector":
        return list(unit_length(rng.normal(size=(count, DIM))))
    return [unit_length(rng.normal(size=(rng.integers(1, 6), DIM))) for _ in range(count)]


def score_all(query, oracle, kind):
    """Returns the scores of documents by their own definitions."""
    if kind == "bm25":
        every = bm25_search(oracle, {"q": query}, len(oracle))["q"]
        return {name: every.get(name, 0.0) for name in oracle}
    return {name: similarity(query, array) for name, array in oracle.items()}


def similarity(query, vectors):
    if scipy.sparse.issparse(query):
        return float((query @ vectors.T).toarray()[0, 0])
    return (np.atleast_2d(query) @ np.atleast_2d(vectors).T).max(axis=1).sum()


def search(index, kind, queries, k, **options):
    wide = dict.fromkeys(("int8", "binary", "hnsw"), {"candidates": 200})
    wide["ivf-pq"] = {"candidates": 200, "probes": 100}
    wide["multi-vector"] = {"candidates": 1000, "probes": 1000}
    queries = scipy.sparse.vstack(queries) if kind == "sparse" else queries
    return index.search(queries, k, **wide.get(kind, {}), **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(vector_index, "CHUNK_ROWS", 40)
    monkeypatch.setattr(word_index, "CHUNK_WORDS", 200)
    monkeypatch.setattr(sparse_index, "CHUNK_WEIGHTS", 400)


@pytest.mark.parametrize("kind", MARKED.values())
def test_random_changes_leave_what_a_dictionary_holds(tmp_path, kind):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    names = [f"é{number}" for number in range(120)]
    oracle = dict(zip(names, make_vectors(kind, 0, 120), strict=True))
    options = OPTIONS.get(kind, {})
    index = build_index(tmp_path, oracle.items(), identity=MODEL, kind=kind, **options)
    assert isinstance(index, Index)
    queries = make_vectors(kind, 1, 4)
    for step in range(6):
        vectors = make_vectors(kind, 10 + step, 30)
        if step % 3 == 0:
            new = {f"n{step}.{number}": array for number, array in enumerate(vectors)}
            index.add(new.items())
        elif step % 3 == 1:
            new = dict(zip(rng.choice(list(oracle), 30, replace=False), vectors, strict=True))
            index.update((str(name), array) for name, array in new.items())
        else:
            gone = set(rng.choice(list(oracle), 45, replace=False).tolist())
            index.delete(gone)
            oracle = {name: array for name, array in oracle.items() if name not in gone}
            new = {}
        oracle |= {str(name): array for name, array in new.items()}
        index = open_index(tmp_path, MODEL) if step % 2 else index
        assert sorted(index.ids) == sorted(oracle) and len(index) == len(oracle)
        allowed = set(rng.choice(list(oracle), 70, replace=False).tolist()) | {"unknown"}
        all_scores = [score_all(query, oracle, kind) for query in queries]
        for some in (None, allowed, set(sorted(allowed)[:9])):
            for query_number, run in enumerate(search(index, kind, queries, 5, allowed=some)):
                scores = {
                    name: score
                    for name, score in all_scores[query_number].items()
                    if some is None or name in some
                }
                best = sorted(scores, key=lambda name: (scores[name], name), reverse=True)[:5]
                best = [name for name in best if kind not in ("bm25", "sparse") or scores[name]]
                assert len(run) == len(best) and list(run.values()) == sorted(
                    run.values(), reverse=True
                )
                for name, value in run.items():
                    assert abs(value - scores[name]) < (0.1 if kind == "multi-vector" else 1e-5)
                if kind in EXACT:
                    assert list(run) == best
                else:  # approximate: HNSW may miss one, decoded tokens may change places
                    assert len(set(run) & set(best)) >= 4
    assert index.size()["documents"] == len(oracle)


@pytest.mark.parametrize(
    "factory", ["Flat", "HNSW8", "IVF4,Flat", "PCA8,IVF4,PQ4x4", "SQ8", "BFlat"]
)
def test_faiss_passes_over_what_is_gone_until_it_is_built_anew(tmp_path, factory):
    pytest.importorskip("faiss")
    vectors = make_vectors("exact", 0, 150)
    documents = [(f"d{number}", vector) for number, vector in enumerate(vectors)]
    index = build_index(
        tmp_path,
        documents,
        identity=MODEL,
        factory=factory,
        parameters="nprobe=4" if "IVF" in factory else "",
    )
    index.delete([f"d{number}" for number in range(0, 150, 6)])
    assert index._state.faiss_index.ntotal == 150  # a quarter must be gone
    runs = index.search(vectors[:12], 3, candidates=60)
    for number, run in enumerate(runs):
        assert (f"d{number}" in run) == (number % 6 > 0)
    index.delete([f"d{number}" for number in range(1, 150, 6)])
    assert index._state.faiss_index.ntotal == 100 == len(index)
    index.add([("d0", vectors[0])])
    for state in (index, open_index(tmp_path)):
        runs = state.search(vectors[:12], 3, candidates=60)
        for number, run in enumerate(runs):
            assert (f"d{number}" in run) == (number == 0 or number % 6 > 1)
    index.delete(index.ids)
    assert index.search(vectors[:2], 3) == [{}, {}]
    index.add(documents[:3])
    assert list(index.search(vectors[:1], 1)[0]) == ["d0"]


@pytest.mark.parametrize("kind", [MARKED[kind] for kind in EXACT])
def test_of_equal_scores_larger_ids_come_first(tmp_path, kind):
    """It is the order of trec_eval: a run that is written and read keeps its order."""
    vectors = make_vectors(kind, 0, 100)
    if kind == "bm25":
        vectors = ["boat boat boat", *(text.replace("boat", "elm") for text in vectors[1:])]
    if kind == "sparse":
        vectors[0] = 10 * vectors[0]
    same = [(f"s{number:02d}", vectors[0]) for number in range(30)]
    others = [(f"d{number}", vector) for number, vector in enumerate(vectors[1:])]
    index = build_index(tmp_path, [*others, *same], identity=MODEL, kind=kind)
    names = [f"s{number:02d}" for number in reversed(range(30))]
    for k in (1, 5, 29, 30):
        assert list(search(index, kind, vectors[:1], k)[0]) == names[:k]
    few = {"s07", "s03", "d5"}
    assert list(search(index, kind, vectors[:1], 2, allowed=few)[0]) == ["s07", "s03"]


@pytest.mark.parametrize("kind", [MARKED[kind] for kind in (*EXACT, "hnsw", "multi-vector")])
def test_texts_and_fields_follow_their_documents(tmp_path, kind):
    pytest.importorskip("faiss")
    vectors = make_vectors(kind, 0, 90)
    texts = vectors if kind == "bm25" else [f"text é{number}" for number in range(90)]

    def document(number, year):
        fields = {"year": year, "tags": ["even" if number % 2 == 0 else "odd"]}
        return f"d{number}", vectors[number], texts[number], fields if number % 3 else {}

    documents = [document(number, 2000 + number) for number in range(90)]
    index = build_index(
        tmp_path,
        documents[:60],
        identity=MODEL,
        kind=kind,
        store_texts=True,
        **OPTIONS.get(kind, {}),
    )
    index.add(documents[60:])
    index.update([document(7, 1990)])
    index.delete(["d0", "d11"])
    index = open_index(tmp_path, MODEL)
    assert index.texts(["d89", "d7"]) == [texts[89], texts[7]]
    assert index.fields("d7")["year"] == 1990 and index.fields("d9") == {}
    years = {number: 1990 if number == 7 else 2000 + number for number in range(90) if number % 3}
    recent = {f"d{number}" for number, year in years.items() if year >= 2050}
    assert index.select({"year": {"min": 2050}}) == recent
    assert index.select({"year": [1990, 2001]}) == {"d7", "d1"}
    odd = {"tags": "odd", "year": {"max": 2050}}
    assert index.select(odd) == {f"d{n}" for n, y in years.items() if n % 2 and y <= 2050} - {"d11"}
    assert "d9" in index.select({"year": {"not": 1990}})
    (run,) = search(index, kind, vectors[5:6], 100, where={"year": {"min": 2050}})
    assert run and run.keys() <= recent
    (run,) = search(index, kind, vectors[5:6], 9, where=odd, allowed=["d5", "d7", "d9", "d80"])
    assert run and run.keys() <= {"d5", "d7"}
    refused("unknown field 'yyear' .did you mean 'year'", index.select, {"yyear": 1})
    refused("filter on 'year': expected a value, a list", index.select, {"year": {"above": 1}})
    refused("no document 'd0'", index.texts, ["d0"])
    refused("'x': field 'a': expected text", index.add, [("x", vectors[0], "t", {"a": {}})])


def test_documents_without_words_are_kept_and_never_found(tmp_path):
    index = build_index(tmp_path / "words", [("a", ""), ("b", "!?")], identity={}, kind="bm25")
    assert index.search(["boat", ""], 3) == [{}, {}] and sorted(index.ids) == ["a", "b"]
    index.add([("c", "a boat")])
    assert [list(run) for run in open_index(tmp_path / "words").search(["boat", "elm"], 3)] == [
        ["c"],
        [],
    ]
    nothing = scipy.sparse.csr_array((1, 8), dtype=np.float32)
    ones = scipy.sparse.csr_array(np.ones((1, 8), np.float32))
    index = build_index(tmp_path / "sparse", [("a", nothing)], identity={}, kind="sparse")
    assert index.search(nothing, 3) == [{}] == index.search(ones, 3)
    refused("over 7 words, the index has 8", index.search, nothing[:, :7], 1)
    refused("document 'b': expected rows of a sparse", index.add, [("b", np.ones(8))])
    refused("document 'b': expected a text, found int", build_index, tmp_path / "x", [("b", 3)],
            identity={}, kind="bm25")  # fmt: skip


def test_dot_products_keep_lengths_and_cosines_do_not(tmp_path):
    documents = [("short", np.array([1.0] + [0.0] * 7)), ("long", np.array([3.0] + [3.0] * 7))]
    query = [np.array([2.0] + [0.0] * 7)]
    for name, expected in (("dot", {"long": 6.0, "short": 2.0}), ("cosine", {"short": 1.0})):
        index = build_index(tmp_path / name, documents, identity=MODEL, similarity=name)
        run = index.search(query, len(expected))[0]
        assert list(run) == list(expected)
        np.testing.assert_allclose(list(run.values()), list(expected.values()), rtol=1e-6)


def refused(message, function, *args, **options):
    with pytest.raises(InputError, match=message) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.unchecked
def test_what_cannot_be_used_is_one_line(tmp_path):
    pytest.importorskip("faiss")
    path, vector = tmp_path / "index", np.ones(8, np.float32)

    def build(documents, **options):
        return build_index(path, documents, identity=MODEL, **options)

    refused("unknown kind 'nearest'", build, [("a", vector)], kind="nearest")
    refused("similarity: expected 'cosine' or 'dot'", build, [("a", vector)], similarity="l2")
    refused("no documents: nothing", build, [])
    refused(
        "'a': expected floating-point numbers .D., found float32 .1, 8.", build, [("a", [vector])]
    )
    refused("'b': of 4 dimensions, the index has 8", build, [("a", vector), ("b", vector[:4])])
    refused("'a': a zero vector has no cosine", build, [("a", vector * 0)])
    refused("'a': a number that is not finite", build, [("a", vector * np.nan)])
    refused("document 'a' comes twice", build, [("a", vector), ("a", vector)])
    refused("document 3: expected a string", build, [(3, vector)])
    refused(
        "FAISS cannot make the index 'Nonsense' of 1 vectors",
        build,
        [("a", vector)],
        factory="Nonsense",
    )
    refused("'HNSW8' with 'depth=3'", build, [("a", vector)], factory="HNSW8", parameters="depth=3")
    assert not list(path.glob("snapshot-*"))
    index = build([("a", vector), ("b", -vector)])
    refused("holds an index already", build, [("a", vector)])
    refused("model was 'm', is 'n'", open_index, path, {**MODEL, "model": "n"})
    refused("queries: of 4 dimensions, the index has 8", index.search, [vector[:4]], 1)
    refused("queries: expected floating-point numbers .Q, D.", index.search, vector, 1)
    refused("k: expected 1 or more, found 0", index.search, [vector], 0)
    refused("document 'a' is in the index already; update it", index.add, [("a", vector)])
    refused("document 'c' is not in the index; add it", index.update, [("c", vector)])
    refused("no document 'c' to delete", index.delete, ["c"])
    assert index.search([], 3) == [] and index.search([vector], 3, allowed=[]) == [{}]
    description = path / "index.json"
    description.write_text(description.read_text().replace('"vectors"', '"graph"'))
    refused("unknown kind of index 'graph'", open_index, path)
    description.write_text(description.read_text().replace("embed-jax index 1", "a list"))
    refused("not the description of a 'embed-jax index 1'", open_index, path)
