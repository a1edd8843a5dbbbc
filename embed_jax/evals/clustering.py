"""Clustering: does k-means, told the number of labels, find the labels?

V-measure is the harmonic mean of homogeneity (a cluster holds one label) and completeness (a label
is in one cluster), Rosenberg and Hirschberg 2007; it grows with the number of clusters for few
examples, so compare within one data set.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.sources.tasks import describe_split, read_text_sets
from embed_jax.errors import InputError, require
from embed_jax.evals.task import Embed, Outcome, Task, Use, encode_columns, mean_outcome
from embed_jax.registry import unknown

KIND = "Clustering"
SEED = 42  # mteb's
PROTOCOLS = {"legacy": 500, "fast": 512}  # and the batch sizes of their k-means


@dataclasses.dataclass(frozen=True)
class ClusteringRun:
    """Texts that are clustered together.

    Attributes:
        rows: their numbers among the texts of the task; one may be there several times.
        labels: numbers from 0.
        clusters: how many to make.
    """

    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    clusters: int


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    protocol: str = "legacy",
    label: str = "",
    documents: int | float = 0,
    experiments: int = 10,
    sample_size: int = 16_384,
    depth: int = 0,
    batch_size: int = 0,
    seed: int = SEED,
) -> Task:
    """Opens a clustering task; the main score is the mean V-measure, "v_measure".

    * "legacy", AbsTaskClusteringLegacy: each set of texts is clustered once; a set with one label
      counts 1.
    * "fast", AbsTaskClustering: samples, drawn with replacement from a part of the texts, are
      clustered on each level of labels; the sets of the data are joined, without repeated texts.
      Texts without a label on a level are left out there; mteb does not leave them out where labels
      are strings. Agrees for the first subset and split of a task of mteb: for later ones mteb goes
      on with the same random numbers.

    Args:
        data: a file, a directory or a data set of the hub; see `read_text_sets`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        protocol: "legacy" or "fast".
        label: the field of the label; see `read_text_sets`.
        documents: for "fast": how many texts are embedded; a number, 0 for all, or a fraction
            (mteb's own default is 0.04).
        experiments: for "fast": how many samples.
        sample_size: for "fast": how many texts in each sample.
        depth: for "fast": the number of levels; 0 for all.
        batch_size: of k-means; 0 for 500 in "legacy" and 512 in "fast".
        seed: of samples and k-means.

    Raises:
        InputError: for data that cannot be read, a level or all sets with one label only, options
            of the other protocol or out of range.
    """
    if protocol not in PROTOCOLS:
        raise InputError(unknown("protocol", protocol, PROTOCOLS))
    sampling = {
        "documents": documents,
        "experiments": experiments,
        "sample_size": sample_size,
        "depth": depth,
    }
    lowest = {"documents": 0, "experiments": 1, "sample_size": 1, "depth": 0}
    for option, value in {**sampling, "batch_size": batch_size}.items():
        if value < lowest.get(option, 0):
            raise InputError(
                f"clustering: {option}: expected {lowest.get(option, 0)} or more, found {value}"
            )
    sets, labels = read_text_sets(data, split, label)
    try:
        if protocol == "legacy":
            if sampling != {"documents": 0, "experiments": 10, "sample_size": 16_384, "depth": 0}:
                raise InputError(
                    f"{', '.join(sampling)} are options of the protocol 'fast', found 'legacy'"
                )
            texts, levels = list(itertools.chain(*sets)), [_each_set(labels)]
        else:
            texts, levels = _samples(
                sets,
                labels,
                documents=documents,
                experiments=experiments,
                sample_size=sample_size,
                depth=depth,
                seed=seed,
            )
    except InputError as error:
        raise InputError(f"{describe_split(data, split)}: {error}") from None
    used = np.unique(np.concatenate([run.rows for runs in levels for run in runs]))
    texts = [texts[row] for row in used]
    levels = [
        [dataclasses.replace(run, rows=np.searchsorted(used, run.rows)) for run in runs]
        for runs in levels
    ]
    batch = batch_size or PROTOCOLS[protocol]

    def evaluate(embed: Embed) -> Outcome:
        [vectors] = encode_columns(functools.partial(embed, use=Use(name, KIND)), texts)
        clusters = [
            [cluster(vectors[run.rows], run.clusters, batch_size=batch, seed=seed) for run in runs]
            for runs in levels
        ]
        return clustering_outcome(levels, clusters)

    return Task(name, KIND, "texts", [(text,) for text in texts], evaluate)


def cluster(
    vectors: Float[np.ndarray, "N D"], clusters: int, *, batch_size: int = 500, seed: int = SEED
) -> Int[np.ndarray, " N"]:
    """Assigns each vector to a cluster, by mini-batch k-means (Sculley 2010)."""
    require("sklearn")
    from sklearn.cluster import MiniBatchKMeans

    return (
        MiniBatchKMeans(clusters, batch_size=batch_size, n_init=1, random_state=seed)
        .fit(vectors)
        .labels_
    )


def v_measures(
    labels: Int[np.ndarray, " N"], clusters: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Returns each text's share of the V-measure, which is their mean.

    With entropies H, V = 2 I(labels, clusters) / (H(labels) + H(clusters)), where I is the mean
    over texts of i = log p(label, cluster) / (p(label) p(cluster)), and H of h = -log p. A text's
    value is V + (2 i - V (h(label) + h(cluster))) / (H(labels) + H(clusters)): how V changes with
    the text's weight, besides V. So a resample's mean is its V-measure to first order, and texts of
    rare labels add little noise. 1 if both H are 0.
    """
    joint = np.zeros((labels.max() + 1, clusters.max() + 1))
    np.add.at(joint, (labels, clusters), 1)
    joint /= len(labels)
    surprise = -np.log(joint.sum(axis=1)[labels]) - np.log(joint.sum(axis=0)[clusters])
    entropies = surprise.mean()
    if not entropies > 0:
        return np.ones(len(labels))
    information = np.log(joint[labels, clusters]) + surprise
    v = 2 * information.mean() / entropies
    return v + (2 * information - v * surprise) / entropies


def clustering_outcome(
    levels: Sequence[Sequence[ClusteringRun]], clusters: Sequence[Sequence[Int[np.ndarray, " _"]]]
) -> Outcome:
    """Scores the agreement of clusters with labels.

    Args:
        levels: the runs of each level of labels, as many on each; each text is in one of them at
            least.
        clusters: of the texts of each run.

    Returns:
        Metrics "v_measure" and "ami", the mutual information adjusted for chance: the means over
        levels and runs; with several runs "v_measure_std", "ami_std" over them; with several levels
        the means "v_measure_level_0", ... and "ami_level_0", ...; with several runs on one level
        "v_measure_1", ..., of each. Items are the texts: with T of them, R runs of n_r texts each
        and the values u of `v_measures`, a text's value is V + T / R sum_r 1 / n_r sum (u - V_r)
        over its places in the runs.
    """
    require("sklearn")
    from sklearn.metrics import adjusted_mutual_info_score

    pairs = [
        list(zip(runs, level, strict=True)) for runs, level in zip(levels, clusters, strict=True)
    ]
    values = [[v_measures(run.labels, assigned) for run, assigned in level] for level in pairs]
    scores = {
        "v_measure": np.array([[run_values.mean() for run_values in level] for level in values]),
        "ami": np.array(
            [
                [adjusted_mutual_info_score(run.labels, assigned) for run, assigned in level]
                for level in pairs
            ]
        ),
    }
    per_text = {
        "v_measure": _per_text(list(itertools.chain(*levels)), list(itertools.chain(*values)))
    }
    others = {"ami": float(scores["ami"].mean())}
    if len(levels) > 1:
        for level, (runs, level_values) in enumerate(zip(levels, values, strict=True)):
            per_text[f"v_measure_level_{level}"] = _per_text(runs, level_values)
            others[f"ami_level_{level}"] = float(scores["ami"][level].mean())
    if scores["ami"].size > 1:
        others |= {f"{name}_std": float(by_run.std()) for name, by_run in scores.items()}
        if len(levels) == 1:
            others |= {
                f"v_measure_{number}": float(v)
                for number, v in enumerate(scores["v_measure"][0], 1)
            }
    return mean_outcome("v_measure", per_text, others=others)


def _per_text(
    runs: Sequence[ClusteringRun], values: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " T"]:
    """Computes values of each text in one of the runs whose mean is the runs' mean V-measure."""
    rows = np.concatenate([run.rows for run in runs])
    changes = np.concatenate(
        [(run_values - run_values.mean()) / len(run_values) for run_values in values]
    )
    texts, number = np.unique(rows, return_inverse=True)
    mean = np.mean([run_values.mean() for run_values in values])
    return mean + len(texts) / len(runs) * np.bincount(number, changes)


def _each_set(labels: Sequence[Sequence[tuple[str, ...]]]) -> list[ClusteringRun]:
    """Makes a run of each set, whose texts follow each other."""
    if any(len(levels) > 1 for members in labels for levels in members):
        raise InputError(
            "found several labels of a text, expected one: they are for the protocol 'fast'"
        )
    if all(len(set(members)) == 1 for members in labels):
        raise InputError(f"expected a set with two labels or more, found none among {len(labels)}")
    runs, start = [], 0
    for members in labels:
        kinds, numbers = np.unique([label for (label,) in members], return_inverse=True)
        runs.append(ClusteringRun(np.arange(start, start + len(members)), numbers, len(kinds)))
        start += len(members)
    return runs


def _samples(
    sets: Sequence[Sequence[str]],
    labels: Sequence[Sequence[tuple[str, ...]]],
    *,
    documents: int | float,
    experiments: int,
    sample_size: int,
    depth: int,
    seed: int,
) -> tuple[list[str], list[list[ClusteringRun]]]:
    """Draws the texts that are embedded, and the runs of each level."""
    texts, paths = list(itertools.chain(*sets)), list(itertools.chain(*labels))
    if len(sets) > 1:
        first: dict[str, int] = {}
        for number, text in enumerate(texts):
            first.setdefault(text, number)
        texts, paths = list(first), [paths[number] for number in first.values()]
    rng = random.Random(seed)
    if documents:
        count = int(documents * len(texts)) if isinstance(documents, float) else documents
        if count < 1:
            raise InputError(f"documents: {documents} of {len(texts)} texts leave none to embed")
        rows = rng.sample(range(len(texts)), k=min(count, len(texts)))
        texts, paths = [texts[row] for row in rows], [paths[row] for row in rows]
    deepest = max(map(len, paths))
    levels = []
    for level in range(min(depth or deepest, deepest)):
        present = np.array([row for row, path in enumerate(paths) if len(path) > level])
        kinds, numbers = np.unique([paths[row][level] for row in present], return_inverse=True)
        if len(kinds) < 2:
            raise InputError(
                f"level {level} of the labels: expected two labels or more, found only {kinds[0]!s}"
            )
        if len(kinds) > sample_size:
            raise InputError(
                f"sample_size: expected {len(kinds)}, one for each label, or more, found "
                f"{sample_size}"
            )
        drawn = [
            np.array(rng.choices(range(len(present)), k=sample_size)) for _ in range(experiments)
        ]
        levels.append(
            [ClusteringRun(present[places], numbers[places], len(kinds)) for places in drawn]
        )
    return texts, levels
