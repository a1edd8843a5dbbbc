"""GTE (Zhang et al. 2024): gte-*-en-v1.5, gte-multilingual-base and arctic-embed-m-v2.0.

They are NomicBERT's module with biases, other dropout and stretched rotary positions. transformers
has no class for them: their files name code on the hub, which is never run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from embed_jax.encoders.family import Family, Part, check_switches, read_fields
from embed_jax.encoders.nomic import FIELDS, SHARDING, Nomic, NomicConfig, check_heads
from embed_jax.encoders.rope import Rope, read_rope

SHAPE = NomicConfig(  # gte-base-en-v1.5
    family="new",
    max_positions=8192,
    rope=Rope(500000.0, "ntk", factor=2.0),
    type_vocab_size=0,
    use_bias=True,
    activation="gelu",
    hidden_dropout=0.1,
    inner_dropout=0.1,
)
SHAPES = {  # for runs without weights
    "gte-tiny": dataclasses.replace(
        SHAPE, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64
    ),
    "gte-base": SHAPE,
    "gte-large": dataclasses.replace(
        SHAPE,
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        intermediate_size=4096,
        rope=Rope(160000.0, "ntk", factor=2.0),
        type_vocab_size=2,
    ),
}

# ---- Hugging Face: config.json and tensor names --------------------------------------------------

DEFAULTS: dict[str, Any] = {  # the values of absent fields
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
}
SUPPORTED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
}
CODE = "Alibaba-NLP/new-impl--"  # on the hub, where config.json's auto_map looks for the classes


def read_config(config_json: Mapping[str, Any]) -> NomicConfig:
    """Reads the fields of a config.json.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    fields = DEFAULTS | {name: value for name, value in config_json.items() if value is not None}
    check_switches(fields, SUPPORTED)
    config = NomicConfig(
        family="new",
        **read_fields(fields, FIELDS),
        rope=read_rope(fields, 10000.0, ("default", "ntk")),
        use_bias=True,
        inner_dropout=fields["hidden_dropout_prob"],
    )
    check_heads(config, fields)
    return config


def write_config(config: NomicConfig) -> dict[str, Any]:
    """Returns config.json's fields; they name the code by which transformers reads the model."""
    scaling = {
        field: getattr(config.rope, field)
        for field in ("factor", "mixed_b")
        if getattr(config.rope, field) is not None
    }
    classes = {"AutoModel": "NewModel"} | {
        f"AutoModelFor{task}": f"NewFor{task}"
        for task in ("MaskedLM", "SequenceClassification", "TokenClassification")
    }
    return {hf_name: getattr(config, name) for name, hf_name in FIELDS.items()} | {
        **SUPPORTED,
        "rope_theta": config.rope.theta,
        "rope_scaling": {"type": config.rope.rope_type, **scaling} if scaling else None,
        "pack_qkv": True,
        "auto_map": {
            "AutoConfig": f"{CODE}configuration.NewConfig",
            **{name: f"{CODE}modeling.{kind}" for name, kind in classes.items()},
        },
    }


TENSORS: dict[str, str | Part] = {
    "embeddings/token": "embeddings.word_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/query": Part("encoder.layer.{}.attention.qkv_proj", 0, 3),
    "layers/key": Part("encoder.layer.{}.attention.qkv_proj", 1, 3),
    "layers/value": Part("encoder.layer.{}.attention.qkv_proj", 2, 3),
    "layers/output": "encoder.layer.{}.attention.o_proj",
    "layers/attention_norm": "encoder.layer.{}.attn_ln",
    "layers/up": Part("encoder.layer.{}.mlp.up_gate_proj", 0, 2),
    "layers/gate": Part("encoder.layer.{}.mlp.up_gate_proj", 1, 2),
    "layers/down": "encoder.layer.{}.mlp.down_proj",
    "layers/output_norm": "encoder.layer.{}.mlp_ln",
}
GTE = Family(
    shapes=SHAPES,
    architecture="NewModel",
    module=Nomic,
    read_config=read_config,
    write_config=write_config,
    tensors=TENSORS,
    older=(  # of config.json's pack_qkv false
        TENSORS
        | {
            "layers/query": "encoder.layer.{}.attention.q_proj",
            "layers/key": "encoder.layer.{}.attention.k_proj",
            "layers/value": "encoder.layer.{}.attention.v_proj",
        },
    ),
    prefixes=("new.", "gte."),
    ignored=(
        r"embeddings\.(position_ids|rotary_emb\..*)",
        r"(pooler|classifier|lm_head)\..*",
    ),
    sharding=SHARDING,
)
ARCTIC = dataclasses.replace(GTE, shapes={})  # the same under the model_type "gte"
