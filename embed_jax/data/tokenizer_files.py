"""Loads a tokenizer: from a model's directory, or from transformers' own."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from embed_jax.data.tokenize import Tokenizer, set_limit
from embed_jax.errors import InputError, one_line

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def load_tokenizer(
    directory: str | os.PathLike,
    max_length: int,
    *,
    lower_case: bool = False,
    special_tokens: bool = True,
    append_eos: bool = False,
    by_config: bool = False,
) -> Tokenizer:
    """Reads the tokenizer of a model directory.

    Transformers decides which special tokens are put around a text: by the post-processor of
    `tokenizer.json`, or if there is no such file, by `add_bos_token` and `add_eos_token` of
    tokenizer_config.json.

    Args:
        directory: a directory with `tokenizer.json`, or with the vocabulary in an older form that
            transformers converts.
        max_length: the number of tokens that texts are cut to, special tokens included.
        lower_case: whether texts are put into lower case first (`do_lower_case` of
            sentence-transformers).
        special_tokens: whether special tokens are put around each text; False for static encoders.
        append_eos: whether each text ends with the tokenizer's end-of-text token, for last-token
            pooling; `save` records this. A tokenizer that already ends texts with any special token
            is not changed.
        by_config: whether transformers makes the tokenizer by its config even if it puts no special
            tokens around texts, as for sparse models; `Tokenizer.save` then writes the config too.

    Raises:
        InputError: there is no tokenizer, it cannot be read, or it has no end-of-text token to
            append.
    """
    directory = Path(directory)
    # Without this check transformers makes a tokenizer that has only special tokens.
    if not any(next(directory.glob(pattern), None) for pattern in VOCABULARY_FILES):
        raise InputError(
            f"{directory}: no tokenizer there; one of these is needed: "
            f"{', '.join(VOCABULARY_FILES)}"
        )
    from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

    try:
        suffixes = (".json", ".txt", ".model")
        names = {file.name for file in directory.iterdir() if file.suffix in suffixes}
        if names == {"vocab.txt"}:  # only a WordPiece vocabulary
            hf = BertTokenizerFast(vocab=str(directory / "vocab.txt"))
        elif not (special_tokens or by_config) and (directory / "tokenizer.json").is_file():
            # As in sentence-transformers' StaticEmbedding.
            hf = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
        else:
            hf = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the parsers of vocabulary files raise anything
        raise InputError(
            f"{directory}: the tokenizer cannot be read: {one_line(error)[:200]}"
        ) from None
    if not hf.is_fast:
        raise InputError(
            f"{directory}: {type(hf).__name__} has no fast form; save it as tokenizer.json first"
        )
    try:
        return from_transformers(
            hf,
            max_length,
            lower_case=lower_case,
            special_tokens=special_tokens,
            append_eos=append_eos,
            by_config=by_config,
        )
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def from_transformers(
    hf: Any,
    max_length: int,
    *,
    lower_case: bool = False,
    special_tokens: bool = True,
    append_eos: bool = False,
    by_config: bool = False,
) -> Tokenizer:
    """Makes our tokenizer from a fast transformers tokenizer, which is not changed.

    For the arguments see `load_tokenizer`.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers

    if append_eos:
        if not special_tokens:
            raise InputError(
                "append_eos: a tokenizer that puts no special tokens around a text appends none"
            )
        hf = _append_eos(hf)
    backend = Backend.from_str(hf.backend_tokenizer.to_str())
    backend.no_padding()
    if not special_tokens:
        backend.post_processor = None
    set_limit(backend, max_length, hf.truncation_side)
    if lower_case:
        before = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer else [])
        backend.normalizer = normalizers.Sequence(before)
    return Tokenizer(
        backend, hf, max_length, hf.pad_token_id or 0, special_tokens, by_config=by_config
    )


def _append_eos(hf: Any) -> Any:
    """Returns a transformers tokenizer that ends each text with its end-of-text token.

    It is a copy if the tokenizer does not already end texts with a special token.
    """
    if hf.eos_token is None:
        raise InputError("append_eos: the tokenizer has no end-of-text token (eos_token)")
    encoding = hf.backend_tokenizer.encode("a")
    ids = [
        token_id
        for token_id, seen in zip(encoding.ids, encoding.attention_mask, strict=True)
        if seen
    ]  # no padding
    if ids[-1:] and ids[-1] in hf.all_special_ids:
        return hf
    hf = copy.deepcopy(hf)
    backend = hf.backend_tokenizer
    state = json.loads(backend.to_str())
    state["post_processor"] = _add_eos(state["post_processor"], hf.eos_token, hf.eos_token_id)
    backend.post_processor = type(backend).from_str(json.dumps(state)).post_processor
    return hf


def _add_eos(processor: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """Returns tokenizer.json's post-processor with one more token after each text."""
    kind = processor["type"] if processor else None
    if processor and kind == "TemplateProcessing":
        known = {token: {"id": token, "ids": [number], "tokens": [token]}}
        changed = {"special_tokens": processor["special_tokens"] | known}
        for form in ("single", "pair"):
            changed[form] = []
            for piece in processor[form]:
                changed[form].append(piece)
                if "Sequence" in piece:
                    end = {"id": token, "type_id": piece["Sequence"]["type_id"]}
                    changed[form].append({"SpecialToken": end})
        return processor | changed
    if processor and kind == "Sequence":
        *others, last = processor["processors"]
        if last["type"] == "TemplateProcessing":
            return processor | {"processors": [*others, _add_eos(last, token, number)]}
    text = [{"Sequence": {"id": id, "type_id": type_id}} for type_id, id in enumerate("AB")]
    plain = {"type": "TemplateProcessing", "single": text[:1], "pair": text, "special_tokens": {}}
    before = (processor["processors"] if kind == "Sequence" else [processor]) if processor else []
    template = _add_eos(plain, token, number)
    return {"type": "Sequence", "processors": [*before, template]} if before else template
