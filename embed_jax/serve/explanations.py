"""Why a stage of a search scores a document as it does: by tokens, or by words and weights."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.matches import TextSpan, token_matches, word_matches, word_spans
from embed_jax.retrieval.words import bigrams, word_pattern

MOST_WORDS = 12  # of a sparse model's words that are listed
LEVELS = 4  # of highlights


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A document's score by its parts.

    Attributes:
        stage: the name of the stage.
        columns: names of the columns of `rows`.
        rows: words or tokens, and numbers, of each part that is listed.
        spans: the weight of pieces of the text.
        note: what is not listed; "": nothing.
    """

    stage: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    spans: Mapping[TextSpan, float]
    note: str = ""


def explain_tokens(
    stage: str, model: Any, query: str, texts: Mapping[str, str]
) -> dict[str, Explanation]:
    """Explains late interaction: the token of each document that each query token matches best."""
    explanations = {}
    matches_of_texts = token_matches(model, query, list(texts.values()))
    for name, matches in zip(texts, matches_of_texts, strict=True):
        words = [match for match in matches if match.is_word]
        spans: dict[TextSpan, float] = {}
        for match in words:
            if match.span is not None:
                spans[match.span] = spans.get(match.span, 0.0) + max(match.score, 0.0)
        rest = sum(match.score for match in matches if not match.is_word)
        note = f"Markers and tokens that expand the query add {rest:.3f}." if rest else ""
        rows = [(match.query, match.document, match.score) for match in words]
        columns = ("query token", "best match", "similarity")
        explanations[name] = Explanation(stage, columns, rows, spans, note)
    return explanations


def explain_weights(
    stage: str, model: Any, query: str, texts: Mapping[str, str]
) -> dict[str, Explanation]:
    """Explains a sparse model: the words that query and document share, and their weights."""
    embedding = model.encode_query([query])
    documents = model.encode_document(list(texts.values()))
    shared = word_matches(embedding, documents, model.words)
    explanations = {}
    for (name, text), matches in zip(texts.items(), shared, strict=True):
        scores = {match.word: match.score for match in matches}
        spans = {
            span: scores[token]
            for token, span in word_spans(model.tokenizer, text)
            if token in scores
        }
        rows = [(m.word, m.query, m.document, m.score) for m in matches[:MOST_WORDS]]
        rest = matches[MOST_WORDS:]
        note = f"{len(rest)} other words add {sum(m.score for m in rest):.3f}." if rest else ""
        columns = ("word", "in the query", "in the document", "product")
        explanations[name] = Explanation(stage, columns, rows, spans, note)
    return explanations


def query_weights(model: Any, query: str) -> list[tuple[str, float]]:
    """Returns the words that a sparse model sees in a query, the heaviest first."""
    (words,) = model.decode(model.encode_query([query]), top_k=2 * MOST_WORDS)
    return words


def explain_words(
    stage: str, index: Any, query: str, texts: Mapping[str, str]
) -> dict[str, Explanation]:
    """Explains BM25: what each word of the query adds.

    Args:
        stage: the name of the stage.
        index: a `WordIndex` with these documents.
        query: the query.
        texts: documents by id.
    """
    explanations = {}
    for name, scores in zip(texts, index.word_scores(query, list(texts)), strict=True):
        rows = list(scores.items())
        spans = find_words(texts[name], scores)
        explanations[name] = Explanation(stage, ("word", "adds"), rows, spans)
    return explanations


def find_words(text: str, scores: Mapping[str, float]) -> dict[TextSpan, float]:
    """Returns where words are in a text, with their scores.

    >>> find_words("Tea, green tea", {"tea": 1.5})
    {(0, 3): 1.5, (11, 14): 1.5}
    """
    spans: dict[TextSpan, float] = {}
    for match in re.finditer(word_pattern(), text):
        word = unicodedata.normalize("NFC", match[0].lower())
        if word in scores:
            spans[match.span()] = scores[word]
            continue
        # Pairs of characters, in a script without blanks between words.
        for part in scores.keys() & set(bigrams(word)):
            start = match.start() + word.find(part)
            spans[start, start + len(part)] = scores[part]
    return spans


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Attributes:
        text: the piece.
        level: how strongly it is highlighted, 0 to LEVELS.
    """

    text: str
    level: int = 0


def highlight(text: str, spans: Mapping[TextSpan, float], width: int = 0) -> list[Piece]:
    """Cuts a text into pieces, those of large weight with a high level.

    Args:
        text: the text.
        spans: the weights; where two overlap, the larger weight counts.
        width: about how many characters, those with most weight, are returned; 0: all.

    >>> highlight("a red kettle", {(2, 5): 1.0, (6, 12): 4.0})[1:]
    [Piece(text='red', level=1), Piece(text=' ', level=0), Piece(text='kettle', level=4)]
    """
    start, end = _window(text, spans, width) if 0 < width < len(text) else (0, len(text))
    largest = max(spans.values(), default=0.0)
    levels = [0] * len(text)
    for (first, last), weight in spans.items():
        level = min(int(LEVELS * weight / largest + 0.5), LEVELS) if largest > 0 else 0
        level = max(level, 1) if weight > largest / 20 else level
        for position in range(first, min(last, len(text))):
            levels[position] = max(levels[position], level)
    pieces = [Piece("… ")] if start else []
    begin = start
    for position in range(start + 1, end + 1):
        if position == end or levels[position] != levels[begin]:
            pieces.append(Piece(text[begin:position], levels[begin]))
            begin = position
    return pieces + ([Piece(" …")] if end < len(text) else [])


def _window(text: str, spans: Mapping[TextSpan, float], width: int) -> TextSpan:
    """Returns the part of a text that has most weight, cut between words."""
    starts = [0, *(max(first - width // 6, 0) for first, _ in spans)]

    def weight(start: int) -> float:
        return sum(w for (a, b), w in spans.items() if a >= start and b <= start + width)

    start = max(sorted(starts), key=weight)  # of equal ones the first
    end = min(start + width, len(text))
    start = max(end - width, 0)
    if start:
        start = next(
            (p for p in range(start, min(start + 20, end)) if text[p - 1].isspace()), start
        )
    if end < len(text):
        end = next((p for p in range(end, max(end - 20, start), -1) if text[p].isspace()), end)
    return start, end
