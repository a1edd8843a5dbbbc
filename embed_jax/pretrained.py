"""Completes a pretrained model as it is read: its tokenizer, the prompts of its family, its run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.saved import SavedModel
from embed_jax.errors import InputError, warn
from embed_jax.prompts import expected
from embed_jax.registry import lookup

RUN_FILES = ("config.json", "data.json")  # of a run's work directory


def tokenizer_of(
    saved: SavedModel, max_length: int, directory: Path | None = None, append_eos: bool = False
) -> Tokenizer:
    """Loads the tokenizer of a model that was read.

    Args:
        saved: the model.
        max_length: texts are cut at this many tokens.
        directory: with another tokenizer's files, instead of the model's own.
        append_eos: end texts with the end-of-text token even where the model does not ask for it.

    Raises:
        InputError: see `load_tokenizer` and `fit_tokenizer`.
    """
    directory = directory or saved.tokenizer_directory
    check_length(max_length, saved.spec.backbone)
    tokenizer = load_tokenizer(
        directory,
        max_length,
        lower_case=saved.settings.lower_case,
        special_tokens=saved.special_tokens,
        append_eos=append_eos or saved.append_eos,
        by_config=saved.spec.vocabulary is not None,
    )
    try:
        return fit_tokenizer(tokenizer, saved.spec.backbone)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def fit_tokenizer(tokenizer: Tokenizer, backbone: Any) -> Tokenizer:
    """Fits a tokenizer to a backbone's tables.

    A gather in a model would silently clamp an index.

    Raises:
        InputError: for a limit beyond the model's positions, or a vocabulary beyond its table of
            tokens.
    """
    check_length(tokenizer.max_length, backbone)
    same = tokenizer.rows == backbone.vocab_size
    return tokenizer if same else tokenizer.with_table(backbone.vocab_size)


def check_length(max_length: int, backbone: Any, field: str = "max_length") -> None:
    """Raises an InputError that names the field for texts longer than the model has positions for.

    A static encoder, without layers, has no positions to exceed.
    """
    if backbone.num_layers and max_length > backbone.max_length:
        raise InputError(
            f"{field}: expected at most {backbone.max_length}, the model's positions, found "
            f"{max_length}"
        )


def with_family(saved: SavedModel, name: str) -> SavedModel:
    """Adds the prompts of its family to a model whose files record none.

    Models with prompts or a template, or of an unknown family, are returned unchanged. One warning
    says which prompts come from where. The end-of-text token after texts is added too where the
    files are transformers' only; in sentence-transformers' layout the tokenizer decides that.

    Args:
        saved: the model.
        name: the name that the model was loaded by. If it is not of a family, its directory and the
            origin in its config.json are tried.
    """
    settings = saved.settings
    if any(settings.prompts.values()) or saved.records_template or saved.spec.lora is not None:
        return saved
    known = next((source for source in (name, settings.base, saved.origin) if expected(source)), "")
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
    warn(f"{name}: no prompts are recorded; as in {known}: {', '.join(taken)}")
    settings = dataclasses.replace(
        settings,
        prompts=dict(family.prompts),
        template=family.template,
        include_prompt=settings.include_prompt and family.include_prompt,
    )
    return dataclasses.replace(saved, settings=settings, append_eos=append_eos)


def load_from_run(name: str | Path, step: int, **options: Any) -> Any:
    """Loads the model of a run, if a name is that of a run's work directory.

    Args:
        name: a model's name or directory, or a run's.
        step: of the run; 0: the model that it wrote.
        **options: of `train.run.load_run`.

    Returns:
        The model, of any kind; None if the name is not a run's.

    Raises:
        InputError: for a step of what is not a run; see also `train.run.load_run`.
    """
    if all((Path(name) / file).is_file() for file in RUN_FILES):
        return lookup("directory", "run")(name, step, **options)
    if step:
        raise InputError(
            f"{name}: no work directory of a run ({', '.join(RUN_FILES)}), so it has no step {step}"
        )
    return None
