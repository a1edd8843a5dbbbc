"""Texts in, a vector for each of their tokens out: late interaction (ColBERT)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.window import text_windows
from embed_jax.embedding_model import Setting
from embed_jax.encode_options import no_attribute
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.read_late import read_late_interaction
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.token_settings import SIDES, TokenSettings
from embed_jax.encoders.write_late import write_late_interaction
from embed_jax.errors import InputError, warn
from embed_jax.maxsim import SIMILARITIES_OF_TOKENS, maxsim_matrix
from embed_jax.pair_scores import best_first, check_pairs, check_top_k
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.inference import (
    PicklesByParts,
    default_batch_tokens,
    progress_bar,
)
from embed_jax.parallel.mesh import gather_params, make_mesh, on_mesh
from embed_jax.pretrained import check_length, fit_tokenizer
from embed_jax.prompts import prompt_for, resolve_prompt
from embed_jax.registry import unknown
from embed_jax.scores import truncate
from embed_jax.token_pooling import pool_tokens
from embed_jax.token_sides import saved_tokenizer, side_tokenizer
from embed_jax.token_vectors import TokenVectors, encode_tokens
from embed_jax.types import Params

# What is compared: texts of one number of tokens may stand in one array.
EncodedTexts = TokenVectors | Float[np.ndarray, "_ _ d"]


class LateInteractionEncoder(PicklesByParts):
    """A model that gives each token of a text a vector, with its tokenizer: `score` and `rank`.

    A query's score with a document is MaxSim, see `embed_jax.maxsim`: the sum, or the mean, of the
    best matches of its tokens.

    Attributes:
        spec: backbone without pooling, and the heads that are applied to each token.
        params: tree of the encoder's parameters, float32 or bfloat16.
        tokenizer: cuts texts at the model's own limit; see `encoder` for those of each side.
        settings: prompts, where the markers of queries and documents are; and the similarity,
            "maxsim" or "mean_maxsim".
        texts: how queries and documents become tokens.
        routes: the sides, which `encode` takes as `task`.
    """

    routes = SIDES
    prompts: Setting[dict[str, str]] = Setting()
    default_prompt_name: Setting[str | None] = Setting()
    template: Setting[str] = Setting()
    similarity_fn_name: Setting[str] = Setting("similarity")
    matryoshka_dims: Setting[tuple[int, ...]] = Setting()
    include_prompt: Setting[bool] = Setting()

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        tokenizer: Tokenizer,
        settings: EncodingSettings | None = None,
        texts: TokenSettings | None = None,
        *,
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """Makes an encoder of its parts.

        Args:
            spec: backbone, without pooling, and heads.
            params: tree of the encoder's parameters.
            tokenizer: cuts texts at its `max_length`.
            settings: None: no prompts, and the similarity "maxsim".
            texts: None: the defaults of `TokenSettings`.
            compute_dtype: "float32" or "bfloat16".
            devices: how many to encode on; 0: all.

        Raises:
            InputError: for a similarity other than MaxSim, or a tokenizer that does not fit the
                backbone or lacks the token that expands queries.
        """
        self.settings = settings or EncodingSettings(similarity="maxsim")
        if self.settings.similarity not in SIMILARITIES_OF_TOKENS:
            raise InputError(
                unknown("similarity", self.settings.similarity, SIMILARITIES_OF_TOKENS)
            )
        self.texts = texts or TokenSettings()
        self.tokenizer = fit_tokenizer(tokenizer, spec.backbone)
        self.tokenizers = {
            side: side_tokenizer(self.tokenizer, self.texts, side, spec.backbone) for side in SIDES
        }
        self.compute_dtype = compute_dtype
        self._devices = devices
        self._mesh = make_mesh(devices)
        self._build(spec, params)

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        self.spec = spec
        self._encoder = build_encoder(spec, compute_dtype=self.compute_dtype, vectors_per_text=0)
        self._encode = sharded_encode(self._encoder, self._mesh)
        self.params = on_mesh(params, self._mesh)

    def __repr__(self) -> str:
        backbone = self.spec.backbone
        lengths = [self.tokenizers[side].max_length for side in SIDES]
        return (
            f"LateInteractionEncoder({backbone.family}, {backbone.num_layers} layers, "
            f"dim={self.dim}, query_length={lengths[0]}, document_length={lengths[1]}, "
            f"similarity={self.similarity_fn_name!r})"
        )

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    @property
    def dim(self) -> int:
        """d, the size of a token's vector."""
        return self._encoder.dim

    @property
    def max_length(self) -> int:
        """Tokens that a document is cut to, special tokens included.

        May be set, up to the model's positions.
        """
        return self.tokenizers["document"].max_length

    @max_length.setter
    def max_length(self, max_length: int) -> None:
        check_length(max_length, self.spec.backbone)
        document = self.tokenizers["document"].cut_at(max_length)
        self.tokenizers = {**self.tokenizers, "document": document}
        self.texts = dataclasses.replace(self.texts, document_length=max_length)

    def encoder(self, route: str) -> Any:
        """Returns what is different for queries and documents: their `tokenizer`."""
        return SimpleNamespace(tokenizer=self.tokenizers[route])

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        task: str = "document",
        prompt_name: str | None = None,
        prompt: str | None = None,
        dim: int = 0,
        pool_factor: float = 0.0,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Any:
        """Returns the vectors of each text's tokens `[L, d]`, float32, in order of the texts.

        L counts the special tokens, the marker and the tokens that expand a query, and leaves out
        those that the model skips. For one string its vectors are returned, without a list.

        Args:
            texts: a string, or any iterable of strings.
            task: the side: "query" or "document".
            prompt_name: which of `prompts` to put before each text; None: that of the side.
            prompt: the prompt itself, instead of a name.
            dim: d, the first numbers of each vector to keep, made length 1 again; 0: all.
            pool_factor: of documents, see `TokenSettings`; 0: the model's own.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for an unknown side or prompt, a text that is not a string, or
                `batch_tokens` below one text's length.
        """
        if task not in SIDES:
            raise InputError(unknown("task", task, SIDES))
        if prompt_name is prompt is None:
            prompt_name = prompt_for(self.prompts, side=task)
        prefix = resolve_prompt(self.prompts, "", prompt_name=prompt_name, prompt=prompt)
        text_list = [texts] if isinstance(texts, str) else list(texts)
        params = gather_params(self.params if params is None else params, self._mesh)
        tokenizer = self.tokenizers[task]
        batch_tokens = batch_tokens or max(default_batch_tokens(), tokenizer.max_length)
        vectors: TokenVectors = []
        truncated = 0
        with progress_bar(show_progress, len(text_list)) as advance:
            for window in text_windows(text_list):
                tokenized = tokenizer.encode(window, prefix)
                truncated += tokenized.truncated
                for tokens in encode_tokens(
                    self._encode,
                    params,
                    tokenized,
                    self._mesh,
                    dim=self.dim,
                    batch_tokens=batch_tokens,
                ):
                    tokens = truncate(tokens, dim) if dim not in (0, self.dim) else tokens
                    tokens = self._pool(tokens, pool_factor) if task == "document" else tokens
                    vectors.append(tokens)
                advance(len(window))
        if truncated:
            kind = "queries" if task == "query" else "documents"
            warn(
                f"{truncated} of {len(text_list)} {kind} were cut at the limit of "
                f"{tokenizer.max_length} tokens"
            )
        return vectors[0] if isinstance(texts, str) else vectors

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Any:
        """Encodes queries; see `encode`."""
        return self.encode(texts, task="query", **options)

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> Any:
        """Encodes documents; see `encode`."""
        return self.encode(texts, task="document", **options)

    def _pool(self, tokens: Float[np.ndarray, "_ d"], factor: float) -> Float[np.ndarray, "_ d"]:
        factor = factor or self.texts.pool_factor
        if factor == 1:
            return tokens
        protected, normalize = self.texts.protected_tokens, self.texts.normalize_pooled
        return pool_tokens(tokens, factor, protected=protected, normalize=normalize)

    def similarity(self, queries: EncodedTexts, documents: EncodedTexts) -> np.ndarray:
        """Computes the score of each encoded query with each encoded document, float32 `[Q, N]`."""
        mean = self.similarity_fn_name == "mean_maxsim"
        return maxsim_matrix(list(queries), list(documents), mean=mean)

    def similarity_pairwise(self, queries: EncodedTexts, documents: EncodedTexts) -> np.ndarray:
        """Computes the score of each encoded query with the document at the same position."""
        pairs = zip(queries, documents, strict=True)
        scores = [self.similarity([query], [document])[0, 0] for query, document in pairs]
        return np.array(scores, np.float32)

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        *,
        batch_tokens: int = 0,
        params: Params | None = None,
    ) -> Float[np.ndarray, " N"]:
        """Computes the score of each query with the document at the same position, float32.

        A text that occurs often is encoded once.

        Raises:
            InputError: for unequal lengths; see also `encode`.
        """
        check_pairs(queries, documents, "documents")
        sides = []
        for task, texts in zip(SIDES, (queries, documents), strict=True):
            unique = list(dict.fromkeys(texts))
            vectors = self.encode(unique, task=task, batch_tokens=batch_tokens, params=params)
            by_text = dict(zip(unique, vectors, strict=True))
            sides.append([by_text[text] for text in texts])
        return self.similarity_pairwise(*sides)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        return_documents: bool = False,
        batch_tokens: int = 0,
    ) -> list[dict[str, Any]]:
        """Ranks documents for a query, as `CrossEncoder.rank` does.

        Documents with equal scores are in the order in which they were given.

        Args:
            query: the query.
            documents: the texts to rank.
            top_k: return at most this many; None: all of them.
            return_documents: whether the documents are returned too.
            batch_tokens: see `encode`.

        Returns:
            The best document first, {"corpus_id": its index in `documents`, "score": a Python
            float} of each, with its "text" if asked for.

        Raises:
            InputError: for a negative `top_k`; see also `encode`.
        """
        check_top_k(top_k)
        scores = self.score([query] * len(documents), documents, batch_tokens=batch_tokens)
        return best_first(documents, scores, top_k, return_documents=return_documents)

    def with_params(self, params: Params) -> LateInteractionEncoder:
        """Returns the same model with other parameters."""
        other = copy.copy(self)
        other.params = on_mesh(params, self._mesh)
        return other

    def merged(self) -> LateInteractionEncoder:
        """Returns the model with its LoRA adapter added to the weights; without one, itself."""
        if self.spec.lora is None:
            return self
        model = copy.copy(self)
        model._build(*merge_lora(self.spec, jax.device_get(self.params)))
        return model

    def save(self, directory: str | Path, layout: str = "sentence-transformers") -> None:
        """Writes a model directory, as a whole or not at all; see `write_late_interaction`.

        Args:
            directory: the path of the model directory.
            layout: "sentence-transformers" (MultiVectorEncoder of version 6), "pylate" or
                "stanford".
        """
        write_late_interaction(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            self.settings,
            self.texts,
            tokenizer=self.tokenizer,
            max_length=self.tokenizer.max_length,
            layout=layout,
        )


@dataclasses.dataclass(frozen=True)
class BoundLateInteraction:
    """A late-interaction model as a function of pairs of texts, and of texts of a side.

    Attributes:
        model: the model.
        params: its parameters, as while it is trained; None: those that it has.
    """

    model: LateInteractionEncoder
    params: Params | None = None

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> Float[np.ndarray, " N"]:
        """Returns the score of each query with the document at the same position."""
        return self.model.score(queries, documents, params=self.params)

    def query(self, texts: Iterable[str]) -> TokenVectors:
        """Returns the vectors of queries."""
        return self.model.encode(texts, task="query", params=self.params)

    def document(self, texts: Iterable[str]) -> TokenVectors:
        """Returns the vectors of documents."""
        return self.model.encode(texts, task="document", params=self.params)


def load_late_interaction_encoder(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> LateInteractionEncoder:
    """Loads a late-interaction model.

    Args:
        name: a directory (sentence-transformers' MultiVectorEncoder, PyLate's or Stanford's
            ColBERT), or a hub name.
        max_length: cut documents at this number of tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture or another kind of
            model, or `max_length` is more than the model has positions for.
    """
    saved = read_late_interaction(resolve(str(name)))
    texts = saved.texts
    if max_length:
        texts = dataclasses.replace(texts, document_length=max_length)
    tokenizer = saved_tokenizer(saved, max(saved.max_length, max_length))
    return LateInteractionEncoder(
        saved.spec, saved.params, tokenizer, saved.settings, texts, compute_dtype=compute_dtype
    )
