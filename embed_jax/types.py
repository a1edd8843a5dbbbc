"""The few data types that every part of the library agrees on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

Params = Any  # a tree of arrays


@struct.dataclass
class TokenBatch:
    """Sentences packed several to a row, in G groups of R rows of T slots.

    One group is what one call of an encoder sees; a group alone has leaves `[R, T]`. Attention is allowed
    between slots of one row with the same `sentence`; pooling sums over the slots of a sentence.

    Attributes:
        token_ids: vocabulary ids; any valid id at padding.
        sentence: which sentence of the group, 0 .. sentences - 1, a slot belongs to; `sentences` at padding.
        position: the token's place in its sentence, from 0; 0 at padding.
        pooled: whether the token counts towards pooling (prompts may be left out); False at padding.
        sentences: S, how many sentences a group has room for (static). A sentence may have no token.
    """

    token_ids: Int[Array, "*G R T"]
    sentence: Int[Array, "*G R T"]
    position: Int[Array, "*G R T"]
    pooled: Bool[Array, "*G R T"]
    sentences: int = struct.field(pytree_node=False)


@struct.dataclass
class Batch:
    """One training batch of B = G * E examples, each with C columns (anchor, positive, negative_1, ...).

    Examples are dealt to groups when the batch is made, and the batch is *ordered* by group: group g holds
    the examples g * E .. g * E + E - 1, and sentence c * E + e of a group is column c of its e-th example.
    So embeddings `[G, C * E, D]` are examples' columns after a reshape, and no index map is needed.

    Attributes:
        tokens: by the name of the tokenizer; "encoder" is the trained model's own. `[G, R, T]` each.
        present: False where an example lacks that column (fewer negatives than others).
        text_hash: equal where two texts are equal; two 32-bit halves.
        record: the example's index in the data set, for messages about a bad row.
        label: integer class or group, or None. score: target similarity, or None.
    """

    tokens: dict[str, TokenBatch]
    present: Bool[Array, "G C E"]
    text_hash: UInt[Array, "G C E 2"]
    record: Int[Array, "G E"]
    label: Int[Array, "G E"] | None = None
    score: Float[Array, "G E"] | None = None


@struct.dataclass
class Columns:
    """Embeddings of examples by column, as losses see them: a device's own share, or the whole world's.

    Attributes:
        embeddings: `[C, B, D]`, column 0 the anchors, 1 the positives, the rest negatives.
        present, text_hash, label, score: as in `Batch`, in the same order of examples.
    """

    embeddings: Float[Array, "C B D"]
    present: Bool[Array, "C B"]
    text_hash: UInt[Array, "C B 2"]
    label: Int[Array, " B"] | None = None
    score: Float[Array, " B"] | None = None


@struct.dataclass
class TrainState:
    """Everything that a step changes, and so everything that a checkpoint holds.

    Attributes:
        step: how many steps were taken.
        params: {"encoder": tree, "loss": tree}; float32.
        opt_state: the optimiser's own state.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder as two pure functions; which module library made them is nobody's business.

    Attributes:
        init: `key -> params`, float32, randomly initialised.
        apply: `(params, tokens, key) -> embeddings [S, D]` float32 for ONE group (`tokens` leaves `[R, T]`).
            `key` None means no dropout. Sentences without tokens get a zero vector.
        config: the architecture's frozen dataclass (vocab_size, hidden_size, num_layers, ...).
        dim: D, the embedding's size.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, TokenBatch, PRNGKeyArray | None], Float[Array, "S D"]]
    config: Any
    dim: int


def num_params(params: Params) -> int:
    """How many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
