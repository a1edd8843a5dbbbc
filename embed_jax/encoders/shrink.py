"""Smaller models from larger ones: fewer layers, and fewer dimensions by principal components."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from embed_jax.encoders.build import EncoderSpec
from embed_jax.errors import InputError
from embed_jax.types import Params


def keep_layers(spec: EncoderSpec, params: Params, layers: Sequence[int]) -> tuple[EncoderSpec, Params]:
    """The encoder with only some of its backbone's layers, in their order; embeddings, pooling and heads stay.

    Args:
        layers: counted from 0, ascending.

    Raises:
        InputError: for no layers, one that the backbone has not, or layers that are not ascending.
    """
    layers, number = list(layers), spec.backbone.num_layers
    place = f"layers {','.join(map(str, layers))}"
    if "layers" not in params["backbone"]:
        raise InputError(f"{place}: not for a backbone of the family {spec.backbone.family!r}")
    if not layers:
        raise InputError(f"layers: expected one or more of 0 to {number - 1}, found none")
    for layer in layers:
        if not 0 <= layer < number:
            raise InputError(f"{place}: expected numbers from 0 to {number - 1}, found {layer}")
    for before, layer in zip(layers, layers[1:], strict=False):
        if layer <= before:
            raise InputError(f"{place}: expected ascending numbers, each once, found {layer} after {before}")
    kept = jax.tree.map(lambda leaf: leaf[np.asarray(layers)], params["backbone"]["layers"])
    backbone = dataclasses.replace(spec.backbone, num_layers=len(layers))
    return dataclasses.replace(spec, backbone=backbone), {**params, "backbone": {**params["backbone"], "layers": kept}}


def first_layers(spec: EncoderSpec, params: Params, number: int) -> tuple[EncoderSpec, Params]:
    """The encoder that ends after its backbone's first layers: `keep_layers` of 0 to `number` - 1.

    Raises:
        InputError: for a number that is not from 1 to the backbone's layers.
    """
    if not 1 <= number <= spec.backbone.num_layers:
        raise InputError(f"layers: expected 1 to {spec.backbone.num_layers}, found {number}")
    return keep_layers(spec, params, range(number))
