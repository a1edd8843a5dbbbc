"""The model that a config names, before it gets a head: its backbone and tokenizer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from embed_jax.config import Experiment, Model
from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import Backbone, EncoderSpec, random_spec
from embed_jax.errors import InputError
from embed_jax.pretrained import check_length, tokenizer_of
from embed_jax.types import Params


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A backbone that gets a new head.

    Attributes:
        backbone: its frozen dataclass.
        params: its parameters.
        tokenizer: cuts texts at the longest one's tokens.
        base: its own name as the base of an adapter; "" of random weights.
        pooler: see SavedModel.
    """

    backbone: Backbone
    params: Params
    tokenizer: Tokenizer
    base: str = ""
    pooler: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_base(config: Experiment, longest: int, key: jax.Array) -> BaseModel:
    """Reads the backbone of the embedding model that a config names, or initialises one.

    Args:
        config: of the run.
        longest: tokens of the longest text.
        key: of random parameters.

    Raises:
        InputError: for a model or tokenizer that cannot be used.
    """
    if config.model.name.startswith("random:"):
        spec, tokenizer = random_model(config.model, longest)
        return BaseModel(spec.backbone, build_encoder(spec).init(key)["backbone"], tokenizer)
    saved = read_model(resolve(config.model.name))
    check_length(longest, saved.spec.backbone, "config.data.max_length")
    tokenizer, base = tokenizer_of(saved, longest), saved.settings.base
    return BaseModel(saved.spec.backbone, saved.params["backbone"], tokenizer, base, saved.pooler)


def random_model(model: Model, longest: int) -> tuple[EncoderSpec, Tokenizer]:
    """Returns the spec of the random weights that a config names, and the tokenizer that it names.

    Args:
        model: with a `name` such as "random:tiny".
        longest: tokens of the longest text.

    Raises:
        InputError: for no tokenizer, or one that cannot be read; an unknown shape; or a text longer
            than the shape's positions.
    """
    if not model.tokenizer:
        raise InputError(
            "config.model.tokenizer: random weights need a directory with tokenizer files, found ''"
        )
    shape = model.name.removeprefix("random:")
    tokenizer = load_tokenizer(
        tokenizer_directory(model),
        longest,
        special_tokens=shape != "static",
        append_eos=model.append_eos,
    )
    spec = random_spec(shape, vocab_size=tokenizer.vocab_size, pooling=model.pooling or "mean")
    check_length(longest, spec.backbone, "config.data.max_length")
    return spec, tokenizer


def longest_text(config: Experiment) -> int:
    """Returns the largest `max_length` of a run's data sets, in tokens."""
    sources = vars(config.mixture.sources).values()
    return max([config.data.max_length, *(source.max_length for source in sources)])


def tokenizer_directory(model: Model) -> Path:
    """Returns the directory of the tokenizer that a config names: a path, or a model's name."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", model.tokenizer)
    return resolve(model.tokenizer) if is_name else Path(model.tokenizer)


def compute_dtype(name: str) -> str:
    """Resolves "auto": float32 on a CPU, bfloat16 on an accelerator."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
