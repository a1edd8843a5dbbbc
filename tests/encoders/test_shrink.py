"""Models with fewer layers or dimensions equal the same computation by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import (
    add_pca,
    keep_first_layers,
    keep_layers,
    parse_layers,
    pca_head,
)
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError
from embed_jax.registry import lookup


@pytest.fixture(scope="module")
def model():
    """Returns `(spec, params)` of four layers with random biases and norms."""
    spec = random_spec("tiny", vocab_size=60)
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, num_layers=4))
    leaves, tree = jax.tree.flatten(jax.eval_shape(build_encoder(spec).init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return spec, jax.tree.unflatten(
        tree, [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    )


@pytest.mark.parametrize("name", ["bert", "mpnet", "deberta-v2"])
def test_without_its_first_layer_a_model_is_as_torch_s_with_one_that_changes_nothing(
    name, torch_models, ids, unpacked
):
    torch = pytest.importorskip("torch")
    reference, directory = torch_models[name]
    saved = read_model(directory)
    spec, params = keep_layers(saved.spec, saved.params, [1])
    ours = np.asarray(build_encoder(spec).hidden(params, unpacked))

    class Same(torch.nn.Module):
        def forward(self, hidden, *_, **__):
            return (hidden, None) if name != "bert" else hidden

    first = reference.encoder.layer[0]
    try:
        reference.encoder.layer[0] = Same()
        for row, tokens in enumerate(ids):
            with torch.no_grad():
                expected = (
                    reference(torch.tensor(tokens[None], dtype=torch.long))
                    .last_hidden_state[0]
                    .numpy()
                )
            np.testing.assert_allclose(ours[row, : len(tokens)], expected, atol=1e-4)
    finally:
        reference.encoder.layer[0] = first


def test_the_first_layers_give_the_hidden_states_in_between(model, packed, states):
    spec, params = model
    family = lookup("backbone", spec.backbone.family)
    module = family.module(spec.backbone, np.float32)
    apply = jax.jit(module.apply, static_argnums=3)
    every = apply({"params": params["backbone"]}, packed, None, True)
    for number in (1, 3):
        fewer, fewer_params = keep_first_layers(spec, params, number)
        assert fewer.backbone.num_layers == number
        result = jax.jit(build_encoder(fewer).hidden)(fewer_params, packed)
        for ours, expected in zip(
            states(result, packed), states(every[number - 1], packed), strict=True
        ):
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_all_layers_kept_are_the_same_model_and_nothing_is_changed_in_place(model):
    spec, params = model
    before = jax.tree.map(np.copy, params)
    same, same_params = keep_layers(spec, params, range(4))
    assert same == spec
    keep_layers(spec, params, [0, 3])
    jax.tree.map(np.testing.assert_array_equal, same_params, params)
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
            keep_first_layers(*model, number)
    spec, params = model
    without = {"backbone": {"embeddings": params["backbone"]["embeddings"]}, "heads": {}}
    with pytest.raises(
        InputError, match="layers 0,1: a backbone of the family 'bert' has no layers"
    ):
        keep_first_layers(spec, without, 2)


# ---- principal components ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embeddings():
    """Returns float32 embeddings of uneven spread around a mean that is not zero."""
    rng = np.random.default_rng(1)
    return (
        rng.normal(size=(300, 20)) * np.geomspace(3, 0.1, 20) @ rng.normal(size=(20, 20)) + 2
    ).astype(np.float32)


def test_the_head_is_the_principal_components_of_svd(embeddings):
    """Directions and order equal those of the singular value decomposition."""
    head, params = pca_head(embeddings, 6)
    assert (head.in_features, head.out_features, head.bias, head.activation) == (
        20,
        6,
        False,
        "identity",
    )
    kernel = params["kernel"]
    assert kernel.dtype == np.float32 and kernel.shape == (20, 6)
    centred = embeddings.astype(np.float64) - embeddings.mean(0, np.float64)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:6].T
    np.testing.assert_allclose(kernel, expected * np.sign((kernel * expected).sum(0)), atol=1e-5)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(6), atol=1e-6)
    assert (kernel[np.abs(kernel).argmax(0), range(6)] > 0).all()
    rotation = pca_head(embeddings, 20)[1]["kernel"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(20), atol=1e-6)
    np.testing.assert_array_equal(rotation[:, :6], kernel)


def test_order_and_sign_of_the_embeddings_do_not_matter_and_it_turns_with_them(embeddings):
    kernel = pca_head(embeddings, 6)[1]["kernel"]
    np.testing.assert_allclose(pca_head(embeddings[::-1], 6)[1]["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(pca_head(-embeddings, 6)[1]["kernel"], kernel, atol=1e-5)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(20, 20)))[0]
    turned = rotation.T @ pca_head(embeddings, 6)[1]["kernel"]
    result = pca_head(embeddings @ rotation, 6)[1]["kernel"]
    np.testing.assert_allclose(result @ result.T, turned @ turned.T, atol=1e-4)


@pytest.mark.parametrize("heads", [(), (Dense(32, 24, activation="tanh"), Normalize())])
def test_the_projection_stands_before_a_last_normalize(model, unpacked, heads):
    """Projection and scaling commute, so embeddings keep length 1 if they had it."""
    spec = dataclasses.replace(model[0], heads=heads)
    own = {
        str(n): head.init(jax.random.key(n))
        for n, head in enumerate(heads)
        if isinstance(head, Dense)
    }
    params = {**model[1], "heads": own}
    encoder = build_encoder(spec)
    whole = np.asarray(jax.jit(encoder.apply)(params, unpacked), np.float64)
    made = np.random.default_rng(0).normal(size=(50, encoder.dim))
    small, smaller = add_pca(spec, params, made, 5)
    assert smaller["heads"].keys() == {
        str(n) for n, head in enumerate(small.heads) if isinstance(head, Dense)
    }
    result = np.asarray(jax.jit(build_encoder(small).apply)(smaller, unpacked))
    expected = whole @ pca_head(made, 5)[1]["kernel"]
    if heads:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_what_has_no_principal_components(embeddings):
    for dim in (0, -1, 21):
        with pytest.raises(
            InputError, match=f"dim: expected 1 to 20, the size of the embeddings, found {dim}"
        ):
            pca_head(embeddings, dim)
    with pytest.raises(
        InputError, match="dim 6: expected embeddings of more texts than dimensions, found 6"
    ):
        pca_head(embeddings[:6], 6)
    pca_head(embeddings[:7], 6)
    for bad in (np.nan, np.inf):
        broken = embeddings.copy()
        broken[17, 3] = bad
        with pytest.raises(
            InputError, match="dim 6: the embedding of text 17, from 0, is not finite"
        ):
            pca_head(broken, 6)


def test_layer_numbers():
    assert parse_layers("0,2, 4") == [0, 2, 4]
    for text in ("", "0,", "0-2", "1.5"):
        with pytest.raises(
            InputError, match="layers: expected numbers with commas between, such as 0,2,4, found"
        ):
            parse_layers(text)
