"""Clustering: does k-means, told the number of labels, find the labels?

V-measure is the harmonic mean of homogeneity (a cluster holds one label) and completeness (a label is in one cluster),
Rosenberg and Hirschberg 2007; it grows with the number of clusters for few examples, so compare within one data set.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, require
from embed_jax.evals.pairs import encode_columns
from embed_jax.retrieval.topk import Encode

Label = int | str
SEED = 42  # mteb's


def clustering_metrics(
    embeddings: Float[np.ndarray, "N D"], labels: Sequence[Label], *, batch_size: int = 500, seed: int = SEED
) -> dict[str, float]:
    """V-measure of mini-batch k-means (Sculley 2010) with as many clusters as labels, on one set.

    Returns:
        "v_measure" and "ami", the mutual information adjusted for chance.

    Raises:
        InputError: if lengths differ, or there is one label only.
    """
    _check_labels(len(embeddings), labels)
    return _scores(np.asarray(embeddings), labels, len(set(labels)), batch_size, seed)


def evaluate_clustering(
    encode: Encode,
    texts: Sequence[Sequence[str]],
    labels: Sequence[Sequence[Label]],
    *,
    batch_size: int = 500,
    seed: int = SEED,
) -> dict[str, float]:
    """Mean V-measure over sets of texts, each clustered by itself; each distinct text is encoded once.

    Agrees with mteb's AbsTaskClusteringLegacy (2.26), whose main score is "v_measure": a set with one label counts 1.

    Args:
        texts, labels: of each set.

    Returns:
        "v_measure", "v_measure_std" over the sets, and "v_measure_1", "v_measure_2", ..., of each set.

    Raises:
        InputError: if lengths differ, a set is empty, or no set has two labels.
    """
    if len(texts) != len(labels) or not len(texts):
        raise InputError(f"clustering: expected labels for each set of texts, found {len(texts)} and {len(labels)}")
    for number, (members, kinds) in enumerate(zip(texts, labels, strict=True)):
        if len(members) != len(kinds) or not len(members):
            found = f"{len(members)} texts and {len(kinds)} labels"
            raise InputError(
                f"clustering: set number {number}: expected a label for each text, 1 or more, found {found}"
            )
    mixed = [number for number, kinds in enumerate(labels) if len(set(kinds)) > 1]
    if not mixed:
        raise InputError(f"clustering: expected a set with two labels or more, found none among {len(texts)}")
    values = np.ones(len(texts))
    for number, vectors in zip(mixed, encode_columns(encode, *(texts[number] for number in mixed)), strict=True):
        found = clustering_metrics(vectors, labels[number], batch_size=batch_size, seed=seed)
        values[number] = found["v_measure"]
    each = {f"v_measure_{number}": float(value) for number, value in enumerate(values, 1)}
    return {"v_measure": float(values.mean()), "v_measure_std": float(values.std())} | each


def evaluate_clustering_fast(
    encode: Encode,
    texts: Sequence[str],
    labels: Sequence[Label | Sequence[Label]],
    *,
    documents: int | float | None = 0.04,
    experiments: int = 10,
    sample_size: int = 16_384,
    batch_size: int = 512,
    depth: int | None = None,
    seed: int = SEED,
) -> dict[str, float]:
    """V-measure over bootstraps: clusters samples, drawn with replacement, of a part of the texts.

    Agrees with mteb's AbsTaskClustering (2.26), whose main score is "v_measure", for the first subset and split of a
    task: for later ones mteb goes on with the same random numbers. Each distinct text of the part is encoded once.

    Args:
        labels: of each text, or its labels from the coarsest level to the finest. Texts without a label on a level are
            left out there; mteb does not leave them out where labels are strings.
        documents: how many texts are embedded: a number, a fraction, or None for all.
        sample_size: texts in each of the `experiments` samples.
        depth: the number of levels; all if None.

    Returns:
        "v_measure" and "ami", the means over levels and experiments, each with "_std", and with "_level_0", ..., the
        means of each level.

    Raises:
        InputError: if lengths differ, a level has one label only, or fewer texts are drawn than there are labels.
    """
    if len(texts) != len(labels) or not len(texts):
        raise InputError(f"clustering: expected a label for each text, found {len(texts)} texts, {len(labels)} labels")
    rng = random.Random(seed)
    rows: Sequence[int] = range(len(texts))
    if documents is not None:
        count = int(documents * len(texts)) if isinstance(documents, float) else documents
        if count < 1:
            raise InputError(f"clustering: documents: {documents} of {len(texts)} texts leave none to embed")
        rows = rng.sample(rows, k=min(count, len(texts)))
    paths = [[labels[row]] if np.ndim(labels[row]) == 0 else list(labels[row]) for row in rows]
    levels = range(min(depth or max(map(len, paths)), max(map(len, paths))))
    present = [[place for place, path in enumerate(paths) if len(path) > level] for level in levels]
    kinds = [np.array([paths[place][level] for place in places]) for level, places in enumerate(present)]
    for level_labels in kinds:
        _check_labels(len(level_labels), level_labels.tolist())
        if (clusters := len(np.unique(level_labels))) > sample_size:
            raise InputError(
                f"clustering: sample_size: expected {clusters}, one for each label, or more, found {sample_size}"
            )

    [embeddings] = encode_columns(encode, [texts[row] for row in rows])
    scores: list[list[dict[str, float]]] = []
    for places, level_labels in zip(present, kinds, strict=True):
        samples = [rng.choices(range(len(places)), k=sample_size) for _ in range(experiments)]
        vectors, clusters = embeddings[places], len(np.unique(level_labels))
        scores.append([_scores(vectors[s], level_labels[s].tolist(), clusters, batch_size, seed) for s in samples])
    metrics = {}
    for name in ("v_measure", "ami"):
        values = np.array([[score[name] for score in level] for level in scores])
        metrics |= {name: float(values.mean()), f"{name}_std": float(values.std())}
        metrics |= {f"{name}_level_{level}": float(means) for level, means in enumerate(values.mean(axis=1))}
    return metrics


def _scores(
    embeddings: Float[np.ndarray, "N D"], labels: Sequence[Label], clusters: int, batch_size: int, seed: int
) -> dict[str, float]:
    require("sklearn", "eval")
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import adjusted_mutual_info_score, v_measure_score

    model = MiniBatchKMeans(clusters, batch_size=batch_size, n_init=1, random_state=seed)
    found = model.fit(embeddings).labels_
    return {
        "v_measure": float(v_measure_score(labels, found)),
        "ami": float(adjusted_mutual_info_score(labels, found)),
    }


def _check_labels(count: int, labels: Sequence[Label]) -> None:
    if len(labels) != count or len(set(labels)) < 2:
        found = f"{count} texts, {len(labels)} labels, {len(set(labels))} of them different"
        raise InputError(f"clustering: expected a label for each text, two or more different ones, found {found}")
