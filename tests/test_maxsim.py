"""The scores of token embeddings, by numbers that can be checked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.maxsim import MAXSIM, MEAN_MAXSIM


def embeddings(cosines, mask):
    """Tokens whose first number is their product with the token (1, 0, ...) of a query."""
    return {"tokens": jnp.asarray(cosines, jnp.float32)[None], "mask": jnp.asarray([mask])}


def test_the_best_match_of_each_query_token_counts():
    """The query "return tablet": its tokens find "refund" (.93) and "tablets" (.91)."""
    query = embeddings([[1, 0], [0, 1]], [True, True])
    document = embeddings([[0.93, 0.2], [0.1, 0.91], [0.99, 0.99]], [True, True, False])
    for score, expected in ((MAXSIM, 1.84), (MEAN_MAXSIM, 0.92)):
        scores = score.of_lists(query, [document])
        np.testing.assert_allclose(scores, [[expected]], atol=1e-6)


def test_masked_query_tokens_and_empty_documents_score_nothing():
    query = embeddings([[1, 0], [0, 1]], [True, False])
    document = embeddings([[-0.5, 1.0], [-0.25, 1.0]], [True, True])
    empty = embeddings([[0.9, 0.9], [0.9, 0.9]], [False, False])
    for score in (MAXSIM, MEAN_MAXSIM):
        np.testing.assert_allclose(score.of_lists(query, [document, empty]), [[-0.25], [0.0]])


def test_vectors_of_texts_are_refused_in_one_line():
    with pytest.raises(InputError, match="maxsim: expected embeddings of tokens"):
        MAXSIM.of_lists(jnp.eye(2), [jnp.eye(2)])
