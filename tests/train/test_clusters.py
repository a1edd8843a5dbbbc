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
from embed_jax.train.clusters import clustered_sources, join_small_clusters

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
    joined = join_small_clusters(clusters, vectors, 3)
    # 40 degrees is nearer to 1.5 than to 83; 180 is nearer to 83 than to the others.
    assert same_partition(joined, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert same_partition(join_small_clusters(clusters, vectors, 1), clusters), (
        "large enough: unchanged"
    )
    assert set(join_small_clusters(clusters, vectors, 10)) == {0}


# ---- the data of a run ---------------------------------------------------------------------------


class Embedder:
    """A model whose embeddings of "text N" are row N of the vectors; it counts its calls."""

    routes = ()

    def __init__(self, vectors):
        self.vectors, self.calls, self.prompts = vectors, 0, []

    def encode(self, texts, prompt="", **_):
        self.calls += 1
        self.prompts.append(prompt)
        return self.vectors[[int(text.split()[1]) for text in texts]]


def pairs(count=TOPICS * EACH):
    records = [{"anchor": f"text {n}", "positive": f"other {n}"} for n in range(count)]
    return RecordSource(records, record_fields(records))


def config_of(**fields):
    return override(Experiment(), **{"batch__clusters": TOPICS, "batch__size": SIZE} | fields)


def test_every_data_set_has_its_clusters_by_the_prompted_anchors(tmp_path, capsys):
    vectors, topics = planted()
    model = Embedder(vectors)
    config = config_of(data__anchor_prompt="query: ")
    sources = clustered_sources({"train": pairs()}, config, tmp_path)(0, TextEncoder(model))
    assert same_partition(sources["train"].clusters, topics)
    assert "4 clusters, of 30 to 30 records" in capsys.readouterr().out
    assert model.prompts == ["query: "]


def test_clusters_are_read_again_and_made_again_for_other_data_or_settings(tmp_path):
    vectors, _ = planted()
    model = Embedder(vectors)

    def clusters(source=None, step=0, **fields):
        made = clustered_sources({"train": source or pairs()}, config_of(**fields), tmp_path)
        return made(step, TextEncoder(model))["train"].clusters

    first = clusters()
    model.vectors = planted(seed=1)[0]  # another machine, other bits
    assert clusters().tobytes() == first.tobytes() and model.calls == 1
    assert clusters(train__log_every=7).tobytes() == first.tobytes() and model.calls == 1
    for number, change in enumerate(
        [{"step": 4}, {"source": pairs(60)}, {"train__seed": 1}, {"batch__clusters": 2}]
    ):
        assert not np.array_equal(clusters(**change), first) and model.calls == 2 + number


def test_a_function_of_step_and_model_is_clustered_each_time(tmp_path):
    vectors, topics = planted()
    model = TextEncoder(Embedder(vectors))
    steps = []

    def mined(step, encode):
        assert encode is model
        steps.append(step)
        return {"train": pairs(60 if step else 120)}

    sources_at = clustered_sources(mined, config_of(), tmp_path)
    assert same_partition(sources_at(0, model)["train"].clusters, topics)
    assert len(sources_at(10, model)["train"].clusters) == 60
    assert steps == [0, 10] and len(list((tmp_path / "clusters").iterdir())) == 2


def test_another_model_clusters(tmp_path, monkeypatch):
    vectors, topics = planted()
    other = Embedder(vectors)
    monkeypatch.setattr(train_clusters, "load_sentence_encoder", {"other/model": other}.__getitem__)
    config = config_of(batch__cluster_model="other/model")
    sources = clustered_sources({"train": pairs()}, config, tmp_path)(0, None)
    assert same_partition(sources["train"].clusters, topics) and other.calls == 1


@pytest.mark.parametrize(
    ("source", "encode", "message"),
    [
        (pairs(7), Embedder(np.eye(16)), "at least 4 records, and batch.size=8, found 7"),
        (
            pairs(20),
            Embedder(np.zeros((20, 3, 4))),
            "config.batch.cluster_model: expected a model with one dense vector for a text",
        ),
    ],
)
def test_what_has_no_clusters(tmp_path, source, encode, message):
    with pytest.raises(InputError, match=message):
        clustered_sources({"train": source}, config_of(), tmp_path)(0, TextEncoder(encode))
    with pytest.raises(InputError, match="config.batch.cluster_model"):
        clustered_sources({"train": pairs()}, config_of(), tmp_path)(0, lambda *texts: None)
    assert not (tmp_path / "clusters").exists()


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
    monkeypatch.setattr(train_clusters, "_clusters", None)  # would fail if it made them again
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
