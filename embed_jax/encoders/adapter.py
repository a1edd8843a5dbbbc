"""Names of PEFT's format of adapters: of its files, its tensors, and the modules it adapts.

The files are adapter_config.json and adapter_model.safetensors; the base model is not among them.
read_adapter.py reads them, write_adapter.py writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from embed_jax.encoders.family import Part
from embed_jax.encoders.spec import ALL_LINEAR

WEIGHTS = "adapter_model.safetensors"
FINGERPRINT = "embed_jax.base"  # in the weights' metadata: `backbone_fingerprint` of the base
PREFIX = "base_model.model."
# PEFT's name -> our leaf. PEFT itself writes no ".weight" after the vector and reads both names;
# transformers' loader needs it.
LEAVES = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector.weight": "magnitude"}


def tensor_name(module: str, number: int, leaf: str) -> str:
    """Returns PEFT's name of a leaf of ours, of a layer's module."""
    ending = next(peft_name for peft_name, own_name in LEAVES.items() if own_name == leaf)
    return f"{PREFIX}{module.format(number)}.{ending}"


def target_modules(
    maps: Mapping[str, Part], paths: set[str], shorthand: bool = True
) -> list[str] | str:
    """Returns PEFT's target_modules for linear maps.

    These are the last parts of their names if no other map ends so, else a regular expression.

    Args:
        maps: all linear maps of the layers, by our path.
        paths: our paths of those with an adapter.
        shorthand: whether to write "all-linear" for all of them. PEFT means all of a model's linear
            maps by it, a pooler's too.
    """
    if shorthand and paths == set(maps):
        return ALL_LINEAR
    chosen = [part.module for path, part in maps.items() if path in paths]
    last = [name.rpartition(".")[2] for name in chosen]
    every = [part.module.rpartition(".")[2] for part in maps.values()]
    if all(every.count(name) == 1 for name in last):
        return last
    patterns = "|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in dict.fromkeys(chosen))
    return rf"(.*\.)?({patterns})"
