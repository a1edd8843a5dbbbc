"""Static encoders from word vectors, or from a contextual encoder without any text to train on."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import from_transformers
from embed_jax.data.word_vectors import read_word_vectors, word_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Normalize
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.shrink import pca_head
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.static import MAX_LENGTH, StaticConfig
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import TokenBatch

UNUSED = r"\[unused\d+\]"  # BERT's reserve of tokens
TOKENS_AT_A_TIME = 1024


def static_from_words(
    path: str | Path, *, lower_case: bool | None = None, sif: float = 0.0
) -> SentenceEncoder:
    """Makes an encoder by which a text is the mean of its words' vectors.

    Words that the file does not have don't count.

    Args:
        path: word2vec's or GloVe's text, see `read_word_vectors`.
        lower_case: lower-case texts; None: if no word of the file has a capital letter.
        sif: a of `sif_weights`, for a file that goes from frequent words to rare ones; 0: all weigh
            the same.

    Raises:
        InputError: see `read_word_vectors`; for a negative `sif`.
    """
    words, vectors = read_word_vectors(Path(path))
    if lower_case is None:
        lower_case = all(word == word.lower() for word in words)
    tokenizer = word_tokenizer(words, MAX_LENGTH, lower_case=lower_case)
    return _static(vectors * sif_weights(len(words), sif)[:, None], tokenizer, normalize=False)


def distil(teacher: SentenceEncoder, dim: int = 256, *, sif: float = 1e-4) -> SentenceEncoder:
    """Makes a static encoder whose vectors are a teacher's embeddings of each single token.

    Their mean is subtracted, they are projected to their principal components and weighted by
    `sif_weights`: the recipe of model2vec (Tulkens and van Dongen 2024), with the teacher's own
    pooling and heads. Special tokens get zeros. Tokens are taken to be numbered from frequent to
    rare, as tokenizers are trained.

    Args:
        teacher: its tokenizer is used too, without special tokens; its prompts are not.
        dim: the principal components to keep; 0: the teacher's embeddings unchanged, neither
            shifted nor turned, so that training can go on towards that teacher.
        sif: a of `sif_weights`; 0: all tokens weigh the same.

    Raises:
        InputError: for a `dim` over the teacher's, or a negative `sif`.
    """
    special = _special(teacher.tokenizer)
    weights = np.zeros(len(special), np.float32)
    weights[~special] = sif_weights(int(np.sum(~special)), sif)
    if dim < 0 or dim > teacher.dim:
        raise InputError(
            f"dim: expected 0 to {teacher.dim}, the size of the teacher's embeddings, found {dim}"
        )
    table = embed_tokens(teacher, len(special))
    if dim:
        used = table[~special]
        table = (table - used.mean(axis=0)) @ pca_head(used, dim)[1]["kernel"]
    tokenizer = from_transformers(
        teacher.tokenizer.hf, MAX_LENGTH, lower_case=teacher.lower_case, special_tokens=False
    )
    normalize = Normalize() in teacher.spec.heads[-1:]
    return _static(
        table * weights[:, None],
        tokenizer,
        normalize=normalize,
        similarity=teacher.similarity_fn_name,
    )


def sif_weights(number: int, a: float) -> Float[np.ndarray, " V"]:
    """Computes a / (a + p_r) for the ranks r = 1 .. V; ones if a is 0.

    p_r = (1 / r) / sum_s 1 / s by Zipf's law. Arora, Liang, Ma (2017), "A Simple but Tough-to-Beat
    Baseline for Sentence Embeddings", equation 1, where p is counted in a corpus.

    Raises:
        InputError: for a negative a, or one that is not finite.
    """
    if not 0 <= a < np.inf:
        raise InputError(f"sif: expected a finite number from 0, found {a}")
    if not a:
        return np.ones(number, np.float32)
    share = 1 / np.arange(1, number + 1)
    return (a / (a + share / share.sum())).astype(np.float32)


def embed_tokens(model: SentenceEncoder, number: int) -> Float[np.ndarray, "V D"]:
    """Embeds token ids 0 .. V - 1.

    Each stands by itself between the special tokens around a text.
    """
    before, after = _around(model.tokenizer)
    size = len(before) + 1 + len(after)
    apply = jax.jit(build_encoder(model.spec, compute_dtype=model.compute_dtype).apply)
    rows = min(TOKENS_AT_A_TIME, number)
    position, sentence = np.meshgrid(
        np.arange(size, dtype=np.int32), np.arange(rows, dtype=np.int32)
    )
    blocks = []
    for start in range(0, number, rows):
        # The last batch has the shape of the others.
        ids = np.minimum(np.arange(start, start + rows), number - 1)
        ids = np.stack([np.array([*before, token_id, *after], np.int32) for token_id in ids])
        tokens = TokenBatch(ids, sentence, position, pooled=position >= 0, sentences=rows)
        blocks.append(np.asarray(apply(model.params, tokens)))
    return np.concatenate(blocks)[:number]


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the special tokens before and after a text."""
    encoding = tokenizer.backend.encode("a")
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    if not len(text):
        raise InputError("the tokenizer makes no token of the text 'a'")
    return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]


def _special(tokenizer: Tokenizer) -> np.ndarray:
    """Tells for each token id whether it is not a part of texts."""
    special = np.zeros(tokenizer.vocab_size, bool)
    special[[number for number in tokenizer.hf.all_special_ids if number < len(special)]] = True
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        special[number] |= re.fullmatch(UNUSED, token) is not None
    return special


def _static(
    table: Float[np.ndarray, "V D"],
    tokenizer: Tokenizer,
    *,
    normalize: bool,
    similarity: str = "cosine",
) -> SentenceEncoder:
    config = StaticConfig(vocab_size=len(table), hidden_size=table.shape[1])
    spec = EncoderSpec(config, heads=(Normalize(),) if normalize else ())
    params = {"backbone": {"token": np.ascontiguousarray(table, np.float32)}, "heads": {}}
    return SentenceEncoder(spec, params, tokenizer, EncodingSettings(similarity=similarity))
