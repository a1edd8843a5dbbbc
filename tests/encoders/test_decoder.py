"""Decoders as encoders: states, gradients and files equal transformers'.

Windows reach as far as they should.
"""

import dataclasses
import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import keep_first_layers, keep_layers
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.registry import lookup

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
WIDTH = 32
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {  # windows are smaller than the texts, of 1 to 16 tokens
    "llama": (
        "llama",
        {"rope_parameters": LLAMA3 | {"rope_theta": 100.0, "original_max_position_embeddings": 32}},
    ),
    "llama-both": (
        "llama",
        {"is_causal": False, "attention_bias": True, "mlp_bias": True, "head_dim": 6},
    ),
    "mistral": ("mistral", {"sliding_window": 3}),
    "mistral-both": ("mistral", {"sliding_window": 3, "is_causal": False}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3-both": ("qwen3", {"head_dim": 12, "is_causal": False, "attention_bias": True}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 3,
            "attn_logit_softcapping": 1.5,
            "query_pre_attn_scalar": 9,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 3,
            "layer_types": LAYERS,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    ),
    "gemma3-both": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "layer_types": LAYERS,
            "use_bidirectional_attention": True,
        },
    ),
}
FEW = ("llama", "gemma3")


def few(of=tuple(CASES)):
    """Marks cases that are not in FEW as slow."""
    return pytest.mark.parametrize(
        "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in of]
    )


@dataclasses.dataclass
class Tokenizer:
    directory: object

    def save(self, directory):
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)


@dataclasses.dataclass
class Case:
    torch: object
    directory: object
    saved: object

    @property
    def backbone(self):
        return self.saved.spec.backbone

    @property
    def params(self):
        return self.saved.params["backbone"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """`(name) -> Case`: a random model of torch, its directory, and our model read from it.

    Norms and biases are random too.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    @functools.cache
    def make(name):
        family, changes = CASES[name]
        sizes = {
            "vocab_size": 60,
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
        sizes |= {
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        }
        config = transformers.AutoConfig.for_model(family, **sizes, **changes)
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        return Case(model, directory, read_model(directory))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them would wait for one another longer than they compute
    yield make
    torch.set_num_threads(threads)


def torch_states(model, ids, left=False):
    """Returns a padded batch's states by sentence, as tensors with gradients."""
    torch = pytest.importorskip("torch")

    longest = max(map(len, ids))
    pads = [(longest - len(x), 0) if left else (0, longest - len(x)) for x in ids]
    tokens = torch.tensor(
        np.stack([np.pad(x, pad) for x, pad in zip(ids, pads, strict=True)]), dtype=torch.long
    )
    mask = torch.tensor(
        np.stack([np.pad(np.ones_like(x), pad) for x, pad in zip(ids, pads, strict=True)])
    )
    states = model(tokens, attention_mask=mask).last_hidden_state
    return [
        row[before : before + len(x)] for row, (before, _), x in zip(states, pads, ids, strict=True)
    ]


def numpy_states(model, ids, **options):
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        return [states.numpy() for states in torch_states(model, ids, **options)]


def our_states(backbone, **options):
    """Returns a compiled `(parameters, tokens) -> hidden states`."""
    module = lookup("backbone", backbone.family).module(backbone, **options)
    return jax.jit(
        lambda params, tokens: module.apply({"params": params}, tokens), compiler_options=QUICKLY
    )


@few()
def test_states_and_gradients_equal_torch(case, name, ids, unpacked, packed, states):
    """Torch gets rows padded left or right; we get one text per row, or packed rows."""
    torch = pytest.importorskip("torch")

    model, weights = (
        case(name),
        np.random.default_rng(0).normal(size=(60, WIDTH)).astype(np.float32),
    )
    module = lookup("backbone", model.backbone.family).module(model.backbone)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(params, tokens):
        def total(params):
            hidden = module.apply({"params": params}, tokens)
            mask = (tokens.sentence < tokens.sentences)[..., None]
            return jnp.sum(
                jnp.where(mask, hidden * jnp.asarray(weights)[tokens.token_ids], 0.0)
            ), hidden

        return jax.grad(total, has_aux=True)(params)

    expected = torch_states(model.torch, ids)
    model.torch.zero_grad()
    sum((s * torch.tensor(weights[x])).sum() for s, x in zip(expected, ids, strict=True)).backward()
    grads = {key: parameter.grad.numpy() for key, parameter in model.torch.named_parameters()}
    left = numpy_states(model.torch, ids, left=True)
    for tokens in (unpacked, packed):
        gradient, hidden = run(model.params, tokens)
        for ours, reference, last in zip(states(hidden, tokens), expected, left, strict=True):
            np.testing.assert_allclose(ours, reference.detach().numpy(), atol=1e-4)
            np.testing.assert_allclose(ours[-1], last[-1], atol=1e-4)
        assert_same_gradient(gradient, as_params(model.directory, grads))


def as_params(directory, tensors):
    """Reads tensors under transformers' names as our tree, from a file."""
    other = directory.parent / f"{directory.name}-tensors"
    other.mkdir(exist_ok=True)
    shutil.copy(directory / "config.json", other)
    save_file(tensors, other / "model.safetensors")
    return read_model(other).params["backbone"]


def assert_same_gradient(result, expected):
    result, expected = (
        dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (result, expected)
    )
    assert result.keys() == expected.keys()
    for path, reference in expected.items():
        size = np.linalg.norm(reference)
        assert size > 1e-3, path
        assert np.linalg.norm(result[path] - reference) < 1e-3 * size, path


@pytest.mark.parametrize("name", [name for name in CASES if name not in FEW])
def test_states_equal_torch(case, name, ids, unpacked, states):
    """Compares states without gradients.

    One sentence has no padding, for which transformers makes no mask.
    """
    model = case(name)
    result = states(our_states(model.backbone)(model.params, unpacked), unpacked)
    for attention in ("eager", "sdpa") if model.backbone.softcap is None else ("eager",):
        model.torch.set_attn_implementation(attention)
        for ours, reference in zip(result, numpy_states(model.torch, ids), strict=True):
            np.testing.assert_allclose(ours, reference, atol=1e-4)
        np.testing.assert_allclose(result[2], numpy_states(model.torch, ids[2:3])[0], atol=1e-4)


@few([name for name in CASES if "-" not in name])
def test_embeddings_in_bfloat16_are_near_those_in_float32(case, name, ids, unpacked, states):
    model = case(name)
    result = states(
        our_states(model.backbone, dtype=jnp.bfloat16)(model.params, unpacked), unpacked
    )
    for ours, reference in zip(result, numpy_states(model.torch, ids), strict=True):
        assert ours.dtype == jnp.bfloat16
        ours = ours.astype(np.float32)
        for a, b in ((ours.mean(0), reference.mean(0)), (ours[-1], reference[-1])):
            assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_parameters_stored_in_bfloat16_are_cast_after_they_are_taken(case, packed):
    model = case("gemma2")
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    run = our_states(model.backbone)
    expected = run(jax.tree.map(lambda leaf: leaf.astype(np.float32), stored), packed)
    assert run(stored, packed).dtype == np.float32
    np.testing.assert_allclose(run(stored, packed), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "causal", "reach"),
    [
        ("mistral", True, 6),
        ("mistral", False, 6),
        pytest.param("gemma2", True, 16, marks=pytest.mark.slow),
    ],
)
def test_who_sees_whom(case, name, causal, reach, make_batch):
    """Gradients of each state for each embedding show which tokens it sees.

    Three layers with a window of 3 reach 6 tokens back.
    """
    model = case(name)
    backbone = dataclasses.replace(model.backbone, causal=causal)
    module = lookup("backbone", backbone.family).module(backbone)
    length, weight = 11, np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    tokens = make_batch([[(0, np.arange(20, 20 + length, dtype=np.int32))]], length, 1)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    @jax.jacrev
    def influence(table):
        params = {**model.params, "embeddings": {"token": table}}
        return module.apply({"params": params}, tokens)[0] @ weight

    result = np.linalg.norm(influence(model.params["embeddings"]["token"]), axis=-1)[
        :, 20 : 20 + length
    ]
    back = np.arange(length)[:, None] - np.arange(length)
    seen = (back >= 0 if causal else True) & (np.abs(back) <= reach)
    assert (result[~seen] == 0).all() and (result[seen] > 1e-6).all()


@pytest.mark.parametrize("name", CASES)
def test_torch_reads_what_we_write(case, name, tiny_tokenizer, ids, tmp_path):
    from transformers import AutoModel

    model = case(name)
    write_model(
        tmp_path,
        model.saved.spec,
        model.saved.params,
        tokenizer=Tokenizer(tiny_tokenizer),
        max_length=32,
    )
    again = read_model(tmp_path)
    assert again.spec == model.saved.spec
    jax.tree.map(np.testing.assert_array_equal, again.params, model.saved.params)
    options = {"attn_implementation": "eager", "output_loading_info": True}
    read, report = AutoModel.from_pretrained(tmp_path, **options)
    assert type(read) is type(model.torch) and not any(report.values())
    model.torch.set_attn_implementation("eager")
    for ours, reference in zip(
        numpy_states(read, ids), numpy_states(model.torch, ids), strict=True
    ):
        np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize(
    ("name", "layers"), [("gemma2", [1]), ("gemma3", [0, 1]), ("qwen2-windows", [0, 2])]
)
def test_layers_kept_are_of_the_kinds_they_were(
    case, name, layers, tiny_tokenizer, ids, unpacked, states, tmp_path
):
    from transformers import AutoModel

    model = case(name)
    spec, params = keep_layers(model.saved.spec, model.saved.params, layers)
    assert spec.backbone.kinds == tuple(model.backbone.kinds[layer] for layer in layers)
    write_model(tmp_path, spec, params, tokenizer=Tokenizer(tiny_tokenizer), max_length=32)
    assert read_model(tmp_path).spec == spec
    expected = numpy_states(
        AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval(), ids
    )
    result = our_states(spec.backbone)(params["backbone"], unpacked)
    for ours, reference in zip(states(result, unpacked), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_the_first_layers_give_the_normalised_states_in_between(case, packed, states):
    model = case("gemma3")
    module = lookup("backbone", "gemma3_text").module(model.backbone)
    run = jax.jit(
        lambda params: module.apply({"params": params}, packed, None, True),
        compiler_options=QUICKLY,
    )
    every = run(model.params)
    assert every.shape == (3, 5, 16, WIDTH)
    spec, params = keep_first_layers(model.saved.spec, model.saved.params, 2)
    result = our_states(spec.backbone)(params["backbone"], packed)
    for ours, expected in zip(states(result, packed), states(every[1], packed), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_causal_model_made_bidirectional(
    case, name, tiny_tokenizer, ids, unpacked, states, tmp_path
):
    """A bidirectional model equals transformers', and its windows keep their distance."""
    from transformers import AutoModel

    model = case(name)
    spec = dataclasses.replace(
        model.saved.spec, backbone=dataclasses.replace(model.backbone, causal=False)
    )
    write_model(
        tmp_path, spec, model.saved.params, tokenizer=Tokenizer(tiny_tokenizer), max_length=32
    )
    assert read_model(tmp_path).spec == spec
    expected = numpy_states(AutoModel.from_pretrained(tmp_path).eval(), ids)
    result = states(our_states(spec.backbone)(model.params, unpacked), unpacked)
    for ours, reference in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)
    assert (
        max(
            np.abs(a - b).max() for a, b in zip(result, numpy_states(model.torch, ids), strict=True)
        )
        > 0.1
    )


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_a_language_model_s_file(case, prefix, tmp_path):
    """The file has an output layer, and buffers that older versions wrote."""
    model = case("gemma3")
    tensors = load_file(model.directory / "model.safetensors")
    tensors = {prefix + key: value for key, value in tensors.items()}
    head = (
        "language_model.lm_head.weight" if prefix == "language_model.model." else "lm_head.weight"
    )
    tensors |= {
        head: np.zeros((60, WIDTH), np.float32),
        f"{prefix}rotary_emb.inv_freq": np.zeros(8, np.float32),
    }
    tensors |= {
        f"{prefix}layers.{i}.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)
        for i in range(3)
    }
    jax.tree.map(np.testing.assert_array_equal, as_params(model.directory, tensors), model.params)
    with pytest.raises(InputError, match="unexpected tensor 'layers.0.self_attn.q_proj.bias'"):
        as_params(
            model.directory,
            tensors | {f"{prefix}layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)},
        )


# ---- training ------------------------------------------------------------------------------------

DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.2}


@pytest.mark.parametrize(
    "which", [DROPOUT, pytest.param({"attention_dropout": 0.3}, marks=pytest.mark.slow)]
)
def test_copies_of_an_example_have_one_dropout_mask(case, which, ids, make_batch):
    model = case("gemma2")
    spec = EncoderSpec(dataclasses.replace(model.backbone, **which))
    tokens = make_batch([[(0, ids[0]), (3, ids[4])], [(1, ids[4])], [(2, ids[0])]], sentences=4)

    def embed(seed, **options):
        encoder = build_encoder(spec, unroll=1, attention="xla", **options)
        return jax.jit(encoder.apply, compiler_options=QUICKLY)(
            model.saved.params, tokens, jax.random.key(seed)
        )

    shared, own = embed(3, same_mask_columns=2), embed(3)
    np.testing.assert_allclose(shared[:2], shared[2:], atol=1e-5)
    assert np.abs(own[:2] - own[2:]).max() > 1e-2


@pytest.mark.slow
def test_recomputed_and_unrolled_layers_of_two_kinds_have_the_same_gradient(case, packed):
    model = case("gemma3")
    spec = EncoderSpec(dataclasses.replace(model.backbone, **DROPOUT))
    weight = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)

    def gradient(**options):
        encoder = build_encoder(spec, attention="xla", **options)
        read = {"read": lambda layer: layer} if options["unroll"] == 2 else {}
        loss = jax.grad(
            lambda p: (encoder.apply(p, packed, jax.random.key(1), **read) * weight).sum()
        )
        return jax.jit(loss, compiler_options=QUICKLY)(model.saved.params)

    expected = gradient(unroll=1)
    for options in ({"unroll": 3, "remat": "layer"}, {"unroll": 2, "remat": "dots"}):
        result = gradient(**options)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), result, expected
        )


def test_sharding_names_what_there_is():
    """Every kernel of a layer and the table are split; no rule has more axes than its parameter."""
    for name in ("qwen2-1.5b", "gemma3-300m"):
        spec = random_spec(name)
        shapes = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))["backbone"]
        split = set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            place = "/".join(key.key for key in path)
            for pattern, axes in lookup("backbone", spec.backbone.family).sharding:
                if re.fullmatch(pattern, place):
                    assert len(axes) == leaf.ndim
                    split.add(place)
            assert place in split or leaf.ndim < 3 and "token" not in place
        assert ("layers/query/bias" in split) == (name == "qwen2-1.5b")
