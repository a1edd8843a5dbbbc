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
from embed_jax.data.distinct_batches import find_repeated_codes, make_distinct_batches
from embed_jax.data.record_source import RecordSource, hash_duplicates
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
        make = functools.partial(
            _make_clusters,
            texts,
            embed,
            source.prompts[0],
            _batch_filler(source, texts, config),
            config,
            name,
        )
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
    count, least = len(source.records), max(config.batch.clusters, config.batch.size)
    if count < least:
        reason = "one for each cluster" if least > config.batch.size else "of a batch"
        raise InputError(
            f"{FIELD}: expected at least {least} records{_of(name)}, {reason}, found {count}"
        )
    return [str(source.texts(index, source.records[index])[0]) for index in range(count)]


def _batch_filler(
    source: RecordSource, texts: Sequence[str], config: Experiment
) -> Callable[[Int[np.ndarray, " m"]], bool]:
    """Returns a function that tells whether records fill a batch, with different anchors.

    Where a batch has no duplicates they have to fill two, as one of a barely sufficient number
    depends on the order.
    """
    if not config.batch.no_duplicates:
        return lambda indices: len({texts[index] for index in indices}) >= config.batch.size
    codes = functools.cache(lambda: find_repeated_codes(hash_duplicates([source])))
    return lambda indices: len(make_distinct_batches(indices, codes(), config.batch.size)) > 1


def _make_clusters(
    texts: Sequence[str],
    embed: Callable[[], Encode],
    prompt: str,
    fills_a_batch: Callable[[Int[np.ndarray, " m"]], bool],
    config: Experiment,
    name: str,
) -> Int32[np.ndarray, " n"]:
    """Returns the cluster of each text; the records of each fill a batch."""
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
    clusters = join_small_clusters(nearest_centroids(vectors, centroids), vectors, fills_a_batch)
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
    is_enough: Callable[[Int[np.ndarray, " m"]], bool],
) -> Int32[np.ndarray, " n"]:
    """Returns clusters with enough records, numbered from 0 on.

    The smallest of those without joins the one with the nearest mean, until all have enough or one
    is left.

    Args:
        clusters: the cluster of each record, from 0 on.
        vectors: of the records, of length 1.
        is_enough: whether the records of these indices are enough.
    """
    numbers, clusters = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(numbers), vectors.shape[1]))
    np.add.at(sums, clusters, vectors)
    sizes = np.bincount(clusters)

    def has_enough(cluster: int) -> bool:
        return is_enough(np.flatnonzero(clusters == cluster))

    remaining = list(range(len(numbers)))
    lacking = [cluster for cluster in remaining if not has_enough(cluster)]
    while lacking and len(remaining) > 1:
        smallest = min(lacking, key=lambda cluster: sizes[cluster])
        lacking.remove(smallest)
        remaining.remove(smallest)
        means = sums[remaining] / np.maximum(np.linalg.norm(sums[remaining], axis=1)[:, None], 1e-9)
        nearest = remaining[int(np.argmax(means @ sums[smallest]))]
        sums[nearest] += sums[smallest]
        sizes[nearest] += sizes[smallest]
        clusters[clusters == smallest] = nearest
        if nearest in lacking and has_enough(nearest):
            lacking.remove(nearest)
    return np.unique(clusters, return_inverse=True)[1].astype(np.int32)
