"""Batches of alike records: each data set in clusters of its anchors' embeddings.

Negatives from the same cluster are harder to tell from the positive. Merrick (2024), "Embedding And
Clustering Your Data Can Improve Contrastive Pretraining": spherical k-means of queries or passages;
Hofstätter et al. (2021), "Topic Aware Sampling", of queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from embed_jax.atomic import replaced
from embed_jax.config import Experiment
from embed_jax.data.record_source import RecordSource
from embed_jax.data.stream import RecordStream
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError
from embed_jax.parallel.distributed import wait_for_hosts
from embed_jax.retrieval.kmeans import learn_centroids, nearest_centroids
from embed_jax.retrieval.topk import Encode, prompted
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train.data import SourcesAt
from embed_jax.train.prompts import given_prompts
from embed_jax.train.sources import ONLY, Sources
from embed_jax.train.workdir import settings_digest

ITERATIONS, POINTS = 20, 256  # of k-means: passes, and records for each cluster


def clustered_sources(sources: Sources | SourcesAt, config: Experiment, workdir: Path) -> SourcesAt:
    """Returns the data of `fit` with the cluster of each record, as a function of step and model.

    Args:
        sources: the data, or a function of step and model that returns them.
        config: see `batch.clusters` and `batch.cluster_model`.
        workdir: `clusters/STEP-NAME-DIGEST.npy` is written there, and read if it is there already:
            a resumed run has the batches that it had, also where another machine embeds the texts
            with other last bits.

    Raises:
        InputError: for data or a model that can't be clustered, or fewer records than clusters.
    """
    model = functools.cache(lambda: TextEncoder(load_sentence_encoder(config.batch.cluster_model)))

    def sources_at(step: int, encode: Encode) -> dict[str, RecordSource]:
        current: Mapping[str, RecordSource] = (
            sources(step, encode) if callable(sources) else sources
        )
        return {
            name: dataclasses.replace(source, clusters=clusters_of(name, source, step, encode))
            for name, source in current.items()
        }

    def clusters_of(
        name: str, source: RecordSource, step: int, encode: Encode
    ) -> Int32[np.ndarray, " records"]:
        texts = _anchors(source, config, name)
        digest = settings_digest(config, texts)
        file = workdir / "clusters" / f"{step}-{name}-{digest}.npy"
        if not file.exists():
            chosen = model() if config.batch.cluster_model else encode
            clusters = _clusters(texts, chosen, config, name)
            if is_first_host():
                file.parent.mkdir(parents=True, exist_ok=True)
                with replaced(file) as beside, beside.open("wb") as opened:
                    np.save(opened, clusters)
        wait_for_hosts(f"clusters of {name} at step {step}")
        return np.load(file)

    return sources_at


def _anchors(source: RecordSource, config: Experiment, name: str) -> list[str]:
    """Returns the first text of each record."""
    if isinstance(source.records, RecordStream):
        raise InputError(
            "config.batch.clusters: not for a stream, of which not all records are known"
        )
    count = len(source.records)
    if count < max(config.batch.clusters, config.batch.size):
        raise InputError(
            f"config.batch.clusters: expected at least {config.batch.clusters} records, and "
            f"batch.size={config.batch.size}, found {count}{_of(name)}"
        )
    anchors = (source.texts(index, source.records[index])[0] for index in range(count))
    return [anchor or "" for anchor in anchors]


def _clusters(
    texts: Sequence[str], encode: Any, config: Experiment, name: str
) -> Int32[np.ndarray, " records"]:
    """Returns the cluster of each text, each of at least a batch."""
    prompt, _ = given_prompts(config, getattr(config.mixture.sources, name, None), name)
    embeddings = prompted(encode, prompt)[0](texts) if isinstance(encode, TextEncoder) else None
    if not isinstance(embeddings, np.ndarray) or embeddings.ndim != 2:
        raise InputError(
            "config.batch.cluster_model: expected a model with one dense vector for a text, found "
            f"{config.batch.cluster_model!r}"
        )
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    centroids = learn_centroids(
        vectors,
        config.batch.clusters,
        iterations=ITERATIONS,
        points=POINTS,
        seed=config.train.seed,
    )
    clusters = join_small_clusters(
        nearest_centroids(vectors, centroids), vectors, config.batch.size
    )
    sizes = np.bincount(clusters)
    say(f"{len(sizes)} clusters{_of(name)}, of {sizes.min():,} to {sizes.max():,} records")
    return clusters


def _of(name: str) -> str:
    """Returns the name of a data set of a mixture for a message."""
    return "" if name == ONLY else f" of {name}"


def join_small_clusters(
    clusters: Int[np.ndarray, " n"], vectors: Float[np.ndarray, "n d"], least: int
) -> Int32[np.ndarray, " n"]:
    """Returns clusters of at least `least` records, numbered from 0 on.

    The smallest joins the one with the nearest mean, until none is too small.

    Args:
        clusters: the cluster of each vector, from 0 on.
        vectors: of length 1.
        least: at most n.
    """
    numbers, clusters = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(numbers), vectors.shape[1]))
    np.add.at(sums, clusters, vectors)
    sizes = np.bincount(clusters).astype(float)
    while sizes[smallest := int(sizes.argmin())] < least:
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        closeness = np.where(np.isinf(sizes), -np.inf, means @ means[smallest])
        closeness[smallest] = -np.inf
        nearest = int(closeness.argmax())
        sums[nearest] += sums[smallest]
        sizes[nearest] += sizes[smallest]
        sizes[smallest] = np.inf  # no more
        clusters[clusters == smallest] = nearest
    return np.unique(clusters, return_inverse=True)[1].astype(np.int32)
