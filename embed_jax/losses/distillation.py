"""Losses that make a student agree with a teacher's embeddings, similarities or scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from embed_jax.errors import InputError
from embed_jax.losses.base import Target, loss, mean_over_present
from embed_jax.losses.listwise import ABSENT
from embed_jax.scores import Score, dense, find_score
from embed_jax.types import Columns, LossResult, Params, World
from embed_jax.vectors import cosine_distance, cosine_matrix


def embedding_mse_loss(
    student: Float[Array, "*n D"], teacher: Float[Array, "*n D"]
) -> Float[Array, "*n"]:
    """Mean over the dimensions of (student - teacher)^2.

    Reimers and Gurevych (2020), "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation".
    """
    return jnp.mean((student.astype(jnp.float32) - teacher.astype(jnp.float32)) ** 2, axis=-1)


@loss(needs=("teacher",), columns=(1, 0), tiled=True)
def embedding_mse(own: Columns, world: World, params: Params) -> LossResult:
    """The mean of `embedding_mse_loss` over all texts that are there: an example weighs as much as it has texts.

    Raises:
        InputError: if the teacher's embeddings are not of the student's size.

    >>> print(embedding_mse(jnp.eye(2), teacher=[jnp.ones((2, 2))]))
    [0.5 0.5]
    """
    values = embedding_mse_loss(*_both(own, "embedding_mse"))
    return *mean_over_present(values, own.present), {}


def embedding_cosine_loss(
    student: Float[Array, "*n D"], teacher: Float[Array, "*n D"]
) -> Float[Array, "*n"]:
    """1 - cos(student, teacher)."""
    return cosine_distance(student, teacher)


@loss(needs=("teacher",), columns=(1, 0), tiled=True)
def embedding_cosine(own: Columns, world: World, params: Params) -> LossResult:
    """The mean of `embedding_cosine_loss` over all texts that are there: an example weighs as much as it has texts.

    Raises:
        InputError: if the teacher's embeddings are not of the student's size.

    >>> print(embedding_cosine(jnp.eye(2), teacher=[jnp.array([[3.0, 0.0], [1.0, 1.0]])]))
    [0.     0.2929]
    """
    values = embedding_cosine_loss(*_both(own, "embedding_cosine"))
    return *mean_over_present(values, own.present), {}


def margin_mse_loss(
    student: Float[Array, "b K"], teacher: Float[Array, "b K"]
) -> Float[Array, "b K-1"]:
    """([s(q, p) - s(q, n)] - [t(q, p) - t(q, n)])^2 for each negative n.

    Hofstaetter et al. (2021), "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation".

    Args:
        student, teacher: scores s and t, the positive's first.
    """
    margin, wanted = student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:]
    return (margin - wanted) ** 2


def _margin_target(arguments: Mapping[str, Any]) -> Target | None:
    """Margins of scores between two limits are at most as large as the limits are apart."""
    limits = find_score(arguments["similarity"]).limits
    return Target(limits[0] - limits[1], limits[1] - limits[0], of_margins=True) if limits else None


def _score_target(arguments: Mapping[str, Any]) -> Target | None:
    limits = find_score(arguments["similarity"]).limits
    return Target(*limits) if limits else None


@loss(needs=("scores",), columns=(3, 0), tiled=True, targets=_margin_target)
def margin_mse(
    own: Columns, world: World, params: Params, *, similarity: str | Score = "dot"
) -> LossResult:
    """`margin_mse_loss` of an anchor's positive and its own negatives, the mean over those that are there.

    Args:
        similarity: the student's score, "dot", "cosine", or another `scores.Score`.

    Returns:
        Weight 1 for an example with an anchor, a positive and a negative.

    Raises:
        InputError: if there is not one score for each candidate.

    >>> anchor, positive, negative = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])
    >>> print(margin_mse(anchor, positive, negative, score=jnp.array([[5.0, 2.0]])))
    [4.]
    """
    student, teacher, present = _candidate_scores(own, similarity, "margin_mse")
    values, count = mean_over_present(margin_mse_loss(student.T, teacher.T).T, present[1:])
    return values, (present[0] & (count > 0.0)).astype(jnp.float32), {}


def kl_loss(
    student: Float[Array, "b K"],
    teacher: Float[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, " b"]:
    """t^2 KL(softmax(teacher / t) || softmax(student / t)) over each row's candidates.

    Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network": t^2 keeps the gradient's size.

    Args:
        student, teacher: scores.
        present: False where there is no candidate; None: all are there.
        temperature: t.
    """
    if present is not None:
        student, teacher = jnp.where(present, student, ABSENT), jnp.where(present, teacher, ABSENT)
    log_p, log_q = (
        jax.nn.log_softmax(teacher / temperature),
        jax.nn.log_softmax(student / temperature),
    )
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


@loss(needs=("scores",), columns=(3, 0), tiled=True)
def kl(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: float = 1.0,
    similarity: str | Score = "dot",
) -> LossResult:
    """The mean of `kl_loss` over the anchors, an anchor's candidates being its positive and its own negatives.

    Args:
        similarity: the student's score, "dot", "cosine", or another `scores.Score`.

    Returns:
        Weight 1 for an example with an anchor and two candidates: one alone has nothing to learn.

    Raises:
        InputError: if there is not one score for each candidate.

    >>> anchor, positive, negative = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])
    >>> print(kl(anchor, positive, negative, score=jnp.array([[5.0, 2.0]])))
    [0.1698]
    """
    student, teacher, present = _candidate_scores(own, similarity, "kl")
    values = kl_loss(student.T, teacher.T, present.T, temperature=temperature)
    return values, (jnp.sum(present.astype(jnp.float32), axis=0) > 1.0).astype(jnp.float32), {}


@loss(needs=("scores",), columns=(2, 0), tiled=True, targets=_score_target)
def score_mse(
    own: Columns, world: World, params: Params, *, similarity: str | Score = "cosine"
) -> LossResult:
    """(s(anchor, candidate) - score)^2, the mean over all candidates that are there; for pairs, `cosine_mse`.

    Args:
        similarity: the student's score, "cosine", "dot", or another `scores.Score`.

    Returns:
        An example weighs as much as it has candidates.

    Raises:
        InputError: if there is not one score for each candidate.

    >>> anchor, positive, negative = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])
    >>> print(score_mse(anchor, positive, negative, score=jnp.array([[0.7, 0.5]])))
    [0.125]
    """
    student, teacher, present = _candidate_scores(own, similarity, "score_mse")
    return *mean_over_present((student - teacher) ** 2, present), {}


@loss(needs=("teacher",), columns=(1, 0), tiled=True)
def relational(own: Columns, world: World, params: Params) -> LossResult:
    """The mean of (cos(s_i, s_j) - cos(t_i, t_j))^2 over all texts i and j of the world that are there, of all columns.

    The teacher's size need not be the student's. Similarity-preserving distillation: Tung and Mori (2019),
    "Similarity-Preserving Knowledge Distillation", with cosines in place of normalised rows.

    >>> student, teacher = jnp.eye(2), jnp.ones((2, 3))  # cosines 0 and 1 of the two texts with each other
    >>> print(relational(student, teacher=[teacher]))
    [0.5 0.5]
    """

    def texts(columns: Columns) -> Any:
        return (
            jnp.concatenate(dense(columns.embeddings, "relational")),
            jax.lax.stop_gradient(jnp.concatenate(dense(columns.teacher, "relational"))),
            columns.present.reshape(-1),
        )

    def block(rows, candidates, _):
        texts, teachers, present = candidates
        squares = jnp.stack(
            [_difference(*row, texts, teachers) ** 2 for row in zip(*rows, strict=True)]
        )
        return jnp.where(present[None, None], squares, 0.0)

    rows = tuple(own.embeddings), tuple(jax.lax.stop_gradient(own.teacher))
    number = world.total(jnp.sum(own.present.astype(jnp.float32)))
    values = world.sum(block, rows, texts) / jnp.maximum(number, 1.0)
    return *mean_over_present(values, own.present), {}


def _difference(
    student: Array, teacher: Array, students: Array, teachers: Array
) -> Float[Array, "b n"]:
    return cosine_matrix(student, students) - cosine_matrix(teacher, teachers)


def _both(own: Columns, name: str) -> tuple[Float[Array, "C b D"], Float[Array, "C b D"]]:
    """The student's and the teacher's embeddings, which must be of one size."""
    student = jnp.stack(dense(own.embeddings, name))
    teacher = jnp.stack(dense(own.teacher, f"the teacher of {name}"))
    size, teacher_size = student.shape[-1], teacher.shape[-1]
    if size != teacher_size:
        raise InputError(
            f"the teacher of the loss {name}: expected embeddings of size {size}, found {teacher_size}"
        )
    return student, jax.lax.stop_gradient(teacher)


def _candidate_scores(
    own: Columns, similarity: str | Score, name: str
) -> tuple[Array, Array, Bool[Array, "K b"]]:
    """The student's and the teacher's scores [K, b] of the candidates, columns 1 .. C - 1, and which are there."""
    candidates = own.embeddings[1:]
    if own.score.shape[1] != len(candidates):
        raise InputError(
            f"scores of the loss {name}: expected {len(candidates)} an example, one for each candidate, "
            f"found {own.score.shape[1]}"
        )
    present = own.present[:1] & own.present[1:]
    student = find_score(similarity).of_lists(own.embeddings[0], candidates)
    return student, jnp.where(present, own.score.T, 0.0), present
