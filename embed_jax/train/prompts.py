"""The prompts of a run: those of its config, as text or as instructions, and those of its model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from embed_jax.config import Data, Experiment, Source
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError
from embed_jax.multi_head import MultiHeadEncoder
from embed_jax.prompts import fill_template
from embed_jax.routed import AnyEncoder
from embed_jax.runtime import say


def given_prompts(
    config: Experiment, source: Source | None = None, name: str = ""
) -> tuple[str, str]:
    """Returns the prompts of anchors and of candidates that a config sets, "" where it sets none.

    Args:
        config: the run's settings.
        source: a data set of the mixture, instead of `config.data`.
        name: the data set's name.

    Raises:
        InputError: for a prompt beside an instruction, or an instruction without a template that
            takes it.
    """
    settings, place = (
        (config.data, "config.data")
        if source is None
        else (source, f"config.mixture.sources.{name}")
    )
    template = config.data.template
    return (
        _prompt(settings, "anchor", template, place),
        _prompt(settings, "candidate", template, place),
    )


def _prompt(settings: Data | Source, side: str, template: str, place: str) -> str:
    prompt, instruction = (
        getattr(settings, f"{side}_{kind}") for kind in ("prompt", "instruction")
    )
    if not instruction:
        return prompt
    if prompt:
        raise InputError(
            f"{place}.{side}_instruction: expected none beside {side}_prompt {prompt!r}, found "
            f"{instruction!r}"
        )
    if not template:
        raise InputError(
            f"{place}.{side}_instruction: needs config.data.template, such as "
            "'Instruct: {instruction}\\nQuery: ', found ''"
        )
    try:
        return fill_template(template, instruction)
    except InputError as error:
        raise InputError(f"config.data.{error}") from None


def training_prompts(config: Experiment, model: AnyEncoder | MultiHeadEncoder) -> tuple[str, str]:
    """Returns the prompts of anchors and candidates: the config's, else the model's default."""
    default = model.default_prompt_name
    usual = "" if default is None else model.prompts.get(default, "")
    anchor, candidate = given_prompts(config)
    return anchor or usual, candidate or usual


def training_encoders(
    config: Experiment, model: AnyEncoder
) -> tuple[Callable[[Sequence[str]], np.ndarray], Callable[[Sequence[str]], np.ndarray]]:
    """Returns the functions that embed queries and documents.

    Each uses its prompt of the training.
    """
    anchor, candidate = training_prompts(config, model)
    encode = TextEncoder(model)
    return (
        functools.partial(encode.query, prompt=anchor),
        functools.partial(encode.document, prompt=candidate),
    )


def settle_prompts(config: Experiment, model: AnyEncoder | MultiHeadEncoder) -> tuple[str, str]:
    """Returns the prompts of anchors and candidates, and gives them to the resulting model.

    There they are "query" and "document". A data set of a mixture with its own prompts leaves them
    as "NAME_query" and "NAME_document".
    """
    prompts, own_prompts = training_prompts(config, model), given_prompts(config)
    named = dict(zip(("query", "document"), prompts, strict=True)) if any(own_prompts) else {}
    for name, source in vars(config.mixture.sources).items():
        own = dict(
            zip(
                (f"{name}_query", f"{name}_document"),
                given_prompts(config, source, name),
                strict=True,
            )
        )
        named |= {key: prompt for key, prompt in own.items() if prompt}
    if any(model.prompts.values()) and not any((*prompts, *named.values())):
        known = ", ".join(model.prompts)
        say(
            f"the model's prompts ({known}) are not used: set config.data.anchor_prompt and "
            "candidate_prompt"
        )
    model.prompts |= named
    model.template = config.data.template or model.template
    model.include_prompt = model.include_prompt and config.data.pool_prompt
    return prompts
