"""Optimisers and learning-rate schedules, all optax's."""

from __future__ import annotations

import jax
import optax

from embed_jax.config import Optim
from embed_jax.types import Params

NOT_DECAYED = ("bias", "scale")  # of linear maps and norms; nor are the loss's parameters


def make_schedule(optim: Optim, num_updates: int) -> optax.Schedule:
    """Linear warm-up to the peak, then linear or cosine decay to 0, or none.

    Args:
        optim: `warmup` is the share of `num_updates` spent rising.
        num_updates: optimiser updates of the whole run (steps / accumulate).
    """
    warmup = round(optim.warmup * num_updates)
    rest = max(num_updates - warmup, 1)
    after = {
        "linear": optax.linear_schedule(optim.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(optim.learning_rate, rest),
        "constant": optax.constant_schedule(optim.learning_rate),
    }[optim.schedule]
    # From the first update on, the rate is above 0: a step that changes nothing is a step lost.
    rise = optax.linear_schedule(
        optim.learning_rate / max(warmup, 1), optim.learning_rate, max(warmup - 1, 1)
    )
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def decay_mask(params: Params) -> Params:
    """True for the leaves that weight decay applies to, by name: stacked biases have two axes, so rank can't tell."""

    def decays(path: tuple, _: object) -> bool:
        names = [getattr(part, "key", "") for part in path]
        return names[0] != "loss" and names[-1] not in NOT_DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(optim: Optim, num_updates: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) after clipping by the global norm, with gradient accumulation."""
    parts = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    parts.append(
        optax.adamw(
            make_schedule(optim, num_updates),
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            mask=decay_mask,
        )
    )
    optimizer = optax.chain(*parts)
    if optim.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, optim.accumulate).gradient_transformation()
