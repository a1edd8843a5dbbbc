"""Fewer layers, fewer dimensions: against the same computed by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder, random_spec
from embed_jax.encoders.hf import read_model
from embed_jax.encoders.shrink import first_layers, keep_layers
from embed_jax.errors import InputError
from embed_jax.registry import lookup


@pytest.fixture(scope="module")
def model():
    """Four layers, biases and norms random too: `(spec, params)`."""
    spec = random_spec("tiny", vocab_size=60)
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, num_layers=4))
    leaves, tree = jax.tree.flatten(jax.eval_shape(build_encoder(spec).init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return spec, jax.tree.unflatten(tree, [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_without_its_first_layer_a_model_is_as_torch_s_with_one_that_changes_nothing(name, torch_models, ids, unpacked):
    torch = pytest.importorskip("torch")
    theirs, directory = torch_models[name]
    saved = read_model(directory)
    spec, params = keep_layers(saved.spec, saved.params, [1])
    ours = np.asarray(build_encoder(spec).hidden(params, unpacked))

    class Same(torch.nn.Module):
        def forward(self, hidden, *_, **__):
            return (hidden, None) if name == "mpnet" else hidden

    first = theirs.encoder.layer[0]
    try:
        theirs.encoder.layer[0] = Same()
        for row, tokens in enumerate(ids):
            with torch.no_grad():
                expected = theirs(torch.tensor(tokens[None], dtype=torch.long)).last_hidden_state[0].numpy()
            np.testing.assert_allclose(ours[row, : len(tokens)], expected, atol=1e-4)
    finally:
        theirs.encoder.layer[0] = first


def test_the_first_layers_give_the_hidden_states_in_between(model, packed, states):
    spec, params = model
    family = lookup("backbone", spec.backbone.family)
    module = family.module(spec.backbone, np.float32)
    every = module.apply({"params": params["backbone"]}, packed, None, True)
    for number in (1, 3):
        fewer, kept = first_layers(spec, params, number)
        assert fewer.backbone.num_layers == number
        found = build_encoder(fewer).hidden(kept, packed)
        for ours, expected in zip(states(found, packed), states(every[number - 1], packed), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_all_layers_kept_are_the_same_model_and_nothing_is_changed_in_place(model):
    spec, params = model
    before = jax.tree.map(np.copy, params)
    same, kept = keep_layers(spec, params, range(4))
    assert same == spec
    keep_layers(spec, params, [0, 3])
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_layers_chosen_twice_are_layers_of_the_first(model):
    once = keep_layers(*model, [0, 2, 3])
    spec, params = keep_layers(*once, [1, 2])
    expected = keep_layers(*model, [2, 3])
    assert spec == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers: expected one or more of 0 to 3, found none"),
        ([1, 4], "layers 1,4: expected numbers from 0 to 3, found 4"),
        ([-1, 2], "layers -1,2: expected numbers from 0 to 3, found -1"),
        ([1, 1], "layers 1,1: expected ascending numbers, each once, found 1 after 1"),
        ([2, 0], "layers 2,0: expected ascending numbers, each once, found 0 after 2"),
    ],
)
def test_layers_that_cannot_be_kept(model, layers, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        keep_layers(*model, layers)


def test_numbers_of_first_layers_that_cannot_be(model):
    for number in (0, 5, -1):
        with pytest.raises(InputError, match=f"layers: expected 1 to 4, found {number}"):
            first_layers(*model, number)
