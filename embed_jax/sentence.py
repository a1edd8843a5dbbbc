"""Texts in, embeddings out: the only place where model and text meet at inference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.data.window import WINDOW, pack_window
from embed_jax.encoders.build import EncoderSpec, build_encoder
from embed_jax.encoders.family import check_vocabulary
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.read import read_model
from embed_jax.encoders.saved import SavedModel
from embed_jax.encoders.shrink import first_layers
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import default_batch_tokens, run_batches
from embed_jax.parallel.mesh import gather_params, make_mesh, on_mesh
from embed_jax.prompts import check_template, expected, fill_template
from embed_jax.registry import unknown
from embed_jax.types import Params


class SentenceEncoder:
    """A model with its tokenizer and prompts: `encode` texts, `save` for sentence-transformers and for `load`.

    Attributes:
        spec: backbone, pooling and heads.
        params: tree of the encoder's parameters, float32 or bfloat16; what is computed is float32 for either.
        tokenizer: cuts texts at `tokenizer.max_length` tokens.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used when none is named, or None.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan": how the model's embeddings are meant to be compared.
        lower_case: whether the tokenizer was told to lower-case texts first; kept for `save`.
        matryoshka_dims: sizes to which embeddings were trained to be cut; none: only the whole was trained.
        adaptive_layers: whether every layer was trained to be the last.
        template: what makes a prompt of an instruction, such as "Instruct: {instruction}\\nQuery: "; "": it takes none.
        base: what the model is called as an adapter's base, or the base of its own adapter; kept for `save`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        tokenizer: Tokenizer,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        include_prompt: bool = True,
        similarity: str = "cosine",
        lower_case: bool = False,
        matryoshka_dims: Sequence[int] = (),
        adaptive_layers: bool = False,
        base: str = "",
        template: str = "",
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """As the attributes; `devices`: how many to encode on, 0 for all.

        Raises:
            InputError: for a template without its placeholder `{instruction}`, or with another.
        """
        if template:
            check_template(template)
        self.tokenizer = tokenizer
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.include_prompt = include_prompt
        self.similarity = similarity
        self.lower_case = lower_case
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.adaptive_layers = adaptive_layers
        self.base = base
        self.template = template
        self.compute_dtype = compute_dtype
        self._mesh = make_mesh(devices)
        self._warned: set[str] = set()
        self._prompted = False
        self._build(spec, params)

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        self.spec = spec
        self._encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
        self._programs = {spec.backbone.num_layers: sharded_encode(self._encoder, self._mesh)}
        self.params = on_mesh(params, self._mesh)

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        return self._encoder.dim

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to, special tokens included."""
        return self.tokenizer.max_length

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        dim: int = 0,
        layers: int = 0,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Embeddings of texts, float32, in input order; of one string, a single vector `[D]`.

        Memory does not grow with the number of texts beyond the output. Texts over the model's limit are cut, and one
        warning counts them.

        Args:
            texts: a string, or any iterable of strings.
            prompt_name: which of `prompts` to put before each text.
            prompt: the prompt itself, instead of a name; "" for none, on purpose.
            instruction: what the model's template makes a prompt of, instead of either.
            dim: D, the first numbers of each embedding to keep, made length 1 again; 0: all. One that was not trained
                warns once.
            layers: after how many of the backbone's layers to stop, which saves the time of the others; 0: all. Fewer
                than all warn once where the model was not trained for it.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for an unknown prompt, an instruction beside a prompt or to a model without a template, a text
                that is no string, `batch_tokens` below one text's length, or a `dim` or `layers` that the model has
                not.
        """
        self._check_dim(dim)
        blocks = self.encode_blocks(
            [texts] if isinstance(texts, str) else texts,
            prompt_name=prompt_name,
            prompt=prompt,
            instruction=instruction,
            dim=dim,
            layers=layers,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
            params=params,
        )
        if isinstance(texts, str):
            return next(blocks)[0]
        size = dim or self.dim
        if not isinstance(texts, Sequence):
            return np.concatenate([np.zeros((0, size), np.float32), *blocks])
        embeddings, start = np.empty((len(texts), size), np.float32), 0
        for block in blocks:
            embeddings[start : start + len(block)] = block
            start += len(block)
        return embeddings

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        dim: int = 0,
        layers: int = 0,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Iterator[Float[np.ndarray, "n D"]]:
        """As `encode`, but yields the embeddings of up to 8,192 texts at a time, for outputs larger than memory."""
        prefix = self._prompt(prompt_name, prompt, instruction)
        self._check_dim(dim)
        encode, params = self._stopped(layers, gather_params(self.params if params is None else params, self._mesh))
        default = max(default_batch_tokens(), self.max_length)
        total = len(texts) if isinstance(texts, Sequence) else None
        truncated = count = 0
        with _progress(show_progress, total) as advance:
            for window in _windows(texts):
                tokenized = self.tokenizer.encode(window, prefix, self.include_prompt)
                truncated, count = truncated + tokenized.truncated, count + len(window)
                block = np.zeros((len(window), self.dim), np.float32)
                batches = pack_window(tokenized.ids, tokenized.skip, batch_tokens or default)
                for number, embeddings in run_batches(encode, params, batches, self._mesh):
                    block[number] = embeddings
                    advance(len(number))
                yield truncate(block, dim) if dim not in (0, self.dim) else block
        if truncated:
            warnings.warn(
                f"{truncated} of {count} texts were cut at the model's limit of {self.max_length} tokens", stacklevel=2
            )

    def merged(self) -> SentenceEncoder:
        """The same model with its adapter merged into the backbone, so that it is saved as a whole."""
        merged = copy.copy(self)
        spec, params = merge_lora(self.spec, self.params) if self.spec.lora else (self.spec, self.params)
        merged._build(spec, params)
        merged.base = ""
        return merged

    def save(self, directory: str | Path, further: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes a model directory in the layout of sentence-transformers, which `load` reads too; atomic.

        Of a model with an adapter only the adapter, in PEFT's format; `merged().save` writes the whole.

        Args:
            further: see `hf.write_model`.
        """
        write_model(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            include_prompt=self.include_prompt,
            similarity=self.similarity,
            lower_case=self.lower_case,
            matryoshka_dims=self.matryoshka_dims,
            adaptive_layers=self.adaptive_layers,
            base=self.base,
            template=self.template,
            further=further,
        )

    def _check_dim(self, dim: int) -> None:
        if dim < 0 or dim > self.dim:
            raise InputError(f"dim: expected 1 to {self.dim}, the size of the embeddings, found {dim}")
        if dim not in (0, self.dim, *self.matryoshka_dims):
            trained = ", ".join(map(str, self.matryoshka_dims)) or f"{self.dim} alone"
            self._warn(f"dim {dim} was not trained: this model was for {trained}")

    def _stopped(self, layers: int, params: Params) -> tuple[Callable, Params]:
        """What encodes with the first layers alone, and their parameters."""
        all_layers = self.spec.backbone.num_layers
        if layers in (0, all_layers):
            return self._programs[all_layers], params
        spec, params = first_layers(self.spec, params, layers)
        if not self.adaptive_layers:
            self._warn(f"layers {layers}: this model was trained for all its {all_layers} layers alone")
        if layers not in self._programs:
            encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
            self._programs[layers] = sharded_encode(encoder, self._mesh)
        return self._programs[layers], params

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=5)

    def _prompt(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        given = {"prompt_name": name, "prompt": prompt, "instruction": instruction}
        several = [argument for argument, value in given.items() if value is not None]
        self._prompted |= bool(several)
        if instruction is not None and len(several) > 1:
            raise InputError(f"expected a prompt or an instruction, found {' and '.join(several)}")
        if instruction is not None:
            if not self.template:
                raise InputError(f"instruction {instruction!r}: this model has no template for instructions")
            return fill_template(self.template, instruction)
        if prompt is not None:
            return prompt
        name = name if name is not None else self.default_prompt_name
        if name is None:
            self._warn_of_prompts()
            return ""
        if name not in self.prompts:
            raise InputError(
                unknown("prompt", name, self.prompts) if self.prompts else f"this model has no prompts: {name!r}"
            )
        return self.prompts[name]

    def _warn_of_prompts(self) -> None:
        """Unless a prompt was given before: then that there is none now is meant."""
        has = [f"prompts ({', '.join(self.prompts)})"] if any(self.prompts.values()) else []
        has += ["a template for instructions"] if self.template else []
        if has and not self._prompted:
            self._warn(f"this model has {' and '.join(has)}, and none was given: name one, or give an empty prompt")


def truncate(embeddings: Float[np.ndarray, "N D"], dim: int) -> Float[np.ndarray, "N d"]:
    """The first `dim` numbers of each embedding, made length 1 again (Kusupati et al. 2022); a zero vector stays zero.

    Raises:
        InputError: for a dimension that is not from 1 to D.
    """
    if not 1 <= dim <= embeddings.shape[-1]:
        raise InputError(f"dim: expected 1 to {embeddings.shape[-1]}, the size of the embeddings, found {dim}")
    short = np.asarray(embeddings[..., :dim], np.float32)
    return short / np.maximum(np.linalg.norm(short, axis=-1, keepdims=True), 1e-12)


def load(name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32") -> SentenceEncoder:
    """Loads an embedding model.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), or a hub name.
        max_length: cut texts at so many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, or is of an unknown architecture, or its tokenizer has more tokens
            than its table has rows.
    """
    saved = with_family(read_model(resolve(str(name))), str(name))
    tokenizer = tokenizer_of(saved, max_length or saved.max_length)
    return SentenceEncoder(
        saved.spec,
        saved.params,
        tokenizer,
        matryoshka_dims=saved.matryoshka_dims,
        adaptive_layers=saved.adaptive_layers,
        compute_dtype=compute_dtype,
        **saved.recorded(),
    )


def tokenizer_of(
    saved: SavedModel, max_length: int, directory: Path | None = None, append_eos: bool = False
) -> Tokenizer:
    """The tokenizer of a model as it was read, cut at so many tokens.

    Args:
        directory: with another tokenizer's files, instead of the model's own.
        append_eos: end texts with the end-of-text token even where the model does not ask for it.

    Raises:
        InputError: as of `load_tokenizer`, or it has more tokens than the model's table has rows.
    """
    directory = directory or saved.tokenizer_directory
    tokenizer = load_tokenizer(
        directory,
        max_length,
        lower_case=saved.lower_case,
        special_tokens=saved.special_tokens,
        append_eos=append_eos or saved.append_eos,
    )
    check_vocabulary(tokenizer.vocab_size, saved.spec.backbone.vocab_size, directory)
    return tokenizer


def with_family(saved: SavedModel, name: str) -> SavedModel:
    """A model whose files record neither prompts nor a template, with those of its family, if it is of a known one.

    One warning says what was taken from where. That texts end with the end-of-text token is taken too where the files
    are transformers' alone; in sentence-transformers' layout the tokenizer says it.

    Args:
        name: what the model was asked for by; where that says nothing, its directory and what its config.json calls
            its origin are asked.
    """
    if any(saved.prompts.values()) or saved.template is not None or saved.spec.lora is not None:
        return saved
    known = next((source for source in (name, saved.base, saved.origin) if expected(source)), None)
    if known is None:
        return saved
    family = expected(known)
    append_eos = family.append_eos and saved.plain
    taken = [f"prompt {name} {prompt!r}" for name, prompt in family.prompts.items() if prompt]
    taken += [f"template {family.template!r}"] if family.template else []
    if not taken:
        return saved
    taken += [] if family.include_prompt else ["prompts left out of pooling"]
    taken += ["an end-of-text token after each text"] if append_eos else []
    warnings.warn(f"{name}: no prompts are recorded; as of {known}: {', '.join(taken)}", stacklevel=3)
    return dataclasses.replace(
        saved,
        prompts=dict(family.prompts),
        template=family.template,
        include_prompt=saved.include_prompt and family.include_prompt,
        append_eos=append_eos,
    )


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while window := list(itertools.islice(texts, WINDOW)):
        yield window


@contextlib.contextmanager
def _progress(show: bool, total: int | None) -> Iterator[Any]:
    """A function that is told how many texts are done."""
    if not show:
        yield lambda count: None
        return
    import tqdm

    with tqdm.tqdm(total=total, unit="text", dynamic_ncols=True) as bar:
        yield bar.update
