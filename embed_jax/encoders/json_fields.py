"""Types of the fields that are read from a model's JSON files.

A value of another type is refused with a message that names the field. Nothing is converted, except
that a whole number written as a float (512.0, 1e30) counts as one. null means "not set". Fields
that are not read may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from embed_jax.errors import InputError


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or isinstance(value, float) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


SIZE, COUNT, INDEX = "a whole number from 1", "a whole number from 0", "a whole number"
NUMBER = "a number"
FLAG, TEXT, OBJECT, TEXTS = "true or false", "a string", "an object", "a list of strings"
NAMED_TEXTS, NAMED_NUMBERS = "an object of strings", "an object of numbers"
TEXT_OR_TEXTS = "a string or a list of strings"
KINDS: dict[str, Callable[[Any], bool]] = {
    SIZE: lambda value: _is_whole(value) and value >= 1,
    COUNT: lambda value: _is_whole(value) and value >= 0,
    INDEX: _is_whole,
    NUMBER: _is_number,
    FLAG: lambda value: isinstance(value, bool),
    TEXT: lambda value: isinstance(value, str),
    OBJECT: lambda value: isinstance(value, dict),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    TEXT_OR_TEXTS: lambda value: isinstance(value, str) or KINDS[TEXTS](value),
    NAMED_TEXTS: lambda value: (
        isinstance(value, dict) and all(isinstance(text, str | None) for text in value.values())
    ),
    NAMED_NUMBERS: lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
}


def _table(*rows: tuple[str, str]) -> dict[str, str]:
    """Returns the kind of each field, from rows of (kind, names of fields)."""
    return {name: kind for kind, names in rows for name in names.split()}


# config.json of every family that is read, under transformers' names and older ones.
CONFIG = _table(
    (
        SIZE,
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "max_position_embeddings embedding_size dim n_layers n_heads hidden_dim n_embd n_layer "
        "n_head n_inner n_positions d_model d_kv d_ff num_layers num_heads num_key_value_heads "
        "head_dim relative_attention_num_buckets relative_attention_max_distance "
        "global_attn_every_n_layers sliding_window_pattern num_labels "
        "original_max_position_embeddings local_attention",
    ),
    (INDEX, "pad_token_id position_buckets max_relative_positions"),
    (COUNT, "type_vocab_size sliding_window max_window_layers num_experts conv_kernel_size"),
    (
        NUMBER,
        "layer_norm_eps layer_norm_epsilon norm_eps rms_norm_eps initializer_range "
        "initializer_factor hidden_dropout_prob attention_probs_dropout_prob dropout "
        "attention_dropout hidden_dropout embedding_dropout mlp_dropout resid_pdrop attn_pdrop "
        "pooler_dropout cls_dropout dropout_rate classifier_dropout seq_classif_dropout "
        "rope_theta rope_local_base_freq "
        "global_rope_theta local_rope_theta rotary_emb_base rotary_emb_fraction "
        "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping "
        "partial_rotary_factor",
    ),
    (
        FLAG,
        "is_decoder is_causal use_bidirectional_attention use_sliding_window tie_word_embeddings "
        "attention_bias mlp_bias norm_bias output_hidden_states position_biased_input "
        "relative_attention share_att_key pack_qkv logn_attention_scale",
    ),
    (
        TEXT,
        "model_type hidden_act pooler_hidden_act hidden_activation activation "
        "activation_function feed_forward_proj "
        "_name_or_path position_embedding_type sbert_ce_default_activation_function "
        "norm_rel_ebd layer_norm_type",
    ),
    (TEXT_OR_TEXTS, "pos_att_type"),
    (TEXTS, "architectures layer_types"),
    (OBJECT, "rope_parameters rope_scaling id2label auto_map sentence_transformers"),
)
ROPE = _table(
    (TEXT, "rope_type type"),
    (SIZE, "original_max_position_embeddings"),
    (
        NUMBER,
        "rope_theta factor low_freq_factor high_freq_factor beta_fast beta_slow attention_factor "
        "mscale mscale_all_dim mixed_b partial_rotary_factor",
    ),
    (FLAG, "truncate"),
)
SETTINGS = _table(  # config_sentence_transformers.json
    (NAMED_TEXTS, "prompts"),
    (
        TEXT,
        "default_prompt_name similarity_fn_name instruction_template model_type activation_fn "
        "similarity_of_heads",
    ),
    (FLAG, "adaptive_layers"),
    (SIZE, "max_active_dims"),
)
PYLATE = SETTINGS | _table(  # the same file, as PyLate writes it
    (TEXT, "query_prefix document_prefix"),
    (SIZE, "query_length document_length"),
    (FLAG, "do_query_expansion attend_to_expansion_tokens"),
    (TEXTS, "skiplist_words"),
)
STANFORD = _table(  # artifact.metadata of Stanford's ColBERT
    (TEXT, "query_token_id doc_token_id"),
    (SIZE, "query_maxlen doc_maxlen"),
    (FLAG, "attend_to_mask_tokens mask_punctuation"),
)
TEXT_CONFIG = _table(  # sentence_bert_config.json
    (COUNT, "max_seq_length"),
    (SIZE, "query_length document_length"),
    (FLAG, "do_lower_case"),
    (TEXT, "transformer_task module_output_name"),
    (
        OBJECT,
        "modality_config processing_kwargs config_kwargs model_kwargs processor_kwargs "
        "config_args model_args tokenizer_args query_expansion",
    ),
)
EXPANSION = _table((TEXT, "strategy token"), (FLAG, "attend"), (SIZE, "length"))
PROCESSOR = TOKENIZER = _table((SIZE, "model_max_length"))
POOLING = _table(
    (TEXT_OR_TEXTS, "pooling_mode"),
    (
        FLAG,
        "include_prompt pooling_mode_cls_token pooling_mode_max_tokens pooling_mode_mean_tokens "
        "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken "
        "pooling_mode_first_last_mean",
    ),
)
MODULE = _table(
    (FLAG, "bias use_residual frozen"),
    (TEXT, "activation_function pooling_strategy path"),
    (NUMBER, "dropout"),
    (COUNT, "true_token_id false_token_id num_protected_tokens"),
    (NUMBER, "pool_factor"),
    (FLAG, "normalize_embeddings"),
    (TEXTS, "skiplist_words skiplist_tasks tasks"),
)
ADAPTER = _table(
    (SIZE, "r"),
    (NUMBER, "lora_alpha lora_dropout"),
    (FLAG, "use_rslora use_dora"),
    (TEXT, "peft_type task_type base_model_name_or_path bias"),
    (TEXTS, "modules_to_save"),
    (NAMED_NUMBERS, "rank_pattern alpha_pattern"),
)
ROUTER = _table((TEXT, "default_route"), (FLAG, "allow_empty_key"), (NAMED_TEXTS, "route_mappings"))


def check_fields(
    where: str, content: Mapping[str, Any], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """Checks the types of a JSON object's fields, and returns it with whole numbers as integers.

    >>> check_fields("config.json: ", {"hidden_size": 384.0}, {"hidden_size": SIZE})
    {'hidden_size': 384}

    Args:
        where: the start of messages: the file, and the object in it if it is not the whole file;
            ends with ": " or ".".
        content: the JSON object.
        kinds: the kind of each field that is read, one of KINDS.

    Raises:
        InputError: for a field of another type.
    """
    checked = dict(content)
    for name, kind in kinds.items():
        value = content.get(name)
        if value is None:
            continue
        if not KINDS[kind](value):
            raise InputError(f"{where}{name}: expected {kind}, found {value!r:.80}")
        if kind in (SIZE, COUNT, INDEX):
            checked[name] = int(value)
    return checked
