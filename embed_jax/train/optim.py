"""Optimisers and learning-rate schedules, all optax's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from embed_jax.config import Optim
from embed_jax.train.groups import is_stacked, path_name, with_groups
from embed_jax.types import Params

NOT_DECAYED = ("bias", "scale")  # of linear maps and norms; nor are the loss's parameters
MUON_RMS = 0.2  # RMS of a Muon update, that of a usual AdamW update (Liu et al. 2025, section 2.2)


def make_learning_rate(optim: Optim, num_updates: int) -> optax.Schedule:
    """Makes a schedule: linear warm-up to the peak, then one of those below.

    "linear" and "cosine" fall to 0, "constant" stays. "wsd" (warm-up, stable, decay; Hu et al.
    2024, "MiniCPM") stays at the peak and falls linearly to 0 over the last `decay` of the updates.
    Its stable part does not depend on `num_updates`, so one stable run serves for decays from
    several of its checkpoints (`config.train.from_checkpoint`).

    Args:
        optim: `warmup` is the share of `num_updates` spent rising.
        num_updates: optimiser updates of the whole run (steps / accumulate).
    """
    peak = optim.learning_rate
    warmup = round(optim.warmup * num_updates)
    rest = max(num_updates - warmup, 1)
    falling = min(max(round(optim.decay * num_updates), 1), rest)  # of "wsd"
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
        "wsd": optax.linear_schedule(peak, 0.0, falling, transition_begin=rest - falling),
    }[optim.schedule]
    # From the first update on, the rate is above 0: a step at rate 0 would be wasted.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def decay_mask(params: Params) -> Params:
    """Tells, by name, the leaves that weight decay applies to.

    Stacked biases have two axes, so rank can't tell.
    """

    def decays(path: tuple, _: object) -> bool:
        names = [getattr(part, "key", "") for part in path]
        return names[0] != "loss" and names[-1] not in NOT_DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(optim: Optim, num_updates: int) -> optax.GradientTransformation:
    """Makes the optimiser that a config names.

    It clips by the global norm, and has groups and gradient accumulation.
    """
    parts = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    parts.append(OPTIMIZERS[optim.name](optim, make_learning_rate(optim, num_updates)))
    return complete_optimizer(optax.chain(*parts), optim)


def complete_optimizer(
    optimizer: optax.GradientTransformation, optim: Optim
) -> optax.GradientTransformation:
    """Adds the gradient accumulation and the groups of a config to an optimiser."""
    if optim.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, optim.accumulate).gradient_transformation()
    groups = vars(optim.groups)
    return with_groups(optimizer, groups) if groups else optimizer


def adamw(optim: Optim, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019)."""
    return optax.adamw(
        schedule,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        mask=decay_mask,
    )


def adafactor(optim: Optim, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018): second moments as a row and a column, no first moments.

    The learning rate is relative: an update is at most that share of the RMS of its parameter, so
    rates are about 1e-3. Each layer of a stacked leaf is its own parameter. Weight decay is
    multiplied by the learning rate, as AdamW's is. `b1`, `b2` and `eps` are not used.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        by_layer(optax.clip_by_block_rms(1.0)),
        by_layer(optax.scale_by_param_block_rms()),
        optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def muon_and_adamw(optim: Optim, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of the layers, and AdamW for all else.

    Each layer is updated by itself. AdamW updates embeddings, heads, norms, biases, the loss's
    parameters and adapters, as a factor of a low-rank update is not a map by itself. Muon's updates
    have the RMS of AdamW's, so that both share one learning rate and one weight decay; its momentum
    is 0.95, and `b1` and `b2` are AdamW's.
    """
    layers = muon(
        schedule,
        weight_decay=optim.weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda _: MuonDimensionNumbers(reduction_axis=1, output_axis=2), params
        ),
    )
    return optax.partition({"muon": layers, "adamw": adamw(optim, schedule)}, muon_labels)


def muon_labels(params: Params) -> Any:
    """Labels the stacked kernels [L, in, out] of the layers "muon", every other leaf "adamw"."""

    def label(path: tuple, leaf: Any) -> str:
        name = path_name(path)
        is_kernel = is_stacked(name) and name.endswith("/kernel") and leaf.ndim == 3
        return "muon" if is_kernel else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def by_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation that has no state to each layer of a stacked leaf by itself."""

    def update(updates: Params, params: Params | None) -> Params:
        def update_leaf(path: tuple, update: Any, param: Any) -> Any:
            def transform(update: Any, param: Any) -> Any:
                return transformation.update(update, optax.EmptyState(), param)[0]

            stacked = is_stacked(path_name(path))
            return (jax.vmap(transform) if stacked else transform)(update, param)

        return jax.tree_util.tree_map_with_path(update_leaf, updates, params)

    return optax.stateless(update)


OPTIMIZERS: dict[str, Callable[[Optim, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "muon": muon_and_adamw,
}
