"""Functions of lists of scores, and how they train embeddings.

Such a function is `(scores [b, K], labels [b, K], present [b, K], **arguments) -> ListValues`. It
does not ask where the scores come from: from embeddings by a `scores.Score`, or from the logits of
a model that reads both texts. `on_candidates` makes a `Loss` of it, for the registry.

What stands where a candidate is not present counts nowhere, also infinite or not a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from embed_jax.errors import InputError
from embed_jax.losses.base import Loss, Target, loss, mean_over_present, parameters_of
from embed_jax.scores import Score, find_score
from embed_jax.types import Columns, LossResult, Params, World, require_field

ABSENT = -1e30  # the logit of a candidate that is not there
ON_EMBEDDINGS = """\
For embeddings, a list is an anchor's own candidates: the columns after its own."""
ARGUMENTS = {
    "similarity": 'compares an anchor with its candidates, "cosine", "dot", or another Score.',
    "temperature": "divides these scores.",
}


class ListValues(NamedTuple):
    """The loss of each list, and how much the list counts.

    A list of weight 0 has nothing to learn from, and its value is finite.

    Sums of `values * weights` and of `weights` may be taken over groups and devices before they are
    divided, so that a batch has the same gradient however it is split.
    """

    values: Float[Array, " b"]
    weights: Float[Array, " b"]

    def mean(self) -> Float[Array, ""]:
        """The loss of the batch: sum(values * weights) / sum(weights), 0 if nothing counts."""
        total = jnp.sum(self.weights)
        return jnp.sum(self.values * self.weights) / jnp.where(total > 0.0, total, 1.0)


ListLoss = Callable[..., ListValues]


def read_lists(
    scores: Num[Array, "b K"], labels: Num[Array, "b K"], present: Bool[Array, "b K"] | None
) -> tuple[Float[Array, "b K"], Float[Array, "b K"], Bool[Array, "b K"]]:
    """Returns scores and labels in float32, 0 where there is no candidate, and which are there."""
    if present is None:
        present = jnp.ones(scores.shape, bool)
    scores, labels = (
        jnp.where(present, array.astype(jnp.float32), 0.0) for array in (scores, labels)
    )
    return scores, labels, present


def mean_of_lists(values: Float[Array, "b K"], present: Bool[Array, "b K"]) -> ListValues:
    """Each list's mean over its candidates, with their number as its weight."""
    return ListValues(*mean_over_present(values.T, present.T))


def some_candidates(present: Bool[Array, "b K"], least: int = 1) -> Float[Array, " b"]:
    """1 for a list of at least `least` candidates, else 0."""
    return (jnp.sum(present.astype(jnp.int32), axis=1) >= least).astype(jnp.float32)


def log_softmax(
    scores: Float[Array, "b K"], present: Bool[Array, "b K"] | None = None
) -> Float[Array, "b K"]:
    """log softmax over the candidates of each list, 0 where a candidate is absent."""
    if present is None:
        return jax.nn.log_softmax(scores)
    return jnp.where(present, jax.nn.log_softmax(jnp.where(present, scores, ABSENT)), 0.0)


def ranks(values: Float[Array, "b K"], present: Bool[Array, "b K"]) -> Float[Array, "b K"]:
    """The rank of each candidate in its list, 1 for the largest value.

    Equal values have ranks in the order in which they stand; absent candidates come last.
    """
    order = jnp.argsort(jnp.where(present, values, -jnp.inf), stable=True, descending=True)
    return jnp.argsort(order).astype(jnp.float32) + 1.0


def on_candidates(
    function: ListLoss,
    *,
    similarity: str = "cosine",
    temperature: float | None = 0.05,
    columns: tuple[int, int] = (3, 0),
    positive: tuple[str, ...] = (),
    targets: Callable[[Mapping[str, Any]], Target | None] | None = None,
) -> Loss:
    """Makes a loss of embeddings of a function of lists.

    The labels are the data's scores of the candidates.

    Args:
        function: named NAME_loss for the loss NAME, which takes its arguments by name and has its
            docstring, where "Args:" gets those below.
        similarity: the default of the argument `similarity`, by which the scores are made.
        temperature: the default of the argument `temperature`, which divides the scores; None: the
            loss has no such argument, or `function` has its own.
        columns: see `About`.
        positive: see `About`.
        targets: see `About`.
    """
    name = function.__name__.removesuffix("_loss")
    defaults: dict[str, tuple[str | float, str]] = {"similarity": (similarity, "str | Score")}
    if temperature is not None:
        defaults["temperature"] = (temperature, "float")
    parameters = parameters_of(function) | {
        argument: inspect.Parameter(
            argument, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for argument, (default, annotation) in defaults.items()
    }

    def compute(
        own: Columns,
        world: World,
        params: Params,
        *,
        similarity: str | Score = similarity,
        **arguments: Any,
    ) -> LossResult:
        scores, labels, present = scores_of_candidates(own, world, similarity, name)
        if temperature is not None:
            scores = scores / arguments.pop("temperature", temperature)
        return *function(scores, labels, present, **arguments), {}

    summary, *details = (inspect.getdoc(function) or "").split("\n\n")
    described = "".join(f"\n    {argument}: {ARGUMENTS[argument]}" for argument in defaults)
    details = [each + described if each.startswith("Args:") else each for each in details]
    compute.__name__ = compute.__qualname__ = name
    compute.__module__ = function.__module__
    compute.__doc__ = "\n\n".join([summary, ON_EMBEDDINGS, *details])
    compute.__dict__["__signature__"] = inspect.signature(compute).replace(
        parameters=[
            inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for argument in ("own", "world", "params")
        ]
        + list(parameters.values())
    )
    made = loss(needs=("scores",), columns=columns, tiled=True, positive=positive, targets=targets)
    return made(compute)


def scores_of_candidates(
    own: Columns, world: World, similarity: str | Score, name: str
) -> tuple[Float[Array, "b K"], Float[Array, "b K"], Bool[Array, "b K"]]:
    """Returns the scores of each anchor with its own candidates, the data's, and which are there.

    Raises:
        InputError: if there is not one score of the data for each candidate.
    """
    candidates, labels = own.embeddings[1:], require_field(own.score)
    if labels.shape[1] != len(candidates):
        raise InputError(
            f"scores of the loss {name}: expected {len(candidates)} an example, one for each "
            f"candidate, found {labels.shape[1]}"
        )
    present = (own.present[:1] & own.present[1:]).T
    score = find_score(similarity)
    queries = score.in_world(own, world)[0].embeddings[0]
    scores = score.of_lists(queries, candidates).T
    return scores, jnp.where(present, labels, 0.0), present
