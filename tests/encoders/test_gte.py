"""GTE equals the published architecture, written here a second time in torch; its files.

transformers has no class for it, and the code on the hub is not run.
"""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Dropout
from embed_jax.encoders.nomic import NomicConfig
from embed_jax.encoders.read import read_model
from embed_jax.encoders.read_classifier import read_classifier
from embed_jax.encoders.rope import Rope, frequencies
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.weights import params_from_tensors
from embed_jax.encoders.write import write_model
from embed_jax.encoders.write_classifier import write_classifier
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import num_params

FAMILY = lookup("backbone", "new")
FIELDS = {
    "model_type": "new",
    "architectures": ["NewModel"],
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 2.0, "type": "ntk"},
    "rope_theta": 500.0,
    "type_vocab_size": 0,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
CONFIG = NomicConfig(
    family="new",
    vocab_size=60,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    max_positions=32,
    rope=Rope(500.0, "ntk", factor=2.0),
    type_vocab_size=0,
    use_bias=True,
    activation="gelu",
    hidden_dropout=0.1,
    inner_dropout=0.1,
)
VARIANTS = {
    "gte-base-en-v1.5": {},
    "gte-multilingual-base": {
        "type_vocab_size": 1,
        "rope_theta": 200.0,
        "rope_scaling": {"factor": 8.0, "type": "ntk"},
    },
    "arctic-embed-m-v2.0": {"model_type": "gte", "type_vocab_size": 1, "rope_scaling": None},
    "mixed scaling, two types, three projections": {
        "type_vocab_size": 2,
        "rope_scaling": {"factor": 4.0, "type": "ntk", "mixed_b": 0.6},
        "pack_qkv": False,
    },
}
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def make_tensors(fields):
    """Random tensors under the published names; biases and norms random too."""
    size, inner = fields["hidden_size"], fields["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (fields["vocab_size"], size)}
    if fields["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (fields["type_vocab_size"], size)

    def add(name, *shape):
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    add("embeddings.LayerNorm", size)
    for number in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        if fields["pack_qkv"]:
            add(f"{layer}.attention.qkv_proj", 3 * size, size)
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                add(f"{layer}.attention.{name}", size, size)
        add(f"{layer}.attention.o_proj", size, size)
        shapes[f"{layer}.mlp.up_gate_proj.weight"] = (2 * inner, size)
        add(f"{layer}.mlp.down_proj", size, inner)
        add(f"{layer}.attn_ln", size)
        add(f"{layer}.mlp_ln", size)
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def reference(fields, tensors, ids, types=None):
    """Returns the states [T, D] of one text by the published architecture, in torch."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torch.nn.functional")

    def linear(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(x, name):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, fields["layer_norm_eps"])

    heads = fields["num_attention_heads"]
    half = fields["hidden_size"] // heads // 2
    wave = fields["rope_theta"] ** (-np.arange(half) / half)
    if fields["rope_scaling"]:
        factor, b = fields["rope_scaling"]["factor"], fields["rope_scaling"].get("mixed_b")
        if b is None:
            base = fields["rope_theta"] * factor
            wave = base ** (-np.arange(half) / half) / factor ** (1 / half)
        else:
            wave = wave / np.exp(np.log(factor) / half**b * np.arange(1, half + 1) ** b)
    angle = np.arange(len(ids))[:, None] * wave
    turn = torch.tensor(np.exp(1j * angle)).to(torch.complex64)[:, None]

    def rotate(x):
        turned = torch.complex(*x.split(half, dim=-1)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = tensors["embeddings.word_embeddings.weight"][torch.tensor(ids)]
    if fields["type_vocab_size"]:
        types = np.zeros(len(ids), int) if types is None else types
        x = x + tensors["embeddings.token_type_embeddings.weight"][torch.tensor(types)]
    x = norm(x, "embeddings.LayerNorm")
    for number in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        if fields["pack_qkv"]:
            parts = linear(x, f"{layer}.attention.qkv_proj").chunk(3, dim=-1)
        else:
            parts = [linear(x, f"{layer}.attention.{name}_proj") for name in "qkv"]
        query, key, value = (part.reshape(len(ids), heads, 2 * half) for part in parts)
        scores = torch.einsum("qhd,khd->hqk", rotate(query), rotate(key)) / (2 * half) ** 0.5
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value).reshape(x.shape)
        x = norm(x + linear(mixed, f"{layer}.attention.o_proj"), f"{layer}.attn_ln")
        up, gate = linear(x, f"{layer}.mlp.up_gate_proj").chunk(2, dim=-1)
        outer = linear(functional.gelu(gate) * up, f"{layer}.mlp.down_proj")
        x = norm(x + outer, f"{layer}.mlp_ln")
    return x


def write(directory, fields, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_published_architecture(name, ids, packed, states, tmp_path):
    """States to 1e-4 and gradients to 1e-4 relative, with several sentences in a row."""
    torch = pytest.importorskip("torch")
    fields = FIELDS | VARIANTS[name]
    tensors = make_tensors(fields)
    saved = read_model(write(tmp_path / "model", fields, tensors))
    weight = np.random.default_rng(2).normal(size=(16, 32)).astype(np.float32)  # by position
    peer = {name: torch.tensor(value, requires_grad=True) for name, value in tensors.items()}
    expected = [reference(fields, peer, x) for x in ids]
    sum((e * torch.tensor(weight[: len(e)])).sum() for e in expected).backward()
    gradients = {name: value.grad.numpy() for name, value in peer.items()}
    gradients = params_from_tensors(FAMILY, saved.params["backbone"], gradients, tmp_path)
    module = FAMILY.module(saved.spec.backbone)

    @partial(jax.jit, compiler_options=QUICKLY)
    @partial(jax.value_and_grad, has_aux=True)
    def run(params, tokens):
        hidden = module.apply({"params": params}, tokens)
        real = (tokens.sentence < tokens.sentences)[..., None]
        return jnp.sum(jnp.where(real, hidden * jnp.asarray(weight)[tokens.position], 0.0)), hidden

    (_, hidden), result = run(saved.params["backbone"], packed)
    for ours, states_in_torch in zip(states(hidden, packed), expected, strict=True):
        np.testing.assert_allclose(ours, states_in_torch.detach().numpy(), atol=1e-4)
    # The bias of keys has no influence on attention: its gradient is rounding, and wants an
    # absolute bound.
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(
            np.linalg.norm(a - b), 1e-4 * np.linalg.norm(b) + 1e-3
        ),
        result,
        gradients,
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_token_types(rows, ids, make_batch, tmp_path):
    """A table of one row is added to every token, whatever its type."""
    torch = pytest.importorskip("torch")
    fields = FIELDS | {"type_vocab_size": rows}
    tensors = make_tensors(fields)
    saved = read_model(write(tmp_path / "model", fields, tensors))
    tokens = make_batch([[(0, ids[0])]], len(ids[0]), 1)
    types = (np.asarray(tokens.position) > 3).astype(np.int32)
    apply = jax.jit(FAMILY.module(saved.spec.backbone).apply, compiler_options=QUICKLY)
    result = apply({"params": saved.params["backbone"]}, tokens.replace(segment=types))
    peer = {name: torch.tensor(value) for name, value in tensors.items()}
    expected = reference(fields, peer, ids[0], np.minimum(types[0], rows - 1))
    np.testing.assert_allclose(result[0], expected.numpy(), atol=1e-4)


def test_without_scaling_waves_are_as_they_were():
    plain, _ = frequencies(Rope(500.0), 8)
    np.testing.assert_allclose(frequencies(Rope(500.0, "ntk", factor=1.0), 8)[0], plain, rtol=1e-6)
    longest = plain[-1] / frequencies(Rope(500.0, "ntk", factor=3.0), 8)[0][-1]
    np.testing.assert_allclose(longest, 3.0, rtol=1e-6)


# ---- files


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_written_as_it_was_read(name, tiny_tokenizer, tmp_path):
    """Tensors bit by bit, and config.json with the fields that the code on the hub reads."""
    fields = FIELDS | VARIANTS[name]
    tensors = make_tensors(fields)
    saved = read_model(write(tmp_path / "model", fields, tensors))
    tokenizer, out = load_tokenizer(tiny_tokenizer, 32), tmp_path / "ours"
    write_model(out, saved.spec, saved.params, tokenizer=tokenizer, max_length=32)
    again = read_model(out)
    assert again.spec == saved.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, saved.params)
    written = json.loads((out / "config.json").read_text())
    known = FIELDS.keys() & written.keys()
    assert {field: written[field] for field in known} == {
        **{field: fields[field] for field in known},
        "model_type": "new",
        "pack_qkv": True,
    }
    assert written["auto_map"]["AutoModel"] == "Alibaba-NLP/new-impl--modeling.NewModel"
    if fields["pack_qkv"]:
        jax.tree.map(np.testing.assert_array_equal, load_file(out / "model.safetensors"), tensors)


def test_names_of_a_bigger_model(tmp_path):
    fields, tensors = FIELDS, make_tensors(FIELDS)
    expected = read_model(write(tmp_path / "plain", fields, tensors))
    bigger = {f"new.{name}": value for name, value in tensors.items()}
    bigger |= {
        "new.pooler.dense.bias": np.zeros(32, np.float32),
        "new.embeddings.rotary_emb.inv_freq": np.zeros(4, np.float32),
        "classifier.bias": np.zeros(1, np.float32),
        "lm_head.decoder.bias": np.zeros(60, np.float32),
    }
    result = read_model(write(tmp_path / "bigger", fields, bigger))
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)


def test_a_classifier_of_the_pooled_first_token(ids, packed, tiny_tokenizer, tmp_path):
    """NewForSequenceClassification: tanh(dense(x)) of the first token, then the classifier."""
    torch = pytest.importorskip("torch")
    tensors = make_tensors(FIELDS)
    rng = np.random.default_rng(1)
    head = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in {
            "new.pooler.dense.weight": (32, 32),
            "new.pooler.dense.bias": (32,),
            "classifier.weight": (3, 32),
            "classifier.bias": (3,),
        }.items()
    }
    fields = FIELDS | {
        "architectures": ["NewForSequenceClassification"],
        "id2label": {str(number): f"LABEL_{number}" for number in range(3)},
        "classifier_dropout": 0.2,
    }
    whole = {f"new.{name}": value for name, value in tensors.items()} | head
    saved = read_classifier(write(tmp_path / "model", fields, whole))
    assert saved.spec == EncoderSpec(
        CONFIG,
        "cls",
        (Dense(32, 32, activation="tanh"), Dropout(0.2), Dense(32, 3, activation="identity")),
    )
    apply = jax.jit(build_encoder(saved.spec).apply, compiler_options=QUICKLY)
    result = apply(saved.params, packed)
    peer = {name: torch.tensor(value) for name, value in tensors.items()}
    first = np.stack([reference(FIELDS, peer, x)[0].numpy() for x in ids])
    pooled = np.tanh(first @ head["new.pooler.dense.weight"].T + head["new.pooler.dense.bias"])
    expected = pooled @ head["classifier.weight"].T + head["classifier.bias"]
    np.testing.assert_allclose(result, expected, atol=1e-4)

    write_classifier(
        tmp_path / "ours",
        saved.spec,
        saved.params,
        tokenizer=load_tokenizer(tiny_tokenizer, 32),
        max_length=32,
        activation="identity",
    )
    written = load_file(tmp_path / "ours" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, written, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute' is not"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm' is not supported"),
        ({"logn_attention_scale": True}, "logn_attention_scale True"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type 'yarn'"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling has no factor"),
        ({"hidden_act": "swish7"}, "unknown activation 'swish7'"),
        ({"num_attention_heads": 5}, "hidden size 32 makes no 5 heads"),
        ({"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_unsupported_config(change, message):
    assert FAMILY.read_config(FIELDS) == CONFIG
    with pytest.raises(InputError, match=message) as error:
        FAMILY.read_config(FIELDS | change)
    assert "\n" not in str(error.value)


def test_other_families_have_no_such_scaling():
    llama = lookup("backbone", "llama")
    sizes = {name: FIELDS[name] for name in FIELDS if name not in ("model_type", "architectures")}
    with pytest.raises(InputError, match="'ntk' is not supported"):
        llama.read_config(sizes | {"rms_norm_eps": 1e-6})


@pytest.mark.parametrize(
    ("shape", "changes", "published"),
    [
        ("gte-base", {}, 136_776_192),
        ("gte-large", {}, 434_139_136),
        ("gte-base", {"vocab_size": 250048, "type_vocab_size": 1}, 305_368_320),  # multilingual
    ],
)
def test_number_of_parameters(shape, changes, published):
    spec = random_spec(shape)
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **changes))
    assert num_params(jax.eval_shape(build_encoder(spec).init, jax.random.key(0))) == published


def test_copies_of_an_example_have_one_dropout_mask(ids, make_batch):
    spec = random_spec("gte-tiny", vocab_size=60)
    rates = {"hidden_dropout": 0.0, "inner_dropout": 0.3, "initializer_range": 0.2}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **rates))
    tokens = make_batch([[(0, ids[0]), (3, ids[4])], [(1, ids[4])], [(2, ids[0])]], sentences=4)
    params = build_encoder(spec).init(jax.random.key(0))

    def embed(**options):
        encoder = build_encoder(spec, unroll=1, attention="xla", **options)
        return jax.jit(encoder.apply, compiler_options=QUICKLY)(params, tokens, jax.random.key(3))

    shared, own = embed(same_mask_columns=2), embed()
    np.testing.assert_allclose(shared[:2], shared[2:], atol=1e-6)
    assert np.abs(own[:2] - own[2:]).max() > 1e-2
