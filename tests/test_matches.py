"""Matches: they add up to the scores, and name the words they come from."""

import numpy as np
import pytest
import scipy.sparse

from embed_jax.matches import token_matches, word_matches

from .test_late_interaction import DOCUMENTS, QUERIES, VARIANTS, make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_token_matches_add_up_to_maxsim_and_are_where_they_say(tokenizer):
    model = make_model(tokenizer, texts=VARIANTS["fixed"])
    for query in (QUERIES[0], QUERIES[2]):
        matches = token_matches(model, query, [*DOCUMENTS, ""])
        sums = [sum(match.score for match in each) for each in matches]
        expected = model.score([query] * 5, [*DOCUMENTS, ""])
        np.testing.assert_allclose(sums, expected, atol=1e-5)
        for document, each in zip(DOCUMENTS, matches, strict=False):
            words = [match.query for match in each if match.is_word]
            assert words == [token for token in tokenizer.hf.tokenize(query) if token.isalpha()]
            for match in each:  # markers, special tokens and expansions have no place
                if match.span is not None:
                    assert document[slice(*match.span)] == match.document
                else:
                    assert match.document.startswith("[")


def test_word_matches_add_up_to_the_product():
    rng = np.random.default_rng(0)
    query, documents = (
        scipy.sparse.csr_array(np.maximum(rng.normal(size=(rows, 9)), 0)) for rows in (1, 4)
    )
    words = [f"w{number}" for number in range(9)]
    matches = word_matches(query, documents, words)
    sums = [sum(match.score for match in each) for each in matches]
    np.testing.assert_allclose(sums, (documents @ query.T).toarray()[:, 0])
    assert all(each[0].score == max(match.score for match in each) for each in matches if each)
