"""Losses of the ranks of a list's candidates, and of their order in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from embed_jax.errors import InputError
from embed_jax.losses.candidates import (
    ListValues,
    mean_of_lists,
    on_candidates,
    ranks,
    read_lists,
)
from embed_jax.registry import unknown
from embed_jax.types import Number

Gains = Float[Array, "b K"]
Ranks = Float[Array, "b K"]
PairWeights = Float[Array, "b K K"]


def _inverse_discount(rank: Array) -> Array:
    return 1.0 / jnp.log2(1.0 + rank)


def _differences(values: Float[Array, "b K"]) -> PairWeights:
    """[b, i, j] = value i - value j."""
    return values[:, :, None] - values[:, None, :]


def _ndcg1(gain: Gains, rank: Ranks, mu: Number) -> PairWeights:
    weights = gain * _inverse_discount(rank)
    return jnp.broadcast_to(weights[:, :, None], (*weights.shape, weights.shape[1]))


def _ndcg2(gain: Gains, rank: Ranks, mu: Number) -> PairWeights:
    distance = jnp.abs(_differences(rank))
    apart = jnp.maximum(distance, 1.0)  # a candidate and itself: no division by 0
    change = _inverse_discount(apart) - _inverse_discount(apart + 1.0)
    return jnp.where(distance > 0.0, change, 0.0) * jnp.abs(_differences(gain))


def _lambda_rank(gain: Gains, rank: Ranks, mu: Number) -> PairWeights:
    return jnp.abs(_differences(_inverse_discount(rank)) * _differences(gain))


WEIGHTINGS: dict[str, Callable[[Gains, Ranks, Number], PairWeights]] = {
    "none": lambda gain, rank, mu: jnp.ones((*gain.shape, gain.shape[1])),
    "ndcg1": _ndcg1,
    "ndcg2": _ndcg2,
    "lambda_rank": _lambda_rank,
    "ndcg2++": lambda gain, rank, mu: mu * _ndcg2(gain, rank, mu) + _lambda_rank(gain, rank, mu),
}
LOGARITHMS = {"binary": math.log(2.0), "natural": 1.0}


def lambda_rank_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    weighting: str = "ndcg2++",
    mu: Number = 10.0,
    k: int = 0,
    sigma: Number = 1.0,
    epsilon: Number = 1e-10,
    logarithm: str = "binary",
) -> ListValues:
    """LambdaLoss: -w_ij log2 sigmoid(sigma (s_i - s_j)), the mean over pairs with y_i > y_j.

    Wang et al. (2018), "The LambdaLoss Framework for Ranking Metric Optimization".

    With the gains G_i = (2^y_i - 1) / (the best possible DCG), the ranks r by score and
    D(r) = 1 / log2(1 + r), w_ij is

    * "none": 1, which is `rank_net`
    * "ndcg1": G_i D(r_i), over all pairs, those of equal labels and of a candidate with itself too
    * "ndcg2": |G_i - G_j| (D(|r_i - r_j|) - D(|r_i - r_j| + 1))
    * "lambda_rank": |G_i - G_j| |D(r_i) - D(r_j)| (Burges et al. 2006)
    * "ndcg2++": mu times "ndcg2" + "lambda_rank"

    and has no gradient. Candidates of equal scores have ranks in the order in which they stand.

    Args:
        scores: any numbers.
        labels: grades, since 2^y of a teacher's logit soon overflows; those below 0 gain as much as
            0.
        present: False where there is no candidate; None: all are there.
        weighting: one of WEIGHTINGS, see above.
        mu: weight of "ndcg2" in "ndcg2++".
        k: counts pairs of which one candidate at least is among the first k by score, and the DCG
            of the first k; 0: all.
        sigma: how steep the sigmoid is.
        epsilon: the least best DCG.
        logarithm: "binary" or "natural".

    Returns:
        A list weighs as much as it has pairs, as in sentence-transformers.

    Raises:
        InputError: for an unknown weighting or logarithm.

    >>> scores, labels = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[2.0, 1.0, 0.0]])
    >>> print(lambda_rank_loss(scores, labels).values)
    [3.5646]
    """
    if weighting not in WEIGHTINGS:
        raise InputError(unknown("weighting of lambda_rank", weighting, WEIGHTINGS))
    if logarithm not in LOGARITHMS:
        raise InputError(unknown("logarithm", logarithm, LOGARITHMS))
    scores, labels, present = read_lists(scores, labels, present)
    rank, best_rank = ranks(scores, present), ranks(labels, present)
    k = k or scores.shape[1]

    gain = jnp.exp2(jnp.maximum(labels, 0.0)) - 1.0
    counted = jnp.where(best_rank <= k, gain * _inverse_discount(best_rank), 0.0)
    gain = gain / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), epsilon)
    weights = WEIGHTINGS[weighting](gain, rank, mu)

    pairs = (present[:, :, None] & present[:, None, :]) & (
        (rank <= k)[:, :, None] | (rank <= k)[:, None, :]
    )
    if weighting != "ndcg1":
        pairs &= _differences(labels) > 0.0
    values = weights * jax.nn.softplus(-sigma * _differences(scores)) / LOGARITHMS[logarithm]
    lists, size = scores.shape
    return mean_of_lists(values.reshape(lists, size * size), pairs.reshape(lists, size * size))


def rank_net_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    k: int = 0,
    sigma: Number = 1.0,
    logarithm: str = "binary",
) -> ListValues:
    """RankNet: -log2 sigmoid(sigma (s_i - s_j)), the mean over pairs with y_i > y_j.

    Burges et al. (2005), "Learning to Rank using Gradient Descent".

    Args:
        scores: any numbers.
        labels: any numbers; only their order counts.
        present: False where there is no candidate; None: all are there.
        k: counts pairs of which one candidate at least is among the first k by score; 0: all.
        sigma: how steep the sigmoid is.
        logarithm: "binary" or "natural".

    Returns:
        A list weighs as much as it has pairs, as in sentence-transformers.

    >>> scores, labels = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    >>> print(rank_net_loss(scores, labels, logarithm="natural").values)  # log(1 + e)
    [1.3133]
    """
    return lambda_rank_loss(
        scores, labels, present, weighting="none", k=k, sigma=sigma, logarithm=logarithm
    )


def adr_mse_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    alpha: Number = 1.0,
) -> ListValues:
    """ADR-MSE: (r_i - R_i)^2 / log2(1 + R_i), the mean over a list's candidates.

    r_i = 1 + sum over j != i of sigmoid(alpha (s_j - s_i)) approximates the rank by score, and R_i
    is that by label, where equal labels share the mean of their ranks.

    Schlatt et al. (2025), "Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and
    LLMs for Passage Re-Ranking"; approximate ranks of Qin, Liu and Li (2010).

    Args:
        scores: any numbers.
        labels: any numbers; only their order counts.
        present: False where there is no candidate; None: all are there.
        alpha: how sharp the approximate ranks are.

    Returns:
        A list weighs as much as it has candidates.

    >>> scores, labels = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    >>> print(adr_mse_loss(scores, labels).values)
    [0.4358]
    """
    scores, labels, present = read_lists(scores, labels, present)
    others = present[:, None, :]
    passed = jax.nn.sigmoid(-alpha * _differences(scores))
    rank = 0.5 + jnp.sum(jnp.where(others, passed, 0.0), axis=2)  # 1/2 is from i itself
    label_differences = _differences(labels)
    lower = jnp.sum((others & (label_differences < 0.0)).astype(jnp.float32), axis=2)
    equal = jnp.sum((others & (label_differences == 0.0)).astype(jnp.float32), axis=2)
    target = lower + (equal + 1.0) / 2.0
    return mean_of_lists((target - rank) ** 2 * _inverse_discount(target), present)


lambda_rank = on_candidates(lambda_rank_loss, positive=("sigma",))
rank_net = on_candidates(rank_net_loss, positive=("sigma",))
adr_mse = on_candidates(adr_mse_loss, positive=("alpha",))
