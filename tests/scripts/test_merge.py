"""Merged models on disk, and what is refused."""

import numpy as np
import pytest

import embed_jax
from scripts import merge


@pytest.fixture
def other(tiny_model, tmp_path):
    """The tiny model with other parameters."""
    model = embed_jax.load(str(tiny_model))
    rng = np.random.default_rng(0)
    model.params = _map(
        lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape), model.params
    )
    model.save(tmp_path / "other")
    return tmp_path / "other"


def _map(function, tree):
    return {
        name: _map(function, leaf) if isinstance(leaf, dict) else function(leaf).astype(np.float32)
        for name, leaf in tree.items()
    }


def test_a_merged_model_lies_between_and_a_model_merged_with_itself_is_itself(
    run, tiny_model, other, sentences, tmp_path
):
    for second, name in ((other, "between"), (tiny_model, "same")):
        status, out, err = run(
            merge, "--models", f"{tiny_model},{second}", "--output", tmp_path / name
        )
        assert (status, err, out) == (0, "", f"model: {tmp_path / name}\n")
    left, right, between, same = (
        embed_jax.load(str(path)).encode(sentences[:8])
        for path in (tiny_model, other, tmp_path / "between", tmp_path / "same")
    )
    np.testing.assert_allclose(same, left, atol=1e-6)
    apart = np.linalg.norm(left - right)
    assert (
        0 < np.linalg.norm(left - between) < apart and 0 < np.linalg.norm(right - between) < apart
    )


def test_what_is_refused(refused, tiny_model, tmp_path):
    output = ("--output", tmp_path / "merged")
    for arguments, message in (
        (("--models", "a"), "--models: expected two or more, found 1"),
        (("--models", "a,b", "--weights", "1"), "--weights: expected 2 numbers above 0"),
        (
            ("--models", "a,b", "--weights", "1,x"),
            "--weights: expected numbers separated by commas, found '1,x'",
        ),
        (("--models", f"{tiny_model},./none"), "no such directory"),
    ):
        assert message in refused(merge, *arguments, *output)
