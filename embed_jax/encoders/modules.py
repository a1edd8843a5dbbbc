"""Reads and writes a sentence-transformers directory's modules.json and its pooling's config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from embed_jax.encoders import json_fields
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.module_files import TORCH_ACTIVATIONS
from embed_jax.encoders.weights import read_json, write_json
from embed_jax.errors import InputError
from embed_jax.registry import unknown

# Our name -> sentence-transformers' mode and flag, in the order in which older files concatenate
# several poolings
POOLING_NAMES = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last_token": ("lasttoken", "pooling_mode_lasttoken"),
    # Ours only: sentence-transformers refuses the file.
    "first_last_mean": ("first_last_mean", "pooling_mode_first_last_mean"),
}
POOLING_FIELDS = (
    "pooling_mode",
    "include_prompt",
    "word_embedding_dimension",
    "embedding_dimension",
)
SCORE_ACTIVATIONS = {  # of a cross-encoder's logits
    "identity": TORCH_ACTIVATIONS["identity"],
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}
PACKAGE = "sentence_transformers."
MODULES = f"{PACKAGE}models."  # where every version of it finds its classes
WEIGHTED, LATENT = "WeightedLayerPooling", "LatentAttention"
LOGIT_SCORE = "LogitScore"  # of version 5.4 and later
MASK, TOKEN_POOLING = "MultiVectorMask", "HierarchicalTokenPooling"  # of version 6
SPLADE, TOKEN_WEIGHTS, MLM = "SpladePooling", "SparseStaticEmbedding", "MLMTransformer"
# Where all versions with sparse models, from 5 on, find their classes.
SPARSE = {kind: f"{PACKAGE}sparse_encoder.models.{kind}" for kind in (SPLADE, TOKEN_WEIGHTS, MLM)}
TYPES = {
    **SPARSE,
    # Ours only: sentence-transformers cannot load it.
    LATENT: f"{LatentAttention.__module__}.{LATENT}",
    LOGIT_SCORE: f"{PACKAGE}cross_encoder.modules.logit_score.{LOGIT_SCORE}",
    MASK: f"{PACKAGE}multi_vector_encoder.modules.multi_vector_mask.{MASK}",
    TOKEN_POOLING: f"{PACKAGE}multi_vector_encoder.modules.token_pooling.{TOKEN_POOLING}",
}
PYLATE_DENSE = "pylate.models.Dense.Dense"
TOKEN_HEADS = (WEIGHTED, LATENT)
HEADS = ("Dense", "LayerNorm", "Normalize", "Dropout")
KNOWN = ("Transformer", "StaticEmbedding", *TOKEN_HEADS, "Pooling", *HEADS, LOGIT_SCORE, *SPARSE)
OF_TOKENS = (MASK, TOKEN_POOLING)
ROUTERS = ("Router", "Asym")


def read_modules(directory: Path, *, of_tokens: bool = False) -> list[tuple[str, str]]:
    """Reads (class name, folder) of each module, the backbone first.

    A plain Hugging Face directory is one module.

    Args:
        directory: the model's directory.
        of_tokens: whether it is a model that gives each token a vector.

    Raises:
        InputError: there is no model, a module is of an unknown kind or of the model's own code, a
            folder is outside of the directory, or the modules' order is not supported.
    """
    path = directory / "modules.json"
    if not path.is_file():
        if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(
                f"{directory}: neither modules.json nor config.json, so it holds no model"
            )
        return [("Transformer", "")]
    entries = read_entries(path)
    for kind, _ in entries:
        if kind in ROUTERS:
            raise InputError(
                f"{path}: {kind}: an encoder for each route, where one for all texts is expected; "
                "embed_jax.load(...).encoders[ROUTE].save(...) writes one by itself"
            )
    if not of_tokens:
        check_order(path, entries)
        return entries
    kinds = [kind for kind, _ in entries]
    order = rf"Transformer( Dense)*( {MASK})?( Normalize)?( {TOKEN_POOLING})?"
    if not re.fullmatch(order, " ".join(kinds)):
        raise InputError(
            f"{path}: found {', '.join(kinds)}; expected Transformer, Dense, {MASK}, Normalize, "
            f"{TOKEN_POOLING}, in this order"
        )
    return entries


def read_entries(path: Path) -> list[tuple[str, str]]:
    """Reads (class name, folder) of each entry of a modules.json, in any order, ROUTERS included.

    Raises:
        InputError: see `read_modules`, except for the order.
    """
    try:
        entries = [
            (module["type"], module["path"]) for module in json.loads(path.read_text("utf-8"))
        ]
        if not all(isinstance(text, str) for entry in entries for text in entry):
            raise ValueError("type and path are strings")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of modules with type and path ({error!r})") from None
    return [(parse_kind(path, kind), check_folder(path, folder)) for kind, folder in entries]


def check_order(path: Path, folders: Sequence[tuple[str, str]]) -> None:
    """Checks that modules in this order make an encoder, or a cross-encoder.

    Raises:
        InputError: they do not.
    """
    kinds = [kind for kind, _ in folders]
    pooled = rf"(Transformer( ({'|'.join(TOKEN_HEADS)}))? Pooling|StaticEmbedding)"
    if not re.fullmatch(
        rf"{pooled}( ({'|'.join(HEADS)}))*|Transformer( {LOGIT_SCORE})?|"
        rf"({MLM}|Transformer) {SPLADE}|{TOKEN_WEIGHTS}",
        " ".join(kinds),
    ):
        raise InputError(
            f"{path}: found {', '.join(kinds)}; expected Transformer, Pooling "
            f"({' or '.join(TOKEN_HEADS)} before it) or StaticEmbedding, then {', '.join(HEADS)}; "
            f"or {MLM} and {SPLADE}, or {TOKEN_WEIGHTS}"
        )


def parse_kind(path: Path, kind: str) -> str:
    """Returns the class name at the end of a dotted one.

    Raises:
        InputError: for a class that is not supported.
    """
    name = kind.rsplit(".", 1)[-1]
    if kind not in (*TYPES.values(), PYLATE_DENSE) and not kind.startswith(PACKAGE):
        raise InputError(
            f"{path}: module {kind!r} is code of the model's own, which is never run; accepted: "
            f"sentence-transformers' {', '.join(sorted({*KNOWN} - {LATENT}))}"
        )
    if name not in (*KNOWN, *OF_TOKENS, *ROUTERS):
        raise InputError(f"{path}: {unknown('module', name, KNOWN)}")
    return name


def check_folder(path: Path, folder: str) -> str:
    """Checks a module's folder, and returns it.

    Raises:
        InputError: the folder may be outside of the model's directory.
    """
    windows = PureWindowsPath(folder)
    if PurePosixPath(folder).is_absolute() or windows.anchor or ".." in windows.parts:
        raise InputError(
            f"{path}: path: expected a folder in the model's directory, found {folder!r}"
        )
    return folder


def read_pooling(path: Path) -> tuple[str, bool]:
    """Reads a pooling's config.json, old or new.

    Returns:
        Our name of the pooling, and whether prompts count towards it.

    Raises:
        InputError: a field or a pooling that is unknown.
    """
    config = read_json(path, json_fields.POOLING)
    flags = [flag for _, flag in POOLING_NAMES.values()]
    for field in config:
        if field not in (*POOLING_FIELDS, *flags):
            raise InputError(f"{path}: {unknown('field', field, (*POOLING_FIELDS, *flags))}")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, flag in POOLING_NAMES.values() if config.get(flag)] or ["mean"]
    own_names = {mode: name for name, (mode, _) in POOLING_NAMES.items()}
    names = []
    for mode in [modes] if isinstance(modes, str) else modes:
        if mode not in own_names:
            raise InputError(f"{path}: {unknown('pooling_mode', mode, own_names)}")
        names.append(own_names[mode])
    return "+".join(names), bool(config.get("include_prompt", True))


def read_score_activation(
    directory: Path, settings: Mapping[str, Any], config: Mapping[str, Any], num_labels: int
) -> str:
    """Returns our name of the activation of a cross-encoder's logits.

    If no file names one, it is "sigmoid" for one label and "identity" for several.

    Args:
        directory: the model's directory, for messages.
        settings: config_sentence_transformers.json, which names it from version 6 on.
        config: config.json, which names it in older versions.
        num_labels: the number of logits of a pair.

    Raises:
        InputError: for any other activation; no code is imported by a name in a file.
    """
    in_config = config.get("sentence_transformers")
    in_config = in_config.get("activation_fn") if isinstance(in_config, dict) else None
    for file, field, activation in (
        ("config_sentence_transformers.json", "activation_fn", settings.get("activation_fn")),
        ("config.json", "sentence_transformers.activation_fn", in_config),
        (
            "config.json",
            "sbert_ce_default_activation_function",
            config.get("sbert_ce_default_activation_function"),
        ),
    ):
        if activation is None:
            continue
        names = {path.rsplit(".", 1)[-1]: name for name, path in SCORE_ACTIVATIONS.items()}
        short = str(activation).rsplit(".", 1)[-1]
        if not str(activation).startswith("torch.nn.") or short not in names:
            raise InputError(
                f"{directory / file}: {unknown(field, activation, SCORE_ACTIVATIONS.values())}"
            )
        return names[short]
    return "sigmoid" if num_labels == 1 else "identity"


def write_pooling(directory: Path, pooling: str, dim: int, include_prompt: bool) -> None:
    """Writes a pooling's config.json in a form that all versions of sentence-transformers read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_pooling(Path(folder), "mean", dim=32, include_prompt=True)
    ...     read_pooling(Path(folder) / "config.json")
    ('mean', True)
    """
    names = pooling.split("+")
    config: dict[str, Any] = {"word_embedding_dimension": dim}
    config |= {
        flag: name in names
        for name, (_, flag) in POOLING_NAMES.items()
        if name != "first_last_mean"
    }
    config |= {"include_prompt": include_prompt}
    if names != [name for name in POOLING_NAMES if name in names] or "first_last_mean" in names:
        config["pooling_mode"] = [POOLING_NAMES[name][0] for name in names]  # flags cannot say it
    write_json(directory / "config.json", config)


def write_modules(
    directory: Path, folders: Sequence[tuple[str, str]], types: Mapping[str, str] | None = None
) -> None:
    """Writes modules.json from (class name, folder) pairs.

    Args:
        directory: the model's directory.
        folders: class name and folder of each module.
        types: classes by name that are not sentence-transformers' own.
    """
    types = types or {}
    entries = [
        {"idx": i, "name": str(i), "path": folder, "type": types.get(kind, format_class_path(kind))}
        for i, (kind, folder) in enumerate(folders)
    ]
    write_json(directory / "modules.json", entries)


def format_class_path(kind: str) -> str:
    """Returns a class's name in the files, by which all sentence-transformers versions find it."""
    return TYPES.get(kind, MODULES + kind)
