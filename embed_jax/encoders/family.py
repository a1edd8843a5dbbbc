"""What a family of backbones must say about itself; `registry.REGISTRY["backbone"]` binds names to these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from embed_jax.types import Rules


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of backbones: its module, and how its Hugging Face files map to ours.

    Attributes:
        architecture: transformers' class, e.g. "BertModel", written into config.json.
        module: `(config, dtype, remat, attention, unroll, read) -> flax module` whose call is
            `(tokens, key, every_layer) -> hidden [R, T, D]`, or `[L, R, T, D]` if every layer is asked for.
        read_config: config.json's dictionary -> the backbone's frozen dataclass; None: it has no config.json.
        write_config: the inverse; without "architectures" and "model_type", which hf.py adds.
        tensors: our path -> Hugging Face's module, with "{}" for the layer's number. Our path is a module's,
            whose leaves are kernel (their weight, transposed), scale (weight) and bias (bias), or a table's
            (weight). Paths that a configuration has no parameters for are not looked for.
        prefixes: what a checkpoint of a bigger model puts before every name.
        ignored: regular expressions of tensors that may be there and are not wanted (whole names).
        sharding: how the module's parameters may be split over the mesh axes "fsdp" and "tensor".
        pooling: the only pooling that fits it; "": any.
    """

    architecture: str
    module: Callable[..., nn.Module]
    read_config: Callable[[Mapping[str, Any]], Any] | None
    write_config: Callable[[Any], dict[str, Any]] | None
    tensors: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    sharding: Rules = ()
    pooling: str = ""
