"""Bidirectional attention over packed rows: one signature, a body for each kind of backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.layers import dropout
from embed_jax.errors import InputError
from embed_jax.registry import unknown

MASKED = -1e9  # exp of it is exactly 0 in float32, and it stays finite when two of them are added


def sentence_bias(sentence: Int[Array, "R T"]) -> Float[Array, "R 1 T T"]:
    """What to add to the scores so that a token sees its own sentence only: 0 there, MASKED elsewhere.

    Padding has an id of its own, so it sees padding: no row is without a slot to look at, none is NaN, and
    what comes out there is never pooled.
    """
    return jnp.where(sentence[:, None, :, None] == sentence[:, None, None, :], 0.0, MASKED)


def attention(
    query: Float[Array, "R T H d"],
    key: Float[Array, "R T H d"],
    value: Float[Array, "R T H d"],
    bias: Float[Array, "R K T T"],
    *,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    implementation: str = "auto",
) -> Float[Array, "R T H d"]:
    """softmax(query key^T / sqrt(d) + bias) value, with dropout of the softmax (Vaswani et al. 2017, eq. 1).

    Args:
        bias: float32, added to the scores: the mask, and a relative position bias where there is one; K is H or 1.
        dropout_key: None means no dropout.
        implementation: "xla", "cudnn", or "auto": cuDNN's flash attention on a GPU where it can serve (16-bit
            inputs, no dropout), else the XLA form.
    """
    if dropout_rate == 0.0:
        dropout_key = None
    if implementation == "auto":
        flash = jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16 and dropout_key is None
        implementation = "cudnn" if flash else "xla"
    if implementation == "xla":
        return _xla(query, key, value, bias, dropout_rate, dropout_key)
    if implementation == "cudnn":
        if dropout_key is not None:
            raise InputError("attention 'cudnn' has no dropout: use 'auto' or 'xla', or attention_dropout 0")
        return jax.nn.dot_product_attention(query, key, value, bias.astype(query.dtype), implementation="cudnn")
    raise InputError(unknown("attention", implementation, ["auto", "xla", "cudnn"]))


def _xla(query, key, value, bias, dropout_rate, dropout_key):
    """Batched matrix products over [R, H]; the division by the row sum comes last, on [T, d] and not [T, T].

    On CPU this form takes a seventh of the time of einsum, softmax, einsum.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    scores = jnp.matmul(query, key.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32) + bias
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    out = jnp.matmul(weights, value, preferred_element_type=jnp.float32) / total
    return out.astype(value.dtype).transpose(0, 2, 1, 3)
