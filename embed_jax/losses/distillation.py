"""Losses that make a student agree with a teacher's embeddings, similarities or scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.losses.base import Target, loss, mean_over_present
from embed_jax.losses.candidates import (
    ListValues,
    log_softmax,
    mean_of_lists,
    on_candidates,
    read_lists,
    some_candidates,
)
from embed_jax.losses.schedule import Schedule
from embed_jax.registry import unknown
from embed_jax.scores import dense, find_score
from embed_jax.types import AnyArray, Columns, LossResult, Number, Params, World, require_field
from embed_jax.vectors import cosine_distance, cosine_matrix

NORMALIZATIONS = ("none", "min_max", "z_score")


def project_student(
    student: Float[Array, "*n D"], params: Params
) -> Float[Array, "*n D"] | Float[Array, "*n T"]:
    """Computes x W + b of a learnt projection, or x where there are no parameters."""
    if not params:
        return student
    projected = jnp.matmul(student.astype(jnp.float32), params["kernel"], precision="highest")
    return projected + jnp.broadcast_to(params["bias"], projected.shape)


def init_projection(dim: int, key: PRNGKeyArray, projection: int) -> Params:
    """Returns a random kernel [D, T] that keeps lengths on average and a bias of zeros.

    {} for size 0.

    Args:
        dim: D, the student's size.
        key: of the random kernel.
        projection: T, the teacher's size.
    """
    if projection < 0:
        raise InputError(
            f"projection: expected the teacher's size, or 0 for no projection, found {projection}"
        )
    if not projection:
        return {}
    kernel = jax.random.normal(key, (dim, projection)) / jnp.sqrt(projection)
    return {"kernel": kernel, "bias": jnp.zeros(projection)}


def embedding_mse_loss(
    student: Float[Array, "*n D"], teacher: Float[Array, "*n D"]
) -> Float[Array, "*n"]:
    """Mean over the dimensions of (student - teacher)^2.

    Reimers and Gurevych (2020), "Making Monolingual Sentence Embeddings Multilingual using
    Knowledge Distillation".

    >>> print(embedding_mse_loss(jnp.eye(2), jnp.ones((2, 2))))
    [0.5 0.5]
    """
    return jnp.mean((student.astype(jnp.float32) - teacher.astype(jnp.float32)) ** 2, axis=-1)


@loss(needs=("teacher",), columns=(1, 0), tiled=True, init=init_projection)
def embedding_mse(own: Columns, world: World, params: Params, *, projection: int = 0) -> LossResult:
    """Computes the mean of `embedding_mse_loss` over all texts that are there.

    An example weighs as much as it has texts.

    Args:
        projection: the teacher's size, which a learnt linear map takes the student's embeddings to.
            The map is a parameter of the loss, so that the saved model is without it. 0: no map,
            for embeddings of one size.

    Raises:
        InputError: if the (projected) embeddings are not of the teacher's size.

    >>> print(embedding_mse(jnp.eye(2), teacher=[jnp.ones((2, 2))]))
    [0.5 0.5]
    """
    values = embedding_mse_loss(*_both(own, params, "embedding_mse"))
    return *mean_over_present(values, own.present), {}


def embedding_cosine_loss(
    student: Float[Array, "*n D"], teacher: Float[Array, "*n D"]
) -> Float[Array, "*n"]:
    """1 - cos(student, teacher).

    >>> print(embedding_cosine_loss(jnp.eye(2), jnp.array([[3.0, 0.0], [1.0, 1.0]])))
    [0.     0.2929]
    """
    return cosine_distance(student, teacher)


@loss(needs=("teacher",), columns=(1, 0), tiled=True, init=init_projection)
def embedding_cosine(
    own: Columns, world: World, params: Params, *, projection: int = 0
) -> LossResult:
    """Computes the mean of `embedding_cosine_loss` over all texts that are there.

    An example weighs as much as it has texts.

    Args:
        projection: the teacher's size, which a learnt linear map takes the student's embeddings to.
            The map is a parameter of the loss, so that the saved model is without it. 0: no map,
            for embeddings of one size.

    Raises:
        InputError: if the (projected) embeddings are not of the teacher's size.

    >>> print(embedding_cosine(jnp.eye(2), teacher=[jnp.array([[3.0, 0.0], [1.0, 1.0]])]))
    [0.     0.2929]
    """
    values = embedding_cosine_loss(*_both(own, params, "embedding_cosine"))
    return *mean_over_present(values, own.present), {}


def normalize_scores(
    scores: Float[AnyArray, "b K"],
    present: Bool[AnyArray, "b K"] | None = None,
    *,
    normalization: str = "none",
) -> Float[Array, "b K"]:
    """Puts each list of scores on one scale, whatever the scale of the model that gave them.

    Args:
        scores: scores, a row for each list.
        present: False where there is no candidate, whose score is then 0; None: all are there.
        normalization: "min_max": (s - min) / (max - min); "z_score": (s - mean) / standard
            deviation, which divides by the number of candidates; "none". A list of equal scores
            becomes zeros.

    Raises:
        InputError: for another normalization.

    >>> print(normalize_scores(jnp.array([[1.0, 3.0, 5.0]]), normalization="min_max"))
    [[0.  0.5 1. ]]
    """
    if normalization not in NORMALIZATIONS:
        raise InputError(unknown("normalization of scores", normalization, NORMALIZATIONS))
    if normalization == "none":
        return jnp.asarray(scores)
    scores = scores.astype(jnp.float32)
    if present is None:
        present = jnp.ones(scores.shape, bool)
    if normalization == "min_max":
        start = jnp.min(scores, axis=1, keepdims=True, where=present, initial=jnp.inf)
        scale = jnp.max(scores, axis=1, keepdims=True, where=present, initial=-jnp.inf) - start
    else:
        count = jnp.maximum(jnp.sum(present.astype(jnp.float32), axis=1, keepdims=True), 1.0)
        start = jnp.sum(jnp.where(present, scores, 0.0), axis=1, keepdims=True) / count
        squares = jnp.where(present, (scores - start) ** 2, 0.0)
        scale = jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True) / count)
        # Rounding of the mean leaves equal scores a little apart.
        scale = jnp.where(scale > 1e-6 * jnp.abs(start), scale, 0.0)
    some = present & (scale > 0.0)
    return jnp.where(some, (scores - start) / jnp.where(some, scale, 1.0), 0.0)


def margin_mse_loss(
    student: Float[Array, "b K"],
    teacher: Float[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    temperature: Number = 1.0,
    teacher_temperature: Number = 1.0,
    normalization: str = "none",
) -> ListValues:
    """([s(q, p) - s(q, n)] / t_s - [t(q, p) - t(q, n)] / t_t)^2, the mean over the negatives n.

    Hofstaetter et al. (2021), "Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation".

    Args:
        student: scores s, the positive's first.
        teacher: scores t, the positive's first.
        present: False where there is no candidate; None: all are there.
        temperature: t_s.
        teacher_temperature: t_t.
        normalization: of the teacher's scores of each list, see `normalize_scores`; applied before
            its temperature.

    Returns:
        Weight 1 for a list with a positive and a negative.

    >>> print(margin_mse_loss(jnp.array([[1.0, 0.0]]), jnp.array([[5.0, 2.0]])).values)
    [4.]
    """
    student, teacher, present = read_lists(student, teacher, present)
    teacher = normalize_scores(teacher, present, normalization=normalization)
    scores = student / temperature - teacher / teacher_temperature
    mean, count = mean_of_lists((scores[:, :1] - scores[:, 1:]) ** 2, present[:, 1:])
    return ListValues(mean, (present[:, 0] & (count > 0.0)).astype(jnp.float32))


def kl_loss(
    student: Float[Array, "b K"],
    teacher: Float[Array, "b K"],
    present: Bool[Array, "b K"] | None = None,
    *,
    temperature: Number = 1.0,
    teacher_temperature: Number = 0.0,
    normalization: str = "none",
    student_normalization: str = "none",
) -> ListValues:
    """t_s t_t KL(softmax(teacher / t_t) || softmax(student / t_s)) over a list's candidates.

    Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", with one
    temperature t, where t^2 keeps the gradient's size.

    `kl(temperature=0.25, teacher_temperature=1.0, normalization='min_max', similarity='cosine')`
    suits the scores of a cross-encoder, whose range is not the student's.

    Args:
        student: scores.
        teacher: scores.
        present: False where there is no candidate; None: all are there.
        temperature: t_s.
        teacher_temperature: t_t; 0: t_s.
        normalization: of the teacher's scores of each list, see `normalize_scores`; applied before
            its temperature.
        student_normalization: the same of the student's. With "min_max" of the teacher only, the
            student's scores of a list are to differ by t_s / t_t at most; PyLate brings them to
            0 .. 1 too.

    Returns:
        Weight 1 for a list with two candidates or more: there is nothing to learn from a single
        candidate.

    >>> print(kl_loss(jnp.array([[1.0, 0.0]]), jnp.array([[5.0, 2.0]])).values)
    [0.1698]
    """
    student, teacher, present = read_lists(student, teacher, present)
    teacher = normalize_scores(teacher, present, normalization=normalization)
    student = normalize_scores(student, present, normalization=student_normalization)
    teacher_temperature = _own_or(teacher_temperature, temperature)
    log_p = log_softmax(teacher / teacher_temperature, present)
    log_q = log_softmax(student / temperature, present)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)
    return ListValues(
        temperature * teacher_temperature * divergence, some_candidates(present, least=2)
    )


def _margin_target(arguments: Mapping[str, Any]) -> Target | None:
    """Returns the margins of the data that margins of scores between two limits can equal.

    None if the limits or temperatures are not fixed.
    """
    limits = find_score(arguments["similarity"]).limits
    temperatures = arguments["temperature"], arguments["teacher_temperature"]
    scheduled = any(isinstance(temperature, Schedule) for temperature in temperatures)
    if limits is None or scheduled or arguments["normalization"] != "none":
        return None
    largest = (limits[1] - limits[0]) * temperatures[1] / temperatures[0]
    return Target(-largest, largest, of_margins=True)


margin_mse = on_candidates(
    margin_mse_loss,
    similarity="dot",
    temperature=None,
    positive=("temperature", "teacher_temperature"),
    targets=_margin_target,
)
kl = on_candidates(kl_loss, similarity="dot", temperature=None, positive=("temperature",))


@loss(needs=("teacher",), columns=(1, 0), tiled=True)
def relational(own: Columns, world: World, params: Params) -> LossResult:
    """Computes the mean of (cos(s_i, s_j) - cos(t_i, t_j))^2 over all pairs of texts.

    i and j are all texts of the world that are there, of all columns. The teacher's size may differ
    from the student's. Similarity-preserving distillation: Tung and Mori (2019),
    "Similarity-Preserving Knowledge Distillation", with cosines in place of normalised rows.

    >>> student, teacher = jnp.eye(2), jnp.ones((2, 3))  # cosines 0 and 1 of the two texts
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
            [
                _difference(student, teacher, texts, teachers) ** 2
                for student, teacher in zip(*rows, strict=True)
            ]
        )
        return jnp.where(present[None, None], squares, 0.0)

    rows = tuple(own.embeddings), tuple(jax.lax.stop_gradient(require_field(own.teacher)))
    number = world.total(jnp.sum(own.present.astype(jnp.float32)))
    values = world.sum(block, rows, texts) / jnp.maximum(number, 1.0)
    return *mean_over_present(values, own.present), {}


def _difference(
    student: Array, teacher: Array, students: Array, teachers: Array
) -> Float[Array, "b n"]:
    return cosine_matrix(student, students) - cosine_matrix(teacher, teachers)


def _own_or(temperature: float | Array, default: float | Array) -> float | Array:
    """Returns a temperature, or another in its place where it is 0."""
    if isinstance(temperature, int | float):
        if temperature < 0:
            raise InputError(
                "teacher_temperature: expected more than 0, or 0 for the student's, found "
                f"{temperature}"
            )
        return temperature or default
    return jnp.where(temperature == 0.0, default, temperature)


def _both(
    own: Columns, params: Params, name: str
) -> tuple[Float[Array, "C b T"], Float[Array, "C b T"]]:
    """Returns the student's embeddings, projected if there is a projection, and the teacher's.

    They are of one size.
    """
    student = project_student(jnp.stack(dense(own.embeddings, name)), params)
    teacher = jnp.stack(dense(own.teacher, f"the teacher of {name}"))
    size, teacher_size = student.shape[-1], teacher.shape[-1]
    if size != teacher_size:
        advice = "" if params else f"; {name}(projection={teacher_size}) learns a map to that size"
        raise InputError(
            f"the teacher of the loss {name}: expected embeddings of size {size}, found "
            f"{teacher_size}{advice}"
        )
    return student, jax.lax.stop_gradient(teacher)
