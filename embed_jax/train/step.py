"""One training step, compiled: gradient of the global loss, update, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from embed_jax.parallel.queue import advance
from embed_jax.types import Batch, Params, TrainState


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    frozen: dict[str, Params] | None = None,
    extra: dict[str, Any] | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
        params: {"encoder": tree, "loss": tree}, and "auxiliary" where there are auxiliary
            objectives.
        optimizer: optax's.
        frozen: params by name.
        extra: see `parallel.queue.init_queue`.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        frozen=frozen or {},
        extra=extra or {},
    )


@runtime_checkable
class TrainStep(Protocol):
    """A step of training as a compiled function."""

    def __call__(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Any]]:
        """Takes a step: returns the new state and the batch's metrics."""

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Prepares to compile for arguments of these shapes, as `jax.jit` does."""


def make_train_step(
    objective: Callable,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
    momentum: float = 0.0,
    *,
    scheduled: bool = False,
) -> TrainStep:
    """Makes the step `(state, batch, key) -> (state, metrics)`; the old state's buffers are reused.

    The step's randomness is `fold_in(key, state.step)`: nothing random is carried from step to
    step.

    Args:
        objective: `(params, batch, key, frozen) -> (loss, (metrics, finite))`, see
            `parallel.gather.global_loss`; with a state that has a queue it also takes `extra`, and
            returns what enters the queue.
        optimizer: optax's.
        shardings: how the new state lies on the mesh; None: the compiler decides.
        momentum: of the momentum encoder, if the state has one.
        scheduled: whether the objective also takes `step`, the state's.

    Returns:
        Metrics: "loss", "grad_norm" (before clipping), the objective's own, and "finite" [B] by
            example.
    """

    def at_step(state: TrainState) -> dict[str, Array]:
        return {"step": state.step} if scheduled else {}

    def step(state: TrainState, batch: Batch, key: PRNGKeyArray):
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        carried = (state.extra,) if state.extra else ()
        (loss, (metrics, finite, *entries)), grads = gradient(
            state.params, batch, step_key, state.frozen, *carried, **at_step(state)
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads), "finite": finite}
        extra = state.extra
        if entries:
            (of_batch,) = entries
            # Entries were embedded before the update; the momentum encoder follows the new ones.
            extra = advance(state.extra, of_batch, params["encoder"], momentum)
        return state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, extra=extra
        ), metrics

    # Without the shardings the compiler might lay the new state out in another way than the old
    # one, whose buffers could then not be reused, and the next step would be compiled again.
    options: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(step, donate_argnums=0, **options)
