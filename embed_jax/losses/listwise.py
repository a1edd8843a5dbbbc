"""Losses on an example's own candidates, each list by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from embed_jax.losses.base import loss
from embed_jax.scores import Score, find_score
from embed_jax.types import Columns, LossResult, Number, Params, World

ABSENT = -1e30  # the logit of a candidate that is not there


def own_candidates_loss(
    scores: Float[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    temperature: Number = 1.0,
) -> Float[Array, " b"]:
    """-log( exp(s_1 / t) / sum_k exp(s_k / t) ), the first candidate against the others.

    Karpukhin et al. (2020), "Dense Passage Retrieval", eq. 2, without in-batch negatives.

    Args:
        scores: of each row's candidates, the positive's first.
        present: False where there is no candidate; None: all are there.
        temperature: t.

    >>> print(own_candidates_loss(jnp.array([[1.0, 0.0]])))  # log(1 + e^-1)
    [0.3133]
    """
    logits = scores.astype(jnp.float32) / temperature
    if present is not None:
        logits = jnp.where(present, logits, ABSENT)
    return jax.nn.logsumexp(logits, axis=-1) - logits[:, 0]


@loss(columns=(3, 0), tiled=True, positive=("temperature",))
def own_candidates(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.05,
    similarity: str | Score = "cosine",
) -> LossResult:
    """Computes the mean of `own_candidates_loss` over anchors.

    An anchor's candidates are its positive and its own hard negatives. For data where other
    examples' texts may well be right: NV-Embed's second stage, with classification and clustering
    among its data sets (Lee et al. 2024).

    Args:
        temperature: t, more than 0.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".

    Returns:
        Weight 1 for an example with an anchor, a positive and a negative. Metric: `accuracy`.

    >>> anchor, negative = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(own_candidates(anchor, anchor, negative, temperature=1.0))  # log(1 + e^-1)
    [0.3133]
    """
    present = (own.present[:1] & own.present[1:]).T
    scores = find_score(similarity).of_lists(own.embeddings[0], own.embeddings[1:]).T
    values = own_candidates_loss(scores, present, temperature=temperature)
    best = jnp.max(jnp.where(present, scores, ABSENT)[:, 1:], axis=1)
    weights = (present[:, 0] & jnp.any(present[:, 1:], axis=1)).astype(jnp.float32)
    return values, weights, {"accuracy": (scores[:, 0] > best).astype(jnp.float32)}
