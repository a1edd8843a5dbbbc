"""Heads that give a text a weight for each token of the vocabulary: sparse embeddings.

`Splade` weighs tokens by the logits of a masked language model, `TokenWeights` those that stand in
the text by a table. They take the place of the pooling: while training, embeddings are dense
`[S, V]`, and are compared by dot product as any others.

Logits are never held for all tokens and the whole vocabulary: they are computed for a tile of the
vocabulary at a time, and of the largest one only the position of its token is kept for the backward
pass.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from embed_jax.encoders.layers import transposed
from embed_jax.encoders.mlm import init_head, transform_states
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray, Params, TokenBatch

VOCABULARY = "vocabulary"  # the head's name among an encoder's parameters
SHARDING = ((rf"{VOCABULARY}/dense/kernel", ("fsdp", None)),)
CAPPED = ("gemma2",)  # decoders whose logits have a limit
TILE = 2**20  # logits that are held at once: 4 MiB
SHORTEST = 512  # tokens of the vocabulary in a tile, however many tokens a group has
POOLINGS = ("max", "sum")
# Those of `token_heads.NAMES`, which a model's files can name.
FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "deberta-v2"),
    "modernbert",
)


@dataclasses.dataclass(frozen=True)
class Splade:
    """w_j = max over the tokens i of log(1 + relu(logit_ij)), or their sum.

    Formal et al. (2021), "SPLADE v2", eqs. 1 and 6; the sum is that of the first SPLADE. Logits are
    those of the masked language model's head, which shares the table of token embeddings. A
    decoder's are the products of the states with its output layer or that table.

    Attributes:
        pooling: "max" or "sum".
        logs: how often log(1 + x) is taken: 1, or 2 as in OpenSearch's models (Geng et al. 2024).
    """

    pooling: str = "max"
    logs: int = 1

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(unknown("pooling of a sparse model", self.pooling, POOLINGS))

    def init(self, config: Any, key: PRNGKeyArray) -> Params:
        """Returns the initial parameters of the language model's head, see `mlm.init_head`.

        A decoder's are {"lm_head": [V, H]}, or {} if it shares the table.

        Raises:
            InputError: for a backbone of a family without such a head.
        """
        check_family(config)
        if not is_decoder(config):
            return init_head(config, key)
        shape = (config.vocab_size, config.hidden_size)
        return {} if config.tied else {"lm_head": 0.02 * jax.random.normal(key, shape)}

    def apply(
        self,
        params: Params,
        config: Any,
        states: Float[AnyArray, "R T H"],
        table: Float[AnyArray, "V W"],
        tokens: TokenBatch,
        dtype: str = "float32",
    ) -> Float[Array, "S V"]:
        """Computes the weights of one group's sentences, float32; 0 for one without tokens.

        Args:
            params: of the head.
            config: the backbone's.
            states: the tokens' states after the last layer.
            table: the encoder's token embeddings.
            tokens: the group.
            dtype: "float32" or "bfloat16", of the products' factors.
        """
        flat = jnp.asarray(states).reshape(-1, states.shape[-1]).astype(jnp.float32)
        if is_decoder(config):
            x, table, bias = flat, params.get("lm_head", table), jnp.zeros(config.vocab_size)
        else:
            x = transform_states(config, params, flat, table.shape[1])
            bias = params["bias"].astype(jnp.float32)
        x, rows = x.astype(dtype), jnp.asarray(table).astype(dtype)
        if self.pooling == "max":
            segment = jnp.where(tokens.pooled, tokens.sentence, tokens.sentences).reshape(-1)
            position = jnp.asarray(tokens.position).astype(jnp.uint16).reshape(-1)
            return largest_weights(x, rows, bias, segment, position, tokens.sentences, self.logs)
        return _summed_weights(x, rows, bias, tokens, self.logs)


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """w_j = the table's weight of token j if it stands in the text, else 0.

    Such queries need no transformer. Geng et al. (2024), "Towards Competitive Search Relevance For
    Inference-Free Learned Sparse Retrievers". The table is that of a static backbone of size 1.

    Attributes:
        frozen: whether the table is left as it is in training.
    """

    frozen: bool = False

    def init(self, config: Any, key: PRNGKeyArray) -> Params:
        """Returns no parameters: the table is the backbone's."""
        return {}

    def apply(
        self,
        params: Params,
        config: Any,
        states: Float[AnyArray, "R T 1"],
        table: Float[AnyArray, "V 1"],
        tokens: TokenBatch,
        dtype: str = "float32",
    ) -> Float[Array, "S V"]:
        """Computes the weights of one group's sentences, float32; see `Splade.apply`."""
        table = lax.stop_gradient(table) if self.frozen else table
        weights = jnp.asarray(table)[:, 0].astype(jnp.float32)
        segment = jnp.where(tokens.pooled, tokens.sentence, tokens.sentences).reshape(-1)
        start = jnp.zeros((tokens.sentences + 1, len(weights)), bool) | (segment[0] < 0)
        present = start.at[segment, jnp.asarray(tokens.token_ids).reshape(-1)].set(True)
        return jnp.where(present[:-1], weights, 0.0)


def token_table(encoder_params: Params) -> Float[AnyArray, "V W"]:
    """Returns the table of token embeddings."""
    backbone = encoder_params["backbone"]
    return backbone["embeddings"]["token"] if "embeddings" in backbone else backbone["token"]


def is_decoder(config: Any) -> bool:
    """Tells whether a backbone's language model has an output layer, or the table in its place."""
    return hasattr(config, "tied")


def check_family(config: Any) -> None:
    """Refuses a backbone of a family whose language model has no head that is known here.

    Raises:
        InputError: naming the family.
    """
    if config.family in CAPPED or not (config.family in FAMILIES or is_decoder(config)):
        raise InputError(
            f"a {config.family} encoder has no head of a language model that is known here, whose "
            f"logits are the weights of a sparse embedding; known: {', '.join(FAMILIES)}, and "
            "decoders without a limit of their logits"
        )


def saturate(logits: Float[Array, "*n"], logs: int = 1) -> Float[Array, "*n"]:
    """log(1 + relu(x)), or log(1 + log(1 + relu(x))).

    >>> print(saturate(jnp.array([-1.0, 0.0, 1.0])))
    [0.     0.     0.6931]
    """
    weights = jax.nn.relu(logits)
    for _ in range(logs):
        weights = jnp.log1p(weights)
    return weights


def tiles_of(tokens: int, vocabulary: int, limit: int = 0) -> tuple[int, int]:
    """Returns the number of tiles of the vocabulary, and the size of one.

    Args:
        tokens: slots of a group.
        vocabulary: V.
        limit: logits of a tile at most; 0: TILE, but SHORTEST tokens of the vocabulary at least.
    """
    most = max((limit or TILE) // tokens, 1 if limit else SHORTEST)
    count = -(-vocabulary // most)
    return count, -(-vocabulary // count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def largest_weights(
    x: Float[Array, "N W"],
    rows: Float[Array, "V W"],
    bias: Float[Array, " V"],
    segment: Int[Array, " N"],
    position: UInt[Array, " N"],
    sentences: int,
    logs: int = 1,
    limit: int = 0,
) -> Float[Array, "S V"]:
    """max_i saturate(x_i rows_j + bias_j) over the tokens i of each sentence.

    The function is monotone, so that it is taken of the largest logit only.

    Args:
        x: the transformed states of the tokens.
        rows: the table of token embeddings.
        bias: of the logits.
        segment: the sentence of each token; `sentences` where it does not count.
        position: the token's place in its sentence.
        sentences: S.
        logs: see `Splade`.
        limit: see `tiles_of`.
    """
    return _forward(x, rows, bias, segment, position, sentences, logs, limit)[0]


def _forward(
    x: Array,
    rows: Array,
    bias: Array,
    segment: Array,
    position: Array,
    sentences: int,
    logs: int,
    limit: int,
) -> tuple[Array, Any]:
    count, tile = tiles_of(len(x), len(rows), limit)

    def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jnp.minimum(number * tile, len(rows) - tile)  # the last one overlaps
        logits = _tile_logits(x, rows, bias, start, tile)
        largest = jax.ops.segment_max(logits, segment, sentences + 1)
        reached = jnp.where(logits == largest[segment], position[:, None], jnp.uint16(2**16 - 1))
        first = jax.ops.segment_min(reached, segment, sentences + 1)
        here = saturate(largest[:-1], logs), first[:-1]
        updated = [
            lax.dynamic_update_slice_in_dim(whole, part, start, 1)
            for whole, part in zip(carry, here, strict=True)
        ]
        return updated[0], updated[1]

    zero = _zero(x)
    shape = (sentences, len(rows))
    carry = jnp.zeros(shape) + zero, jnp.zeros(shape, jnp.uint16) + zero.astype(jnp.uint16)
    weights, reached = (
        lax.fori_loop(0, count, step, carry) if count > 1 else step(jnp.int32(0), carry)
    )
    return weights, (x, rows, bias, segment, position, weights, reached)


def _backward(sentences: int, logs: int, limit: int, residuals: Any, cotangent: Array) -> tuple:
    x, rows, bias, segment, position, weights, reached = residuals
    count, tile = tiles_of(len(x), len(rows), limit)
    # The slope of `saturate` at the largest logit, by its value.
    slope, value = jnp.where(weights > 0.0, cotangent, 0.0), weights
    for _ in range(logs):
        slope, value = slope * jnp.exp(-value), jnp.expm1(value)
    counts = (segment < sentences)[:, None]
    sentence = jnp.minimum(segment, sentences - 1)

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start = jnp.minimum(number * tile, len(rows) - tile)

        def tile_of(array: Array, axis: int = 0) -> Array:
            return lax.dynamic_slice_in_dim(array, start, tile, axis)

        # What the tile before has counted already does not count again.
        fresh = start + jnp.arange(tile) >= number * tile
        d_largest = jnp.where(fresh, tile_of(slope, 1), 0.0)
        chosen = counts & (tile_of(reached, 1)[sentence] == position[:, None])
        d_logits = jnp.where(chosen, d_largest[sentence], 0.0)
        factor = d_logits.astype(x.dtype)
        d_x, d_rows, d_bias = carry
        d_tile = _product(transposed(factor), x)
        return (
            d_x + _product(factor, tile_of(rows)),
            lax.dynamic_update_slice_in_dim(d_rows, tile_of(d_rows) + d_tile, start, 0),
            lax.dynamic_update_slice_in_dim(
                d_bias, tile_of(d_bias) + jnp.sum(d_largest, axis=0), start, 0
            ),
        )

    zero = _zero(x)
    carry = (jnp.zeros(x.shape) + zero, jnp.zeros(rows.shape) + zero, jnp.zeros(bias.shape) + zero)
    carry = lax.fori_loop(0, count, step, carry) if count > 1 else step(jnp.int32(0), carry)
    return (
        *(d.astype(leaf.dtype) for d, leaf in zip(carry, (x, rows, bias), strict=True)),
        *2 * [None],
    )


largest_weights.defvjp(_forward, _backward)


def _summed_weights(
    x: Float[Array, "N W"],
    rows: Float[Array, "V W"],
    bias: Float[Array, " V"],
    tokens: TokenBatch,
    logs: int,
    limit: int = 0,
) -> Float[Array, "S V"]:
    """Computes sum_i saturate(x_i rows_j + bias_j) over the tokens i of each sentence.

    The backward pass computes the logits of a tile again. Sums are products with a matrix [S, N],
    which have the same bits each time.
    """
    count, tile = tiles_of(len(x), len(rows), limit)
    missing = count * tile - len(rows)
    sentence = jnp.arange(tokens.sentences)[:, None] == jnp.asarray(tokens.sentence).reshape(-1)
    members = (sentence & jnp.asarray(tokens.pooled).reshape(-1)).astype(jnp.float32)

    @jax.checkpoint
    def step(carry: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        tile_rows, tile_bias = part
        weights = saturate(_product(x, transposed(tile_rows)) + tile_bias, logs)
        return carry, jnp.matmul(members, weights, precision="highest")

    parts = (
        jnp.pad(rows, ((0, missing), (0, 0))).reshape(count, tile, -1),
        jnp.pad(bias, (0, missing)).reshape(count, tile),
    )
    _, weights = lax.scan(step, _zero(x), parts)
    return jnp.moveaxis(weights, 0, 1).reshape(tokens.sentences, -1)[:, : len(rows)]


def _tile_logits(
    x: Array, rows: Array, bias: Array, start: Int[Array, ""] | int, tile: int
) -> Float[Array, "N v"]:
    part, offset = (lax.dynamic_slice_in_dim(array, start, tile) for array in (rows, bias))
    return _product(x, transposed(part)) + offset


def _product(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """Multiplies matrices, with float32 sums; those of float32 in full precision."""
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)


def _zero(x: Array) -> Float[Array, ""]:
    """Returns 0 that varies over the same mesh axes as an array, so that loops may carry it."""
    return jnp.where(jnp.zeros((), bool), x[0, 0].astype(jnp.float32), 0.0)
