"""Texts in, embeddings by several heads of one encoder out (BGE-M3).

model = embed_jax.load("BAAI/bge-m3")  # with its heads as safetensors, see `branch_files`
queries, documents = model.encode_query(["..."]), model.encode_document(["...", "..."])
model.similarity(queries, documents)  # the sum that model.similarity_fn_name names
model.similarity(queries, documents, {"dense": 0.4, "sparse": 0.2, "multi_vector": 0.4})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.tokenize import Tokenizer
from embed_jax.encode_options import MULTI_HEAD_OPTIONS, EncodeOptions, refuse_unknown
from embed_jax.encoders import json_fields
from embed_jax.encoders.branch_files import read_branches
from embed_jax.encoders.build import BRANCHES, DENSE, build_encoder
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.lexical import LexicalWeights
from embed_jax.encoders.read import read_model
from embed_jax.encoders.read_settings import SETTINGS, read_optional
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.errors import InputError
from embed_jax.head_scores import DEFAULT_SUM, MATRICES, read_sum, sum_matrix, write_sum
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.mesh import gather_params, on_mesh
from embed_jax.pretrained import tokenizer_of, with_family
from embed_jax.registry import unknown
from embed_jax.scores import SIMILARITIES
from embed_jax.text_model import TextModel, model_of
from embed_jax.types import Encoder, Params, TokenBatch

HeadWeights = str | Mapping[str, float]  # see `head_scores.read_sum`
SLOTS = ("token_ids", "sentence", "position", "pooled")  # of a batch, needed beside its results


class MultiHeadEncoder(TextModel[Any]):
    """A model whose heads embed a text from one pass of the backbone; see `TextModel`.

    Embeddings are {head: those of all texts}: "dense" `[N, D]`, "sparse" scipy's `csr_array`
    `[N, V]`, "multi_vector" a list of the vectors of each text's tokens `[L, d]`, all float32.
    `similarity_fn_name` is the weighted sum by which they are compared.
    """

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        if not spec.branches:
            raise InputError("a model of several heads: expected a spec with branches")
        for branch in spec.branches:
            if branch.name not in MATRICES:
                raise InputError(unknown("head", branch.name, MATRICES))
        self.spec = spec
        self._encoder = build_encoder(spec, compute_dtype=self.compute_dtype)
        self._programs = {}
        self.params = on_mesh(params, self._mesh)
        if self.similarity_fn_name in SIMILARITIES:  # of the dense head only, as files name it
            self.similarity_fn_name = write_sum(
                {name: weight for name, weight in DEFAULT_SUM.items() if name in self.heads}
            )
        for name in read_sum(self.similarity_fn_name):
            if name not in self.heads:
                raise InputError(f"sum of scores: {unknown('head', name, self.heads)}")

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads."""
        return (DENSE, *(branch.name for branch in self.spec.branches))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embeds texts, in input order, by each head.

        For one string the dense vector is `[D]`, the sparse one `[1, V]`, and the vectors of its
        tokens have no list. Texts over the model's limit are cut, and one warning counts them.

        Args:
            texts: a string, or any iterable of strings.
            prompt_name: which of `prompts` to put before each text.
            prompt: the prompt itself, instead of a name; "" for none, on purpose.
            instruction: what the model's template makes a prompt of, instead of either.
            heads: names of the heads to compute; none: all.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: see `SentenceEncoder.encode`; also for an unknown head.
        """
        refuse_unknown(options, MULTI_HEAD_OPTIONS)
        names = tuple(options.get("heads") or self.heads)
        for name in names:
            if name not in self.heads:
                raise InputError(f"heads: {unknown('head', name, self.heads)}")
        one_text, text_list = (True, [texts]) if isinstance(texts, str) else (False, texts)
        params = options.get("params")
        params = gather_params(self.params if params is None else params, self._mesh)
        prefix = self._prefix(prompt_name, prompt, instruction)
        windows = self._run(
            text_list,
            prefix,
            self._program(names),
            params,
            batch_tokens=options.get("batch_tokens", 0),
            show_progress=options.get("show_progress", False),
        )
        parts = [_embed_window(self, names, count, results) for count, results in windows]
        joined = {name: self._joined(name, [part[name] for part in parts]) for name in names}
        if one_text:
            return {name: rows if name == "sparse" else rows[0] for name, rows in joined.items()}
        return joined

    def _program(self, names: tuple[str, ...]) -> Any:
        """Returns the compiled function that gives these heads' outputs, by slot if they have any.

        Programs are kept.
        """
        if names not in self._programs:
            branches = tuple(branch for branch in self.spec.branches if branch.name in names)
            own = dataclasses.replace(self.spec, branches=branches)
            encoder = build_encoder(own, compute_dtype=self.compute_dtype)
            self._programs[names] = sharded_encode(_with_slots(encoder), self._mesh)
        return self._programs[names]

    def _joined(self, name: str, parts: Sequence[Any]) -> Any:
        """Joins the embeddings of windows by a head."""
        if name == "multi_vector":
            return [vectors for part in parts for vectors in part]
        if name == DENSE:
            return np.concatenate([np.zeros((0, self.dim), np.float32), *parts])
        import scipy.sparse

        size = self.spec.backbone.vocab_size
        empty = scipy.sparse.csr_array((0, size), dtype=np.float32)
        return scipy.sparse.vstack([empty, *parts], format="csr")

    def similarity(
        self, a: Any, b: Any, weights: HeadWeights | None = None
    ) -> Float[np.ndarray, "_ _"]:
        """Computes the weighted sum of the heads' scores of each query with each document, float32.

        Args:
            a: embeddings of queries, as `encode` gives them.
            b: embeddings of documents.
            weights: such as {"dense": 1, "sparse": 0.3} or "dense + 0.3 * sparse"; None:
                `similarity_fn_name`.

        Raises:
            InputError: for an unknown head, or one whose embeddings are missing.
        """
        return sum_matrix(a, b, weights or self.similarity_fn_name)

    def similarity_pairwise(
        self, a: Any, b: Any, weights: HeadWeights | None = None
    ) -> Float[np.ndarray, " _"]:
        """Computes the same of each query with the document at the same position."""
        rows = [
            [{name: part[index : index + 1] for name, part in side.items()} for side in (a, b)]
            for index in range(_number(a))
        ]
        return np.array([self.similarity(q, d, weights)[0, 0] for q, d in rows], np.float32)

    def score(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        weights: HeadWeights | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Float[np.ndarray, " N"]:
        """Computes the weighted sum for each query with the document at the same position, float32.

        Only the heads that it needs are computed.

        Args:
            queries: N texts.
            documents: N texts.
            weights: see `similarity`.
            options: see `encode`.

        Raises:
            InputError: for unequal lengths; see also `similarity` and `encode`.
        """
        if len(queries) != len(documents):
            raise InputError(
                f"expected as many documents as queries, found {len(documents)} and {len(queries)}"
            )
        weights = read_sum(weights or self.similarity_fn_name)
        options = {"heads": tuple(weights), **options}
        encoded = self.encode_query(queries, **options), self.encode_document(documents, **options)
        return self.similarity_pairwise(*encoded, weights)


def _embed_window(
    model: MultiHeadEncoder, names: Sequence[str], count: int, results: Iterator[Any]
) -> dict[str, Any]:
    """Collects the outputs of a window's batches, and makes the embeddings of its texts."""
    dense = np.zeros((count, model.dim), np.float32)
    branches = [branch for branch in model.spec.branches if branch.name in names]
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {branch.name: [] for branch in branches}
    for numbers, outputs in results:
        dense[numbers] = outputs[DENSE][: len(numbers)]
        ids, sentence, position, pooled = (outputs[name].reshape(-1) for name in SLOTS)
        there = pooled & (sentence < len(numbers))
        for branch in branches:
            own = np.flatnonzero(there & (position > 0) if branch.skip_first else there)
            values = np.asarray(outputs[branch.name], np.float32)[own]
            parts[branch.name].append((numbers[sentence[own]], position[own], ids[own], values))
    embeddings: dict[str, Any] = {DENSE: dense} if DENSE in names else {}
    for branch in branches:
        lexical = isinstance(branch.vocabulary, LexicalWeights)
        size = () if lexical else (branch.heads[0].dim(0),)
        nothing = (*3 * [np.zeros(0, np.int64)], np.zeros((0, *size), np.float32))
        arrays = zip(nothing, *parts[branch.name], strict=True)
        text, position, ids, values = (np.concatenate(leaves) for leaves in arrays)
        if lexical:
            shape = count, model.spec.backbone.vocab_size
            embeddings[branch.name] = _largest_weights(text, ids, values, shape)
        else:
            ends = np.cumsum(np.bincount(text, minlength=count))
            vectors = values[np.lexsort((position, text))]
            embeddings[branch.name] = np.split(vectors, ends)[:count]
    return embeddings


def _largest_weights(
    text: Int[np.ndarray, " t"],
    ids: Int[np.ndarray, " t"],
    weights: Float[np.ndarray, " t"],
    shape: tuple[int, int],
) -> Any:
    """Returns scipy's CSR of texts and tokens, with the largest of a token's weights in a text."""
    import scipy.sparse

    order = np.lexsort((-weights, ids, text))
    order = order[weights[order] > 0.0]
    pairs = np.stack([text[order], ids[order]])
    first = np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))[: len(order)]
    chosen = order[first]
    return scipy.sparse.csr_array((weights[chosen], (text[chosen], ids[chosen])), shape=shape)


def _number(embeddings: Mapping[str, Any]) -> int:
    rows = next(iter(embeddings.values()))
    return len(rows) if isinstance(rows, list) else rows.shape[0]


def _with_slots(encoder: Encoder) -> Encoder:
    """Returns an encoder that gives the slots' tokens and places beside its outputs."""

    def apply(params: Params, tokens: TokenBatch, key: Any = None, read: Any = None) -> Any:
        outputs = encoder.apply(params, tokens, key, read)
        outputs = outputs if isinstance(outputs, dict) else {DENSE: outputs}
        return outputs | {name: getattr(tokens, name) for name in SLOTS}

    return dataclasses.replace(encoder, apply=apply)


def unused_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the special tokens that have no weight in BGE-M3's sparse embeddings.

    They are those around a text, padding and unknown words.
    """
    names = ("cls", "sep", "bos", "eos", "pad", "unk")
    ids = {getattr(tokenizer.hf, f"{name}_token_id", None) for name in names}
    return tuple(sorted(number for number in ids if number is not None))


def load_multi_head_encoder(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> MultiHeadEncoder:
    """Loads a model of several heads.

    See `load_sentence_encoder` for arguments and errors; also those of `read_branches`.
    """
    directory = resolve(str(name))
    saved = with_family(read_model(directory), str(name))
    tokenizer = tokenizer_of(saved, max_length or saved.max_length)
    width = saved.spec.backbone.hidden_size
    branches, params = read_branches(directory, width, unused_tokens(tokenizer))
    fields = read_optional(directory / SETTINGS, json_fields.SETTINGS)
    similarity = fields.get("similarity_of_heads") or saved.settings.similarity
    saved = dataclasses.replace(
        saved,
        spec=dataclasses.replace(saved.spec, branches=branches),
        params={**saved.params, BRANCHES: params},
        settings=dataclasses.replace(saved.settings, similarity=similarity),
    )
    return model_of(MultiHeadEncoder, saved, tokenizer, compute_dtype)
