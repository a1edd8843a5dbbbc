"""Losses of each candidate's score by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from embed_jax.losses.base import Target, loss
from embed_jax.losses.candidates import ListValues, mean_of_lists, on_candidates, read_lists
from embed_jax.losses.classification import softmax_loss
from embed_jax.scores import dense, find_score
from embed_jax.types import Columns, LossResult, Number, Params, World


def binary_cross_entropy_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    pos_weight: Number = 1.0,
) -> ListValues:
    """-w y log sigmoid(s) - (1 - y) log(1 - sigmoid(s)), the mean over a list's candidates.

    Nogueira and Cho (2019), "Passage Re-ranking with BERT"; torch's `BCEWithLogitsLoss`.

    Args:
        scores: logits s: no sigmoid before it.
        labels: y, 0 to 1.
        present: False where there is no candidate; None: all are there.
        pos_weight: w, which is the number of negatives for each positive where both sides are to
            count alike.

    Returns:
        A list weighs as much as it has candidates.

    >>> scores, labels = jnp.array([[2.0, -1.0]]), jnp.array([[1.0, 0.0]])
    >>> print(binary_cross_entropy_loss(scores, labels).values)
    [0.2201]
    """
    scores, labels, present = read_lists(scores, labels, present)
    values = pos_weight * labels * jax.nn.softplus(-scores)
    return mean_of_lists(values + (1.0 - labels) * jax.nn.softplus(scores), present)


def score_mse_loss(
    scores: Float[Array, "b K"],
    labels: Num[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
) -> ListValues:
    """(s - y)^2 of a candidate's score and label, the mean over a list's candidates.

    For pairs of embeddings, it is `cosine_mse`.

    Args:
        scores: s.
        labels: y.
        present: False where there is no candidate; None: all are there.

    Returns:
        A list weighs as much as it has candidates.

    >>> print(score_mse_loss(jnp.array([[0.7, 0.0]]), jnp.array([[0.7, 0.5]])).values)
    [0.125]
    """
    scores, labels, present = read_lists(scores, labels, present)
    return mean_of_lists((scores - labels) ** 2, present)


def _score_target(arguments: Mapping[str, Any]) -> Target | None:
    limits = find_score(arguments["similarity"]).limits
    return Target(*limits) if limits else None


binary_cross_entropy = on_candidates(
    binary_cross_entropy_loss, columns=(2, 0), targets=lambda arguments: Target(0.0, 1.0)
)
score_mse = on_candidates(score_mse_loss, temperature=None, columns=(2, 0), targets=_score_target)


@loss(columns=(2, 2), needs=("label",))
def pair_cross_entropy(
    own: Columns, world: World, params: Params, *, num_labels: int = 3
) -> LossResult:
    """Computes `softmax_loss` of the logits of pairs, for a cross-encoder that classifies them.

    Devlin et al. (2019), "BERT", section 4.1, on pairs of sentences.

    Args:
        num_labels: the number of classes, which is that of the model's logits.

    Returns:
        Weight 1 for an example with both texts. Metric: `accuracy`.

    >>> read, logits = jnp.zeros((1, 3)), jnp.array([[0.0, 0.0, 2.0]])
    >>> print(pair_cross_entropy(read, logits, label=jnp.array([2])))
    [0.2395]
    """
    logits = dense(own.embeddings[1], "pair_cross_entropy")
    label = jnp.asarray(own.label)
    values = softmax_loss(logits, label)
    accuracy = (jnp.argmax(logits, axis=1) == label).astype(jnp.float32)
    weights = (own.present[0] & own.present[1]).astype(jnp.float32)
    return values, weights, {"accuracy": accuracy}
