"""Any loss on prefixes of the embeddings (Matryoshka), on earlier layers' embeddings, or on both.

matryoshka(info_nce(), dims='384,256,128,64')
adaptive_layers(cosent(), sample=1)
adaptive_layers(matryoshka(info_nce(), dims='384,128,32', sample=1), sample=1)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.base import Loss, bind, mean_over_present
from embed_jax.losses.compose import AnyLoss, common_weights
from embed_jax.registry import unknown
from embed_jax.scores import cut_prefix, dense
from embed_jax.types import Columns, LossResult, Number, Params, Prefixes, World
from embed_jax.vectors import add_arrays

WEIGHTINGS = {  # of a layer by its number, from 1
    "uniform": lambda number: jnp.ones_like(number, jnp.float32),
    "log": lambda number: 1.0 / (1.0 + jnp.log1p(number.astype(jnp.float32))),
    "linear": lambda number: 1.0 / (1.0 + number.astype(jnp.float32)),
}


def matryoshka(
    loss: AnyLoss,
    *,
    dims: str,
    weights: str = "",
    sample: int = 0,
    normalize: bool = True,
    shared_head: bool = False,
) -> Loss:
    """Makes the loss sum_m c_m L(first m numbers of each embedding).

    Kusupati et al. (2022), "Matryoshka Representation Learning", eq. 1. Contrastive losses compare
    all prefixes in one pass over the pairs (`About.prefixes`), without holding a matrix for each. A
    teacher's embeddings of the same size are cut like the student's, a guide's never. Metrics: the
    largest prefix's own, and each prefix's as "loss/SIZE".

    Args:
        loss: a loss of whole embeddings.
        dims: the sizes m with commas between, ascending or descending; the whole size is trained
            only if it is among them.
        weights: the c_m in the same order; "": 1 each.
        sample: how many prefixes count at a step, drawn anew; the others' c_m are 0 then. 0: all.
        normalize: whether prefixes are made length 1 again. False: a loss without cosine sees them
            as they are.
        shared_head: whether a loss with parameters of the embedding's size (softmax) has one set of
            them, whose part for the first m numbers each prefix is given (MRL-E), instead of one
            for each: {"64": ..., "128": ...}.

    Raises:
        InputError: for sizes that are not numbers from 1, are repeated or unsorted, another number
            of weights, a weight that is not a number of 0 or more, a sample beyond the number of
            sizes; for a loss that is one of prefixes already.

    >>> from embed_jax.losses import alignment
    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(matryoshka(alignment, dims="2,1", weights="1,0.5")(first, second))
    [0.     1.0858]
    """
    loss = bind(loss)
    if loss.about.dims:
        raise InputError(f"expected a loss of whole embeddings, found {loss.name}")
    sizes, counts = _sizes(dims, weights)
    if not 0 <= sample <= len(sizes):
        raise InputError(
            f"sample: expected 0 (all) to {len(sizes)}, the number of dims, found {sample}"
        )
    by_size = _depends_on_size(loss, sizes)
    if shared_head and not by_size:
        raise InputError(f"shared_head: {loss.name} has no parameters of the embedding's size")
    one_pass = loss.about.prefixes and normalize

    def init(dim: int, key: PRNGKeyArray) -> Params:
        _check_size(sizes, dim)
        if not by_size or shared_head:
            return loss.init(dim, key)
        return {
            str(size): loss.init(size, jax.random.fold_in(key, i)) for i, size in enumerate(sizes)
        }

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        dim = _size_of(own.embeddings[0])
        _check_size(sizes, dim)
        factors = jnp.array(counts, jnp.float32) * _drawn(own.key, len(sizes), sample)
        if one_pass:
            return loss.on_world(own.replace(prefixes=Prefixes(sizes, factors)), world, params)
        results = []
        for size in sizes:
            change = functools.partial(
                _cut, size=size, to_length_one=normalize, pad_to=dim if shared_head else 0
            )
            own_params = params[str(size)] if by_size and not shared_head else params
            results.append(loss.on_world(change(own), world.view(change), own_params))
        names = [str(size) for size in sizes]
        return _summed(results, factors, names, world, metrics_of=-1)

    about = dataclasses.replace(loss.about, init=init, dims=sizes, prefixes=False)
    return Loss(f"matryoshka({loss.name})", compute, about, of_dataset=loss.of_dataset)


def adaptive_layers(
    loss: AnyLoss,
    *,
    sample: int = 1,
    last_weight: Number = 1.0,
    prior_weight: Number = 1.0,
    weighting: str = "uniform",
    kl_weight: Number = 1.0,
    kl_temperature: float = 0.3,
) -> Loss:
    """Makes a loss that trains earlier layers' embeddings too.

    last_weight L(last) + prior_weight / K sum_k w_k L(layer k)
        + kl_weight t sum_k KL(last || layer k)

    Pooling and heads are the last layer's. KL compares softmax(embedding / t) of the last layer,
    without gradient, with each earlier layer's, summed over the dimensions and averaged over all
    texts. With `matryoshka` inside it is Li et al. (2024), "2D Matryoshka Sentence Embeddings".
    Metrics: the last layer's own, "loss/last", "loss/prior" (the mean over k) and "loss/kl" (the
    sum).

    Args:
        loss: a loss of the last layer's embeddings.
        sample: K, how many of the layers before the last count at a step, drawn anew; 0: all.
        last_weight: of the last layer's loss.
        prior_weight: of the mean over earlier layers' losses.
        weighting: w_k of the n-th layer: "uniform" 1, "log" 1 / (1 + log(1 + n)), "linear" 1 / (1 +
            n).
        kl_weight: of the KL term.
        kl_temperature: t; 0: no KL term.

    Raises:
        InputError: for a sample or a temperature below 0, an unknown weighting, or a loss of layers
            already.

    >>> from embed_jax.losses import alignment
    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> layers = tuple(column[:, None] for column in (second, second))  # [B, K, D]
    >>> loss = adaptive_layers(alignment, kl_weight=0.0)
    >>> print(loss(first, second, layers=layers, layer=jnp.array([1])))
    [0.     0.5858]
    """
    loss = bind(loss)
    if loss.about.layers:
        raise InputError(f"expected a loss of one layer, found {loss.name}")
    if sample < 0:
        raise InputError(f"sample: expected 0 (all) or more, found {sample}")
    if kl_temperature < 0:
        raise InputError(f"kl_temperature: expected 0 (none) or more, found {kl_temperature}")
    if weighting not in WEIGHTINGS:
        raise InputError(unknown("weighting of layers", weighting, WEIGHTINGS))

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        number = 0 if own.layers is None else jax.tree.leaves(own.layers)[0].shape[1]
        if not number:
            raise InputError(
                "config.loss.name: adaptive_layers needs an encoder of two or more layers"
            )
        results = [loss.on_world(own, world, params)]
        for k in range(number):

            def change(columns: Columns, k: int = k) -> Columns:
                return columns.replace(embeddings=_layer(columns, k))

            key = None if own.key is None else jax.random.fold_in(own.key, k)
            results.append(loss.on_world(change(own).replace(key=key), world.view(change), params))
        prior = prior_weight / number * WEIGHTINGS[weighting](own.layer)
        factors = jnp.concatenate([jnp.full(1, last_weight), prior])
        if kl_temperature:
            results += [_divergence(own, k, kl_temperature) for k in range(number)]
            factors = jnp.concatenate([factors, jnp.full(number, kl_weight * kl_temperature)])
        names = ["last", *["prior"] * number, *["kl"] * number]
        values, weights, metrics = _summed(
            results, factors, names[: len(results)], world, metrics_of=0
        )
        return values, weights, metrics | {"loss/prior": metrics["loss/prior"] / number}

    layers = sample or -1
    about = dataclasses.replace(loss.about, layers=layers, prefixes=False, queue=False)
    return Loss(f"adaptive_layers({loss.name})", compute, about, of_dataset=loss.of_dataset)


def _sizes(dims: str, weights: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Returns the sizes, ascending, and their weights."""
    parts = [size.strip() for size in dims.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in parts):
        raise InputError(f"dims: expected sizes from 1 with commas between, found {dims!r}")
    sizes = [int(size) for size in parts]
    if len(set(sizes)) < len(sizes):
        raise InputError(f"dims: expected each size once, found {dims!r}")
    if sizes not in (sorted(sizes), sorted(sizes, reverse=True)):
        raise InputError(f"dims: expected sizes in ascending or descending order, found {dims!r}")
    weight_texts = (
        [weight.strip() for weight in weights.split(",")] if weights else ["1"] * len(sizes)
    )
    if len(weight_texts) != len(sizes):
        raise InputError(
            f"weights: expected {len(sizes)}, as many as dims, found {len(weight_texts)}"
        )
    try:
        counts = [float(weight) for weight in weight_texts]
    except ValueError:
        counts = [math.nan]
    if not all(math.isfinite(count) and count >= 0 for count in counts) or not any(counts):
        raise InputError(f"weights: expected numbers of 0 or more, not all 0, found {weights!r}")
    pairs = sorted(zip(sizes, counts, strict=True))
    return tuple(size for size, _ in pairs), tuple(count for _, count in pairs)


def _check_size(sizes: Sequence[int], dim: int) -> None:
    if sizes[-1] > dim:
        raise InputError(
            f"dims: expected sizes from 1 to {dim}, the size of the embeddings, found {sizes[-1]}"
        )


def _depends_on_size(loss: Loss, sizes: Sequence[int]) -> bool:
    """Tells whether the loss's parameters differ in shape from size to size."""
    shapes = [
        jax.tree.map(
            lambda leaf: leaf.shape,
            jax.eval_shape(functools.partial(loss.init, size), jax.random.key(0)),
        )
        for size in (sizes[-1], sizes[-1] + 1)
    ]
    return shapes[0] != shapes[1]


def _drawn(key: PRNGKeyArray | None, number: int, sample: int) -> Float[Array, " n"]:
    """Returns 1 for sizes that count at this step, 0 for the rest; without a key all count."""
    if key is None or not sample:
        return jnp.ones(number)
    # Factors of 0, and not fewer sizes: the program is the same at every step.
    return (jax.random.permutation(key, number) < sample).astype(jnp.float32)


def _size_of(embeddings: Any) -> int:
    """The size of an embedding's vectors: the last axis of its first leaf of floats."""
    floats = [
        leaf for leaf in jax.tree.leaves(embeddings) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return floats[0].shape[-1]


def _cut(columns: Columns, size: int, to_length_one: bool, pad_to: int = 0) -> Columns:
    """Cuts embeddings to `size` numbers, or sets the others to zero.

    A queue's and a teacher's embeddings are cut likewise.
    """

    def padded(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, pad_to - size)]) if pad_to else leaf

    def cut(embeddings: tuple[Any, ...]) -> tuple[Any, ...]:
        return jax.tree.map(padded, cut_prefix(embeddings, size, to_length_one))

    changed: dict[str, Any] = {"embeddings": cut(columns.embeddings)}
    if columns.queue is not None:
        changed["queue"] = columns.queue.replace(embeddings=cut(columns.queue.embeddings))
    if columns.teacher is not None:
        if _size_of(columns.teacher[0]) == _size_of(columns.embeddings[0]):
            changed["teacher"] = cut(columns.teacher)
    return columns.replace(**changed)


def _layer(columns: Columns, k: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda leaf: leaf[:, k], columns.layers)


def _divergence(own: Columns, k: int, temperature: float) -> LossResult:
    """Computes KL(softmax(last / t) || softmax(layer k / t)), an example's mean over its texts."""
    each = []
    for last, layer in zip(own.embeddings, _layer(own, k), strict=True):
        last, layer = dense((last, layer), "kl_temperature of adaptive_layers")
        last = jax.lax.stop_gradient(last.astype(jnp.float32))
        log_p = jax.nn.log_softmax(last / temperature)
        log_q = jax.nn.log_softmax(layer.astype(jnp.float32) / temperature)
        each.append(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
    return *mean_over_present(jnp.stack(each), own.present), {}


def _summed(
    results: Sequence[LossResult],
    factors: Float[Array, " n"],
    names: Sequence[str],
    world: World,
    metrics_of: int,
) -> LossResult:
    """Computes sum_n factor_n L_n of losses that are weighted means each.

    Metrics "loss/NAME" add up losses of one name.
    """
    weights, shares = common_weights(results, world)
    each = [values * share for (values, _, _), share in zip(results, shares, strict=True)]
    metrics = {name: m * shares[metrics_of] for name, m in results[metrics_of][2].items()}
    for name, values in zip(names, each, strict=True):
        metrics[f"loss/{name}"] = metrics.get(f"loss/{name}", 0.0) + values
    return (
        add_arrays(factor * values for factor, values in zip(factors, each, strict=True)),
        weights,
        metrics,
    )
