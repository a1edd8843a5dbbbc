"""safetensors files <-> a backbone's parameter tree, by the family's table of names; strict both ways."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from embed_jax.encoders.family import Family, Part
from embed_jax.errors import InputError
from embed_jax.types import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
        InputError: no such file, a damaged or missing shard, a tensor that stands in two shards.
    """
    if (directory / WEIGHTS).is_file():
        return read_safetensors(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        names = read_json(directory / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise InputError(f"{directory / INDEX}: has no 'weight_map'")
        tensors: dict[str, np.ndarray] = {}
        for shard in sorted(set(names.values())):
            for name, value in read_safetensors(directory / shard).items():
                if name in tensors:
                    raise InputError(f"{directory / shard}: tensor {name!r} stands in another shard too")
                tensors[name] = value
        absent = sorted(set(names) - set(tensors))
        if absent:
            raise InputError(f"{directory / INDEX}: no shard holds the tensor {_some(absent)}")
        return tensors
    if any(directory.glob("pytorch_model*.bin")):
        raise InputError(
            f"{directory}: only pickled weights (pytorch_model.bin), which are never opened since they can run code; "
            "convert them: transformers' AutoModel.from_pretrained(DIR).save_pretrained(DIR) writes model.safetensors"
        )
    raise InputError(f"{directory}: no {WEIGHTS} (nor {INDEX})")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, in the dtypes stored.

    Raises:
        InputError: the file is missing, truncated or otherwise damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or no safetensors file ({error}); fetch it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        InputError: no such file, no JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object is wanted, found a {type(found).__name__}")
    return found


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors so that transformers' and sentence-transformers' torch classes read them."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, {"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def params_from_tensors(family: Family, shapes: Params, tensors: dict[str, np.ndarray], where: Path) -> Params:
    """The backbone's tree, float32, from tensors under Hugging Face's names.

    Args:
        shapes: the tree's arrays or `jax.ShapeDtypeStruct`s; layers stacked on the leading axis of "layers".
        where: for messages.

    Raises:
        InputError: a tensor is missing, extra, there twice, of another shape, or not of floats.
    """
    found = _without_prefix(family, tensors, where)
    table = _table(family, found)
    params, used = {}, set()
    for path, leaf in flatten_dict(shapes, sep="/").items():
        name, transposed, index, count = _source(table, path)
        numbers = range(leaf.shape[0]) if "{}" in name else [None]
        shape = leaf.shape[1:] if "{}" in name else leaf.shape
        shape = shape[::-1] if transposed else shape
        shape = (shape[0] * count, *shape[1:])
        parts = []
        for number in numbers:
            key = name.format(number)
            used.add(key)
            if key not in found:
                raise InputError(f"{where}: missing tensor {key!r} (shape {shape})")
            value = found[key]
            if value.dtype.name not in _FLOATS:
                raise InputError(f"{where}: tensor {key!r} is {value.dtype.name}; floats are accepted")
            if value.shape != shape:
                raise InputError(f"{where}: tensor {key!r} has shape {value.shape}, config.json wants {shape}")
            value = np.split(value, count)[index]
            parts.append((value.T if transposed else value).astype(np.float32))
        params[path] = np.stack(parts) if "{}" in name else np.ascontiguousarray(parts[0])
    extra = sorted(key for key in set(found) - used if not any(re.fullmatch(rule, key) for rule in family.ignored))
    if extra:
        raise InputError(f"{where}: unexpected tensor {_some(extra)}: config.json describes a model without it")
    return unflatten_dict(params, sep="/")


def tensors_from_params(family: Family, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `params_from_tensors`: float32 tensors under Hugging Face's names."""
    tensors = {}
    for path, leaf in flatten_dict(jax.device_get(params), sep="/").items():
        name, transposed, _, _ = _source(family.tensors, path)
        for number, value in enumerate(leaf) if "{}" in name else [(None, leaf)]:
            value = np.asarray(value, np.float32)
            tensors[name.format(number)] = value.T if transposed else value
    return tensors


def _table(family: Family, found: Mapping[str, np.ndarray]) -> Mapping[str, str | Part]:
    """The family's table most of whose names are among those found."""
    modules = {re.sub(r"\.\d+\.", ".{}.", name).rpartition(".")[0] for name in found}

    def matches(table: Mapping[str, str | Part]) -> int:
        return len(modules & {theirs.module if isinstance(theirs, Part) else theirs for theirs in table.values()})

    return max((family.tensors, *family.older), key=matches)


def _source(table: Mapping[str, str | Part], path: str) -> tuple[str, bool, int, int]:
    """Hugging Face's name of our leaf, whether theirs is transposed, which part of it ours is, and of how many."""
    module, leaf = (path, "table") if path in table else path.rsplit("/", 1)
    theirs = table[module]
    part = theirs if isinstance(theirs, Part) else Part(theirs, 0, 1)
    return f"{part.module}.{'bias' if leaf == 'bias' else 'weight'}", leaf == "kernel", part.index, part.count


def _without_prefix(family: Family, tensors: dict[str, np.ndarray], where: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in family.prefixes if name.startswith(prefix)), "")
        short = name.removeprefix(prefix)
        if short in found:
            raise InputError(f"{where}: tensor {short!r} stands there twice, once as {name!r}")
        found[short] = value
    return found


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
