"""DeBERTa-v2's variants, its files, and its tokenizer; the usual form of it is in test_bert.py."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.deberta import DebertaConfig
from embed_jax.encoders.distances import (
    distance_buckets,
    find_distance_rows,
    multiply_by_distance,
)
from embed_jax.encoders.lora import init_lora, merge_lora
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import LoraSpec, random_spec
from embed_jax.encoders.weights import params_from_tensors
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import make_mesh, param_specs
from embed_jax.registry import lookup
from embed_jax.types import num_params

FAMILY = lookup("backbone", "deberta-v2")
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
V3 = {  # the fields of DeBERTa-v3's config.json
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 8,
    "max_relative_positions": -1,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
CONFIG = DebertaConfig(
    vocab_size=60,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_positions=32,
    max_distance=32,
    position_buckets=8,
)
VARIANTS = {
    "own projections, positions and types": {
        "share_att_key": False,
        "position_biased_input": True,
        "type_vocab_size": 2,
        "norm_rel_ebd": "none",
    },
    "distances without buckets, beyond the last": {
        "position_buckets": -1,
        "max_relative_positions": 5,
    },
    "only of the query, beyond the last bucket": {
        "pos_att_type": ["c2p"],
        "max_relative_positions": 12,
    },
    "only of the key": {"pos_att_type": "p2c", "share_att_key": False},
}
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def make(**changes):
    """A random torch model; biases and norms random too, so that a mix-up shows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**SIZES | V3 | changes)
    made = transformers.DebertaV2Model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made


def loss_and_states(module, weight, params, tokens):
    """The states times a weight for each position, summed over real tokens, and the states."""
    hidden = module.apply({"params": params}, tokens)
    real = (tokens.sentence < tokens.sentences)[..., None]
    return jnp.sum(jnp.where(real, hidden * jnp.asarray(weight)[tokens.position], 0.0)), hidden


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_torch(name, ids, packed, states, tmp_path):
    """States to 1e-4 and gradients to 1e-4 relative, with several sentences in a row."""
    torch = pytest.importorskip("torch")

    peer = make(**VARIANTS[name])
    peer.save_pretrained(tmp_path)
    saved = read_model(tmp_path)
    weight = np.random.default_rng(2).normal(size=(16, 32)).astype(np.float32)  # by position
    expected = [peer(torch.tensor(x[None])).last_hidden_state[0] for x in ids]
    sum(
        (e * torch.tensor(weight[: len(x)])).sum() for e, x in zip(expected, ids, strict=True)
    ).backward()
    gradients = {
        name: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for name, value in peer.named_parameters()
    }
    gradients = params_from_tensors(FAMILY, saved.params["backbone"], gradients, tmp_path)
    run = jax.value_and_grad(
        partial(loss_and_states, FAMILY.module(saved.spec.backbone), weight), has_aux=True
    )
    (_, hidden), result = jax.jit(run, compiler_options=QUICKLY)(saved.params["backbone"], packed)
    for ours, reference in zip(states(hidden, packed), expected, strict=True):
        np.testing.assert_allclose(ours, reference.detach().numpy(), atol=1e-4)
    # The bias of keys has no influence if no distance is multiplied with them: all of its gradient
    # is rounding, and wants an absolute bound.
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(
            np.linalg.norm(a - b), 1e-4 * np.linalg.norm(b) + 1e-3
        ),
        result,
        gradients,
    )


def test_token_types_equal_torch(ids, make_batch, tmp_path):
    torch = pytest.importorskip("torch")

    peer = make(type_vocab_size=2)
    peer.save_pretrained(tmp_path)
    saved = read_model(tmp_path)
    tokens = make_batch([[(0, ids[0])]], len(ids[0]), 1)
    types = np.asarray(tokens.position) > 3
    apply = jax.jit(FAMILY.module(saved.spec.backbone).apply, compiler_options=QUICKLY)
    result = apply(
        {"params": saved.params["backbone"]}, tokens.replace(segment=types.astype(np.int32))
    )
    with torch.no_grad():
        expected = peer(torch.tensor(ids[0][None]), token_type_ids=torch.tensor(types).long())
    np.testing.assert_allclose(result, expected.last_hidden_state.numpy(), atol=1e-4)


# ---- distances


@pytest.mark.parametrize(("buckets", "limit"), [(256, 512), (8, 32), (32, 128), (8, 64)])
def test_buckets_equal_torch(buckets, limit):
    torch = pytest.importorskip("torch")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-limit, limit + 1)
    bucket = make_log_bucket_position(distance, buckets, limit).long().numpy()
    expected = np.clip(bucket + buckets, 0, 2 * buckets - 1)
    np.testing.assert_array_equal(distance_buckets(2 * buckets, limit, True), expected)


@pytest.mark.parametrize("slots", [1, 5, 40])
def test_products_are_those_of_each_pair(slots):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2, slots, 3, 4)).astype(np.float32)
    table = rng.normal(size=(16, 3, 4)).astype(np.float32)
    start, stop, rows = find_distance_rows(16, 32, slots, True)
    assert stop - start == len({*rows.forward, *rows.backward})
    i, j = np.indices((slots, slots))
    for offset, index in ((j - i, rows.forward), (i - j, rows.backward)):
        pairs = table[distance_buckets(16, 32, True)[np.clip(offset, -32, 32) + 32]]
        expected = np.einsum("rihd,ijhd->rhij", states, pairs)
        result = multiply_by_distance(states, table[start:stop][index])
        np.testing.assert_allclose(result, expected, atol=1e-5)


# ---- files


def test_torch_reads_what_we_write(ids, tiny_tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    for number, changes in enumerate([{}, *VARIANTS.values()]):
        peer = make(**changes)
        peer.save_pretrained(tmp_path / f"{number}")
        saved = read_model(tmp_path / f"{number}")
        out = tmp_path / f"{number}-ours"
        tokenizer = load_tokenizer(tiny_tokenizer, 32)
        write_model(out, saved.spec, saved.params, tokenizer=tokenizer, max_length=32)
        assert read_model(out).spec == saved.spec
        read, report = AutoModel.from_pretrained(out, output_loading_info=True)
        assert type(read) is type(peer) and not any(report.values())
        tokens = torch.tensor(ids[2][None])
        with torch.no_grad():
            result, expected = (m.eval()(tokens).last_hidden_state for m in (read, peer))
        np.testing.assert_array_equal(result, expected)


def test_names_of_published_files(tmp_path):
    """The backbone's prefix, a position table that is not used, and two heads beside it."""
    make().save_pretrained(tmp_path)
    before = read_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {f"deberta.{name}": value for name, value in tensors.items()}
    tensors |= {
        "deberta.embeddings.position_embeddings.weight": np.zeros((32, 32), np.float32),
        "lm_predictions.lm_head.bias": np.zeros(60, np.float32),
        "mask_predictions.dense.bias": np.zeros(32, np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    result = read_model(tmp_path)
    assert result.spec == before.spec
    jax.tree.map(np.testing.assert_array_equal, result.params, before.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_attention": None}, "relative_attention False is not supported; only True is"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3 is not supported; only 0 is"),
        ({"embedding_size": 16}, "embedding_size 16 is not supported; only 32 is"),
        ({"attention_head_size": 16}, "attention_head_size 16 is not supported; only 8 is"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type: unknown term 'p2p'"),
        ({"pos_att_type": None}, "pos_att_type: expected one or more of c2p, p2c, found none"),
        (
            {"max_relative_positions": 5},
            "max_relative_positions: expected 6 or more for 8 position_buckets, found 5",
        ),
        ({"hidden_act": "swish7"}, "unknown activation 'swish7'"),
        ({"num_attention_heads": 5}, "num_attention_heads: expected a divisor of hidden_size 32"),
        ({"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_unsupported_config(change, message):
    assert FAMILY.read_config(SIZES | V3) == CONFIG
    with pytest.raises(InputError, match=message) as error:
        FAMILY.read_config(SIZES | V3 | change)
    assert "\n" not in str(error.value)


def test_config_round_trip():
    for config in (
        CONFIG,
        dataclasses.replace(
            CONFIG,
            absolute_positions=True,
            type_vocab_size=2,
            position_terms=("p2c",),
            max_distance=20,
            position_buckets=0,
            share_projections=False,
            norm_distances=False,
            hidden_dropout=0.2,
            pad_token_id=3,
        ),
    ):
        assert FAMILY.read_config(FAMILY.write_config(config)) == config


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("deberta-v3-base", {}),
        ("deberta-v3-xsmall", {"hidden_size": 384, "intermediate_size": 1536, "num_heads": 6}),
    ],
)
def test_number_of_parameters(shape, sizes):
    torch = pytest.importorskip("torch")
    from transformers import DebertaV2Config, DebertaV2Model

    spec = random_spec(shape)
    with torch.device("meta"):
        peer = DebertaV2Model(DebertaV2Config(**FAMILY.write_config(spec.backbone)))
    result = num_params(jax.eval_shape(build_encoder(spec).init, jax.random.key(0)))
    assert result == sum(parameter.numel() for parameter in peer.parameters())
    assert spec.backbone == dataclasses.replace(DebertaConfig(), **sizes)


# ---- training


def test_an_adapter_also_changes_the_distances_that_share_its_projection(packed):
    """An encoder with an adapter is the encoder that it is merged into."""
    spec = random_spec("deberta-tiny", vocab_size=60)
    spec = dataclasses.replace(spec, lora=LoraSpec(2, 4.0, targets=("query_proj", "key_proj")))
    params = build_encoder(spec).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    adapter = init_lora(spec, params["backbone"], jax.random.key(1))
    assert set(adapter["layers"]) == {"query", "key"}
    params["lora"] = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), adapter)
    merged_spec, merged = merge_lora(spec, params)
    result, expected = (
        jax.jit(build_encoder(s).apply, compiler_options=QUICKLY)(p, packed)
        for s, p in ((spec, params), (merged_spec, merged))
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_copies_of_an_example_have_one_dropout_mask(ids, make_batch):
    spec = random_spec("deberta-tiny", vocab_size=60)
    backbone = dataclasses.replace(spec.backbone, initializer_range=0.3)
    spec = dataclasses.replace(spec, backbone=backbone)
    tokens = make_batch([[(0, ids[0]), (3, ids[4])], [(1, ids[4])], [(2, ids[0])]], sentences=4)
    params = build_encoder(spec).init(jax.random.key(0))

    def embed(**options):
        encoder = build_encoder(spec, unroll=1, attention="xla", **options)
        return jax.jit(encoder.apply, compiler_options=QUICKLY)(params, tokens, jax.random.key(3))

    shared, own = embed(same_mask_columns=2), embed()
    np.testing.assert_allclose(shared[:2], shared[2:], atol=1e-5)
    assert np.abs(own[:2] - own[2:]).max() > 1e-2


def test_large_parameters_are_split_over_a_mesh():
    """Both axes split each matrix of the layers, also where distances have their own."""
    spec = random_spec("deberta-tiny", vocab_size=64)
    backbone = dataclasses.replace(
        spec.backbone, share_projections=False, absolute_positions=True, max_positions=32
    )
    encoder = build_encoder(dataclasses.replace(spec, backbone=backbone))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    specs = param_specs(shapes, encoder.sharding, make_mesh(8, fsdp=2, tensor=2))["backbone"]
    layers = specs["layers"]
    for name in ("query", "key", "value", "distance_query", "distance_key", "up"):
        assert layers[name]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
        assert layers[name]["bias"] == PartitionSpec(None, "tensor")
    for name in ("output", "down"):
        assert layers[name]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["embeddings"]["token"] == specs["embeddings"]["position"] != PartitionSpec()


# ---- tokenizer


def test_a_unigram_tokenizer_is_read(tmp_path, sentences):
    """SentencePiece's pieces, with the special tokens of a text and of a pair."""
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = sorted({letter for text in sentences for letter in text} - {" "})
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -3.0), ("▁the", -2.0), ("ing", -2.5)]
    pieces += [(letter, -5.0 - number / 100) for number, letter in enumerate(letters)]
    peer = transformers.DebertaV2Tokenizer(vocab=[*pieces, ("[MASK]", 0.0)], unk_id=3)
    peer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, 20)
    texts = ["the  thing", "", "The Ωmega", *sentences[:5]]
    for ours, expected in zip(
        tokenizer.encode(texts).ids,
        peer(texts, truncation=True, max_length=20)["input_ids"],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)
    assert tokenizer.backend.encode("the thing").tokens[1:3] == ["▁the", "▁"]
    pair = tokenizer.encode_pairs(["the"], ["thing"])
    expected = peer("the", "thing")
    np.testing.assert_array_equal(pair.ids[0], expected["input_ids"])
    np.testing.assert_array_equal(pair.segments[0], expected["token_type_ids"])
