"""T5's encoder equals torch's class, gated and not.

Its files are read, and a Sentence-T5 of sentence-transformers.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.bert import relative_bucket
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import keep_first_layers
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.t5 import T5Config
from embed_jax.encoders.weights import params_from_tensors
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.sentence import load_sentence_encoder
from embed_jax.types import num_params

FAMILY = lookup("backbone", "t5")
SIZES = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 6,  # four heads of it are not the model's width
    "d_ff": 48,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
CONFIG = T5Config(
    vocab_size=60,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    head_size=6,
    intermediate_size=48,
    relative_buckets=8,
    relative_distance=12,
)
PIECES = [
    "▁",
    "▁a",
    "▁the",
    "▁dog",
    "▁city",
    "▁music",
    "▁guitar",
    "▁run",
    "s",
    *"abcdefghijklmnopqrstuvwxyz.,",
]
TEXTS = [
    "a dog runs in the city",
    "music",
    "",
    "she plays the red guitar, very quickly. and the train made it",
]
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def model(request, tmp_path_factory):
    """(torch model, the directory it was saved to)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, feed_forward_proj=request.param)
    made = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    directory = tmp_path_factory.mktemp("t5")
    made.save_pretrained(directory)
    return made, directory


@pytest.fixture(scope="module")
def long_ids():
    """Five made sentences, of which three are longer than the last bucket's distance."""
    rng = np.random.default_rng(1)
    return [rng.integers(5, 60, n).astype(np.int32) for n in (40, 1, 17, 4, 15)]


@pytest.fixture(scope="module")
def rows(long_ids, make_batch):
    """The sentences one per row, and several per row."""
    together = [
        [(4, long_ids[4]), (2, long_ids[2])],
        [(0, long_ids[0])],
        [(3, long_ids[3]), (1, long_ids[1])],
        [],
        [],
    ]
    return [make_batch(plan, 40) for plan in ([[(i, x)] for i, x in enumerate(long_ids)], together)]


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    """A Unigram tokenizer of T5's form, which puts </s> after a text."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("tokenizer")
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = special + [(piece, -2.0 - 0.1 * number) for number, piece in enumerate(PIECES)]
    transformers.T5TokenizerFast(
        vocab=vocabulary, extra_ids=0, model_max_length=32
    ).save_pretrained(directory)
    return directory


def test_equals_torch(model, long_ids, rows, states):
    """Hidden states agree to 1e-4, gradients to 1e-3 relative, packed or not."""
    torch = pytest.importorskip("torch")

    peer, directory = model
    saved = read_model(directory)
    assert (
        dataclasses.replace(saved.spec.backbone, gated=False) == CONFIG and saved.max_length == 512
    )
    module = FAMILY.module(saved.spec.backbone)
    weight = np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32)  # by position

    peer.zero_grad()
    expected = [peer(torch.tensor(x[None])).last_hidden_state[0] for x in long_ids]
    weights = [torch.tensor(weight[: len(x)]) for x in long_ids]
    sum((e * w).sum() for e, w in zip(expected, weights, strict=True)).backward()
    gradients = {name: value.grad.numpy() for name, value in peer.named_parameters()}
    gradients = params_from_tensors(FAMILY, saved.params["backbone"], gradients, directory)

    @partial(jax.jit, compiler_options=QUICKLY)
    @partial(jax.value_and_grad, has_aux=True)
    def run(params, tokens):
        hidden = module.apply({"params": params}, tokens)
        real = (tokens.sentence < tokens.sentences)[..., None]
        return jnp.sum(jnp.where(real, hidden * jnp.asarray(weight)[tokens.position], 0.0)), hidden

    for tokens in rows:
        (_, hidden), result = run(saved.params["backbone"], tokens)
        for ours, reference in zip(states(hidden, tokens), expected, strict=True):
            np.testing.assert_allclose(ours, reference.detach().numpy(), atol=1e-4)
        jax.tree.map(_close, result, gradients)


def _close(ours, reference):
    assert np.linalg.norm(reference) > 0
    assert np.linalg.norm(ours - reference) <= 1e-3 * np.linalg.norm(reference)


def test_bfloat16_is_near_even_where_states_are_large(model, rows):
    """States are in the ten thousands, like those of the largest T5.

    Such values are near the limit of float16, but not of bfloat16.
    """
    saved = read_model(model[1])
    spec = dataclasses.replace(saved.spec, heads=(Normalize(),))
    layers = saved.params["backbone"]["layers"]
    large = {**layers, "down": {"kernel": layers["down"]["kernel"] * 1e5}}
    runs = [
        jax.jit(build_encoder(spec, compute_dtype=dtype).apply, compiler_options=QUICKLY)
        for dtype in ("float32", "bfloat16")
    ]
    for params in (
        saved.params,
        {**saved.params, "backbone": {**saved.params["backbone"], "layers": large}},
    ):
        full, half = (run(params, rows[1]) for run in runs)
        assert np.isfinite(half).all() and np.sum(full * half, axis=1).min() > 0.999


def test_torch_reads_what_we_write(model, tokenizer_directory, long_ids, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import T5EncoderModel

    peer, directory = model
    saved = read_model(directory)
    tokenizer = load_tokenizer(tokenizer_directory, 32)
    write_model(tmp_path / "ours", saved.spec, saved.params, tokenizer=tokenizer, max_length=32)
    again = read_model(tmp_path / "ours")
    assert again.spec == saved.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, saved.params)

    read, report = T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        expected, result = (
            m.eval()(torch.tensor(long_ids[0][None])).last_hidden_state for m in (peer, read)
        )
    np.testing.assert_array_equal(result.numpy(), expected.numpy())


def test_names_of_a_bigger_model(model, tmp_path):
    """Reads a T5 with its decoder, with token embeddings under either name, or both."""
    from transformers import T5Config as PeerConfig
    from transformers import T5Model

    peer, directory = model
    whole = T5Model(PeerConfig(**SIZES, feed_forward_proj=peer.config.feed_forward_proj))
    whole.load_state_dict(peer.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    expected = read_model(directory)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("decoder.") for name in tensors)
    table, bias = (
        {"encoder.embed_tokens.weight": tensors["shared.weight"]},
        {"lm_head.weight": tensors["shared.weight"]},
    )
    without = {name: value for name, value in tensors.items() if name != "shared.weight"}
    for result in (tensors, tensors | table | bias, without | table):
        save_file(result, tmp_path / "model.safetensors")
        saved = read_model(tmp_path)
        assert saved.spec == expected.spec
        jax.tree.map(np.testing.assert_array_equal, saved.params, expected.params)
    save_file(without, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing tensor 'shared.weight'"):
        read_model(tmp_path)


def test_equals_sentence_transformers(tokenizer_directory, tmp_path):
    """Reads the directory of a Sentence-T5.

    It has mean pooling, a linear map without bias, and vectors of length 1.
    """
    peer = pytest.importorskip("sentence_transformers")
    torch = pytest.importorskip("torch")
    from sentence_transformers.sentence_transformer import modules
    from transformers import AutoTokenizer, T5EncoderModel
    from transformers import T5Config as PeerConfig

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    T5EncoderModel(PeerConfig(**SIZES | {"vocab_size": len(tokenizer)})).save_pretrained(
        tmp_path / "plain"
    )
    tokenizer.save_pretrained(tmp_path / "plain")
    parts = [
        modules.Transformer(str(tmp_path / "plain"), max_seq_length=16),
        modules.Pooling(32, "mean"),
        modules.Dense(32, 24, bias=False, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    ]
    reference = peer.SentenceTransformer(modules=parts, device="cpu").eval()
    reference.save(str(tmp_path / "theirs"))
    ours = load_sentence_encoder(str(tmp_path / "theirs"))
    assert ours.max_length == 16 and ours.spec.heads == (
        Dense(32, 24, bias=False, activation="identity"),
        Normalize(),
    )
    assert ours.tokenizer.encode(["a dog"]).ids[0][-1] == tokenizer.eos_token_id
    expected = reference.encode(TEXTS)
    with pytest.warns(UserWarning, match="cut"):
        np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    ours.save(tmp_path / "ours")
    again = peer.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("max_distance", [20, 128])
def test_relative_bucket_equals_torch(max_distance):
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-600, 600)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distance), max_distance=max_distance
    ).numpy()
    np.testing.assert_array_equal(
        relative_bucket(jnp.asarray(distance), 32, max_distance), expected
    )


@pytest.fixture(scope="module")
def run(long_ids, make_batch):
    """`(rate, key, gradient, **options) -> embeddings` of two texts and copies, or a gradient."""
    spec = random_spec("t5-tiny", vocab_size=60)
    params = jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    tokens = make_batch(
        [[(0, long_ids[2]), (3, long_ids[3])], [(1, long_ids[3])], [(2, long_ids[2])]], 24, 4
    )

    def call(rate, key, gradient=False, **options):
        rates = {"hidden_dropout": rate, "attention_dropout": rate}
        changed = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **rates))
        apply = build_encoder(changed, unroll=1, attention="xla", **options).apply

        def embed(params):
            return apply(params, tokens, key)

        function = jax.grad(lambda params: embed(params)[:, :5].sum()) if gradient else embed
        return jax.jit(function, compiler_options=QUICKLY)(params)

    return call


def test_dropout(run):
    """Copies lose the same numbers where one mask is requested, and others otherwise."""
    key = jax.random.key(3)
    shared, own = run(0.2, key, same_mask_columns=2), run(0.2, key)
    np.testing.assert_allclose(shared[:2], shared[2:], atol=1e-6)
    assert np.abs(own[:2] - own[2:]).max() > 1e-2


@pytest.mark.slow
def test_recomputed_layers_have_the_same_gradient_and_no_rate_is_no_dropout(run):
    key = jax.random.key(3)
    result, expected = run(0.2, key, gradient=True, remat="layer"), run(0.2, key, gradient=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), result, expected
    )
    np.testing.assert_allclose(run(0.0, key), run(0.2, None), atol=1e-6)


def test_every_layer_as_if_it_were_the_last(rows):
    spec = random_spec("t5-tiny", vocab_size=60)
    params = jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    shorter, fewer = keep_first_layers(spec, params, 1)
    result = jax.jit(build_encoder(spec).by_layer, compiler_options=QUICKLY)(
        params, rows[1], np.asarray([1])
    )
    for number, (model_spec, parts) in enumerate([(shorter, fewer), (spec, params)]):
        expected = jax.jit(build_encoder(model_spec).apply, compiler_options=QUICKLY)(
            parts, rows[1]
        )
        np.testing.assert_allclose(result[:, number], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "sizes", "published"),
    [
        ("t5-base", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 109_628_544),
        (
            "t5-large",
            {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
            334_939_648,
        ),
        (
            "t5-3b",
            {"d_model": 1024, "d_ff": 16384, "num_layers": 24, "num_heads": 32, "d_kv": 128},
            1_240_909_824,
        ),
    ],
)
def test_number_of_parameters(shape, sizes, published):
    torch = pytest.importorskip("torch")
    from transformers import T5Config as PeerConfig
    from transformers import T5EncoderModel

    with torch.device("meta"):
        peer = T5EncoderModel(PeerConfig(**sizes))
    spec = random_spec(shape, vocab_size=32128)
    assert FAMILY.read_config(peer.config.to_dict()) == spec.backbone
    result = num_params(jax.eval_shape(build_encoder(spec).init, jax.random.key(0)))
    assert result == sum(p.numel() for p in peer.parameters()) == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"feed_forward_proj": "gated-silu"},
            "unknown feed_forward_proj 'gated-silu'.*known: gated-gelu, relu",
        ),
        ({"is_decoder": True}, "is_decoder True is not supported; only False is"),
        ({"d_model": None}, "missing d_model"),
    ],
)
def test_unsupported_config(change, message):
    assert FAMILY.read_config(SIZES) == CONFIG
    with pytest.raises(InputError, match=message) as error:
        FAMILY.read_config(SIZES | change)
    assert "\n" not in str(error.value)


def test_config_round_trip():
    config = dataclasses.replace(
        CONFIG, max_positions=128, gated=True, hidden_dropout=0.3, attention_dropout=0.3
    )
    assert FAMILY.read_config(FAMILY.write_config(config)) == config
    assert config.max_length == 128
