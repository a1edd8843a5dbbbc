"""Batches of one cluster each: which records they have, a resumed run's, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError
from embed_jax.retrieval.kmeans import learn_centroids, nearest_centroids
from embed_jax.train import clusters as train_clusters
from embed_jax.train.clusters import join_small_clusters, with_clusters

pytest.importorskip("grain")
pytest.importorskip("faiss")
TOPICS, EACH, SIZE = 4, 30, 8


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def planted(seed=0):
    """Returns vectors near four directions, and which one each is near, shuffled."""
    rng = np.random.default_rng(seed)
    topics = rng.permutation(np.repeat(np.arange(TOPICS), EACH))
    return unit(np.eye(16)[topics] + 0.1 * rng.normal(size=(len(topics), 16))), topics


def same_partition(ours, other):
    pairs_of = set(zip(ours, other, strict=True))
    return len(pairs_of) == len(set(ours)) == len(set(other))


# ---- k-means -------------------------------------------------------------------------------------


def test_kmeans_finds_planted_clusters_by_their_cosine():
    vectors, topics = planted()
    centroids = learn_centroids(vectors, TOPICS, iterations=20, points=256, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    nearest = nearest_centroids(vectors, centroids)
    assert same_partition(nearest, topics)
    assert (nearest == np.argmax(vectors @ centroids.T, axis=1)).all()
    again = learn_centroids(vectors, TOPICS, iterations=20, points=256, seed=0)
    assert again.tobytes() == centroids.tobytes()


def test_small_clusters_join_the_nearest_until_none_is_too_small():
    angles = np.deg2rad([0, 1, 2, 3, 40, 80, 82, 84, 86, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    clusters = np.array([5, 5, 5, 5, 0, 2, 2, 2, 2, 9])

    def joined(number):
        return join_small_clusters(clusters, vectors, lambda indices: len(indices) >= number)

    # 40 degrees is nearer to 1.5 than to 83; 180 is nearer to 83 than to the others.
    assert same_partition(joined(3), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert same_partition(joined(1), clusters), "large enough: unchanged"
    assert set(joined(10)) == set(joined(11)) == {0}
    with_180 = join_small_clusters(clusters, vectors, lambda indices: 9 in indices or 0 in indices)
    # The smallest goes first: 40 degrees to 1.5, then 83 to the nearer of the others.
    assert same_partition(with_180, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1])


# ---- the data of a run ---------------------------------------------------------------------------


class Embedder:
    """A model whose embeddings of "text N" are row N of the vectors; it remembers its prompts."""

    routes = ()

    def __init__(self, vectors):
        self.vectors, self.prompts = vectors, []

    def encode(self, texts, prompt="", **_):
        if list(texts) == ["text"]:  # the first question: what its embeddings are
            return self.vectors[:1]
        self.prompts.append(prompt)
        return self.vectors[[int(text.split()[1]) for text in texts]]


def pairs(count=TOPICS * EACH, **fields):
    records = [{"anchor": f"text {n}", "positive": f"other {n}"} for n in range(count)]
    return RecordSource(records, record_fields(records), **fields)


def config_of(**fields):
    return override(Experiment(), **{"batch__clusters": TOPICS, "batch__size": SIZE} | fields)


@pytest.fixture
def clusters_of(tmp_path):
    """`clusters_of(model, source, **fields)`: the clusters of a data set."""

    def find(model, source=None, **fields):
        encode = TextEncoder(model) if isinstance(model, Embedder) else model
        sources = {"train": source or pairs()}
        return with_clusters(sources, encode, config_of(**fields), tmp_path)["train"].clusters

    return find


def test_anchors_are_clustered_with_their_prompt(clusters_of, capsys):
    vectors, topics = planted()
    model = Embedder(vectors)
    assert same_partition(clusters_of(model, pairs(prompts=("query: ", ""))), topics)
    assert "4 clusters, of 30 to 30 records; 24 fill no batch" in capsys.readouterr().out
    assert model.prompts == ["query: "]


def test_clusters_are_read_again_and_made_again_for_other_data_or_settings(clusters_of):
    model, other = (Embedder(planted(seed)[0]) for seed in range(2))
    first = clusters_of(model)
    assert clusters_of(other).tobytes() == first.tobytes(), "another machine, other bits"
    assert clusters_of(other, train__log_every=7).tobytes() == first.tobytes()
    assert not other.prompts
    changes = [
        {"source": pairs(60)},
        {"source": pairs(prompts=("query: ", ""))},
        {"train__seed": 2**32 - 1},
        {"batch__clusters": 2},
    ]
    for number, change in enumerate(changes, 1):
        clusters_of(other, **change)
        assert len(other.prompts) == number


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors, topics = planted()
    sources = with_clusters({"train": pairs()}, TextEncoder(Embedder(vectors)), config_of())
    assert same_partition(sources["train"].clusters, topics) and not list(tmp_path.iterdir())


def test_another_model_clusters_without_the_prompts_of_the_trained_one(clusters_of, monkeypatch):
    vectors, topics = planted()
    other = Embedder(vectors)
    monkeypatch.setattr(train_clusters, "load_sentence_encoder", {"other/model": other}.__getitem__)
    source = pairs(prompts=("query: ", ""))
    assert same_partition(clusters_of(len, source, batch__cluster_model="other/model"), topics)
    assert other.prompts == [""]


@pytest.mark.parametrize("field", ["anchor", "positive"])
def test_the_records_of_a_cluster_fill_a_batch(clusters_of, field):
    vectors, topics = planted()
    records = [{"anchor": f"text {n}", "positive": f"other {n}"} for n in range(len(topics))]
    chosen = np.flatnonzero(topics == 2)
    for place, index in enumerate(chosen):
        records[index][field] = f"text {chosen[place % (SIZE - 1)]}"
    source = RecordSource(records, record_fields(records))
    clusters = clusters_of(Embedder(vectors), source, batch__no_duplicates=field == "positive")
    assert len(set(clusters.tolist())) == TOPICS - 1 and len(set(clusters[chosen].tolist())) == 1


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        (Embedder(np.eye(16)), pairs(7), "at least 8 records, of a batch, found 7"),
        (Embedder(np.zeros((20, 3, 4))), pairs(20), "with one dense vector for a text, found ''"),
        (len, pairs(20), "with one dense vector for a text, found '', and the trained model has"),
        (Embedder(np.full((20, 8), np.nan)), pairs(20), "expected finite embeddings, found nan"),
    ],
)
def test_what_has_no_clusters(clusters_of, tmp_path, model, source, message):
    with pytest.raises(InputError, match=message):
        clusters_of(model, source)
    assert not (tmp_path / "clusters").exists()


def test_a_model_that_is_not_there_is_named_with_its_field(clusters_of):
    with pytest.raises(InputError, match="config.batch.cluster_model: .*no/such/model"):
        clusters_of(len, batch__cluster_model="./no/such/model")


# ---- a run ---------------------------------------------------------------------------------------

CLUSTERED = ("--config.batch.clusters=3", "--config.optim.schedule=constant")


def test_a_resumed_run_reads_its_clusters_and_ends_with_the_same_bits(
    simcse_here, tmp_path, monkeypatch
):
    def run(workdir, *overrides):
        status, err = simcse_here(workdir, *CLUSTERED, *overrides)
        assert status == 0, err
        losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]
        return losses, load_file(workdir / "model" / "model.safetensors")

    losses, tensors = run(tmp_path / "whole", "--config.train.steps=8")
    run(tmp_path / "parts", "--config.train.steps=4")
    monkeypatch.setattr(train_clusters, "_make_clusters", pytest.fail)  # they are not made again
    resumed, same = run(tmp_path / "parts", "--config.train.steps=8", "--config.train.extend=true")
    assert resumed == losses
    assert all(same[name].tobytes() == tensors[name].tobytes() for name in tensors)
    (file,) = (tmp_path / "parts" / "clusters").iterdir()
    assert 2 <= len(set(np.load(file).tolist())) <= 3


def test_refused(simcse_here, tmp_path, sentence_file):
    for overrides, message in [
        (("--config.mixture.batches=mixed",), "config.batch.clusters: a cluster is of one data"),
        (
            (f"--config.data.train=stream:{sentence_file}", "--config.data.limit=0"),
            "config.batch.clusters: not for a stream",
        ),
    ]:
        status, err = simcse_here(tmp_path / "run", *CLUSTERED, *overrides)
        assert status == 2 and err.count("\n") == 1 and message in err, err
    status, err = simcse_here(tmp_path / "run", "--config.batch.cluster_model=some/model")
    assert status == 2 and "needed by batch.cluster_model='some/model', found 0" in err
