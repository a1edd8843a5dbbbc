"""Merging: the ends, the arc between two models, and the mean of several."""

import numpy as np
import pytest

from embed_jax.encoders.merge import merge, slerp
from embed_jax.errors import InputError


def test_slerp_walks_the_great_circle_at_even_speed():
    rng = np.random.default_rng(0)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3, 5)))
    angle = np.arccos(np.vdot(a, b))
    for t in (0.0, 0.25, 0.5, 1.0):
        point = slerp(a, b, t)
        assert np.linalg.norm(point) == pytest.approx(1, abs=1e-6)
        assert np.arccos(np.clip(np.vdot(a, point), -1, 1)) == pytest.approx(t * angle, abs=1e-3)
        np.testing.assert_allclose(slerp(b, a, 1 - t), point, atol=1e-6)
    np.testing.assert_allclose(slerp(2 * a, 2 * b, 0.3), 2 * slerp(a, b, 0.3), atol=1e-6)
    np.testing.assert_allclose(slerp(a, a * 3, 0.5), 2 * a, atol=1e-6)  # parallel: the line
    np.testing.assert_allclose(slerp(a, 0 * a, 0.5), a / 2, atol=1e-6)


def test_layers_are_merged_each_by_itself_and_models_one_after_the_other():
    rng = np.random.default_rng(1)
    trees = [
        {"layers": {"k": rng.normal(size=(2, 4)).astype(np.float32)}, "t": rng.normal(size=3)}
        for _ in range(3)
    ]
    merged = merge(trees, [1, 1, 2])
    for layer in range(2):
        own = [tree["layers"]["k"][layer] for tree in trees]
        np.testing.assert_allclose(
            merged["layers"]["k"][layer], slerp(slerp(own[0], own[1], 0.5), own[2], 0.5), atol=1e-6
        )
    average = merge(trees, [1, 1, 2], "linear")
    np.testing.assert_allclose(
        average["t"], np.average([tree["t"] for tree in trees], axis=0, weights=[1, 1, 2]), 1e-5
    )
    same = merge([trees[0]] * 3)
    np.testing.assert_allclose(same["t"], trees[0]["t"], atol=1e-6)
    for models, weights, method, message in (
        (trees[:1], [], "slerp", "two models"),
        (trees, [1, 2], "slerp", "3 weights"),
        (trees, [], "sphere", "unknown method"),
    ):
        with pytest.raises(InputError, match=message):
            merge(models, weights, method)
