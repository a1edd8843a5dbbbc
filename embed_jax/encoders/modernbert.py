"""ModernBERT (Warner et al. 2024): pre-norm, rotary positions, local attention in most layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention import attention
from embed_jax.encoders.decoder import FULL, SLIDING, View, stack_turns
from embed_jax.encoders.decoder_families import KINDS
from embed_jax.encoders.family import Family, Part, check_switches, read_fields
from embed_jax.encoders.json_fields import OBJECT, check_fields
from embed_jax.encoders.layers import (
    LayerNormalization,
    Linear,
    Queries,
    activation,
    dropout,
    rotate,
    take_rows,
)
from embed_jax.encoders.rope import Rope, read_rope, rope_rotation
from embed_jax.encoders.stack import Stack
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import TokenBatch


def alternate_layer_types(layers: int, every: int = 3) -> tuple[str, ...]:
    """Returns the kinds of this many layers: one in `every` is FULL, from the first on.

    >>> alternate_layer_types(4)
    ('full', 'sliding', 'sliding', 'full')
    """
    return tuple(SLIDING if index % every else FULL for index in range(layers))


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
    """The size of a ModernBERT; the defaults are ModernBERT-base's.

    Attributes:
        max_positions: the most tokens that a sentence may have; no parameters depend on it.
        layer_types: FULL or SLIDING for each layer.
        local_attention: the window of SLIDING layers: a token sees those at a distance of at most
            half of it.
        rope_theta, local_rope_theta: base of the rotary positions' wave lengths in FULL and in
            SLIDING layers.
        activation: of the gate.
        embedding_dropout, hidden_dropout, attention_dropout: rates when a dropout key is given: of
            the embeddings, inside the feed-forward layers, and of the softmax and attention's
            output.
        initializer_range: standard deviation of the initial weights, except for those before a
            residual.
    """

    family: str = "modernbert"
    vocab_size: int = 50368
    hidden_size: int = 768
    num_layers: int = 22
    num_heads: int = 12
    intermediate_size: int = 1152
    max_positions: int = 8192
    layer_types: tuple[str, ...] = alternate_layer_types(22)
    local_attention: int = 128
    rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5
    embedding_dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int = 0

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have."""
        return self.max_positions

    @property
    def embedding_size(self) -> int:
        """Width of the embedding table."""
        return self.hidden_size


def _shape(
    hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int
) -> ModernBertConfig:
    return ModernBertConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=intermediate_size,
        layer_types=alternate_layer_types(num_layers),
    )


SHAPES = {  # for runs without weights
    "modernbert-tiny": _shape(32, 4, 2, 48),
    "modernbert-base": _shape(768, 22, 12, 1152),
    "modernbert-large": _shape(1024, 28, 16, 2624),
}


class ModernBert(Stack):
    """Maps token ids to hidden states."""

    config: ModernBertConfig

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None = None, every_layer: bool = False
    ) -> Float[Array, "*Q D"]:
        """Returns hidden states after the last layer, or after every layer with a leading axis L.

        They are of the dtype `self.dtype`. The final norm is applied to each layer's states, as if
        that layer were the last.
        """
        config = self.config
        embeddings_key, layer_keys = self.split(key)
        queries = self.queries(tokens, key)
        hidden = Embeddings(config, self.dtype, name="embeddings")(
            tokens, embeddings_key, queries[0]
        )
        turns = [
            rope_rotation(tokens.position, config.hidden_size // config.num_heads, Rope(theta))
            for theta in (config.rope_theta, config.local_rope_theta)
        ]
        both = View(self.mask(tokens, (0, config.local_attention // 2 + 1)), stack_turns(turns))
        numbers = jnp.asarray([(FULL, SLIDING).index(kind) for kind in config.layer_types])
        each = layer_keys, numbers, jnp.arange(config.num_layers) == 0
        hidden = self.scan(Layer, hidden, each, queries, both, every_layer=every_layer)
        return LayerNormalization(config.layer_norm_eps, self.dtype, use_bias=False, name="norm")(
            hidden
        )


class Embeddings(nn.Module):
    """Token embeddings, normalised."""

    config: ModernBertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None, queries: Queries
    ) -> Float[Array, "R T D"]:
        config = self.config
        init, width = nn.initializers.normal(config.initializer_range), config.hidden_size
        token = self.param("token", init, (config.vocab_size, width))
        x = LayerNormalization(config.layer_norm_eps, self.dtype, use_bias=False, name="norm")(
            take_rows(token, tokens.token_ids)
        )
        return dropout(x, config.embedding_dropout, key, queries.starts(width))


class Layer(nn.Module):
    """Attention, then down(activation(gate(x)) * up(x)), each with a norm before it and a residual.

    The first layer has no norm before its attention, since the embeddings have one; in the stacked
    parameters its scale is ones, which are not used. The gated product is GeGLU for "gelu" (Shazeer
    2020, equation 6).
    """

    config: ModernBertConfig
    dtype: Any
    attention: str
    every_layer: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        own: tuple[PRNGKeyArray | None, Int[Array, ""], Bool[Array, ""]],
        queries: Queries,
        views: View,
    ):
        config = self.config
        key, kind, first = own
        view = views.of_kind(kind)
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        start, inner_start = (
            queries.starts(size) for size in (config.hidden_size, config.intermediate_size)
        )
        linear = functools.partial(
            Linear, dtype=self.dtype, stddev=config.initializer_range, use_bias=False
        )
        last = functools.partial(
            linear, stddev=config.initializer_range / math.sqrt(2 * config.num_layers)
        )
        norm = functools.partial(
            LayerNormalization, config.layer_norm_eps, self.dtype, use_bias=False
        )

        def split_heads(x: Float[Array, "*B D"]) -> Float[Array, "*B H d"]:
            return x.reshape(*x.shape[:-1], config.num_heads, -1)

        normed = jnp.where(first, x, norm(name="attention_norm")(x))
        key_, value = (
            split_heads(linear(config.hidden_size, name=name)(normed)) for name in ("key", "value")
        )
        x, normed = queries.take((x, normed))
        query = split_heads(linear(config.hidden_size, name="query")(normed))
        mixed = attention(
            rotate(query, queries.take(view.turns)),
            rotate(key_, view.turns),
            value,
            view.mask,
            queries,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        )
        mixed = last(config.hidden_size, name="output")(mixed.reshape(x.shape))
        x = x + dropout(mixed, config.attention_dropout, keys[1], start)

        normed = norm(name="output_norm")(x)
        gate = activation(config.activation)(linear(config.intermediate_size, name="gate")(normed))
        inner = gate * linear(config.intermediate_size, name="up")(normed)
        inner = dropout(inner, config.hidden_dropout, keys[2], inner_start)
        x = x + last(config.hidden_size, name="down")(inner)
        return x, x if self.every_layer else None


# ---- Hugging Face: config.json and tensor names --------------------------------------------------

FIELDS = {  # our field -> transformers'
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "local_attention": "local_attention",
    "activation": "hidden_activation",
    "layer_norm_eps": "norm_eps",
    "embedding_dropout": "embedding_dropout",
    "hidden_dropout": "mlp_dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
SUPPORTED = {"norm_bias": False, "attention_bias": False, "mlp_bias": False, "rope_scaling": None}


def read_config(config_json: Mapping[str, Any]) -> ModernBertConfig:
    """Reads the fields of a config.json of ModernBERT.

    Both new files (layer_types, rope_parameters) and old ones (global_attn_every_n_layers,
    global_rope_theta, local_rope_theta) are read.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    check_switches(config_json, SUPPORTED)
    values = read_fields(config_json, FIELDS)
    by_kind = config_json.get("rope_parameters") or {}
    check_fields("config.json: rope_parameters.", by_kind, dict.fromkeys(KINDS.values(), OBJECT))
    if not set(by_kind) <= set(KINDS.values()):
        raise InputError(
            f"config.json: rope_parameters: expected {' and '.join(KINDS.values())}, found "
            f"{', '.join(by_kind)}"
        )

    def theta(kind: str, older: Any, default: float) -> float:
        return read_rope(
            {"rope_parameters": by_kind.get(KINDS[kind]), "rope_theta": older}, default, ["default"]
        ).theta

    full = theta(FULL, config_json.get("global_rope_theta"), ModernBertConfig.rope_theta)
    # null means the same as in FULL layers, as in the models first published.
    sliding = theta(
        SLIDING, config_json.get("local_rope_theta", ModernBertConfig.local_rope_theta), full
    )
    config = ModernBertConfig(
        **values,
        layer_types=_layer_types(config_json, values["num_layers"]),
        rope_theta=full,
        local_rope_theta=sliding,
    )
    activation(config.activation)
    size, rest = divmod(config.hidden_size, config.num_heads)
    if rest or size % 2:
        raise InputError(
            f"config.json: hidden size {config.hidden_size} makes no {config.num_heads} heads of "
            "an even size"
        )
    return config


def _layer_types(config_json: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    if config_json.get("layer_types") is None:
        return alternate_layer_types(layers, config_json.get("global_attn_every_n_layers") or 3)
    kinds = {hf_name: kind for kind, hf_name in KINDS.items()}
    for name in config_json["layer_types"]:
        if name not in kinds:
            raise InputError(f"config.json: layer_types: {unknown('type', name, kinds)}")
    if len(config_json["layer_types"]) != layers:
        raise InputError(
            f"config.json: layer_types: expected {layers}, found {len(config_json['layer_types'])}"
        )
    return tuple(kinds[name] for name in config_json["layer_types"])


def write_config(config: ModernBertConfig) -> dict[str, Any]:
    """Returns config.json's fields as transformers writes them."""
    thetas = {FULL: config.rope_theta, SLIDING: config.local_rope_theta}
    fields = {hf_name: getattr(config, name) for name, hf_name in FIELDS.items()}
    return fields | {
        "layer_types": [KINDS[kind] for kind in config.layer_types],
        "rope_parameters": {
            KINDS[kind]: {"rope_type": "default", "rope_theta": x} for kind, x in thetas.items()
        },
    }


MODERNBERT = Family(
    shapes=SHAPES,
    architecture="ModernBertModel",
    module=ModernBert,
    read_config=read_config,
    write_config=write_config,
    tensors={
        "embeddings/token": "embeddings.tok_embeddings",
        "embeddings/norm": "embeddings.norm",
        "layers/attention_norm": "layers.{}.attn_norm",
        "layers/query": Part("layers.{}.attn.Wqkv", 0, 3),
        "layers/key": Part("layers.{}.attn.Wqkv", 1, 3),
        "layers/value": Part("layers.{}.attn.Wqkv", 2, 3),
        "layers/output": "layers.{}.attn.Wo",
        "layers/output_norm": "layers.{}.mlp_norm",
        "layers/gate": Part("layers.{}.mlp.Wi", 0, 2),
        "layers/up": Part("layers.{}.mlp.Wi", 1, 2),
        "layers/down": "layers.{}.mlp.Wo",
        "norm": "final_norm",
    },
    absent=("layers.0.attn_norm.weight",),
    prefixes=("model.",),
    ignored=(r"(head|decoder|classifier)\..*",),
    # See bert.SHARDING.
    sharding=(
        (r"layers/(query|key|value|gate|up)/kernel", (None, "fsdp", "tensor")),
        (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
        (r"embeddings/token", (None, "fsdp")),
    ),
)
