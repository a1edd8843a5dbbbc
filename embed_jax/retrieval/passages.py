"""Search in documents longer than a model reads, by their best passage."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from embed_jax.errors import InputError
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.topk import Encode, as_run, encoded, top_k
from embed_jax.retrieval.words import character_pattern


@functools.cache
def _word() -> re.Pattern[str]:
    character = character_pattern()
    return re.compile(rf"{character}|(?:(?!{character})\S)+")


def split_passages(
    corpus: Mapping[str, str], words: int, overlap: int = 0
) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Cuts documents into windows of this many words.

    Words are what blanks separate, and each character of a script without blanks, such as Chinese
    or Thai. The last window is the rest of the text; a document of one window is kept unchanged,
    also an empty one. Titles stand in the first window only.

    Args:
        corpus: texts by id.
        words: of a window, at most.
        overlap: how many of them the next window begins with.

    Returns:
        Passages in the corpus' order, and the number of the document that each is a part of: 0, 0,
        0, 1, 2, 2, ...

    Raises:
        InputError: for a window of no words, or an overlap that is not smaller than it.
    """
    if words < 1 or not 0 <= overlap < words:
        raise InputError(
            f"passages: expected an overlap below the words of a passage, found {overlap} of "
            f"{words} words"
        )
    passages, owner = [], []
    for number, text in enumerate(corpus.values()):
        spans = [match.span() for match in _word().finditer(text)]
        starts = range(0, max(len(spans) - overlap, 1), words - overlap)
        if len(starts) == 1:
            passages.append(text)
        else:
            windows = (spans[start : start + words] for start in starts)
            passages += [text[window[0][0] : window[-1][1]] for window in windows]
        owner += [number] * len(starts)
    return passages, np.array(owner, np.int32)


def passage_search(
    encode_queries: Encode,
    encode_corpus: Encode,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    k: int,
    *,
    similarity: str = "cosine",
    words: int,
    overlap: int = 0,
) -> Run:
    """Searches like `topk.dense_search`, with the score of a document's best passage.

    This is MaxP (Dai and Callan 2019); `dense_search` is their FirstP wherever the model cuts long
    texts. Holds the embeddings of at most 65,536 passages at a time; exact.

    Args:
        encode_queries: embeds queries.
        encode_corpus: embeds passages.
        corpus: documents by id.
        queries: queries by id.
        k: the number of documents for a query.
        similarity: one of SIMILARITIES.
        words: of a passage, see `split_passages`.
        overlap: words that two passages share, see `split_passages`.

    Raises:
        InputError: for an unknown similarity; see `split_passages`.
    """
    passages, owner = split_passages(corpus, words, overlap)
    query_vectors = encode_queries(list(queries.values()))
    results = top_k(
        query_vectors, encoded(encode_corpus, passages), k, similarity=similarity, owner=owner
    )
    return as_run(*results, list(queries), list(corpus))
