"""Pairs of texts in, scores out: a model that reads query and passage together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.pair_template import (
    PairTemplate,
    encode_templated_pairs,
    has_chat_template,
    read_pair_template,
)
from embed_jax.data.tokenize import TokenizedTexts, Tokenizer
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.data.window import WINDOW, pack_window
from embed_jax.encode_options import no_attribute
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.read_classifier import read_classifier
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.text_config import ChatFormat
from embed_jax.encoders.write_classifier import write_classifier, write_classifier_adapter
from embed_jax.errors import InputError, warn
from embed_jax.pair_scores import ACTIVATIONS, best_first, check_pairs, check_top_k
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import (
    PicklesByParts,
    default_batch_tokens,
    progress_bar,
    run_batches,
)
from embed_jax.parallel.mesh import gather_params, make_mesh, replicate
from embed_jax.pretrained import check_length, fit_tokenizer, load_from_run
from embed_jax.registry import unknown
from embed_jax.types import LONGEST_FIRST, TRUNCATIONS, Params


class CrossEncoder(PicklesByParts):
    """A model that gives pairs of texts logits, with its tokenizer: `score` and `rank` them.

    Attributes:
        num_labels: L, how many logits a pair has.
        spec: an encoder whose last head gives logits, such as `classifier.make_classifier` makes.
        params: tree of the encoder's parameters, float32 or bfloat16.
        tokenizer: cuts pairs at `tokenizer.max_length` tokens.
        activation: computes scores from logits, "sigmoid" or "identity".
        prompt: text put before each query; in a chat template, the system's message.
        compute_dtype: "float32" or "bfloat16".
        lower_case: whether the tokenizer was told to lower-case texts first; kept for `save`.
        chat: how pairs are put into the tokenizer's chat template; None: they are not.
        output_layer: see SavedClassifier; kept for `save`.
        base: the name of the model that an adapter is put on; kept for `save_adapter`.
        truncation: what a pair over the limit loses: "longest_first", tokens of the longer of its
            texts first, as in sentence-transformers' `predict`, so that only a query that is longer
            than what is left of its passage is cut; or "only_second", tokens of the passage only.
            In a chat template it is always the passage.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        tokenizer: Tokenizer,
        *,
        activation: str = "sigmoid",
        prompt: str = "",
        lower_case: bool = False,
        chat: ChatFormat | None = None,
        output_layer: np.ndarray | None = None,
        base: str = "",
        truncation: str = LONGEST_FIRST,
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """Makes a model of its parts.

        Args:
            spec: see the attribute.
            params: tree of the encoder's parameters.
            tokenizer: cuts pairs at its `max_length`.
            activation: computes scores from logits, "sigmoid" or "identity".
            prompt: see the attribute.
            lower_case: whether the tokenizer lower-cases texts first.
            chat: see the attribute.
            output_layer: see SavedClassifier.
            base: see the attribute.
            truncation: see the attribute.
            compute_dtype: "float32" or "bfloat16".
            devices: how many to run on; 0: all.

        Raises:
            InputError: the activation or truncation is unknown, or the tokenizer does not fit the
                backbone: token types, ids or length; or its chat template cannot hold a pair.
        """
        if activation not in ACTIVATIONS:
            raise InputError(unknown("activation", activation, ACTIVATIONS))
        _check_truncation(truncation)
        self.tokenizer = fit_tokenizer(tokenizer, spec.backbone)
        self.activation = activation
        self.prompt = prompt
        self.lower_case = lower_case
        self.chat = chat
        self.output_layer = output_layer
        self.base = base
        self.truncation = truncation
        self._types = getattr(spec.backbone, "type_vocab_size", 0)
        if self._pair_template() is None:
            _check_types(tokenizer, self._types)
        self.compute_dtype = compute_dtype
        self._devices = devices
        self._mesh = make_mesh(devices)
        self._build(spec, params)

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        self.spec = spec
        encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
        self.num_labels = encoder.dim
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
    def max_length(self) -> int:
        """Tokens that a pair is cut to, special tokens included.

        May be set, up to the model's positions.
        """
        return self.tokenizer.max_length

    @max_length.setter
    def max_length(self, max_length: int) -> None:
        check_length(max_length, self.spec.backbone)
        self.tokenizer = self.tokenizer.cut_at(max_length)

    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Float[np.ndarray, " N"] | Float[np.ndarray, "N L"]:
        """Computes the score of each query with the passage at the same place, float32.

        This is sentence-transformers' `predict`. The result is one number a pair for a model with
        one label, else one for each label. See `logits` for arguments and errors.
        """
        logits = self.logits(
            queries,
            passages,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
            params=params,
        )
        scores = ACTIVATIONS[self.activation](logits)
        return scores[:, 0] if self.num_labels == 1 else scores

    def rank(
        self,
        query: str,
        passages: Sequence[str],
        top_k: int | None = None,
        *,
        return_documents: bool = False,
        batch_tokens: int = 0,
    ) -> list[dict[str, Any]]:
        """Ranks passages for a query, as sentence-transformers' `rank`.

        Passages with equal logits are in the order in which they were given. Scores whose sigmoid
        rounds to the same number are still in the order of their logits.

        Args:
            query: the query.
            passages: the texts to rank.
            top_k: return at most this many; None: all of them.
            return_documents: whether the passages are returned too.
            batch_tokens: see `logits`.

        Returns:
            The best passage first, {"corpus_id": its index in `passages`, "score": a Python float}
            of each, with its "text" if asked for.

        Raises:
            InputError: see `logits`; also for a model with several labels, or a negative `top_k`.
        """
        if self.num_labels != 1:
            raise InputError(
                f"rank: expected a model with one label, found {self.num_labels}; `score` gives "
                "the scores of all of them"
            )
        check_top_k(top_k)
        logits = self.logits([query] * len(passages), passages, batch_tokens=batch_tokens)[:, 0]
        scores = ACTIVATIONS[self.activation](logits)
        return best_first(passages, scores, top_k, by=logits, return_documents=return_documents)

    def logits(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Float[np.ndarray, "N L"]:
        """Computes the logits of each query with the passage at the same place, float32.

        Pairs over the model's limit are cut as `truncation` says, and one warning counts them.

        Args:
            queries: N strings.
            passages: N strings.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over pairs.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for unequal lengths, a text that is not a string, `batch_tokens` below
                one pair's length, or a query that leaves no room for a passage where only the
                passage is cut.
        """
        check_pairs(queries, passages)
        params = self.params if params is None else gather_params(params, self._mesh)
        batch_tokens = batch_tokens or max(default_batch_tokens(), self.max_length)
        logits, truncated = np.zeros((len(queries), self.num_labels), np.float32), 0
        with progress_bar(show_progress, len(queries), "pair") as advance:
            for start in range(0, len(queries), WINDOW):
                window = slice(start, start + WINDOW)
                pairs = self.tokenize(queries[window], passages[window])
                truncated += pairs.truncated
                batches = pack_window(pairs.ids, 0, batch_tokens, pairs.segments)
                for number, block_logits in run_batches(self._encode, params, batches, self._mesh):
                    logits[start + number] = block_logits
                    advance(len(number))
        if truncated:
            warn(
                f"{truncated} of {len(queries)} pairs were cut at the model's limit of "
                f"{self.max_length} tokens"
            )
        return logits

    def _pair_template(self) -> PairTemplate | None:
        """Returns the form of a pair as one text; None: the tokenizer joins the two."""
        if self.chat is None or not has_chat_template(self.tokenizer):
            return None
        return read_pair_template(
            self.tokenizer,
            self.prompt,
            structured=self.chat.structured,
            options=self.chat.options,
        )

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> TokenizedTexts:
        """Token ids of pairs as the model reads them, with token types if it tells them apart.

        Raises:
            InputError: see `logits`.
        """
        template = self._pair_template()
        if template is not None:
            return encode_templated_pairs(self.tokenizer, template, queries, passages)
        pairs = self.tokenizer.encode_pairs(
            queries, passages, self.prompt, truncation=self.truncation
        )
        return pairs if self._types > 1 else dataclasses.replace(pairs, segments=None)

    def with_params(self, params: Params) -> CrossEncoder:
        """Returns the same model with other parameters."""
        other = copy.copy(self)
        other.params = replicate(params, self._mesh)
        return other

    def merged(self) -> CrossEncoder:
        """Returns the model with its LoRA adapter added to the weights; without one, itself."""
        if self.spec.lora is None:
            return self
        model = copy.copy(self)
        model._build(*merge_lora(self.spec, jax.device_get(self.params)))
        return model

    def save(self, directory: str | Path) -> None:
        """Writes a model directory, as a whole or not at all; see `write_classifier`.

        sentence-transformers' CrossEncoder and `load_cross_encoder` read it. A LoRA adapter is
        merged, since sentence-transformers does not read a head beside an adapter.
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
            chat=self.chat if has_chat_template(self.tokenizer) else None,
            output_layer=self.output_layer,
            truncation=self.truncation,
        )

    def save_adapter(self, directory: str | Path) -> None:
        """Writes the LoRA adapter and the head only, in PEFT's format, for a base that is kept.

        PEFT and `load_cross_encoder` read it; see `write_classifier_adapter`.

        Raises:
            InputError: there is no adapter, the base is not known, or the head is not one of
                transformers' sequence classifiers.
        """
        write_classifier_adapter(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            tokenizer=self.tokenizer,
            base=self.base,
        )


def load_cross_encoder(
    name: str | Path,
    step: int = 0,
    *,
    max_length: int = 0,
    compute_dtype: str = "float32",
    truncation: str = "",
) -> CrossEncoder:
    """Loads a cross-encoder.

    Args:
        name: a directory (sentence-transformers' CrossEncoder, or transformers'
            *ForSequenceClassification or *ForCausalLM), a hub name, or the work directory of a
            run. A plain language model gives the logit of its token "yes" less that of "no".
        step: of a run: the model as it was then; 0: the one that the run wrote.
        max_length: cut pairs at this many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".
        truncation: see CrossEncoder; "": as the model's files say, or else "longest_first", with
            which scores of all pairs are those of sentence-transformers.

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture or does not
            score pairs, its vocabulary is larger than its table, `max_length` is more than the
            model has positions for, or the run trained another kind of model or has no
            checkpoint of that step.
    """
    model = load_from_run(name, step, max_length=max_length, compute_dtype=compute_dtype)
    if model is not None:
        if not isinstance(model, CrossEncoder):
            raise InputError(f"{name}: the run of an embedding model; accepted: a cross-encoder")
        if truncation:
            _check_truncation(truncation)
            model.truncation = truncation
        return model
    saved = read_classifier(resolve(str(name)))
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
        chat=saved.chat,
        output_layer=saved.output_layer,
        base=saved.base,
        truncation=truncation or saved.truncation,
        compute_dtype=compute_dtype,
    )


def _check_truncation(truncation: str) -> None:
    """Raises an InputError for an unknown way to cut pairs."""
    if truncation not in TRUNCATIONS:
        raise InputError(unknown("truncation", truncation, TRUNCATIONS))


def _check_types(tokenizer: Tokenizer, types: int) -> None:
    """Checks that the model's table has all token types of the tokenizer."""
    segments = tokenizer.encode_pairs(["a"], ["a"]).segments
    made = 1 if segments is None else int(segments[0].max()) + 1
    if 0 < types < made:
        raise InputError(f"the tokenizer has {made} token types, the model only {types}")
