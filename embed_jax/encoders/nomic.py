"""NomicBERT (Nussbaum et al. 2024): BERT with rotary positions, gated layers and no biases.

The GTE encoders of `gte.py` are the same module with some biases.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import AttentionMask
from embed_jax.encoders.family import Family, Part, check_switches, read_fields
from embed_jax.encoders.layers import (
    LayerNormalization,
    Linear,
    Queries,
    Rotation,
    activation,
    dropout,
    rotate,
    take_rows,
    type_vectors,
)
from embed_jax.encoders.rope import Rope, read_rope, rope_rotation, write_rope
from embed_jax.encoders.stack import Stack
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class NomicConfig:
    """The size of a NomicBERT or a GTE; the defaults are nomic-embed-text's.

    Attributes:
        max_positions: the most tokens that a sentence may have; no parameters depend on it.
        rope: the wave lengths of the rotary positions.
        type_vocab_size: rows of the token type table, row 0 for single texts; 0: no table.
        use_bias: whether the linear maps have biases, except for those into the gated product.
        activation: of the gate.
        hidden_dropout, inner_dropout, attention_dropout: rates when a dropout key is given: of
            the embeddings and of what is added to the states, of the gated product, and of the
            softmax.
        initializer_range: standard deviation of the initial weights.
    """

    family: str = "nomic_bert"
    vocab_size: int = 30528
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 2048
    rope: Rope = Rope(1000.0)
    type_vocab_size: int = 2
    use_bias: bool = False
    activation: str = "silu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.0
    inner_dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int = 0

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have."""
        return self.max_positions

    @property
    def embedding_size(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size


SHAPES = {  # for runs without weights
    "nomic-tiny": NomicConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64),
    "nomic-base": NomicConfig(),
}


class Nomic(Stack):
    """Maps token ids to hidden states."""

    config: NomicConfig

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None = None, every_layer: bool = False
    ) -> Float[Array, "*Q D"]:
        """Returns hidden states after the last layer, or after every layer with a leading axis L.

        They are of the dtype `self.dtype`.
        """
        config = self.config
        embeddings_key, layer_keys = self.split(key)
        queries = self.queries(tokens, key)
        hidden = Embeddings(config, self.dtype, name="embeddings")(
            tokens, embeddings_key, queries[0]
        )
        mask = self.mask(tokens)
        turns = rope_rotation(tokens.position, config.hidden_size // config.num_heads, config.rope)
        return self.scan(Layer, hidden, layer_keys, queries, mask, turns, every_layer=every_layer)


class Embeddings(nn.Module):
    """Token + type embeddings, normalised."""

    config: NomicConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None, queries: Queries
    ) -> Float[Array, "R T D"]:
        config = self.config
        init, width = nn.initializers.normal(config.initializer_range), config.hidden_size
        x = take_rows(self.param("token", init, (config.vocab_size, width)), tokens.token_ids)
        if config.type_vocab_size:
            types = self.param("token_type", init, (config.type_vocab_size, width))
            # A single row is that of all tokens.
            x = x + type_vectors(types, tokens.segment if config.type_vocab_size > 1 else None)
        x = LayerNormalization(config.layer_norm_eps, self.dtype, name="norm")(x)
        return dropout(x, config.hidden_dropout, key, queries.starts(width))


class Layer(nn.Module):
    """Attention, then down(activation(gate(x)) * up(x)), each followed by residual and norm.

    The gated product is SwiGLU for "silu" (Shazeer 2020, equation 6).
    """

    config: NomicConfig
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
        turns: Rotation,
    ):
        config = self.config
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        start, inner_start = (
            queries.starts(size) for size in (config.hidden_size, config.intermediate_size)
        )
        plain = functools.partial(
            Linear, dtype=self.dtype, stddev=config.initializer_range, use_bias=False
        )
        linear = functools.partial(plain, use_bias=config.use_bias)
        norm = functools.partial(LayerNormalization, config.layer_norm_eps, self.dtype)

        def split_heads(x: Float[Array, "*B D"]) -> Float[Array, "*B H d"]:
            return x.reshape(*x.shape[:-1], config.num_heads, -1)

        key_, value = (
            split_heads(linear(config.hidden_size, name=name)(x)) for name in ("key", "value")
        )
        x = queries.take(x)
        query = split_heads(linear(config.hidden_size, name="query")(x))
        mixed = attention(
            rotate(query, queries.take(turns)),
            rotate(key_, turns),
            value,
            mask,
            queries,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        )
        mixed = linear(config.hidden_size, name="output")(mixed.reshape(x.shape))
        x = norm(name="attention_norm")(x + dropout(mixed, config.hidden_dropout, keys[1], start))
        gate = activation(config.activation)(plain(config.intermediate_size, name="gate")(x))
        inner = gate * plain(config.intermediate_size, name="up")(x)
        inner = dropout(inner, config.inner_dropout, keys[3], inner_start)
        outer = linear(config.hidden_size, name="down")(inner)
        x = norm(name="output_norm")(x + dropout(outer, config.hidden_dropout, keys[2], start))
        return x, x if self.every_layer else None


# ---- Hugging Face: config.json and tensor names --------------------------------------------------

FIELDS = {  # our field -> transformers'
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
PUBLISHED_FIELDS = {  # our field -> that of the models as first published, after GPT-2's
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_positions": "n_positions",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}
PUBLISHED_DEFAULTS: dict[str, Any] = {  # the values of absent fields
    "activation_function": "gelu_new",
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "rotary_emb_fraction": 0.0,
    "rotary_emb_base": 10000.0,
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
}
SUPPORTED = {
    "num_experts": 0,  # no mixture of experts
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "parallel_block": False,
    "use_rms_norm": False,
    "causal": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "rotary_head_dim": False,
}


def read_config(config_json: Mapping[str, Any]) -> NomicConfig:
    """Reads the fields of a config.json of transformers or of a model as first published (n_embd).

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    if config_json.get("hidden_size") is None and config_json.get("n_embd") is not None:
        config_json = PUBLISHED_DEFAULTS | {
            name: value for name, value in config_json.items() if value is not None
        }
        values = read_fields(config_json, PUBLISHED_FIELDS)
        rope = Rope(config_json["rotary_emb_base"])
    else:
        values = read_fields(config_json, FIELDS)
        rope = read_rope(config_json, NomicConfig.rope.theta, ("default",))
    check_switches(config_json, SUPPORTED)
    config = NomicConfig(**values, rope=rope)
    check_heads(config, config_json)
    return config


def check_heads(config: NomicConfig, config_json: Mapping[str, Any]) -> None:
    """Checks the activation, and that the hidden size is that of heads of an even size.

    Raises:
        InputError: the activation is not known, or heads have another size.
    """
    activation(config.activation)
    size, rest = divmod(config.hidden_size, config.num_heads)
    if rest or size % 2:
        raise InputError(
            f"config.json: hidden size {config.hidden_size} makes no {config.num_heads} heads of "
            "an even size"
        )
    check_switches(config_json, {"head_dim": size})


def write_config(config: NomicConfig) -> dict[str, Any]:
    """Returns config.json's fields as transformers writes them."""
    fields = {hf_name: getattr(config, name) for name, hf_name in FIELDS.items()}
    return fields | {"rope_parameters": write_rope(config.rope)}


TENSORS = {
    "embeddings/token": "embeddings.word_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/query": "layers.{}.self_attn.q_proj",
    "layers/key": "layers.{}.self_attn.k_proj",
    "layers/value": "layers.{}.self_attn.v_proj",
    "layers/output": "layers.{}.self_attn.o_proj",
    "layers/attention_norm": "layers.{}.post_attention_layernorm",
    "layers/gate": "layers.{}.mlp.gate_proj",
    "layers/up": "layers.{}.mlp.up_proj",
    "layers/down": "layers.{}.mlp.down_proj",
    "layers/output_norm": "layers.{}.post_mlp_layernorm",
}
PUBLISHED: dict[str, str | Part] = {  # transformers writes these too, beside its own config.json
    "embeddings/token": "embeddings.word_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "emb_ln",
    "layers/query": Part("encoder.layers.{}.attn.Wqkv", 0, 3),
    "layers/key": Part("encoder.layers.{}.attn.Wqkv", 1, 3),
    "layers/value": Part("encoder.layers.{}.attn.Wqkv", 2, 3),
    "layers/output": "encoder.layers.{}.attn.out_proj",
    "layers/attention_norm": "encoder.layers.{}.norm1",
    "layers/gate": "encoder.layers.{}.mlp.fc12",
    "layers/up": "encoder.layers.{}.mlp.fc11",
    "layers/down": "encoder.layers.{}.mlp.fc2",
    "layers/output_norm": "encoder.layers.{}.norm2",
}
SHARDING = (  # see bert.SHARDING
    (r"layers/(query|key|value|gate|up)/kernel", (None, "fsdp", "tensor")),
    (r"layers/(query|key|value)/bias", (None, "tensor")),
    (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
    (r"embeddings/token", (None, "fsdp")),
)
NOMIC = Family(
    shapes=SHAPES,
    architecture="NomicBertModel",
    module=Nomic,
    read_config=read_config,
    write_config=write_config,
    tensors=TENSORS,
    older=(PUBLISHED,),
    prefixes=("nomic_bert.", "bert.", "model."),
    ignored=(
        r"embeddings\.(position_ids|token_type_ids)",
        r"(pooler|cls|classifier)\..*",
        r"(rotary_emb|encoder\.layers\.\d+\.attn\.rotary_emb)\.(original_)?inv_freq",
    ),
    sharding=SHARDING,
)
