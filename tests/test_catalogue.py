"""The catalogue's models are read from their real config.json, or refused for its reason."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from embed_jax.catalogue import CATALOGUE, entry, line
from embed_jax.encoders.base import read_backbone
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.modules import read_modules, read_pooling
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.static import MAX_LENGTH, StaticConfig
from embed_jax.errors import InputError
from embed_jax.prompts import expected
from embed_jax.registry import REGISTRY
from embed_jax.sentence import load_sentence_encoder
from embed_jax.types import num_params

# fmt: off
BERT = {
    "model_type": "bert", "attention_probs_dropout_prob": 0.1, "classifier_dropout": None,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12,
    "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
    "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}
ROBERTA = BERT | {
    "model_type": "roberta", "bos_token_id": 0, "eos_token_id": 2, "hidden_size": 768,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514,
    "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
}
MPNET = {
    name: value
    for name, value in ROBERTA.items()
    if name not in ("position_embedding_type", "type_vocab_size")
}
MPNET |= {
    "model_type": "mpnet", "num_hidden_layers": 12, "relative_attention_num_buckets": 32,
    "vocab_size": 30527,
}
QWEN = {
    "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
    "max_position_embeddings": 131072, "max_window_layers": 21, "num_attention_heads": 12,
    "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 151646,
}
MISTRAL = {
    "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "vocab_size": 32000,
}
NOMIC = {
    "model_type": "nomic_bert", "activation_function": "swiglu", "attn_pdrop": 0.0, "causal": False,
    "embd_pdrop": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "n_embd": 768,
    "n_head": 12, "n_inner": 3072, "n_layer": 12, "n_positions": 8192,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "prenorm": False,
    "qkv_proj_bias": False, "resid_pdrop": 0.0, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
    "type_vocab_size": 2, "use_rms_norm": False, "vocab_size": 30528,
}
NEW = {
    "model_type": "new", "attention_probs_dropout_prob": 0.0, "classifier_dropout": None,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm", "logn_attention_clip1": False,
    "logn_attention_scale": False, "max_position_embeddings": 8192, "num_attention_heads": 12,
    "num_hidden_layers": 12, "pack_qkv": True, "pad_token_id": 0,
    "position_embedding_type": "rope", "rope_scaling": {"factor": 2.0, "type": "ntk"},
    "rope_theta": 500000, "type_vocab_size": 0, "unpad_inputs": False,
    "use_memory_efficient_attention": False, "vocab_size": 30528,
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Published:
    """Content of a model's files.

    Attributes:
        config: config.json, without the fields that do not describe the encoder; {} for a
            StaticEmbedding, which has no such file.
        parameters: number of parameters in the file, as the hub counts them.
        pooling: sentence-transformers' name of the pooling.
        max_seq_length: from sentence_bert_config.json; 0 without that file.
        dense: (in, out) of each Dense, without bias or activation, before `normalize`.
        normalize: the model ends with a Normalize module.
        other: number of parameters that the encoder does not read, such as those of BERT's pooler;
            below 0: number of parameters that only the encoder has, such as the norm before
            ModernBERT's first attention.
    """

    config: dict
    parameters: int
    pooling: str = "mean_tokens"
    max_seq_length: int = 0
    dense: tuple = ()
    normalize: bool = True
    other: int = 0


# fmt: off
PUBLISHED = {
    "sentence-transformers/all-MiniLM-L6-v2": Published(
        BERT, 22_713_216, max_seq_length=256, other=384 * 385
    ),
    "sentence-transformers/all-distilroberta-v1": Published(
        ROBERTA, 82_118_400, max_seq_length=512, other=768 * 769
    ),
    "sentence-transformers/all-mpnet-base-v2": Published(
        MPNET, 109_486_464, max_seq_length=384, other=768 * 769
    ),
    "sentence-transformers/multi-qa-distilbert-cos-v1": Published(
        {
            "model_type": "distilbert", "activation": "gelu", "attention_dropout": 0.1, "dim": 768,
            "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02,
            "max_position_embeddings": 512, "n_heads": 12, "n_layers": 6, "pad_token_id": 0,
            "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
        },
        66_362_880,
        max_seq_length=512,
    ),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Published(
        ROBERTA
        | {
            "model_type": "xlm-roberta", "hidden_size": 1024, "intermediate_size": 4096,
            "max_position_embeddings": 8194, "num_attention_heads": 16, "num_hidden_layers": 24,
            "vocab_size": 250002,
        },
        567_754_752,
        "cls_token",
        max_seq_length=8192,
        other=1024 * 1025,
    ),
    "nomic-ai/nomic-embed-text-v1.5": Published(
        NOMIC, 136_731_648, max_seq_length=8192, normalize=False
    ),
    "Alibaba-NLP/gte-base-en-v1.5": Published(
        NEW, 136_776_192, "cls_token", max_seq_length=8192, normalize=False
    ),
    "Alibaba-NLP/gte-large-en-v1.5": Published(
        NEW
        | {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 24, "rope_theta": 160000, "type_vocab_size": 2,
        },
        434_139_136,
        "cls_token",
        max_seq_length=8192,
        normalize=False,
    ),
    "Alibaba-NLP/gte-multilingual-base": Published(
        NEW
        | {
            "pad_token_id": 1, "rope_scaling": {"factor": 8.0, "type": "ntk"},
            "rope_theta": 20000, "type_vocab_size": 1, "vocab_size": 250048,
        },
        305_369_089,
        "cls_token",
        max_seq_length=8192,
        other=769,
    ),
    "Snowflake/snowflake-arctic-embed-m-v2.0": Published(
        NEW
        | {
            "model_type": "gte", "pad_token_id": 1, "rope_scaling": None, "rope_theta": 160000,
            "type_vocab_size": 1, "vocab_size": 250048,
        },
        305_368_320,
        "cls_token",
        max_seq_length=8192,
    ),
    "Alibaba-NLP/gte-modernbert-base": Published(
        {
            "model_type": "modernbert", "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 50281, "classifier_pooling": "mean", "cls_token_id": 50281,
            "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0, "hidden_activation": "gelu", "hidden_size": 768,
            "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
            "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
            "mlp_bias": False, "mlp_dropout": 0.0, "norm_bias": False, "norm_eps": 1e-05,
            "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
            "position_embedding_type": "absolute", "sep_token_id": 50282, "vocab_size": 50368,
        },
        149_014_272,
        "cls_token",
        max_seq_length=8192,
        normalize=False,
        other=-768,
    ),
    "sentence-transformers/gtr-t5-base": Published(
        {
            "model_type": "t5", "d_ff": 3072, "d_kv": 64, "d_model": 768,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
            "feed_forward_proj": "relu", "initializer_factor": 1.0, "is_encoder_decoder": True,
            "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_decoder_layers": 12,
            "num_heads": 12, "num_layers": 12, "pad_token_id": 0,
            "relative_attention_num_buckets": 32, "vocab_size": 32128,
        },
        110_218_368,
        max_seq_length=512,
        dense=((768, 768),),
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": Published(
        QWEN | {"is_causal": False}, 1_543_268_864, "lasttoken", max_seq_length=32768
    ),
    "Qwen/Qwen3-Embedding-0.6B": Published(
        QWEN
        | {
            "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_size": 1024,
            "intermediate_size": 3072, "max_position_embeddings": 32768, "max_window_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "rope_scaling": None,
            "tie_word_embeddings": True, "vocab_size": 151669,
        },
        595_776_512,
        "lasttoken",
    ),
    "intfloat/e5-mistral-7b-instruct": Published(
        MISTRAL, 7_110_660_096, "lasttoken", max_seq_length=32768
    ),
    "google/embeddinggemma-300m": Published(
        {
            "model_type": "gemma3_text", "_sliding_window_pattern": 6, "attention_bias": False,
            "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2,
            "eos_token_id": 1, "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 768, "initializer_range": 0.02,
            "intermediate_size": 1152,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4,
            "max_position_embeddings": 2048, "num_attention_heads": 3, "num_hidden_layers": 24,
            "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
            "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": True,
            "vocab_size": 262144,
        },
        307_581_696,
        max_seq_length=2048,
        dense=((768, 3072), (3072, 768)),
    ),
    "sentence-transformers/static-retrieval-mrl-en-v1": Published({}, 31_254_528, normalize=False),
}
REFUSED = {  # config.json, and what of it the message must name
    "nomic-ai/nomic-embed-text-v2-moe": (
        NOMIC
        | {
            "activation_function": "gelu", "mlp_fc1_bias": True, "mlp_fc2_bias": True,
            "moe_every_n_layers": 2, "num_experts": 8, "qkv_proj_bias": True, "vocab_size": 250048,
        },
        "num_experts 8",
    ),
    "jinaai/jina-embeddings-v2-base-en": (
        BERT
        | {
            "hidden_size": 768, "max_position_embeddings": 8192,
            "position_embedding_type": "alibi",
        },
        "'alibi'",
    ),
    "jinaai/jina-embeddings-v3": (
        ROBERTA
        | {
            "model_type": "xlm-roberta",
            "lora_adaptations": [
                "retrieval.query", "retrieval.passage", "separation", "classification",
            ],
            "max_position_embeddings": 8194, "position_embedding_type": "rotary",
        },
        "'rotary'",
    ),
    "nvidia/NV-Embed-v2": (
        {
            "model_type": "nvembed", "hidden_size": 4096,
            "latent_attention_config": {"model_type": "latent_attention"},
            "text_config": {"model_type": "bidir_mistral"},
        },
        "'nvembed'",
    ),
}
# fmt: on
# transformers has no class for the others, which test_gte.py compares with their architecture.
WITH_PEER = [name for name in PUBLISHED if entry(name).architecture not in ("new", "gte")]
SMALL = {"vocab_size": 320}
for names, size in (
    (("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layers", "n_layer"), 2),
    (("hidden_size", "d_model", "dim", "n_embd"), 32),
    (("num_attention_heads", "num_heads", "n_heads", "n_head"), 4),
    (("num_key_value_heads",), 2),
    (("intermediate_size", "d_ff", "hidden_dim", "n_inner"), 48),
    (("head_dim", "d_kv"), 8),
):
    SMALL |= dict.fromkeys(names, size)


def shrunken(published):
    """Returns the same model with few and small layers."""
    config = published.config | {
        name: size for name, size in SMALL.items() if name in published.config
    }
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][-2:]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if config.get(name, 0) >= SMALL["vocab_size"]:
            config[name] = 0
    width = {768: 32, 3072: 64}
    return dataclasses.replace(
        published, config=config, dense=tuple((width[i], width[o]) for i, o in published.dense)
    )


def write(directory, published, rng=None):
    """Writes the model's directory without the weights of its transformer.

    With `rng`, its other modules get random weights.
    """

    def put(name, value):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(value))

    if not published.config:
        kind, folder = "sentence_transformers.models.StaticEmbedding", "0_StaticEmbedding"
        put("modules.json", [{"idx": 0, "name": "0", "path": folder, "type": kind}])
        (directory / folder).mkdir()
        if rng is not None:
            table = rng.normal(0, 0.2, (SMALL["vocab_size"], SMALL["hidden_size"])).astype(
                np.float32
            )
            save_file({"embedding.weight": table}, directory / folder / "model.safetensors")
        return
    put("config.json", published.config)
    kinds = [
        "Transformer",
        "Pooling",
        *["Dense"] * len(published.dense),
        *["Normalize"] * published.normalize,
    ]
    folders = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    entries = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
    ]
    put("modules.json", entries)
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    sizes = ("hidden_size", "d_model", "dim", "n_embd")
    pooling = {
        "word_embedding_dimension": next(
            published.config[name] for name in sizes if name in published.config
        )
    }
    put(
        "1_Pooling/config.json",
        pooling | {f"pooling_mode_{mode}": mode == published.pooling for mode in modes},
    )
    for folder, (inner, outer) in zip(folders[2:], published.dense, strict=False):
        dense = {"in_features": inner, "out_features": outer, "bias": False}
        put(
            f"{folder}/config.json",
            dense | {"activation_function": "torch.nn.modules.linear.Identity"},
        )
        if rng is not None:
            weight = rng.normal(0, 0.2, (outer, inner)).astype(np.float32)
            save_file({"linear.weight": weight}, directory / folder / "model.safetensors")
    if published.normalize:
        (directory / folders[-1]).mkdir()
    if published.max_seq_length:
        put(
            "sentence_bert_config.json",
            {"max_seq_length": published.max_seq_length, "do_lower_case": False},
        )


def torch_model(config):
    """A random model of transformers' class."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = dict(config)
    kind = fields.pop("model_type")
    if kind == "nomic_bert":  # its own config.json has other names
        ours = {
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
        }
        ours |= {"n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}
        ours |= {"layer_norm_epsilon": "layer_norm_eps", "vocab_size": "vocab_size"}
        fields = {reference: config[name] for name, reference in ours.items()}
        fields |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": config["rotary_emb_base"]}
        }
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(kind, **fields)
    model = (transformers.T5EncoderModel if kind == "t5" else transformers.AutoModel.from_config)(
        made
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def test_names_are_found_as_people_write_them():
    assert len({model.name.split("/")[1].lower() for model in CATALOGUE}) == len(CATALOGUE)
    for model in CATALOGUE:
        last = model.name.split("/")[1]
        assert entry(model.name) is entry(last) is entry(f"/models/{last.upper()}/") is model
        assert entry(f"my-{last}") is entry(f"{last}-finetuned") is None
    assert entry("") is None


def test_every_line_is_one_and_whole():
    for model in CATALOGUE:
        text = line(model)
        assert "\n" not in text and text.startswith(
            f"{model.name}: {model.architecture}, {model.dim} dimensions"
        )
        assert (
            model.average is None or f"{model.average.benchmark} {model.average.value:g} (" in text
        )
        assert all(remark in text for remark in (model.note, model.refused))
    e5, gemma, static = map(entry, ("e5-base-v2", "embeddinggemma-300m", "potion-base-8M"))
    assert "prompts for query, passage; MTEB(eng, v1) 61.5 (BGE README)" in line(e5)
    assert "an instruction; MTEB(eng, v2) 69.67 (model card)" in line(gemma)
    assert "any number of tokens, mean pooling, no prompts; no verified MTEB average" in line(
        static
    )


def test_what_loads_is_of_a_known_architecture_and_family():
    loaded = [model for model in CATALOGUE if not model.refused]
    assert {model.architecture for model in loaded} <= REGISTRY["backbone"].keys()
    assert [model.name for model in loaded if expected(model.name) is None] == []
    assert {model.architecture for model in loaded} == {
        entry(name).architecture for name in PUBLISHED
    }
    assert {model.name for model in CATALOGUE if model.refused} == REFUSED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_config_is_the_published_model(name, tmp_path):
    published, model = PUBLISHED[name], entry(name)
    write(tmp_path, published)
    heads = tuple(Dense(inner, outer, False, "identity") for inner, outer in published.dense)
    heads += (Normalize(),) * published.normalize
    if published.config:
        folders = read_modules(tmp_path)
        backbone, _, config = read_backbone(tmp_path / folders[0][1])
        pooling, _ = read_pooling(tmp_path / folders[1][1] / "config.json")
        assert (config["model_type"], pooling) == (model.architecture, model.pooling)
        assert (
            min(published.max_seq_length or backbone.max_length, backbone.max_length)
            == model.max_tokens
        )
    else:
        backbone, pooling = StaticConfig(vocab_size=30522, hidden_size=model.dim), model.pooling
    encoder = build_encoder(EncoderSpec(backbone, pooling, heads))
    assert encoder.dim == model.dim
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    assert num_params(shapes) == published.parameters - published.other


@pytest.mark.parametrize("name", WITH_PEER)
def test_a_shrunken_copy_equals_sentence_transformers(name, tmp_path, bpe_tokenizer, sentences):
    peer = pytest.importorskip("sentence_transformers")
    published, model = shrunken(PUBLISHED[name]), entry(name)
    write(tmp_path, published, np.random.default_rng(0))
    shutil.copytree(bpe_tokenizer(), tmp_path / read_modules(tmp_path)[0][1], dirs_exist_ok=True)
    if published.config:
        torch_model(published.config).save_pretrained(tmp_path)  # with transformers' config.json
    texts = sentences[:4]
    expected = peer.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    if published.config:
        (tmp_path / "config.json").write_text(json.dumps(published.config))
    loaded = load_sentence_encoder(tmp_path)
    assert (loaded.max_length, loaded.spec.pooling) == (
        model.max_tokens or MAX_LENGTH,
        model.pooling,
    )
    np.testing.assert_allclose(loaded.encode(texts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_load_is_refused_in_one_line_for_the_reason_given(name, tmp_path):
    config, reason = REFUSED[name]
    model = entry(name)
    assert config["model_type"] == model.architecture and reason in model.refused
    write(tmp_path, Published(config, 0))
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        read_model(tmp_path)
    assert "\n" not in str(error.value)


def test_decoders_that_attend_both_ways_need_a_field_of_their_config(tmp_path):
    noted = [model for model in CATALOGUE if '"is_causal": false' in model.note]
    assert {model.architecture for model in noted} == {"qwen2", "mistral"}
    for config in (QWEN, MISTRAL):
        for field, causal in (({}, True), ({"is_causal": False}, False)):
            (tmp_path / "config.json").write_text(json.dumps(config | field))
            assert read_backbone(tmp_path)[0].causal == causal
