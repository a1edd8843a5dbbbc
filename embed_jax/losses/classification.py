"""Classification of pairs of texts by a linear layer on their embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.base import loss
from embed_jax.registry import unknown
from embed_jax.scores import dense
from embed_jax.types import Columns, LossResult, Params, World, require_field

FEATURES = {
    "u": lambda u, v: u,
    "v": lambda u, v: v,
    "|u-v|": lambda u, v: jnp.abs(u - v),
    "u*v": lambda u, v: u * v,
}


def pair_features(
    first: Float[Array, "b D"], second: Float[Array, "b D"], concatenation: str = "u,v,|u-v|"
) -> Float[Array, "b F"]:
    """Returns the input of a classifier of pairs: some of u, v, |u-v| and u*v side by side.

    Args:
        first: embeddings u.
        second: embeddings v.
        concatenation: their names in order, with commas: every row of Reimers and Gurevych (2019),
            table 6.

    Raises:
        InputError: for another part.

    >>> print(pair_features(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 1.0]]), "|u-v|,u*v"))
    [[2. 1. 3. 2.]]
    """
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return jnp.concatenate(
        [FEATURES[part](first, second) for part in _parts(concatenation)], axis=-1
    )


def softmax_loss(logits: Float[Array, "b k"], label: Int[Array, " b"]) -> Float[Array, " b"]:
    """-log softmax(logits)[label]; nan for a label that is not in 0 .. k - 1.

    >>> print(softmax_loss(jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1])))
    [0.6931 2.1269]
    """
    known = (label >= 0) & (label < logits.shape[-1])
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(known, label, 0)[:, None], axis=-1
    )[:, 0]
    return jnp.where(known, -picked, jnp.nan)


def init_classifier(
    dim: int, key: PRNGKeyArray, *, num_labels: int = 3, concatenation: str = "u,v,|u-v|"
) -> dict[str, Array]:
    """Makes {"kernel": [F, k], "bias": [k]}, uniform in +-1 / sqrt(F) like torch's linear layers.

    Raises:
        InputError: for fewer than two labels or an unknown part of the concatenation.
    """
    if num_labels < 2:
        raise InputError(f"num_labels of the loss softmax: expected at least 2, found {num_labels}")
    size = dim * len(_parts(concatenation))
    bound = size**-0.5
    for_kernel, for_bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(for_kernel, (size, num_labels), jnp.float32, -bound, bound),
        "bias": jax.random.uniform(for_bias, (num_labels,), jnp.float32, -bound, bound),
    }


@loss(needs=("label",), columns=(2, 2), init=init_classifier, tiled=True)
def softmax(
    own: Columns,
    world: World,
    params: Params,
    *,
    num_labels: int = 3,
    concatenation: str = "u,v,|u-v|",
) -> LossResult:
    """Cross entropy of softmax(W features(u, v) + b).

    Reimers and Gurevych (2019), "Sentence-BERT", section 3.

    Args:
        params: {"kernel": [F, k], "bias": [k]}, see `init_classifier`.
        num_labels: k, read by `init_classifier`.
        concatenation: the features, see `pair_features`.

    Returns:
        Weight 1 for a pair with both texts; metric `accuracy`.

    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> params = {"kernel": jnp.eye(6, 3), "bias": jnp.zeros(3)}
    >>> print(softmax(first, second, label=jnp.array([0, 2]), params=params))
    [1.4076 0.862 ]
    """
    del num_labels
    first, second = dense(own.embeddings, "softmax")
    features, label = pair_features(first, second, concatenation), require_field(own.label)
    logits = (
        jnp.matmul(features, params["kernel"], precision=jax.lax.Precision.HIGHEST)
        + params["bias"][None]
    )
    present = jnp.all(own.present, axis=0)
    values = softmax_loss(logits, jnp.where(present, label, 0))
    accuracy = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
    return values, present.astype(jnp.float32), {"accuracy": accuracy}


def _parts(concatenation: str) -> list[str]:
    parts = [part.strip() for part in concatenation.split(",")]
    for part in parts:
        if part not in FEATURES:
            raise InputError(
                unknown("part of the concatenation of the loss softmax", part, FEATURES)
            )
    return parts
