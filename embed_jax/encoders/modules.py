"""sentence-transformers' module folders: modules.json, 1_Pooling, 2_Dense, 3_Normalize."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.encoders.heads import Dense, Head, LayerNorm
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.weights import WEIGHTS, read_json, read_tensors, write_json, write_safetensors
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import Params, param_dtype

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
SCORE_ACTIVATIONS = {  # of a cross-encoder's logits
    "identity": TORCH_ACTIVATIONS["identity"],
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}
MODULES = "sentence_transformers.models."  # where every version of it finds its classes
HEADS = ("Dense", "LayerNorm", "Normalize")
LATENT = "LatentAttention"
TYPES = {LATENT: f"{LatentAttention.__module__}.{LATENT}"}  # ours alone: sentence-transformers cannot load it
KNOWN = ("Transformer", "StaticEmbedding", LATENT, "Pooling", *HEADS)
LATENT_TENSORS = {  # our path: the name in the code that NV-Embed's authors published
    "norm": "cross_attend_blocks.0.norm",
    "latents_norm": "cross_attend_blocks.0.norm_context",
    "query": "cross_attend_blocks.0.fn.to_q",
    "out": "cross_attend_blocks.0.fn.to_out",
    "mlp_norm": "cross_attend_blocks.1.norm",
    "up": "cross_attend_blocks.1.fn.net.0",
    "down": "cross_attend_blocks.1.fn.net.2",
}
KEY_AND_VALUE = "cross_attend_blocks.0.fn.to_kv.weight"


def read_modules(directory: Path) -> list[tuple[str, str]]:
    """(class name, folder) of each module, the backbone first; a plain Hugging Face directory is one module.

    Raises:
        InputError: no model there, a module of an unknown kind, or modules in an order that is not supported.
    """
    path = directory / "modules.json"
    if not path.is_file():
        if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(f"{directory}: neither modules.json nor config.json, so it holds no model")
        return [("Transformer", "")]
    try:
        found = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of modules with type and path ({error!r})") from None
    for kind, _ in found:
        if kind not in KNOWN:
            raise InputError(f"{path}: {unknown('module', kind, KNOWN)}")
    kinds = [kind for kind, _ in found]
    before = [["Transformer", LATENT, "Pooling"], ["Transformer", "Pooling"]]
    heads = next((kinds[len(start) :] for start in before if kinds[: len(start)] == start), kinds[1:])
    if kinds[:1] not in (["Transformer"], ["StaticEmbedding"]) or not set(HEADS).issuperset(heads):
        raise InputError(f"{path}: found {', '.join(kinds)}; wanted Transformer, Pooling (or {LATENT} before "
                         f"it) or StaticEmbedding, then {', '.join(HEADS)}")  # fmt: skip
    return found


def read_pooling(path: Path) -> tuple[str, bool]:
    """Our name of the pooling, and whether prompts count towards it; from a pooling's config.json, old or new."""
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


def read_dense(directory: Path) -> tuple[Dense, Params]:
    """A Dense head and its parameters.

    Raises:
        InputError: unknown activation, or tensors that do not fit the config.
    """
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
    shapes = {"linear.weight": (head.out_features, head.in_features), "linear.bias": (head.out_features,)}
    if not head.bias:
        del shapes["linear.bias"]
    tensors = _read_exactly(directory, shapes)
    params = {"kernel": tensors["linear.weight"].T}
    if head.bias:
        params["bias"] = tensors["linear.bias"]
    return head, params


def read_layer_norm(directory: Path) -> tuple[LayerNorm, Params]:
    """A LayerNorm head and its parameters.

    Raises:
        InputError: tensors that do not fit the config.
    """
    try:
        head = LayerNorm(int(read_json(directory / "config.json")["dimension"]))
    except KeyError as error:
        raise InputError(f"{directory / 'config.json'}: missing {error}") from None
    tensors = _read_exactly(directory, {f"norm.{leaf}": (head.dimension,) for leaf in ("weight", "bias")})
    return head, {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]}


def read_latent_attention(directory: Path) -> tuple[LatentAttention, Params]:
    """A LatentAttention and its parameters.

    Raises:
        InputError: sizes that are missing, unknown or no numbers, or tensors that do not fit them.
    """
    path = directory / "config.json"
    config = read_json(path)
    sizes = [field.name for field in dataclasses.fields(LatentAttention)]
    for name, size in config.items():
        if name not in sizes:
            raise InputError(f"{path}: {unknown('field', name, sizes)}")
        if type(size) is not int or size < 0:
            raise InputError(f"{path}: {name}: expected a size, found {size!r}")
    if "width" not in config:
        raise InputError(f"{path}: missing 'width'")
    try:
        head = LatentAttention(**config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    shapes = jax.eval_shape(lambda key: _latent_tensors(head.init(key)), jax.random.key(0))
    tensors = _read_exactly(directory, {name: tensor.shape for name, tensor in shapes.items()})
    params = {"latents": tensors["latents"]}
    for ours, theirs in LATENT_TENSORS.items():
        params[ours] = {"scale" if ours.endswith("norm") else "kernel": tensors[f"{theirs}.weight"].T}
        if f"{theirs}.bias" in tensors:
            params[ours]["bias"] = tensors[f"{theirs}.bias"]
    for ours, weight in zip(("key", "value"), np.split(tensors[KEY_AND_VALUE], 2), strict=True):
        params[ours] = {"kernel": weight.T}
    return head, params


def write_latent_attention(directory: Path, head: LatentAttention, params: Params) -> None:
    """Writes a LatentAttention's sizes and weights; tensors are named as in the code of NV-Embed's authors."""
    write_json(directory / "config.json", dataclasses.asdict(head))
    _write(directory, _latent_tensors(params))


def _latent_tensors(params: Params) -> dict[str, Any]:
    tensors = {"latents": params["latents"]}
    for ours, theirs in LATENT_TENSORS.items():
        for leaf, value in params[ours].items():
            tensors[f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}"] = value.T
    return tensors | {KEY_AND_VALUE: jnp.concatenate([params[name]["kernel"].T for name in ("key", "value")])}


def _read_exactly(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    tensors = read_tensors(directory)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise InputError(f"{directory / WEIGHTS}: found {found}, wanted {shapes}")
    return {name: tensor.astype(param_dtype(tensor.dtype), copy=False) for name, tensor in tensors.items()}


def read_score_activation(
    directory: Path, settings: Mapping[str, Any], config: Mapping[str, Any], num_labels: int
) -> str:
    """Our name of a cross-encoder's activation: "sigmoid" for one label, "identity" for more, if no file names one.

    Args:
        settings: of config_sentence_transformers.json, which names it from version 6 on.
        config: of config.json, which names it in older versions.

    Raises:
        InputError: for any other activation; no code is imported by a name in a file.
    """
    in_config = config.get("sentence_transformers")
    in_config = in_config.get("activation_fn") if isinstance(in_config, dict) else None
    for file, field, found in (
        ("config_sentence_transformers.json", "activation_fn", settings.get("activation_fn")),
        ("config.json", "sentence_transformers.activation_fn", in_config),
        (
            "config.json",
            "sbert_ce_default_activation_function",
            config.get("sbert_ce_default_activation_function"),
        ),
    ):
        if found is None:
            continue
        names = {path.rsplit(".", 1)[-1]: name for name, path in SCORE_ACTIVATIONS.items()}
        short = str(found).rsplit(".", 1)[-1]
        if not str(found).startswith("torch.nn.") or short not in names:
            raise InputError(f"{directory / file}: {unknown(field, found, SCORE_ACTIVATIONS.values())}")
        return names[short]
    return "sigmoid" if num_labels == 1 else "identity"


def write_pooling(directory: Path, pooling: str, dim: int, include_prompt: bool) -> None:
    """Writes a pooling's config.json as every version of sentence-transformers reads it."""
    names = pooling.split("+")
    config = {"word_embedding_dimension": dim}
    config |= {flag: name in names for name, (_, flag) in POOLING_NAMES.items() if name != "first_last_mean"}
    config |= {"include_prompt": include_prompt}
    if names != [name for name in POOLING_NAMES if name in names] or "first_last_mean" in names:
        config["pooling_mode"] = [POOLING_NAMES[name][0] for name in names]  # flags cannot say it
    write_json(directory / "config.json", config)


def write_head(directory: Path, head: Head, params: Params) -> None:
    """Writes a head's config and weights; a Normalize is an empty folder but for its config."""
    if isinstance(head, LayerNorm):
        write_json(directory / "config.json", {"dimension": head.dimension})
        tensors = {"norm.weight": params["scale"], "norm.bias": params["bias"]}
        _write(directory, tensors)
        return
    if not isinstance(head, Dense):
        write_json(directory / "config.json", {})
        return
    if head.activation not in TORCH_ACTIVATIONS:
        raise InputError(f"cannot save a Dense head: {unknown('activation', head.activation, TORCH_ACTIVATIONS)}")
    config = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": head.bias,
        "activation_function": TORCH_ACTIVATIONS[head.activation],
    }
    write_json(directory / "config.json", config)
    tensors = {"linear.weight": params["kernel"].T}
    if head.bias:
        tensors["linear.bias"] = params["bias"]
    _write(directory, tensors)


def _write(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    kept = {name: np.asarray(value, param_dtype(value.dtype)) for name, value in tensors.items()}
    write_safetensors(directory / WEIGHTS, kept)


def write_modules(directory: Path, folders: list[tuple[str, str]]) -> None:
    """Writes modules.json from (class name, folder) pairs."""
    entries = [
        {"idx": i, "name": str(i), "path": folder, "type": TYPES.get(kind, MODULES + kind)}
        for i, (kind, folder) in enumerate(folders)
    ]
    write_json(directory / "modules.json", entries)
