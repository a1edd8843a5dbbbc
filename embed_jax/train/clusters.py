"""Batches of alike records: each data set in clusters of its anchors' embeddings.

Negatives from the same cluster are harder to tell from the positive. Merrick (2024), "Embedding And
Clustering Your Data Can Improve Contrastive Pretraining": spherical k-means of queries or passages;
Hofstätter et al. (2021), "Topic Aware Sampling", of queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int32

from embed_jax.atomic import replaced
from embed_jax.config import Experiment
from embed_jax.data.record_source import RecordSource
from embed_jax.data.stream import RecordStream
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError, require
from embed_jax.parallel.distributed import wait_for_hosts
from embed_jax.retrieval.kmeans import learn_centroids, nearest_centroids
from embed_jax.retrieval.topk import Encode, prompted
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train.sources import ONLY
from embed_jax.train.workdir import settings_digest

FIELD = "config.batch.clusters"
ITERATIONS, POINTS = 20, 256  # of k-means: passes, and records for each cluster


def with_clusters(
    sources: Mapping[str, RecordSource],
    encode: Encode,
    config: Experiment,
    workdir: Path | None = None,
) -> dict[str, RecordSource]:
    """Returns the data sets with the cluster of each record.

    Args:
        sources: by name, with their prompts.
        encode: the trained model as a function of texts.
        config: see `batch.clusters` and `batch.cluster_model`.
        workdir: `clusters/NAME-DIGEST.npy` is written there, and read if it is there already: a
            resumed run has the batches that it had, also where another machine embeds the texts
            with other last bits, and so has one that mines new negatives. None: nothing is written.

    Raises:
        InputError: for data or a model that can't be clustered, or if FAISS is not installed.
    """
    require("faiss")
    embed = functools.cache(lambda: _embedder(encode, config.batch.cluster_model))
    clustered = {}
    for name, source in sources.items():
        texts = _anchors(source, config, name)
        make = functools.partial(_make_clusters, texts, embed, source.prompts[0], config, name)
        if workdir is None:
            clusters = make()
        else:
            digest = settings_digest(config, [source.prompts[0], *texts])
            clusters = _recorded(workdir / "clusters" / f"{name}-{digest}.npy", make)
        clustered[name] = dataclasses.replace(source, clusters=clusters)
    return clustered


def _recorded(file: Path, make: Callable[[], Int32[np.ndarray, " n"]]) -> Int32[np.ndarray, " n"]:
    """Reads a file, which the first host writes if it isn't there."""
    if not file.exists():
        clusters = make()
        if is_first_host():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replaced(file) as beside, beside.open("wb") as opened:
                np.save(opened, clusters)
    wait_for_hosts(str(file.name))
    return np.load(file)


def _embedder(encode: Encode, cluster_model: str) -> Encode:
    """Returns the function that embeds the anchors, after it has embedded one text."""
    try:
        chosen = TextEncoder(load_sentence_encoder(cluster_model)) if cluster_model else encode
    except InputError as error:
        raise InputError(f"config.batch.cluster_model: {error}") from None
    embedding = chosen(["text"]) if isinstance(chosen, TextEncoder) else None
    if not isinstance(embedding, np.ndarray) or embedding.ndim != 2:
        raise InputError(
            "config.batch.cluster_model: expected a model with one dense vector for a text, found "
            + (repr(cluster_model) if cluster_model else "'', and the trained model has none")
        )
    return chosen


def _anchors(source: RecordSource, config: Experiment, name: str) -> list[str]:
    """Returns the first text of each record."""
    if isinstance(source.records, RecordStream):
        raise InputError(f"{FIELD}: not for a stream, of which not all records are known")
    count, least = len(source.records), max(config.batch.clusters, config.batch.size)
    if count < least:
        reason = "one for each cluster" if least > config.batch.size else "of a batch"
        raise InputError(
            f"{FIELD}: expected at least {least} records{_of(name)}, {reason}, found {count}"
        )
    return [str(source.texts(index, source.records[index])[0]) for index in range(count)]


def _make_clusters(
    texts: Sequence[str],
    embed: Callable[[], Encode],
    prompt: str,
    config: Experiment,
    name: str,
) -> Int32[np.ndarray, " n"]:
    """Returns the cluster of each text, each with at least a batch of different texts."""
    if config.batch.cluster_model:  # which has prompts, or none, from its own training
        prompt = ""
    embeddings = prompted(embed(), prompt)[0](texts)
    if not np.isfinite(embeddings).all():
        raise InputError(f"{FIELD}: expected finite embeddings{_of(name)}, found nan or infinite")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    centroids = learn_centroids(
        vectors,
        config.batch.clusters,
        iterations=ITERATIONS,
        points=POINTS,
        seed=config.train.seed % 2**31,
    )
    first_ones = np.zeros(len(texts), int)
    first_ones[list({text: index for index, text in enumerate(texts)}.values())] = 1
    clusters = join_small_clusters(
        nearest_centroids(vectors, centroids), vectors, first_ones, config.batch.size
    )
    sizes = np.bincount(clusters)
    left_out = int((sizes % config.batch.size).sum())
    say(
        f"{len(sizes)} clusters{_of(name)}, of {sizes.min():,} to {sizes.max():,} records; "
        f"{left_out:,} fill no batch in an epoch"
    )
    return clusters


def _of(name: str) -> str:
    """Returns the name of a data set of a mixture for a message."""
    return "" if name == ONLY else f" of {name}"


def join_small_clusters(
    clusters: Int[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n d"],
    weights: Int[np.ndarray, " n"],
    min_weight: int,
) -> Int32[np.ndarray, " n"]:
    """Returns clusters of at least some weight, numbered from 0 on.

    The lightest joins the one with the nearest mean, until none is too light or one is left.

    Args:
        clusters: the cluster of each vector, from 0 on.
        vectors: of length 1.
        weights: of each vector; a cluster's is their sum.
        min_weight: of a cluster.
    """
    numbers, clusters = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(numbers), vectors.shape[1]))
    np.add.at(sums, clusters, vectors)
    cluster_weights = np.bincount(clusters, weights)
    for _ in range(len(numbers) - 1):
        lightest = int(cluster_weights.argmin())
        if cluster_weights[lightest] >= min_weight:
            break
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        closeness = np.where(np.isinf(cluster_weights), -np.inf, means @ means[lightest])
        closeness[lightest] = -np.inf
        nearest = int(closeness.argmax())
        sums[nearest] += sums[lightest]
        cluster_weights[nearest] += cluster_weights[lightest]
        cluster_weights[lightest] = np.inf  # it is no more
        clusters[clusters == lightest] = nearest
    return np.unique(clusters, return_inverse=True)[1].astype(np.int32)
