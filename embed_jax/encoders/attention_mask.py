"""Masks of attention: the slots of packed rows that see each other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from embed_jax.types import AnyArray, TokenBatch

MASKED = -1e9  # exp of it is exactly 0 in float32, and it stays finite when two of them are added
ANY_DISTANCE = 2**30  # a window wider than any row


class AttentionMask(struct.PyTreeNode):
    """The slots that each slot sees: those of its sentence, in a window or before it if so asked.

    It is a few numbers for each slot. Bodies of attention make of it the bias of the slots that
    they multiply, or skip slots that cannot see each other; `bias` holds that of whole rows where
    rows are short.

    Attributes:
        sentence, position: as in `TokenBatch`.
        key_sentence: the sentence whose slots see each slot.
        first, last: the first and the last slot of each slot's sentence; of padding, beyond the
            row's end and before its start, so that no range of slots is wider because of it. None
            in a dense mask, until `with_ranges` makes them.
        bias: float32, added to the scores: 0 where a slot sees another and MASKED elsewhere, and
            whatever `add_bias` added. With several windows those of all, stacked. None: it is made
            from the other fields, piece by piece.
        kind: the index of a layer's window in `windows`; None: there is one window.
        windows: a token sees only tokens at a distance below this, for each kind of layer; 0: at
            any distance (static).
        causal: whether a token sees only itself and the tokens before it (static).
        relative: whether `bias` has more in it than the mask (static).
    """

    sentence: Int[AnyArray, "R T"]
    position: Int[AnyArray, "R T"]
    key_sentence: Int[AnyArray, "R T"]
    first: Int[AnyArray, "R T"] | None = None
    last: Int[AnyArray, "R T"] | None = None
    bias: Float[AnyArray, "*K R H T T"] | None = None
    kind: Int[AnyArray, ""] | None = None
    windows: tuple[int, ...] = struct.field(pytree_node=False, default=(0,))
    causal: bool = struct.field(pytree_node=False, default=False)
    relative: bool = struct.field(pytree_node=False, default=False)

    def of_kind(self, kind: Int[AnyArray, ""] | None) -> AttentionMask:
        """Returns the mask of a layer, by the index of its window; None: there is one window."""
        if kind is None:
            return self
        return self.replace(kind=kind, bias=None if self.bias is None else self.bias[kind])

    def add_bias(self, bias: Float[Array, "R H T T"]) -> AttentionMask:
        """Returns the mask with more to add to the scores, such as a bias by distance."""
        return self.replace(bias=self.dense_bias() + bias, relative=True)

    def with_ranges(self, padding: Bool[AnyArray, "R T"] | None = None) -> AttentionMask:
        """Returns the mask with `first` and `last`, for bodies that skip slots.

        Args:
            padding: the slots without a token; None: they count as a sentence.
        """
        if self.first is not None:
            return self
        sentence = self.sentence
        slots = sentence.shape[1]
        slot = jnp.broadcast_to(jnp.arange(slots), sentence.shape)
        new = sentence[:, 1:] != sentence[:, :-1]
        edge = jnp.ones((len(sentence), 1), bool)
        first = lax.cummax(jnp.where(jnp.concatenate([edge, new], axis=1), slot, 0), axis=1)
        last = lax.cummin(
            jnp.where(jnp.concatenate([new, edge], axis=1), slot, slots), axis=1, reverse=True
        )
        if padding is not None:
            first, last = jnp.where(padding, slots, first), jnp.where(padding, -1, last)
        return self.replace(first=first, last=last)

    @property
    def window(self) -> int | Int[Array, ""] | None:
        """The layer's window; None: tokens are seen at any distance."""
        if not any(self.windows):
            return None
        if self.kind is None:
            return self.windows[0]
        return jnp.asarray([window or ANY_DISTANCE for window in self.windows])[self.kind]

    def dense_bias(self, sentence: Any = None, position: Any = None) -> Float[AnyArray, "R H Q T"]:
        """Returns the bias of some queries' scores with all slots of their rows.

        Args:
            sentence: the queries' sentences `[R, Q]`; None: all slots are queries.
            position: the queries' positions `[R, Q]`.
        """
        if sentence is None:
            if self.bias is not None:
                return self.bias
            sentence, position = self.sentence, self.position
        seen = sees(
            (sentence[:, :, None], position[:, :, None]),
            (self.key_sentence[:, None, :], self.position[:, None, :]),
            self.causal,
            self.window,
        )
        return jnp.where(seen, 0.0, MASKED)[:, None]

    def key_ranges(self, block: int) -> tuple[Int[Array, "R N"], Int[Array, "R N"]]:
        """Returns the first slot that a block of queries sees, and the slot after the last.

        Sentences lie in rows in one piece, with positions that count slots. The range of a block
        without a token is empty: it ends before it starts.

        Args:
            block: the number of queries in a block, a divisor of the number of slots.
        """
        return self._ranges(block, before=self.causal)

    def query_ranges(self, block: int) -> tuple[Int[Array, "R N"], Int[Array, "R N"]]:
        """Returns the same as `key_ranges`, of the queries that see a block of keys."""
        return self._ranges(block, after=self.causal)

    def _ranges(
        self, block: int, before: bool = False, after: bool = False
    ) -> tuple[Int[Array, "R N"], Int[Array, "R N"]]:
        """Returns where the other side of each block starts and ends.

        Args:
            block: see `key_ranges`.
            before: whether a slot's range ends with the slot.
            after: whether it starts with the slot.
        """
        rows, slots = self.sentence.shape
        slot = jnp.arange(slots)
        start, stop = jnp.asarray(self.first), jnp.asarray(self.last) + 1
        if self.window is not None:
            start = jnp.maximum(start, slot - self.window + 1)
            stop = jnp.minimum(stop, slot + self.window)
        start = jnp.maximum(start, slot) if after else start
        stop = jnp.minimum(stop, slot + 1) if before else stop
        start, stop = (x.reshape(rows, -1, block) for x in (start, stop))
        return jnp.min(start, axis=-1), jnp.max(stop, axis=-1)


def make_mask(
    tokens: TokenBatch, *, dense: bool, windows: tuple[int, ...] = (0,), causal: bool = False
) -> AttentionMask:
    """Returns the mask of one group's rows.

    Padding has its own sentence id, so padding sees padding: every row of the softmax has a slot to
    look at and none becomes NaN; the results at padding are never pooled.

    >>> sentence, position = jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 0]])
    >>> tokens = TokenBatch(sentence, sentence, position, position >= 0, sentences=2)
    >>> mask = make_mask(tokens, dense=True)  # of sentences of two tokens and of one
    >>> (mask.bias[0, 0] == 0).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]

    Args:
        tokens: one group.
        dense: whether to make the bias of whole rows, which all layers then share.
        windows: see `AttentionMask`.
        causal: see `AttentionMask`.
    """
    sentence, position = jnp.asarray(tokens.sentence), jnp.asarray(tokens.position)
    keys = sentence if tokens.key_sentence is None else jnp.asarray(tokens.key_sentence)
    mask = AttentionMask(sentence, position, keys, windows=windows, causal=causal)
    if not dense:
        return mask.with_ranges(padding=sentence == tokens.sentences)
    biases = [mask.replace(windows=(window,)).dense_bias() for window in windows]
    return mask.replace(bias=biases[0] if len(windows) == 1 else jnp.stack(biases))


def sees(query: Any, key: Any, causal: bool, window: Any) -> Bool[Array, "*B"]:
    """Tells which queries see which keys.

    Args:
        query: the queries' sentences and positions.
        key: the keys', with shapes that broadcast against the queries'.
        causal: whether a token sees only itself and the tokens before it.
        window: a token sees only tokens at a distance below this; None: at any distance.
    """
    seen = query[0] == key[0]
    if causal or window is not None:
        back = query[1] - key[1]
        seen &= back >= 0 if causal else True
        seen &= jnp.abs(back) < window if window is not None else True
    return seen
