"""The tokenizers of queries and of documents, for a model that gives each token a vector."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

from embed_jax.data.tokenize import Expansion, Tokenizer
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.saved import SavedLateInteraction
from embed_jax.encoders.spec import Backbone
from embed_jax.encoders.token_settings import TokenSettings
from embed_jax.errors import InputError


def saved_tokenizer(saved: SavedLateInteraction, max_length: int) -> Tokenizer:
    """Loads the tokenizer of a model that was read, with its markers as tokens.

    Args:
        saved: the model.
        max_length: texts are cut at this many tokens.

    Raises:
        InputError: see `load_tokenizer`.
    """
    tokenizer = load_tokenizer(
        saved.tokenizer_directory, max_length, lower_case=saved.settings.lower_case
    )
    return register_markers(tokenizer, saved.settings.prompts.values() if saved.marked else ())


def register_markers(tokenizer: Tokenizer, prompts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer for which a prompt that its vocabulary knows is one token.

    Markers such as "[unused0] " or "[Q] " are put before texts like any prompt, but a tokenizer
    splits them unless they are special tokens. A prompt that the vocabulary does not know stays
    ordinary text.
    """
    known, markers = tokenizer.backend.get_vocab(with_added_tokens=True), []
    for prompt in filter(str.strip, prompts):
        marker = next((text for text in (prompt, prompt.split()[0]) if text in known), None)
        if marker and tokenizer.hf.tokenize(marker) != [marker]:
            markers.append(marker)
    if not markers:
        return tokenizer
    from tokenizers import AddedToken

    tokens = [AddedToken(marker, normalized=False, special=True) for marker in markers]
    hf, backend = copy.deepcopy(tokenizer.hf), copy.deepcopy(tokenizer.backend)
    hf.add_tokens(tokens, special_tokens=True)
    backend.add_special_tokens(tokens)
    return dataclasses.replace(tokenizer, hf=hf, backend=backend)


def side_tokenizer(
    tokenizer: Tokenizer, texts: TokenSettings, side: str, backbone: Backbone
) -> Tokenizer:
    """Returns the tokenizer of queries or of documents, with its limit and the marks of tokens.

    Args:
        tokenizer: the model's.
        texts: how texts become tokens.
        side: "query" or "document".
        backbone: whose attention sees the query from every token that expands it.

    Raises:
        InputError: the tokenizer has no token to expand queries with, or tokens that expand a query
            would be too far from it for a backbone with local attention.
    """
    expansion = None
    if side == "query" and texts.expansion:
        name = texts.expansion_token or tokenizer.hf.mask_token or tokenizer.hf.eos_token
        token_id = tokenizer.backend.token_to_id(name) if name else None
        if token_id is None:
            raise InputError(f"expansion_token: the tokenizer has no token {name!r}")
        expansion = Expansion(texts.expansion_length, token_id, texts.attend)
        window = getattr(backbone, "local_attention", 0)
        if window and not texts.attend and texts.expansion_length > window // 2:
            raise InputError(
                f"expansion_length: expected at most {window // 2}, the reach of the model's local "
                f"attention, without attend, found {texts.expansion_length}"
            )
    skipped = texts.skip_words if side in texts.skip_sides else ()
    ids = [tokenizer.backend.token_to_id(word) for word in skipped]
    limit = texts.limit(side, tokenizer.max_length)
    return dataclasses.replace(
        tokenizer.cut_at(limit),
        expansion=expansion,
        unpooled_ids=tuple(token_id for token_id in ids if token_id is not None),
    )
