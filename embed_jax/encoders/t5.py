"""T5's encoder without its decoder (Raffel et al. 2020): Sentence-T5, GTR and INSTRUCTOR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import AttentionMask
from embed_jax.encoders.bert import relative_bias
from embed_jax.encoders.family import Family, check_switches, read_fields
from embed_jax.encoders.layers import Linear, Queries, RMSNorm, activation, dropout
from embed_jax.encoders.stack import Stack
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray, TokenBatch


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The size of a T5 encoder; the defaults are t5-base's.

    Attributes:
        head_size: of queries, keys and values; heads don't have to make up the hidden size.
        max_positions: the most tokens that a sentence may have; no parameters depend on it.
        relative_buckets: rows of the bias by distance, shared by all layers.
        relative_distance: distances from this one on share one bucket.
        gated: whether the feed-forward layers compute gelu(gate(x)) * up(x), as from T5 1.1 on,
            instead of relu(inner(x)).
        hidden_dropout, attention_dropout: rates when a dropout key is given; config.json has a
            single rate for both.
        initializer_factor: a factor of the initial weights' standard deviations.
    """

    family: str = "t5"
    vocab_size: int = 32128
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    head_size: int = 64
    intermediate_size: int = 3072
    max_positions: int = 512
    relative_buckets: int = 32
    relative_distance: int = 128
    gated: bool = False
    layer_norm_eps: float = 1e-6
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_factor: float = 1.0
    pad_token_id: int = 0

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have."""
        return self.max_positions


SHAPES = {  # for runs without weights
    "t5-tiny": T5Config(
        hidden_size=32, num_layers=2, num_heads=2, head_size=16, intermediate_size=64
    ),
    "t5-base": T5Config(),
    "t5-large": T5Config(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
    "t5-3b": T5Config(
        hidden_size=1024, num_layers=24, num_heads=32, head_size=128, intermediate_size=16384
    ),
}


class T5(Stack):
    """Maps token ids to hidden states."""

    config: T5Config

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None = None, every_layer: bool = False
    ) -> Float[Array, "*Q D"]:
        """Returns hidden states after the last layer, or after every layer with a leading axis L.

        They are of the dtype `self.dtype`. The final norm is applied to each layer's states, as if
        that layer were the last.
        """
        config = self.config
        outer_key, layer_keys = self.split(key)
        first_key, last_key = (None, None) if outer_key is None else jax.random.split(outer_key)
        queries = self.queries(tokens, key)
        start, last_start = (some.starts(config.hidden_size) for some in queries)

        hidden = Embeddings(config, self.dtype, name="embeddings")(tokens.token_ids)
        hidden = dropout(hidden, config.hidden_dropout, first_key, start)
        shape = (config.relative_buckets, config.num_heads)
        stddev = config.initializer_factor * config.hidden_size**-0.5
        table = self.param("relative_bias", nn.initializers.normal(stddev), shape)
        mask = self.mask(tokens).add_bias(
            relative_bias(table, tokens.position, config.relative_distance)
        )
        hidden = self.scan(Layer, hidden, layer_keys, queries, mask, every_layer=every_layer)
        hidden = RMSNorm(config.layer_norm_eps, self.dtype, name="norm")(hidden)

        def drop(x: Float[Array, "*Q D"]) -> Float[Array, "*Q D"]:
            return dropout(x, config.hidden_dropout, last_key, last_start)

        return jax.vmap(drop)(hidden) if every_layer else drop(hidden)


class Embeddings(nn.Module):
    """The tokens' vectors without positions, which are in the attention's bias."""

    config: T5Config
    dtype: Any

    @nn.compact
    def __call__(self, token_ids: Int[AnyArray, "R T"]) -> Float[Array, "R T D"]:
        config = self.config
        init = nn.initializers.normal(config.initializer_factor)
        table = self.param("token", init, (config.vocab_size, config.hidden_size))
        return jnp.asarray(table)[token_ids].astype(self.dtype)


class Layer(nn.Module):
    """Attention and feed-forward, each with a norm before it and dropout and residual after it.

    Attention scores are not scaled.
    """

    config: T5Config
    dtype: Any
    attention: str
    every_layer: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        key: PRNGKeyArray | None,
        queries: Queries,
        mask: AttentionMask,
    ):
        config = self.config
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        start, inner_start = (
            queries.starts(size) for size in (config.hidden_size, config.intermediate_size)
        )
        width, hidden_size = config.num_heads * config.head_size, config.hidden_size

        def linear(features: int, fan: int, name: str) -> Linear:
            return Linear(
                features,
                self.dtype,
                config.initializer_factor * fan**-0.5,
                use_bias=False,
                name=name,
            )

        def norm(name: str) -> RMSNorm:
            return RMSNorm(config.layer_norm_eps, self.dtype, name=name)

        def split_heads(x: Float[Array, "*B W"]) -> Float[Array, "*B H d"]:
            return x.reshape(*x.shape[:-1], config.num_heads, config.head_size)

        normed = norm("attention_norm")(x)
        key_, value = (
            split_heads(linear(width, hidden_size, name)(normed)) for name in ("key", "value")
        )
        x, normed = queries.take((x, normed))
        # The initial queries are small because scores are not divided by the square root of the
        # head's size.
        query = split_heads(linear(width, hidden_size * config.head_size, "query")(normed))
        mixed = attention(
            query,
            key_,
            value,
            mask,
            queries,
            scale=1.0,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        )
        mixed = linear(hidden_size, width, "output")(mixed.reshape(*x.shape[:-1], width))
        x = x + dropout(mixed, config.hidden_dropout, keys[1], start)

        normed = norm("output_norm")(x)
        if config.gated:
            gate, up = (
                linear(config.intermediate_size, hidden_size, name)(normed)
                for name in ("gate", "up")
            )
            inner = activation("gelu_new")(gate) * up
        else:
            inner = activation("relu")(
                linear(config.intermediate_size, hidden_size, "inner")(normed)
            )
        inner = dropout(inner, config.hidden_dropout, keys[2], inner_start)
        outer = linear(hidden_size, config.intermediate_size, "down")(inner)
        x = x + dropout(outer, config.hidden_dropout, keys[3], start)
        return x, x if self.every_layer else None


# ---- Hugging Face: config.json and tensor names --------------------------------------------------

FIELDS = {  # our field -> config.json's
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "head_size": "d_kv",
    "intermediate_size": "d_ff",
    "max_positions": "n_positions",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_distance": "relative_attention_max_distance",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout": "dropout_rate",
    "initializer_factor": "initializer_factor",
    "pad_token_id": "pad_token_id",
}
FEED_FORWARD = {"relu": False, "gated-gelu": True}  # config.json's feed_forward_proj -> gated


def read_config(config_json: Mapping[str, Any]) -> T5Config:
    """Reads the encoder's fields of a config.json of T5.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    check_switches(config_json, {"is_decoder": False})
    kind = config_json.get("feed_forward_proj") or "relu"
    if kind not in FEED_FORWARD:
        raise InputError(f"config.json: {unknown('feed_forward_proj', kind, FEED_FORWARD)}")
    if config_json.get("n_positions") is None:  # newer files lack it
        config_json = {**config_json, "n_positions": T5Config.max_positions}
    config = T5Config(**read_fields(config_json, FIELDS), gated=FEED_FORWARD[kind])
    return dataclasses.replace(config, attention_dropout=config.hidden_dropout)


def write_config(config: T5Config) -> dict[str, Any]:
    """Returns config.json's fields."""
    fields = {hf_name: getattr(config, name) for name, hf_name in FIELDS.items()}
    kind = next(name for name, gated in FEED_FORWARD.items() if gated == config.gated)
    return fields | {"feed_forward_proj": kind, "is_encoder_decoder": False}


TENSORS = {
    "embeddings/token": "shared",
    "relative_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "layers/attention_norm": "encoder.block.{}.layer.0.layer_norm",
    "layers/query": "encoder.block.{}.layer.0.SelfAttention.q",
    "layers/key": "encoder.block.{}.layer.0.SelfAttention.k",
    "layers/value": "encoder.block.{}.layer.0.SelfAttention.v",
    "layers/output": "encoder.block.{}.layer.0.SelfAttention.o",
    "layers/output_norm": "encoder.block.{}.layer.1.layer_norm",
    "layers/inner": "encoder.block.{}.layer.1.DenseReluDense.wi",
    "layers/gate": "encoder.block.{}.layer.1.DenseReluDense.wi_0",
    "layers/up": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    "layers/down": "encoder.block.{}.layer.1.DenseReluDense.wo",
    "norm": "encoder.final_layer_norm",
}
T5_ENCODER = Family(
    shapes=SHAPES,
    architecture="T5EncoderModel",
    module=T5,
    read_config=read_config,
    write_config=write_config,
    tensors=TENSORS,
    # Some files have the table under this name only.
    older=({**TENSORS, "embeddings/token": "encoder.embed_tokens"},),
    prefixes=("transformer.",),
    ignored=(
        r"(encoder\.embed_tokens|shared)\.weight",
        r"(decoder|lm_head|classifier|classification_head)\..*",
    ),
    # See bert.SHARDING.
    sharding=(
        (r"layers/(query|key|value|inner|gate|up)/kernel", (None, "fsdp", "tensor")),
        (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
        (r"embeddings/token", (None, "fsdp")),
    ),
)
