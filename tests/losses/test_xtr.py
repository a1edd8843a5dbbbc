"""XTR: against loops, slopes and sentence-transformers. test_scores.py has forms and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import distillation, in_batch
from embed_jax.losses.base import bind
from embed_jax.losses.expression import build_loss
from embed_jax.losses.nested import matryoshka
from embed_jax.scores import find_score
from embed_jax.vectors import normalize
from embed_jax.world import LocalWorld
from embed_jax.xtr import XTR, xtr

from .test_scores import (
    BATCH,
    QUICKLY,
    mean,
    token_columns,
    tokens_of,
    values_of,
    with_tokens,
)

TOP_K = 20  # of at most 112 tokens of documents


def xtr_by_loops(columns, top_k=TOP_K):
    """Returns xtr(query, document) of each (column, example), token by token."""
    tokens = [np.asarray(column["tokens"], np.float64) for column in columns.embeddings]
    masks = [np.asarray(column["mask"]) for column in columns.embeddings]
    present = np.asarray(columns.present)
    documents = [
        (column, example, place)
        for column in range(1, len(tokens))
        for example in range(BATCH)
        for place in np.flatnonzero(masks[column][example] & present[column, example])
    ]

    def score(query, document):
        best = []
        for place in np.flatnonzero(masks[query[0]][query[1]]):
            token = tokens[query[0]][query[1], place]
            products = {key: token @ tokens[key[0]][key[1], key[2]] for key in documents}
            retrieved = sorted(products, key=products.get, reverse=True)[:top_k]
            own = [products[key] for key in retrieved if key[:2] == document]
            best += [max(own)] if own else []
        return sum(best) / max(len(best), 1)

    return score


@functools.cache
def gradient_of_margin_mse():
    columns = token_columns()
    loss = bind(distillation.margin_mse, similarity=xtr(TOP_K))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def gradient(tokens):
        def value(tokens):
            own = with_tokens(columns, tokens)
            return mean(loss, own, LocalWorld(own), {})

        return jax.value_and_grad(value)(tokens)

    return gradient(tokens_of(columns))


def test_values_equal_loops_with_both_directions_and_a_missing_document():
    """A document that an example lacks takes nothing of the `top_k`."""
    columns = token_columns()
    columns = columns.replace(present=columns.present.at[2, 3].set(False))
    score = xtr_by_loops(columns)
    loss = bind(in_batch.info_nce, similarity=xtr(TOP_K), temperature=0.5, terms="qp,pq")
    values = values_of(loss, columns)
    zeros = 0
    for i in range(BATCH):
        positive = score((0, i), (1, i))
        others = [score((0, i), (1, j)) for j in range(BATCH) if j != i]
        others += [score((0, i), (2, j)) for j in range(BATCH) if j != 3]
        others += [score((0, j), (1, i)) for j in range(BATCH) if j != i]
        expected = np.log1p(np.sum(np.exp((np.array(others) - positive) / 0.5)))
        assert float(values[i]) == pytest.approx(expected, rel=1e-5)
        zeros += others.count(0.0)
    assert 10 < zeros < BATCH * BATCH, "some documents are not found, others are"


def test_the_gradient_equals_slopes_of_the_loops():
    columns = token_columns()
    _, gradient = gradient_of_margin_mse()

    def value(columns):
        score, total = xtr_by_loops(columns), 0.0
        for i in range(BATCH):
            margin = score((0, i), (1, i)) - score((0, i), (2, i))
            total += (margin - float(columns.score[i, 0] - columns.score[i, 1])) ** 2
        return total / BATCH

    step, slopes = 1e-4, 0
    places = [np.argwhere(np.abs(np.asarray(each)) > 1e-3) for each in gradient]
    places = [(column, *place) for column in range(3) for place in places[column][:9:4]]
    for column, *place in [*places, (1, 0, 6, 0)]:
        slope = 0.0
        for sign in (1, -1):
            tokens = [np.array(each, np.float64) for each in tokens_of(columns)]
            tokens[column][tuple(place)] += sign * step
            slope += sign * value(with_tokens(columns, tokens)) / (2 * step)
        slopes += abs(slope) > 1e-3
        assert float(gradient[column][tuple(place)]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert slopes >= 6


def test_losses_and_gradients_equal_sentence_transformers():
    torch = pytest.importorskip("torch")
    scoring = pytest.importorskip("sentence_transformers.multi_vector_encoder.scoring")

    columns = token_columns()
    columns = columns.replace(  # no document is empty, which has another score there
        embeddings=tuple(
            {**tree, "mask": tree["mask"].at[:, 0].set(True)} for tree in columns.embeddings
        )
    )
    masks = [torch.tensor(np.array(tree["mask"])) for tree in columns.embeddings]
    info_nce = bind(
        in_batch.info_nce, similarity=xtr(TOP_K), temperature=0.25, mask_duplicates=False
    )
    kl = bind(distillation.kl, similarity=xtr(TOP_K), temperature=1.0)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def gradients(tokens):
        def value(tokens, loss):
            own = with_tokens(columns, tokens)
            return mean(loss, own, LocalWorld(own), {})

        return [jax.value_and_grad(value)(tokens, loss) for loss in (info_nce, kl)]

    ours = gradients(tokens_of(columns))
    for (value, gradient), made in zip(ours, (scoring.XTRScores, scoring.XTRKDScores), strict=True):
        tokens = [torch.tensor(np.array(each), requires_grad=True) for each in tokens_of(columns)]
        scores = made(top_k=TOP_K)(
            tokens[0],
            torch.stack(tokens[1:], dim=1),
            queries_mask=masks[0],
            documents_mask=torch.stack(masks[1:], dim=1),
        )
        if scores.shape[1] > 2:
            expected = torch.nn.functional.cross_entropy(scores / 0.25, torch.arange(BATCH) * 2)
        else:
            teacher = torch.log_softmax(torch.tensor(np.array(columns.score)), dim=-1)
            student = torch.log_softmax(scores, dim=-1)
            expected = (teacher.exp() * (teacher - student)).sum(dim=-1).mean()
        expected.backward()
        assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
        for mine, token in zip(gradient, tokens, strict=True):
            np.testing.assert_allclose(mine, token.grad.numpy(), atol=1e-5)


def test_all_tokens_found_is_the_mean_of_maxsim():
    columns = token_columns()
    xtr_values, mean_values = (
        values_of(bind(in_batch.info_nce, similarity=score, temperature=0.5), columns)
        for score in (xtr(1000), "mean_maxsim")
    )
    np.testing.assert_allclose(xtr_values, mean_values, rtol=1e-5)


def test_equal_tokens_are_found_together():
    """Of two documents alike, both are found, on whichever device or in whichever tile they are."""
    columns = token_columns().select([0, 1])
    query, document = columns.embeddings
    tokens = document["tokens"].at[2, 0].set(query["tokens"][2, 0])  # nothing is nearer to it
    document = {**document, "tokens": tokens}
    document = jax.tree.map(lambda leaf: leaf.at[5].set(leaf[2]), document)
    columns = columns.replace(embeddings=(query, document))
    score = xtr(1)
    queries, documents = score.in_world(columns, LocalWorld(columns))[0].embeddings
    scores = score.matrix(score.prepare(queries, ()), score.prepare(documents, ()), ())[0]
    np.testing.assert_array_equal(scores[:, 5], scores[:, 2])
    assert scores[2, 2] > 0


def test_prefixes_of_tokens_are_those_of_short_tokens():
    """Each prefix finds its own tokens."""
    columns = token_columns()
    plain = bind(in_batch.info_nce, similarity=xtr(TOP_K), temperature=0.5)
    result, expected = values_of(matryoshka(plain, dims="4,2"), columns), 0.0
    for size in (4, 2):
        short = [normalize(tokens[..., :size]) for tokens in tokens_of(columns)]
        expected += values_of(plain, with_tokens(columns, short))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_what_is_refused_in_one_line():
    columns = token_columns()
    assert find_score("xtr") is XTR
    with pytest.raises(InputError, match="top_k: expected 1 or more, found 0"):
        xtr(0)
    with pytest.raises(InputError, match="'xtr': a score depends on all documents of the batch"):
        jax.eval_shape(lambda: XTR.of_lists(columns.embeddings[0], columns.embeddings[1:]))
    with pytest.raises(InputError, match="'xtr' compares a query with a document, never"):
        gte = build_loss("gte(similarity='xtr')")
        jax.eval_shape(lambda: gte.on_world(columns, LocalWorld(columns), {})[0])
    with pytest.raises(InputError, match="maxsim: expected embeddings of tokens"):
        build_loss("info_nce(similarity='xtr')")(jnp.eye(2), jnp.eye(2))
