"""Trains the heads of one encoder together: each learns from the sum of all scores, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.head_scores import read_sum, sum_score
from embed_jax.losses.base import loss
from embed_jax.losses.negatives import ANCHOR, POSITIVE, Negatives
from embed_jax.losses.terms import SoftmaxTerm, cross_entropy, example_weights, scale_of
from embed_jax.types import Columns, LossResult, Number, Params, World


@loss(tiled=True, positive=("temperature",))
def self_distillation(
    own: Columns,
    world: World,
    params: Params,
    *,
    similarity: str = "dense + 0.3 * sparse + multi_vector",
    factors: str = "dense + 0.1 * sparse + multi_vector",
    temperature: Number = 0.02,
    distill: Number = 0.5,
    mask_duplicates: bool = True,
) -> LossResult:
    """BGE-M3's loss of P heads with scores s_h: (1 - d) L + d L'.

    Chen et al. (2024), "M3-Embedding", section 3.3 (arXiv 2402.03216): with s = sum_h w_h s_h and
    p(s) = softmax(s / t) over the positive and all negatives of the batch,

    * L = (sum_h f_h L_h + L_s) / (P + 1), where L_h and L_s are `info_nce` by s_h and by s;
    * L' = sum_h f_h L'_h / P, where L'_h = -sum_j p_j(s) log p_j(s_h), p(s) without gradient.

    Args:
        similarity: the sum s, such as "dense + 0.3 * sparse + multi_vector", with the weights w_h.
        factors: the same form, with the factors f_h of the heads' losses.
        temperature: t.
        distill: d; 1/2 in the paper. A schedule may let it rise from 0, as the summed scores
            become a teacher.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.

    >>> anchors, positives = {"dense": jnp.eye(2)}, {"dense": jnp.array([[2.0, 0.0], [1.0, 1.0]])}
    >>> settings = {"similarity": "dense + 0 * sparse", "factors": "dense + 0 * sparse"}
    >>> for embeddings in (anchors, positives):
    ...     embeddings["sparse"] = jnp.zeros((2, 3))
    >>> print(self_distillation(anchors, positives, temperature=0.5, distill=0.0, **settings))
    [0.0846 0.0846]
    """
    weights, of_losses = read_sum(similarity), read_sum(factors)
    if weights.keys() != of_losses.keys():
        raise InputError(
            f"factors: expected those of {', '.join(weights)}, found {', '.join(of_losses)}"
        )
    negatives = Negatives(sum_score(weights, parts=True), (), mask_duplicates)
    passages = tuple(range(POSITIVE, len(own.embeddings)))
    term = SoftmaxTerm(own, world, negatives, (ANCHOR, passages), scale_of(temperature, params))
    values = cross_entropy([term])
    taught = values[:-1] - term.expected_gaps(values[-1])
    factor = jnp.array([of_losses[name] for name in weights])
    contrast = (factor @ values[:-1] + values[-1]) / (len(weights) + 1)
    distilled = factor @ taught / len(weights)
    metrics: dict[str, Float[Array, " b"]] = term.metrics() | {"loss/sum": values[-1]}
    for number, name in enumerate(weights):
        metrics |= {f"loss/{name}": values[number], f"distill/{name}": taught[number]}
    metrics = jax.tree.map(jax.lax.stop_gradient, metrics)
    return (1.0 - distill) * contrast + distill * distilled, example_weights(own), metrics
