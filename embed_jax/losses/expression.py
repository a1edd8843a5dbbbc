"""Reads losses from a config's `loss.name`: a name of the registry, or an expression over names.

cosent(scale=10)
info_nce(temperature=0.02, terms='qp,pq') + 0.1 * uniformity(t=2)
symmetric(triplet(distance='cosine', margin=0.2))
per_dataset(nli=info_nce(), sts=cosent())
masked(info_nce(), min_score=0.5)
matryoshka(info_nce(), dims='384,128,32')
info_nce(temperature='cosine(0.1, 0.02, 1000)') + 'linear(0, 0.1, 500)' * uniformity()
my_package.my_module:my_loss(power=2)
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from embed_jax.errors import InputError
from embed_jax.losses.base import Loss, as_loss, bind, is_number, parameters_of, settle
from embed_jax.losses.compose import masked, per_dataset, symmetric, weighted_sum
from embed_jax.losses.nested import adaptive_layers, matryoshka
from embed_jax.losses.schedule import Schedule, read_schedule, times
from embed_jax.registry import REGISTRY, lookup, unknown, with_dots

T = TypeVar("T")
COMBINATORS: dict[str, Callable[..., Loss]] = {
    "symmetric": symmetric,
    "masked": masked,
    "per_dataset": per_dataset,
    "matryoshka": matryoshka,
    "adaptive_layers": adaptive_layers,
}


def build_loss(expression: str, fields: Mapping[str, Any] | None = None) -> Loss:
    """Builds the loss that an expression of a config names.

    Its parameters are those of a single loss directly, and for a sum or `per_dataset` {"0": ...,
    "1": ...} in the order written, without entries for losses that have none.

    Args:
        expression: names of the registry, or "module:function", with arguments by name, in sums and
            in COMBINATORS; a number or a schedule in quotes may stand before `*`. It is never
            evaluated as Python.
        fields: arguments for every loss of the expression that takes them; those written in it come
            first.

    Raises:
        InputError: naming the part of the expression that cannot be used, and what is accepted.

    >>> loss = build_loss("alignment + 0.1 * uniformity(t=2)")
    >>> print(loss(jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])))
    [-0.4     0.1858]
    """
    source, own = with_dots(" ".join(expression.split()))
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = getattr(error, "msg", str(error))
        raise InputError(
            f"config.loss.name: {source!r}: {reason}; expected a loss such as 'info_nce()'"
        ) from None
    return _Reader(source, own, fields or {}).loss(tree)


def arguments_of(expression: str) -> set[str]:
    """Returns all arguments that the losses of an expression take; see `build_loss`."""
    source, own = with_dots(expression.strip())
    names = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source, mode="eval"))
        if isinstance(node, ast.Name | ast.Attribute)
    }
    losses = [lookup("loss", name) for name in names & REGISTRY["loss"].keys()]
    losses += [lookup("loss", name) for written, name in own.items() if written in names]
    return {argument for loss in losses for argument in as_loss(loss).parameters}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Losses from the syntax tree of an expression.

    Attributes:
        source: the expression, for messages.
        own: the losses that are not of the registry: "module:function" by "module.function".
        fields: arguments of all losses that take them.
    """

    source: str
    own: Mapping[str, str]
    fields: Mapping[str, Any]

    def loss(self, node: ast.expr) -> Loss:
        terms = self._terms(node)
        if len(terms) == 1 and is_number(terms[0][0], 1.0):
            return terms[0][1]
        return self._tried(node, lambda: weighted_sum(terms))

    def _terms(self, node: ast.expr) -> list[tuple[float | Schedule, Loss]]:
        """The sum's losses with their coefficients."""
        match node:
            case ast.BinOp(op=ast.Add() | ast.Sub() as sign):
                factor = 1.0 if isinstance(sign, ast.Add) else -1.0
                return self._terms(node.left) + [
                    (times(factor, c), loss) for c, loss in self._terms(node.right)
                ]
            case ast.BinOp(op=ast.Mult()):
                left, right = self._factor(node.left), self._factor(node.right)
                if left is not None and right is None:
                    return self._scaled(node, left, node.right)
                if right is not None and left is None:
                    return self._scaled(node, right, node.left)
                raise self._error(
                    node, "expected a number on one side of * and a loss on the other"
                )
            case ast.Name() | ast.Attribute() if self._is_loss(node):
                return [(1.0, self._called(node, ast.unparse(node), [], []))]
            case ast.Call() if self._is_loss(node.func):
                return [(1.0, self._called(node, ast.unparse(node.func), node.args, node.keywords))]
        raise self._error(
            node,
            "expected a loss such as info_nce(temperature=0.05), a number * a loss, or their sum",
        )

    def _scaled(
        self, node: ast.expr, factor: float | Schedule, rest: ast.expr
    ) -> list[tuple[float | Schedule, Loss]]:
        return [
            (self._tried(node, functools.partial(times, factor, c)), loss)
            for c, loss in self._terms(rest)
        ]

    def _is_loss(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) or ast.unparse(node) in self.own

    def _factor(self, node: ast.expr) -> float | Schedule | None:
        """The number, or the schedule in quotes, that a loss is multiplied by; None for a loss."""
        match node:
            case ast.Constant(value=str() as text):
                return self._tried(node, lambda: read_schedule(text))
        return _number(node)

    def _called(
        self,
        node: ast.expr,
        name: str,
        positional: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
    ) -> Loss:
        if name not in COMBINATORS and name not in REGISTRY["loss"] and name not in self.own:
            raise self._error(node, unknown("loss", name, [*REGISTRY["loss"], *COMBINATORS]))
        named = self._once(node, [(keyword.arg, keyword.value) for keyword in keywords])
        if name == "per_dataset":
            if len(positional) == 1 and isinstance(positional[0], ast.Dict) and not named:
                pairs = zip(positional[0].keys, positional[0].values, strict=True)
                named = self._once(
                    node, [(getattr(key, "value", None), value) for key, value in pairs]
                )
            elif positional:
                raise self._error(
                    node,
                    "expected losses by data set, as in per_dataset(nli=info_nce(), sts=cosent())",
                )
            losses = {dataset: self.loss(value) for dataset, value in named.items()}
            return self._tried(node, lambda: per_dataset(losses))
        arguments = {
            argument: self._literal(node, argument, value) for argument, value in named.items()
        }
        if name in COMBINATORS:
            if len(positional) != 1 or isinstance(positional[0], ast.Starred):
                raise self._error(
                    node,
                    f"expected one loss inside, as in {name}(info_nce()), found {len(positional)}",
                )
            combine, inner = COMBINATORS[name], self.loss(positional[0])
            return self._tried(
                node, lambda: combine(inner, **settle(name, parameters_of(combine), arguments))
            )
        function = self._tried(node, lambda: as_loss(lookup("loss", self.own.get(name, name))))
        parameters = function.parameters
        if positional:
            known = ", ".join(parameters) or "none"
            raise self._error(
                node,
                f"expected arguments by name, found {self._text(positional[0])}; known: {known}",
            )
        defaults = {
            argument: value for argument, value in self.fields.items() if argument in parameters
        }
        bound = self._tried(node, lambda: bind(function, **defaults | arguments))
        return bound if name in self.own else dataclasses.replace(bound, name=name)

    def _once(self, node: ast.expr, pairs: Sequence[tuple[Any, ast.expr]]) -> dict[str, ast.expr]:
        """Returns the arguments by name, no name twice."""
        named = {}
        for name, value in pairs:
            if not isinstance(name, str):
                raise self._error(node, "expected names for what is given by name")
            if name in named:
                raise self._error(node, f"expected {name} once, found it twice")
            named[name] = value
        return named

    def _literal(self, call: ast.expr, argument: str, node: ast.expr) -> Any:
        number = _number(node)
        if number is not None:
            return number
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | str):
            return node.value
        source_text = self._text(node)
        raise self._error(
            call,
            f"{argument}: expected a number, True, False or a string in quotes, found "
            f"{source_text}",
        )

    def _tried(self, node: ast.expr, make: Callable[[], T]) -> T:
        """Calls `make`; its errors name this part of the expression."""
        try:
            return make()
        except InputError as error:
            raise self._error(node, str(error)) from None

    def _error(self, node: ast.expr, message: str) -> InputError:
        return InputError(f"config.loss.name: {self._text(node)}: {message}")

    def _text(self, node: ast.expr) -> str:
        text = ast.get_source_segment(self.source, node) or ""
        for written, name in self.own.items():
            text = text.replace(written, name)
        return text


def _number(node: ast.expr) -> int | float | None:
    """Returns the number that a literal is, with or without a minus."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return None if isinstance(value, bool) else -value
        case ast.Constant(value=int() | float() as value):
            return None if isinstance(value, bool) else value
    return None
