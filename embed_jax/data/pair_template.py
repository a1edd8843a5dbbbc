"""Pairs of texts in a tokenizer's chat template, of which only the passage is ever cut."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.data.tokenize import TokenizedTexts, Tokenizer, check_texts
from embed_jax.errors import InputError, one_line

QUERY, PASSAGE = "query", "document"  # roles of the messages, as in sentence-transformers
MARKS = {QUERY: "qmarkq", PASSAGE: "dmarkd"}
# Pairs by whose rendering a template is checked: it has to treat all texts alike.
PROBES = (("a b", " c"), ("", "d"), ("e\n", "f"))


@dataclasses.dataclass(frozen=True)
class PairTemplate:
    """The text that a chat template makes of a pair: fixed pieces with the two texts between them.

    >>> template = PairTemplate(("<q>", QUERY, "<d>", PASSAGE, "<score>"))
    >>> template.fill("who?", "me")
    ('<q>who?<d>me<score>', [(10, 12)])

    Attributes:
        pieces: fixed texts, and between each two of them QUERY or PASSAGE.
        stripped: those of QUERY and PASSAGE that lose white space at their ends.
    """

    pieces: tuple[str, ...]
    stripped: frozenset[str] = frozenset()

    def fill(self, query: str, passage: str) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text of a pair, and the start and end in it of each place of the passage."""
        texts = {QUERY: query, PASSAGE: passage}
        texts |= {role: texts[role].strip() for role in self.stripped}
        parts, places, length = [], [], 0
        for index, piece in enumerate(self.pieces):
            part = texts[piece] if index % 2 else piece
            if index % 2 and piece == PASSAGE:
                places.append((length, length + len(part)))
            parts.append(part)
            length += len(part)
        return "".join(parts), places


def has_chat_template(tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer.hf, "chat_template", None))


def read_pair_template(
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    structured: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> PairTemplate:
    """Finds what a tokenizer's chat template makes of a query and a passage.

    The template gets messages of the roles "query" and "document", as in sentence-transformers, and
    before them the prompt as one of the role "system", if there is one. transformers runs it in a
    sandbox, on a few short pairs; those to score never pass through it.

    Args:
        tokenizer: the tokenizer, whose template must fit its limit.
        prompt: the content of a message of the role "system"; "": no such message.
        structured: whether a message's content is a list of parts, not a string; None: whichever of
            the two the template takes.
        options: variables of the template.

    Raises:
        InputError: the template cannot hold a pair, changes its texts, or is longer than the
            tokenizer's limit.
    """
    errors = []
    for form in (False, True) if structured is None else (structured,):
        render = functools.partial(_render, tokenizer.hf, prompt, form, dict(options or {}))
        try:
            template = _find_pieces(render)
        except InputError as error:
            errors.append(error)
            continue
        (fixed,) = tokenizer.tokenize([template.fill("", "")[0]], whole=True)
        if len(fixed) >= tokenizer.max_length:
            raise InputError(
                f"max_length {tokenizer.max_length} leaves no room for a pair of texts: "
                f"{len(fixed)} are the chat template's tokens"
            )
        return template
    raise errors[0]


def encode_templated_pairs(
    tokenizer: Tokenizer, template: PairTemplate, queries: Sequence[str], passages: Sequence[str]
) -> TokenizedTexts:
    """Makes token ids of pairs in a template.

    A pair over the limit loses the last tokens of its passage.

    Args:
        tokenizer: the tokenizer, with its limit.
        template: see `read_pair_template`.
        queries: N strings.
        passages: N strings.

    Raises:
        InputError: a text is not a string, or a query leaves no room for its passage.
    """
    check_texts(queries)
    check_texts(passages)
    filled = [template.fill(*pair) for pair in zip(queries, passages, strict=True)]
    encodings = tokenizer.tokenize([text for text, _ in filled], whole=True)
    ids, truncated = [], 0
    for index, (encoding, (_, places)) in enumerate(zip(encodings, filled, strict=True)):
        own_ids, excess = np.array(encoding.ids, np.int32), len(encoding) - tokenizer.max_length
        if excess > 0:
            inside = _tokens_within(encoding.offsets, places)
            if len(inside) <= excess:
                raise InputError(
                    f"a query with the chat template takes {len(own_ids) - len(inside)} tokens, "
                    f"which leaves no room for a passage in max_length {tokenizer.max_length}: "
                    f"{queries[index][:60]!a}"
                )
            own_ids = np.delete(own_ids, inside[-excess:])
            truncated += 1
        ids.append(own_ids)
    return TokenizedTexts(ids, 0, truncated)


def _tokens_within(offsets: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]):
    """Returns the positions of tokens all of whose characters are in one of the places."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    within = [(starts >= first) & (ends <= last) & (ends > starts) for first, last in places]
    return np.flatnonzero(np.any(within, axis=0))


def _render(
    hf: Any, prompt: str, structured: bool, options: Mapping[str, Any], query: str, passage: str
) -> str:
    messages = [("system", prompt)] if prompt else []
    messages += [(QUERY, query), (PASSAGE, passage)]
    try:
        return hf.apply_chat_template(
            [
                {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
                for role, text in messages
            ],
            tokenize=False,
            **options,
        )
    except Exception as error:  # whatever a template raises
        message = one_line(error)[:200]
        raise InputError(f"the chat template cannot hold a pair of texts: {message}") from None


def _find_pieces(render: Callable[[str, str], str]) -> PairTemplate:
    """Returns the pieces of what `render` makes of a query and a passage."""
    text = render(*(f" {mark} " for mark in MARKS.values()))
    for role, mark in MARKS.items():
        if mark not in text:
            raise InputError(
                "the chat template cannot hold a pair of texts: it leaves out the message of the "
                f"role {role!r}"
            )
    stripped = frozenset(role for role, mark in MARKS.items() if f" {mark} " not in text)
    marks = {mark if role in stripped else f" {mark} ": role for role, mark in MARKS.items()}
    pieces = re.split(f"({'|'.join(marks)})", text)
    template = PairTemplate(tuple(marks.get(piece, piece) for piece in pieces), stripped)
    for pair in PROBES:
        if template.fill(*pair)[0] != render(*pair):
            raise InputError(
                "the chat template cannot hold a pair of texts: it changes them, as "
                f"{render(*pair)[:80]!r} of {pair}"
            )
    return template
