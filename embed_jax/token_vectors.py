"""A vector for each token of texts: packed, encoded, and put back in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from embed_jax.data.pack import UNPOOLED
from embed_jax.data.tokenize import TokenizedTexts
from embed_jax.data.window import pack_window
from embed_jax.parallel.inference import run_batches
from embed_jax.types import Params, TokenBatch

TokenVectors = list[Float[np.ndarray, "_ d"]]


def encode_tokens(
    encode: Callable[[Params, TokenBatch], Any],
    params: Params,
    tokenized: TokenizedTexts,
    mesh: Mesh,
    *,
    dim: int,
    batch_tokens: int,
) -> TokenVectors:
    """Returns the vectors of each text's tokens that count, float32 `[L, d]`.

    Tokens of a prompt that is not pooled, and those that are marked so, do not count.

    Args:
        encode: gives every slot a vector, `[G, s, d]`: `gather.sharded_encode` of an encoder that
            was built with `vectors_per_text=0`.
        params: the model's parameters, whole, on the mesh.
        tokenized: the texts.
        mesh: the device mesh.
        dim: d, the size of a vector.
        batch_tokens: slots a device encodes at a time.

    Raises:
        InputError: a text has more tokens than `batch_tokens`.
    """
    lengths = [len(ids) for ids in tokenized.ids]
    if not lengths:
        return []
    counted = np.concatenate([np.arange(length) >= tokenized.skip for length in lengths])
    if tokenized.marks is not None:
        counted &= np.concatenate(tokenized.marks) & UNPOOLED == 0
    ends = np.cumsum(lengths)
    # Where each token's vector goes; vectors of tokens that do not count go nowhere.
    places = np.where(counted, np.cumsum(counted) - 1, -1)
    flat = np.empty((int(counted.sum()), dim), np.float32)
    batches = pack_window(tokenized.ids, 0, batch_tokens, marks=tokenized.marks)
    slots_of_batches = _by_slot(batches, places, ends - lengths)
    for slots, vectors in run_batches(encode, params, slots_of_batches, mesh):
        flat[slots[slots >= 0]] = vectors[slots >= 0]
    splits = np.append(0, np.cumsum(counted))[ends]
    return np.split(flat, splits[:-1])


def _by_slot(
    batches: Iterable[tuple[Int[np.ndarray, " n"], TokenBatch]],
    places: Int[np.ndarray, " t"],
    firsts: Int[np.ndarray, " N"],
) -> Iterator[tuple[Int[np.ndarray, " s"], TokenBatch]]:
    """Yields for each slot of a batch where its vector goes, -1: nowhere; and the batch.

    Args:
        batches: the numbers of a batch's texts, and the batch.
        places: of every token of all texts.
        firsts: the index of each text's first token.
    """
    for numbers, batch in batches:
        slots = np.full(batch.sentence.size, -1)
        filled = (batch.sentence < batch.sentences).reshape(-1)
        token = firsts[numbers[batch.sentence.reshape(-1)[filled]]]
        slots[filled] = places[token + batch.position.reshape(-1)[filled]]
        yield slots, batch
