"""Decoder language models as encoders: Llama, Mistral, Qwen and Gemma, causal or bidirectional."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import AttentionMask
from embed_jax.encoders.layers import (
    Linear,
    Queries,
    RMSNorm,
    Rotation,
    activation,
    dropout,
    rotate,
)
from embed_jax.encoders.rope import Rope, rope_rotation
from embed_jax.encoders.stack import Stack
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

FULL, SLIDING = "full", "sliding"  # kinds of layers


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder; families differ only by these fields.

    The defaults are Llama 2 7B's.

    Attributes:
        family: config.json's model_type.
        num_kv_heads: heads of keys and values, a divisor of `num_heads`.
        head_size: of each head; `num_heads` of them don't have to make `hidden_size`.
        max_positions: the most tokens that a sentence may have; no parameters depend on it.
        rope: rotary positions.
        local_rope: rotary positions of sliding layers; None: `rope` too.
        causal: whether a token sees only itself and those before it.
        window: sliding layers see tokens at a distance below this only. 0: no layer is sliding.
        layer_types: FULL or SLIDING for each layer; empty: all SLIDING if there is a window, else
            all FULL.
        qkv_bias, output_bias, mlp_bias: whether these linear maps have biases.
        qk_norm: whether each head's queries and keys are normalised before they are rotated (Qwen
            3, Gemma 3).
        query_scalar: scores are divided by the root of this instead of the head size's.
        softcap: c: scores s become c tanh(s / c) (Gemma 2).
        norm_offset: what is added to the norms' scales: 1 in Gemma, whose scales start at 0.
        norm_after: whether what attention and the feed-forward layer give is normalised too (Gemma
            2 and 3).
        scale_embeddings: whether embeddings are multiplied by the root of their size (Gemma).
        activation: of the gate.
        attention_dropout: rate when a dropout key is given.
        hidden_dropout: rate of what each attention and feed-forward layer adds. Hugging Face's
            models have no such dropout, and ignore the field of this name that is written for a
            rate other than 0.
        initializer_range: standard deviation of the initial weights.
        tied: whether the language model's output layer, which an encoder lacks, is the embedding
            table.
    """

    family: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_size: int = 128
    intermediate_size: int = 11008
    max_positions: int = 4096
    rope: Rope = Rope()
    local_rope: Rope | None = None
    causal: bool = True
    window: int = 0
    layer_types: tuple[str, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_scalar: float | None = None
    softcap: float | None = None
    norm_offset: float = 0.0
    norm_after: bool = False
    scale_embeddings: bool = False
    activation: str = "silu"
    rms_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    tied: bool = False

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have."""
        return self.max_positions

    @property
    def embedding_size(self) -> int:
        """Width of the embedding table."""
        return self.hidden_size

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each layer's kind, FULL or SLIDING.

        Raises:
            InputError: `layer_types` is of another number of layers.
        """
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise InputError(
                f"layer_types: expected one for each of {self.num_layers} layers, found "
                f"{len(self.layer_types)}"
            )
        return self.layer_types or (SLIDING if self.window else FULL,) * self.num_layers


class View(struct.PyTreeNode):
    """The mask and the rotary positions of layers of one kind, or of both kinds, stacked."""

    mask: AttentionMask
    turns: Rotation

    def of_kind(self, kind: Int[Array, ""] | None) -> View:
        """Returns those of a layer, by the index of its kind; None: there is one kind."""
        if kind is None:
            return self
        return View(self.mask.of_kind(kind), jax.tree.map(lambda leaf: leaf[kind], self.turns))


def stack_turns(turns: Sequence[Rotation]) -> Rotation:
    """Returns the rotary positions of one kind of layers as they are, those of several stacked."""
    return turns[0] if len(turns) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *turns)


class Decoder(Stack):
    """Maps token ids to hidden states."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None = None, every_layer: bool = False
    ) -> Float[Array, "*Q D"]:
        """Returns hidden states after the last layer, or after every layer with a leading axis L.

        They are normalised, and of the dtype `self.dtype`.
        """
        config = self.config
        _, layer_keys = self.split(key)
        hidden = Embeddings(config, self.dtype, name="embeddings")(tokens)
        kinds = sorted(set(config.kinds))
        windows = tuple(config.window if kind == SLIDING else 0 for kind in kinds)
        ropes = [config.local_rope if kind == SLIDING else None for kind in kinds]
        turns = [
            rope_rotation(tokens.position, config.head_size, rope or config.rope) for rope in ropes
        ]
        view = View(self.mask(tokens, windows, config.causal), stack_turns(turns))
        numbers = (
            jnp.asarray([kinds.index(kind) for kind in config.kinds]) if len(kinds) > 1 else None
        )
        queries = self.queries(tokens, key)
        hidden = self.scan(
            Layer, hidden, (layer_keys, numbers), queries, view, every_layer=every_layer
        )
        return _norm(config, self.dtype)(name="norm")(hidden)


def _norm(config: DecoderConfig, dtype: Any):
    return functools.partial(RMSNorm, config.rms_norm_eps, dtype, config.norm_offset)


class Embeddings(nn.Module):
    """Token embeddings, taken from the table as it is stored and then cast."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: TokenBatch) -> Float[Array, "R T D"]:
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        table = self.param("token", nn.initializers.normal(config.initializer_range), shape)
        x = jnp.asarray(table)[tokens.token_ids].astype(self.dtype)
        return (
            x * jnp.asarray(config.hidden_size**0.5, self.dtype) if config.scale_embeddings else x
        )


class Layer(nn.Module):
    """Norm and attention, then norm and down(activation(gate(x)) * up(x)), each with a residual."""

    config: DecoderConfig
    dtype: Any
    attention: str
    every_layer: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        own: tuple[PRNGKeyArray | None, Int[Array, ""] | None],
        queries: Queries,
        view: View,
    ):
        config = self.config
        key, number = own
        view = view.of_kind(number)
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        start = queries.starts(config.hidden_size)
        linear = functools.partial(Linear, dtype=self.dtype, stddev=config.initializer_range)
        norm = _norm(config, self.dtype)

        def add(x, branch, key, name):
            if config.norm_after:
                branch = norm(name=f"{name}_norm_after")(branch)
            return x + dropout(branch, config.hidden_dropout, key, start)

        inner = norm(name="attention_norm")(x)

        def project(name: str, inner: Float[Array, "*B D"], heads: int) -> Float[Array, "*B H d"]:
            module = linear(heads * config.head_size, use_bias=config.qkv_bias, name=name)
            return module(inner).reshape(*inner.shape[:-1], heads, config.head_size)

        key_, value = (project(name, inner, config.num_kv_heads) for name in ("key", "value"))
        x, inner = queries.take((x, inner))
        query = project("query", inner, config.num_heads)
        if config.qk_norm:
            query, key_ = norm(name="query_norm")(query), norm(name="key_norm")(key_)
        mixed = attention(
            rotate(query, queries.take(view.turns)),
            rotate(key_, view.turns),
            value,
            view.mask,
            queries,
            scale=None if config.query_scalar is None else config.query_scalar**-0.5,
            softcap=config.softcap or 0.0,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        ).reshape(*x.shape[:-1], -1)
        mixed = linear(config.hidden_size, use_bias=config.output_bias, name="output")(mixed)
        x = add(x, mixed, keys[1], "attention")

        inner = norm(name="mlp_norm")(x)
        linear = functools.partial(linear, use_bias=config.mlp_bias)
        gate = activation(config.activation)(linear(config.intermediate_size, name="gate")(inner))
        gated = gate * linear(config.intermediate_size, name="up")(inner)
        x = add(x, linear(config.hidden_size, name="down")(gated), keys[2], "mlp")
        return x, x if self.every_layer else None
