import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.clustering import clustering_metrics, evaluate_clustering, evaluate_clustering_fast

pytestmark = pytest.mark.usefixtures("one_thread")


def made(seed, size, labels):
    """Texts with a word of their label, most of them, and two of others."""
    rng = np.random.default_rng(seed)
    drawn = [*range(labels), *rng.integers(labels, size=size - labels).tolist()]
    topics = [label if rng.random() < 0.8 else int(rng.integers(labels)) for label in drawn]
    return [f"topic{topic} w{rng.integers(40)} w{rng.integers(40)}" for topic in topics], drawn


@pytest.fixture(scope="module")
def sets():
    """Sets of different sizes; one has one label."""
    texts, labels = zip(*(made(seed, 40 + 20 * seed, 3 + seed) for seed in range(3)), strict=True)
    return [*texts, ["a", "b"]], [*labels, [1, 1]]


def test_sets_equal_mteb(sets, encode, mteb_scores):
    from datasets import Dataset

    texts, labels = sets
    data = {"test": Dataset.from_dict({"sentences": texts, "labels": labels})}
    theirs = mteb_scores("AbsTaskClusteringLegacy", "Clustering", "v_measure", data)
    ours = evaluate_clustering(encode, texts, labels)
    assert [ours[f"v_measure_{n}"] for n in range(1, 5)] == pytest.approx(theirs["v_measures"], abs=1e-4)
    assert ours["v_measure_4"] == 1 and 0.1 < ours["v_measure_1"] < 0.95
    for name in ("v_measure", "v_measure_std"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name


@pytest.mark.parametrize("documents, levels", [(0.5, 1), (90, 1), (None, 2), (1000, 2)])
def test_bootstraps_equal_mteb(documents, levels, encode, mteb_scores):
    from datasets import Dataset

    texts, fine = made(5, 120, 6)
    labels = fine if levels == 1 else [[n % 2, n] if n else [0] for n in fine]
    data = {"test": Dataset.from_dict({"sentences": texts, "labels": labels})}
    fraction = isinstance(documents, float)
    attributes = {
        "max_fraction_of_documents_to_embed": documents if fraction else None,
        "max_document_to_embed": None if fraction else documents,
        "max_documents_per_cluster": 200,
        "n_clusters": 3,
    }
    theirs = mteb_scores("AbsTaskClustering", "Clustering", "v_measure", data, **attributes)
    ours = evaluate_clustering_fast(encode, texts, labels, documents=documents, sample_size=200, experiments=3)
    assert 0.05 < ours["v_measure"] < 0.95
    for name in ("v_measure", "v_measure_std", "ami", "ami_std"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    for level in range(levels):
        expected = np.mean(theirs["v_measures"][f"Level {level}"])
        assert ours[f"v_measure_level_{level}"] == pytest.approx(expected, abs=1e-4)
    assert f"v_measure_level_{levels}" not in ours
    if levels == 1:
        options = {"documents": documents, "sample_size": 200, "experiments": 3}
        assert evaluate_clustering_fast(encode, texts, np.array(labels), **options) == ours


def test_clusters_that_are_the_labels_score_one():
    centres = 100 * np.eye(3)[[0, 1, 2] * 10]
    noise = np.random.default_rng(0).normal(size=(30, 3))
    found = clustering_metrics(centres + noise, ["x", "y", "z"] * 10)
    assert found == pytest.approx({"v_measure": 1.0, "ami": 1.0})


def test_by_hand():
    """Clusters {a, a}, {a, b}: homogeneity 1 - (ln 2 / 2) / H(labels), completeness 1 - H(clusters | labels) / ln 2."""
    vectors = np.array([[0.0], [0.1], [9.0], [9.1]])
    entropy = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    homogeneity = 1 - np.log(2) / 2 / entropy
    completeness = 1 + 3 / 4 * (2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(2)
    expected = 2 * homogeneity * completeness / (homogeneity + completeness)
    assert clustering_metrics(vectors, ["a", "a", "a", "b"])["v_measure"] == pytest.approx(expected)


def test_each_distinct_text_is_encoded_once(sets, recorded):
    texts, labels = sets
    evaluate_clustering(recorded, texts[:3] + texts[:1], labels[:3] + labels[:1])
    assert sorted(recorded.seen) == sorted({*sum(texts[:3], [])})
    recorded.seen.clear()
    evaluate_clustering_fast(recorded, texts[2], labels[2], documents=40, sample_size=60, experiments=1)
    assert len(recorded.seen) == len({*recorded.seen}) <= 40


@pytest.mark.parametrize(
    "columns, message",
    [
        (([], []), "found 0 and 0"),
        (([["a"]], []), "found 1 and 0"),
        (([["a", "b"]], [[0]]), "set number 0.*2 texts and 1 labels"),
        (([["a", "b"], []], [[0, 1], []]), "set number 1.*0 texts"),
        (([["a", "b"], ["c"]], [[0, 0], [1]]), "none among 2"),
    ],
)
def test_bad_sets_are_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_clustering(pytest.fail, *columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns, options, message",
    [
        ((["a"], []), {}, "found 1 texts, 0 labels"),
        (([], []), {}, "found 0 texts"),
        ((["a"] * 9, [0, 1, 2] * 3), {}, "0.04 of 9 texts leave none"),
        ((["a"] * 9, [0, 1, 2] * 3), {"documents": 0}, "0 of 9"),
        ((["a"] * 9, [1] * 9), {"documents": None}, "9 labels, 1 of them different"),
        ((["a"] * 9, [[0, 5], [1, 5], [2]] * 3), {"documents": None}, "6 labels, 1 of them different"),
        ((["a"] * 9, [0, 1, 2] * 3), {"documents": None, "sample_size": 2}, "expected 3, one for each.*found 2"),
    ],
)
def test_bad_bootstraps_are_one_line(columns, options, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_clustering_fast(pytest.fail, *columns, **options)
    assert "\n" not in str(error.value)


def test_lengths_that_differ_are_refused():
    with pytest.raises(InputError, match="3 texts, 2 labels"):
        clustering_metrics(np.ones((3, 2)), [0, 1])
