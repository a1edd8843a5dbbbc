"""A model that embeds texts with one backbone, whatever its embeddings are."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

import jax
import numpy as np
from jaxtyping import Int

from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.window import pack_window, text_windows
from embed_jax.embedding_model import HasSettings, Setting
from embed_jax.encode_options import EncodeOptions, no_attribute, refuse_unknown
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.saved import SavedModel
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.write import write_model
from embed_jax.errors import warn
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import (
    PicklesByParts,
    default_batch_tokens,
    progress_bar,
    run_batches,
)
from embed_jax.parallel.mesh import make_mesh, on_mesh
from embed_jax.pretrained import check_length, fit_tokenizer
from embed_jax.prompts import check_template, prompt_for, resolve_prompt
from embed_jax.types import Params

E = TypeVar("E")  # embeddings of texts
M = TypeVar("M", bound="TextModel[Any]")
# The numbers of some texts of a window, and their embeddings.
Results = Iterator[tuple[Int[np.ndarray, " n"], Any]]


class TextModel(HasSettings, PicklesByParts, Generic[E]):
    """A model with its tokenizer and prompts.

    It encodes and compares texts, and is saved for sentence-transformers and for `load`.

    Attributes:
        spec: backbone, and pooling and heads or the head of a sparse model.
        params: tree of the encoder's parameters, float32 or bfloat16; what is computed is float32
            for either.
        tokenizer: cuts texts at `tokenizer.max_length` tokens.
        settings: prompts, similarity and everything else except weights. Each of its fields is an
            attribute too, which may be set; `settings.similarity` is `similarity_fn_name`.
        pooler: the base's tensors of transformers' pooler, unused; kept for `save`.
    """

    include_prompt: Setting[bool] = Setting()
    lower_case: Setting[bool] = Setting()
    base: Setting[str] = Setting()

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        tokenizer: Tokenizer,
        settings: EncodingSettings | None = None,
        *,
        pooler: Mapping[str, np.ndarray] | None = None,
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """Makes an encoder of its parts.

        Args:
            spec: backbone, pooling and heads.
            params: tree of the encoder's parameters, float32 or bfloat16.
            tokenizer: cuts texts at its `max_length`.
            settings: None: the defaults of `EncodingSettings`.
            pooler: the base's tensors of transformers' pooler; kept for `save`.
            compute_dtype: "float32" or "bfloat16".
            devices: how many to encode on; 0: all.

        Raises:
            InputError: for a template without its placeholder `{instruction}`, or with another, or
                a tokenizer that does not fit the backbone: ids or length.
        """
        self.settings = dataclasses.replace(settings or EncodingSettings())
        if self.template:
            check_template(self.template)
        self.tokenizer = fit_tokenizer(tokenizer, spec.backbone)
        self.comparison: Any = None  # of `finetune` with data__holdout: before, after and BM25
        self.pooler = dict(pooler or {})
        self.compute_dtype = compute_dtype
        self._devices = devices
        self._mesh = make_mesh(devices)
        self._warned: set[str] = set()
        self._prompted = False
        self._build(spec, params)

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        self.spec = spec
        self._encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
        program = sharded_encode(self._encoder, self._mesh)
        self._programs: dict[Any, Callable] = {spec.backbone.num_layers: program}
        self.params = on_mesh(params, self._mesh)

    def __repr__(self) -> str:
        backbone, heads = self.spec.backbone, [type(head).__name__ for head in self.spec.heads]
        vocabulary = self.spec.vocabulary
        parts = [
            backbone.family,
            f"{backbone.num_layers} layers",
            *([f"pooling={self.spec.pooling!r}"] if vocabulary is None else [repr(vocabulary)]),
            *heads,
        ]
        parts += [f"LoRA rank {self.spec.lora.rank}"] if self.spec.lora else []
        settings = {
            "dim": self.dim,
            "max_length": self.max_length,
            "similarity": self.similarity_fn_name,
            "prompts": sorted(name for name, prompt in self.prompts.items() if prompt),
        }
        parts += [f"{name}={value!r}" for name, value in settings.items() if value != []]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    @property
    def max_seq_length(self) -> int:
        """sentence-transformers' name of `max_length`."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, max_length: int) -> None:
        self.max_length = max_length

    @property
    def routes(self) -> tuple[str, ...]:
        """Returns no names: every text goes the same way; see `RoutedEncoder.routes`."""
        return ()

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        return self._encoder.dim

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to, special tokens included.

        May be set, up to the model's positions.
        """
        return self.tokenizer.max_length

    @max_length.setter
    def max_length(self, max_length: int) -> None:
        check_length(max_length, self.spec.backbone)
        self.tokenizer = self.tokenizer.cut_at(max_length)

    @abc.abstractmethod
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> E:
        """Embeds texts, in input order; options and errors are those of the kind of model."""

    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> E:
        """Encodes queries, texts that are searched for.

        Their prompt is "query", if the model has it and no other is given.
        """
        if prompt_name is prompt is instruction is None:
            prompt_name = prompt_for(self.prompts, side="query")
        return self.encode(
            texts, prompt_name=prompt_name, prompt=prompt, instruction=instruction, **options
        )

    def encode_document(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> E:
        """Encodes documents, texts that are searched.

        Their prompt is "document", "passage" or "corpus" unless one is given. A model without these
        gives documents its default prompt, or none; instructions are for queries.
        """
        refuse_unknown(options)
        prompt_name, prompt = self._document_prompt(prompt_name, prompt)
        return self.encode(texts, prompt_name=prompt_name, prompt=prompt, **options)

    def with_params(self: M, params: Params) -> M:
        """Returns the same model with other parameters."""
        other = copy.copy(self)
        other.params = on_mesh(params, self._mesh)
        return other

    def merged(self: M) -> M:
        """Returns the same model with its adapter merged into the backbone.

        It is then saved as a whole.
        """
        merged = copy.copy(self)
        spec, params = (
            merge_lora(self.spec, self.params) if self.spec.lora else (self.spec, self.params)
        )
        merged._build(spec, params)
        merged.base = ""
        return merged

    def save(
        self, directory: str | Path, extra_tensors: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Writes a model directory in the layout of sentence-transformers, which `load` reads too.

        The directory is written as a whole, or not at all. A pooler that the base had is written
        back unchanged, for transformers to find; a model made without one has none. For a model
        with an adapter only the adapter is written, in PEFT's format; `merged().save` writes the
        whole.

        Args:
            directory: the path of the model directory.
            extra_tensors: see `write_model`.
        """
        write_model(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            self.settings,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            extra_tensors={**self.pooler, **(extra_tensors or {})},
        )

    def _run(
        self,
        texts: Iterable[str],
        prefix: str,
        encode: Callable,
        params: Params,
        *,
        batch_tokens: int = 0,
        show_progress: bool = False,
    ) -> Iterator[tuple[int, Results]]:
        """Yields the number of texts of each window, and the results of its batches.

        These are to be read before the next window.

        Args:
            texts: any number of them.
            prefix: put before each text.
            encode: see `gather.sharded_encode`.
            params: whole, on the mesh.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
        """
        default = max(default_batch_tokens(), self.max_length)
        total = len(texts) if isinstance(texts, Sequence) else None
        truncated = count = 0
        with progress_bar(show_progress, total) as advance:
            for window in text_windows(texts):
                tokenized = self.tokenizer.encode(window, prefix, self.include_prompt)
                truncated, count = truncated + tokenized.truncated, count + len(window)
                batches = pack_window(tokenized.ids, tokenized.skip, batch_tokens or default)
                results = run_batches(encode, params, batches, self._mesh)
                yield len(window), _counted(results, advance)
        if truncated:
            warn(
                f"{truncated} of {count} texts were cut at the model's limit of {self.max_length} "
                "tokens"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _document_prompt(
        self, name: str | None, prompt: str | None
    ) -> tuple[str | None, str | None]:
        """Returns the name or the prompt of documents, unless one is given."""
        if name is prompt is None:
            name = prompt_for(self.prompts, side="document")
            prompt = "" if name is self.default_prompt_name is None else None
        return name, prompt

    def _prefix(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        if name is prompt is instruction is None:
            if self.default_prompt_name is None:
                self._warn_of_prompts()
                return ""
            name = self.default_prompt_name
        else:
            self._prompted = True
        return resolve_prompt(
            self.prompts, self.template, prompt_name=name, prompt=prompt, instruction=instruction
        )

    def _warn_of_prompts(self) -> None:
        """Warns of prompts that are not used, unless a prompt was given before."""
        has = [f"prompts ({', '.join(self.prompts)})"] if any(self.prompts.values()) else []
        has += ["a template for instructions"] if self.template else []
        if has and not self._prompted:
            self._warn(
                f"this model has {' and '.join(has)}, and none was given: name one, or give an "
                "empty prompt"
            )


def model_of(
    kind: type[M], saved: SavedModel, tokenizer: Tokenizer, compute_dtype: str = "float32"
) -> M:
    """Makes a model of a kind of what was read from its directory."""
    return kind(
        saved.spec,
        saved.params,
        tokenizer,
        saved.settings,
        pooler=saved.pooler,
        compute_dtype=compute_dtype,
    )


def _counted(results: Results, advance: Callable[[int], Any]) -> Results:
    for numbers, embeddings in results:
        yield numbers, embeddings
        advance(len(numbers))
