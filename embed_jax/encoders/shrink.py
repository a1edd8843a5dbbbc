"""Makes models smaller: fewer layers, and fewer dimensions by principal components."""

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
    """Returns the encoder with only some of its backbone's layers, in their order.

    Embeddings, pooling and heads stay.

    >>> from embed_jax.encoders.build import build_encoder
    >>> from embed_jax.encoders.spec import random_spec
    >>> spec = random_spec("tiny", vocab_size=10)
    >>> init = build_encoder(spec).init
    >>> shapes = jax.eval_shape(lambda key: keep_layers(spec, init(key), [1])[1], jax.random.key(0))
    >>> shapes["backbone"]["layers"]["query"]["kernel"].shape  # one layer of two
    (1, 32, 32)

    Args:
        spec: the encoder's.
        params: the encoder's parameters.
        layers: indices of the layers to keep, from 0, ascending.

    Returns:
        The smaller encoder's spec and parameters.

    Raises:
        InputError: there are no layers to keep, the backbone lacks one of them or has no layers,
            they are not ascending, or 0 is not among them in a family whose first layer differs
            from the others.
    """
    layers, number = list(layers), spec.backbone.num_layers
    description = f"layers {','.join(map(str, layers))}"
    if "layers" not in params["backbone"]:
        raise InputError(
            f"{description}: a backbone of the family {spec.backbone.family!r} has no layers"
        )
    if not layers:
        raise InputError(f"layers: expected one or more of 0 to {number - 1}, found none")
    for layer in layers:
        if not 0 <= layer < number:
            raise InputError(
                f"{description}: expected numbers from 0 to {number - 1}, found {layer}"
            )
    for before, layer in zip(layers, layers[1:], strict=False):
        if layer <= before:
            raise InputError(
                f"{description}: expected ascending numbers, each once, "
                f"found {layer} after {before}"
            )
    family = spec.backbone.family
    if layers[0] and lookup("backbone", family).absent:
        raise InputError(
            f"{description}: expected 0 among them: the first layer of a {family} encoder is built "
            "otherwise"
        )

    def select_layers(tree: Params) -> Params:
        return {
            **tree,
            "layers": jax.tree.map(lambda leaf: leaf[np.asarray(layers)], tree["layers"]),
        }

    # Only backbones whose layers are not all of one kind have them.
    types = getattr(spec.backbone, "layer_types", ())
    changes = {"layer_types": tuple(types[layer] for layer in layers)} if types else {}
    backbone = dataclasses.replace(spec.backbone, num_layers=len(layers), **changes)
    trees = {name: select_layers(params[name]) for name in ("backbone", ADAPTER) if name in params}
    return dataclasses.replace(spec, backbone=backbone), {**params, **trees}


def keep_first_layers(spec: EncoderSpec, params: Params, number: int) -> tuple[EncoderSpec, Params]:
    """Returns the encoder with only the first `number` layers of its backbone; see `keep_layers`.

    Raises:
        InputError: for a number that is not from 1 to the backbone's layers.
    """
    if "layers" in params["backbone"] and not 1 <= number <= spec.backbone.num_layers:
        raise InputError(f"layers: expected 1 to {spec.backbone.num_layers}, found {number}")
    return keep_layers(spec, params, range(number))


def parse_layers(text: str) -> list[int]:
    """Parses a list of layers for `keep_layers`.

    >>> parse_layers("0,2,4")
    [0, 2, 4]

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
    """Returns a linear layer, with its parameters, to the dimensions in which embeddings vary most.

    x -> x V, V [D, dim] the eigenvectors of the embeddings' covariance, by falling eigenvalue:
    sentence-transformers' recipe (principal components without a bias). The mean is not subtracted:
    so a zero vector stays zero, scaling commutes with the layer, a dot product in all D dimensions
    is unchanged, and cosines of texts unlike these keep their order better. Each eigenvector's sign
    is such that its number of largest size is positive.

    >>> head, params = pca_head(np.array([[0.0, 1], [1, 1], [2, 1]]), 1)
    >>> params["kernel"].tolist()
    [[1.0], [0.0]]

    Args:
        embeddings: embeddings of N typical texts, more than `dim`.
        dim: the size of the smaller embeddings, 1 to D.

    Raises:
        InputError: `dim` is not from 1 to D, there are not more embeddings than dimensions, or an
            embedding is not finite.
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
    """Returns the encoder with `pca_head` of its embeddings as the last head.

    If the last head is a Normalize, it stays last: scaling commutes with the linear layer.

    Raises:
        InputError: see `pca_head`.
    """
    head, weights = pca_head(embeddings, dim)
    number = len(spec.heads)
    if spec.heads and isinstance(spec.heads[-1], Normalize):
        number -= 1
    before, after = spec.heads[:number], spec.heads[number:]
    heads = {**params["heads"], str(len(before)): weights}
    return dataclasses.replace(spec, heads=(*before, head, *after)), {**params, "heads": heads}
