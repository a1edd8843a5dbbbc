"""Decoders' config.json: published files give the known shapes; written files are read again."""

import dataclasses
import json
import warnings

import jax
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.decoder import FULL, SLIDING
from embed_jax.encoders.decoder_shapes import SHAPES as DECODERS
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.errors import InputError
from embed_jax.registry import lookup

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD_QWEN = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
PUBLISHED = {  # fields of the files as published, without those that say nothing of the encoder
    "llama2-7b": {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "llama3.2-1b": {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "qwen2-7b": OLD_QWEN
    | {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "qwen3-0.6b": OLD_QWEN
    | {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma-2b": {
        "model_type": "gemma",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 256,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 16384,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "gemma2-2b": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "initializer_range": 0.02,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma3-300m": {
        "model_type": "gemma3_text",
        "_sliding_window_pattern": 6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 1152,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4,
        "max_position_embeddings": 2048,
        "num_attention_heads": 3,
        "num_hidden_layers": 24,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "vocab_size": 262144,
    },
}
PARAMETERS = {  # as published, where there is a separate output layer without it
    "llama2-7b": 6_738_415_616 - 32000 * 4096,
    "llama3-8b": 8_030_261_248 - 128256 * 4096,
    "llama3.2-1b": 1_235_814_400,
    "sheared-llama-1.3b": 1_345_423_360 - 32000 * 2048,
    "mistral-7b": 7_241_732_096 - 32000 * 4096,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512 - 152064 * 3584,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360 - 151936 * 4096,
    "gemma-2b": 2_506_172_416,
    "gemma2-2b": 2_614_341_888,
    "gemma3-300m": 307_581_696 - 2 * 768 * 3072,
}


def read_config(fields):
    return lookup("backbone", fields["model_type"]).read_config(fields)


def write_config(config):
    return {"model_type": config.family} | lookup("backbone", config.family).write_config(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_well_known_shapes(name):
    assert read_config(PUBLISHED[name]) == DECODERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_well_known_shapes_have_the_published_parameters(name):
    shapes = jax.eval_shape(build_encoder(EncoderSpec(DECODERS[name])).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
    assert PARAMETERS.keys() | {"decoder-tiny", "decoder-small"} == DECODERS.keys()


@pytest.mark.parametrize("name", DECODERS)
def test_config_round_trip(name):
    rope = dataclasses.replace(DECODERS["llama3.2-1b"].rope, theta=50.0)
    changes = {
        "rope": rope,
        "attention_dropout": 0.3,
        "hidden_dropout": 0.1,
        "pad_token_id": 3,
        "tied": False,
    }
    for changed in ({}, changes, {"causal": not DECODERS[name].causal}):
        config = dataclasses.replace(DECODERS[name], **changed)
        fields = json.loads(json.dumps(write_config(config)))
        assert read_config(fields) == config
        assert ("hidden_dropout" in fields) == bool(config.hidden_dropout)
        fields.pop("rope_parameters")  # transformers 4 has none
        assert read_config(fields) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_transformers_has_as_many_parameters(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**write_config(DECODERS[name]))
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    shapes = jax.eval_shape(build_encoder(EncoderSpec(DECODERS[name])).init, jax.random.key(0))
    assert sum(p.numel() for p in model.parameters()) == sum(
        leaf.size for leaf in jax.tree.leaves(shapes)
    )


def test_what_a_file_leaves_unsaid():
    short = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    short |= {"intermediate_size": 8, "max_position_embeddings": 32}

    def read(family, **fields):
        return read_config({"model_type": family, **short, **fields})

    assert (read("llama").num_kv_heads, read("llama").head_size, read("llama").rms_norm_eps) == (
        4,
        16,
        1e-6,
    )
    assert (
        read("mistral").window == 4096 and read("mistral", sliding_window=None).kinds == (FULL,) * 4
    )
    windows = {"use_sliding_window": True, "sliding_window": 8}
    assert read("qwen2", sliding_window=8).kinds == read("qwen2", **windows).kinds == (FULL,) * 4
    assert read("qwen2", **windows, max_window_layers=3).kinds == (FULL, FULL, FULL, SLIDING)
    assert read("qwen3").head_size == 128
    assert read("gemma2").kinds == (SLIDING, FULL) * 2
    assert (read("gemma2").softcap, read("gemma2", attn_logit_softcapping=None).softcap) == (
        50.0,
        None,
    )
    assert read("gemma3_text", sliding_window_pattern=3).kinds == (SLIDING, SLIDING, FULL, SLIDING)
    local = read(
        "gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=5.0
    )
    assert (
        local.rope.theta,
        local.rope.factor,
        local.local_rope.theta,
        local.local_rope.factor,
    ) == (1e6, 8, 5, None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama2-7b", {"hidden_size": None}, "missing hidden_size"),
        ("llama2-7b", {"hidden_act": "swish7"}, "unknown activation 'swish7'"),
        ("llama2-7b", {"num_key_value_heads": 3}, "3 heads of keys cannot serve 32 of queries"),
        ("llama2-7b", {"head_dim": 5}, "expected heads of an even size, found 5"),
        (
            "llama2-7b",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic' is not supported; accepted are",
        ),
        (
            "mistral-7b",
            {"sliding_window": 0},
            "sliding_window: expected a number of tokens, found 0",
        ),
        (
            "qwen2-7b",
            {"layer_types": ["sliding_attention"] * 28},
            "sliding_window: expected a number of tokens.* found None",
        ),
        (
            "gemma2-2b",
            {"sliding_window": None},
            "sliding_window: expected a number of tokens, found None",
        ),
        ("gemma2-2b", {"layer_types": ["full_attention"]}, "layer_types: expected 26, found 1"),
        (
            "gemma2-2b",
            {"layer_types": ["chunked"] * 26},
            "layer_types: unknown type 'chunked'.*full_attention",
        ),
        (
            "gemma2-2b",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention True is not supported",
        ),
        (
            "gemma3-300m",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping 50.0 is not supported; only None is",
        ),
    ],
)
def test_unsupported_config(name, change, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(PUBLISHED[name] | change)
    assert "\n" not in str(error.value)


def test_layer_types_of_another_number_of_layers():
    with pytest.raises(
        InputError, match="layer_types: expected one for each of 2 layers, found 26"
    ):
        dataclasses.replace(DECODERS["gemma2-2b"], num_layers=2).kinds  # noqa: B018


def test_code_that_is_not_run_is_warned_of():
    """Such code may attend both ways, and only the field is_causal states it."""
    family, result = (
        lookup("backbone", "mistral"),
        {**PUBLISHED["llama2-7b"], "model_type": "mistral"},
    )
    with pytest.warns(UserWarning, match=r"auto_map.*read as causal.*\"is_causal\": false"):
        family.read_config({**result, "auto_map": {"AutoModel": "modeling.Model"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family.read_config(result)
        assert not family.read_config(
            {**result, "auto_map": {"AutoModel": "modeling.Model"}, "is_causal": False}
        ).causal
