"""Reads an adapter in PEFT's format, and checks that it was made for its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from embed_jax.encoders import json_fields
from embed_jax.encoders.adapter import (
    FINGERPRINT,
    LEAVES,
    PREFIX,
    WEIGHTS,
    target_modules,
    tensor_name,
)
from embed_jax.encoders.base import ADAPTER_CONFIG as CONFIG
from embed_jax.encoders.base import backbone_fingerprint, backbone_shapes
from embed_jax.encoders.family import Family, Part
from embed_jax.encoders.lora import linear_maps
from embed_jax.encoders.spec import LoraSpec
from embed_jax.encoders.weights import read_json, read_safetensors
from embed_jax.errors import InputError, warn
from embed_jax.registry import lookup, unknown
from embed_jax.types import Params

# Fields of adapter_config.json that make the adapter another function, unless they are empty.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
# Initialisations that take something from the base.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def read_adapter(
    directory: Path,
    backbone: Any,
    base: str,
    base_directory: Path,
    *,
    classifier: Family | None = None,
) -> tuple[LoraSpec, Params]:
    """Reads an adapter for a base model, and warns if it may have been made for another one.

    Args:
        directory: the adapter's directory.
        backbone: the base's frozen dataclass.
        base: the base's name, for messages.
        base_directory: the directory of the base's Transformer.
        classifier: the family with its classifier, if the adapter is one of a classifier, whose
            head `read_saved_modules` reads.

    Returns:
        The adapter's settings, and its tree as in `lora.init_lora`, of NumPy arrays.

    Raises:
        InputError: a file is missing or damaged; it is not a LoRA, or of a kind that is not
            supported; a tensor is missing, extra or of another shape than the base's; or the
            adapter was made for another base.
    """
    config, where = read_json(directory / CONFIG, json_fields.ADAPTER), directory / WEIGHTS
    try:
        _check(config, saves_modules=classifier is not None)
        lora = LoraSpec(
            rank=config["r"],
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout") or 0.0),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
    except InputError as error:
        raise InputError(f"{directory / CONFIG}: {error}") from None
    _check_base(where, config, backbone, base, base_directory)
    family = classifier or lookup("backbone", backbone.family)
    shapes = backbone_shapes(backbone)
    maps = linear_maps(family, shapes)
    tensors = {
        name: value
        for name, value in read_safetensors(where).items()
        if classifier is None or not _is_saved(name, config)
    }
    tree = _read_tree(where, tensors, family, maps, shapes, lora)
    modules = target_modules(
        maps, {path.rpartition("/")[0] for path in flatten_dict(tree["layers"], sep="/")}
    )
    targets = (modules,) if isinstance(modules, str) else tuple(modules)
    return LoraSpec(lora.rank, lora.alpha, lora.dropout, targets, lora.rslora, lora.dora), tree


def is_classifier_adapter(directory: Path) -> bool:
    """Tells whether a directory holds an adapter of a sequence classifier."""
    return (directory / CONFIG).is_file() and (
        read_json(directory / CONFIG, json_fields.ADAPTER).get("task_type") == "SEQ_CLS"
    )


def read_saved_modules(directory: Path, family: Family) -> dict[str, np.ndarray]:
    """Reads the tensors of modules that an adapter replaces as a whole (PEFT's `modules_to_save`).

    Args:
        directory: the adapter's directory.
        family: of the base.

    Returns:
        The tensors, under the names that they have in the base, without a prefix of the family.

    Raises:
        InputError: see `read_adapter`.
    """
    config, where = read_json(directory / CONFIG, json_fields.ADAPTER), directory / WEIGHTS
    return {
        family.without_prefix(name.removeprefix(PREFIX)): value
        for name, value in read_safetensors(where).items()
        if _is_saved(name, config)
    }


def _is_saved(name: str, config: Mapping[str, Any]) -> bool:
    """Tells whether a tensor is one of a module of `modules_to_save`."""
    # PEFT looks at the ends of modules' names, so "classifier" means "pre_classifier" too.
    modules = "|".join(map(re.escape, config.get("modules_to_save") or ()))
    pattern = rf"{re.escape(PREFIX)}.*({modules})\..+"
    return bool(modules) and ".lora_" not in name and re.fullmatch(pattern, name) is not None


def _check(config: Mapping[str, Any], saves_modules: bool) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(unknown("peft_type", config.get("peft_type"), ["LORA"]))
    for name in ("r", "lora_alpha"):
        if type(config.get(name)) not in (int, float):
            raise InputError(f"{name}: expected a number, found {config.get(name)!r}")
    if config.get("bias", "none") != "none":
        raise InputError(f"bias {config['bias']!r} is not supported; only 'none' is")
    for name in UNSUPPORTED:
        if config.get(name) and not (saves_modules and name == "modules_to_save"):
            raise InputError(
                f"{name} {config[name]!r} is not supported; merge the adapter with PEFT "
                "(merge_and_unload), and save the whole model"
            )
    for name, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if any(value != config[usual] for value in (config.get(name) or {}).values()):
            raise InputError(
                f"{name} {config[name]!r} is not supported; only one {usual} for all modules is"
            )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGES_BASE):
        raise InputError(
            f"init_lora_weights {config['init_lora_weights']!r} is not supported: it changes the "
            "base; let PEFT convert it (path_initial_model_for_weight_conversion)"
        )


def _check_base(
    where: Path, config: Mapping[str, Any], backbone: Any, base: str, base_directory: Path
) -> None:
    made_for = config.get("base_model_name_or_path")
    expected = _metadata(where).get(FINGERPRINT)
    if expected:
        fingerprint = backbone_fingerprint(backbone, base_directory)
        if fingerprint != expected:
            raise InputError(
                f"{where}: made for {made_for}, and {base} is another model: its fingerprint is "
                f"{fingerprint[:12]}, the adapter's {expected[:12]}"
            )
    elif made_for and Path(made_for).name != Path(base).name:
        warn(f"{where}: made for {made_for}, and put on {base}")


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: damaged or no safetensors file ({error}); fetch it again"
        ) from None


def _read_tree(
    where: Path,
    tensors: Mapping[str, np.ndarray],
    family: Family,
    maps: Mapping[str, Part],
    shapes: Params,
    lora: LoraSpec,
) -> dict[str, Any]:
    leaf_tensors = _by_leaf(where, tensors, family, maps)
    leaves = ("a", "b", "magnitude") if lora.dora else ("a", "b")
    kernels = flatten_dict(shapes["layers"], sep="/")
    tree = {}
    for path in dict.fromkeys(path for path, _ in leaf_tensors):
        layers, inputs, outputs = kernels[f"{path}/kernel"].shape
        sizes = {"a": (lora.rank, inputs), "b": (outputs, lora.rank), "magnitude": (outputs,)}
        for leaf in leaves:
            by_layer = leaf_tensors.pop((path, leaf), {})
            for number in range(layers):
                name = tensor_name(maps[path].module, number, leaf)
                if number not in by_layer:
                    raise InputError(f"{where}: missing tensor {name!r} (shape {sizes[leaf]})")
                if by_layer[number].shape != sizes[leaf]:
                    raise InputError(
                        f"{where}: tensor {name!r} has shape {by_layer[number].shape}, the base "
                        f"and {CONFIG} want {sizes[leaf]}"
                    )
            if len(by_layer) > layers:
                name = tensor_name(maps[path].module, max(by_layer), leaf)
                raise InputError(
                    f"{where}: unexpected tensor {name!r}: the base has {layers} layers"
                )
            tree[f"{path}/{leaf}"] = np.stack(
                [by_layer[number].T for number in range(layers)]
            ).astype(np.float32)
    if leaf_tensors:
        path, leaf = next(iter(leaf_tensors))
        raise InputError(
            f"{where}: unexpected tensor {tensor_name(maps[path].module, 0, leaf)!r}: {CONFIG} "
            "has use_dora false"
        )
    return {"layers": unflatten_dict(tree, sep="/")}


def _by_leaf(
    where: Path,
    tensors: Mapping[str, np.ndarray],
    family: Family,
    maps: Mapping[str, Part],
) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """Returns each layer's tensors by (our path of the linear map, our leaf)."""
    modules_there = {part.module for part in maps.values()}
    leaf_tensors: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for name, value in tensors.items():
        module, leaf = _parse(name, family, where)
        numbered = re.fullmatch(r"(.*?\.)(\d+)(\..*)", module)
        before, number, after = numbered.groups() if numbered else ("", "", "")
        if leaf and f"{before}{{}}{after}" in modules_there:
            for path, part in maps.items():
                if part.module == f"{before}{{}}{after}":  # A is the same for all parts of a module
                    own = value if leaf == "a" else np.array_split(value, part.count)[part.index]
                    leaf_tensors.setdefault((path, leaf), {})[int(number)] = own
        elif not any(re.fullmatch(rule, f"{module}.weight") for rule in family.ignored):
            raise InputError(
                f"{where}: adapts {module!r}, which is no linear map of the base's layers; there "
                f"are {', '.join(sorted(modules_there))}"
            )
    if not leaf_tensors:
        raise InputError(f"{where}: adapts none of {', '.join(sorted(modules_there))}")
    return leaf_tensors


def _parse(name: str, family: Family, where: Path) -> tuple[str, str]:
    """Returns the module that a tensor belongs to, as the base's files call it, and our leaf.

    The leaf is "" for a tensor of the base itself.
    """
    match = re.fullmatch(
        rf"{re.escape(PREFIX)}(.+?)\.(lora_\w+(?:\.weight)?|base_layer\.\w+)", name
    )
    module, ending = match.groups() if match else ("", "")
    if not ending.startswith("base_layer"):
        ending = f"{ending.removesuffix('.weight')}.weight"
        if ending not in LEAVES:
            raise InputError(
                f"{where}: unexpected tensor {name!r}; those of a LoRA of linear maps are called "
                f"'{PREFIX}MODULE.lora_A.weight'"
            )
    return family.without_prefix(module), LEAVES.get(ending, "")
