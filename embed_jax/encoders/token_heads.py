"""Reads and writes heads that predict tokens, in model.safetensors.

They are the heads of masked language models, and decoders' output layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from embed_jax.encoders import modules
from embed_jax.encoders.base import find_base, is_adapter
from embed_jax.encoders.weights import open_tensors
from embed_jax.errors import InputError
from embed_jax.types import Params


def _names(dense: str, norm: str, bias: str) -> dict[str, str]:
    """Returns Hugging Face's tensors of the parameters that `mlm.init_head` makes, by our path."""
    return {
        "dense/kernel": f"{dense}.weight",
        "dense/bias": f"{dense}.bias",
        "norm/scale": f"{norm}.weight",
        "norm/bias": f"{norm}.bias",
        "bias": bias,
    }


_BERT = _names(
    "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
)
_ROBERTA = _names("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
# By config.json's model_type: our path -> Hugging Face's tensor.
NAMES: dict[str, Mapping[str, str]] = {
    "bert": _BERT,
    "deberta-v2": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": _ROBERTA,
    "distilbert": _names("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    "electra": _names(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
    ),
    "modernbert": {
        "dense/kernel": "head.dense.weight",
        "norm/scale": "head.norm.weight",
        "bias": "decoder.bias",
    },
}
REFUSED = {"modernbert": ("head.dense.bias", "head.norm.bias")}  # of settings that are not read
OUTPUT_LAYER = {"lm_head": "lm_head.weight"}


def head_tensors(config: Any, params: Params) -> dict[str, np.ndarray]:
    """Returns a head's tensors, float32, by Hugging Face's names; {} if the family has no head.

    Args:
        config: the backbone's.
        params: the parameters of `token_objectives.build_predictor`.
    """
    names, flat = _head_names(config), flatten_dict(jax.device_get(params), sep="/")
    if not flat.keys() <= names.keys():
        return {}
    tensors = {names[path]: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
    return {
        name: value.T if name == names.get("dense/kernel") else value
        for name, value in tensors.items()
    }


def read_head(directory: Path, config: Any, shapes: Params) -> Params | None:
    """Reads the parameters that predict tokens from a model's weights; None if they are not there.

    Args:
        directory: see `read.read_model`; for an adapter the base's weights are read.
        config: the backbone's.
        shapes: the parameters' arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        InputError: for tensors of another shape, or weights that cannot be read.
    """
    kind, folder = modules.read_modules(directory)[0]
    if kind in ("StaticEmbedding", modules.TOKEN_WEIGHTS):
        return None
    where = directory / folder
    return read_transformer_head(
        find_base(where)[1] if is_adapter(where) else where, config, shapes
    )


def read_transformer_head(where: Path, config: Any, shapes: Params) -> Params | None:
    """Reads the parameters that predict tokens from a Transformer's weights, see `read_head`."""
    names, flat = _head_names(config), flatten_dict(shapes, sep="/")
    if not flat.keys() <= names.keys():
        return None
    tensors = open_tensors(where)
    if not all(names[path] in tensors for path in flat):
        return None
    for name in REFUSED.get(config.family, ()):
        if name in tensors:
            raise InputError(f"{where}: expected no tensor {name!r}, found one of a head with it")
    params = {}
    for path, leaf in flat.items():
        value, turned = tensors[names[path]], path == "dense/kernel"
        expected = leaf.shape[::-1] if turned else leaf.shape
        if value.shape != expected:
            raise InputError(
                f"{where}: tensor {names[path]!r} has shape {value.shape}, config.json wants "
                f"{expected}"
            )
        params[path] = value.T if turned else value
    return unflatten_dict(params, sep="/")


def _head_names(config: Any) -> Mapping[str, str]:
    return OUTPUT_LAYER if hasattr(config, "tied") else NAMES.get(config.family, {})
