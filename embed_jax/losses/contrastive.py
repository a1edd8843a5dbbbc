"""Contrastive losses over in-batch negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from embed_jax.types import Columns


def similarity_matrix(
    anchors: Float[Array, "b D"], candidates: Float[Array, "N D"], similarity: str = "cosine"
) -> Float[Array, "b N"]:
    """Cosine or dot-product similarities, float32.

    Raises:
        ValueError: for another name of a similarity.
    """
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity: expected 'cosine' or 'dot', found {similarity!r}")
    anchors, candidates = anchors.astype(jnp.float32), candidates.astype(jnp.float32)
    if similarity == "cosine":
        anchors, candidates = normalize(anchors), normalize(candidates)
    return jnp.matmul(anchors, candidates.T, precision=jax.lax.Precision.HIGHEST)


def normalize(vectors: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Vectors of length 1; a zero vector stays zero, with a zero gradient."""
    square = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def softmax_cross_entropy(
    logits: Float[Array, "b N"], labels: Int[Array, " b"], allowed: Bool[Array, "b N"] | None = None
) -> Float[Array, " b"]:
    """-log softmax(logits)[label], over the allowed entries and the label's own.

    Exact in float32 even where the positive is far ahead: with d_j = logit_j - logit_label the loss is
    log(1 + sum_{j != label} exp(d_j)), summed without the label's own 1, so that 8e-7 does not round to 0.

    Args:
        logits: float32.
        labels: index of the right entry of each row.
        allowed: False takes an entry out of the denominator; None: all count.
    """
    is_label = jnp.arange(logits.shape[1])[None, :] == labels[:, None]
    others = ~is_label if allowed is None else allowed & ~is_label
    gap = logits - jnp.take_along_axis(logits, labels[:, None], axis=1)
    gap = jnp.where(others, gap, -jnp.inf)
    # The loss does not depend on the shift, so neither does its gradient.
    shift = jax.lax.stop_gradient(jnp.maximum(jnp.max(gap, axis=1), 0.0))
    total = jnp.sum(jnp.exp(gap - shift[:, None]), axis=1)
    return shift + jnp.log1p(total + jnp.expm1(-shift))


def info_nce(
    anchors: Float[Array, "b D"],
    candidates: Float[Array, "N D"],
    labels: Int[Array, " b"],
    *,
    temperature: float | Float[Array, ""] = 0.05,
    similarity: str = "cosine",
    allowed: Bool[Array, "b N"] | None = None,
    logit_bias: Float[Array, "b N"] | None = None,
) -> Float[Array, " b"]:
    """InfoNCE: -log( exp(s(a, c_label) / t) / sum_j exp(s(a, c_j) / t) ), per anchor.

    van den Oord, Li, Vinyals (2018), eq. 4; with in-batch negatives "MultipleNegativesRanking"
    (Henderson et al. 2017) in sentence-transformers, whose scale is 1 / t.

    Args:
        anchors: one row per anchor, any float dtype; similarities are float32.
        candidates: positives and negatives of the whole batch.
        labels: which candidate is an anchor's positive.
        temperature: t.
        similarity: "cosine" or "dot".
        allowed: False where a candidate is not to count as a negative of an anchor.
        logit_bias: added to the logits, e.g. log(alpha) at an anchor's own hard negatives.

    >>> queries, passages = jnp.eye(2), jnp.array([[0.95, 0.05], [0.10, 0.90]])
    >>> loss = info_nce(queries, passages, jnp.arange(2), temperature=0.2)
    >>> print(loss.mean().round(4))
    0.0104
    """
    logits = similarity_matrix(anchors, candidates, similarity) / temperature
    if logit_bias is not None:
        logits = logits + logit_bias
    return softmax_cross_entropy(logits, labels, allowed)


def in_batch_info_nce(
    own: Columns,
    world: Columns,
    first: Int[Array, ""],
    params: dict,
    *,
    temperature: float = 0.05,
    similarity: str = "cosine",
    symmetric: bool = False,
    hard_negative_weight: float = 1.0,
    mask_duplicates: bool = True,
) -> tuple[Float[Array, " b"], Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """InfoNCE of a device's own anchors against every positive and negative of the global batch.

    With `hard_negative_weight` alpha, an anchor's own hard negatives count alpha times in its denominator
    (SimCSE, Gao et al. 2021, section 4.2). With `symmetric`, the mean of that and of positives against all anchors.

    Args:
        own: columns of this device's examples, b of them; column 0 anchors, 1 positives, the rest negatives.
        world: the same of the whole batch, B examples; `own` are its examples first .. first + b - 1.
        params: learnable numbers of the loss; this one has none.
        mask_duplicates: what equals an anchor or its positive is not its negative, nor is the positive of an equal
            anchor; the other way round, the anchor of an equal positive.

    Returns:
        Values and weights per anchor (weight 0 without a positive), and per-anchor metrics: `accuracy` (the positive
        comes first), `positive_similarity`, `hardest_negative_similarity`.
    """
    num_columns, batch, dim = world.embeddings.shape
    rows = own.embeddings.shape[1]
    labels = first + jnp.arange(rows)
    anchors, positives = own.embeddings[0], own.embeddings[1]
    candidates = world.embeddings[1:].reshape(-1, dim)
    candidate_hash = world.text_hash[1:].reshape(-1, 2)
    example = jnp.tile(jnp.arange(batch), num_columns - 1)  # whose candidate this is
    is_negative_column = jnp.repeat(jnp.arange(1, num_columns) > 1, batch)

    own_negative = is_negative_column[None, :] & (example[None, :] == labels[:, None])
    allowed = jnp.broadcast_to(world.present[1:].reshape(-1)[None, :], (rows, candidates.shape[0]))
    if mask_duplicates:
        # The entry of an example's own positive counts whatever the mask says: SimCSE's *is* the anchor's text.
        allowed &= ~_same_text(own.text_hash[0], candidate_hash) & ~_same_text(own.text_hash[1], candidate_hash)
        same_anchor = jnp.tile(_same_text(own.text_hash[0], world.text_hash[0]), (1, num_columns - 1))
        allowed &= is_negative_column[None, :] | ~same_anchor

    similarities = similarity_matrix(anchors, candidates, similarity)
    logits = similarities / temperature + jnp.where(own_negative, jnp.log(hard_negative_weight), 0.0)
    values = softmax_cross_entropy(logits, labels, allowed)
    if symmetric:
        allowed_back = jnp.broadcast_to(world.present[0][None, :], (rows, batch))
        if mask_duplicates:
            for mine, theirs in ((0, 0), (1, 0), (1, 1)):
                allowed_back &= ~_same_text(own.text_hash[mine], world.text_hash[theirs])
        back = similarity_matrix(positives, world.embeddings[0], similarity) / temperature
        values = 0.5 * (values + softmax_cross_entropy(back, labels, allowed_back))

    weights = (own.present[0] & own.present[1]).astype(jnp.float32)
    is_label = jnp.arange(candidates.shape[0])[None, :] == labels[:, None]
    positive = jnp.sum(jnp.where(is_label, similarities, 0.0), axis=1)
    hardest = jnp.max(jnp.where(allowed & ~is_label, similarities, -jnp.inf), axis=1)
    metrics = {
        "accuracy": (positive > hardest).astype(jnp.float32),
        "positive_similarity": positive,
        # Every other candidate may be masked.
        "hardest_negative_similarity": jnp.where(jnp.isfinite(hardest), hardest, 0.0),
    }
    return values, weights, metrics


def _same_text(own: Array, world: Array) -> Bool[Array, "b N"]:
    return jnp.all(own[:, None, :] == world[None, :, :], axis=-1)
