"""Losses of the distribution over a list's candidates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from embed_jax.losses.base import Target, loss
from embed_jax.losses.candidates import (
    ABSENT,
    ListValues,
    log_softmax,
    on_candidates,
    ranks,
    read_lists,
    some_candidates,
)
from embed_jax.scores import Score, find_score
from embed_jax.types import Columns, LossResult, Number, Params, World


def own_candidates_loss(
    scores: Float[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    temperature: Number = 1.0,
) -> ListValues:
    """-log( exp(s_1 / t) / sum_k exp(s_k / t) ), the first candidate against the others.

    Karpukhin et al. (2020), "Dense Passage Retrieval", eq. 2, without in-batch negatives.

    Args:
        scores: of each row's candidates, the positive's first.
        present: False where there is no candidate; None: all are there.
        temperature: t.

    Returns:
        Weight 1 for a list with its positive and a negative.

    >>> print(own_candidates_loss(jnp.array([[1.0, 0.0]])).values)  # log(1 + e^-1)
    [0.3133]
    """
    scores, _, present = read_lists(scores, scores, present)
    some = present[:, 0] & jnp.any(present[:, 1:], axis=1)
    return ListValues(-log_softmax(scores / temperature, present)[:, 0], some.astype(jnp.float32))


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
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    scores = score.of_lists(own.embeddings[0], own.embeddings[1:]).T
    best = jnp.max(jnp.where(present, scores, ABSENT)[:, 1:], axis=1)
    accuracy = (scores[:, 0] > best).astype(jnp.float32)
    return *own_candidates_loss(scores, present, temperature=temperature), {"accuracy": accuracy}


def list_softmax_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
) -> ListValues:
    """Softmax over a list: -sum_i p_i log softmax(s)_i with p_i = y_i / sum_j y_j.

    With one relevant candidate it is InfoNCE over the list, `own_candidates_loss`; several ones
    share its probability. Cao et al. (2007), "Learning to Rank: From Pairwise Approach to Listwise
    Approach", with another distribution of the labels than `list_net_loss`.

    Args:
        scores: logits of the softmax.
        labels: grades; those below 0 count as 0.
        present: False where there is no candidate; None: all are there.

    Returns:
        Weight 1 for a list with a label above 0.

    >>> scores, labels = jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[1.0, 0.0, 1.0]])
    >>> print(list_softmax_loss(scores, labels).values)
    [0.862]
    """
    scores, labels, present = read_lists(scores, labels, present)
    labels = jnp.maximum(labels, 0.0)
    total = jnp.sum(labels, axis=1, keepdims=True)
    target = labels / jnp.where(total > 0.0, total, 1.0)
    values = -jnp.sum(target * log_softmax(scores, present), axis=1)
    return ListValues(values, (total[:, 0] > 0.0).astype(jnp.float32))


def list_net_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
) -> ListValues:
    """ListNet: -sum_i softmax(y)_i log softmax(s)_i over a list's candidates.

    Cao et al. (2007), "Learning to Rank: From Pairwise Approach to Listwise Approach", the
    probability of each candidate to come first.

    Args:
        scores: logits of the softmax.
        labels: grades, or a teacher's logits.
        present: False where there is no candidate; None: all are there.

    Returns:
        Weight 1 for a list with a candidate.

    >>> scores, labels = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    >>> print(list_net_loss(scores, labels).values)
    [1.0443]
    """
    scores, labels, present = read_lists(scores, labels, present)
    target = jnp.where(present, jnp.exp(log_softmax(labels, present)), 0.0)
    values = -jnp.sum(target * log_softmax(scores, present), axis=1)
    return ListValues(values, some_candidates(present))


def list_mle_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    by_position: bool = False,
    respect_input_order: bool = False,
) -> ListValues:
    """ListMLE: -sum_r w_r log( exp(s_(r)) / sum_{q >= r} exp(s_(q)) ), (r) being the r-th by label.

    The probability of the whole order: Xia et al. (2008), "Listwise Approach to Learning to Rank:
    Theory and Algorithm". Candidates of equal labels stay in the order in which they stand.

    Args:
        scores: any numbers.
        labels: any numbers; only their order counts.
        present: False where there is no candidate; None: all are there.
        by_position: the position-aware form (PListMLE): w_r = (2^(n - r) - 1) / sum_q (2^(n - q) -
            1) for n candidates, so that the first places count most; else w_r = 1. Lan et al.
            (2014), "Position-Aware ListMLE: A Sequential Learning Process for Ranking".
        respect_input_order: take the candidates in the order in which they stand, as
            sentence-transformers does by default, and not by label.

    Returns:
        Weight 1 for a list with a candidate.

    >>> scores, labels = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    >>> print(list_mle_loss(scores, labels).values)  # log(1 + e)
    [1.3133]
    """
    scores, labels, present = read_lists(scores, labels, present)
    rank = ranks(jnp.zeros_like(labels) if respect_input_order else labels, present)
    remaining = present[:, None, :] & (rank[:, None, :] >= rank[:, :, None])
    logits = jnp.where(remaining, scores[:, None, :], ABSENT)
    values = jnp.where(present, jax.nn.logsumexp(logits, axis=2) - scores, 0.0)
    if by_position:
        # Divided by 2^n, which the sum is divided by too: 2^n overflows for long lists.
        size = jnp.sum(present.astype(jnp.float32), axis=1, keepdims=True)
        weights = jnp.where(present, jnp.exp2(-rank) - jnp.exp2(-size), 0.0)
        total = jnp.sum(weights, axis=1, keepdims=True)
        values = values * weights / jnp.where(total > 0.0, total, 1.0)
    return ListValues(jnp.sum(values, axis=1), some_candidates(present))


list_softmax = on_candidates(list_softmax_loss, targets=lambda arguments: Target(0.0, math.inf))
list_net = on_candidates(list_net_loss)
list_mle = on_candidates(list_mle_loss)
