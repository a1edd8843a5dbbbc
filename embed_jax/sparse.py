"""Texts in, weights of words out: sparse embeddings (SPLADE).

model = embed_jax.load("naver/splade-v3")
queries, documents = model.encode_query(["..."]), model.encode_document(["...", "..."])
model.similarity(queries, documents)  # by dot product
model.decode(documents)  # the words and their weights
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.window import text_windows
from embed_jax.embedding_model import Setting
from embed_jax.encode_options import SPARSE_OPTIONS, EncodeOptions, refuse_unknown
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.vocabulary import VOCABULARY, Splade
from embed_jax.errors import InputError, warn
from embed_jax.parallel.inference import default_batch_tokens
from embed_jax.parallel.mesh import gather_params
from embed_jax.pretrained import tokenizer_of, with_family
from embed_jax.sentence import SentenceEncoder
from embed_jax.text_model import TextModel, model_of
from embed_jax.types import Params, SparseRows

RAISED = 64.0  # added to logits of which even those below 0 are to be seen
OUTPUT = 2**26  # numbers of a batch's embeddings before the zeros are left out: 256 MiB


class SparseEncoder(TextModel[Any]):
    """A model that gives each text weights of the vocabulary's words; see `TextModel`.

    Embeddings are scipy's `csr_array` [N, V], float32. A text without any weight above 0, such as
    one of unknown words only for a table of weights, is a row of zeros, which nothing finds; a
    warning counts such texts.
    """

    max_active: Setting[int] = Setting()

    def _build(self, spec: EncoderSpec, params: Params) -> None:
        if spec.vocabulary is None:
            raise InputError("a sparse model: expected a spec with a head over the vocabulary")
        super()._build(spec, params)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:
        """Embeds texts, in input order, as scipy's CSR [N, V]; [1, V] for one string.

        Memory grows with the weights above 0 only. Texts over the model's limit are cut, and one
        warning counts them.

        Args:
            texts: a string, or any iterable of strings.
            prompt_name: which of `prompts` to put before each text.
            prompt: the prompt itself, instead of a name; "" for none, on purpose.
            instruction: what the model's template makes a prompt of, instead of either.
            max_active: how many of the largest weights of each text to keep, of equal ones those
                of the smaller token ids; 0: those that the model names, or all.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: see `SentenceEncoder.encode`; also for a negative `max_active`.
        """
        import scipy.sparse

        blocks = self.encode_blocks(
            [texts] if isinstance(texts, str) else texts,
            prompt_name=prompt_name,
            prompt=prompt,
            instruction=instruction,
            **options,
        )
        empty = scipy.sparse.csr_array((0, self.dim), dtype=np.float32)
        return scipy.sparse.vstack([empty, *blocks], format="csr")

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[Any]:
        """Yields the embeddings of up to 8,192 texts at a time, for outputs larger than memory."""
        refuse_unknown(options, SPARSE_OPTIONS)
        max_active = options.get("max_active") or self.max_active
        if max_active < 0:
            raise InputError(f"max_active: expected 1 or more, or 0 for all, found {max_active}")
        return self._blocks(
            texts,
            self._prefix(prompt_name, prompt, instruction),
            max_active,
            options.get("batch_tokens", 0) or self._batch_tokens(),
            options.get("show_progress", False),
            options.get("params"),
        )

    def _batch_tokens(self) -> int:
        """Returns the slots of a batch whose embeddings are at most OUTPUT numbers.

        A text has about 8 tokens or more.
        """
        return max(min(default_batch_tokens(), 8 * OUTPUT // self.dim), self.max_length)

    def _blocks(
        self,
        texts: Iterable[str],
        prefix: str,
        max_active: int,
        batch_tokens: int,
        show_progress: bool,
        params: Params | None,
    ) -> Iterator[Any]:
        import scipy.sparse

        params = gather_params(self.params if params is None else params, self._mesh)
        encode = self._programs[self.spec.backbone.num_layers]
        count = empty = 0
        windows = self._run(
            texts,
            prefix,
            encode,
            params,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )
        for size, results in windows:
            # A text without tokens has no result, but the row of zeros.
            parts, row = (
                [scipy.sparse.csr_array((1, self.dim), dtype=np.float32)],
                np.zeros(size, int),
            )
            done = 1
            for number, embeddings in results:
                row[number] = np.arange(done, done + len(number))
                done += len(number)
                parts.append(to_csr(embeddings, max_active))
            block = scipy.sparse.vstack(parts, format="csr")[row]
            count, empty = count + size, empty + int((np.diff(block.indptr) == 0).sum())
            yield block
        if empty:
            warn(f"{empty} of {count} texts have no weight above 0: no search finds them")

    @property
    def words(self) -> list[str]:
        """The words that the dimensions stand for, the tokenizer's own tokens; "" for none."""
        words = [""] * self.dim
        for word, number in self.tokenizer.backend.get_vocab(with_added_tokens=True).items():
            if number < self.dim:
                words[number] = word
        return words

    def decode(
        self, embeddings: SparseRows, top_k: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """Returns the words of each embedding with their weights, the largest first.

        Args:
            embeddings: scipy's CSR [N, V].
            top_k: at most this many words of each; None: all with a weight other than 0.

        Raises:
            InputError: for embeddings over another vocabulary, or a `top_k` below 1.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: expected 1 or more, found {top_k}")
        if embeddings.shape[1] != self.dim:
            raise InputError(
                f"decode: expected embeddings over the model's {self.dim} words, found "
                f"{embeddings.shape[1]}"
            )
        words, rows = self.words, embeddings.tocsr()
        decoded = []
        for start, stop in zip(rows.indptr, rows.indptr[1:], strict=False):
            ids, weights = rows.indices[start:stop], rows.data[start:stop]
            best = np.lexsort((ids, -weights))[:top_k]
            decoded.append([(words[ids[i]], float(weights[i])) for i in best])
        return decoded

    def overlap(self, a: SparseRows, b: SparseRows) -> Any:
        """Returns the products of the weights of each row of `a` with the same row of `b`, CSR.

        `decode` shows by which words two texts match: sentence-transformers' `intersection`.
        """
        return a.tocsr().multiply(b.tocsr()).tocsr()


@dataclasses.dataclass(frozen=True)
class SparseStatistics:
    """Statistics of the embeddings of queries and documents.

    Attributes:
        active_queries: mean number of weights of a query other than 0.
        active_documents: the same of documents.
        flops: mean number of words that a query and a document share: sum_j p_j q_j of the shares
            of queries and of documents that have word j (Paria et al. 2020; Formal et al. 2021).
        empty_documents: how many documents have no weight.
    """

    active_queries: float
    active_documents: float
    flops: float
    empty_documents: int


def sparse_statistics(queries: SparseRows, documents: SparseRows) -> SparseStatistics:
    """Computes how sparse embeddings are, and what a search with them costs.

    >>> import scipy.sparse
    >>> queries = scipy.sparse.csr_array(np.eye(2, 3, dtype=np.float32))
    >>> print(sparse_statistics(queries, scipy.sparse.csr_array(np.ones((4, 3), np.float32))))
    SparseStatistics(active_queries=1.0, active_documents=3.0, flops=1.0, empty_documents=0)
    """
    shares = []
    for rows in (queries.tocsr(), documents.tocsr()):
        active = np.bincount(rows.indices[rows.data != 0], minlength=rows.shape[1])
        shares.append(active / max(rows.shape[0], 1))
    empty = int((np.diff(documents.tocsr().indptr) == 0).sum())
    first, second = shares
    return SparseStatistics(float(first.sum()), float(second.sum()), float(first @ second), empty)


def to_csr(embeddings: Float[np.ndarray, "n V"], max_active: int = 0) -> Any:
    """Returns dense embeddings as scipy's CSR, without zeros.

    Args:
        embeddings: weights of 0 or more.
        max_active: how many of the largest weights to keep, of equal ones those of smaller ids; 0:
            all.

    >>> print(to_csr(np.array([[0.0, 2.0, 3.0]], np.float32), max_active=1).toarray())
    [[0. 0. 3.]]
    """
    import scipy.sparse

    rows = scipy.sparse.csr_array(np.asarray(embeddings, np.float32))
    if not max_active or not rows.nnz or np.diff(rows.indptr).max() <= max_active:
        return rows
    number = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -rows.data, number))
    rank = np.arange(len(order)) - rows.indptr[number[order]]
    chosen = np.sort(order[rank < max_active])
    entries = rows.data[chosen], (number[chosen], rows.indices[chosen])
    return scipy.sparse.csr_array(entries, shape=rows.shape)


def idf_weights(tokenizer: Tokenizer, texts: Sequence[str]) -> Float[np.ndarray, "V 1"]:
    """Computes log(1 + (N - n_j + 0.5) / (n_j + 0.5)) for each token j, of whose n_j texts have it.

    It is Lucene's inverse document frequency; special tokens have 0.

    Args:
        tokenizer: puts no special tokens around a text.
        texts: N of them.
    """
    counts = np.zeros(tokenizer.rows or tokenizer.vocab_size)
    for window in text_windows(texts):
        for ids in tokenizer.encode(window).ids:
            counts[np.unique(ids)] += 1
    weights = np.log1p((len(texts) - counts + 0.5) / (counts + 0.5))
    weights[[number for number in tokenizer.hf.all_special_ids if number < len(weights)]] = 0.0
    return weights.astype(np.float32)[:, None]


def bias_change(model: SparseEncoder, texts: Sequence[str], words: int) -> float:
    """Computes what to add to a head's bias so that a text has `words` weights on average.

    The loss of a masked language model doesn't depend on a number added to all logits; the relu of
    SPLADE does. A word has a weight if the largest logit of the text's tokens is above 0, so the
    change is the negative of the N * `words`-th largest of these logits of all N texts.

    Args:
        model: with a head that has a bias.
        texts: N of them.
        words: at most about half of the vocabulary.

    Raises:
        InputError: for a head without a bias, or more words than the vocabulary's half.
    """
    if VOCABULARY not in model.params or "bias" not in model.params[VOCABULARY]:
        raise InputError("the model's head over the vocabulary has no bias")
    if not 0 < words <= model.dim // 2:
        raise InputError(f"expected 1 to {model.dim // 2} words of {model.dim}, found {words}")
    head = model.params[VOCABULARY]
    params = {**model.params, VOCABULARY: {**head, "bias": head["bias"] + RAISED}}
    spec = dataclasses.replace(model.spec, vocabulary=Splade())
    weights = SparseEncoder(spec, params, model.tokenizer, model.settings).encode(texts, prompt="")
    count = words * len(texts)
    if weights.nnz <= count:
        raise InputError(
            f"expected fewer words: {weights.nnz // len(texts)} of a text can have a weight, found "
            f"{words}"
        )
    logits = np.expm1(weights.data) - RAISED
    around = np.partition(logits, (-count - 1, -count))[[-count - 1, -count]]
    return float(-around.mean())


def encoder_class(spec: EncoderSpec) -> type[SentenceEncoder] | type[SparseEncoder]:
    """Returns the class of the models of an architecture."""
    return SentenceEncoder if spec.vocabulary is None else SparseEncoder


def load_one_encoder(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> SentenceEncoder | SparseEncoder:
    """Loads a model of one encoder, dense or sparse.

    See `load_sentence_encoder` for arguments and errors.
    """
    saved = with_family(read_model(resolve(str(name))), str(name))
    tokenizer = tokenizer_of(saved, max_length or saved.max_length)
    return model_of(encoder_class(saved.spec), saved, tokenizer, compute_dtype)
