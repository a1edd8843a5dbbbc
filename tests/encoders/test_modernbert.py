"""ModernBERT equals torch's class on texts longer than its window.

Its files, old and new, and models with fewer layers are read.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.decoder import FULL, SLIDING
from embed_jax.encoders.heads import Normalize
from embed_jax.encoders.modernbert import ModernBertConfig, alternate_layer_types
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import keep_first_layers, keep_layers
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.weights import params_from_tensors
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import num_params

FAMILY = lookup("backbone", "modernbert")
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "pad_token_id": 0,
}
ROPE = {  # both unlike the defaults
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
OLD = {"global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 50.0}
CONFIG = ModernBertConfig(
    vocab_size=60,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    intermediate_size=48,
    max_positions=64,
    layer_types=(FULL, SLIDING, SLIDING, FULL),
    local_attention=8,
    rope_theta=500.0,
    local_rope_theta=50.0,
)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def make(**changes):
    """Makes a torch model with random norms, so that mix-ups show."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    rope = {kind: dict(values) for kind, values in ROPE.items()}
    config = transformers.ModernBertConfig(**{**SIZES, "rope_parameters": rope, **changes})
    made = transformers.ModernBertModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(torch model, the directory it was saved to)."""
    made, directory = make(), tmp_path_factory.mktemp("modernbert")
    made.save_pretrained(directory)
    return made, directory


@pytest.fixture(scope="module")
def long_ids():
    """Five made sentences, of which three are longer than the window."""
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


def torch_states(peer, ids):
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        return [peer(torch.tensor(x[None])).last_hidden_state[0].numpy() for x in ids]


def test_equals_torch(model, long_ids, rows, states):
    """Hidden states agree to 1e-4, gradients to 1e-3 relative, packed or not."""
    torch = pytest.importorskip("torch")

    peer, directory = model
    saved = read_model(directory)
    assert saved.spec.backbone == CONFIG and saved.max_length == 64
    module = FAMILY.module(saved.spec.backbone)
    weight = np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32)  # by position

    peer.zero_grad()
    expected = [peer(torch.tensor(x[None])).last_hidden_state[0] for x in long_ids]
    weights = [torch.tensor(weight[: len(x)]) for x in long_ids]
    sum((e * w).sum() for e, w in zip(expected, weights, strict=True)).backward()
    gradients = {name: value.grad.numpy() for name, value in peer.named_parameters()}
    gradients = params_from_tensors(FAMILY, saved.params["backbone"], gradients, directory)
    gradients["layers"]["attention_norm"]["scale"][0] = 0.0  # it is there for the stack's sake

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
        np.testing.assert_array_equal(result["layers"]["attention_norm"]["scale"][0], 0.0)


def _close(ours, reference):
    assert np.linalg.norm(reference) > 0
    assert np.linalg.norm(ours - reference) <= 1e-3 * np.linalg.norm(reference)


def test_any_pattern_of_layers_equals_torch(long_ids, rows, states, tmp_path):
    """Windowed layers may come first, have another window, or be the only kind."""
    for number, kinds in enumerate([(SLIDING, FULL, FULL, SLIDING), (SLIDING,) * 4]):
        peer = make(layer_types=[f"{kind}_attention" for kind in kinds], local_attention=12)
        peer.save_pretrained(tmp_path / str(number))
        saved = read_model(tmp_path / str(number))
        assert saved.spec.backbone.layer_types == kinds
        run = jax.jit(FAMILY.module(saved.spec.backbone).apply, compiler_options=QUICKLY)
        hidden = run({"params": saved.params["backbone"]}, rows[1])
        for ours, reference in zip(
            states(hidden, rows[1]), torch_states(peer, long_ids), strict=True
        ):
            np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_window_is_half_on_either_side(model, rows):
    """A single windowed layer sees half of the window on each side.

    The gradient of a state reaches tokens at a distance of 4 or less, and no others.
    """
    saved = read_model(model[1])
    spec, params = keep_first_layers(saved.spec, saved.params, 1)
    module = FAMILY.module(dataclasses.replace(spec.backbone, layer_types=(SLIDING,)))
    tokens = rows[0].replace(
        token_ids=np.arange(40)[None] + np.zeros((5, 1), np.int32)
    )  # each once in a row

    @partial(jax.jit, compiler_options=QUICKLY)
    @jax.grad
    def gradient(table):
        embeddings = {**params["backbone"]["embeddings"], "token": table}
        return module.apply({"params": {**params["backbone"], "embeddings": embeddings}}, tokens)[
            0, 20, 0
        ]

    reached = np.abs(gradient(saved.params["backbone"]["embeddings"]["token"])).sum(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(reached), np.arange(16, 25))


def test_bfloat16_is_near(model, rows):
    saved = read_model(model[1])
    spec = dataclasses.replace(saved.spec, heads=(Normalize(),))
    full, half = (
        jax.jit(build_encoder(spec, compute_dtype=dtype).apply, compiler_options=QUICKLY)(
            saved.params, rows[1]
        )
        for dtype in ("float32", "bfloat16")
    )
    assert np.sum(full * half, axis=1).min() > 0.999


def test_torch_reads_what_we_write(model, tiny_tokenizer, long_ids, tmp_path):
    """The first layer has no norm: whatever the optimizer made of its scale is not written."""
    from transformers import AutoModel

    peer, directory = model
    saved = read_model(directory)
    np.testing.assert_array_equal(
        saved.params["backbone"]["layers"]["attention_norm"]["scale"][0], 1.0
    )
    touched = jax.tree.map(np.array, saved.params)
    touched["backbone"]["layers"]["attention_norm"]["scale"][0] = 0.5
    tokenizer = load_tokenizer(tiny_tokenizer, 32)
    write_model(tmp_path / "ours", saved.spec, touched, tokenizer=tokenizer, max_length=32)
    again = read_model(tmp_path / "ours")
    assert again.spec == saved.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, saved.params)
    tensors = [load_file(path / "model.safetensors") for path in (directory, tmp_path / "ours")]
    jax.tree.map(np.testing.assert_array_equal, *tensors)

    read, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(read) is type(peer) and not any(report.values())
    for result, expected in zip(
        *(torch_states(m.eval(), long_ids[:2]) for m in (read, peer)), strict=True
    ):
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_equals_sentence_transformers(tiny_tokenizer, tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    from embed_jax.sentence import load_sentence_encoder

    texts = [
        "a dog runs in the city",
        "music",
        "",
        "she plays the red guitar, very quickly. and the train made it",
    ]
    tokenizer = load_tokenizer(tiny_tokenizer, 40)
    make(vocab_size=tokenizer.vocab_size).save_pretrained(tmp_path / "plain")
    saved = read_model(tmp_path / "plain")
    spec = dataclasses.replace(saved.spec, pooling="cls", heads=(Normalize(),))
    write_model(tmp_path / "ours", spec, saved.params, tokenizer=tokenizer, max_length=40)
    expected = peer.SentenceTransformer(str(tmp_path / "ours"), device="cpu").encode(texts)
    np.testing.assert_allclose(
        load_sentence_encoder(str(tmp_path / "ours")).encode(texts), expected, atol=1e-5
    )


def test_names_of_a_bigger_model(model, tmp_path):
    from transformers import ModernBertConfig as PeerConfig
    from transformers import ModernBertForMaskedLM

    peer, directory = model
    whole = ModernBertForMaskedLM(PeerConfig(**SIZES, rope_parameters=ROPE))
    whole.model.load_state_dict(peer.state_dict())
    whole.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"head.dense.weight", "model.final_norm.weight"} <= names
    jax.tree.map(
        np.testing.assert_array_equal, read_model(tmp_path).params, read_model(directory).params
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"layers.0.attn_norm.weight": np.ones(32, np.float32)}),
            "unexpected.*layers.0.attn_norm",
        ),
        (
            lambda t: t.pop("layers.1.attn_norm.weight"),
            r"missing tensor 'layers.1.attn_norm.weight' \(shape \(32,\)\)",
        ),
        (
            lambda t: t.update({"layers.1.mlp_norm.bias": np.ones(32, np.float32)}),
            "unexpected.*layers.1.mlp_norm.bias",
        ),
        (
            lambda t: t.update({"layers.2.mlp.Wi.weight": np.ones((95, 32), np.float32)}),
            r"'layers.2.mlp.Wi.weight' has shape \(95, 32\), config.json wants \(96, 32\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(model, tmp_path, change, message):
    tensors = load_file(model[1] / "model.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_bytes((model[1] / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        read_model(tmp_path)
    assert "\n" not in str(error.value)


def test_fewer_layers(model, rows):
    """Layers keep their kinds: a layer that adds nothing can be left out without a change.

    The first layer can't be left out.
    """
    saved = read_model(model[1])
    spec, layers = saved.spec, dict(saved.params["backbone"]["layers"])
    for name in ("output", "down"):
        kernel = layers[name]["kernel"].copy()
        kernel[1] = 0.0
        layers[name] = {"kernel": kernel}
    params = {**saved.params, "backbone": {**saved.params["backbone"], "layers": layers}}
    shorter, fewer = keep_layers(spec, params, [0, 2, 3])
    assert shorter.backbone.layer_types == (FULL, SLIDING, FULL)
    result, expected = (
        jax.jit(build_encoder(s).apply, compiler_options=QUICKLY)(p, rows[1])
        for s, p in [(shorter, fewer), (spec, params)]
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)
    with pytest.raises(InputError, match="layers 1,2: expected 0 among them"):
        keep_layers(spec, params, [1, 2])


def test_initial_weights():
    """Weights have the published standard deviations, smaller before a residual."""
    spec = random_spec("modernbert-tiny", vocab_size=60)
    params = jax.jit(build_encoder(spec).init, compiler_options=QUICKLY)(jax.random.key(0))
    for name, expected in (
        ("query", 0.02),
        ("up", 0.02),
        ("output", 0.02 / 8**0.5),
        ("down", 0.02 / 8**0.5),
    ):
        np.testing.assert_allclose(
            np.std(params["backbone"]["layers"][name]["kernel"]), expected, rtol=0.05
        )


def test_every_layer_as_if_it_were_the_last(model, rows):
    saved = read_model(model[1])
    layer = np.asarray([2])
    result = jax.jit(build_encoder(saved.spec).by_layer, compiler_options=QUICKLY)(
        saved.params, rows[1], layer
    )
    shorter, fewer = keep_first_layers(saved.spec, saved.params, 2)
    assert shorter.backbone.layer_types == (FULL, SLIDING)
    expected = jax.jit(build_encoder(shorter).apply, compiler_options=QUICKLY)(fewer, rows[1])
    np.testing.assert_allclose(result[:, 0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def run(model, long_ids, make_batch):
    """`(rate, key, gradient, **options) -> embeddings` of two texts and copies, or a gradient."""
    saved = read_model(model[1])
    spec, params = saved.spec, saved.params
    tokens = make_batch(
        [[(0, long_ids[2]), (3, long_ids[3])], [(1, long_ids[3])], [(2, long_ids[2])]], 24, 4
    )

    def call(rate, key, gradient=False, **options):
        rates = {"embedding_dropout": rate, "hidden_dropout": rate, "attention_dropout": rate}
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


@pytest.mark.parametrize(
    ("shape", "sizes", "published"),
    [
        ("modernbert-base", {}, 149_014_272),
        (
            "modernbert-large",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 28,
                "intermediate_size": 2624,
                "num_attention_heads": 16,
            },
            394_781_696,
        ),
    ],
)
def test_number_of_parameters(shape, sizes, published):
    torch = pytest.importorskip("torch")
    from transformers import ModernBertConfig as PeerConfig
    from transformers import ModernBertModel

    with torch.device("meta"):
        peer = ModernBertModel(PeerConfig(**sizes, pad_token_id=0))
    spec = random_spec(shape, vocab_size=50368)
    assert FAMILY.read_config(peer.config.to_dict()) == spec.backbone
    result = num_params(jax.eval_shape(build_encoder(spec).init, jax.random.key(0)))
    unused = spec.backbone.hidden_size  # the norm that the first layer lacks
    assert result - unused == sum(p.numel() for p in peer.parameters()) == published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_bias": True}, "norm_bias True is not supported; only False is"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn'.*only 'default' is",
        ),
        (
            {"rope_parameters": {"rope_theta": 1.0}},
            "rope_parameters: expected full_attention and sliding_attention",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types: expected 4, found 1"),
        ({"layer_types": ["local"] * 4}, "layer_types: unknown type 'local'"),
        ({"hidden_activation": "swish7"}, "unknown activation 'swish7'"),
        ({"num_attention_heads": 5}, "hidden size 32 makes no 5 heads"),
        ({"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_unsupported_config(change, message):
    with pytest.raises(InputError, match=message) as error:
        FAMILY.read_config(SIZES | change)
    assert "\n" not in str(error.value)


def test_old_and_new_config():
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    for fields in (
        OLD,
        {"layer_types": kinds, "rope_parameters": ROPE},
        OLD | {"global_attn_every_n_layers": None},
    ):
        assert FAMILY.read_config(SIZES | fields) == CONFIG
    assert FAMILY.read_config(SIZES).local_rope_theta == 10000.0
    assert FAMILY.read_config(SIZES | OLD | {"local_rope_theta": None}).local_rope_theta == 500.0
    assert (
        FAMILY.read_config(SIZES | {"global_attn_every_n_layers": 2}).layer_types
        == (FULL, SLIDING) * 2
    )
    assert alternate_layer_types(5) == (FULL, SLIDING, SLIDING, FULL, SLIDING)


def test_config_round_trip():
    config = dataclasses.replace(
        CONFIG,
        layer_types=(SLIDING, FULL, FULL, FULL),
        embedding_dropout=0.1,
        hidden_dropout=0.2,
        pad_token_id=3,
    )
    assert FAMILY.read_config(FAMILY.write_config(config)) == config
