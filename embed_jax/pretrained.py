"""What completes a pretrained model as it is read: its tokenizer, and the prompts of its family."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.encoders.family import check_vocabulary
from embed_jax.encoders.saved import SavedModel
from embed_jax.prompts import expected


def tokenizer_of(
    saved: SavedModel, max_length: int, directory: Path | None = None, append_eos: bool = False
) -> Tokenizer:
    """The tokenizer of a model as it was read, cut at so many tokens.

    Args:
        directory: with another tokenizer's files, instead of the model's own.
        append_eos: end texts with the end-of-text token even where the model does not ask for it.

    Raises:
        InputError: as of `load_tokenizer`, or it has more tokens than the model's table has rows.
    """
    directory = directory or saved.tokenizer_directory
    tokenizer = load_tokenizer(
        directory,
        max_length,
        lower_case=saved.lower_case,
        special_tokens=saved.special_tokens,
        append_eos=append_eos or saved.append_eos,
    )
    check_vocabulary(tokenizer.vocab_size, saved.spec.backbone.vocab_size, directory)
    return tokenizer


def with_family(saved: SavedModel, name: str) -> SavedModel:
    """A model whose files record neither prompts nor a template, with those of its family, if it is of a known one.

    One warning says what was taken from where. That texts end with the end-of-text token is taken too where the files
    are transformers' alone; in sentence-transformers' layout the tokenizer says it.

    Args:
        name: what the model was asked for by; where that says nothing, its directory and what its config.json calls
            its origin are asked.
    """
    if any(saved.prompts.values()) or saved.template is not None or saved.spec.lora is not None:
        return saved
    known = next((source for source in (name, saved.base, saved.origin) if expected(source)), "")
    family = expected(known)
    if family is None:
        return saved
    append_eos = family.append_eos and saved.plain
    taken = [f"prompt {name} {prompt!r}" for name, prompt in family.prompts.items() if prompt]
    taken += [f"template {family.template!r}"] if family.template else []
    if not taken:
        return saved
    taken += [] if family.include_prompt else ["prompts left out of pooling"]
    taken += ["an end-of-text token after each text"] if append_eos else []
    warn(f"{name}: no prompts are recorded; as of {known}: {', '.join(taken)}")
    return dataclasses.replace(
        saved,
        prompts=dict(family.prompts),
        template=family.template,
        include_prompt=saved.include_prompt and family.include_prompt,
        append_eos=append_eos,
    )
