"""Losses made of losses: weighted sums, symmetric losses, one for each data set, masked losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.base import About, Loss, bind
from embed_jax.losses.schedule import Schedule
from embed_jax.types import AnyArray, Columns, LossResult, Params, World, require_field
from embed_jax.vectors import add_arrays

AnyLoss = Loss | Callable[..., LossResult]  # a Loss, or a plain function (own, world, params)


def weighted_sum(parts: Sequence[tuple[float | Schedule, AnyLoss]]) -> Loss:
    """Makes the loss sum_k c_k L_k, where each L_k is its own weighted mean over the world.

    Metrics: the first loss's own, each other loss's as "NAME/METRIC", and each L_k as "loss/NAME"
    ("loss/NAME_2" for a second loss of that name).

    Args:
        parts: (c_k, loss), where c_k may be a schedule; parameters {"0": ..., "1": ...} in this
            order.

    Raises:
        InputError: if no number of texts an example suits all.

    >>> from embed_jax.losses import alignment, info_nce
    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(weighted_sum([(1.0, info_nce), (0.1, alignment)])(first, second))
    [0.0029 0.0586]
    """
    coefficients, losses = (
        [coefficient for coefficient, _ in parts],
        [bind(loss) for _, loss in parts],
    )

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        results = [
            loss.on_world(own, world, params.get(str(k), {})) for k, loss in enumerate(losses)
        ]
        now = [c(own.step) if isinstance(c, Schedule) else c for c in coefficients]
        weights, factors = common_weights(results, world)
        # Numbers whose means with the common weights are the L_k.
        each = [values * factor for (values, _, _), factor in zip(results, factors, strict=True)]
        metrics = {name: metric * factors[0] for name, metric in results[0][2].items()}
        for loss, (_, _, own_metrics), factor in list(zip(losses, results, factors, strict=True))[
            1:
        ]:
            for metric, entry in own_metrics.items():
                metrics[_free(f"{loss.name}/{metric}", metrics)] = entry * factor
        for loss, values in zip(losses, each, strict=True):
            metrics[_free(f"loss/{loss.name}", metrics)] = values
        return (
            add_arrays(c * values for c, values in zip(now, each, strict=True)),
            weights,
            metrics,
        )

    name = " + ".join(loss.name for loss in losses)
    about = _about(losses, _shared_columns(losses))
    return Loss(name, compute, about, of_dataset=_shared_datasets(losses))


def symmetric(loss: AnyLoss) -> Loss:
    """Makes the mean of a loss and of the same loss with anchors and positives exchanged.

    Metrics are those of the anchors' direction. Negatives stay an example's own; a queue of
    positives is the anchors'.

    Raises:
        InputError: for a loss of fewer than two texts, or of scores by candidate, which are the
            anchor's.

    >>> from embed_jax.losses import info_nce
    >>> first, second = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(symmetric(bind(info_nce, temperature=0.5))(first, second))
    [0.2847 0.4554]
    """
    loss = bind(loss)
    least, most = loss.about.columns
    if most == 1:
        raise InputError(
            f"expected a loss of two or more texts an example, found {loss.name} of one"
        )
    if "scores" in loss.about.needs:
        raise InputError(
            f"expected a loss without scores of an anchor's candidates, found {loss.name}"
        )

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        forward = loss.on_world(own, world, params)
        backward = loss.on_world(_swapped(own), world.view(_swapped), params)
        weights, factors = common_weights([forward, backward], world)
        values = 0.5 * (forward[0] * factors[0] + backward[0] * factors[1])
        return values, weights, {name: metric * factors[0] for name, metric in forward[2].items()}

    needed = dataclasses.replace(loss.about, columns=(max(least, 2), most))
    return Loss(f"symmetric({loss.name})", compute, needed, of_dataset=loss.of_dataset)


def masked(loss: AnyLoss, *, min_score: float) -> Loss:
    """Makes a loss over the examples with a score of at least `min_score`.

    Where an example has several scores the first one counts. The other examples have no loss, and
    are nobody's negatives.

    >>> from embed_jax.losses import alignment
    >>> first, second = jnp.eye(2), jnp.ones((2, 2))
    >>> print(masked(alignment, min_score=0.5)(first, second, score=jnp.array([1.0, 0.0])))
    [0.5858 0.    ]
    """
    loss = bind(loss)

    def selects(columns: Columns) -> Bool[Array, " B"]:
        if columns.score is None:
            raise InputError(
                f"config.loss.name: masked({loss.name}) needs examples with a score, found none"
            )
        return columns.score[:, 0] >= min_score

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        return _of_some(loss, selects, own, world, params)

    needed = dataclasses.replace(
        loss.about, needs=tuple(dict.fromkeys((*loss.about.needs, "score"))), queue=False
    )
    return Loss(f"masked({loss.name})", compute, needed, of_dataset=loss.of_dataset)


def per_dataset(losses: Mapping[str, AnyLoss]) -> Loss:
    """Makes each example's loss by the data set that it is from.

    That is sum_i weight_i value_i / sum_i weight_i over all of them. Examples of other data sets
    are neither rows nor negatives of a loss. A loss that takes fewer texts an example than there
    are is given the first ones. Metrics: each loss's own as "DATASET/NAME", and its value as
    "loss/DATASET"; nan in a batch without examples for it.

    Args:
        losses: by data set, which `Columns.dataset` gives as a position here; an example of any
            other number weighs 0. Parameters {"0": ..., "1": ...} in this order.

    Raises:
        InputError: for no loss, or one that tells data sets apart itself.

    >>> from embed_jax.losses import alignment
    >>> losses = {"nli": alignment, "sts": bind(alignment, alpha=1.0)}
    >>> first, second = jnp.eye(2), jnp.ones((2, 2))
    >>> print(per_dataset(losses)(first, second, dataset=jnp.array([0, 1])))
    [0.5858 0.7654]
    """
    bound = {name: bind(loss) for name, loss in losses.items()}
    for name, loss in bound.items():
        if loss.of_dataset:
            raise InputError(
                f"expected one loss for the data set {name!r}, found losses by data set"
            )
    if not bound:
        raise InputError("expected a loss for each data set, found none")

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        if own.dataset is None:
            raise InputError(
                "config.loss.name: per_dataset needs examples with their data set's number, found "
                "none"
            )
        results = []
        for number, loss in enumerate(bound.values()):

            def there(columns: Columns, number: int = number) -> Bool[AnyArray, " B"]:
                return require_field(columns.dataset) == number

            most = loss.about.columns[1]
            results.append(_of_some(loss, there, own, world, params.get(str(number), {}), most))

        all_weights = [jax.lax.stop_gradient(weights) for _, weights, _ in results]
        weights = add_arrays(all_weights)
        totals = world.total(jnp.stack([jnp.sum(each) for each in (*all_weights, weights)]))
        total_values = jnp.zeros_like(weights)
        metrics: dict[str, Array] = {}
        for number, (name, (values, _, own_metrics)) in enumerate(zip(bound, results, strict=True)):
            mine, present = own.dataset == number, totals[number] > 0.0
            total_values = jnp.where(mine, values, total_values)
            factor = jnp.where(present, _ratio(totals[-1], totals[number]), jnp.nan)
            shown = {f"loss/{name}": values} | {
                f"{name}/{metric}": entry for metric, entry in own_metrics.items()
            }
            metrics |= {
                metric: jnp.where(mine, entry, 0.0) * factor for metric, entry in shown.items()
            }
        return total_values, weights, metrics

    ranges = [loss.about.columns for loss in bound.values()]
    most = 0 if any(most == 0 for _, most in ranges) else max(most for _, most in ranges)
    columns = (max(least for least, _ in ranges), most)
    of_dataset = {name: loss.about for name, loss in bound.items()}
    needed = dataclasses.replace(_about(list(bound.values()), columns), queue=False)
    return Loss("per_dataset", compute, needed, of_dataset=of_dataset)


# ---- what several losses have in common ----------------------------------------------------------


def _about(losses: Sequence[Loss], columns: tuple[int, int]) -> About:
    """Returns the requirements of all losses together."""

    def init(dim: int, key: PRNGKeyArray) -> Params:
        made = {str(k): loss.init(dim, jax.random.fold_in(key, k)) for k, loss in enumerate(losses)}
        return {name: params for name, params in made.items() if jax.tree.leaves(params)}

    return About(
        needs=tuple(dict.fromkeys(need for loss in losses for need in loss.about.needs)),
        columns=columns,
        init=init if any(loss.about.init for loss in losses) else None,
        tiled=all(loss.about.tiled for loss in losses),
        classes=min((loss.about.classes for loss in losses if loss.about.classes), default=0),
        queue=any(loss.about.queue for loss in losses),
        prefixes=all(loss.about.prefixes for loss in losses),
        dims=next((loss.about.dims for loss in losses if loss.about.dims), ()),
        layers=_shared_layers(losses),
        fits=tuple(fit for loss in losses for fit in loss.about.fits),
    )


def _shared_columns(losses: Sequence[Loss]) -> tuple[int, int]:
    """Returns the fewest and the most texts of an example that suit all losses."""
    many = max(losses, key=lambda loss: loss.about.columns[0])
    few = min(losses, key=lambda loss: loss.about.columns[1] or float("inf"))
    least, most = many.about.columns[0], few.about.columns[1]
    if most and most < least:
        raise InputError(
            f"expected losses for equally many texts an example, found {many.name} for {least} or "
            f"more and {few.name} for at most {most}"
        )
    return least, most


def _shared_layers(losses: Sequence[Loss]) -> int:
    """Returns the number of earlier layers of those losses that have any."""
    counts = {loss.about.layers for loss in losses} - {0}
    if len(counts) > 1:
        raise InputError(
            f"expected one sample of layers for all adaptive_layers, found {sorted(counts)}"
        )
    return counts.pop() if counts else 0


def _shared_datasets(losses: Sequence[Loss]) -> Mapping[str, About]:
    """Returns the data sets that losses tell apart, the same for all that do."""
    separate = [loss for loss in losses if loss.of_dataset]
    for loss in separate[1:]:
        if loss.datasets != separate[0].datasets:
            first, second = (", ".join(nested.datasets) for nested in (separate[0], loss))
            raise InputError(
                "expected the same data sets in the same order in each per_dataset, found "
                f"{first}; {second}"
            )
    return separate[0].of_dataset if separate else {}


def common_weights(
    results: Sequence[LossResult], world: World
) -> tuple[Float[Array, " b"], list[Float[Array, " b"]]]:
    """Returns weights for several losses, and factors that keep the losses' means.

    With weights u_k of sums U_k, the common weights are w = mean_k u_k of sum W, and the factors
    are u_k W / (w U_k): 1 where all weights are equal. A mean of nothing stays 0.
    """
    each = [jax.lax.stop_gradient(weights) for _, weights, _ in results]
    common = add_arrays(each) / len(each)
    totals = world.total(jnp.stack([jnp.sum(weights) for weights in (*each, common)]))
    return common, [
        _ratio(u, common) * _ratio(totals[-1], total)
        for u, total in zip(each, totals[:-1], strict=True)
    ]


def _ratio(numerator: Float[Array, "*n"], denominator: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Divides; 0 where the denominator is 0."""
    is_zero = denominator == 0.0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, entry = 1, name
    while entry in taken:
        number, entry = number + 1, f"{name}_{number + 1}"
    return entry


# ---- columns changed -----------------------------------------------------------------------------


def _swapped(columns: Columns) -> Columns:
    """Exchanges anchors and positives."""
    others = range(2, len(columns.embeddings))
    query = {0: 1, 1: 0}.get(columns.query, columns.query)
    return columns.replace(queue=None, query=query).select([1, 0, *others])


def _of_some(
    loss: Loss,
    selects: Callable[[Columns], Bool[AnyArray, " B"]],
    own: Columns,
    world: World,
    params: Params,
    most: int = 0,
) -> LossResult:
    """Computes a loss over some of the examples, and over `most` of their texts unless it is 0."""

    def change(columns: Columns) -> Columns:
        columns = columns.select(range(len(columns.embeddings))[:most]) if most else columns
        # What a queue holds is of all examples.
        return columns.replace(present=columns.present & selects(columns)[None], queue=None)

    values, weights, metrics = loss.on_world(change(own), world.view(change), params)
    return values, jnp.where(selects(own), weights, 0.0), metrics
