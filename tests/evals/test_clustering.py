import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.clustering import (
    ClusteringRun,
    cluster,
    clustering_outcome,
    open_task,
    v_measures,
)
from embed_jax.evals.metrics import bootstrap_interval

pytestmark = pytest.mark.usefixtures("one_thread")


def made(seed, size, labels):
    """Makes texts, most of which have a word of their label, and two words of others."""
    rng = np.random.default_rng(seed)
    drawn = [*range(labels), *rng.integers(labels, size=size - labels).tolist()]
    topics = [label if rng.random() < 0.8 else int(rng.integers(labels)) for label in drawn]
    return [f"topic{topic} w{rng.integers(40)} w{rng.integers(40)}" for topic in topics], drawn


@pytest.fixture(scope="module")
def sets():
    """Sets of different sizes; one has one label."""
    texts, labels = zip(*(made(seed, 40 + 20 * seed, 3 + seed) for seed in range(3)), strict=True)
    return [*texts, ["a", "b"]], [*labels, [1, 1]]


@pytest.fixture
def open_made(write):
    """Opens the task of these texts and labels, with one text or one set per row."""

    def open_made(texts, labels, **options):
        rows = ({"sentences": t, "labels": n} for t, n in zip(texts, labels, strict=True))
        return open_task(write(rows), name="Made", **options)

    return open_made


def test_sets_equal_mteb(sets, open_made, recorded, mteb_scores):
    from datasets import Dataset

    texts, labels = sets
    data = {"test": Dataset.from_dict({"sentences": texts, "labels": labels})}
    reference = mteb_scores("AbsTaskClusteringLegacy", "Clustering", "v_measure", data)
    task = open_made(texts, labels)
    result = task.evaluate(recorded)
    ours = result.metrics
    assert [ours[f"v_measure_{n}"] for n in range(1, 5)] == pytest.approx(
        reference["v_measures"], abs=1e-4
    )
    assert ours["v_measure_4"] == 1 and 0.1 < ours["v_measure_1"] < 0.95
    for name in ("v_measure", "v_measure_std"):
        assert ours[name] == pytest.approx(reference[name], abs=1e-4), name
    assert result.items.score() == pytest.approx(result.score, abs=1e-12)
    assert task.item_texts == [(text,) for members in texts for text in members]
    assert len(result.items) == len(task.item_texts)


@pytest.mark.parametrize("documents, levels", [(0.5, 1), (90, 1), (0, 2), (1000, 2)])
def test_bootstraps_equal_mteb(documents, levels, open_made, recorded, mteb_scores):
    from datasets import Dataset

    texts, fine = made(5, 120, 6)
    labels = fine if levels == 1 else [[n % 2, n] if n else [0] for n in fine]
    data = {"test": Dataset.from_dict({"sentences": texts, "labels": labels})}
    fraction = isinstance(documents, float)
    attributes = {
        "max_fraction_of_documents_to_embed": documents if fraction else None,
        "max_document_to_embed": None if fraction else documents or None,
        "max_documents_per_cluster": 200,
        "n_clusters": 3,
    }
    reference = mteb_scores("AbsTaskClustering", "Clustering", "v_measure", data, **attributes)
    task = open_made(
        texts, labels, protocol="fast", documents=documents, sample_size=200, experiments=3
    )
    result = task.evaluate(recorded)
    assert 0.05 < result.score < 0.95
    for name in ("v_measure", "v_measure_std", "ami", "ami_std"):
        assert result.metrics[name] == pytest.approx(reference[name], abs=1e-4), name
    each = [reference["v_measures"][f"Level {level}"] for level in range(levels)]
    for level in range(levels if levels > 1 else 0):
        assert result.metrics[f"v_measure_level_{level}"] == pytest.approx(
            np.mean(each[level]), abs=1e-4
        )
        assert f"v_measure_level_{level}" in result.intervals
    if levels == 1:
        assert [result.metrics[f"v_measure_{n}"] for n in (1, 2, 3)] == pytest.approx(
            each[0], abs=1e-4
        )
    assert result.items.score() == pytest.approx(result.score, abs=1e-12)
    drawn = {0.5: 60, 90: 90}.get(documents, 120)
    assert 0.8 * drawn < len(result.items) == len(task.item_texts) <= drawn


def test_texts_of_no_sample_are_no_items(open_made, recorded):
    texts, labels = [f"w{n % 3} {n}" for n in range(90)], [n % 3 for n in range(90)]
    task = open_made(texts, labels, protocol="fast", sample_size=10, experiments=2)
    result = task.evaluate(recorded)
    assert 10 < len(task.item_texts) == len(result.items) <= 20
    assert sorted(recorded.seen) == sorted(text for (text,) in task.item_texts)
    assert recorded.uses == {("Made", "Clustering", "", "")}
    assert result.items.score() == pytest.approx(result.score, abs=1e-12)


def test_sets_are_one_in_the_fast_protocol(open_made, recorded):
    texts, labels = made(1, 60, 3)
    options = {"protocol": "fast", "sample_size": 50, "experiments": 2}
    distinct = dict(zip(reversed(texts), reversed(labels), strict=True))
    by_hand = open_made(
        [t for t in dict.fromkeys(texts)], [distinct[t] for t in dict.fromkeys(texts)], **options
    )
    split = open_made([texts[:30], texts[20:]], [labels[:30], labels[20:]], **options)
    assert split.item_texts == by_hand.item_texts
    assert split.evaluate(recorded).metrics == by_hand.evaluate(recorded).metrics


def test_mean_of_values_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for kinds, clusters in ((2, 2), (5, 3), (3, 9), (1, 4), (4, 1)):
        labels, result = rng.integers(kinds, size=60), rng.integers(clusters, size=60)
        labels[:40] = result[:40] % kinds
        expected = metrics.v_measure_score(labels, result)
        assert v_measures(labels, result).mean() == pytest.approx(expected, abs=1e-9)
    assert v_measures(np.zeros(3, int), np.zeros(3, int)).tolist() == [1, 1, 1]


def test_values_say_how_the_v_measure_changes_with_a_text():
    """The values' interval is that of the V-measures of resampled texts.

    A perfect clustering has no uncertainty.
    """
    rng = np.random.default_rng(0)
    labels = rng.choice(4, p=[0.7, 0.15, 0.1, 0.05], size=2000)
    result = np.where(rng.random(2000) < 0.8, labels, rng.integers(4, size=2000))
    ours = clustering_outcome([[ClusteringRun(np.arange(2000), labels, 4)]], [[result]]).intervals[
        "v_measure"
    ]
    reference = bootstrap_interval(2000, lambda rows: v_measures(labels[rows], result[rows]).mean())
    assert ours == pytest.approx(reference, abs=0.05 * (reference[1] - reference[0]) + 0.002)
    perfect = clustering_outcome([[ClusteringRun(np.arange(2000), labels, 4)]], [[3 - labels]])
    assert perfect.items.values == pytest.approx(np.ones(2000))


def test_each_run_weighs_the_same_whatever_its_size():
    rows = [np.arange(4), np.arange(4, 14)]
    labels = [np.array([0, 0, 1, 1]), np.arange(10) % 2]
    result = [np.array([0, 0, 0, 1]), np.arange(10) // 2 % 2]
    runs = [ClusteringRun(row, label, 2) for row, label in zip(rows, labels, strict=True)]
    each = [
        v_measures(label, clusters).mean() for label, clusters in zip(labels, result, strict=True)
    ]
    outcome = clustering_outcome([runs], [result])
    assert outcome.score == pytest.approx(np.mean(each)) == outcome.items.score()
    assert outcome.metrics["v_measure_std"] == pytest.approx(np.std(each))


def test_clusters_that_are_the_labels_score_one():
    centres = 100 * np.eye(3)[[0, 1, 2] * 10]
    result = cluster(centres + np.random.default_rng(0).normal(size=(30, 3)), 3)
    outcome = clustering_outcome(
        [[ClusteringRun(np.arange(30), np.array([0, 1, 2] * 10), 3)]], [[result]]
    )
    assert outcome.metrics == pytest.approx({"v_measure": 1.0, "ami": 1.0})


def test_by_hand():
    """Clusters {a, a}, {a, b}: homogeneity 1 - (ln 2 / 2) / H(labels).

    Completeness is 1 - H(clusters | labels) / ln 2.
    """
    result = cluster(np.array([[0.0], [0.1], [9.0], [9.1]]), 2)
    entropy = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    homogeneity = 1 - np.log(2) / 2 / entropy
    completeness = 1 + 3 / 4 * (2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(2)
    expected = 2 * homogeneity * completeness / (homogeneity + completeness)
    assert v_measures(np.array([0, 0, 0, 1]), result).mean() == pytest.approx(expected)


def test_each_distinct_text_is_encoded_once(sets, open_made, recorded):
    texts, labels = sets
    open_made(texts[:3] + texts[:1], labels[:3] + labels[:1]).evaluate(recorded)
    assert sorted(recorded.seen) == sorted({*sum(texts[:3], [])})


@pytest.mark.parametrize(
    "columns, options, message",
    [
        (
            ([["a", "b"], ["c"]], [[0, 0], [1]]),
            {},
            "set with two labels or more, found none among 2",
        ),
        ((["a", "b"], [0, 0]), {}, "none among 1"),
        ((["a", "b"], [[0, 1], [1, 1]]), {}, "several labels of a text"),
        ((["a", "b"], [0, 1]), {"documents": 9}, "options of the protocol 'fast'"),
        ((["a", "b"], [0, 1]), {"protocol": "quick"}, "unknown protocol 'quick'"),
        ((["a", "b"], [0, 1]), {"batch_size": -1}, "batch_size: expected 0 or more, found -1"),
        (
            (["a"] * 9, [0, 1, 2] * 3),
            {"protocol": "fast", "documents": 0.04},
            "0.04 of 9 texts leave none",
        ),
        (
            (["a"] * 9, [0, 1, 2] * 3),
            {"protocol": "fast", "experiments": 0},
            "experiments: expected 1 or more",
        ),
        ((["a"] * 9, [1] * 9), {"protocol": "fast"}, "level 0 of the labels.*found only 1"),
        ((["a"] * 9, [[0, 5], [1, 5], [2]] * 3), {"protocol": "fast"}, "level 1.*found only 5"),
        (
            (["a"] * 9, [0, 1, 2] * 3),
            {"protocol": "fast", "sample_size": 2},
            "expected 3, one for each.*found 2",
        ),
    ],
)
def test_bad_input_is_one_line(columns, options, message, open_made):
    with pytest.raises(InputError, match=message) as error:
        open_made(*columns, **options)
    assert "\n" not in str(error.value)
