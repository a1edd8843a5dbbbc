"""Finds the base model of an adapter by name, and computes its fingerprint.

The fingerprint tells a model from other models of the same size, so an adapter is not put on
another base than the one that it was trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.encoders import json_fields, modules
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.family import REQUIRED, Family
from embed_jax.encoders.hub import PACKAGE, PACKAGED, resolve
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.weights import open_tensors, params_from_tensors, read_json
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.remembered import remembered
from embed_jax.types import Params

ADAPTER_CONFIG = "adapter_config.json"


def read_backbone(
    directory: Path, changes: Mapping[str, Any] | None = None
) -> tuple[Any, Family, dict[str, Any]]:
    """Reads a Transformer's config.json.

    Args:
        directory: the Transformer's directory.
        changes: values that replace those of config.json, by field.

    Returns:
        The backbone's frozen dataclass, its family, and the content of config.json.

    Raises:
        InputError: there is no config.json, or its architecture is not supported.
    """
    config = read_json(directory / "config.json", json_fields.CONFIG) | dict(changes or {})
    name = config.get("model_type")
    try:
        family = lookup("backbone", str(name), imported_only=True)
        if family.read_config is None:
            raise InputError(
                f"model_type {name!r}: such a model has no config.json, but a modules.json"
            )
        return family.read_config(config), family, config
    except InputError as error:
        raise InputError(f"{directory / 'config.json'}: {error}") from None


def backbone_shapes(backbone: Any) -> Params:
    """Returns the shapes of a backbone's parameters, as a tree of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: leaf, _shapes(backbone))  # its own dicts


@remembered
def _shapes(backbone: Any) -> Params:
    return jax.eval_shape(build_encoder(EncoderSpec(backbone)).init, jax.random.key(0))["backbone"]


def is_adapter(directory: Path) -> bool:
    """Tells whether a Transformer's directory holds an adapter instead of a model."""
    return (directory / ADAPTER_CONFIG).is_file()


def find_base(directory: Path) -> tuple[str, Path]:
    """Finds the base model that an adapter names.

    Returns:
        The base's name, absolute if it is a directory, and the directory of the base's Transformer.

    Raises:
        InputError: the adapter names no base, there is no model of that name, or it is an adapter
            itself.
    """
    name = read_json(directory / ADAPTER_CONFIG, json_fields.ADAPTER).get("base_model_name_or_path")
    if not name:
        raise InputError(
            f"{directory / ADAPTER_CONFIG}: base_model_name_or_path: expected the base's name, "
            f"found {name!r}"
        )
    if (directory / name).is_dir():
        name = str((directory / name).resolve())
    try:
        return name, transformer_directory(name)
    except InputError as error:
        raise InputError(
            f"{directory / ADAPTER_CONFIG}: base_model_name_or_path: {error}"
        ) from None


def transformer_directory(name: str) -> Path:
    """Returns the directory of the Transformer of a model, which serves as an adapter's base.

    Args:
        name: a directory or a name on the hub.

    Raises:
        InputError: there is no such model, or it is an adapter itself.
    """
    directory = resolve(name)
    kind, folder = modules.read_modules(directory)[0]
    if kind == "StaticEmbedding" or is_adapter(directory / folder):
        what = (
            "a StaticEmbedding"
            if kind == "StaticEmbedding"
            else "an adapter, which would have to be merged first"
        )
        raise InputError(f"model {name!r} is {what}: it cannot be an adapter's base")
    return directory / folder


def base_name(directory: Path) -> str:
    """Returns the name by which an adapter refers to the model in a directory.

    It is the model's name on the hub if it came from there, else the absolute directory.
    """
    directory = Path(directory).absolute()
    *_, repository, snapshots, _ = ("", "", *directory.parts)
    if snapshots == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    if directory.parent.name == PACKAGE.partition("==")[0].replace("-", "_"):
        return PACKAGED
    return str(directory)


def backbone_fingerprint(backbone: Any, directory: Path) -> str:
    """Returns a fingerprint that tells a base model from others of the same size.

    It is the SHA-256 of the model's sizes and of a few numbers of each tensor. The numbers are
    rounded to bfloat16, so that the fingerprint is the same in every dtype that models are usually
    stored in.

    Args:
        backbone: the base's frozen dataclass.
        directory: the directory of its config.json and its weights.
    """
    samples = {}

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, read: Any) -> None:
        own = len(shape) - path.startswith("layers/")
        # Few bytes of each file's rows, whose numbers follow each other along our last axis but
        # one.
        some = (slice(16),) if own == 1 else (*[slice(1)] * (own - 2), slice(16), slice(1))
        numbers = read((slice(None),) * (len(shape) - own) + some).astype(jnp.bfloat16)
        samples[path] = [list(shape), numbers.tobytes().hex()]

    family = lookup("backbone", backbone.family)
    params_from_tensors(
        family, backbone_shapes(backbone), open_tensors(directory), directory, put=put
    )
    sizes = {name: getattr(backbone, name) for name in ("family", *REQUIRED)}
    return hashlib.sha256(json.dumps([sizes, samples], sort_keys=True).encode()).hexdigest()
