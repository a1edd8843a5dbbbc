"""Each architecture equals transformers' torch class.

Hidden states to 1e-4, parameter gradients to 1e-3 relative.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders.bert import BertConfig, relative_bucket
from embed_jax.encoders.read import read_model
from embed_jax.encoders.weights import params_from_tensors
from embed_jax.errors import InputError
from embed_jax.registry import lookup

ARCHITECTURES = [
    "bert",
    "roberta",
    "xlm-roberta",
    "mpnet",
    "distilbert",
    "electra",
    "nomic_bert",
    "deberta-v2",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_torch(name, torch_models, ids, packed, unpacked, states):
    torch = pytest.importorskip("torch")

    model, directory = torch_models[name]
    saved = read_model(directory)
    family = lookup("backbone", name)
    module = family.module(saved.spec.backbone)
    weight = np.random.default_rng(2).normal(size=(16, 32)).astype(np.float32)  # by position

    model.zero_grad()
    expected = [model(torch.tensor(x[None]), output_hidden_states=True) for x in ids]
    weights = [torch.tensor(weight[: len(x)]) for x in ids]
    sum(
        (e.last_hidden_state[0] * w).sum() for e, w in zip(expected, weights, strict=True)
    ).backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    gradients |= {
        n: np.zeros(p.shape, np.float32) for n, p in model.named_parameters() if p.grad is None
    }
    gradients = params_from_tensors(family, saved.params["backbone"], gradients, directory)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(params, tokens):
        layers = module.apply({"params": params}, tokens, None, True)
        real = (tokens.sentence < tokens.sentences)[..., None]
        return jnp.sum(
            jnp.where(real, layers[-1] * jnp.asarray(weight)[tokens.position], 0.0)
        ), layers

    for tokens in (unpacked, packed):
        (_, layers), result = run(saved.params["backbone"], tokens)
        for number in range(2):
            for ours, reference in zip(states(layers[number], tokens), expected, strict=True):
                reference = reference.hidden_states[number + 1][0].detach().numpy()
                np.testing.assert_allclose(ours, reference, atol=1e-4)
        jax.tree.map(_close, result, gradients)


def _close(ours, reference):
    # Relative to the leaf; the bias of keys has no influence, so its gradient is rounding and wants
    # an absolute bound.
    assert np.linalg.norm(ours - reference) <= 1e-3 * np.linalg.norm(reference) + 1e-3


def test_padding_has_no_gradient(torch_models, packed):
    saved = read_model(torch_models["bert"][1])
    module = lookup("backbone", "bert").module(saved.spec.backbone)
    padding = packed.sentence == packed.sentences

    def loss(params, token_ids):
        hidden = module.apply({"params": params}, packed.replace(token_ids=token_ids))
        return jnp.sum(jnp.where(padding[..., None], 0.0, hidden**2)), hidden

    # Another id at padding (59, used nowhere else) changes no state, and its embedding gets a
    # gradient of zero.
    unused = np.where(padding, 59, np.where(packed.token_ids == 59, 58, packed.token_ids))
    zeros = np.where(padding, 0, unused)
    run = jax.jit(jax.grad(loss, has_aux=True))
    gradient, hidden = run(saved.params["backbone"], unused)
    _, other = run(saved.params["backbone"], zeros)
    assert np.isfinite(hidden).all()
    np.testing.assert_array_equal(hidden[~padding], other[~padding])
    np.testing.assert_array_equal(gradient["embeddings"]["token"][59], 0.0)


def test_relative_bucket_equals_mpnet():
    torch = pytest.importorskip("torch")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance = np.arange(-600, 600)
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(distance), num_buckets=32).numpy()
    np.testing.assert_array_equal(relative_bucket(jnp.asarray(distance), 32), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"hidden_act": "gelu_fast"}, "unknown activation 'gelu_fast'.*known: "),
        ({"is_decoder": True}, "is_decoder"),
        ({"vocab_size": None}, "missing vocab_size"),
    ],
)
def test_unsupported_config(change, message):
    config = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    family = lookup("backbone", "bert")
    ours = dict(
        vocab_size=60,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_positions=32,
    )
    assert family.read_config(config) == BertConfig(**ours, embedding_size=32)
    with pytest.raises(InputError, match=message):
        family.read_config(config | change)
