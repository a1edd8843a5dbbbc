"""The content of a model's directory, after it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.text_config import ChatFormat
from embed_jax.encoders.token_settings import TokenSettings
from embed_jax.types import LONGEST_FIRST, Params


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model that was read from a directory.

    Attributes:
        spec: the encoder's architecture.
        params: tree for `build_encoder(spec)`, of NumPy arrays, in bfloat16 where the file has that
            dtype, else in float32.
        max_length: tokens, special ones included, after which a text is cut.
        settings: how texts are encoded and embeddings compared.
        tokenizer_directory: the directory of the tokenizer's files.
        special_tokens: whether the tokenizer puts its special tokens around a text.
        records_template: whether the files record the template, even if it is empty.
        origin: config.json's name of the model that this one was made from, in transformers' older
            files; or "".
        plain: whether it is a plain Hugging Face directory.
        append_eos: whether the tokenizer still has to be told to end texts with its end-of-text
            token.
        pooler: tensors of transformers' pooler, under its names; nothing here uses them, and
            `write_model` writes them again, so that transformers finds all weights of its class.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    settings: EncodingSettings
    tokenizer_directory: Path
    special_tokens: bool = True
    records_template: bool = False
    origin: str = ""
    plain: bool = False
    append_eos: bool = False
    pooler: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SavedRoutes:
    """A model with an encoder for each route, which was read from a directory.

    Attributes:
        models: each route's model; modules that routes share have the same arrays in each.
        default, tasks: see `router.Routes`.
    """

    models: Mapping[str, SavedModel]
    default: str | None
    tasks: Mapping[str | None, str]


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
    """A cross-encoder or another classification model, which was read from a directory.

    Attributes:
        spec: the architecture of the encoder whose last head gives logits.
        params: tree for `build_encoder(spec)`; dtypes as in SavedModel.
        max_length: tokens, special ones included, after which a pair is cut.
        activation: the function from logits to scores, "sigmoid" or "identity".
        prompt: text put before the first text of each pair.
        lower_case: see EncodingSettings.
        tokenizer_directory: see SavedModel.
        chat: how pairs are put into the tokenizer's chat template, if it has one; None: they are
            not.
        output_layer: a language model's output layer [V, D], of which a LogitScore has a few rows,
            for `write_classifier`; None: it is the table of token embeddings, or not needed.
        base: the name of the model that the weights, or those below an adapter, are read from.
        truncation: what pairs over the limit lose; see TextConfig.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    activation: str
    prompt: str
    lower_case: bool
    tokenizer_directory: Path
    chat: ChatFormat | None = None
    output_layer: np.ndarray | None = None
    base: str = ""
    truncation: str = LONGEST_FIRST


@dataclasses.dataclass(frozen=True)
class SavedLateInteraction:
    """A model that gives each token a vector, which was read from a directory.

    Attributes:
        spec: the architecture, without pooling.
        params: tree for `build_encoder(spec)`; dtypes as in SavedModel.
        max_length: the model's own limit in tokens, special ones included.
        settings: prompts, which hold the markers, and similarity.
        texts: how texts become tokens.
        tokenizer_directory: see SavedModel.
        marked: whether the prompts are tokens, as Stanford's and PyLate's markers are, which the
            tokenizer's files may not know.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    settings: EncodingSettings
    texts: TokenSettings
    tokenizer_directory: Path
    marked: bool = False
