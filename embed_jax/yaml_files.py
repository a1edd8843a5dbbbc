"""YAML files of plain data: read, and checked key by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, one_line
from embed_jax.registry import unknown


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file.

    Raises:
        InputError: it can't be read, is not YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML would keep the last."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise InputError(f"{path}: line {key_node.start_mark.line + 1}: a list as a key")
            if key in values:
                raise InputError(
                    f"{path}: line {key_node.start_mark.line + 1}: the key {key!r} stands twice"
                )
            values[key] = loader.construct_object(value_node, deep=True)
        return values

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {one_line(error)}") from None


def check_keys(
    where: str, value: Any, keys: Collection[str] | None = None, required: Collection[str] = ()
) -> Mapping[str, Any]:
    """Returns a mapping as it is.

    Args:
        where: names the value in errors.
        value: of a file.
        keys: that it may have; None: any.
        required: keys that it must have.

    Raises:
        InputError: it is not a mapping with text as keys, has another key, or lacks one.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where}: expected keys and values, found {value!r}")
    for key in value:
        if keys is not None and key not in keys:
            raise InputError(f"{where}: {unknown('key', key, tuple(keys))}")
    for key in required:
        if key not in value:
            raise InputError(f"{where}: expected the key {key!r}")
    return value


def make_from_keys(kind: Any, where: str, value: Any) -> Any:
    """Makes a dataclass of a mapping with its fields.

    Args:
        kind: the dataclass.
        where: names the value in errors.
        value: of a file.

    Raises:
        InputError: see `check_keys`; a field without a default is a required key.
    """
    fields = dataclasses.fields(kind)
    required = [
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return kind(**check_keys(where, value, [field.name for field in fields], required))
