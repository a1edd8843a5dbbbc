"""Reads what config_sentence_transformers.json says: prompts, similarity, sizes, truncation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_jax.encoders.heads import Truncate
from embed_jax.encoders.text_config import TextConfig
from embed_jax.encoders.weights import read_json
from embed_jax.errors import InputError
from embed_jax.registry import unknown

SETTINGS = "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def read_optional(path: Path, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Reads a JSON file's object; {} if there is no such file."""
    return read_json(path, kinds) if path.is_file() else {}


def named_prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the prompts of a config_sentence_transformers.json, null ones as ""."""
    return {name: prompt or "" for name, prompt in (settings.get("prompts") or {}).items()}


def read_default_prompt(settings: Mapping[str, Any], directory: Path) -> str | None:
    """Returns the name of the default prompt; None: not set, or the model has no such prompt."""
    name = settings.get("default_prompt_name")
    known = {"query": "", "document": "", **named_prompts(settings)}
    if name is not None and name not in known:
        raise InputError(
            f"{directory / SETTINGS}: default_prompt_name: {unknown('prompt', name, known)}"
        )
    return name if name in named_prompts(settings) else None


def read_similarity(settings: Mapping[str, Any], directory: Path, default: str) -> str:
    """Returns the similarity that embeddings are compared by."""
    name = settings.get("similarity_fn_name") or default
    if name not in SIMILARITIES:
        raise InputError(
            f"{directory / SETTINGS}: similarity_fn_name: "
            f"{unknown('similarity', name, SIMILARITIES)}"
        )
    return name


def read_matryoshka_dims(settings: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    """Returns the sizes that embeddings were trained to be cut to, ascending."""
    sizes = settings.get("matryoshka_dims") or []
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(
            f"{directory / SETTINGS}: matryoshka_dims: expected a list of sizes, found {sizes!r}"
        )
    return tuple(sorted(sizes))


def read_truncation(settings: Mapping[str, Any], directory: Path) -> tuple[Truncate, ...]:
    """Returns the head that cuts embeddings, if there is one."""
    size = settings.get("truncate_dim")
    if size is not None and (type(size) is not int or size < 1):
        raise InputError(
            f"{directory / SETTINGS}: truncate_dim: expected a size or null, found {size!r}"
        )
    return () if size is None else (Truncate(size),)


def shortest_limit(texts: TextConfig, tokenizer: Mapping[str, Any], positions: int) -> int:
    """Returns the tokens after which a text is cut.

    Args:
        texts: the Transformer's settings of texts.
        tokenizer: the content of tokenizer_config.json.
        positions: the most tokens that the backbone takes.
    """
    return int(min(texts.max_length or tokenizer.get("model_max_length") or positions, positions))
