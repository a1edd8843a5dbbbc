"""Texts in, embeddings out: encoders of texts at inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import check_texts
from embed_jax.encode_options import DENSE_OPTIONS, EncodeOptions, refuse_unknown
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import keep_first_layers
from embed_jax.errors import InputError
from embed_jax.late_chunking import Span, join_chunks_that_fit, pool_chunks, tokens_of_chunks
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import default_batch_tokens
from embed_jax.parallel.mesh import gather_params
from embed_jax.pretrained import tokenizer_of, with_family
from embed_jax.scores import truncate, unit_length
from embed_jax.text_model import TextModel, model_of
from embed_jax.token_vectors import encode_tokens
from embed_jax.types import Params, TokenBatch

STATES, HEADS = "states", "heads"  # programs for late chunking
PART_TOKENS = 2**17  # whose states are held at a time


class SentenceEncoder(TextModel[np.ndarray]):
    """A model that gives each text a vector, float32; see `TextModel` for its attributes."""

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Float[np.ndarray, "*N D"]:
        """Embeds texts, float32, in input order: `[N, D]`, or `[D]` for one string.

        Memory does not grow with the number of texts beyond the output. Texts over the model's
        limit are cut, and one warning counts them.

        Args:
            texts: a string, or any iterable of strings.
            prompt_name: which of `prompts` to put before each text.
            prompt: the prompt itself, instead of a name; "" for none, on purpose.
            instruction: what the model's template makes a prompt of, instead of either.
            dim: D, the first numbers of each embedding to keep, made length 1 again; 0: all. One
                that was not trained warns once.
            layers: after how many of the backbone's layers to stop, which saves the time of the
                others; 0: all. Fewer than all warn once where the model was not trained for it.
            normalize_embeddings: make every embedding length 1, whatever the model does.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for an unknown prompt, an instruction beside a prompt or to a model without
                a template, a text that is not a string, `batch_tokens` below one text's length, a
                `dim` or `layers` that the model lacks, or an argument of sentence-transformers
                that has another meaning here.
        """
        blocks = self.encode_blocks(
            [texts] if isinstance(texts, str) else texts,
            prompt_name=prompt_name,
            prompt=prompt,
            instruction=instruction,
            **options,
        )
        if isinstance(texts, str):
            (block,) = blocks  # to the end, where the warning of a cut text is
            return block[0]
        size = options.get("dim") or self.dim
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
        **options: Unpack[EncodeOptions],
    ) -> Iterator[Float[np.ndarray, "n D"]]:
        """Yields the embeddings of up to 8,192 texts at a time, for outputs larger than memory."""
        refuse_unknown(options, DENSE_OPTIONS)
        self._check_dim(options.get("dim", 0))
        return self._blocks(
            texts,
            self._prefix(prompt_name, prompt, instruction),
            dim=options.get("dim", 0),
            layers=options.get("layers", 0),
            normalize_embeddings=options.get("normalize_embeddings", False),
            batch_tokens=options.get("batch_tokens", 0),
            show_progress=options.get("show_progress", False),
            params=options.get("params"),
        )

    def _blocks(
        self,
        texts: Iterable[str],
        prefix: str,
        *,
        dim: int,
        layers: int,
        normalize_embeddings: bool,
        batch_tokens: int,
        show_progress: bool,
        params: Params | None,
    ) -> Iterator[Float[np.ndarray, "n D"]]:
        encode, params = self._stopped(
            layers, gather_params(self.params if params is None else params, self._mesh)
        )
        windows = self._run(
            texts, prefix, encode, params, batch_tokens=batch_tokens, show_progress=show_progress
        )
        for count, results in windows:
            block = np.zeros((count, self.dim), np.float32)
            for number, embeddings in results:
                block[number] = embeddings
            block = truncate(block, dim) if dim not in (0, self.dim) else block
            yield unit_length(block) if normalize_embeddings else block

    def encode_chunks(
        self,
        documents: Sequence[str],
        spans: Sequence[Sequence[Span]],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dim: int = 0,
        batch_tokens: int = 0,
    ) -> list[Float[np.ndarray, "_ D"]]:
        """Embeds the chunks of documents by late chunking (Günther et al. 2024).

        The model reads the document, or as many neighbouring chunks as its limit allows, and a
        chunk's vector is made of the mean of its tokens' states. So it knows what the
        document is about. The vector of a single chunk is the document's.

        >>> model = embed_jax.load("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> model.encode_chunks(["One two. Three."], [[(0, 8), (9, 15)]])[0].shape  # doctest: +SKIP
        (2, 384)

        Args:
            documents: texts.
            spans: where the chunks of each document begin and end, in order; see
                `retrieval.text_chunks.chunk_spans`.
            prompt_name: see `encode_document`.
            prompt: see `encode_document`.
            dim: D, the first numbers of each vector to keep, made length 1 again; 0: all.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.

        Returns:
            The vectors of each document's chunks.

        Raises:
            InputError: for a model of another pooling than the mean, a chunk that is longer than
                the model's limit or in which no token begins; see also `encode`.
        """
        if self.spec.pooling != "mean" or self.spec.branches:
            raise InputError(
                f"late chunks: expected a model of mean pooling, found {self.spec.pooling!r}"
            )
        self._check_dim(dim)
        prefix = self._prefix(*self._document_prompt(prompt_name, prompt), None)
        special = self.tokenizer.backend.num_special_tokens_to_add(is_pair=False)
        (of_prefix,) = self.tokenizer.tokenize([prefix], whole=True)
        room = self.max_length - special - len(of_prefix)
        check_texts(documents)
        every = self.tokenizer.unlimited.encode_batch(documents, add_special_tokens=False)
        parts = [
            (number, *part)
            for number, (text, own, encoding) in enumerate(
                zip(documents, spans, every, strict=True)
            )
            for part in join_chunks_that_fit(text, own, encoding.offsets, room)
        ]
        vectors: list[list[np.ndarray]] = [[] for _ in documents]
        # Memory holds the token states of some parts.
        step = max(PART_TOKENS // self.max_length, 1)
        for start in range(0, len(parts), step):
            some = parts[start : start + step]
            means = self._chunk_means(prefix, [part[1:] for part in some], batch_tokens)
            for (number, *_), own in zip(some, means, strict=True):
                vectors[number].append(self._finish_means(own))
        joined = [np.concatenate([np.zeros((0, self.dim), np.float32), *own]) for own in vectors]
        return [truncate(own, dim) if dim not in (0, self.dim) else own for own in joined]

    def _chunk_means(
        self, prefix: str, parts: Sequence[tuple[str, Sequence[Span]]], batch_tokens: int
    ) -> Iterator[Float[np.ndarray, "c H"]]:
        """Yields the mean states of the chunks of each part."""
        texts = [text for text, _ in parts]
        tokenized = self.tokenizer.encode(texts, prefix, self.include_prompt)
        encodings = self.tokenizer.backend.encode_batch([prefix + text for text in texts])
        if STATES not in self._programs:
            spec = dataclasses.replace(self.spec, pooling="", heads=())
            encoder = build_encoder(spec, compute_dtype=self.compute_dtype, vectors_per_text=0)
            self._programs[STATES] = sharded_encode(encoder, self._mesh)
        states = encode_tokens(
            self._programs[STATES],
            gather_params(self.params, self._mesh),
            tokenized,
            self._mesh,
            dim=self.spec.backbone.hidden_size,
            batch_tokens=batch_tokens or max(default_batch_tokens(), self.max_length),
        )
        for own, encoding, (_, spans) in zip(states, encodings, parts, strict=True):
            starts = np.array([start for start, _ in encoding.offsets], int) - len(prefix)
            added = np.array(encoding.special_tokens_mask, bool)
            skip = tokenized.skip
            yield pool_chunks(own, tokens_of_chunks(spans, starts[skip:], added[skip:]))

    def _finish_means(self, means: Float[np.ndarray, "c H"]) -> Float[np.ndarray, "c D"]:
        """Applies the heads to mean states, each as if it were that of a text of one token."""
        if HEADS not in self._programs:
            finish = build_encoder(dataclasses.replace(self.spec, token_head=None)).finish
            assert finish is not None, "`build_encoder` gives an encoder its end"

            def finish_means(params: Params, rows: Float[np.ndarray, "c H"]) -> Any:
                zeros = np.zeros((1, len(rows)), np.int32)
                numbers = np.arange(len(rows), dtype=np.int32)[None]
                tokens = TokenBatch(zeros, numbers, zeros, zeros == 0, sentences=len(rows))
                return finish(params, rows[None], tokens, None)

            self._programs[HEADS] = jax.jit(finish_means)
        padded = max(1 << (len(means) - 1).bit_length(), 16)  # few shapes
        rows = np.pad(means, ((0, padded - len(means)), (0, 0)))
        vectors = self._programs[HEADS](gather_params(self.params, self._mesh), rows)
        return np.asarray(vectors)[: len(means)]

    def _check_dim(self, dim: int) -> None:
        if dim < 0 or dim > self.dim:
            raise InputError(
                f"dim: expected 1 to {self.dim}, the size of the embeddings, found {dim}"
            )
        if dim not in (0, self.dim, *self.matryoshka_dims):
            trained = ", ".join(map(str, self.matryoshka_dims)) or f"{self.dim} only"
            self._warn(f"dim {dim} was not trained: this model was for {trained}")

    def _stopped(self, layers: int, params: Params) -> tuple[Callable, Params]:
        """Returns a program that encodes with only the first layers, and their parameters."""
        all_layers = self.spec.backbone.num_layers
        if layers in (0, all_layers):
            return self._programs[all_layers], params
        spec, params = keep_first_layers(self.spec, params, layers)
        if not self.adaptive_layers:
            self._warn(
                f"layers {layers}: this model was trained for all its {all_layers} layers only"
            )
        if layers not in self._programs:
            encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
            self._programs[layers] = sharded_encode(encoder, self._mesh)
        return self._programs[layers], params


def load_sentence_encoder(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> SentenceEncoder:
    """Loads an embedding model.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), or a hub name.
        max_length: cut texts at this many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture, a cross-encoder or
            a sparse model, its tokenizer's vocabulary is larger than its table, or `max_length` is
            more than the model has positions for.
    """
    saved = with_family(read_model(resolve(str(name))), str(name))
    if saved.spec.vocabulary is not None:
        raise InputError(
            f"{name}: a sparse model (embed_jax.load reads it); accepted: a model that gives each "
            "text a vector"
        )
    tokenizer = tokenizer_of(saved, max_length or saved.max_length)
    return model_of(SentenceEncoder, saved, tokenizer, compute_dtype)
