"""One training step, compiled: gradient of the global loss, update, metrics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from embed_jax.types import Batch, Params, TrainState


def init_state(
    params: Params, optimizer: optax.GradientTransformation, frozen: dict[str, Params] | None = None
) -> TrainState:
    """The state before the first step. `params` is {"encoder": tree, "loss": tree}; `frozen` has params by name."""
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), frozen=frozen or {}
    )


def make_train_step(
    objective: Callable, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict[str, Array]]]:
    """The step `(state, batch, key) -> (state, metrics)`; the old state's buffers are given away.

    The step's randomness is `fold_in(key, state.step)`: nothing random is carried from step to step.

    Args:
        objective: `(params, batch, key, frozen) -> (loss, (metrics, finite))`, see `parallel.gather.global_loss`.
        optimizer: optax's.
        shardings: how the new state lies on the mesh; None: as the compiler likes.

    Returns:
        Metrics: "loss", "grad_norm" (before clipping), the objective's own, and "finite" [B] by example.
    """

    def step(state: TrainState, batch: Batch, key: PRNGKeyArray):
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (metrics, finite)), grads = gradient(state.params, batch, step_key, state.frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads), "finite": finite}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    more = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(step, donate_argnums=0, **more)
