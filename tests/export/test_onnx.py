"""The ONNX file gives the model's embeddings in any batch under ONNX Runtime."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.bert import SHAPES as BERTS
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.decoder import FULL, SLIDING
from embed_jax.encoders.decoder_shapes import SHAPES as DECODERS
from embed_jax.encoders.heads import Dense, LayerNorm, Normalize, Truncate
from embed_jax.encoders.int8 import quantize_layers
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.modernbert import SHAPES as MODERNBERTS
from embed_jax.encoders.rope import Rope
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, LoraSpec, random_spec
from embed_jax.encoders.t5 import SHAPES as T5S
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from embed_jax.export import onnx_graph  # noqa: E402
from embed_jax.export.jaxpr import to_graph  # noqa: E402
from embed_jax.export.onnx import write_onnx  # noqa: E402
from embed_jax.export.onnx_run import (  # noqa: E402
    OUTPUT,
    compare_logits_onnx,
    compare_onnx,
    encode_onnx,
    logits_onnx,
    pad_rows,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* (texts|pairs) were cut")
TEXTS = [
    "the cat",
    "",
    "music",
    "a red house in the city " * 5,
    "dog",
    "people use water and bread",
    "one two time",
]
BERT, DECODER, MODERNBERT = BERTS["tiny"], DECODERS["decoder-tiny"], MODERNBERTS["modernbert-tiny"]
MPNET = dataclasses.replace(
    BERT, family="mpnet", position_offset=2, type_vocab_size=0, relative_buckets=32, pad_token_id=1
)
ELECTRA = dataclasses.replace(BERT, family="electra", embedding_size=16)
GEMMA = dataclasses.replace(
    DECODER,
    family="gemma3_text",
    layer_types=tuple((FULL, SLIDING)[number % 2] for number in range(DECODER.num_layers)),
    window=4,
    rope=Rope(1e6, "linear", factor=8.0),
    local_rope=Rope(),
    qk_norm=True,
    norm_offset=1.0,
    norm_after=True,
    scale_embeddings=True,
    softcap=20.0,
    activation="gelu_pytorch_tanh",
)
SPECS = {
    "bert": EncoderSpec(BERT, "mean", (Normalize(),)),
    "cls": EncoderSpec(BERT, "cls", (Dense(32, 48, residual=True), Normalize())),
    "max": EncoderSpec(BERT, "max+mean_sqrt_len", (LayerNorm(64),)),
    "layers": EncoderSpec(BERT, "first_last_mean+weighted_mean", ()),
    "mpnet": EncoderSpec(MPNET, "mean", (Normalize(),)),
    "electra": EncoderSpec(ELECTRA, "mean", ()),
    "llama": EncoderSpec(DECODER, "last_token", (Normalize(),)),
    "gemma": EncoderSpec(
        GEMMA, "mean", (Dense(DECODER.hidden_size, 16, bias=False, activation="identity"),)
    ),
    "latent": EncoderSpec(
        dataclasses.replace(DECODER, causal=False),
        "mean",
        (Normalize(),),
        None,
        LatentAttention(DECODER.hidden_size, 4, 2),
    ),
    "modernbert": EncoderSpec(
        dataclasses.replace(MODERNBERT, local_attention=4), "mean", (Normalize(),)
    ),
    "modernbert-layers": EncoderSpec(MODERNBERT, "first_last_mean", (Normalize(),)),
    "weighted": EncoderSpec(
        BERT, "mean", (Truncate(20), Normalize()), token_head=WeightedLayers(32, 2, 1)
    ),
    "nomic": random_spec("nomic-tiny"),
    "deberta": random_spec("deberta-tiny"),
    "t5": EncoderSpec(
        T5S["t5-tiny"], "mean", (Dense(32, 24, bias=False, activation="identity"), Normalize())
    ),
    "t5-gated": EncoderSpec(dataclasses.replace(T5S["t5-tiny"], gated=True), "mean", ()),
    "static": random_spec("static"),
    "lora": EncoderSpec(
        BERT, "mean", (Normalize(),), lora=LoraSpec(2, 4.0, targets=("query", "value"))
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return load_tokenizer(tiny_tokenizer, 24)


@pytest.fixture(scope="module")
def make(tokenizer):
    """`(name, **options) -> model` with all parameters random, norms and biases too."""

    def model(name, change=lambda params: params, **options):
        spec = SPECS[name]
        spec = dataclasses.replace(
            spec, backbone=dataclasses.replace(spec.backbone, vocab_size=tokenizer.vocab_size + 1)
        )
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))
        params = jax.tree.map(
            lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes
        )
        return SentenceEncoder(
            spec, change(params), tokenizer, EncodingSettings(**options), devices=1
        )

    return model


@pytest.fixture(scope="module")
def written(make, tmp_path_factory):
    """`(name, precision="float32") -> (model, file)`, each written once."""
    directory = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def write(name, precision="float32"):
        path = directory / f"{name}-{precision}.onnx"
        write_onnx(make(name), path, precision=precision)
        return make(name), path

    return write


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


SLOW = {"max", "electra", "gemma", "latent", "weighted", "modernbert-layers", "t5-gated", "lora"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SPECS]
)
def test_embeddings_are_the_models(written, name):
    """1e-5: float32's rounding of numbers of about 1 through a few layers, with a margin of ten."""
    model, path = written(name)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert compare_onnx(path, model, TEXTS) < 1e-5
    assert np.ptp(encode_onnx(path, model, TEXTS), axis=0).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [quantize_layers, lambda params: jax.tree.map(jnp.bfloat16, params)]
)
def test_weights_in_other_dtypes(make, tmp_path, change):
    model, path = make("bert", change), tmp_path / "model.onnx"
    write_onnx(model, path)
    assert compare_onnx(path, model, TEXTS) < 1e-5


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "t5"])
@pytest.mark.parametrize(("precision", "least"), [("float16", 0.999), ("int8", 0.98)])
def test_smaller_precisions_are_close(written, name, precision, least):
    (_, path), (model, whole) = written(name, precision), written(name)
    result, expected = encode_onnx(path, model, TEXTS), encode_onnx(whole, model, TEXTS)
    assert result.dtype == np.float32
    assert np.min((result * expected).sum(-1) / np.linalg.norm(result, axis=-1)) > least
    kind = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    weights = [
        tensor for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) >= 1024
    ]
    assert {tensor.data_type for tensor in weights} == {kind}


PAIR_BACKBONES = {
    "bert": BERT,
    "modernbert": MODERNBERT,
    "llama": DECODER,
    "deberta": random_spec("deberta-tiny").backbone,
    "t5": T5S["t5-tiny"],
}


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        "modernbert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "deberta", "t5")),
    ],
)
def test_logits_are_the_cross_encoders(tokenizer, tmp_path, name):
    """Token types are an input where the model has them; two labels are two logits."""
    backbone = dataclasses.replace(PAIR_BACKBONES[name], vocab_size=tokenizer.vocab_size)
    spec = make_classifier(backbone, num_labels=2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    model = CrossEncoder(spec, params, tokenizer, prompt="the ", devices=1)
    path = tmp_path / "model.onnx"
    write_onnx(model, path)
    queries, passages = TEXTS * 3, (TEXTS[2:] + TEXTS[:2]) * 3
    logits = logits_onnx(path, model, queries, passages)
    assert logits.shape == (len(queries), 2) and np.ptp(logits) > 0.1
    assert compare_logits_onnx(path, model, queries, passages) < 1e-4
    session = session_of(path)
    inputs = {each.name for each in session.get_inputs()}
    types = {"token_type_ids"} if getattr(backbone, "type_vocab_size", 0) > 1 else set()
    assert inputs == {"input_ids", "attention_mask"} | types
    assert [each.name for each in session.get_outputs()] == ["logits"]
    about = session.get_modelmeta().custom_metadata_map
    assert (about["activation"], about["prompt"]) == ("sigmoid", "the ")
    assert (about["num_labels"], about["max_length"]) == ("2", "24")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_file_says_what_it_is_and_has_the_same_bytes_again(make, tmp_path, precision):
    prompts = {"query": "what is ", "passage": ""}
    model = make("cls", prompts=prompts, default_prompt_name="query", similarity="dot")
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in paths:
        write_onnx(model, path, precision=precision)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths
    session = session_of(paths[0])
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    assert inputs == {
        name: ("tensor(int64)", ["batch", "length"]) for name in ("input_ids", "attention_mask")
    }
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == (OUTPUT, "tensor(float)", ["batch", 48])
    about = session.get_modelmeta()
    assert (
        about.producer_name == "embed-jax"
        and json.loads(about.custom_metadata_map["prompts"]) == prompts
    )
    expected = {
        "max_length": "24",
        "similarity": "dot",
        "default_prompt_name": "query",
        "template": "",
    }
    assert expected.items() <= about.custom_metadata_map.items()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_large_model_has_its_tensors_beside_it(written, tmp_path, monkeypatch, precision):
    (model, small), large = written("bert", precision), tmp_path / "large.onnx"
    monkeypatch.setattr(onnx_graph, "EXTERNAL_FROM", 10_000)
    files = []
    for _ in range(2):
        write_onnx(model, large, precision=precision)
        files.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert files[0] == files[1] and sorted(files[0]) == ["large.onnx", "large.onnx.data"]
    assert len(files[0]["large.onnx"]) < 0.8 * small.stat().st_size
    assert np.array_equal(encode_onnx(large, model, TEXTS), encode_onnx(small, model, TEXTS))


def test_prompts_left_out_of_pooling_are_an_input(make, written, tmp_path):
    model = make(
        "bert", prompts={"query": "what is the "}, default_prompt_name="query", include_prompt=False
    )
    path = tmp_path / "model.onnx"
    write_onnx(model, path)
    assert [each.name for each in onnx.load(path).graph.input][2:] == ["pooling_mask"]
    assert compare_onnx(path, model, TEXTS) < 1e-5
    included = encode_onnx(written("bert")[1], model, TEXTS, prompt="what is the ")
    assert np.abs(included - encode_onnx(path, model, TEXTS, prompt="what is the ")).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "t5", "nomic", "deberta", "modernbert"])
def test_padding_may_come_first_where_positions_are_relative(written, name):
    model, path = written(name)
    inputs = pad_rows(model.tokenizer.encode(TEXTS).ids, 0, 0)
    lengths = inputs["attention_mask"].sum(axis=1)
    left = {
        key: np.stack(
            [
                np.roll(row, len(row) - length)
                for row, length in zip(inputs[key], lengths, strict=True)
            ]
        )
        for key in ("input_ids", "attention_mask")
    }
    assert (
        np.abs(session_of(path).run(None, left)[0] - encode_onnx(path, model, TEXTS)).max() < 1e-5
    )


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bert", {"LayerNormalization": 5, "Softmax": 2, "Gelu": 2}),
        ("modernbert", {"LayerNormalization": 9, "Softmax": 4, "Gelu": 4}),
    ],
)
def test_what_softmax_norms_and_gelu_are_made_of_becomes_one_node(written, name, counts):
    nodes = [node.op_type for node in onnx.load(written(name)[1]).graph.node]
    assert {op: nodes.count(op) for op in counts} == counts
    assert not {"Exp", "Erf", "Expand"} & set(nodes)


def test_numbers_that_are_none_are_infinitely_far(make, written, tmp_path):
    broken = make("bert", lambda params: jax.tree.map(lambda leaf: leaf * np.nan, params))
    write_onnx(broken, tmp_path / "model.onnx")
    assert compare_onnx(tmp_path / "model.onnx", written("bert")[0], TEXTS) == np.inf
    assert compare_onnx(tmp_path / "model.onnx", written("bert")[0], []) == 0


# ---- what cannot be written ----------------------------------------------------------------------


def test_what_cannot_be_written_is_one_line(make, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    large = make("bert", lambda params: jax.tree.map(lambda leaf: leaf * 1e6, params))
    for model, precision, message in (
        (make("bert"), "int4", "precision 'int4'"),
        (large, "float16", "precision 'float16': the model has weights beyond 65,504"),
    ):
        with pytest.raises(InputError, match=message):
            write_onnx(model, path, precision=precision)
        assert path.read_bytes() == b"before"
    with pytest.raises(InputError, match="model.onnx: ONNX Runtime cannot read it"):
        compare_onnx(path, make("bert"), TEXTS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "the JAX primitive 'sort' is not supported"),
        (lambda x: x[:, x.shape[1] // 2 :], "is not supported|is not a product"),
        (
            lambda x: x[jnp.arange(x.shape[0]), jnp.arange(3)[:, None]],
            "'gather' is supported for whole rows",
        ),
    ],
)
def test_an_unknown_primitive_is_named(function, message):
    with pytest.raises(InputError, match=message):
        graph_of(function)


# ---- primitives ----------------------------------------------------------------------------------


def graph_of(function):
    batch, length = jax.export.symbolic_shape("b, t")
    return to_graph(function, {"x": (np.float32, (batch, length, 6))})


def scanned(x):
    weights = np.linspace(-1, 1, 3 * 36, dtype=np.float32).reshape(3, 6, 6)
    last, every = jax.lax.scan(
        lambda carry, own: (jnp.tanh(carry @ own), carry.sum(-1)), x, weights, reverse=True
    )
    return last.sum() + every[0] * every[2]


FUNCTIONS = {
    "counts": lambda x: jnp.cumsum(x, axis=1) + jnp.cumsum((x > 0).astype(jnp.int32), axis=1),
    "counts down": lambda x: jax.lax.cumsum(x, axis=1, reverse=True),
    "sizes": lambda x: x.sum(1) / x.shape[1] + jnp.arange(x.shape[0] * x.shape[1]).sum(),
    "broadcast then summed": lambda x: jnp.broadcast_to(x[:, :1], x.shape).sum(1),
    "broadcast then joined": lambda x: jnp.concatenate(
        [jnp.broadcast_to(x[:1, :1, :2], (*x.shape[:2], 2)), x], -1
    ),
    "repeated": lambda x: jnp.repeat(x.reshape(*x.shape[:2], 3, 2), 4, axis=2).reshape(-1, 24),
    "split": lambda x: jnp.concatenate(jnp.split(x, 3, axis=-1)[::-1], axis=1),
    "strides": lambda x: x[..., 1:6:2] - x[..., ::2],
    "stacked": lambda x: jnp.stack([x, jnp.exp(-x * x)], axis=1)[:, 1],
    "stacked and whole": lambda x: jnp.stack([x, x + 1], axis=2),
    "choices": lambda x: jnp.where(
        (x > 0) & (x <= 1) | ~jnp.isfinite(x) | (x != x), x, jnp.minimum(-x, 2)
    ),
    "numbers": lambda x: (
        jnp.sign(x) * jnp.floor(x) ** 2 + x**3 + jnp.ceil(jnp.sqrt(jnp.abs(x))) + jnp.square(x)
    ),
    "waves": lambda x: (
        jnp.sin(x) + jnp.cos(x) * jnp.tanh(x) + jax.nn.silu(x) + jnp.log(jnp.abs(x) + 1)
    ),
    "limits": lambda x: x.max(axis=(1, 2), keepdims=True) - x.min(axis=1, keepdims=True),
    "rows": lambda x: jnp.arange(18.0).reshape(9, 2)[jnp.clip(x, 0, 8).astype(jnp.int32)],
    "columns": lambda x: jnp.arange(18.0).reshape(2, 9)[:, jnp.clip(x, 0, 8).astype(jnp.int32)],
    "softmax over the middle": lambda x: jax.nn.softmax(x, axis=1),
    "gelu": lambda x: jax.nn.gelu(x) + 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "not a norm": lambda x: (
        (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1e-5)
    ),
    "scanned": scanned,
    "products": lambda x: jnp.einsum("bti,btj->bij", x, x) @ jnp.ones((6, 2)),
    "products of rows": lambda x: (
        jnp.einsum("bti,bti->bt", x, x) + jnp.einsum("bti,bti->b", x, x)[:, None]
    ),
    "products of all": lambda x: jnp.einsum("bti,cui->bctu", x, x) + jnp.einsum("bti,bti->", x, x),
    "products with vectors": lambda x: (
        jnp.einsum("i,bti->bt", jnp.arange(6.0), x) + x @ jnp.arange(6.0)
    ),
    "products over heads": lambda x: jnp.einsum(
        "bthd,buhd->bhtu", *[x.reshape(*x.shape[:2], 2, 3)] * 2
    ),
    "products over two axes": lambda x: jnp.einsum(
        "bthd,hdm->btm", x.reshape(*x.shape[:2], 2, 3), jnp.ones((2, 3, 4))
    ),
}


def test_functions_are_what_jax_computes():
    def every(x):
        return {name: function(x) for name, function in FUNCTIONS.items()}

    graph, results = graph_of(every)
    model = graph.model(
        {name.replace(" ", "_"): tensor for name, tensor in results.items()}, "test", "0", {}
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for shape in ((1, 1, 6), (3, 5, 6)):
        x = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
        expected = jax.jit(every)(x)
        result = dict(zip(results, session.run(None, {"x": x}), strict=True))
        for name in FUNCTIONS:
            assert result[name].shape == expected[name].shape, name
            np.testing.assert_allclose(
                result[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name
            )
