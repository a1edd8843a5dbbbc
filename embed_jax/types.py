"""The few data types that every part of the library agrees on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt

T = TypeVar("T")
# What a pair of texts over a model's limit loses, under transformers' names: tokens of the longer
# text first, or of the second text only.
LONGEST_FIRST, ONLY_SECOND = TRUNCATIONS = ("longest_first", "only_second")
AnyArray = jax.Array | np.ndarray  # of JAX or of NumPy
Number = float | Float[Array, ""]  # an argument of a loss; the latter of one on a schedule
Params = Any  # a tree of arrays
QueryPassage = tuple[str, str]  # a query and a passage
Record = Mapping[str, Any]  # one example of a data set: fields by name
# What is measured during training: (the model as a function, such as texts -> embeddings) ->
# {metric: value}
Evaluator = Callable[[Callable[..., np.ndarray]], Mapping[str, float]]
# (pattern of a parameter's path, mesh axis of each dimension)
Rules = Sequence[tuple[str, tuple[str | None, ...]]]
# A slice of an array that is not in memory -> its own copy.
Read = Callable[[tuple[slice, ...]], np.ndarray]
# Makes a leaf while a model is read: `(path such as "backbone/layers/query/kernel", shape, dtype as
# stored, read) -> leaf`.
Put = Callable[[str, tuple[int, ...], np.dtype, Read], Any]


@runtime_checkable
class SparseRows(Protocol):
    """A sparse matrix of scipy, such as the embeddings of a sparse model."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def tocsr(self, copy: bool = False) -> Any: ...


class TokenBatch(struct.PyTreeNode):
    """Sentences packed several to a row, in G groups of R rows of T slots.

    One group is what one call of an encoder sees; a single group has leaves `[R, T]`. A slot q sees
    a slot k of its row if and only if sentence[q] == key_sentence[k]; pooling sums over the slots
    of a sentence.

    Attributes:
        token_ids: vocabulary ids; any valid id at padding.
        sentence: which sentence of the group, 0 .. sentences - 1, a slot belongs to; `sentences` at
            padding.
        position: the token's place in its sentence, from 0; 0 at padding.
        pooled: whether the token counts towards pooling (prompts may be left out); False at
            padding.
        sentences: S, how many sentences a group has room for (static). A sentence may have no
            token.
        segment: BERT's token types, 1 on the second text of a pair, 0 at padding. None: 0
            everywhere.
        key_sentence: the sentence whose slots see this one; `sentences` for a token that none sees,
            such as one that only expands a query. None: `sentence`.
    """

    token_ids: Int[AnyArray, "*G R T"]
    sentence: Int[AnyArray, "*G R T"]
    position: Int[AnyArray, "*G R T"]
    pooled: Bool[AnyArray, "*G R T"]
    sentences: int = struct.field(pytree_node=False)
    segment: Int[AnyArray, "*G R T"] | None = None
    key_sentence: Int[AnyArray, "*G R T"] | None = None


class Batch(struct.PyTreeNode):
    """One training batch of B = G * E examples of C columns (anchor, positive, negative_1, ...).

    Examples are dealt to groups when the batch is made, and the batch is *ordered* by group: group
    g holds the examples g * E .. g * E + E - 1, and sentence c * E + e of a group is column c of
    its e-th example. So embeddings `[G, C * E, D]` are examples' columns after a reshape, and no
    index map is needed.

    Attributes:
        tokens: by the name of the tokenizer; "encoder" is the trained model's own. `[G, R, T]`
            each. Where queries have their own tower, "query" holds column 0 and "encoder" the
            other columns.
        present: False where an example lacks that column (fewer negatives than others).
        text_hash: equal where two texts are equal; two 32-bit halves.
        record: the example's index in the data set, for messages about a bad row.
        keys: hashes of ids and groups, which mark examples as the same thing to learn, two 32-bit
            halves each; zeros where a record has none. Or None.
        dataset: which data set of a mixture the example is from, or None.
        label: integer class, or None.
        score: targets, or None: of the pair (K = 1), or of each candidate, columns 1 .. C - 1 (K =
            C - 1).
        teacher: a teacher's embeddings of the texts from a file, or None; 0 where a text is not
            present.
    """

    tokens: dict[str, TokenBatch]
    present: Bool[AnyArray, "G C E"]
    text_hash: UInt[AnyArray, "G C E 2"]
    record: Int[AnyArray, "G E"]
    keys: UInt[AnyArray, "G E L 2"] | None = None
    dataset: Int[AnyArray, "G E"] | None = None
    label: Int[AnyArray, "G E"] | None = None
    score: Float[AnyArray, "G E K"] | None = None
    teacher: Float[AnyArray, "G E C T"] | None = None

    @property
    def encoder_tokens(self) -> TokenBatch | dict[str, TokenBatch]:
        """Returns the tokens that the trained encoder reads.

        For two towers they are those of each, see `encoders.towers`.
        """
        if "query" not in self.tokens:
            return self.tokens["encoder"]
        return {name: self.tokens[name] for name in ("query", "encoder")}


class Prefixes(struct.PyTreeNode):
    """Prefixes of the embeddings that count besides or instead of the whole (Matryoshka).

    Attributes:
        sizes: ascending (static).
        weights: what a loss on each prefix counts.
    """

    sizes: tuple[int, ...] = struct.field(pytree_node=False)
    weights: Float[Array, " M"]


class Columns(struct.PyTreeNode):
    """Embeddings of examples by column, as losses see them: a device's share, or the whole world's.

    Attributes:
        embeddings: one tree for each column, 0 the anchors, 1 the positives, the rest negatives.
            Its leaves have the leading axis B: an array `[B, D]` for a dense embedding, `[B, L, d]`
            and a mask `[B, L]` for one of tokens, where L may differ from column to column. Only
            leaves of floats have gradients. `scores.Score` compares two of them.
        example: the examples' indices in the global batch.
        guide, teacher: embeddings of the same texts by a frozen model, whose size may differ, by
            column; or None.
        layers: embeddings that K earlier layers would have given, by column, leaves `[B, K, ...]`;
            or None.
        query: the column whose texts are on the query side of a score (static); all others are
            documents.
        queue, key, layer, prefixes, step: on a device's own share only, the same on every device.
        queue: positives of earlier batches, as columns of which only column 1 is present, of
            examples numbered -1, without gradient. Or None.
        key: for losses that draw something at each step; None: nothing is drawn.
        layer: which layers `layers` are of: the number of layers passed, from 1.
        prefixes: which prefixes a loss with `About.prefixes` compares; None: the whole embeddings.
        step: how many steps the run has taken, for losses that change on the way; None: not in a
            run.
        present, text_hash, keys, dataset, label, score: as in `Batch`, in the same order of
            examples.
    """

    embeddings: tuple[Any, ...]
    present: Bool[Array, "C B"]
    text_hash: UInt[Array, "C B 2"]
    example: Int[Array, " B"]
    keys: UInt[Array, "B L 2"] | None = None
    dataset: Int[Array, " B"] | None = None
    label: Int[Array, " B"] | None = None
    score: Float[Array, "B K"] | None = None
    guide: tuple[Any, ...] | None = None
    teacher: tuple[Any, ...] | None = None
    layers: tuple[Any, ...] | None = None
    queue: Columns | None = None
    key: PRNGKeyArray | None = None
    layer: Int[Array, " K"] | None = None
    prefixes: Prefixes | None = None
    step: Int[Array, ""] | None = None
    query: int = struct.field(pytree_node=False, default=0)

    def map_examples(self, change: Callable[[Array, int], Array]) -> Columns:
        """Applies `change(leaf, axis)` to every leaf, `axis` being that of the examples.

        For columns without the fields that only a device's own share has.
        """

        def changed(name: str) -> Any:
            axis = int(name in BY_COLUMN)
            return jax.tree.map(lambda leaf: change(leaf, axis), getattr(self, name))

        return self.replace(**{name: changed(name) for name in (*TREES, *BY_COLUMN, *BY_EXAMPLE)})

    def select(self, columns: Sequence[int]) -> Columns:
        """Returns some of the columns, in this order."""
        trees = {name: getattr(self, name) for name in TREES}
        arrays = {name: getattr(self, name) for name in BY_COLUMN}
        return self.replace(
            **{
                name: None if tree is None else tuple(tree[column] for column in columns)
                for name, tree in trees.items()
            },
            **{
                name: jnp.stack([leaf[column] for column in columns])
                for name, leaf in arrays.items()
            },
        )


def require_field(value: T | None) -> T:
    """Returns a field of an example that is there by the `needs` of the loss or of the data."""
    assert value is not None, "a field is read that the loss's `needs` do not name"
    return value


TREES = ("embeddings", "guide", "teacher", "layers")  # of Columns: one tree for each column
BY_COLUMN = ("present", "text_hash")  # leaves [C, B, ...]
BY_EXAMPLE = ("example", "keys", "dataset", "label", "score")  # leaves [B, ...]

# `(rows, candidates, shared) -> one number for each pair`: `rows` are trees with leading axis b,
# `candidates` with leading axis n, and M counts variants that share a pass, such as Matryoshka
# prefixes. It may be called with any part of the candidates.
Block = Callable[[Any, Any, Any], Float[Array, "M b n"]]


@runtime_checkable
class World(Protocol):
    """The operations of a loss over the examples of all devices, however they are computed.

    `rows` is a tree with leading axis b, about this device's own examples; `candidates` makes a
    tree with leading axis n out of any Columns of b examples; `shared` is a tree (a learnable
    scale). All three are differentiated. `extra_candidates` is such a tree of candidates besides
    the world's, the same on every device, or None. `numbers` is how many numbers the block computes
    with for each of its pairs, such as the products of all tokens; it decides how much is held at
    once.
    """

    def logsumexp(
        self,
        block: Block,
        rows: Any,
        candidates: Callable[[Columns], Any],
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> tuple[Float[Array, "M b"], Float[Array, "M b"]]:
        """log sum_j exp(block_ij) over all candidates of the world, and max_j block_ij.

        The maximum is without gradient. An entry of -inf does not count; both are -inf for a row
        without an entry.
        """

    def sum(
        self,
        block: Block,
        rows: Any,
        candidates: Callable[[Columns], Any],
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> Float[Array, "M b"]:
        """sum_j block_ij over all candidates of the world."""

    def max(
        self,
        block: Block,
        rows: Any,
        candidates: Callable[[Columns], Any],
        shared: Any = None,
        extra_candidates: Any = None,
        numbers: int = 1,
    ) -> Float[Array, "M b"]:
        """max_j block_ij over all candidates of the world; -inf without candidates.

        The gradient goes to the entry where it is reached.
        """

    def largest(
        self, block: Block, rows: Any, candidates: Callable[[Columns], Any], count: int
    ) -> Float[Array, "M b count"]:
        """The `count` largest block_ij over all candidates of the world, in descending order.

        -inf where there are fewer; without gradient.
        """

    def gather(self, values: Shaped[Array, "b *x"]) -> Shaped[Array, "B *x"]:
        """Joins the values that each device has for its own examples, in their order."""

    def total(self, value: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Sums over the devices."""

    def view(self, change: Callable[[Columns], Columns]) -> World:
        """Returns the same world seen through a change of its columns, made example by example."""


# Values and weights of a device's own examples, and metrics by example: the loss is
# sum(values * weights) / sum(weights) over the global batch, and so are the metrics.
LossResult = tuple[Float[Array, " b"], Float[Array, " b"], dict[str, Float[Array, " b"]]]


BASE = "base"


class TrainState(struct.PyTreeNode):
    """Everything that a step reads; a checkpoint holds all but what is frozen.

    Attributes:
        step: how many steps were taken.
        params: {"encoder": tree, "loss": tree}; float32.
        opt_state: the optimiser's own state.
        frozen: parameters that are not trained: of models that only look on, by name ("guide",
            "teacher"), and under BASE those of the encoder itself that `params["encoder"]` lacks.
        extra: more state that a step carries to the next: "queue" and "momentum" of
            `parallel.queue`.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    frozen: dict[str, Params] = struct.field(default_factory=dict)
    extra: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def encoder(self) -> Params:
        """Returns all of the encoder's parameters, trained and frozen."""
        return join_params(self.frozen.get(BASE, {}), self.params["encoder"])


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder as pure functions, whatever module library made them.

    Attributes:
        init: `key -> params`, float32, randomly initialised.
        apply: `(params, tokens, key) -> embeddings [S, D]` float32 for ONE group (`tokens` leaves
            `[R, T]`), or a tree with leading axis S, or a tuple of one tree for each column of the
            examples, with leading axis S / C. `key` None means no dropout. Sentences without tokens
            get a zero vector. A fourth argument `read` maps a layer's parameters, as stored, to
            those to compute with.
        config: the architecture's frozen dataclass (vocab_size, hidden_size, num_layers, ...).
        dim: D, the embedding's size.
        sharding: how parameters may be split over a mesh.
        layers: the path of the parameters that are stacked by layer, which `read` is called for;
            (): no parameters are stacked.
        hidden: `(params, tokens, key, read) -> [R, T, H]`, the last layer's token states, for
            objectives on tokens.
        by_layer: `(params, tokens, layer, key, read) -> [S, K + 1, D]`, the embeddings after each
            number of layers in `layer` int [K], and after the last.
        finish: `(params, states [R, T, H], tokens, key) -> embeddings`: what comes after the
            backbone's last layer.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Any]
    config: Any
    dim: int
    sharding: Rules = ()
    layers: tuple[str, ...] = ("backbone", "layers")
    hidden: Callable[..., Float[Array, "R T H"]] | None = None
    by_layer: Callable[..., Float[Array, "S L D"]] | None = None
    finish: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """An objective beside the loss, over the tokens of each group by itself.

    Attributes:
        init: `key -> params`: its own parameters, float32.
        apply: `(params, encoder params, tokens, key, read) -> (sum, count, {metric: sum})` for ONE
            group; `key` and `read` as in `Encoder.apply`. The objective and the metrics are sums
            over the global batch, each divided by the count's.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]]


def param_dtype(stored: Any) -> np.dtype:
    """Returns the dtype of parameters that a file stores as `stored`.

    bfloat16 stays, other floats become float32.
    """
    return np.dtype(jnp.bfloat16 if stored == jnp.bfloat16 else np.float32)


def join_params(frozen: Params, trained: Params) -> Params:
    """Joins two trees of dicts that share no leaf.

    They are the frozen and the trained parameters of an encoder.

    >>> join_params({"document": {"backbone": 1}}, {"document": {"lora": 2}, "query": 3})
    {'document': {'backbone': 1, 'lora': 2}, 'query': 3}
    """
    if not (isinstance(frozen, dict) and isinstance(trained, dict)):
        return trained
    shared = {name: join_params(frozen[name], trained[name]) for name in frozen if name in trained}
    return {**frozen, **trained, **shared}


def num_params(params: Params) -> int:
    """Counts the numbers of a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
