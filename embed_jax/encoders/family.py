"""The description of a family of backbones; `registry.REGISTRY["backbone"]` has them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from embed_jax.errors import InputError
from embed_jax.types import Rules

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "max_positions",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several of our modules whose weights a file joins in one module, output after output.

    Attributes:
        module: Hugging Face's name, as in `Family.tensors`.
        index: the part's position, from 0.
        count: the number of parts, all of one size.
    """

    module: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of backbones: its module, and how its Hugging Face files map to ours.

    Attributes:
        architecture: transformers' class, e.g. "BertModel", written into config.json.
        module: `(config, dtype, remat, attention, unroll, read) -> flax module` whose call is
            `(tokens, key, every_layer) -> hidden [R, T, D]`, or `[L, R, T, D]` with `every_layer`.
        read_config: config.json's dictionary -> the backbone's frozen dataclass; None: the family
            has no config.json.
        write_config: the inverse; without "architectures" and "model_type", which write.py adds.
        tensors: our path -> Hugging Face's module, with "{}" for the layer's number. Our path is a
            module's, whose leaves are kernel (their weight, transposed), scale (weight) and bias
            (bias), or a table's (weight). Paths without parameters in a configuration are skipped.
            A `Part` is one of several of our modules that are one module there.
        older: tables of other names that the same tensors have in some files; read, never written.
            Of all tables, the one with the most names in a file is used for it.
        absent: tensors that no file has, since the first layer is without that module; our stacked
            parameters have ones in their place, which are not used.
        prefixes: prefixes of every name in checkpoints of a bigger model.
        ignored: regular expressions (of whole names) of tensors that may be there and are not read.
        sharding: how the module's parameters may be split over the mesh axes "fsdp" and "tensor".
        pooling: the only pooling that fits the family; "": any.
        shapes: sizes of well-known models by name, for runs that start from random parameters; a
            name belongs to one family.
    """

    architecture: str
    module: Callable[..., nn.Module]
    read_config: Callable[[Mapping[str, Any]], Any] | None
    write_config: Callable[[Any], dict[str, Any]] | None
    tensors: Mapping[str, str | Part]
    older: tuple[Mapping[str, str | Part], ...] = ()
    absent: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    sharding: Rules = ()
    pooling: str = ""
    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def without_prefix(self, name: str) -> str:
        """Returns a tensor's or module's name without the prefix of a bigger model."""
        return name.removeprefix(next(filter(name.startswith, self.prefixes), ""))


def read_fields(config_json: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Returns values of config.json under our names, without fields that are absent or null.

    Args:
        config_json: config.json's dictionary.
        fields: our name -> config.json's.

    Raises:
        InputError: one of REQUIRED is not there.
    """
    values = {
        name: config_json[hf_name]
        for name, hf_name in fields.items()
        if config_json.get(hf_name) is not None
    }
    missing = [fields[name] for name in REQUIRED if name not in values]
    if missing:
        raise InputError(f"config.json: missing {', '.join(missing)}")
    return values


def check_switches(config_json: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Checks fields of config.json of which only one value is supported.

    >>> check_switches({"is_decoder": False}, supported={"is_decoder": False})

    Raises:
        InputError: a field is there with another value.
    """
    for name, value in supported.items():
        if config_json.get(name) is not None and config_json[name] != value:
            raise InputError(
                f"config.json: {name} {config_json[name]!r} is not supported; only {value!r} is"
            )
