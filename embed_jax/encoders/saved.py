"""What a model's directory holds, as it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.encoders.classifier import ClassifierSpec
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.types import Params


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model as it lies on disk.

    Attributes:
        spec: what it computes.
        params: tree for `build_encoder(spec)`, of NumPy arrays in float32, or bfloat16 where the file is.
        max_length: tokens, special ones included, after which a text is cut.
        prompts: text put before an input, by name. default_prompt_name: the one used when none is asked for.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        lower_case: whether texts are put into lower case before the tokenizer sees them.
        matryoshka_dims: sizes to which its embeddings were trained to be cut. adaptive_layers: whether every layer was
            trained to be the last.
        tokenizer_directory: where the tokenizer's files are.
        base: what the model is called as the base of an adapter, or the name of its base if it has an adapter: an
            absolute directory, or a name on the hub.
        special_tokens: whether the tokenizer puts its special tokens around a text.
        template: what makes a prompt of an instruction, "" for a model that takes none; None: nothing is recorded.
        origin: what config.json calls the model that this one was made of, in transformers' older files; or "".
        plain: whether it is a plain Hugging Face directory. append_eos: whether the tokenizer is yet to be told to end
            texts with its end-of-text token.
        pooler: tensors of transformers' pooler, under its names; nothing here uses them, and `write_model` puts them
            back, so that transformers finds all weights of its class.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    include_prompt: bool
    similarity: str
    lower_case: bool
    tokenizer_directory: Path
    special_tokens: bool = True
    matryoshka_dims: tuple[int, ...] = ()
    adaptive_layers: bool = False
    base: str = ""
    template: str | None = None
    origin: str = ""
    plain: bool = False
    append_eos: bool = False
    pooler: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        """What an encoder keeps of it beside what it computes, by the names of SentenceEncoder's arguments."""
        names = (
            "prompts",
            "default_prompt_name",
            "include_prompt",
            "similarity",
            "lower_case",
            "base",
            "pooler",
        )
        return {name: getattr(self, name) for name in names} | {"template": self.template or ""}


@dataclasses.dataclass(frozen=True)
class SavedRoutes:
    """A model with an encoder for each route, as it lies on disk.

    Attributes:
        models: by route; what several routes share is the same arrays in each.
        default, tasks: see `router.Routes`.
    """

    models: Mapping[str, SavedModel]
    default: str | None
    tasks: Mapping[str | None, str]


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
    """A cross-encoder, or another sequence classification model, as it lies on disk.

    Attributes:
        spec: what it computes.
        params: tree for `build_classifier(spec)`; dtypes as of SavedModel.
        max_length: tokens, special ones included, after which a pair is cut.
        activation: what makes scores of logits, "sigmoid" or "identity".
        prompt: text put before the first text of each pair.
        lower_case, tokenizer_directory: see SavedModel.
    """

    spec: ClassifierSpec
    params: Params
    max_length: int
    activation: str
    prompt: str
    lower_case: bool
    tokenizer_directory: Path
