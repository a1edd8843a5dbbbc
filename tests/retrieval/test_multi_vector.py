import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import document_chunks, multi_vector, residual_codec
from embed_jax.retrieval.indexes import open_index
from embed_jax.retrieval.multi_vector import build_multi_vector
from embed_jax.retrieval.residual_codec import train_codec
from embed_jax.scores import unit_length

DIM = 16
MODEL = {"model": "colbert", "prompts": {"query": "[Q] "}}


def make_documents(count, seed=0, prefix="d"):
    """Returns documents whose tokens lie around 60 centres."""
    rng = np.random.default_rng(seed)
    centres = unit_length(np.random.default_rng(99).normal(size=(60, DIM)))
    documents = []
    for number in range(count):
        size = int(rng.integers(1, 20))
        tokens = centres[rng.integers(0, 60, size)] + 0.15 * rng.normal(size=(size, DIM))
        documents.append((f"{prefix}{number}", unit_length(tokens.astype(np.float32))))
    return documents


DOCUMENTS = make_documents(150)
QUERIES = [
    unit_length(tokens + 0.1 * np.random.default_rng(7).normal(size=tokens.shape))
    for _, tokens in DOCUMENTS[:12]
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(multi_vector, "CHUNK_TOKENS", 300)
    monkeypatch.setattr(document_chunks, "BLOCK", 70)


@pytest.fixture(scope="module")
def codecs():
    sample = np.concatenate([tokens for _, tokens in DOCUMENTS])
    return {bits: train_codec(sample, bits) for bits in residual_codec.BITS}


def test_centroids_of_other_bits_give_the_codec_that_is_learnt_without_them(codecs):
    sample = np.concatenate([tokens for _, tokens in DOCUMENTS])
    own = train_codec(sample, 4, centroids=codecs[1].centroids)
    for name in ("centroids", "cutoffs", "weights", "avg_residual", "threshold"):
        assert np.array_equal(getattr(own, name), getattr(codecs[4], name)), name


def exact(queries, documents, k):
    """Scores every document by every pair of tokens; of equal scores larger ids come first."""
    runs = []
    for query in queries:
        scores = {name: (query @ tokens.T).max(axis=1).sum() for name, tokens in documents}
        runs.append(dict(sorted(scores.items(), key=lambda item: item[::-1], reverse=True)[:k]))
    return runs


def assert_same(runs, expected, atol):
    for run, other in zip(runs, expected, strict=True):
        assert list(run) == list(other)
        np.testing.assert_allclose(list(run.values()), list(other.values()), atol=atol)


def search_all(index, k=10, **options):
    return index.search(QUERIES, k, probes=10**6, candidates=10**6, **options)


@pytest.mark.parametrize("bits", residual_codec.BITS)
def test_search_of_everything_is_max_sim_of_decoded_tokens(tmp_path, codecs, bits):
    index = build_multi_vector(tmp_path, DOCUMENTS, identity=MODEL, codec=codecs[bits])
    decoded = [(name, index.tokens(name)) for name, _ in DOCUMENTS]
    assert_same(search_all(index, 150), exact(QUERIES, decoded, 150), 1e-5)
    if bits == 8:
        tops = zip(search_all(index, 1), exact(QUERIES, DOCUMENTS, 1), strict=True)
        assert all(list(run) == list(other) for run, other in tops)
        for (_, tokens), (_, other) in zip(DOCUMENTS, decoded, strict=True):
            assert np.sum(other * tokens, axis=1).mean() > 0.995


def test_more_probes_and_candidates_find_more(tmp_path, codecs):
    index = build_multi_vector(tmp_path, DOCUMENTS, identity=MODEL, codec=codecs[8])
    expected = search_all(index)

    def recall(**options):
        runs = index.search(QUERIES, 10, **options)
        return np.mean([len(a.keys() & b.keys()) / 10 for a, b in zip(runs, expected, strict=True)])

    by_probes = [recall(probes=probes) for probes in (1, 2, 4, 16, 10**6)]
    assert by_probes == sorted(by_probes) and by_probes[-1] == 1.0 > by_probes[0]
    assert recall(candidates=10) < recall(candidates=40) <= 1.0


def read_residuals(packed, bits):
    """Returns bucket numbers by the format's words: first dimension first, lowest bit first."""
    digits = [[byte >> (7 - place) & 1 for byte in row for place in range(8)] for row in packed]
    return np.array(
        [
            [sum(row[at + bit] << bit for bit in range(bits)) for at in range(0, len(row), bits)]
            for row in digits
        ]
    )


@pytest.mark.parametrize("bits", residual_codec.BITS)
def test_codec(codecs, bits):
    codec = codecs[bits]
    tokens = np.concatenate([tokens for _, tokens in DOCUMENTS[:20]]).astype(np.float16)
    codes, packed = codec.encode(tokens)
    assert packed.shape == (len(tokens), DIM * bits // 8) and packed.dtype == np.uint8
    centroids = codec.centroids.astype(np.float32)
    np.testing.assert_array_equal(codes, (tokens.astype(np.float32) @ centroids.T).argmax(axis=1))
    residuals = tokens - centroids[codes]
    buckets = read_residuals(packed.tolist(), bits)
    np.testing.assert_array_equal(buckets, np.searchsorted(codec.cutoffs, residuals))
    expected = unit_length(centroids[codes] + codec.weights[buckets])
    np.testing.assert_allclose(codec.decode(codes, packed), expected, atol=1e-6)
    assert len(codec.weights) == 2**bits == len(codec.cutoffs) + 1
    assert (np.diff(codec.weights) > 0).all()
    # Each weight is nearer to its bucket than the others, and a bucket's value stays in it.
    np.testing.assert_array_equal(np.searchsorted(codec.cutoffs, codec.weights), range(2**bits))


def test_error_falls_with_bits(codecs):
    tokens = np.concatenate([tokens for _, tokens in make_documents(40, seed=5)])
    similarity = [
        np.mean(np.sum(codec.decode(*codec.encode(tokens.astype(np.float16))) * tokens, axis=1))
        for codec in codecs.values()
    ]
    assert similarity == sorted(similarity) and similarity[-1] > 0.999 > similarity[0] > 0.9


def test_changes_give_the_answers_of_a_rebuild(tmp_path, codecs):
    codec, extra = codecs[4], make_documents(70, seed=1, prefix="e")
    changed = [(name, tokens[:3]) for name, tokens in make_documents(150, seed=2)[20:60:3]]
    index = build_multi_vector(tmp_path / "a", DOCUMENTS, identity=MODEL, codec=codec)
    for start in range(0, 70, 14):
        index.add(extra[start : start + 14])
    index.update(changed)
    gone = [name for name, _ in (*DOCUMENTS[::4], *extra[5:40])]
    index.delete(gone)

    current = {**dict(DOCUMENTS), **dict(extra), **dict(changed)}
    current = [item for item in current.items() if item[0] not in gone]
    rebuilt = build_multi_vector(tmp_path / "b", current, identity=MODEL, codec=codec)
    assert sorted(index.ids) == sorted(rebuilt.ids) == sorted(name for name, _ in current)
    for state in (index, open_index(tmp_path / "a", MODEL)):
        for options in ({}, {"probes": 2, "candidates": 20}):
            assert_same(
                state.search(QUERIES, 15, **options), rebuilt.search(QUERIES, 15, **options), 1e-5
            )
    # The many small writes were joined: two chunks side by side would not fit into one.
    lengths = [chunk.rows for chunk in index._state.chunks]
    assert all(a + b > 300 for a, b in zip(lengths, lengths[1:], strict=False))
    assert gone[0] not in index and all(gone[0] not in run for run in search_all(index, 200))


def test_ties_are_broken_by_id(tmp_path, codecs):
    same = [(name, DOCUMENTS[0][1]) for name in ("ü", "b", "a/..", "", "c\0d", "\ud800", "B")]
    index = build_multi_vector(tmp_path, [*same, *DOCUMENTS], identity=MODEL, codec=codecs[2])
    expected = sorted([name for name, _ in same] + ["d0"], reverse=True)
    assert list(search_all(index, 8)[0]) == expected
    assert list(index.search(QUERIES[:1], 3, candidates=3)[0]) == expected[:3]


def test_documents_without_tokens_and_filters(tmp_path, codecs):
    empty = ("empty", np.zeros((0, DIM), np.float32))
    documents = [empty, *DOCUMENTS, ("last", empty[1])]
    index = build_multi_vector(tmp_path, documents, identity=MODEL, codec=codecs[2])
    assert len(index) == 152 and "empty" in index and index.tokens("empty").shape == (0, DIM)
    everything = search_all(index, 200)
    assert all(len(run) == 150 for run in everything)
    assert index.search([empty[1]], 3) == [{}]
    allowed = {"d3", "d77", "d140", "empty", "unknown"}
    # Few are scored whatever their estimates; of many those that centroids lead to.
    for options in ({"probes": 1}, {"probes": 10**6, "candidates": 2}):
        runs = index.search(QUERIES, 2, allowed=allowed, **options)
        expected = [
            dict([item for item in run.items() if item[0] in allowed][:2]) for run in everything
        ]
        if "candidates" in options:
            assert all(run.keys() < allowed for run in runs)
        else:
            assert_same(runs, expected, 1e-5)
    index.delete([name for name, _ in documents])
    assert len(index) == 0 and index.search(QUERIES[:1], 3) == [{}]
    assert index.search(QUERIES[:1], 3, allowed={"d3"}) == [{}]  # which is deleted
    index.add(DOCUMENTS[:2])
    assert_same(search_all(index, 2), exact(QUERIES, DOCUMENTS[:2], 2), 0.5)


def test_texts_tell_what_changed(tmp_path, codecs):
    documents = [(*document, f"text of {document[0]}") for document in DOCUMENTS[:5]]
    index = build_multi_vector(tmp_path, documents, identity=MODEL, codec=codecs[1])
    before = json.loads((tmp_path / "index.json").read_text())["description"]["texts"]
    texts = {name: text for name, _, text in documents}
    assert index.changes(texts) == type(index.changes(texts))([], [], [])
    changes = index.changes({**texts, "d1": "another", "new": "x"} | {"d2": "other"})
    assert (changes.added, changes.updated, changes.deleted) == (["new"], ["d1", "d2"], [])
    index.delete(["d4"])
    assert index.changes(texts).added == ["d4"] and index.changes({}).deleted == index.ids
    index.add([documents[4]])
    assert json.loads((tmp_path / "index.json").read_text())["description"]["texts"] == before
    index.add(DOCUMENTS[5:6])  # without its text
    assert json.loads((tmp_path / "index.json").read_text())["description"]["texts"] is None
    assert index.changes({**texts, "d5": "text"}).updated == ["d5"]


def test_layout_is_that_of_fast_plaid(tmp_path):
    index = build_multi_vector(tmp_path, DOCUMENTS, identity=MODEL, bits=2, partitions=32)
    folder = tmp_path / "snapshot-1"
    arrays = {file.name: np.load(file) for file in folder.glob("*.npy")}
    metadata, plan = (
        json.loads((folder / name).read_text()) for name in ("metadata.json", "plan.json")
    )
    tokens, chunks = sum(len(tokens) for _, tokens in DOCUMENTS), metadata["num_chunks"]
    assert plan == {"nbits": 2, "num_chunks": chunks} and chunks > 3
    assert metadata["num_documents"] == 150 and metadata["num_embeddings"] == tokens
    assert metadata["num_partitions"] == 32 and metadata["nbits"] == 2
    for name, shape, dtype in (
        ("centroids", (32, DIM), np.float16),
        ("bucket_cutoffs", (3,), np.float32),
        ("bucket_weights", (4,), np.float32),
        ("avg_residual", (DIM,), np.float32),
        ("cluster_threshold", (1,), np.float32),
        ("ivf_lengths", (32,), np.int32),
    ):
        array = arrays.pop(f"{name}.npy")
        assert array.shape == shape and array.dtype == dtype, name
    lists = np.split(arrays.pop("ivf.npy"), np.cumsum(np.load(folder / "ivf_lengths.npy"))[:-1])
    lengths, names, offset = [], [], 0
    for number in range(chunks):
        own = json.loads((folder / f"doclens.{number}.json").read_text())
        names += json.loads((folder / f"documents.{number}.json").read_text())["ids"]
        content = json.loads((folder / f"{number}.metadata.json").read_text())
        counts = {"num_documents": len(own), "num_embeddings": sum(own)}
        assert content == {**counts, "embedding_offset": offset}
        assert arrays[f"{number}.codes.npy"].shape == (sum(own),)
        assert arrays[f"{number}.residuals.npy"].shape == (sum(own), DIM * 2 // 8)
        lengths, offset = lengths + own, offset + sum(own)
    assert names == index.ids == [name for name, _ in DOCUMENTS]
    assert lengths == [len(tokens) for _, tokens in DOCUMENTS]
    codes = np.concatenate([arrays.pop(f"{number}.codes.npy") for number in range(chunks)])
    of_token = np.repeat(np.arange(150), lengths)
    for centroid, documents in enumerate(lists):
        np.testing.assert_array_equal(documents, np.unique(of_token[codes == centroid]))
    assert sorted(arrays) == sorted(f"{number}.residuals.npy" for number in range(chunks))


PEER = """
import json, sys
import numpy as np, torch
from fast_plaid import search
if __name__ == "__main__":
    queries = torch.from_numpy(np.load(sys.argv[2]))
    index = search.FastPlaid(index=sys.argv[1], device="cpu")
    print(json.dumps(index.search(queries, top_k=10, n_ivf_probe=8)))
"""


@pytest.mark.slow
@pytest.mark.skipif("FAST_PLAID_PYTHON" not in os.environ, reason="needs fast-plaid, by itself")
@pytest.mark.parametrize("bits", residual_codec.BITS)
def test_fast_plaid_opens_the_index_and_finds_the_same(tmp_path, bits):
    """FAST_PLAID_PYTHON is a Python with fast-plaid, whose torch is another than ours."""
    index = build_multi_vector(tmp_path / "index", DOCUMENTS, identity=MODEL, bits=bits)
    shutil.copytree(tmp_path / "index" / "snapshot-1", tmp_path / "copy")
    queries = [tokens for _, tokens in DOCUMENTS if len(tokens) >= 8][:20]
    queries = [tokens[:8] for tokens in queries]
    np.save(tmp_path / "queries.npy", np.stack(queries).astype(np.float16))
    done = subprocess.run(
        [os.environ["FAST_PLAID_PYTHON"], "-c", PEER, tmp_path / "copy", tmp_path / "queries.npy"],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    peer_runs = json.loads(done.stdout.splitlines()[-1])
    ours = index.search(queries, 10)
    for run, other in zip(ours, peer_runs, strict=True):
        scores = {index.ids[position]: score for position, score in other}
        assert len(scores.keys() & run.keys()) >= 9  # half precision swaps near scores
        for name in scores.keys() & run.keys():
            assert abs(scores[name] - run[name]) < 0.02


def refused(message, function, *args, **options):
    with pytest.raises(InputError, match=message) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.unchecked
def test_what_cannot_be_used_is_one_line(tmp_path, codecs):
    codec, path = codecs[2], tmp_path / "index"

    def build(documents, where=path, **options):
        return build_multi_vector(where, documents, identity=MODEL, **options)

    tokens = DOCUMENTS[0][1]
    refused("no index, or its first build", open_index, path)
    refused("no documents: nothing", build, [])
    refused("no documents: nothing", build, [], codec=codec)
    refused("documents without tokens only", build, [("a", tokens[:0])])
    refused("document 'a' comes twice", build, [("a", tokens), ("a", tokens)], codec=codec)
    refused("document 3: expected a string", build, [(3, tokens)])
    refused("document 'a': expected floating-point", build, [("a", tokens[0])])
    refused("document 'a': expected floating-point", build, [("a", np.ones((2, 16), int))])
    refused("'b': of 8 dimensions, the index has 16", build, [("a", tokens), ("b", tokens[:, :8])])
    refused("'a': a number that is not finite", build, [("a", tokens * np.inf)])
    refused("'a': token 0 is a zero vector", build, [("a", tokens * 0)])
    refused("bits: expected 1, 2, 4 or 8, found 3", build, DOCUMENTS, bits=3)
    refused("a multiple of 8, found 9", build, [("a", np.ones((4, 9), np.float32))])
    refused("partitions: expected 1 to", build, DOCUMENTS, partitions=10**6)
    assert not list(path.glob("snapshot-*")), "what was refused leaves nothing"

    index = build(DOCUMENTS, codec=codec)
    refused("holds an index already", build, DOCUMENTS)
    refused("model was 'colbert', is 'other'", open_index, path, {**MODEL, "model": "other"})
    refused("prompts was .*, is None", open_index, path, {"model": "colbert"})
    refused("query 0: of 8 dimensions, the index has 16", index.search, [tokens[:, :8]], 3)
    refused("query 1: a number that is not finite", index.search, [tokens, tokens * np.nan], 3)
    refused("k: expected 1 or more, found 0", index.search, [tokens], 0)
    refused("probes: expected 1 or more", index.search, [tokens], 1, probes=0)
    refused("document 'd1' is in the index already; update it", index.add, DOCUMENTS[1:2])
    refused("document 'x' comes twice", index.add, [("x", tokens), ("x", tokens)])
    refused("'x': of 8 dimensions, the index has 16", index.add, [("x", tokens[:, :8])])
    refused("document 'x' is not in the index; add it", index.update, [("x", tokens)])
    refused("no document 'x' to delete", index.delete, ["d1", "x"])
    refused("no document 'x'", index.tokens, "x")
    assert_same(search_all(index), search_all(open_index(path, MODEL)), 0)
    assert [entry.name for entry in path.glob("snapshot-*")] == ["snapshot-1"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused("not an index, it has the file 'notes.txt'", build, DOCUMENTS, other)
    refused("cannot be written", build, DOCUMENTS, other / "notes.txt")
    codes = path / "snapshot-1" / "0.codes.npy"
    codes.write_bytes(codes.read_bytes()[:-4])
    refused("0.codes.npy: damaged: ", open_index, path)
    codes.unlink()
    refused("0.codes.npy: missing, the index is damaged", open_index, path)


def test_a_write_of_another_process_is_seen_by_the_next_write(tmp_path, codecs):
    first = build_multi_vector(tmp_path, DOCUMENTS[:50], identity=MODEL, codec=codecs[4])
    before = search_all(first)
    second = open_index(tmp_path, MODEL)
    second.delete(["d0"])
    assert_same(search_all(first), before, 0)  # its files are gone, and still mapped
    first.add(DOCUMENTS[60:61])
    assert "d0" not in first and "d60" in first and len(first) == 50
    third = build_multi_vector(
        tmp_path, DOCUMENTS, identity={"model": "b"}, codec=codecs[4], replace=True
    )
    refused("replaced by another index meanwhile: model was 'b'", first.add, DOCUMENTS[70:71])
    assert len(third) == 150
