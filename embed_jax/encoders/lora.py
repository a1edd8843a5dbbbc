"""Low-rank adapters: a second, small tree of parameters beside the backbone's, for linear maps of its layers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.family import Family, Part
from embed_jax.encoders.int8 import Int8, dequantize_params
from embed_jax.encoders.layers import Linear, dropout
from embed_jax.encoders.spec import ALL_LINEAR, EncoderSpec, LoraSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.types import Params, Rules

SHARDING: Rules = (
    (rf"{ADAPTER}/layers/.*/a", (None, "fsdp", None)),
    (rf"{ADAPTER}/layers/.*/b", (None, None, "fsdp")),
)


# ---- which linear maps ---------------------------------------------------------------------------------------


def linear_maps(family: Family, backbone: Params) -> dict[str, Part]:
    """The linear maps of the layers.

    Our path below "layers" -> Hugging Face's module, or the part of one.

    Args:
        backbone: its parameters or their shapes.

    Raises:
        InputError: the backbone has no layers.
    """
    if "layers" not in backbone:
        raise InputError("an adapter is for linear maps of layers, and this backbone has none")
    paths = [path[:-1] for path in flatten_dict(backbone["layers"]) if path[-1] == "kernel"]
    modules = {path: family.tensors[f"layers/{path}"] for path in map("/".join, paths)}
    return {
        path: name if isinstance(name, Part) else Part(name, 0, 1) for path, name in modules.items()
    }


def find_targets(targets: Iterable[str], maps: Mapping[str, Part], layers: int) -> tuple[str, ...]:
    """Our paths of the linear maps that are meant, in `maps`' order.

    Args:
        targets: see LoraSpec.
        maps: `linear_maps`.
        layers: how many layers there are.

    Raises:
        InputError: a target that is no linear map, or one in some of the layers only.
    """
    chosen: set[str] = set()
    for target in targets:
        if target.lower() == ALL_LINEAR:
            chosen |= set(maps)
            continue
        matched = {path: _matches(target, part.module, layers) for path, part in maps.items()}
        if not any(matched.values()):
            names = {part.module.rpartition(".")[2] for part in maps.values()}
            raise InputError(unknown("target of an adapter", target, {*names, ALL_LINEAR}))
        for path, number in matched.items():
            if 0 < number < layers:
                raise InputError(
                    f"target {target!r} of an adapter: means {maps[path].module!r} in {number} of "
                    f"{layers} layers; all or none is supported"
                )
        chosen |= {path for path, number in matched.items() if number}
    return tuple(path for path in maps if path in chosen)


def _matches(target: str, module: str, layers: int) -> int:
    """In how many layers the target means a module."""
    names = [module.format(number) for number in range(layers)]
    try:
        pattern = re.compile(target)
    except re.error:
        return 0
    return sum(
        f".{name}".endswith(f".{target}") or pattern.fullmatch(name) is not None for name in names
    )


def adapted_modules(spec: EncoderSpec, backbone: Params) -> tuple[str, ...]:
    """`find_targets` of a spec's adapter.

    Two adapters are of the same linear maps if these are the same.

    Args:
        backbone: its parameters or their shapes.
    """
    maps = linear_maps(lookup("backbone", spec.backbone.family), backbone)
    return find_targets(spec.lora.targets, maps, spec.backbone.num_layers)


# ---- parameters ----------------------------------------------------------------------------------------------


def init_lora(spec: EncoderSpec, backbone: Params, key: PRNGKeyArray) -> Params:
    """An adapter that changes nothing yet.

    A uniform in +-1/sqrt(in) as PEFT has it, B zero, magnitude the norm.

    Args:
        backbone: its parameters, in eight bits or not; without DoRA their shapes will do.

    Returns:
        {"layers": {module: {"a": [L, in, r], "b": [L, r, out], and for DoRA "magnitude": [L,
        out]}}}, float32.

    Raises:
        InputError: a target that the backbone lacks.
    """
    lora = spec.lora
    targets = adapted_modules(spec, backbone)
    kernels = flatten_dict(backbone["layers"], sep="/")
    made = {}
    for path, own_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        kernel = kernels[f"{path}/kernel"]
        layers, inputs, outputs = kernel.values.shape if isinstance(kernel, Int8) else kernel.shape
        bound = inputs**-0.5
        made[f"{path}/a"] = jax.random.uniform(
            own_key, (layers, inputs, lora.rank), minval=-bound, maxval=bound
        )
        made[f"{path}/b"] = jnp.zeros((layers, lora.rank, outputs))
        if lora.dora:
            made[f"{path}/magnitude"] = _column_norms(kernel)
    return {"layers": unflatten_dict(made, sep="/")}


@jax.jit
def _column_norms(kernel: Any) -> Float[Array, "L O"]:
    return jnp.linalg.norm(dequantize_params(kernel).astype(jnp.float32), axis=-2)


def split_trainable(params: Params, spec: EncoderSpec) -> tuple[Params, Params]:
    """Splits parameters into those to train and those that stay as they are.

    With an adapter the backbone, without one nothing.
    """
    frozen = {"backbone": params["backbone"]} if spec.lora is not None else {}
    return {name: tree for name, tree in params.items() if name not in frozen}, frozen


def merge_lora(spec: EncoderSpec, params: Params) -> tuple[EncoderSpec, Params]:
    """The same encoder without an adapter: each kernel W + scale A B, or DoRA's.

    In the kernel's dtype.

    Computed in float32, a layer at a time, on the host. Kernels in eight bits become float32, all
    of them.
    """
    lora = spec.lora
    backbone, adapter = jax.device_get((params["backbone"], params[ADAPTER]))
    kernels = flatten_dict(dequantize_params(backbone["layers"]), sep="/")
    for path, leaves in _modules(adapter).items():
        kernel = kernels[f"{path}/kernel"]
        merged = np.empty(kernel.shape, kernel.dtype)
        for layer, weight in enumerate(kernel):
            changed = weight.astype(np.float32) + np.float32(lora.scale) * (
                leaves["a"][layer] @ leaves["b"][layer]
            )
            if lora.dora:
                changed *= leaves["magnitude"][layer] / np.linalg.norm(changed, axis=0)
            merged[layer] = changed
        kernels[f"{path}/kernel"] = merged
    rest = {name: tree for name, tree in params.items() if name != ADAPTER}
    backbone = {**backbone, "layers": unflatten_dict(kernels, sep="/")}
    return dataclasses.replace(spec, lora=None), {**rest, "backbone": backbone}


def _modules(adapter: Params) -> dict[str, dict[str, Any]]:
    """Our path of each linear map with an adapter -> its leaves."""
    modules: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten_dict(adapter["layers"], sep="/").items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    return modules


# ---- application ---------------------------------------------------------------------------------------------


def make_adapter_interceptor(lora: LoraSpec) -> Callable:
    """A method interceptor of flax under which a `Linear` with variables "a" and "b" adds its adapter's product.

    Dropout is on where there is a key of the collection "lora"; the key of each module is its own.
    """

    def intercept(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if (
            isinstance(module, Linear)
            and context.method_name == "__call__"
            and module.has_variable(ADAPTER, "a")
        ):
            return _add_adapter_product(lora, module, result, *args, **kwargs)
        return result

    return intercept


def _add_adapter_product(
    lora: LoraSpec, module: Linear, result: Float[Array, "*B O"], x: Float[Array, "*B I"]
):
    dtype = module.dtype
    a, b = (module.get_variable(ADAPTER, name) for name in ("a", "b"))
    key = module.make_rng(ADAPTER) if lora.dropout and module.has_rng(ADAPTER) else None
    flat = dropout(x.reshape(-1, x.shape[-1]).astype(dtype), lora.dropout, key)
    change = (lora.scale * (flat @ a.astype(dtype))) @ b.astype(dtype)
    if lora.dora:
        kernel = module.get_variable("params", "kernel")
        full = kernel.astype(jnp.float32) + lora.scale * jnp.matmul(a, b, precision="highest")
        norm = lax.stop_gradient(jnp.linalg.norm(full, axis=0))
        ratio = module.get_variable(ADAPTER, "magnitude") / norm
        if key is not None:
            base = flat @ kernel.astype(dtype)
        else:
            base = result.reshape(change.shape)
            base = (
                base - module.get_variable("params", "bias").astype(dtype)
                if module.use_bias
                else base
            )
        change = (ratio - 1).astype(dtype) * base + ratio.astype(dtype) * change
    return result + change.reshape(result.shape)
