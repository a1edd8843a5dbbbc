"""A loss as one object: its needs, and one function for training and for calls on plain arrays.

A loss of dense embeddings takes six lines:

    @loss()
    def pull(own, world, params, *, power: float = 2.0):
        anchors, positives = own.embeddings[:2]
        values = jnp.linalg.norm(anchors - positives, axis=-1) ** power
        weights = jnp.all(own.present[:2], axis=0).astype(jnp.float32)
        return values, weights, {}

`config.loss.name = "my_package.my_module:pull(power=1)"` trains it, and `pull(anchors, positives)`
is its value on arrays. A loss that compares an example with those of all devices asks the
`types.World`; README.md here says how.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.schedule import Schedule, read_schedule
from embed_jax.registry import unknown
from embed_jax.scores import Score
from embed_jax.types import Columns, LossResult, Params, World
from embed_jax.world import LocalWorld, make_columns

NEEDS = ("label", "score", "scores", "guide", "teacher")
# Of arguments: what is accepted, in words and as types.
KINDS: dict[str, tuple[str, tuple[type[Any], ...]]] = {
    "bool": ("True or False", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a string", (str,)),
    "str | Score": ("the name of a score, or a Score", (str, Score)),
}
# What of Columns a call on arrays accepts by name.
FIELDS = {field.name for field in dataclasses.fields(Columns)} - {"embeddings", "query"}


@dataclasses.dataclass(frozen=True)
class Target:
    """The scores of the data that a loss can fit.

    Attributes:
        least: the lowest score.
        largest: the highest score.
        of_margins: whether the limits are those of the difference between a list's first score and
            another.
    """

    least: float
    largest: float
    of_margins: bool = False


@dataclasses.dataclass(frozen=True)
class About:
    """The requirements of a loss.

    Attributes:
        needs: some of NEEDS. "label": an integer class with every example; "score": one target with
            every pair; "scores": one with every candidate; "guide", "teacher": embeddings of the
            same texts by a frozen model.
        columns: the fewest and the most texts of an example; most 0: any number.
        init: `(dim: int, key: PRNGKeyArray, **arguments) -> params`: the loss's own parameters at
            the start; it is given those of the loss's arguments, defaults included, that it takes
            by name. None: it has none.
        tiled: whether its memory stays linear in the batch when the world is tiled or a ring.
        queue: whether positives of earlier batches (`Columns.queue`) are further negatives.
        classes: labels must be below this number; 0: any. With its arguments settled, the loss's
            `num_labels`.
        prefixes: whether it compares several prefixes of the embeddings in one pass
            (`Columns.prefixes`).
        dims: the sizes to which embeddings trained with it may be cut; empty: they were trained as
            a whole.
        layers: how many earlier layers' embeddings it is given a step (`Columns.layers`); -1: all
            of them.
        positive: arguments that must be more than 0.
        targets: `settled arguments -> Target or None`: the scores that it can fit; None: any.
        fits: with the arguments settled, the Target of each loss that has one.
    """

    needs: tuple[str, ...] = ()
    columns: tuple[int, int] = (2, 0)
    init: Callable[..., Params] | None = None
    tiled: bool = False
    classes: int = 0
    queue: bool = False
    prefixes: bool = False
    dims: tuple[int, ...] = ()
    layers: int = 0
    positive: tuple[str, ...] = ()
    targets: Callable[[Mapping[str, Any]], Target | None] | None = None
    fits: tuple[Target, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss: called on arrays it gives a value for each example; training calls `on_world`.

    Attributes:
        name: what metrics call it.
        compute: `(own, world, params, **arguments) -> (values [b], weights [b], metrics)`.
        about: what it needs; with its arguments settled, its `init` is `(dim, key) -> params`, or
            None.
        parameters: the arguments that it still takes.
        of_dataset: what the loss of each data set needs, by the data set's name, in the order of
            their numbers; empty if it is one loss for all.
    """

    name: str
    compute: Callable[..., LossResult]
    about: About = About()
    parameters: Mapping[str, inspect.Parameter] = dataclasses.field(default_factory=dict)
    of_dataset: Mapping[str, About] = dataclasses.field(default_factory=dict)

    def on_world(self, own: Columns, world: World, params: Params, **arguments: Any) -> LossResult:
        """Computes values and weights of a device's own examples among those of the world.

        The third result is metrics by example.
        """
        return self.compute(own, world, params, **arguments)

    def __call__(
        self, *embeddings: Any, params: Params | None = None, **keywords: Any
    ) -> Float[Array, " B"]:
        """Computes the value of each example, by the same function that training runs.

        It is 0 for an example that does not count.

        Args:
            embeddings: those of a column each: anchors, positives, negatives. `[B, D]`, or what the
                score compares.
            params: the loss's own parameters; None: as they start.
            keywords: the loss's arguments, and what it needs of the examples: `label` [B], `score`
                [B] or [B, K], `guide` and `teacher` (one array for each column), `present` [C, B],
                or another field of `types.Columns`.

        Raises:
            InputError: for an argument that the loss does not take, or what it needs and is not
                given.
        """
        if not embeddings or isinstance(embeddings[0], Columns):
            raise InputError(
                f"{self.name}: expected embeddings, as in {self.name}(anchors, positives); columns "
                "go to .on_world"
            )
        least, most = self.about.columns
        if len(embeddings) < least or most and len(embeddings) > most:
            accepted = (
                f"{least} or more"
                if not most
                else str(least)
                if least == most
                else f"{least} to {most}"
            )
            raise InputError(f"{self.name}: expected {accepted} columns, found {len(embeddings)}")
        fields = {name: keywords.pop(name) for name in FIELDS & keywords.keys()}
        for need in self.about.needs:
            if fields.get("score" if need == "scores" else need) is None:
                raise InputError(f"{self.name}: needs {'score' if need == 'scores' else need}=")
        if "score" in fields:
            score = jnp.asarray(fields["score"])
            fields["score"] = score[:, None] if score.ndim == 1 else score
        own = make_columns(embeddings, **fields)
        settled = bind(self, **keywords)
        if params is None:
            dim = jax.tree.leaves(embeddings[0])[0].shape[-1]
            params = settled.init(dim, jax.random.key(0))
        values, weights, _ = settled.on_world(own, LocalWorld(own), params)
        return jnp.where(weights > 0.0, values, 0.0)

    def init(self, dim: int, key: PRNGKeyArray) -> Params:
        """Makes the loss's own parameters at the start for embeddings of size `dim`.

        {} if it has none.
        """
        settled = bind(self) if self.parameters else self
        return settled.about.init(dim, key) if settled.about.init else {}

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets' names; `Columns.dataset` is a position among them."""
        return tuple(self.of_dataset)


def loss(
    *,
    needs: tuple[str, ...] = (),
    columns: tuple[int, int] = (2, 0),
    init: Callable[..., Params] | None = None,
    tiled: bool = False,
    queue: bool = False,
    classes: int = 0,
    prefixes: bool = False,
    positive: tuple[str, ...] = (),
    targets: Callable[[Mapping[str, Any]], Target | None] | None = None,
) -> Callable[[Callable[..., LossResult]], Loss]:
    """Makes a `Loss` of a function `(own, world, params, *, arguments ...)`.

    The function returns (values, weights, metrics). See `About` for the arguments here.
    """
    about = About(
        tuple(needs),
        columns,
        init,
        tiled,
        classes,
        queue,
        prefixes,
        positive=positive,
        targets=targets,
    )

    def make(function: Callable[..., LossResult]) -> Loss:
        made = Loss(function.__name__, function, about, parameters_of(function))
        # Tools that show a function's docstring and arguments show the loss's.
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, attribute):
                object.__setattr__(made, attribute, getattr(function, attribute))
        object.__setattr__(made, "__wrapped__", function)
        texts = inspect.Parameter("embeddings", inspect.Parameter.VAR_POSITIONAL)
        params = inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY, default=None)
        fields = inspect.Parameter("fields", inspect.Parameter.VAR_KEYWORD)
        signature = inspect.Signature([texts, params, *made.parameters.values(), fields])
        object.__setattr__(made, "__signature__", signature)
        return made

    return make


def as_loss(function: Loss | Callable[..., LossResult]) -> Loss:
    """Makes a loss that needs nothing but embeddings of a plain function; a Loss is returned."""
    function = getattr(function, "__self__", function)  # a loss's `on_world` is the loss
    if isinstance(function, Loss):
        return function
    name = getattr(function, "__name__", type(function).__name__)
    return Loss(name, function, About(), parameters_of(function))


def bind(function: Loss | Callable[..., LossResult], /, **arguments: Any) -> Loss:
    """Returns a loss with its arguments settled.

    Args:
        function: a loss, or a plain function `(own, world, params, ...)`.
        arguments: of the loss; those left out keep their defaults. A number may be a schedule, see
            `schedule`.

    Raises:
        InputError: for an argument that the loss does not take, of the wrong type, or missing.
    """
    if isinstance(function, functools.partial):
        arguments = {**function.keywords, **arguments}
        function = function.func
    chosen = as_loss(function)
    settled = settle(chosen.name, chosen.parameters, arguments, schedules=True)
    if not chosen.parameters and chosen.about.targets is None:
        return chosen
    about = chosen.about
    for name in about.positive:
        value = settled[name]
        ends = (value.start, value.end) if isinstance(value, Schedule) else (value,)
        if not min(ends) > 0:
            raise InputError(f"{name}: expected more than 0, found {min(ends)}")
    init = about.init
    if init is not None:
        init = _settled_init(init, settled)
    target = about.targets(settled) if about.targets else None
    about = dataclasses.replace(
        about,
        init=init,
        classes=settled.get("num_labels", about.classes),
        targets=None,
        fits=(target,) if target else (),
    )
    compute = chosen.compute
    if any(isinstance(value, Schedule) for value in settled.values()):
        compute = _at_step(compute)
    return Loss(chosen.name, functools.partial(compute, **settled), about)


def _at_step(compute: Callable[..., LossResult]) -> Callable[..., LossResult]:
    """Makes a loss whose arguments may be schedules, read at the step."""

    def computed(own: Columns, world: World, params: Params, **arguments: Any) -> LossResult:
        now = {
            name: value(own.step) if isinstance(value, Schedule) else value
            for name, value in arguments.items()
        }
        return compute(own, world, params, **now)

    return computed


def _settled_init(init: Callable[..., Params], settled: Mapping[str, Any]) -> Callable[..., Params]:
    taken = {name: settled[name] for name in inspect.signature(init).parameters if name in settled}
    followed = [name for name, value in taken.items() if isinstance(value, Schedule)]
    start = {
        name: value.start if isinstance(value, Schedule) else value for name, value in taken.items()
    }
    made = functools.partial(init, **start)
    if followed and jax.tree.leaves(jax.eval_shape(functools.partial(made, 2), jax.random.key(0))):
        raise InputError(f"{followed[0]}: it is learnt, and so follows no schedule")
    return made


def parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the arguments by name of a loss's function, which a config may give."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def settle(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    settings: Mapping[str, Any],
    schedules: bool = False,
) -> dict[str, Any]:
    """Checks arguments and adds the defaults of those left out.

    Args:
        name: the function's name in errors.
        parameters: the arguments that it takes.
        settings: the arguments that are set.
        schedules: whether a number may be a schedule, written as text or made.
    """
    settled: dict[str, Any] = {}
    for argument, value in settings.items():
        if not parameters:
            raise InputError(f"{name} takes no arguments by name, found {argument!r}")
        if argument not in parameters:
            raise InputError(unknown(f"argument of {name}", argument, parameters))
        parameter = parameters[argument]
        kind = getattr(parameter.annotation, "__name__", parameter.annotation)
        kind = kind if kind in KINDS else type(parameter.default).__name__
        if schedules and kind == "float" and isinstance(value, str) and "(" in value:
            value = read_schedule(value)
        if schedules and kind == "float" and isinstance(value, Schedule):
            settled[argument] = value
            continue
        words, types = KINDS.get(kind, ("anything", (object,)))
        if not isinstance(value, types) or isinstance(value, bool) and kind in ("int", "float"):
            raise InputError(f"{argument}: expected {words}, found {value!r}")
        settled[argument] = value if kind != "float" else float(value)
    for argument, parameter in parameters.items():
        if argument not in settled and parameter.default is parameter.empty:
            raise InputError(f"{name} needs the argument {argument}")
        settled.setdefault(argument, parameter.default)
    return settled


def is_number(argument: Any, number: float) -> bool:
    """Tells whether an argument is this number at every step; a schedule is not."""
    return isinstance(argument, int | float) and argument == number


def mean_over_present(
    values: Float[Array, "C b"], present: Bool[Array, "C b"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Computes each example's mean over those of its texts that are there, and their number.

    0 and 0 without any.
    """
    count = jnp.sum(present.astype(jnp.float32), axis=0)
    return jnp.sum(jnp.where(present, values, 0.0), axis=0) / jnp.maximum(count, 1.0), count
