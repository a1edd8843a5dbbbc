"""DeBERTa-v2 and v3 (He et al. 2021): attention that compares tokens with distances too.

A score adds to query . key the products of the query with the distance's key and of the key with
the distance's query ("disentangled attention", equation 4). There is no convolution, which only the
largest models of v2 have.
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
from embed_jax.encoders.distances import DistanceRows, find_distance_rows, multiply_by_distance
from embed_jax.encoders.family import Family, check_switches, read_fields
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
from embed_jax.registry import unknown
from embed_jax.types import TokenBatch

TERMS = ("c2p", "p2c")  # of config.json's pos_att_type


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """The size of a DeBERTa; the defaults are DeBERTa-v3-base's.

    Attributes:
        max_positions: the most tokens that a sentence may have, and rows of the position table if
            there is one.
        absolute_positions: whether the embeddings have a position table.
        type_vocab_size: rows of the token type table, row 0 for single texts; 0: no table.
        position_terms: which products with distances a score has: "c2p" of the query, "p2c" of the
            key.
        max_distance: distances from this one on are one.
        position_buckets: near distances up to half of this have a row of the table of distances
            each, farther ones share rows that widen logarithmically; 0: each has its own.
        share_projections: whether distances have the projections of tokens, or their own.
        norm_distances: whether the table of distances is normalised.
        hidden_dropout, attention_dropout: rates when a dropout key is given.
        initializer_range: standard deviation of the initial weights.
    """

    family: str = "deberta-v2"
    vocab_size: int = 128100
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    absolute_positions: bool = False
    type_vocab_size: int = 0
    position_terms: tuple[str, ...] = TERMS
    max_distance: int = 512
    position_buckets: int = 256
    share_projections: bool = True
    norm_distances: bool = True
    activation: str = "gelu"
    layer_norm_eps: float = 1e-7
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
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

    @property
    def distance_rows(self) -> int:
        """Rows of the table of distances."""
        return 2 * (self.position_buckets or self.max_distance)


def _shape(
    hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int
) -> DebertaConfig:
    return DebertaConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=intermediate_size,
    )


SHAPES = {  # for runs without weights
    "deberta-tiny": dataclasses.replace(_shape(32, 2, 2, 64), position_buckets=8, max_distance=64),
    "deberta-v3-xsmall": _shape(384, 12, 6, 1536),
    "deberta-v3-small": _shape(768, 6, 12, 3072),
    "deberta-v3-base": _shape(768, 12, 12, 3072),
    "deberta-v3-large": _shape(1024, 24, 16, 4096),
}


class Deberta(Stack):
    """Token ids to hidden states."""

    config: DebertaConfig

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
        init, table_rows = nn.initializers.normal(config.initializer_range), config.distance_rows
        distances = self.param("distances", init, (table_rows, config.hidden_size))
        if config.norm_distances:
            distances = LayerNormalization(
                config.layer_norm_eps, self.dtype, name="distances_norm"
            )(distances)
        # Short rows reach few distances: the layers project no others.
        start, stop, rows = find_distance_rows(
            table_rows,
            config.max_distance,
            tokens.token_ids.shape[1],
            bool(config.position_buckets),
        )
        shared = self.mask(tokens), distances[start:stop], rows
        return self.scan(Layer, hidden, layer_keys, queries, *shared, every_layer=every_layer)


class Embeddings(nn.Module):
    """Token embeddings, with positions and types where there are tables, normalised."""

    config: DebertaConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None, queries: Queries
    ) -> Float[Array, "R T D"]:
        config = self.config
        init, width = nn.initializers.normal(config.initializer_range), config.hidden_size
        x = take_rows(self.param("token", init, (config.vocab_size, width)), tokens.token_ids)
        if config.absolute_positions:
            position = self.param("position", init, (config.max_positions, width))
            x = x + take_rows(position, tokens.position)
        if config.type_vocab_size:
            types = self.param("token_type", init, (config.type_vocab_size, width))
            x = x + type_vectors(types, tokens.segment)
        x = LayerNormalization(config.layer_norm_eps, self.dtype, name="norm")(x)
        return dropout(x, config.hidden_dropout, key, queries.starts(width))


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and norm after it."""

    config: DebertaConfig
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
        distances: Float[Array, "P D"],
        rows: DistanceRows,
    ):
        config = self.config
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        start = queries.starts(config.hidden_size)
        linear = functools.partial(Linear, dtype=self.dtype, stddev=config.initializer_range)
        norm = functools.partial(LayerNormalization, config.layer_norm_eps, self.dtype)

        def split_heads(x: Float[Array, "*B D"]) -> Float[Array, "*B H d"]:
            return x.reshape(*x.shape[:-1], config.num_heads, -1)

        project = {
            name: linear(config.hidden_size, name=name) for name in ("query", "key", "value")
        }
        query, key_, value = (split_heads(module(x)) for module in project.values())
        scale = (query.shape[-1] * (1 + len(config.position_terms))) ** -0.5
        distances = dropout(distances, config.hidden_dropout, keys[3])

        def project_distances(own: str, shared: str) -> Float[Array, "P H d"]:
            if config.share_projections:
                return split_heads(project[shared](distances))
            return split_heads(linear(config.hidden_size, name=own)(distances))

        if "c2p" in config.position_terms:
            table = project_distances("distance_key", "key")
            mask = mask.add_bias(multiply_by_distance(query * scale, table[rows.backward]))
        if "p2c" in config.position_terms:
            table = project_distances("distance_query", "query")
            products = multiply_by_distance(key_ * scale, table[rows.forward])
            mask = mask.add_bias(products.transpose(0, 1, 3, 2))
        x, query = queries.take((x, query))  # the products need the queries of all slots
        mixed = attention(
            query,
            key_,
            value,
            mask,
            queries,
            scale=scale,
            dropout_rate=config.attention_dropout,
            dropout_key=keys[0],
            implementation=self.attention,
        )
        mixed = linear(config.hidden_size, name="output")(mixed.reshape(x.shape))
        x = norm(name="attention_norm")(x + dropout(mixed, config.hidden_dropout, keys[1], start))
        inner = activation(config.activation)(linear(config.intermediate_size, name="up")(x))
        outer = linear(config.hidden_size, name="down")(inner)
        x = norm(name="output_norm")(x + dropout(outer, config.hidden_dropout, keys[2], start))
        return x, x if self.every_layer else None


# ---- Hugging Face: config.json and tensor names --------------------------------------------------

FIELDS = {  # our field -> config.json's
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
DEFAULTS: dict[str, Any] = {  # the values of absent fields
    "position_biased_input": True,
    "relative_attention": False,
    "pos_att_type": [],
    "position_buckets": -1,
    "max_relative_positions": -1,
    "share_att_key": False,
    "norm_rel_ebd": "none",
}


def read_config(config_json: Mapping[str, Any]) -> DebertaConfig:
    """Reads the fields of a config.json of DeBERTa-v2 or v3.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    values = read_fields(config_json, FIELDS)
    fields = DEFAULTS | {name: x for name, x in config_json.items() if x is not None}
    size, rest = divmod(values["hidden_size"], values["num_heads"])
    if rest:
        raise InputError(
            f"config.json: num_attention_heads: expected a divisor of hidden_size "
            f"{values['hidden_size']}, found {values['num_heads']}"
        )
    check_switches(
        fields,
        {
            "relative_attention": True,
            "conv_kernel_size": 0,
            "embedding_size": values["hidden_size"],
            "attention_head_size": size,
        },
    )
    terms = fields["pos_att_type"]
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    terms = {term.strip() for term in terms}
    if not terms:
        raise InputError(
            f"config.json: pos_att_type: expected one or more of {', '.join(TERMS)}, found none"
        )
    for term in sorted(terms):
        if term not in TERMS:
            raise InputError(f"config.json: pos_att_type: {unknown('term', term, TERMS)}")
    distance = fields["max_relative_positions"]
    config = DebertaConfig(
        **values,
        absolute_positions=fields["position_biased_input"],
        position_terms=tuple(term for term in TERMS if term in terms),
        max_distance=distance if distance > 0 else values["max_positions"],
        position_buckets=max(fields["position_buckets"], 0),
        share_projections=fields["share_att_key"],
        norm_distances="layer_norm"
        in [name.strip() for name in fields["norm_rel_ebd"].lower().split("|")],
    )
    activation(config.activation)
    least = config.position_buckets // 2 + 2  # fewer distances leave nothing for wide buckets
    if config.position_buckets and config.max_distance < least:
        raise InputError(
            f"config.json: max_relative_positions: expected {least} or more for "
            f"{config.position_buckets} position_buckets, found {config.max_distance}"
        )
    return config


def write_config(config: DebertaConfig) -> dict[str, Any]:
    """Returns config.json's fields."""
    fields = {hf_name: getattr(config, name) for name, hf_name in FIELDS.items()}
    return fields | {
        "position_biased_input": config.absolute_positions,
        "relative_attention": True,
        "pos_att_type": list(config.position_terms),
        "position_buckets": config.position_buckets or -1,
        "max_relative_positions": config.max_distance,
        "share_att_key": config.share_projections,
        "norm_rel_ebd": "layer_norm" if config.norm_distances else "none",
    }


DEBERTA = Family(
    shapes=SHAPES,
    architecture="DebertaV2Model",
    module=Deberta,
    read_config=read_config,
    write_config=write_config,
    tensors={
        "embeddings/token": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
        "distances": "encoder.rel_embeddings",
        "distances_norm": "encoder.LayerNorm",
        "layers/query": "encoder.layer.{}.attention.self.query_proj",
        "layers/key": "encoder.layer.{}.attention.self.key_proj",
        "layers/value": "encoder.layer.{}.attention.self.value_proj",
        "layers/distance_query": "encoder.layer.{}.attention.self.pos_query_proj",
        "layers/distance_key": "encoder.layer.{}.attention.self.pos_key_proj",
        "layers/output": "encoder.layer.{}.attention.output.dense",
        "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "layers/up": "encoder.layer.{}.intermediate.dense",
        "layers/down": "encoder.layer.{}.output.dense",
        "layers/output_norm": "encoder.layer.{}.output.LayerNorm",
    },
    prefixes=("deberta.", "model."),
    ignored=(
        # Published files may have a position table though it is not used.
        r"embeddings\.(position_ids|position_embeddings\.weight)",
        r"(pooler|classifier|cls|lm_predictions|mask_predictions|qa_outputs)\..*",
    ),
    # See bert.SHARDING.
    sharding=(
        (
            r"layers/(query|key|value|distance_query|distance_key|up)/kernel",
            (None, "fsdp", "tensor"),
        ),
        (r"layers/(query|key|value|distance_query|distance_key|up)/bias", (None, "tensor")),
        (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
        (r"embeddings/(token|position)", (None, "fsdp")),
    ),
)
