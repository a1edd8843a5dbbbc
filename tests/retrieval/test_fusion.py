"""Fusion of searches."""

import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.fusion import convex_combination, reciprocal_rank_fusion, sort_results


def test_reciprocal_ranks_count_from_one_and_only_where_a_document_was_found():
    fused = reciprocal_rank_fusion([{"a": 3.0, "b": 2.0}, {"b": 9.0, "c": 1.0}])
    assert fused == {"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62}
    assert list(fused) == ["b", "a", "c"]
    weighted = reciprocal_rank_fusion([{"a": 3.0}, {"b": 9.0}], weights=[2, 1])
    assert list(weighted) == ["a", "b"] and weighted["a"] == 2 * weighted["b"]


def test_scores_are_normalised_for_each_query():
    """A search of large scores has no more weight than one of small scores."""
    few, many = {"a": 0.9, "b": 0.5, "c": 0.1}, {"c": 900.0, "b": 500.0, "a": 100.0}
    fused = convex_combination([few, many])
    assert fused == {"c": 0.5, "b": 0.5, "a": 0.5} and list(fused) == ["c", "b", "a"]
    assert convex_combination([few, many], weights=[0.8, 0.2])["a"] == 0.8
    assert convex_combination([{"a": 7.0}, {}]) == {"a": 0.5}
    assert convex_combination([{}, {}]) == {} == reciprocal_rank_fusion([])


def test_equal_scores_and_wrong_weights():
    assert list(sort_results({"a": 1.0, "c": 1.0, "b": 1.0}, 2)) == ["c", "b"]
    with pytest.raises(InputError, match="weights: expected one for each of 2 searches, found 1"):
        reciprocal_rank_fusion([{}, {}], weights=[1])
