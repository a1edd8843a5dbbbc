"""Rotary positions, the scaling of their wave lengths for longer texts, and their config fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from embed_jax.encoders.json_fields import ROPE, check_fields
from embed_jax.encoders.layers import Rotation
from embed_jax.errors import InputError
from embed_jax.types import AnyArray


@dataclasses.dataclass(frozen=True)
class Rope:
    """The wave lengths of rotary positions; the fields after `theta` have transformers' names.

    Attributes:
        theta: base of the wave lengths.
        rope_type: one of TYPES; it decides which other fields are used.
        factor: how many times longer texts may be than the original ones, which the model was first
            trained on; waves are stretched by at most this factor.
        original_max_position_embeddings: the most tokens of the original texts.
        low_freq_factor, high_freq_factor: of "llama3": waves that fit at most `low_freq_factor`
            times into the original texts are stretched by `factor`; those that fit at least
            `high_freq_factor` times not at all; those between by a smaller factor.
        beta_fast, beta_slow, truncate: of "yarn": like high_freq_factor and low_freq_factor, but
            linear in the index of the frequency, which is rounded outwards if `truncate`.
        attention_factor, mscale, mscale_all_dim: of "yarn": the factor of queries and keys, or two
            numbers that it is computed from.
        mixed_b: of "ntk": b, if wave n of h is stretched by factor^((n / h)^b); not set: 1.
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    mixed_b: float | None = None


TYPES = {  # the required fields, and the optional ones
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"),
        ("original_max_position_embeddings",),
    ),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
        ),
    ),
    "ntk": (("factor",), ("mixed_b",)),
}
TRANSFORMERS_TYPES = ("default", "linear", "llama3", "yarn")  # of classes that transformers has


def rope_rotation(position: Int[AnyArray, "R T"], size: int, rope: Rope) -> Rotation:
    """Computes the scaled angles position * frequency (Su et al. 2021, section 3.2.2).

    >>> rope_rotation(jnp.array([[0, 1]]), 2, Rope()).cos  # of the angles 0 and 1
    Array([[[1.    ],
            [0.5403]]], dtype=float32)

    Args:
        position: each token's position in its sentence.
        size: d = 2 h, the size of an attention head; even.
        rope: the wave lengths.
    """
    frequency, length = frequencies(rope, size)
    angle = position[..., None].astype(jnp.float32) * frequency
    return Rotation(jnp.cos(angle) * length, jnp.sin(angle) * length)


def frequencies(rope: Rope, size: int) -> tuple[Float[np.ndarray, " h"], float]:
    """Computes the frequency of each pair of a head's numbers, and a factor of queries and keys.

    The frequency, float32, is the angle by which the pair turns from one token to the next:
    theta^(-2 i / size) for i < size / 2. It is divided by `factor` for "linear" (Chen et al. 2023);
    for "llama3" (Llama 3.1) and "yarn" (Peng et al. 2023, section 3) only long waves are stretched;
    for "ntk" (Su 2023, https://kexue.fm/archives/9706) the longest by `factor`, others by less.
    The factor of queries and keys is 1 except for "yarn".

    >>> frequencies(Rope(), 4)
    (array([1.  , 0.01], dtype=float32), 1.0)
    """
    plain = float(rope.theta) ** (-np.arange(0, size, 2) / size)
    length = 1.0
    if rope.rope_type == "ntk":
        return (plain / _ntk(rope, size)).astype(np.float32), length
    if rope.rope_type == "default":
        kept_share = np.ones_like(plain)
    elif rope.rope_type == "linear":
        kept_share = np.zeros_like(plain)
    elif rope.rope_type == "llama3":
        low, high = rope.low_freq_factor, rope.high_freq_factor
        assert low is not None and high is not None, "`llama3` requires them"
        fits = _original_length(rope) * plain / (2 * np.pi)
        kept_share = np.clip((fits - low) / (high - low), 0, 1)
    else:
        kept_share, length = _yarn(rope, size), _yarn_length(rope)
    scaled = (
        plain
        if rope.factor is None
        else kept_share * plain + (1 - kept_share) * plain / rope.factor
    )
    return scaled.astype(np.float32), length


def _ntk(rope: Rope, size: int) -> Float[np.ndarray, " h"]:
    """Returns the number by which each frequency is divided: a little more than 1 to factor."""
    assert rope.factor is not None, "`ntk` requires it"
    number = np.arange(1, size // 2 + 1)
    share = (2 * number / size) ** (1.0 if rope.mixed_b is None else rope.mixed_b)
    return rope.factor**share


def _yarn(rope: Rope, size: int) -> Float[np.ndarray, " h"]:
    """Returns the share of each frequency that is not scaled.

    It is 1 for fast frequencies and 0 for slow ones, and linear in the frequency's index between.
    """

    def index(fits: float) -> float:
        """Returns the index of the frequency whose wave fits this often into the original texts."""
        wave = _original_length(rope) / (fits * 2 * math.pi)
        return size * math.log(wave) / (2 * math.log(rope.theta))

    first, last = index(rope.beta_fast or 32), index(rope.beta_slow or 1)
    if rope.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    return 1 - np.clip((np.arange(size // 2) - first) / ((last - first) or 0.001), 0, 1)


def _original_length(rope: Rope) -> int:
    length = rope.original_max_position_embeddings
    assert length is not None, "`read_rope` sets it where config.json leaves it out"
    return length


def _yarn_length(rope: Rope) -> float:
    factor = rope.factor
    assert factor is not None, "`yarn` requires it"

    def growth(times: float) -> float:
        return 0.1 * times * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return growth(rope.mscale) / growth(rope.mscale_all_dim)
    return growth(1.0)


# ---- config.json ---------------------------------------------------------------------------------


def read_rope(
    config_json: Mapping[str, Any], theta: float, types: Sequence[str] = TRANSFORMERS_TYPES
) -> Rope:
    """Reads the rotary positions of a config.json.

    Both new files (rope_parameters) and old ones (rope_theta, rope_scaling) are read.

    >>> read_rope({"rope_theta": 1e6}, theta=1e4).theta
    1000000.0

    Args:
        config_json: config.json's dictionary.
        theta: the base of the wave lengths if the file has none.
        types: the accepted types of scaling.

    Raises:
        InputError: the type is not accepted, a field is missing or unusable, or only a part of each
            head is rotated.
    """
    name = "rope_scaling" if config_json.get("rope_scaling") else "rope_parameters"
    fields = check_fields(f"config.json: {name}.", config_json.get(name) or {}, ROPE)
    kind = fields.get("rope_type") or fields.get("type") or "default"
    if kind not in types:
        accepted = (
            f"only {types[0]!r} is" if len(types) == 1 else f"accepted are {', '.join(types)}"
        )
        raise InputError(f"config.json: {name}.rope_type {kind!r} is not supported; {accepted}")
    for prefix, values in ((f"{name}.", fields), ("", config_json)):
        if values.get("partial_rotary_factor") not in (None, 1):
            value = values["partial_rotary_factor"]
            raise InputError(
                f"config.json: {prefix}partial_rotary_factor {value!r} is not supported; "
                "only 1.0 is"
            )
    required, optional = TYPES[kind]
    values = {
        field: fields[field] for field in (*required, *optional) if fields.get(field) is not None
    }
    if "original_max_position_embeddings" in optional:
        own = config_json.get("original_max_position_embeddings") or values.get(
            "original_max_position_embeddings"
        )
        values["original_max_position_embeddings"] = own or config_json["max_position_embeddings"]
    for field in required:
        if field not in values:
            raise InputError(f"config.json: {name} has no {field}, which rope_type {kind!r} needs")
    for field, value in (fields | values).items():
        if isinstance(value, dict) or (field in values and not isinstance(value, int | float)):
            raise InputError(f"config.json: {name}.{field}: expected a number, found {value!r}")
    if kind == "llama3" and not values["low_freq_factor"] < values["high_freq_factor"]:
        raise InputError(
            f"config.json: {name}.low_freq_factor {values['low_freq_factor']}: expected less than "
            f"high_freq_factor, {values['high_freq_factor']}"
        )
    return Rope(
        theta=float(fields.get("rope_theta") or config_json.get("rope_theta") or theta),
        rope_type=kind,
        **values,
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """Returns `rope_parameters` of a config.json.

    >>> write_rope(Rope(theta=1e6, rope_type="linear", factor=2.0))
    {'rope_theta': 1000000.0, 'rope_type': 'linear', 'factor': 2.0}
    """
    values = {
        field: value for field, value in dataclasses.asdict(rope).items() if value is not None
    }
    return {"rope_theta": values.pop("theta"), **values}
