"""FLOPS and L1: equality with sentence-transformers, schedules, metrics, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses.expression import build_loss
from embed_jax.losses.sparsity import flops, l1
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns


def some_weights(columns=3, batch=5, words=11):
    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(size=(columns, batch, words)), 0.0).astype(np.float32)


@pytest.mark.parametrize("threshold", [0, 5])
def test_flops_of_each_side_are_sentence_transformers(threshold, equals_torch):
    peers = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    torch = pytest.importorskip("torch")
    peer = peers.FlopsLoss(None, threshold=threshold or None)

    def reference(side):
        def value(features):
            texts = [feature["embedding"] for feature in features]
            chosen = {"query": texts[:1], "document": texts[1:], "both": texts}[side]
            unused = 0.0 * sum(text.sum() for text in texts)  # with a gradient too
            return peer.compute_loss_from_embeddings(torch.cat(chosen)) + unused

        return value

    for side in ("document", "both"):
        equals_torch(flops, reference(side), some_weights(), side=side, threshold=threshold)
    equals_torch(flops, reference("query"), some_weights(1), side="query", threshold=threshold)


def test_l1_is_the_mean_sum_of_weights_of_the_texts_that_are_there():
    weights = some_weights()
    present = np.ones((3, 5), bool)
    present[2, 3:] = False
    expected = (weights[1].sum() + weights[2, :3].sum()) / 8
    np.testing.assert_allclose(l1(*weights, present=present), expected, rtol=1e-6)


def test_terms_of_a_sum_follow_their_schedule_and_show_active_words():
    expression = (
        "info_nce(similarity='dot', temperature=1.0) + 'quadratic(0, 0.5, 10)' * "
        "flops(side='query') + 0.25 * flops(side='document')"
    )
    loss, weights = build_loss(expression), some_weights()
    columns = make_columns(weights, step=jnp.int32(5))
    values, _, metrics = loss.on_world(columns, local_world(columns), {})
    plain = build_loss("info_nce(similarity='dot', temperature=1.0)")(*weights)
    query, document = flops(*weights, side="query"), flops(*weights, side="document")
    np.testing.assert_allclose(values, plain + 0.125 * query + 0.25 * document, rtol=1e-6)
    active = np.count_nonzero(weights, axis=-1)
    assert float(metrics["flops/active_query"][0]) == pytest.approx(active[0].mean())
    assert float(metrics["flops/active_document"][0]) == pytest.approx(active[1:].mean())


def test_an_unknown_side_and_a_side_without_texts_are_refused():
    with pytest.raises(InputError, match="unknown side 'documents'"):
        flops(*some_weights(), side="documents")
    with pytest.raises(InputError, match="side 'document': expected texts of that side"):
        flops(*some_weights(1), side="document")
