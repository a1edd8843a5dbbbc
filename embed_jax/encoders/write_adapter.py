"""Writes an adapter in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from embed_jax.encoders.adapter import FINGERPRINT, PREFIX, WEIGHTS, target_modules, tensor_name
from embed_jax.encoders.base import ADAPTER_CONFIG as CONFIG
from embed_jax.encoders.base import (
    backbone_fingerprint,
    backbone_shapes,
    read_backbone,
    transformer_directory,
)
from embed_jax.encoders.family import REQUIRED
from embed_jax.encoders.lora import adapted_modules, linear_maps, require_lora
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.weights import write_json, write_safetensors
from embed_jax.errors import InputError, warn
from embed_jax.registry import lookup
from embed_jax.types import Params


def check_writable(spec: EncoderSpec) -> None:
    """Checks that an adapter can be written in PEFT's format.

    Raises:
        InputError: a linear map of the adapter is only a part of a module of Hugging Face.
    """
    shapes = backbone_shapes(spec.backbone)
    maps = linear_maps(lookup("backbone", spec.backbone.family), shapes)
    for path in adapted_modules(spec, shapes):
        if maps[path].count > 1:
            raise InputError(
                f"an adapter of {path!r}, part {maps[path].index + 1} of {maps[path].count} of "
                f"{maps[path].module!r}, cannot be written in PEFT's format: save the model with "
                "the adapter merged"
            )


def write_adapter(
    directory: Path,
    spec: EncoderSpec,
    adapter: Params,
    base: str,
    *,
    classifier: Mapping[str, np.ndarray] | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """Writes an adapter so that PEFT, transformers and `read_adapter` read it.

    Args:
        directory: the directory to write to.
        spec: the encoder's, with the adapter's settings in `spec.lora`.
        adapter: `params["lora"]`.
        base: the base's name: an absolute directory, or a name on the hub.
        classifier: tensors of a classifier's head, under transformers' names: the adapter is then
            one of a sequence classifier, and has them as PEFT's `modules_to_save`; None: it is one
            of an embedding model.
        prefix: of the backbone's modules in the class that the adapter is of.

    Returns:
        The fields of config.json in which the backbone differs from its base; PEFT's format has no
        place for them.

    Raises:
        InputError: the base is not found, or of another size than the backbone; see also
            `check_writable`.
    """
    check_writable(spec)
    if not base:
        raise InputError(
            "an adapter is written without its base, whose name is not known: save the model with "
            "the adapter merged"
        )
    place = transformer_directory(base)
    original, family, stored = read_backbone(place)
    for name in ("family", *REQUIRED):
        own_value, base_value = getattr(spec.backbone, name), getattr(original, name)
        if own_value != base_value:
            raise InputError(
                f"an adapter of a backbone with {name} {own_value!r}, but its base {base} has "
                f"{base_value!r}: save the model with the adapter merged"
            )
    lora = require_lora(spec)
    maps = linear_maps(family, backbone_shapes(spec.backbone))
    leaves = flatten_dict(jax.device_get(adapter["layers"]), sep="/")
    tensors = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        for number, value in enumerate(np.asarray(leaf, np.float32)):
            own_name = tensor_name(prefix + maps[module].module, number, name)
            tensors[own_name] = np.ascontiguousarray(value.T)
    saved = None
    if classifier is not None:
        tensors |= {PREFIX + name: value for name, value in classifier.items()}
        saved = sorted({family.without_prefix(name).split(".")[0] for name in classifier})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if classifier is None else "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": target_modules(
            maps, {path.rpartition("/")[0] for path in leaves}, shorthand=False
        ),
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": saved,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    write_json(directory / CONFIG, config)
    write_safetensors(
        directory / WEIGHTS, tensors, **{FINGERPRINT: backbone_fingerprint(original, place)}
    )
    assert family.write_config is not None, "only a table of vectors has none, and no linear maps"
    own_fields, base_fields = family.write_config(spec.backbone), family.write_config(original)
    changes = {
        name: own_fields.get(name)
        for name in {**base_fields, **own_fields}
        if own_fields.get(name) != base_fields.get(name)
    }
    unseen = [f"{name} {value!r}" for name, value in changes.items() if name not in stored]
    if unseen:  # transformers changes no field that the base's config.json lacks
        warn(
            f"sentence-transformers will not see {', '.join(unseen)}: {base} has no such field in "
            "its config.json; save the model with the adapter merged for it"
        )
    return changes
