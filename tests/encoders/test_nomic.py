"""NomicBERT's files, old and new, and its rotary positions.

Its equality with torch's class is tested in test_bert.py.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import LayerNorm, Normalize
from embed_jax.encoders.layers import rotate
from embed_jax.encoders.nomic import NomicConfig
from embed_jax.encoders.read import read_model
from embed_jax.encoders.rope import Rope, rope_rotation
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.registry import lookup

FAMILY = lookup("backbone", "nomic_bert")
NEW_CONFIG = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
}
OLD_CONFIG = {
    "model_type": "nomic_bert",
    "vocab_size": 60,
    "type_vocab_size": 2,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 64,
    "n_positions": 32,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-12,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
}
CONFIG = NomicConfig(
    vocab_size=60,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_positions=32,
    rope=Rope(1000.0),
)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@dataclasses.dataclass
class Tokenizer:
    directory: object

    def save(self, directory):
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def new_tensors(torch_models):
    """Tensors under transformers' names, as in its module."""
    return {
        name: value.numpy() for name, value in torch_models["nomic_bert"][0].state_dict().items()
    }


@pytest.fixture(scope="module")
def old_tensors(new_tensors):
    """The same tensors in the layout first published.

    It has other names, and one tensor for queries, keys and values.
    """
    old = {
        "embeddings.word_embeddings.weight": new_tensors["embeddings.word_embeddings.weight"],
        "embeddings.token_type_embeddings.weight": new_tensors[
            "embeddings.token_type_embeddings.weight"
        ],
        "emb_ln.weight": new_tensors["embeddings.LayerNorm.weight"],
        "emb_ln.bias": new_tensors["embeddings.LayerNorm.bias"],
    }
    for number in range(2):
        layer = {
            name.removeprefix(f"layers.{number}."): value for name, value in new_tensors.items()
        }
        fused = np.concatenate([layer[f"self_attn.{name}_proj.weight"] for name in "qkv"])
        renamed = {
            "attn.Wqkv.weight": fused,
            "attn.out_proj.weight": layer["self_attn.o_proj.weight"],
            "mlp.fc11.weight": layer["mlp.up_proj.weight"],
            "mlp.fc12.weight": layer["mlp.gate_proj.weight"],
            "mlp.fc2.weight": layer["mlp.down_proj.weight"],
        }
        for leaf in ("weight", "bias"):
            renamed[f"norm1.{leaf}"] = layer[f"post_attention_layernorm.{leaf}"]
            renamed[f"norm2.{leaf}"] = layer[f"post_mlp_layernorm.{leaf}"]
        old |= {f"encoder.layers.{number}.{name}": value for name, value in renamed.items()}
    return old


def write(directory, config, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "nomic_bert"} | config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_both_layouts_are_one_model(torch_models, new_tensors, old_tensors, tmp_path):
    """Reads old names, old names beside a new config (transformers' files), and new names."""
    saved = read_model(torch_models["nomic_bert"][1])
    assert saved.spec.backbone == CONFIG and saved.max_length == 32
    for number, (config, tensors) in enumerate(
        [(OLD_CONFIG, old_tensors), (NEW_CONFIG, new_tensors), (OLD_CONFIG, new_tensors)]
    ):
        result = read_model(write(tmp_path / str(number), config, tensors))
        assert result.spec == saved.spec
        jax.tree.map(np.testing.assert_array_equal, result.params, saved.params)


def test_names_of_a_bigger_model(old_tensors, tmp_path):
    tensors = {f"bert.{name}": value for name, value in old_tensors.items()}
    tensors |= {"cls.predictions.decoder.bias": np.zeros(60, np.float32)}
    tensors |= {
        f"encoder.layers.{i}.attn.rotary_emb.inv_freq": np.zeros(4, np.float32) for i in range(2)
    }
    result = read_model(write(tmp_path / "bigger", OLD_CONFIG, tensors))
    expected = read_model(write(tmp_path / "plain", OLD_CONFIG, old_tensors))
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)


def test_torch_reads_what_we_write(torch_models, tiny_tokenizer, ids, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    model, directory = torch_models["nomic_bert"]
    saved = read_model(directory)
    write_model(
        tmp_path / "ours",
        saved.spec,
        saved.params,
        tokenizer=Tokenizer(tiny_tokenizer),
        max_length=32,
    )
    again = read_model(tmp_path / "ours")
    assert again.spec == saved.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, saved.params)

    read, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(read) is type(model) and not any(report.values())
    tokens = torch.tensor(ids[2][None])
    with torch.no_grad():
        expected, result = (m.eval()(tokens).last_hidden_state.numpy() for m in (model, read))
    np.testing.assert_array_equal(result, expected)


def test_sentence_transformers_reads_what_we_write(
    torch_model, tiny_tokenizer, make_batch, tmp_path
):
    """The model has the layer normalisation that nomic-embed-text-v1.5 needs before a cut."""
    peer = pytest.importorskip("sentence_transformers")
    from transformers import AutoTokenizer

    torch_model("nomic_bert", vocab_size=200).save_pretrained(tmp_path / "plain")
    backbone = read_model(tmp_path / "plain")
    spec = dataclasses.replace(backbone.spec, heads=(LayerNorm(32), Normalize()))
    scale, bias = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    params = {**backbone.params, "heads": {"0": {"scale": scale, "bias": bias}}}
    write_model(tmp_path / "ours", spec, params, tokenizer=Tokenizer(tiny_tokenizer), max_length=32)
    model = peer.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    model.save(str(tmp_path / "theirs"))
    for name in ("ours", "theirs"):
        saved = read_model(tmp_path / name)
        assert saved.spec == spec
        jax.tree.map(np.testing.assert_array_equal, saved.params, params)

    texts = ["a dog runs in the city", "music", "", "she plays the red guitar, very quickly"]
    ids = AutoTokenizer.from_pretrained(tiny_tokenizer)(texts)["input_ids"]
    tokens = make_batch([[(i, x)] for i, x in enumerate(ids)], 16, len(ids))
    result = jax.jit(build_encoder(spec).apply, compiler_options=QUICKLY)(params, tokens)
    np.testing.assert_allclose(result, model.encode(texts), atol=1e-5)

    edit = {"norm.weight": scale[:-1].copy(), "norm.bias": bias}
    save_file(edit, tmp_path / "ours" / "2_LayerNorm" / "model.safetensors")
    with pytest.raises(InputError, match="2_LayerNorm.*norm.weight.*31"):
        read_model(tmp_path / "ours")


def test_token_types_equal_torch(torch_models, ids, make_batch, states):
    torch = pytest.importorskip("torch")

    model, directory = torch_models["nomic_bert"]
    saved = read_model(directory)
    tokens = make_batch([[(0, ids[0]), (1, ids[4])]], 16, 2)
    segment = (np.asarray(tokens.position) > 3).astype(np.int32)
    apply = jax.jit(FAMILY.module(saved.spec.backbone).apply, compiler_options=QUICKLY)
    result = apply({"params": saved.params["backbone"]}, tokens.replace(segment=segment))
    for ours, x in zip(states(result, tokens), (ids[0], ids[4]), strict=True):
        types = torch.arange(len(x))[None] > 3
        with torch.no_grad():
            expected = model(torch.tensor(x[None]), token_type_ids=types.long()).last_hidden_state[
                0
            ]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


WQKV = "encoder.layers.1.attn.Wqkv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{WQKV}.weight"),
            rf"missing tensor '{WQKV}.weight' \(shape \(96, 32\)\)",
        ),
        (
            lambda t: t.update({f"{WQKV}.weight": t[f"{WQKV}.weight"][:-1].copy()}),
            rf"'{WQKV}.weight' has shape \(95, 32\), config.json wants \(96, 32\)",
        ),
        (
            lambda t: t.update({f"{WQKV}.bias": np.zeros(96, np.float32)}),
            f"unexpected tensor '{WQKV}.bias'",
        ),
        (
            lambda t: t.update({f"bert.{WQKV}.weight": t[f"{WQKV}.weight"]}),
            f"'{WQKV}.weight' stands there twice",
        ),
        (
            lambda t: t.update(
                {"layers.1.self_attn.q_proj.weight": t["encoder.layers.1.attn.out_proj.weight"]}
            ),
            "unexpected tensor 'layers.1.self_attn.q_proj.weight'",
        ),
    ],
)
def test_tensors_that_do_not_fit(old_tensors, tmp_path, change, message):
    tensors = dict(old_tensors)
    change(tensors)
    with pytest.raises(InputError, match=message) as error:
        read_model(write(tmp_path / "model", OLD_CONFIG, tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (OLD_CONFIG, {"prenorm": True}, "prenorm True is not supported; only False is"),
        (OLD_CONFIG, {"qkv_proj_bias": True}, "qkv_proj_bias True"),
        (
            OLD_CONFIG,
            {"mlp_fc1_bias": None},
            "mlp_fc1_bias True",
        ),  # what it means that a field is not there
        (
            OLD_CONFIG,
            {"rotary_emb_fraction": None},
            "rotary_emb_fraction 0.0 is not supported; only 1.0 is",
        ),
        (OLD_CONFIG, {"rotary_emb_interleaved": True}, "rotary_emb_interleaved True"),
        (
            OLD_CONFIG,
            {"rotary_scaling_factor": 2},
            "rotary_scaling_factor 2 is not supported; only None is",
        ),
        (
            OLD_CONFIG,
            {"activation_function": "geglu"},
            "activation_function 'geglu'.*only 'swiglu'",
        ),
        (OLD_CONFIG, {"n_inner": None}, "missing n_inner"),
        (
            NEW_CONFIG,
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_parameters.rope_type 'yarn'",
        ),
        (
            NEW_CONFIG,
            {"rope_scaling": {"type": "linear"}, "rope_parameters": None},
            "rope_scaling.rope_type 'linear'",
        ),
        (NEW_CONFIG, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (NEW_CONFIG, {"hidden_act": "swish7"}, "unknown activation 'swish7'"),
        (NEW_CONFIG, {"head_dim": 16}, "head_dim 16 is not supported; only 8 is"),
        (NEW_CONFIG, {"num_attention_heads": 5}, "hidden size 32 makes no 5 heads"),
        (NEW_CONFIG, {"causal": True}, "causal True"),
        (NEW_CONFIG, {"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_unsupported_config(config, change, message):
    assert FAMILY.read_config(config) == CONFIG
    with pytest.raises(InputError, match=message) as error:
        FAMILY.read_config(config | change)
    assert "\n" not in str(error.value)


def test_config_round_trip():
    config = dataclasses.replace(
        CONFIG, rope=Rope(50.0), hidden_dropout=0.1, activation="gelu", pad_token_id=3
    )
    assert FAMILY.read_config(FAMILY.write_config(config)) == config


def test_rotated_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 8)).astype(np.float32)

    def products(queries, keys):
        rows = [
            rotate(
                np.tile(x, (1, len(at), 1, 1)), rope_rotation(np.asarray(at)[None], 8, Rope(1000.0))
            )[0, :, 0]
            for x, at in ((query, queries), (key, keys))
        ]
        return np.sum(rows[0] * rows[1], axis=-1)

    at = np.arange(40)
    for distance in (0, 1, 7):
        result = products(at, at + distance)
        np.testing.assert_allclose(result, result[0], atol=1e-4)
    by_distance = products(np.zeros(40, int), at)
    np.testing.assert_allclose(by_distance[0], query @ key, rtol=1e-5)
    assert np.abs(np.diff(by_distance)).min() > 1e-4, "and they do depend on it"


def test_states_do_not_change_when_positions_are_shifted(torch_models, packed, states):
    """Sentences may begin anywhere in a row, as positions come from the batch.

    Only distances between positions count.
    """
    saved = read_model(torch_models["nomic_bert"][1])
    module = FAMILY.module(saved.spec.backbone)
    run = jax.jit(
        lambda params, tokens: module.apply({"params": params}, tokens), compiler_options=QUICKLY
    )

    def at(position):
        return states(run(saved.params["backbone"], packed.replace(position=position)), packed)

    expected = at(packed.position)
    for ours, reference in zip(at(packed.position + 9), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)
    assert (
        max(np.abs(a - b).max() for a, b in zip(at(2 * packed.position), expected, strict=True))
        > 1e-3
    )


@pytest.mark.slow
def test_recomputed_layers_have_the_same_gradient(packed):
    """Recomputed layers have the same gradient."""
    spec = random_spec("nomic-tiny", vocab_size=60)
    spec = dataclasses.replace(
        spec, backbone=dataclasses.replace(spec.backbone, hidden_dropout=0.2)
    )
    params = build_encoder(spec).init(jax.random.key(0))
    weight = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)

    def gradient(**options):
        encoder = build_encoder(spec, unroll=1, attention="xla", **options)
        loss = jax.grad(lambda p: (encoder.apply(p, packed, jax.random.key(1)) * weight).sum())
        return jax.jit(loss, compiler_options=QUICKLY)(params)

    result, expected = gradient(remat="layer"), gradient()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), result, expected
    )


def test_copies_of_an_example_have_one_dropout_mask(ids, make_batch):
    spec = random_spec("nomic-tiny", vocab_size=60)
    rates = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "initializer_range": 0.2}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **rates))
    tokens = make_batch([[(0, ids[0]), (3, ids[4])], [(1, ids[4])], [(2, ids[0])]], sentences=4)
    params = build_encoder(spec).init(jax.random.key(0))

    def embed(**options):
        encoder = build_encoder(spec, unroll=1, attention="xla", **options)
        return jax.jit(encoder.apply, compiler_options=QUICKLY)(params, tokens, jax.random.key(3))

    shared, own = embed(same_mask_columns=2), embed()
    np.testing.assert_allclose(shared[:2], shared[2:], atol=1e-6)
    assert np.abs(own[:2] - own[2:]).max() > 1e-2
