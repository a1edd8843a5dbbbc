"""SBERT's classification objective equals sentence-transformers'.

For other features the reference is torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses.classification import init_classifier, pair_features, softmax, softmax_loss
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns

DIM, NUM_LABELS = 8, 3
# In the order of table 6, and what makes sentence-transformers build it: representations,
# difference, product.
CONCATENATIONS = {
    "u,v": (True, False, False),
    "|u-v|": (False, True, False),
    "u*v": (False, False, True),
    "|u-v|,u*v": (False, True, True),
    "u,v,u*v": (True, False, True),
    "u,v,|u-v|": (True, True, False),
    "u,v,|u-v|,u*v": (True, True, True),
}


@pytest.mark.parametrize(
    "batch, concatenation",
    [(2, "u,v,|u-v|"), (33, "u,v,|u-v|"), *((7, name) for name in CONCATENATIONS)],
)
def test_equals_sentence_transformers(batch, concatenation, torch_model, peers, equals_torch):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(batch)
    label = rng.integers(NUM_LABELS, size=batch)
    names = (
        "concatenation_sent_rep",
        "concatenation_sent_difference",
        "concatenation_sent_multiplication",
    )
    parts = dict(zip(names, CONCATENATIONS[concatenation], strict=True))
    reference = peers.SoftmaxLoss(torch_model, DIM, NUM_LABELS, **parts).double()
    classifier = reference.classifier
    with torch.no_grad():
        params = {
            "kernel": classifier.weight.float().numpy().T,
            "bias": classifier.bias.float().numpy(),
        }
        params = jax.tree.map(jnp.asarray, params)
    equals_torch(
        softmax,
        lambda features: reference(features, torch.tensor(label)),
        rng.normal(size=(2, batch, DIM)).astype(np.float32),
        {"label": jnp.asarray(label)},
        params,
        lambda: {"kernel": classifier.weight.grad.numpy().T, "bias": classifier.bias.grad.numpy()},
        concatenation=concatenation,
    )


def test_accuracy():
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, DIM)), jnp.float32)
    params = init_classifier(DIM, jax.random.key(0))
    logits = pair_features(*embeddings) @ params["kernel"] + params["bias"]
    right = jnp.array([True, False, True, True, False])
    label = (jnp.argmax(logits, axis=1) + jnp.where(right, 0, 1)) % NUM_LABELS
    columns = make_columns(embeddings, label=label)
    _, _, metrics = softmax.on_world(columns, local_world(columns), params)
    np.testing.assert_array_equal(metrics["accuracy"], right)


def test_parameters_start_as_in_a_linear_layer_of_torch():
    params = softmax.about.init(50, jax.random.key(1), num_labels=4, concatenation="u*v, |u-v|")
    assert params["kernel"].shape == (100, 4) and params["bias"].shape == (4,)
    assert np.abs(params["bias"]).max() <= 0.1
    assert 0.095 < np.abs(params["kernel"]).max() <= 0.1
    assert np.std(params["kernel"]) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)


def test_a_label_out_of_range_gives_nan():
    """Training stops at it and names the example."""
    values = softmax_loss(jnp.zeros((3, NUM_LABELS)), jnp.array([-1, 0, NUM_LABELS]))
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])


def test_wrong_arguments_are_one_line():
    with pytest.raises(
        InputError, match="num_labels of the loss softmax: expected at least 2, found 1"
    ):
        init_classifier(DIM, jax.random.key(0), num_labels=1)
    for concatenation in ("u,v,u-v", ""):
        with pytest.raises(
            InputError, match=r"unknown part of the concatenation .*; known: u, u\*v, v, \|u-v\|"
        ):
            init_classifier(DIM, jax.random.key(0), concatenation=concatenation)
        with pytest.raises(InputError, match="unknown part of the concatenation"):
            pair_features(jnp.ones((1, 2)), jnp.ones((1, 2)), concatenation)
