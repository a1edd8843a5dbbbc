"""Smaller models from larger ones: fewer layers, and fewer dimensions by principal components."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import Params


def keep_layers(
    spec: EncoderSpec, params: Params, layers: Sequence[int]
) -> tuple[EncoderSpec, Params]:
    """The encoder with only some of its backbone's layers, in their order.

    Embeddings, pooling and heads stay.

    Args:
        layers: counted from 0, ascending.

    Raises:
        InputError: for no layers, one that the backbone lacks, layers that are not ascending,
            none of 0 where the first layer is built otherwise, or a backbone without.
    """
    layers, number = list(layers), spec.backbone.num_layers
    place = f"layers {','.join(map(str, layers))}"
    if "layers" not in params["backbone"]:
        raise InputError(f"{place}: a backbone of the family {spec.backbone.family!r} has none")
    if not layers:
        raise InputError(f"layers: expected one or more of 0 to {number - 1}, found none")
    for layer in layers:
        if not 0 <= layer < number:
            raise InputError(f"{place}: expected numbers from 0 to {number - 1}, found {layer}")
    for before, layer in zip(layers, layers[1:], strict=False):
        if layer <= before:
            raise InputError(
                f"{place}: expected ascending numbers, each once, found {layer} after {before}"
            )
    family = spec.backbone.family
    if layers[0] and lookup("backbone", family).absent:
        raise InputError(
            f"{place}: expected 0 among them: the first layer of a {family} encoder is built "
            "otherwise"
        )

    def select_layers(tree: Params) -> Params:
        return {
            **tree,
            "layers": jax.tree.map(lambda leaf: leaf[np.asarray(layers)], tree["layers"]),
        }

    types = getattr(
        spec.backbone, "layer_types", ()
    )  # of a backbone whose layers are not all of one kind
    changes = {"layer_types": tuple(types[layer] for layer in layers)} if types else {}
    backbone = dataclasses.replace(spec.backbone, num_layers=len(layers), **changes)
    trees = {name: select_layers(params[name]) for name in ("backbone", ADAPTER) if name in params}
    return dataclasses.replace(spec, backbone=backbone), {**params, **trees}


def keep_first_layers(spec: EncoderSpec, params: Params, number: int) -> tuple[EncoderSpec, Params]:
    """The encoder that ends after its backbone's first layers: `keep_layers` of 0 to `number` - 1.

    Raises:
        InputError: for a number that is not from 1 to the backbone's layers.
    """
    if "layers" in params["backbone"] and not 1 <= number <= spec.backbone.num_layers:
        raise InputError(f"layers: expected 1 to {spec.backbone.num_layers}, found {number}")
    return keep_layers(spec, params, range(number))


def parse_layers(text: str) -> list[int]:
    """[0, 2, 4] of "0,2,4", for `keep_layers`.

    Raises:
        InputError: for anything but numbers with commas between.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(
            f"layers: expected numbers with commas between, such as 0,2,4, found {text!r}"
        ) from None


def pca_head(embeddings: Float[np.ndarray, "N D"], dim: int) -> tuple[Dense, Params]:
    """A linear layer from D dimensions to those `dim` along which the embeddings vary most.

    With its parameters.

    x -> x V, V [D, dim] the eigenvectors of the embeddings' covariance, by falling eigenvalue:
    sentence-transformers' recipe (principal components without a bias). The mean is not taken away:
    that keeps a zero vector and scaling as they are, a dot product in all D dimensions is
    unchanged, and cosines of texts unlike those given keep their order better. Each eigenvector's
    sign is such that its number of largest size is positive.

    Args:
        embeddings: of texts such as will be encoded.
        dim: from 1 to D.

    Raises:
        InputError: for another dimension, not more embeddings than dimensions, or one that is not
            finite.
    """
    number, size = embeddings.shape
    if not 1 <= dim <= size:
        raise InputError(f"dim: expected 1 to {size}, the size of the embeddings, found {dim}")
    if number <= dim:
        raise InputError(
            f"dim {dim}: expected embeddings of more texts than dimensions, found {number}"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise InputError(
            f"dim {dim}: the embedding of text {int(np.argmin(finite))}, from 0, is not finite"
        )
    centred = np.asarray(embeddings, np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, : -dim - 1 : -1]
    signs = np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(dim)])
    return Dense(size, dim, bias=False, activation="identity"), {
        "kernel": (vectors * signs).astype(np.float32)
    }


def add_pca(
    spec: EncoderSpec, params: Params, embeddings: Float[np.ndarray, "N D"], dim: int
) -> tuple[EncoderSpec, Params]:
    """The encoder with `pca_head` of its embeddings at the end, before a last Normalize.

    A product commutes with it.

    Raises:
        InputError: as `pca_head`.
    """
    head, weights = pca_head(embeddings, dim)
    before, after = spec.heads, ()
    if before and isinstance(before[-1], Normalize):
        before, after = before[:-1], before[-1:]
    heads = {**params["heads"], str(len(before)): weights}
    return dataclasses.replace(spec, heads=(*before, head, *after)), {**params, "heads": heads}
