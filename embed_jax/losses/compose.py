"""Losses made of losses: with their arguments settled, in weighted sums, symmetric, one a data set, masked."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.base import About, about
from embed_jax.registry import unknown
from embed_jax.types import BY_COLUMN, Columns, LossResult, Params, World

KINDS = {  # of arguments: what is accepted, in words and as types
    "bool": ("True or False", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a string", (str,)),
}


@dataclasses.dataclass(frozen=True)
class LossFunction:
    """A loss whose arguments are settled: `(own, world, params) -> (values [b], weights [b], metrics)`.

    Attributes:
        name: what metrics call it.
        compute: the function itself.
        about: what it needs; its `init` is `(dim, key) -> params`, or None.
        of_dataset: what the loss of each data set needs, by the data set's name, in the order of their numbers; empty
            if it is one loss for all.
    """

    name: str
    compute: Callable[[Columns, World, Params], LossResult]
    about: About
    of_dataset: Mapping[str, About] = dataclasses.field(default_factory=dict)

    def __call__(self, own: Columns, world: World, params: Params) -> LossResult:
        return self.compute(own, world, params)

    def init(self, dim: int, key: PRNGKeyArray) -> Params:
        """The loss's own parameters at the start for embeddings of size `dim`; {} if there are none."""
        return self.about.init(dim, key) if self.about.init else {}

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets' names; `Columns.dataset` is a position among them."""
        return tuple(self.of_dataset)


Loss = (
    LossFunction | Callable[..., LossResult]
)  # a LossFunction, or a loss as registered, with its default arguments


def bind(loss: Loss, /, **arguments: Any) -> LossFunction:
    """A loss with its arguments settled.

    Args:
        arguments: of the loss; those left out keep their defaults.

    Raises:
        InputError: for an argument that the loss does not take, of the wrong type, or missing.
    """
    if isinstance(loss, functools.partial):
        loss, arguments = loss.func, {**loss.keywords, **arguments}
    if isinstance(loss, LossFunction):
        settle(loss.name, {}, arguments)
        return loss
    settled = settle(loss.__name__, parameters_of(loss), arguments)
    init = about(loss).init
    if init is not None:
        init = functools.partial(
            init, **{name: settled[name] for name in _names(init) if name in settled}
        )
    compute = functools.partial(loss, **settled)
    classes = settled.get("num_labels", about(loss).classes)
    settled_about = dataclasses.replace(about(loss), init=init, classes=classes)
    return LossFunction(loss.__name__, compute, settled_about)


def weighted_sum(parts: Sequence[tuple[float, Loss]]) -> LossFunction:
    """sum_k c_k L_k, where each L_k is its own weighted mean over the world.

    Metrics: the first loss's own, and each L_k as "loss/NAME" ("loss/NAME_2" where there is one of that name).

    Args:
        parts: (c_k, loss); parameters {"0": ..., "1": ...} in this order.

    Raises:
        InputError: if no number of texts an example suits all.
    """
    coefficients, losses = (
        [coefficient for coefficient, _ in parts],
        [bind(loss) for _, loss in parts],
    )

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        results = [loss(own, world, params.get(str(k), {})) for k, loss in enumerate(losses)]
        weights, factors = common_weights(results, world)
        # Numbers whose means with the common weights are the L_k.
        each = [values * factor for (values, _, _), factor in zip(results, factors, strict=True)]
        metrics = {name: metric * factors[0] for name, metric in results[0][2].items()}
        for loss, values in zip(losses, each, strict=True):
            metrics[_free(f"loss/{loss.name}", metrics)] = values
        return (
            sum(c * values for c, values in zip(coefficients, each, strict=True)),
            weights,
            metrics,
        )

    name = " + ".join(loss.name for loss in losses)
    return LossFunction(
        name, compute, _about(losses, _shared_columns(losses)), _shared_datasets(losses)
    )


def symmetric(loss: Loss) -> LossFunction:
    """The mean of a loss and of the same loss with anchors and positives in each other's place.

    Metrics are those of the anchors' direction. Negatives stay an example's own; a queue of positives is the anchors'.

    Raises:
        InputError: for a loss of fewer than two texts, or of scores by candidate, which are the anchor's.
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
        forward = loss(own, world, params)
        backward = loss(_swapped(own), world.view(_swapped), params)
        weights, factors = common_weights([forward, backward], world)
        values = 0.5 * (forward[0] * factors[0] + backward[0] * factors[1])
        return values, weights, {name: metric * factors[0] for name, metric in forward[2].items()}

    needed = dataclasses.replace(loss.about, columns=(max(least, 2), most))
    return LossFunction(f"symmetric({loss.name})", compute, needed, loss.of_dataset)


def masked(loss: Loss, *, min_score: float) -> LossFunction:
    """A loss over the examples with a score (the first, where there are several) of at least `min_score`.

    The others count nothing: they have no loss, and nobody has them as negatives.
    """
    loss = bind(loss)

    def kept(columns: Columns) -> Bool[Array, " B"]:
        if columns.score is None:
            raise InputError(
                f"config.loss.name: masked({loss.name}) needs examples with a score, found none"
            )
        return columns.score[:, 0] >= min_score

    def compute(own: Columns, world: World, params: Params) -> LossResult:
        return _of_some(loss, kept, own, world, params)

    needed = dataclasses.replace(
        loss.about, needs=tuple(dict.fromkeys((*loss.about.needs, "score"))), queue=False
    )
    return LossFunction(f"masked({loss.name})", compute, needed, loss.of_dataset)


def per_dataset(losses: Mapping[str, Loss]) -> LossFunction:
    """Each example's loss by the data set that it is from: sum_i weight_i value_i / sum_i weight_i over all of them.

    Examples of other data sets are neither rows nor negatives of a loss. A loss that takes at most so many texts an
    example is given the first ones. Metrics: each loss's own as "DATASET/NAME", and its value as "loss/DATASET"; nan in
    a batch without examples for it.

    Args:
        losses: by data set, which `Columns.dataset` gives as a position here; an example of any other number weighs 0.
            Parameters {"0": ..., "1": ...} in this order.

    Raises:
        InputError: for no loss, or one that tells data sets apart itself.
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
                "config.loss.name: per_dataset needs examples with their data set's number, found none"
            )
        results = []
        for number, loss in enumerate(bound.values()):

            def there(columns: Columns, number: int = number) -> Bool[Array, " B"]:
                return columns.dataset == number

            most = loss.about.columns[1]
            results.append(_of_some(loss, there, own, world, params.get(str(number), {}), most))

        all_weights = [jax.lax.stop_gradient(weights) for _, weights, _ in results]
        weights = sum(all_weights)
        totals = world.total(jnp.stack([jnp.sum(each) for each in (*all_weights, weights)]))
        total_values, metrics = jnp.zeros_like(weights), {}
        for number, (name, (values, _, own_metrics)) in enumerate(zip(bound, results, strict=True)):
            mine, present = own.dataset == number, totals[number] > 0.0
            total_values = jnp.where(mine, values, total_values)
            factor = jnp.where(present, _ratio(totals[-1], totals[number]), jnp.nan)
            shown = {f"loss/{name}": values} | {
                f"{name}/{metric}": found for metric, found in own_metrics.items()
            }
            metrics |= {
                metric: jnp.where(mine, found, 0.0) * factor for metric, found in shown.items()
            }
        return total_values, weights, metrics

    ranges = [loss.about.columns for loss in bound.values()]
    most = 0 if any(most == 0 for _, most in ranges) else max(most for _, most in ranges)
    columns = (max(least for least, _ in ranges), most)
    of_dataset = {name: loss.about for name, loss in bound.items()}
    needed = dataclasses.replace(_about(list(bound.values()), columns), queue=False)
    return LossFunction("per_dataset", compute, needed, of_dataset)


# ---- what several losses have in common ----------------------------------------------------------------------


def _about(losses: Sequence[LossFunction], columns: tuple[int, int]) -> About:
    """What all losses together need."""

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
    )


def _shared_columns(losses: Sequence[LossFunction]) -> tuple[int, int]:
    """The fewest and the most texts of an example that suit all losses."""
    many = max(losses, key=lambda loss: loss.about.columns[0])
    few = min(losses, key=lambda loss: loss.about.columns[1] or float("inf"))
    least, most = many.about.columns[0], few.about.columns[1]
    if most and most < least:
        raise InputError(
            f"expected losses for equally many texts an example, found {many.name} for {least} or more "
            f"and {few.name} for at most {most}"
        )
    return least, most


def _shared_layers(losses: Sequence[LossFunction]) -> int:
    """How many earlier layers those losses have that have any."""
    found = {loss.about.layers for loss in losses} - {0}
    if len(found) > 1:
        raise InputError(
            f"expected one sample of layers for all adaptive_layers, found {sorted(found)}"
        )
    return found.pop() if found else 0


def _shared_datasets(losses: Sequence[LossFunction]) -> Mapping[str, About]:
    """The data sets that losses tell apart, which must be the same for all that do."""
    found = [loss for loss in losses if loss.of_dataset]
    for loss in found[1:]:
        if loss.datasets != found[0].datasets:
            first, second = (", ".join(one.datasets) for one in (found[0], loss))
            raise InputError(
                f"expected the same data sets in the same order in each per_dataset, found {first}; {second}"
            )
    return found[0].of_dataset if found else {}


def common_weights(
    results: Sequence[LossResult], world: World
) -> tuple[Float[Array, " b"], list[Float[Array, " b"]]]:
    """Weights for several losses, and what their numbers are multiplied by to have the same means with those.

    With weights u_k of sums U_k, the common weights are w = mean_k u_k of sum W, and the factors are u_k W / (w U_k):
    1 where all weights are equal. A mean of nothing stays 0.
    """
    each = [jax.lax.stop_gradient(weights) for _, weights, _ in results]
    common = sum(each) / len(each)
    totals = world.total(jnp.stack([jnp.sum(weights) for weights in (*each, common)]))
    return common, [
        _ratio(u, common) * _ratio(totals[-1], total)
        for u, total in zip(each, totals[:-1], strict=True)
    ]


def _ratio(numerator: Float[Array, "*n"], denominator: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """0 where the denominator is."""
    is_zero = denominator == 0.0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, found = 1, name
    while found in taken:
        number, found = number + 1, f"{name}_{number + 1}"
    return found


# ---- columns changed -----------------------------------------------------------------------------------------


def _by_column(columns: Columns, change: Callable[[Array], Array]) -> Columns:
    leaves = {name: getattr(columns, name) for name in BY_COLUMN}
    return columns.replace(
        **{name: change(leaf) for name, leaf in leaves.items() if leaf is not None}
    )


def _swapped(columns: Columns) -> Columns:
    """Anchors and positives in each other's place."""
    return _by_column(
        columns.replace(queue=None), lambda leaf: jnp.concatenate([leaf[1:2], leaf[:1], leaf[2:]])
    )


def _of_some(
    loss: LossFunction,
    kept: Callable[[Columns], Bool[Array, " B"]],
    own: Columns,
    world: World,
    params: Params,
    most: int = 0,
) -> LossResult:
    """A loss over some of the examples and, if `most` is not 0, over so many of their texts."""

    def change(columns: Columns) -> Columns:
        columns = _by_column(columns, lambda leaf: leaf[:most]) if most else columns
        # What a queue holds is of all examples.
        return columns.replace(present=columns.present & kept(columns)[None], queue=None)

    values, weights, metrics = loss(change(own), world.view(change), params)
    return values, jnp.where(kept(own), weights, 0.0), metrics


# ---- arguments -----------------------------------------------------------------------------------------------


def _names(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments that a config may give."""
    found = inspect.signature(function).parameters
    return {
        name: parameter
        for name, parameter in found.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def settle(
    name: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments, defaults included, of the types that `name` declares."""
    settled = {}
    for argument, value in given.items():
        if not parameters:
            raise InputError(f"{name} takes no arguments by name, found {argument!r}")
        if argument not in parameters:
            raise InputError(unknown(f"argument of {name}", argument, parameters))
        parameter = parameters[argument]
        kind = getattr(parameter.annotation, "__name__", parameter.annotation)
        kind = kind if kind in KINDS else type(parameter.default).__name__
        words, types = KINDS.get(kind, ("anything", (object,)))
        if not isinstance(value, types) or isinstance(value, bool) and kind in ("int", "float"):
            raise InputError(f"{argument}: expected {words}, found {value!r}")
        settled[argument] = float(value) if kind == "float" else value
    for argument, parameter in parameters.items():
        if argument not in settled and parameter.default is parameter.empty:
            raise InputError(f"{name} needs the argument {argument}")
        settled.setdefault(argument, parameter.default)
    return settled
