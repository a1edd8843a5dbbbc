"""The parts of the in-batch losses: terms of a softmax over negatives, and their cross entropy."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.losses.base import is_number
from embed_jax.losses.negatives import ANCHOR, POSITIVE, Negatives, Texts, gap_block
from embed_jax.types import Columns, LossResult, Number, Params, World

Term = tuple[int, tuple[int, ...]]  # the column of the rows, and those of the candidates
MAX_SCALE = 100.0  # of a learnable temperature, as in CLIP (Radford et al. 2021, section 2.5)


class SoftmaxTerm:
    """One term of a softmax: the negatives of a device's anchors or positives in some columns.

    Attributes:
        rows: with the similarity to their positives.
        logsumexp: log of the sum over negatives of exp(logit - the positive's logit), [M, b].
    """

    def __init__(
        self, own: Columns, world: World, negatives: Negatives, term: Term, scale, adjust=None
    ):
        self._world, self._scale = world, scale
        column, self._columns = term
        self._negatives = negatives
        self._block = gap_block(negatives, adjust)
        self._further = (
            negatives.earlier(own) if column == ANCHOR and POSITIVE in self._columns else None
        )
        self._numbers = negatives.numbers(own, column, self._columns)
        self.rows = negatives.rows(own, column)
        self.logsumexp, self._largest = world.logsumexp(
            self._block, self.rows, self._candidates, scale, self._further, self._numbers
        )

    def _candidates(self, columns: Columns) -> Texts:
        return self._negatives.texts(columns, self._columns)

    def gaps(self) -> tuple[Float[Array, "M b"], Float[Array, "M b"]]:
        """Computes the sum of the gaps of all negatives, and their number."""

        def block(rows, candidates, scale):
            gaps = self._block(rows, candidates, scale)
            counts = gaps > -jnp.inf
            return jnp.concatenate([jnp.where(counts, gaps, 0.0), counts.astype(jnp.float32)])

        total, count = jnp.split(
            self._world.sum(
                block, self.rows, self._candidates, self._scale, self._further, self._numbers
            ),
            2,
        )
        return total, count

    def expected_gaps(self, normalizer: Float[Array, " b"]) -> Float[Array, "V b"]:
        """Computes sum_j p_j gap_vj of all variants v but the last, where p is the last's softmax.

        The positive's gap is 0. p has no gradient.

        Args:
            normalizer: log(1 + sum_j exp(gap_j)) of the last variant.
        """

        def block(rows, candidates, scale):
            rows, normalizer = rows
            gaps = self._block(rows, candidates, scale)
            counts = gaps[-1:] > -jnp.inf
            own = jax.lax.stop_gradient(jnp.where(counts, gaps[-1:], 0.0))
            share = jnp.exp(own - normalizer[None, :, None])
            return jnp.where(counts, share * jnp.where(counts, gaps[:-1], 0.0), 0.0)

        return self._world.sum(
            block,
            (self.rows, jax.lax.stop_gradient(normalizer)),
            self._candidates,
            self._scale,
            self._further,
            self._numbers,
        )

    def metrics(self) -> dict[str, Float[Array, " b"]]:
        """Computes the metrics by example, of the largest prefix."""
        positive = self.rows.positive[-1]
        return contrast_metrics(positive, positive + self._largest[-1] / self._scale)


def cross_entropy(
    parts: Sequence[SoftmaxTerm], smoothing: Number = 0.0, again: float = 0.0
) -> Float[Array, "M b"]:
    """-log softmax of the positive against the negatives of all parts: log(1 + sum exp(gap)).

    Exact in float32 even where the positive is far ahead: the sum is without the positive's own 1,
    so that 8e-7 does not round to 0.

    Args:
        parts: the terms of the softmax.
        smoothing: share of the target spread evenly over the positive and the negatives.
        again: how often the positive counts besides its own 1.
    """
    total = jax.nn.logsumexp(jnp.stack([part.logsumexp for part in parts]), axis=0)
    if again:
        total = jnp.logaddexp(total, jnp.log(again))
    values = jnp.logaddexp(total, 0.0)
    if not is_number(smoothing, 0.0):
        gaps, counts = zip(*(part.gaps() for part in parts), strict=True)
        values = values - smoothing * sum(gaps) / (1.0 + again + sum(counts))
    return values


def scale_of(temperature: Number, params: Params) -> Float[Array, ""]:
    """Returns 1 / temperature, or the learnt scale, which is at most MAX_SCALE."""
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise InputError(f"config.loss: temperature: expected more than 0, found {temperature}")
    if "log_scale" in params:
        return jnp.minimum(jnp.exp(params["log_scale"]), MAX_SCALE)
    return jnp.asarray(1.0 / temperature, jnp.float32)


def over_prefixes(
    values: Float[Array, "M b"], own: Columns, metrics: dict[str, Array]
) -> LossResult:
    """Computes the weighted sum over the prefixes, if there are any.

    Their losses are metrics "loss/SIZE".
    """
    if own.prefixes is None:
        return values[0], example_weights(own), metrics
    by_size = {
        f"loss/{size}": value for size, value in zip(own.prefixes.sizes, values, strict=True)
    }
    return (
        jnp.tensordot(own.prefixes.weights, values, axes=1),
        example_weights(own),
        metrics | by_size,
    )


def example_weights(own: Columns) -> Float[Array, " b"]:
    """Returns weight 1 for examples with an anchor and a positive, else 0."""
    return (own.present[ANCHOR] & own.present[POSITIVE]).astype(jnp.float32)


def contrast_metrics(positive: Array, hardest: Array) -> dict[str, Float[Array, " b"]]:
    """Computes the metrics of examples from their positive and hardest negative similarity."""
    return {
        "accuracy": (positive > hardest).astype(jnp.float32),
        "positive_similarity": positive,
        # Every other candidate may be masked.
        "hardest_negative_similarity": jnp.where(jnp.isfinite(hardest), hardest, 0.0),
    }
