"""BERT, RoBERTa, XLM-R, CamemBERT, MPNet, DistilBERT and ELECTRA.

All of them are one post-norm transformer encoder with different settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import AttentionMask
from embed_jax.encoders.family import Family, read_fields
from embed_jax.encoders.layers import (
    LayerNormalization,
    Linear,
    Queries,
    activation,
    dropout,
    take_rows,
    type_vectors,
)
from embed_jax.encoders.stack import Stack
from embed_jax.errors import InputError
from embed_jax.types import AnyArray, TokenBatch


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The size of a BERT-like encoder, and the settings in which the families differ.

    Attributes:
        family: the name in the registry: "bert", "roberta", "xlm-roberta", "camembert", "mpnet",
            "distilbert", "electra".
        embedding_size: width of the embedding tables; other than hidden_size only for ELECTRA's
            projection.
        max_positions: rows of the position table, `position_offset` of which are never used.
        position_offset: the row of the position table for the first token (RoBERTa, MPNet: padding
            index + 1).
        type_vocab_size: rows of the token type table, row 0 for single texts; 0: no table (MPNet,
            DistilBERT).
        relative_buckets: buckets of MPNet's relative position bias, shared by all layers; 0: none.
        hidden_dropout, attention_dropout: rates when a dropout key is given.
        initializer_range: standard deviation of the initial weights.
    """

    family: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    embedding_size: int = 768
    max_positions: int = 512
    position_offset: int = 0
    type_vocab_size: int = 2
    relative_buckets: int = 0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have."""
        return self.max_positions - self.position_offset


def _shape(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int) -> BertConfig:
    return BertConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=intermediate_size,
        embedding_size=hidden_size,
    )


SHAPES = {  # of well-known models, for runs without weights
    "tiny": _shape(32, 2, 2, 64),
    "mini": _shape(256, 4, 4, 1024),
    "minilm-l6": _shape(384, 6, 12, 1536),
    "minilm-l12": _shape(384, 12, 12, 1536),
    "bert-small": _shape(512, 4, 8, 2048),
    "bert-base": _shape(768, 12, 12, 3072),
    "bert-large": _shape(1024, 24, 16, 4096),
}


class Bert(Stack):
    """Maps token ids to hidden states."""

    config: BertConfig

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
        if config.relative_buckets:
            table = self.param(
                "relative_bias",
                nn.initializers.normal(config.initializer_range),
                (config.relative_buckets, config.num_heads),
            )
            mask = mask.add_bias(relative_bias(table, tokens.position))
        return self.scan(Layer, hidden, layer_keys, queries, mask, every_layer=every_layer)


class Embeddings(nn.Module):
    """Token + position + type embeddings, normalised; ELECTRA projects them to the hidden size."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None, queries: Queries
    ) -> Float[Array, "R T D"]:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        width = config.embedding_size
        token = self.param("token", init, (config.vocab_size, width))
        position = self.param("position", init, (config.max_positions, width))
        x = take_rows(token, tokens.token_ids) + take_rows(
            position, tokens.position + config.position_offset
        )
        if config.type_vocab_size:
            types = self.param("token_type", init, (config.type_vocab_size, width))
            x = x + type_vectors(types, tokens.segment)
        x = LayerNormalization(config.layer_norm_eps, self.dtype, name="norm")(x)
        x = dropout(x, config.hidden_dropout, key, queries.starts(width))
        if width != config.hidden_size:
            x = Linear(config.hidden_size, self.dtype, config.initializer_range, name="project")(x)
        return x


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and norm after it (BERT)."""

    config: BertConfig
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
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        start = queries.starts(config.hidden_size)

        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.dtype, config.initializer_range, name=name)

        def norm(name: str) -> LayerNormalization:
            return LayerNormalization(config.layer_norm_eps, self.dtype, name=name)

        def split_heads(x: Float[Array, "*B D"]) -> Float[Array, "*B H d"]:
            return x.reshape(*x.shape[:-1], config.num_heads, -1)

        key_, value = (
            split_heads(linear(config.hidden_size, name)(x)) for name in ("key", "value")
        )
        x = queries.take(x)
        mixed = attention(
            split_heads(linear(config.hidden_size, "query")(x)),
            key_,
            value,
            mask,
            queries,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        )
        mixed = linear(config.hidden_size, "output")(mixed.reshape(x.shape))
        x = norm("attention_norm")(x + dropout(mixed, config.hidden_dropout, keys[1], start))
        inner = activation(config.activation)(linear(config.intermediate_size, "up")(x))
        outer = linear(config.hidden_size, "down")(inner)
        x = norm("output_norm")(x + dropout(outer, config.hidden_dropout, keys[2], start))
        return x, x if self.every_layer else None


def relative_bias(
    table: Float[AnyArray, "B H"], position: Int[AnyArray, "R T"], max_distance: int = 128
) -> Float[Array, "R H T T"]:
    """Returns T5's attention bias by the distance of two tokens (Raffel et al. 2020), also MPNet's.

    It is computed as a product with a one-hot matrix, whose gradient is a product too; the gradient
    of a gather would be a scatter of R * T * T rows into a handful.
    """
    buckets = table.shape[0]
    bucket = relative_bucket(position[:, None, :] - position[:, :, None], buckets, max_distance)
    one_hot = jax.nn.one_hot(bucket, buckets, dtype=jnp.float32)
    return jnp.einsum("rqkb,bh->rhqk", one_hot, table.astype(jnp.float32), precision="highest")


def relative_bucket(
    distance: Int[AnyArray, "*B"], buckets: int, max_distance: int = 128
) -> Int[Array, "*B"]:
    """Returns the bucket of a signed distance.

    Near distances have a bucket each; farther ones share buckets that widen logarithmically up to
    `max_distance`.

    >>> relative_bucket(jnp.array([-1000, -1, 0, 1, 1000]), 32).tolist()
    [15, 1, 0, 17, 31]
    """
    half = buckets // 2
    exact = half // 2
    far = jnp.abs(distance)
    log = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    wide = jnp.minimum(exact + (log * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(far < exact, far, wide)


# ---- Hugging Face: config.json and tensor names --------------------------------------------------

BERT_FIELDS = {  # our field -> config.json's
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
MPNET_FIELDS = {**BERT_FIELDS, "relative_buckets": "relative_attention_num_buckets"}
del MPNET_FIELDS["type_vocab_size"]
ELECTRA_FIELDS = {**BERT_FIELDS, "embedding_size": "embedding_size"}
DISTILBERT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}


def _reader(
    family: str, fields: Mapping[str, str], defaults: Mapping[str, Any]
) -> Callable[[Mapping], BertConfig]:
    def read(config_json: Mapping[str, Any]) -> BertConfig:
        kind = config_json.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise InputError(
                f"config.json: position_embedding_type {kind!r} is not supported; only 'absolute' "
                "is"
            )
        if config_json.get("is_decoder"):
            raise InputError("config.json: is_decoder true is not supported; only encoders are")
        values = read_fields(config_json, fields)
        activation(values.get("activation", "gelu"))
        values = {**defaults, **values}
        values.setdefault("embedding_size", values["hidden_size"])
        if family in ("roberta", "xlm-roberta", "camembert"):
            values["position_offset"] = values["pad_token_id"] + 1
        if values["hidden_size"] % values["num_heads"]:
            raise InputError(
                f"config.json: {fields['num_heads']}: expected a divisor of "
                f"{fields['hidden_size']} {values['hidden_size']}, found {values['num_heads']}"
            )
        return BertConfig(family=family, **values)

    return read


def _writer(fields: Mapping[str, str]) -> Callable[[BertConfig], dict[str, Any]]:
    return lambda config: {hf_name: getattr(config, name) for name, hf_name in fields.items()}


_EMBEDDINGS = {
    "embeddings/token": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
}
_BERT_LAYER = {
    "layers/query": "encoder.layer.{}.attention.self.query",
    "layers/key": "encoder.layer.{}.attention.self.key",
    "layers/value": "encoder.layer.{}.attention.self.value",
    "layers/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/up": "encoder.layer.{}.intermediate.dense",
    "layers/down": "encoder.layer.{}.output.dense",
    "layers/output_norm": "encoder.layer.{}.output.LayerNorm",
}
# Megatron's split of the products over "tensor" (Shoeybi et al. 2019): by output, then by input;
# whatever is large is split over "fsdp" along the other dimension. The first dimension of a layer's
# parameters counts the layers.
SHARDING = (
    (r"layers/(query|key|value|up)/kernel", (None, "fsdp", "tensor")),
    (r"layers/(query|key|value|up)/bias", (None, "tensor")),
    (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
    (r"embeddings/(token|position)", (None, "fsdp")),
)
_IGNORED = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"classifier\..*",
    r"(cls|lm_head|qa_outputs)\..*",
)


def _family(
    name: str, architecture: str, fields, tensors, prefix: str, ignored=(), **defaults
) -> Family:
    return Family(
        architecture=architecture,
        module=Bert,
        read_config=_reader(name, fields, defaults),
        write_config=_writer(fields),
        tensors=tensors,
        prefixes=(prefix, "model."),
        ignored=(*_IGNORED, *ignored),
        sharding=SHARDING,
        shapes={title: shape for title, shape in SHAPES.items() if shape.family == name},
    )


_BERT = {**_EMBEDDINGS, **_BERT_LAYER}
BERT = _family("bert", "BertModel", BERT_FIELDS, _BERT, "bert.")
ROBERTA = _family("roberta", "RobertaModel", BERT_FIELDS, _BERT, "roberta.", pad_token_id=1)
XLM_ROBERTA = _family(
    "xlm-roberta", "XLMRobertaModel", BERT_FIELDS, _BERT, "roberta.", pad_token_id=1
)
CAMEMBERT = _family("camembert", "CamembertModel", BERT_FIELDS, _BERT, "roberta.", pad_token_id=1)
ELECTRA = _family(
    "electra",
    "ElectraModel",
    ELECTRA_FIELDS,
    {**_BERT, "embeddings/project": "embeddings_project"},
    "electra.",
    ignored=(r"(discriminator_predictions|generator_predictions|generator_lm_head)\..*",),
    embedding_size=128,
)
MPNET = _family(
    "mpnet",
    "MPNetModel",
    MPNET_FIELDS,
    {
        **_EMBEDDINGS,
        **_BERT_LAYER,
        "layers/query": "encoder.layer.{}.attention.attn.q",
        "layers/key": "encoder.layer.{}.attention.attn.k",
        "layers/value": "encoder.layer.{}.attention.attn.v",
        "layers/output": "encoder.layer.{}.attention.attn.o",
        "layers/attention_norm": "encoder.layer.{}.attention.LayerNorm",
        "relative_bias": "encoder.relative_attention_bias",
    },
    "mpnet.",
    pad_token_id=1,
    position_offset=2,  # transformers fixes the padding index at 1 here
    type_vocab_size=0,
    relative_buckets=32,
)
DISTILBERT = _family(
    "distilbert",
    "DistilBertModel",
    DISTILBERT_FIELDS,
    {
        **_EMBEDDINGS,
        "layers/query": "transformer.layer.{}.attention.q_lin",
        "layers/key": "transformer.layer.{}.attention.k_lin",
        "layers/value": "transformer.layer.{}.attention.v_lin",
        "layers/output": "transformer.layer.{}.attention.out_lin",
        "layers/attention_norm": "transformer.layer.{}.sa_layer_norm",
        "layers/up": "transformer.layer.{}.ffn.lin1",
        "layers/down": "transformer.layer.{}.ffn.lin2",
        "layers/output_norm": "transformer.layer.{}.output_layer_norm",
    },
    "distilbert.",
    ignored=(r"vocab_(transform|layer_norm|projector)\..*", r"pre_classifier\..*"),
    type_vocab_size=0,
    layer_norm_eps=1e-12,
)
