"""Why a document matches a query: by which tokens, or by which words.

(matches,) = token_matches(model, "who eats?", ["A man eats."])    # late interaction
sum(match.score for match in matches)                              # MaxSim
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from embed_jax.data.pack import UNPOOLED
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.prompts import prompt_for, resolve_prompt
from embed_jax.types import SparseRows

TextSpan = tuple[int, int]  # where a piece of a text begins and ends, in characters


@dataclasses.dataclass(frozen=True)
class TokenMatch:
    """A token of a query with the token of a document that matches it best.

    Attributes:
        query: the query's token, as in the vocabulary.
        is_word: whether it is a part of the query's text, not a marker or a special token.
        document: the document's token.
        span: where that token is in the document; None: it is a marker or a special token.
        score: the product of their vectors.
    """

    query: str
    is_word: bool
    document: str
    span: TextSpan | None
    score: float


@dataclasses.dataclass(frozen=True)
class WordMatch:
    """A word that a query and a document share.

    Attributes:
        word: the word, as in the vocabulary.
        query: its weight in the query.
        document: its weight in the document.
    """

    word: str
    query: float
    document: float

    @property
    def score(self) -> float:
        """Returns what the word adds to the score."""
        return self.query * self.document


def token_matches(
    model: LateInteractionEncoder, query: str, documents: Sequence[str]
) -> list[list[TokenMatch]]:
    """Returns the best match of each token of a query in each document, in the query's order.

    The scores of a document add up to its MaxSim; of a model with "mean_maxsim", divided by their
    number. Documents are encoded without pooling of tokens. One without tokens matches nothing.

    Args:
        model: gives each token a vector.
        query: the query.
        documents: N texts.

    Returns:
        N lists.

    Raises:
        InputError: see `LateInteractionEncoder.encode`.
    """
    (query_tokens,) = _counted_tokens(model, "query", [query])
    query_vectors = model.encode_query(query)
    vectors_of_documents = model.encode_document(list(documents), pool_factor=1.0)
    tokens_of_documents = _counted_tokens(model, "document", documents)
    matches: list[list[TokenMatch]] = []
    for tokens, vectors in zip(tokens_of_documents, vectors_of_documents, strict=True):
        if not tokens:
            matches.append([])
            continue
        products = query_vectors @ vectors.T
        best = products.argmax(axis=1).tolist()
        matches_of_text = []
        for (token, span), index, product in zip(
            query_tokens, best, products.max(axis=1).tolist(), strict=True
        ):
            name, place = tokens[index]
            matches_of_text.append(TokenMatch(token, span is not None, name, place, product))
        matches.append(matches_of_text)
    return matches


def word_matches(query: SparseRows, documents: SparseRows, words: Sequence[str]) -> list[list[Any]]:
    """Returns the words that a query shares with each document, those that add most first.

    The scores of a document add up to its score, the product of the two embeddings.

    Args:
        query: the embedding of a query, scipy's CSR [1, V].
        documents: those of documents, [N, V].
        words: what the V numbers stand for, such as `SparseEncoder.words`.

    >>> import scipy.sparse
    >>> query = scipy.sparse.csr_array(np.array([[2.0, 0.0, 1.0]], np.float32))
    >>> word_matches(query, query, ["tea", "pot", "lid"])[0][0]
    WordMatch(word='tea', query=2.0, document=2.0)
    """
    first, rows = query.tocsr(), documents.tocsr()
    weights = dict(zip(first.indices.tolist(), first.data.tolist(), strict=True))
    matches = []
    for start, stop in zip(rows.indptr, rows.indptr[1:], strict=False):
        row = zip(rows.indices[start:stop].tolist(), rows.data[start:stop].tolist(), strict=True)
        shared = [WordMatch(words[i], weights[i], weight) for i, weight in row if i in weights]
        matches.append(sorted(shared, key=lambda match: -match.score))
    return matches


def word_spans(tokenizer: Any, text: str) -> list[tuple[str, TextSpan]]:
    """Returns the tokens of a text and where they are, special tokens left out."""
    encoding = tokenizer.backend.encode(text)
    pairs = zip(encoding.tokens, encoding.offsets, strict=True)
    return [(token, span) for token, span in pairs if span[1] > span[0]]


def _counted_tokens(
    model: LateInteractionEncoder, side: str, texts: Sequence[str]
) -> list[list[tuple[str, TextSpan | None]]]:
    """Returns the tokens of each text that have a vector, and where they are in the text."""
    tokenizer = model.tokenizers[side]
    name = prompt_for(model.prompts, side=side)
    prefix = resolve_prompt(model.prompts, "", prompt_name=name, prompt=None)
    tokenized = tokenizer.encode(texts, prefix)
    marks = tokenized.marks or [np.zeros_like(ids) for ids in tokenized.ids]
    # The faster way to tokenize, which `encode` takes, does not know where tokens are.
    encodings = tokenizer.backend.encode_batch([prefix + text for text in texts])
    tokens_of_texts = []
    for ids, marks_of_text, encoding in zip(tokenized.ids, marks, encodings, strict=True):
        # Tokens that expand a query come after those of its text.
        spans = [_without_prefix(span, len(prefix)) for span in encoding.offsets]
        spans += [None] * (len(ids) - len(spans))
        names = [tokenizer.backend.id_to_token(number) for number in ids.tolist()]
        counted = (marks_of_text & UNPOOLED == 0).tolist()
        rows = zip(names, spans, counted, strict=True)
        tokens_of_texts.append([(token, span) for token, span, counts in rows if counts])
    return tokens_of_texts


def _without_prefix(span: TextSpan, length: int) -> TextSpan | None:
    """Returns where a token is in the text itself; None: it is a part of what was put around it."""
    start, end = max(span[0] - length, 0), span[1] - length
    return (start, end) if end > start else None
