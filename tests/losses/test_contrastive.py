"""InfoNCE: textbook values, gradients by finite differences, equality with sentence-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.losses.contrastive import in_batch_info_nce, info_nce, normalize, softmax_cross_entropy
from embed_jax.types import Columns


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def test_textbook_values():
    queries = jnp.eye(2)
    passages = jnp.array([[0.95, 0.05], [0.10, 0.90]])
    loss = info_nce(queries, passages, jnp.arange(2), temperature=0.2)
    assert float(loss.mean()) == pytest.approx(0.0104, abs=5e-5)
    far = softmax_cross_entropy(jnp.array([[0.20, 0.90]]) / 0.05, jnp.array([0]))
    assert float(far[0]) == pytest.approx(14.0, abs=1e-4)
    for temperature, probability in ((1, 0.668188), (0.1, 0.999089), (0.05, 0.999999), (0.01, 1.0)):
        loss = softmax_cross_entropy(jnp.array([[0.70, 0.0]]) / temperature, jnp.array([0]))
        assert float(jnp.exp(-loss[0])) == pytest.approx(probability, abs=1e-6)


def test_a_loss_far_below_float32_resolution_is_not_zero():
    """log(1 + e^-14) = 8.315e-7; logsumexp(logits) - logit rounds to 0 at logits of 1000."""
    loss, gradient = jax.value_and_grad(lambda logits: softmax_cross_entropy(logits, jnp.array([0]))[0])(
        jnp.array([[1000.0, 986.0]])
    )
    assert float(loss) == pytest.approx(8.315e-7, rel=0.01)
    assert np.isfinite(gradient).all() and float(gradient[0, 1]) == pytest.approx(8.315e-7, rel=0.01)


def test_a_masked_row_has_loss_zero_and_a_finite_gradient():
    logits = jnp.array([[1.0, 5.0], [2.0, 1.0]])
    allowed = jnp.array([[True, False], [True, True]])

    def total(logits):
        return jnp.sum(softmax_cross_entropy(logits, jnp.array([0, 0]), allowed))

    loss, gradient = jax.value_and_grad(total)(logits)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
    np.testing.assert_array_equal(gradient[0], [0.0, 0.0])


def test_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(0)
    anchors, candidates = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    labels = jnp.array([0, 2, 4])

    def loss(anchors):
        anchors, fixed = jnp.asarray(anchors, jnp.float32), jnp.asarray(candidates, jnp.float32)
        return jnp.mean(info_nce(anchors, fixed, labels, temperature=0.5))

    gradient, step = jax.grad(loss)(jnp.asarray(anchors, jnp.float32)), 1e-2
    for index in np.ndindex(*anchors.shape):
        high, low = anchors.copy(), anchors.copy()
        high[index] += step
        low[index] -= step
        difference = (float(loss(high)) - float(loss(low))) / (2 * step)
        assert float(gradient[index]) == pytest.approx(difference, abs=2e-4)


def test_zero_vector_is_safe():
    gradient = jax.grad(lambda x: jnp.sum(normalize(x)))(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_a_repeated_anchor_or_positive_makes_no_false_negative():
    """Two examples with one anchor, or with one positive: nothing is left to tell apart, so the loss is 0."""
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 4)), jnp.float32)
    for equal in (0, 1):
        text_hash = jnp.arange(8, dtype=jnp.uint32).reshape(2, 2, 2)
        text_hash = text_hash.at[equal, 1].set(text_hash[equal, 0])
        world = Columns(embeddings, jnp.ones((2, 2), bool), text_hash)
        values, _, metrics = in_batch_info_nce(world, world, jnp.int32(0), {}, symmetric=True)
        np.testing.assert_array_equal(values, [0.0, 0.0])
        np.testing.assert_array_equal(metrics["accuracy"], [1.0, 1.0])
        unmasked, _, _ = in_batch_info_nce(world, world, jnp.int32(0), {}, symmetric=True, mask_duplicates=False)
        assert float(unmasked.sum()) > 0.1


@pytest.mark.parametrize("batch", [2, 7, 33])
@pytest.mark.parametrize("negatives", [0, 2])
def test_equals_sentence_transformers(batch, negatives):
    """Value and gradient of MultipleNegativesRankingLoss (and the symmetric one) on given embeddings, 1e-5 relative."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    rng = np.random.default_rng(batch)
    embeddings = rng.normal(size=(2 + negatives, batch, 16)).astype(np.float32)

    class Given(torch.nn.Module):  # the only thing the loss asks of a model
        def forward(self, features):
            return {"sentence_embedding": features["given"]}

    columns = [torch.tensor(column, requires_grad=True) for column in embeddings]
    reference = losses.MultipleNegativesRankingLoss(Given(), scale=20.0)
    expected = reference([{"given": column} for column in columns], None)
    expected.backward()

    def ours(embeddings):
        world = Columns(
            embeddings=embeddings,
            present=jnp.ones(embeddings.shape[:2], bool),
            text_hash=jnp.arange(embeddings.shape[0] * batch * 2, dtype=jnp.uint32).reshape(-1, batch, 2),
        )
        values, weights, _ = in_batch_info_nce(world, world, jnp.int32(0), {}, temperature=0.05)
        return jnp.sum(values * weights) / jnp.sum(weights)

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(embeddings))
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(gradient, columns, strict=True):
        scale = np.abs(theirs.grad.numpy()).max()
        np.testing.assert_allclose(mine, theirs.grad.numpy(), atol=1e-5 * scale)
