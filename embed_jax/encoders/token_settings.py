"""Settings of a model that gives each token a vector: how queries and documents become tokens."""

from __future__ import annotations

import dataclasses
import string

from embed_jax.errors import InputError
from embed_jax.registry import unknown

EXPANSIONS = ("", "fixed", "min")
PUNCTUATION = tuple(string.punctuation)
SIDES = ("query", "document")


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """Settings of late interaction (Khattab and Zaharia 2020, "ColBERT", section 3.2).

    >>> TokenSettings(expansion="fixed", expansion_length=32).limit("query", 512)
    32

    Attributes:
        query_length: tokens after which a query is cut; 0: the model's own limit.
        document_length: the same of documents.
        expansion: "fixed": every query gets `expansion_length` tokens, and is cut there; "min":
            shorter ones are lengthened to it; "": none is.
        expansion_length: how many tokens an expanded query has.
        attend: whether a query's own tokens see those that expand it.
        expansion_token: the token that expands queries; "": the mask token, or else the
            end-of-text token.
        skip_words: tokens whose vectors do not count.
        skip_sides: on which side they do not: "query", "document".
        pool_factor: how many tokens of a document become one vector, see `pool_tokens`; 1: each
            keeps its own.
        protected_tokens: the first tokens, which keep theirs.
        normalize_pooled: whether pooled vectors get length 1.
    """

    query_length: int = 0
    document_length: int = 0
    expansion: str = ""
    expansion_length: int = 0
    attend: bool = False
    expansion_token: str = ""
    skip_words: tuple[str, ...] = ()
    skip_sides: tuple[str, ...] = ("document",)
    pool_factor: float = 1.0
    protected_tokens: int = 1
    normalize_pooled: bool = True

    def __post_init__(self) -> None:
        if self.expansion not in EXPANSIONS:
            raise InputError(unknown("query expansion", self.expansion, EXPANSIONS))
        if self.expansion and self.expansion_length < 1:
            raise InputError(
                f"expansion_length: expected 1 or more tokens, found {self.expansion_length}"
            )
        for side in self.skip_sides:
            if side not in SIDES:
                raise InputError(unknown("side whose words are skipped", side, SIDES))
        if self.pool_factor < 1:
            raise InputError(f"pool_factor: expected 1 or more, found {self.pool_factor:g}")

    def limit(self, side: str, model_limit: int) -> int:
        """Returns the tokens after which a text of a side is cut.

        Args:
            side: "query" or "document".
            model_limit: the model's own limit.
        """
        if side == "document":
            return min(self.document_length or model_limit, model_limit)
        if self.expansion == "fixed":
            return self.expansion_length
        return max(min(self.query_length or model_limit, model_limit), self.expansion_length)
