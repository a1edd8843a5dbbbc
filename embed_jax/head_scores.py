"""Scores of embeddings by several heads: each head's own, and weighted sums.

Embeddings are {head: what it gives}. A text such as "dense + 0.3 * sparse + multi_vector" names a
sum in training, in a model's settings, in evaluation and in search.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.maxsim import MEAN_MAXSIM, maxsim_matrix
from embed_jax.registry import unknown
from embed_jax.scores import DOT, SIMILARITIES, Score, find_score, similarity_matrix

# The weights with which BGE-M3 was trained.
DEFAULT_SUM: Mapping[str, float] = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}


def head_score(head: str, score: Score) -> Score:
    """Returns the score of one head's embeddings.

    >>> embeddings = {"dense": jnp.eye(2), "sparse": jnp.ones((2, 3))}
    >>> print(head_score("sparse", DOT).of_lists(embeddings, [embeddings])[0])
    [3. 3.]

    Args:
        head: its name.
        score: compares what it gives.
    """

    def of_head(embeddings: Any) -> Any:
        if not isinstance(embeddings, Mapping) or head not in embeddings:
            names = ", ".join(embeddings) if isinstance(embeddings, Mapping) else "one embedding"
            raise InputError(
                f"similarity {head!r}: expected the embeddings of a model with that head, found "
                f"{names}"
            )
        return embeddings[head]

    return Score(
        head,
        lambda embeddings, dims: score.prepare(of_head(embeddings), dims),
        score.matrix,
        score.pairs,
        lambda queries, documents: score.numbers(of_head(queries), of_head(documents)),
        score.symmetric,
        score.limits,
    )


def _mean_maxsim(queries: Any, documents: Any) -> Float[np.ndarray, "Q N"]:
    """Computes mean MaxSim of lists of tokens' vectors, or those of one text `[L, d]`."""
    sides = [
        [side] if getattr(side, "ndim", 0) == 2 else list(side) for side in (queries, documents)
    ]
    return maxsim_matrix(*sides, mean=True)


DENSE = head_score("dense", DOT)
SPARSE = head_score("sparse", DOT)
MULTI_VECTOR = head_score("multi_vector", MEAN_MAXSIM)
# The same scores of encoded texts: `(queries, documents) -> [Q, N]`.
MATRICES: Mapping[str, Callable[[Any, Any], Float[np.ndarray, "Q N"]]] = {
    "dense": functools.partial(similarity_matrix, name="dot"),
    "sparse": functools.partial(similarity_matrix, name="dot"),
    "multi_vector": _mean_maxsim,
}


def read_sum(text: str | Mapping[str, float]) -> dict[str, float]:
    """Reads the weight of each head's score in a sum; a mapping is one already.

    >>> read_sum("dense + 0.3 * sparse")
    {'dense': 1.0, 'sparse': 0.3}

    Raises:
        InputError: for anything but such a sum, an unknown head, or one that occurs twice.
    """
    if not isinstance(text, str):
        weights = [(str(name), weight) for name, weight in text.items()]
    else:
        try:
            terms = [ast.parse(term.strip(), mode="eval").body for term in text.split("+")]
        except (SyntaxError, ValueError):
            terms = []
        weights = [pair for term in terms for pair in _read_term(term)]
        if len(weights) < len(text.split("+")):
            raise InputError(f"sum of scores: expected one such as {DEFAULT_SUM!r}, found {text!r}")
    for index, (name, weight) in enumerate(weights):
        if name not in MATRICES:
            raise InputError(f"sum of scores: {unknown('head', name, MATRICES)}")
        if name in dict(weights[:index]):
            raise InputError(f"sum of scores: expected {name!r} once, found it twice")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise InputError(f"sum of scores: {name}: expected a weight from 0 up, found {weight}")
    return {name: float(weight) for name, weight in weights}


def check_similarity(name: str) -> None:
    """Raises an InputError if `name` is neither one of SIMILARITIES nor a sum of heads' scores."""
    if name in SIMILARITIES:
        return
    try:
        read_sum(name)
    except InputError as error:
        message = unknown("similarity", name, SIMILARITIES)
        raise InputError(f"{message}; or of a model of several heads: {error}") from None


def write_sum(weights: Mapping[str, float]) -> str:
    """Writes what `read_sum` reads.

    >>> write_sum({"dense": 1, "sparse": 0.3})
    'dense + 0.3 * sparse'
    """
    return " + ".join(
        name if weight == 1 else f"{weight:g} * {name}" for name, weight in weights.items()
    )


def _read_term(term: ast.expr) -> list[tuple[str, Any]]:
    match term:
        case ast.Name(id=name):
            return [(name, 1.0)]
        case ast.BinOp(left=ast.Constant(value=weight), op=ast.Mult(), right=ast.Name(id=name)):
            return [(name, weight)]
    return []


def sum_score(text: str | Mapping[str, float], *, parts: bool = False) -> Score:
    """Returns the weighted sum of the scores of several heads.

    >>> score = sum_score("dense + 0.5 * sparse")
    >>> embeddings = {"dense": jnp.eye(2), "sparse": jnp.ones((2, 2))}
    >>> print(score.of_lists(embeddings, [embeddings])[0])
    [2. 2.]

    Args:
        text: see `read_sum`.
        parts: give the heads' own scores too, before the sum: M is their number and 1.
    """
    weights = read_sum(text)
    scores = {name: find_score(name) for name in weights}

    def prepare(embeddings: Any, dims: tuple[int, ...]) -> dict[str, Any]:
        if dims:
            raise InputError(
                "a sum of heads' scores compares whole embeddings, no prefixes (Matryoshka)"
            )
        return {name: score.prepare(embeddings, ()) for name, score in scores.items()}

    def joined(of: Callable[[Score, Any, Any], Array], queries: Any, documents: Any) -> Array:
        each = [of(score, queries[name], documents[name]) for name, score in scores.items()]
        total = sum(weight * own for weight, own in zip(weights.values(), each, strict=True))
        return jnp.concatenate([*(each if parts else []), jnp.asarray(total)])

    return Score(
        write_sum(weights),
        prepare,
        lambda queries, documents, dims: joined(
            lambda score, *sides: score.matrix(*sides, ()), queries, documents
        ),
        lambda queries, documents, dims: joined(
            lambda score, *sides: score.pairs(*sides, ()), queries, documents
        ),
        lambda queries, documents: max(
            score.numbers(queries, documents) for score in scores.values()
        ),
        symmetric=all(score.symmetric for score in scores.values()),
    )


def sum_matrix(
    queries: Mapping[str, Any], documents: Mapping[str, Any], text: str | Mapping[str, float]
) -> Float[np.ndarray, "Q N"]:
    """Computes the weighted sum of the heads' scores of encoded texts, float32.

    Args:
        queries: by head, what `MultiHeadEncoder.encode` gives.
        documents: the same.
        text: see `read_sum`.

    Raises:
        InputError: see `read_sum`; also for a head whose embeddings are missing on a side.
    """
    weights = read_sum(text)
    for side, embeddings in (("queries", queries), ("documents", documents)):
        if missing := weights.keys() - embeddings.keys():
            raise InputError(
                f"{side}: expected embeddings by {min(missing)}, found those by "
                f"{', '.join(embeddings)}"
            )
    matrices = [
        weight * MATRICES[name](queries[name], documents[name]) for name, weight in weights.items()
    ]
    return np.asarray(sum(matrices), np.float32)
