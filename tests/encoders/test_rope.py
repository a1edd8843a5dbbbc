"""Rotary positions: transformers' frequencies, both spellings, and the products of positions."""

import numpy as np
import pytest

from embed_jax.encoders.layers import rotate
from embed_jax.encoders.rope import Rope, frequencies, read_rope, rope_rotation, write_rope
from embed_jax.errors import InputError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
CASES = [
    ({"rope_type": "default"}, 10000.0),
    ({"rope_type": "linear", "factor": 4.0}, 10000.0),
    (LLAMA3 | {"original_max_position_embeddings": 64}, 500000.0),
    (LLAMA3, 500.0),  # of max_position_embeddings
    (YARN, 10000.0),
    (YARN | {"truncate": False, "beta_fast": 16.0, "beta_slow": 2.0}, 1e6),
    (YARN | {"attention_factor": 1.7}, 50.0),
    (YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "factor": 32}, 10000.0),
    (YARN | {"original_max_position_embeddings": 2}, 10000.0),  # all waves are long
]


@pytest.mark.parametrize("size", [64, 10])
@pytest.mark.parametrize(("scaling", "theta"), CASES)
def test_frequencies_are_those_of_transformers(scaling, theta, size):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 4 * size, "num_attention_heads": 4, "max_position_embeddings": 2048}
    config = transformers.LlamaConfig(**sizes, rope_parameters=scaling | {"rope_theta": theta})
    embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    rope = read_rope(config.to_dict(), 1.0)
    assert rope.theta == theta
    inverse_frequencies, length = frequencies(rope, size)
    np.testing.assert_allclose(inverse_frequencies, embedding.inv_freq.numpy(), rtol=2e-6)
    np.testing.assert_allclose(length, embedding.attention_scaling, rtol=1e-9)


@pytest.mark.parametrize(("scaling", "theta"), CASES)
def test_both_spellings_are_read(scaling, theta):
    """Both spellings are read; the new one is written."""
    positions = {"max_position_embeddings": 2048}
    rope = read_rope(positions | {"rope_parameters": scaling | {"rope_theta": theta}}, 1.0)
    older = {("type" if field == "rope_type" else field): value for field, value in scaling.items()}
    assert read_rope(positions | {"rope_theta": theta, "rope_scaling": older}, 1.0) == rope
    assert read_rope(positions | {"rope_parameters": write_rope(rope)}, 1.0) == rope
    assert read_rope({"rope_parameters": write_rope(rope)}, 1.0) == rope, "with all that it needs"


def test_what_a_file_leaves_unsaid():
    assert read_rope({}, 7.0) == Rope(theta=7.0)
    assert read_rope({"rope_theta": 9, "rope_scaling": None}, 7.0) == Rope(theta=9.0)
    own = {"rope_scaling": LLAMA3, "max_position_embeddings": 256}
    assert read_rope(own, 7.0).original_max_position_embeddings == 256
    own |= {"original_max_position_embeddings": 64}
    assert read_rope(own, 7.0).original_max_position_embeddings == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type 'dynamic' is not supported; accepted are default, linear, "
            "llama3, yarn",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type 'longrope'"),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters has no factor, which rope_type 'linear' needs",
        ),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": None}}, "has no high_freq_factor"),
        (
            {"rope_parameters": LLAMA3 | {"high_freq_factor": 1}},
            "low_freq_factor 1.0: expected less than .*factor, 1",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            "rope_scaling.factor: expected a number, found '2'",
        ),
        (
            {"rope_parameters": {"full_attention": {}}},
            "rope_parameters.full_attention: expected a number",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor 0.5",
        ),
        (
            {"partial_rotary_factor": 0.25},
            "config.json: partial_rotary_factor 0.25 is not supported; only 1.0 is",
        ),
    ],
)
def test_positions_that_are_not_supported(fields, message):
    with pytest.raises(InputError, match=message) as error:
        read_rope({"max_position_embeddings": 64} | fields, 10000.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("scaling", "theta"), CASES)
def test_products_depend_on_the_distance_only_and_grow_by_the_square_of_the_length(scaling, theta):
    rope = read_rope(
        {"max_position_embeddings": 2048, "rope_parameters": scaling | {"rope_theta": theta}}, 1.0
    )
    query, key = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    at = np.arange(40)

    def turned(x, position):
        return rotate(np.tile(x, (1, len(position), 1, 1)), rope_rotation(position[None], 8, rope))[
            0, :, 0
        ]

    for distance in (0, 1, 7):
        products = np.sum(turned(query, at) * turned(key, at + distance), axis=-1)
        np.testing.assert_allclose(products, products[0], atol=2e-4)
        if distance == 0:
            np.testing.assert_allclose(
                products[0], query @ key * frequencies(rope, 8)[1] ** 2, rtol=1e-4
            )
