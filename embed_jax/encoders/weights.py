"""Reads and writes a backbone's parameter tree as safetensors files, by the family's names.

Reading is strict: a missing tensor is an error, and so is an extra one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from embed_jax.encoders.family import Family, Part
from embed_jax.encoders.json_fields import check_fields
from embed_jax.errors import InputError, one_line
from embed_jax.registry import unknown
from embed_jax.types import Params, Put, Read, param_dtype

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # for many versions transformers' limit too
DTYPES = {  # by safetensors' names
    "BOOL": np.dtype(np.bool_),
    **{
        f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}")
        for kind in "IU"
        for size in (1, 2, 4, 8)
    },
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
}
OLD_NORM = {"gamma": "weight", "beta": "bias"}  # names in the checkpoints of the first BERT
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def open_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Opens the tensors of `model.safetensors` or of its shards, without reading their data.

    Each is a read-only array over the file itself: a slice of it reads its own bytes only. The
    shards are those that `model.safetensors.index.json` names.

    Raises:
        InputError: there is no such file, a shard is damaged, truncated or missing, or a tensor is
            in two shards.
    """
    if (directory / WEIGHTS).is_file():
        return open_safetensors(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _open_shards(directory)
    only = (
        "only pickled weights"
        if any(directory.glob("pytorch_model*.bin"))
        else f"no {WEIGHTS} (nor {INDEX})"
    )
    raise InputError(
        f"{directory}: {only}; pickled ones (pytorch_model.bin) are never opened since they can "
        "run code: if you trust them, convert them with "
        "SentenceTransformer(DIR).save_pretrained(NEW), which writes safetensors"
    )


def _open_shards(directory: Path) -> dict[str, np.ndarray]:
    names = read_json(directory / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise InputError(f"{directory / INDEX}: has no 'weight_map' from tensors to files")
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(names.values())):
        if not (directory / shard).is_file():
            raise InputError(
                f"{directory / shard}: no such file, though {INDEX} names it; fetch it again"
            )
        for name, value in open_safetensors(directory / shard).items():
            if name in tensors:
                raise InputError(
                    f"{directory / shard}: tensor {name!r} stands in another shard too"
                )
            tensors[name] = value
    absent = sorted(set(names) - set(tensors))
    if absent:
        raise InputError(f"{directory / INDEX}: no shard holds the tensor {_summarize(absent)}")
    return tensors


def open_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Opens the tensors of one file; see `open_tensors`.

    Raises:
        InputError: the file is missing, truncated or otherwise damaged, or has a tensor of an
            unknown dtype.
    """
    try:
        start, header = _read_header(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged or no safetensors file ({one_line(error)}); fetch it again"
        ) from None
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    tensors = {}
    for name, (code, shape, first, last) in header.items():
        if code not in DTYPES:
            raise InputError(f"{path}: tensor {name!r}: {unknown('dtype', code, DTYPES)}")
        if last - first != math.prod(shape) * DTYPES[code].itemsize:
            raise InputError(
                f"{path}: tensor {name!r} has {last - first} bytes, which are not {code} of shape "
                f"{shape}"
            )
        tensors[name] = data[start + first : start + last].view(DTYPES[code]).reshape(shape)
    return tensors


def _read_header(path: Path) -> tuple[int, dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """Reads a file's header.

    Returns:
        The position of the data in the file, and each tensor's dtype, shape, first byte and end in
        the data.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"its header is to end at byte {start:,}, it has {size:,}")
        header = json.loads(file.read(start - 8))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {}
    for name, about in header.items():
        shape, (first, last) = tuple(about["shape"]), about["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise ValueError(f"tensor {name!r}: shape {shape}, bytes {first} to {last}")
        entries[name] = about["dtype"], shape, first, last
    end = start + max((last for *_, last in entries.values()), default=0)
    if end != size:
        raise ValueError(
            f"{'truncated: ' if size < end else ''}its header names {end:,} bytes, it has {size:,}"
        )
    return start, entries


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of `open_tensors` into memory."""
    return {name: np.array(value) for name, value in open_tensors(directory).items()}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of `open_safetensors` into memory."""
    return {name: np.array(value) for name, value in open_safetensors(path).items()}


def read_json(path: Path, kinds: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Reads a JSON file's object.

    Args:
        path: the file.
        kinds: the kinds of the fields that are read from it, a table of `json_fields`.

    Raises:
        InputError: there is no such file, it is not a JSON object, or a field is of another type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return check_fields(f"{path}: ", content, kinds or {})


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> None:
    """Writes tensors and metadata so that torch classes of transformers read them."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # The file gets the mode of any new file; safetensors replaces it by one that only its owner can
    # read.
    path.touch()
    mode = path.stat().st_mode
    plain = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(plain, path, {"format": "pt", **metadata})
    path.chmod(mode)


def write_tensors(
    directory: Path, tensors: dict[str, np.ndarray], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `model.safetensors`, or shards and their index as transformers lays them out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder), {"bias": np.arange(3.0)})
    ...     read_tensors(Path(folder))
    {'bias': array([0., 1., 2.])}

    Args:
        directory: the directory to write to.
        tensors: the tensors by name.
        shard_bytes: the largest size of a shard, unless a single tensor is larger; a model of at
            most this size is one file.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0  # of the last shard
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    if len(shards) == 1:
        write_safetensors(directory / WEIGHTS, tensors)
        return
    files = [
        f"model-{index:05}-of-{len(shards):05}.safetensors" for index in range(1, len(shards) + 1)
    ]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(directory / file, shard)
    names = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(value.nbytes for value in tensors.values())
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": names})


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, and makes the folder if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def params_from_tensors(
    family: Family,
    shapes: Params,
    tensors: Mapping[str, np.ndarray],
    where: Path,
    *,
    put: Put | None = None,
) -> Params:
    """Makes the backbone's tree from tensors under Hugging Face's names.

    All tensors are checked before the first one is read.

    Args:
        family: the backbone's family.
        shapes: the tree's arrays or `jax.ShapeDtypeStruct`s; layers stacked on the leading axis of
            "layers".
        tensors: the tensors of a model; see `open_tensors`.
        where: the file or directory, for messages.
        put: makes each leaf from its path, shape, stored dtype (float32 if layers differ) and a
            function that reads only a slice of it, in our layout (layers stacked, kernels
            transposed, the parts of a fused tensor apart). None: NumPy arrays, where bfloat16 stays
            and other floats become float32.

    Raises:
        InputError: a tensor is missing, extra, there twice, of another shape, or not of floats.
    """
    tensors = _strip_prefixes(family, tensors, where)
    table = _table(family, tensors)
    leaves: dict[str, tuple[tuple[int, ...], list[np.ndarray]]] = {}
    used = set()
    for path, leaf in flatten_dict(shapes, sep="/").items():
        name, transposed, part, count = _source(table, path)
        shape = leaf.shape[1:] if "{}" in name else leaf.shape
        shape = shape[::-1] if transposed else shape
        shape = (shape[0] * count, *shape[1:])
        views: list[np.ndarray | None] = []
        for key in (
            [name.format(layer) for layer in range(leaf.shape[0])] if "{}" in name else [name]
        ):
            if key in family.absent:
                views.append(None)
                continue
            used.add(key)
            if key not in tensors:
                raise InputError(f"{where}: missing tensor {key!r} (shape {shape})")
            value = tensors[key]
            if value.dtype.name not in _FLOATS:
                raise InputError(
                    f"{where}: tensor {key!r} is {value.dtype.name}; accepted: {', '.join(_FLOATS)}"
                )
            if value.shape != shape:
                raise InputError(
                    f"{where}: tensor {key!r} has shape {value.shape}, config.json wants {shape}"
                )
            value = np.split(value, count)[part]
            views.append(value.T if transposed else value)
        ones = np.broadcast_to(
            np.ones((), next(view.dtype for view in views if view is not None)), shape
        )
        leaves[path] = leaf.shape, [ones if view is None else view for view in views]
    extra = sorted(
        key
        for key in set(tensors) - used
        if not any(re.fullmatch(rule, key) for rule in family.ignored)
    )
    if extra:
        raise InputError(
            f"{where}: unexpected tensor {_summarize(extra)}: "
            "config.json describes a model without it"
        )
    put = put or _read_whole
    return unflatten_dict(
        {path: put(path, shape, *_reader(shape, views)) for path, (shape, views) in leaves.items()},
        sep="/",
    )


def _reader(shape: tuple[int, ...], views: list[np.ndarray]) -> tuple[np.dtype, Read]:
    """Returns a leaf's dtype and a function that reads a slice of it.

    Args:
        shape: the leaf's shape.
        views: the one tensor of the leaf, or one for each layer.
    """
    dtypes = {view.dtype for view in views}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if views[0].ndim == len(shape):
            return np.array(views[0][index], dtype)
        return np.stack([view[index[1:]] for view in views[index[0]]], dtype=dtype)

    return dtype, read


def _read_whole(path: str, shape: tuple[int, ...], dtype: np.dtype, read: Read) -> np.ndarray:
    return read((slice(None),) * len(shape)).astype(param_dtype(dtype), copy=False)


def tensors_from_params(family: Family, params: Params) -> dict[str, np.ndarray]:
    """Returns tensors under Hugging Face's names, in the parameters' dtypes.

    It inverts `params_from_tensors`.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten_dict(jax.device_get(params), sep="/").items():
        name, transposed, part, _ = _source(family.tensors, path)
        for layer, value in enumerate(leaf) if "{}" in name else [(None, leaf)]:
            key, value = name.format(layer), np.asarray(value, param_dtype(leaf.dtype))
            if key not in family.absent:
                parts.setdefault(key, {})[part] = value.T if transposed else value
    return {
        key: np.concatenate([pieces[part] for part in sorted(pieces)])
        if len(pieces) > 1
        else pieces[0]
        for key, pieces in parts.items()
    }


def _table(family: Family, tensors: Mapping[str, np.ndarray]) -> Mapping[str, str | Part]:
    """Returns the family's table that has the most names in common with the tensors."""
    modules = {re.sub(r"\.\d+\.", ".{}.", name).rpartition(".")[0] for name in tensors}

    def matches(table: Mapping[str, str | Part]) -> int:
        return len(
            modules
            & {entry.module if isinstance(entry, Part) else entry for entry in table.values()}
        )

    return max((family.tensors, *family.older), key=matches)


def _source(table: Mapping[str, str | Part], path: str) -> tuple[str, bool, int, int]:
    """Returns the tensor that has our leaf.

    Returns:
        Hugging Face's name, whether the tensor is transposed, the index of our leaf among the
        tensor's parts, and the number of parts.
    """
    module, leaf = (path, "table") if path in table else path.rsplit("/", 1)
    entry = table[module]
    part = entry if isinstance(entry, Part) else Part(entry, 0, 1)
    return (
        f"{part.module}.{'bias' if leaf == 'bias' else 'weight'}",
        leaf == "kernel",
        part.index,
        part.count,
    )


def _strip_prefixes(
    family: Family, tensors: Mapping[str, np.ndarray], where: Path
) -> dict[str, np.ndarray]:
    short_tensors: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        short = re.sub(
            r"LayerNorm\.(gamma|beta)$",
            lambda old: f"LayerNorm.{OLD_NORM[old[1]]}",
            family.without_prefix(name),
        )
        if short in short_tensors:
            raise InputError(f"{where}: tensor {short!r} stands there twice, once as {name!r}")
        short_tensors[short] = value
    return short_tensors


def _summarize(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
