"""Low-rank adapters: a second, small parameter tree for linear maps of the backbone's layers."""

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
from embed_jax.encoders.layers import Linear, dropout, matrix_product
from embed_jax.encoders.spec import ALL_LINEAR, EncoderSpec, LoraSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.types import Params, Rules

SHARDING: Rules = (
    (rf"{ADAPTER}/layers/.*/a", (None, "fsdp", None)),
    (rf"{ADAPTER}/layers/.*/b", (None, None, "fsdp")),
)


# ---- which linear maps ---------------------------------------------------------------------------


def linear_maps(family: Family, backbone: Params) -> dict[str, Part]:
    """Returns the linear maps of a backbone's layers.

    Args:
        family: the backbone's family.
        backbone: the backbone's parameters or their shapes.

    Returns:
        Our path below "layers" -> Hugging Face's module, or a part of one.

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
    """Returns our paths of the linear maps that `targets` name, in the order of `maps`.

    >>> maps = {"query": Part("layer.{}.q", 0, 1), "down": Part("layer.{}.down", 0, 1)}
    >>> find_targets(["down"], maps, layers=2)
    ('down',)

    Args:
        targets: see LoraSpec.
        maps: see `linear_maps`.
        layers: the number of layers.

    Raises:
        InputError: a target names no linear map, or one in some of the layers only.
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
        for path, count in matched.items():
            if 0 < count < layers:
                raise InputError(
                    f"target {target!r} of an adapter: means {maps[path].module!r} in {count} of "
                    f"{layers} layers; all or none is supported"
                )
        chosen |= {path for path, count in matched.items() if count}
    return tuple(path for path in maps if path in chosen)


def _matches(target: str, module: str, layers: int) -> int:
    """Returns the number of layers in which a target names a module."""
    names = [module.format(layer) for layer in range(layers)]
    try:
        pattern = re.compile(target)
    except re.error:
        return 0
    return sum(
        f".{name}".endswith(f".{target}") or pattern.fullmatch(name) is not None for name in names
    )


def adapted_modules(spec: EncoderSpec, backbone: Params) -> tuple[str, ...]:
    """Returns our paths of the linear maps that a spec's adapter changes; see `find_targets`.

    Args:
        spec: an encoder's, with an adapter.
        backbone: the backbone's parameters or their shapes.
    """
    maps = linear_maps(lookup("backbone", spec.backbone.family), backbone)
    return find_targets(require_lora(spec).targets, maps, spec.backbone.num_layers)


def require_lora(spec: EncoderSpec) -> LoraSpec:
    """Returns the adapter's settings of a spec that has them."""
    assert spec.lora is not None, "called for an encoder with an adapter"
    return spec.lora


# ---- parameters ----------------------------------------------------------------------------------


def init_lora(spec: EncoderSpec, backbone: Params, key: PRNGKeyArray) -> Params:
    """Returns the parameters of an adapter that does not change the encoder yet.

    A is uniform in +-1/sqrt(in) as in PEFT, B is zero, and DoRA's magnitude is the norm of the
    kernel's columns.

    >>> from embed_jax.encoders.build import build_encoder
    >>> from embed_jax.encoders.spec import random_spec
    >>> spec = random_spec("tiny", vocab_size=10)
    >>> backbone = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))["backbone"]
    >>> spec = dataclasses.replace(spec, lora=LoraSpec(rank=4, alpha=8.0, targets=("query",)))
    >>> adapter = init_lora(spec, backbone, jax.random.key(1))
    >>> adapter["layers"]["query"]["a"].shape  # layers, inputs, rank
    (2, 32, 4)

    Args:
        spec: the encoder's, with the adapter's settings in `spec.lora`.
        backbone: the backbone's parameters, in eight bits or not; without DoRA shapes are enough.
        key: the key of A.

    Returns:
        {"layers": {module: {"a": [L, in, r], "b": [L, r, out], and for DoRA "magnitude": [L,
        out]}}}, float32.

    Raises:
        InputError: a target that the backbone lacks.
    """
    lora = require_lora(spec)
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

    The second tree is the backbone if there is an adapter, else it is empty.

    >>> from embed_jax.encoders.spec import random_spec
    >>> spec = dataclasses.replace(random_spec("tiny"), lora=LoraSpec(rank=4, alpha=8.0))
    >>> split_trainable({"backbone": 1, "heads": {}, "lora": 2}, spec)
    ({'heads': {}, 'lora': 2}, {'backbone': 1})
    """
    frozen = {"backbone": params["backbone"]} if spec.lora is not None else {}
    return {name: tree for name, tree in params.items() if name not in frozen}, frozen


def merge_lora(spec: EncoderSpec, params: Params) -> tuple[EncoderSpec, Params]:
    """Merges the adapter into the backbone: each kernel W becomes W + scale A B, or DoRA's kernel.

    It is computed in float32 on the host, a layer at a time, and rounded to the kernel's dtype. If
    kernels are in eight bits, all of them become float32.

    Returns:
        The spec and the parameters of the same encoder without an adapter.
    """
    lora = require_lora(spec)
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
    """Returns the leaves of each linear map with an adapter, by our path."""
    modules: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten_dict(adapter["layers"], sep="/").items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    return modules


# ---- application ---------------------------------------------------------------------------------


def make_adapter_interceptor(lora: LoraSpec) -> Callable:
    """Returns a flax method interceptor that adds the adapter's product to each `Linear` with one.

    A `Linear` has an adapter if it has the variables "a" and "b". There is dropout if there is a
    key for the collection "lora", from which each module makes its own.
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
    a: Array = module.get_variable(ADAPTER, "a")
    b: Array = module.get_variable(ADAPTER, "b")
    key = module.make_rng(ADAPTER) if lora.dropout and module.has_rng(ADAPTER) else None
    flat = dropout(x.reshape(-1, x.shape[-1]).astype(dtype), lora.dropout, key)
    # In this order the products cost rank times in + out; A B first would cost in times out.
    change = lora.scale * matrix_product(flat, a.astype(dtype))
    change = matrix_product(change, b.astype(dtype))
    if lora.dora:
        kernel: Array = module.get_variable("params", "kernel")
        full = kernel.astype(jnp.float32) + lora.scale * jnp.matmul(a, b, precision="highest")
        # Without gradient, as in the paper (section 4.3): its share of the gain costs much memory.
        norm = lax.stop_gradient(jnp.linalg.norm(full, axis=0))
        ratio = module.get_variable(ADAPTER, "magnitude") / norm
        if key is not None:
            # The adapter's input is dropped out, that of `result` is not: the product anew.
            base = matrix_product(flat, kernel.astype(dtype))
        else:
            base = result.reshape(change.shape)
            base = (
                base - module.get_variable("params", "bias").astype(dtype)
                if module.use_bias
                else base
            )
        change = (ratio - 1).astype(dtype) * base + ratio.astype(dtype) * change
    return result + change.reshape(result.shape)
