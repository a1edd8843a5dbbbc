"""A queue of earlier batches' positives, which are more negatives.

MoCo, He et al. (2020); ESimCSE, Wu et al. (2022).

A state's `extra` holds "queue", {"embeddings" [K, D] (or a tree), "text_hash" [K, 2], "filled"},
and with momentum "momentum": the parameters of the encoder that embeds what enters, an exponential
moving average of the trained encoder's. They change slowly, so that entries of different age can be
compared.

Each step's positives enter at the front and as many fall out at the end, so that with batches of B
examples slot i is floor(i / B) + 1 steps old when it is used. The queue is the same on every
device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.types import Columns, Params

POSITIVE = 1
Queue = dict[str, Any]


def init_queue(size: int, dim: int | Any, params: Params, momentum: float = 0.0) -> dict[str, Any]:
    """Makes a training state's `extra`: the empty queue, and the momentum encoder at the start.

    Args:
        size: K, how many positives it holds; any number.
        dim: D, the embeddings' size; or a tree of one positive's arrays, or of their shapes.
        params: the encoder's.
        momentum: share of the old parameters that a step keeps (MoCo 0.999, ESimCSE 0.995); 0:
            without a momentum encoder the trained one's own embeddings enter, with their dropout.

    Raises:
        InputError: for a size below 1, or a momentum outside [0, 1).
    """
    if size < 1:
        raise InputError(f"queue size: expected 1 or more, found {size}")
    if not 0.0 <= momentum < 1.0:
        raise InputError(f"queue momentum: expected 0 or more and less than 1, found {momentum}")
    positive = jax.ShapeDtypeStruct((dim,), jnp.float32) if isinstance(dim, int) else dim
    queue = {
        "embeddings": jax.tree.map(
            lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), positive
        ),
        "text_hash": jnp.zeros((size, 2), jnp.uint32),
        "filled": jnp.zeros((), jnp.int32),
    }
    # A copy, since a step gives away the buffers of both.
    return {"queue": queue, **({"momentum": jax.tree.map(jnp.copy, params)} if momentum else {})}


def queue_columns(queue: Queue, own: Columns) -> Columns:
    """Arranges the queue as `Columns.queue` of a device's own examples."""
    embeddings, text_hash = queue["embeddings"], queue["text_hash"]
    size = text_hash.shape[0]
    # Equal hashes of zero are not text: a record without positive entered.
    there = (jnp.arange(size) < queue["filled"]) & jnp.any(text_hash != 0, axis=-1)
    return Columns(
        embeddings=(jax.tree.map(jnp.zeros_like, embeddings), embeddings),
        present=jnp.stack([jnp.zeros_like(there), there]),
        text_hash=jnp.stack([jnp.zeros_like(text_hash), text_hash]),
        example=jnp.full_like(there, -1, own.example.dtype),
        keys=None if own.keys is None else jnp.zeros((size, *own.keys.shape[1:]), own.keys.dtype),
    )


def queue_entries(own: Columns) -> Queue:
    """Returns what enters the queue of a device's own examples.

    They are "embeddings" [b, ...] and "text_hash" [b, 2].
    """
    text_hash = jnp.where(own.present[POSITIVE][:, None], own.text_hash[POSITIVE], 0)
    return {"embeddings": own.embeddings[POSITIVE], "text_hash": text_hash}


def queue_metrics(queue: Queue, batch_size: int) -> dict[str, Float[Array, ""]]:
    """Computes "queue/filled", and "queue/age", the mean age of the queue's entries in steps.

    The age is 0 while the queue is empty.
    """
    number = jnp.arange(queue["text_hash"].shape[0])
    age = jnp.where(number < queue["filled"], number // batch_size + 1, 0)
    filled = queue["filled"].astype(jnp.float32)
    return {"queue/filled": filled, "queue/age": jnp.sum(age) / jnp.maximum(filled, 1.0)}


def advance(
    extra: dict[str, Any], entries: Queue, params: Params, momentum: float
) -> dict[str, Any]:
    """Returns a state's `extra` after a step.

    Args:
        extra: before the step.
        entries: of the whole batch, see `queue_entries`.
        params: of the encoder after the update.
        momentum: m in m * old + (1 - m) * new, for the momentum encoder's parameters.
    """
    queue = extra["queue"]
    size = queue["text_hash"].shape[0]
    shifted = jax.tree.map(
        lambda new, old: jnp.concatenate([new, old])[:size],
        entries,
        {name: queue[name] for name in entries},
    )
    filled = jnp.minimum(queue["filled"] + entries["text_hash"].shape[0], size)
    after = {"queue": {**shifted, "filled": filled}}
    if "momentum" in extra:
        after["momentum"] = jax.tree.map(
            lambda old, new: momentum * old + (1.0 - momentum) * new, extra["momentum"], params
        )
    return after
