"""Throughput in terms of the hardware: model FLOPs and their share of the device's peak (MFU)."""

from __future__ import annotations

from typing import Any

import jax

from embed_jax.types import Params

# Dense bfloat16 FLOP/s of one device by a part of its name, from the makers' data sheets. The first
# name that fits counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
}


def known_peak(device_kind: str) -> float | None:
    """Returns the peak of PEAK_FLOPS of one device by its kind; None if it is not known.

    >>> known_peak("NVIDIA A100-SXM4-80GB"), known_peak("cpu")
    (312000000000000.0, None)
    """
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_kind), None)


def training_flops_per_token(trained: Params, frozen: Params = None) -> float:
    """Computes 6 FLOPs per parameter that multiplies a token: 2 forward, 4 backward.

    Kaplan et al. (2020), section 2.1. Embedding tables are looked up, not multiplied, and
    attention's own products are left out, as is usual: for short texts they are a few per cent. A
    frozen parameter has no gradient: 4 FLOPs.
    """
    return 6.0 * _multiplying(trained) + 4.0 * _multiplying(frozen)


def _multiplying(params: Params) -> int:
    """Counts the parameters that are not in tables."""
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if not any(getattr(part, "key", "") == "embeddings" for part in path)
    )


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, devices: list[Any]
) -> float | None:
    """Computes MFU, the model's FLOP/s over the peak of all devices.

    None if the peak is not known.
    """
    peak = known_peak(devices[0].device_kind)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * len(devices))
