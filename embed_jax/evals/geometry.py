"""Geometry of an embedding space.

How close positives are, how evenly texts are spread, who is everyone's neighbour.

All numbers are of embeddings made length 1, in float64. They describe a space and do not rank
models: evenly spread noise has the best uniformity, isotropy and effective rank. Compare them for
the same texts only, since each depends on the texts, and hubness, effective rank and nearest to
farthest also on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.sources.beir import iter_relevant
from embed_jax.errors import InputError
from embed_jax.evals.search import Qrels, TextsById, check_qrels
from embed_jax.retrieval.topk import Encode, prompted

NEIGHBOURS = 10  # k of the k-occurrence
SMALLEST_PREFIX = 16
BLOCK = 1024  # rows whose distances to all vectors are held at a time
SAME = 1e-12  # squared distance, or variance, that is rounding of float32
TextPair = tuple[str, str]
Item = TypeVar("Item")


def mean_alignment(first: Float[np.ndarray, "P D"], second: Float[np.ndarray, "P D"]) -> float:
    """Computes mean |x - y|^2 over positive pairs, from 0 to 4; lower is closer.

    Wang and Isola (2020), "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", section 4.1.1; the mean of `losses.alignment`.
    """
    first, second = _unit(first, 1), _unit(second, 1)
    if first.shape != second.shape:
        raise InputError(
            f"pairs: expected two arrays of one shape, found {first.shape} and {second.shape}"
        )
    return float(np.mean(np.sum((first - second) ** 2, axis=1)))


def log_uniformity(embeddings: Float[np.ndarray, "N D"], *, t: float = 2.0) -> float:
    """Computes log mean over i != j of exp(-t |x_i - x_j|^2), from -4t to 0; lower is more uniform.

    Wang and Isola (2020), section 4.1.2; equal to `losses.uniformity`.
    """
    unit = _unit(embeddings)
    total = 0.0
    for squared, own in _squared_distances(unit):
        squared[own] = np.inf
        total += np.exp(-t * squared).sum()
    return float(np.log(total / (len(unit) * (len(unit) - 1))))


def average_cosine(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Computes the mean cosine over i != j: near 1 in a narrow cone, 0 where directions cancel out.

    Exact without listing pairs: (|sum x|^2 - sum |x|^2) / (N (N - 1)). Ethayarajh (2019), "How
    Contextual are Contextualized Word Representations?", section 4.1, estimates it from random
    pairs.
    """
    unit = _unit(embeddings)
    return float((np.sum(unit.sum(axis=0) ** 2) - np.sum(unit**2)) / (len(unit) * (len(unit) - 1)))


def isotropy(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Computes min Z(c) / max Z(c), where Z(c) = sum_i exp(c . x_i); 1 is isotropic.

    c ranges over the eigenvectors of X^T X: Mu and Viswanath (2018), "All-but-the-Top", section
    2.2. Here c also ranges over the eigenvectors' negatives, as their signs are arbitrary, and
    vectors have length 1: e^-2 is the lowest value, that of a single direction.
    """
    unit = _unit(embeddings)
    _, directions = np.linalg.eigh(unit.T @ unit)
    along = unit @ directions
    partition = np.concatenate([np.exp(along).sum(axis=0), np.exp(-along).sum(axis=0)])
    return float(partition.min() / partition.max())


def singular_values(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " min(N,D)"]:
    """Computes the singular values of the vectors at length 1, not centred; largest first."""
    return np.linalg.svd(_unit(embeddings), compute_uv=False)


def effective_rank(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Computes exp of the entropy of the singular values over their sum, from 1 to min(N, D).

    Roy and Vetterli (2007), "The Effective Rank: A Measure of Effective Dimensionality".
    """
    return rank_of_spectrum(singular_values(embeddings))


def rank_of_spectrum(values: Float[np.ndarray, " R"]) -> float:
    """Computes `effective_rank` of given singular values; 0 if all are 0."""
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def dimension_variances(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " D"]:
    """Computes the variance of each dimension over the texts, divided by N.

    It is 1/D for each where vectors are spread evenly, 0 where a dimension collapsed.
    """
    return _unit(embeddings).var(axis=0)


def first_component(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Computes the share of the variance that lies along the first principal component.

    nan if all vectors are the same.
    """
    unit = _unit(embeddings)
    variances = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False) ** 2 / len(unit)
    return float(variances[0] / variances.sum()) if variances.sum() > SAME else float("nan")


def k_occurrence(
    embeddings: Float[np.ndarray, "N D"], k: int = NEIGHBOURS
) -> Int[np.ndarray, " N"]:
    """Counts N_k of each vector, among the k nearest of how many others it is; k on average.

    Exact; of equally near vectors any may count.

    Raises:
        InputError: for a k that is not from 1 to N - 1.
    """
    unit = _unit(embeddings)
    if not 1 <= k < len(unit):
        raise InputError(
            f"k: expected 1 to {len(unit) - 1}, one less than there are vectors, found {k}"
        )
    counts = np.zeros(len(unit), np.int64)
    for squared, own in _squared_distances(unit):
        squared[own] = np.inf
        nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
        counts += np.bincount(nearest.ravel(), minlength=len(unit))
    return counts


def hubness(embeddings: Float[np.ndarray, "N D"], k: int = NEIGHBOURS) -> float:
    """Computes the skewness of `k_occurrence`; large if few vectors are neighbours of many.

    mean (N_k - k)^3 / sd^3, and 0 if all occur equally often. Radovanovic, Nanopoulos, Ivanovic
    (2010), "Hubs in Space", section 2.1.
    """
    centred = k_occurrence(embeddings, k) - float(k)
    variance = np.mean(centred**2)
    return float(np.mean(centred**3) / variance**1.5) if variance else 0.0


def nearest_to_farthest(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Computes the distance to the nearest vector over that to the farthest, mean over vectors.

    1 if all are the same. Near 1 the nearest neighbour means little: Beyer et al. (1999), "When Is
    'Nearest Neighbor' Meaningful?".
    """
    unit = _unit(embeddings)
    total = 0.0
    for squared, own in _squared_distances(unit):
        farthest = squared.max(axis=1)
        squared[own] = np.inf
        ratios = squared.min(axis=1) / np.maximum(farthest, SAME)
        total += np.sqrt(np.where(farthest > SAME, ratios, 1.0)).sum()
    return float(total / len(unit))


def distance_concentration(
    embeddings: Float[np.ndarray, "N D"], dims: Sequence[int] | None = None
) -> dict[int, float]:
    """Computes `nearest_to_farthest` of the first numbers of each embedding, at several sizes.

    Cut embeddings have length 1 again, as by `scores.truncate`.

    Args:
        embeddings: vectors of any length.
        dims: how many numbers to keep; None: 16, 32, 64 and so on, and all.

    Raises:
        InputError: for a dimension that is not from 1 to D.
    """
    embeddings = np.asarray(embeddings)
    size = embeddings.shape[-1]
    if dims is None:
        powers = (SMALLEST_PREFIX << n for n in range(size.bit_length()))
        dims = [*(dim for dim in powers if dim < size), size]
    for dim in dims:
        if not 1 <= dim <= size:
            raise InputError(f"dims: expected 1 to {size}, the size of the embeddings, found {dim}")
    return {dim: nearest_to_farthest(embeddings[:, :dim]) for dim in dims}


def geometry_metrics(
    embeddings: Float[np.ndarray, "N D"],
    pairs: tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P D"]] | None = None,
) -> dict[str, float]:
    """Computes all of the above as scalars.

    Args:
        embeddings: of different texts, more than 10.
        pairs: of positives, for "alignment", which is absent without them.

    Raises:
        InputError: for too few vectors, or numbers that are not finite.
    """
    variances = dimension_variances(embeddings)
    return {
        **({"alignment": mean_alignment(*pairs)} if pairs else {}),
        "uniformity": log_uniformity(embeddings),
        "average_cosine": average_cosine(embeddings),
        "isotropy": isotropy(embeddings),
        "effective_rank": effective_rank(embeddings),
        "hubness": hubness(embeddings),
        "nearest_to_farthest": nearest_to_farthest(embeddings),
        "min_variance": float(variances.min()),
        "median_variance": float(np.median(variances)),
        "max_variance": float(variances.max()),
        "first_component": first_component(embeddings),
    }


def sts_texts(
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    subsets: Sequence[str] | None = None,
) -> tuple[list[str], list[TextPair]]:
    """Returns the different sentences of STS data, and its positive pairs.

    Positives score above 0.8 of the highest score: on STS-B's scale above 4 of 5, as in Gao, Yao,
    Chen (2021), "SimCSE", section 3.

    Raises:
        InputError: if no score is above 0.
    """
    highest = max(scores, default=0.0)
    if not highest > 0:
        raise InputError(
            f"STS data: expected a score above 0 for positive pairs, found {highest} as the highest"
        )
    pairs = zip(sentences1, sentences2, scores, strict=True)
    positives = [(first, second) for first, second, score in pairs if score > 0.8 * highest]
    return list(dict.fromkeys([*sentences1, *sentences2])), positives


def judged_texts(
    corpus: TextsById, queries: TextsById, qrels: Qrels
) -> tuple[list[str], list[TextPair]]:
    """Returns the different documents of a corpus, and its positive pairs.

    Positives are each query with each of its relevant documents.

    Raises:
        InputError: see `check_qrels`.
    """
    check_qrels(corpus, queries, qrels)
    positives = [
        (queries[query], corpus[document])
        for query, document in iter_relevant(qrels)
        if document in corpus
    ]
    return list(dict.fromkeys(corpus.values())), positives


def sample(
    texts: Sequence[str], pairs: Sequence[TextPair], limit: int, seed: int = 0
) -> tuple[list[str], list[TextPair]]:
    """Draws at most `limit` of the different texts and half as many of the pairs, in their order.

    Raises:
        InputError: if too few texts are left for the neighbours of `hubness`.
    """
    texts = _some(list(dict.fromkeys(texts)), limit, seed)
    if len(texts) <= NEIGHBOURS:
        raise InputError(
            f"geometry: expected {NEIGHBOURS + 1} different texts or more, found {len(texts)}"
        )
    return texts, _some(pairs, limit // 2, seed)


def embed_texts_and_pairs(
    encode: Encode,
    texts: Sequence[str],
    pairs: Sequence[TextPair],
    query_prompt: str = "",
    corpus_prompt: str = "",
) -> tuple[
    Float[np.ndarray, "N D"], tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P D"]] | None
]:
    """Computes the arguments of `geometry_metrics`.

    With a prompt for either, `encode` is called as `encode(texts, prompt=...)` for both.

    Args:
        encode: embeds texts.
        texts: texts to embed as documents.
        pairs: positive pairs; may be empty.
        query_prompt: of the pairs' first texts.
        corpus_prompt: of their second texts, and of `texts`.
    """
    encode_queries, encode_corpus = prompted(encode, query_prompt, corpus_prompt)
    embeddings = encode_corpus(texts)
    if not pairs:
        return embeddings, None
    first, second = zip(*pairs, strict=True)
    return embeddings, (encode_queries(list(first)), encode_corpus(list(second)))


def geometry_evaluator(
    texts: Sequence[str],
    pairs: Sequence[TextPair] = (),
    *,
    query_prompt: str = "",
    corpus_prompt: str = "",
    limit: int = 1000,
    seed: int = 0,
) -> Callable[[Encode], dict[str, float]]:
    """Returns an evaluator for training: `encode -> {"alignment": ..., "uniformity": ..., ...}`.

    See `geometry_metrics`. The texts are always the same: of more than `limit` different texts, or
    half as many pairs, this many drawn by `seed`.

    Args:
        texts: see `sts_texts` or `judged_texts`.
        pairs: positive pairs of texts.
        query_prompt: of the pairs' first texts.
        corpus_prompt: of their second texts, and of `texts`.
        limit: the largest number of texts.
        seed: of the texts and pairs that are drawn.

    Raises:
        InputError: at once, for 10 different texts or fewer.
    """
    texts, pairs = sample(texts, pairs, limit, seed)

    def evaluate(encode: Encode) -> dict[str, float]:
        return geometry_metrics(
            *embed_texts_and_pairs(encode, texts, pairs, query_prompt, corpus_prompt)
        )

    return evaluate


def _unit(embeddings: Float[np.ndarray, "N D"], least: int = 2) -> Float[np.ndarray, "N D"]:
    """Returns checked embeddings in float64, at length 1; a zero vector stays zero."""
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or len(embeddings) < least or not embeddings.shape[1]:
        raise InputError(
            f"embeddings: expected an array [N, D] of {least} vectors or more, found the shape "
            f"{embeddings.shape}"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise InputError(
            f"embeddings: expected finite numbers, found others in {np.sum(~finite)} of "
            f"{len(finite)} vectors, "
            f"first in number {np.argmin(finite)}"
        )
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1.0)


def _squared_distances(
    unit: Float[np.ndarray, "N D"],
) -> Iterator[tuple[Float[np.ndarray, "B N"], tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]]]:
    """Yields squared distances of a block of vectors to all.

    With them come the places of each vector's distance to itself.
    """
    lengths = np.einsum("nd,nd->n", unit, unit)
    for start in range(0, len(unit), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(unit)))
        squared = lengths[rows, None] + lengths - 2 * unit[rows] @ unit.T
        yield np.maximum(squared, 0.0), (rows - start, rows)


def _some(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    if len(items) <= limit:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[index] for index in np.sort(chosen)]
