"""Pairs of texts in, scores out: a model that reads query and passage together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.data.window import WINDOW, pack_window
from embed_jax.encode_options import no_attribute
from embed_jax.encoders.classifier import ClassifierSpec, build_classifier
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_classifier
from embed_jax.encoders.write_classifier import write_classifier
from embed_jax.errors import InputError, warn
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import PicklesByParts, default_batch_tokens, run_batches
from embed_jax.parallel.mesh import gather_params, make_mesh, replicate
from embed_jax.pretrained import check_length, fit_tokenizer
from embed_jax.registry import unknown
from embed_jax.types import Params

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda logits: logits,
    "sigmoid": lambda logits: np.exp(-np.logaddexp(0, -logits)),
}


class CrossEncoder(PicklesByParts):
    """A sequence classification model with its tokenizer: `score` pairs of texts.

    Attributes:
        spec: backbone and head.
        params: tree of the classifier's parameters, float32 or bfloat16.
        tokenizer: cuts pairs at `tokenizer.max_length` tokens.
        activation: computes scores from logits, "sigmoid" or "identity".
        prompt: text put before each query.
        compute_dtype: "float32" or "bfloat16".
        lower_case: whether the tokenizer was told to lower-case texts first; kept for `save`.
    """

    def __init__(
        self,
        spec: ClassifierSpec,
        params: Params,
        tokenizer: Tokenizer,
        *,
        activation: str = "sigmoid",
        prompt: str = "",
        lower_case: bool = False,
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """Makes a model of its parts.

        Args:
            spec: backbone and head.
            params: tree of the classifier's parameters.
            tokenizer: cuts pairs at its `max_length`.
            activation: computes scores from logits, "sigmoid" or "identity".
            prompt: text put before each query.
            lower_case: whether the tokenizer lower-cases texts first.
            compute_dtype: "float32" or "bfloat16".
            devices: how many to run on; 0: all.

        Raises:
            InputError: the activation is unknown, or the tokenizer does not fit the backbone: token
                types, ids or length.
        """
        if activation not in ACTIVATIONS:
            raise InputError(unknown("activation", activation, ACTIVATIONS))
        self.tokenizer = fit_tokenizer(tokenizer, spec.backbone)
        self.activation = activation
        self.prompt = prompt
        self.lower_case = lower_case
        self._types = spec.backbone.type_vocab_size
        _check_types(tokenizer, self._types)
        self.compute_dtype = compute_dtype
        self._devices = devices
        self._mesh = make_mesh(devices)
        self._build(spec, params)

    def _build(self, spec: ClassifierSpec, params: Params) -> None:
        self.spec = spec
        encoder = build_classifier(spec, compute_dtype=self.compute_dtype)
        self._encode = sharded_encode(encoder, self._mesh)
        self.params = replicate(params, self._mesh)

    def __repr__(self) -> str:
        backbone = self.spec.backbone
        return (
            f"CrossEncoder({backbone.family}, {backbone.num_layers} layers, "
            f"num_labels={self.num_labels}, "
            f"max_length={self.max_length}, activation={self.activation!r})"
        )

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    @property
    def num_labels(self) -> int:
        """L, the number of logits of a pair."""
        return self.spec.num_labels

    @property
    def max_length(self) -> int:
        """Tokens that a pair is cut to, special tokens included."""
        return self.tokenizer.max_length

    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        batch_tokens: int = 0,
        params: Params | None = None,
    ) -> Float[np.ndarray, " N"] | Float[np.ndarray, "N L"]:
        """Computes the score of each query with the passage at the same place, float32.

        This is sentence-transformers' `predict`. The result is one number a pair for a model with
        one label, else one for each label. See `logits` for arguments and errors.
        """
        scores = ACTIVATIONS[self.activation](
            self.logits(queries, passages, batch_tokens=batch_tokens, params=params)
        )
        return scores[:, 0] if self.num_labels == 1 else scores

    def logits(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        batch_tokens: int = 0,
        params: Params | None = None,
    ) -> Float[np.ndarray, "N L"]:
        """Computes the logits of each query with the passage at the same place, float32.

        Pairs over the model's limit are cut, the longer text first, and one warning counts them.

        Args:
            queries: N strings.
            passages: N strings.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for unequal lengths, a text that is not a string, or `batch_tokens` below
                one pair's length.
        """
        if isinstance(queries, str) or isinstance(passages, str):
            raise InputError(
                "queries and passages: expected a list of strings each, found a string"
            )
        if len(queries) != len(passages):
            raise InputError(
                f"expected as many passages as queries, found {len(passages)} and {len(queries)}"
            )
        params = self.params if params is None else gather_params(params, self._mesh)
        batch_tokens = batch_tokens or max(default_batch_tokens(), self.max_length)
        logits, truncated = np.zeros((len(queries), self.num_labels), np.float32), 0
        for start in range(0, len(queries), WINDOW):
            window = slice(start, start + WINDOW)
            pairs = self.tokenizer.encode_pairs(queries[window], passages[window], self.prompt)
            truncated += pairs.truncated
            batches = pack_window(
                pairs.ids, 0, batch_tokens, pairs.segments if self._types > 1 else None
            )
            for number, block_logits in run_batches(self._encode, params, batches, self._mesh):
                logits[start + number] = block_logits
        if truncated:
            warn(
                f"{truncated} of {len(queries)} pairs were cut at the model's limit of "
                f"{self.max_length} tokens"
            )
        return logits

    def save(self, directory: str | Path) -> None:
        """Writes a model directory, as a whole or not at all.

        sentence-transformers' CrossEncoder, transformers and `load_cross_encoder` read it.
        """
        write_classifier(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            activation=self.activation,
            prompt=self.prompt,
            lower_case=self.lower_case,
        )


def load_cross_encoder(
    name: str, *, max_length: int = 0, compute_dtype: str = "float32"
) -> CrossEncoder:
    """Loads a cross-encoder.

    Args:
        name: a directory (sentence-transformers' CrossEncoder, or transformers'
            *ForSequenceClassification), or a hub name.
        max_length: cut pairs at this many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture or no sequence
            classification model, its vocabulary is larger than its table, or `max_length` is more
            than the model has positions for.
    """
    saved = read_classifier(resolve(name))
    length = max_length or saved.max_length
    check_length(length, saved.spec.backbone)
    tokenizer = load_tokenizer(saved.tokenizer_directory, length, lower_case=saved.lower_case)
    return CrossEncoder(
        saved.spec,
        saved.params,
        tokenizer,
        activation=saved.activation,
        prompt=saved.prompt,
        lower_case=saved.lower_case,
        compute_dtype=compute_dtype,
    )


def _check_types(tokenizer: Tokenizer, types: int) -> None:
    """Checks that the model's table has all token types of the tokenizer."""
    segments = tokenizer.encode_pairs(["a"], ["a"]).segments
    made = 1 if segments is None else int(segments[0].max()) + 1
    if 0 < types < made:
        raise InputError(f"the tokenizer has {made} token types, the model only {types}")
