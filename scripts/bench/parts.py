"""The parts of an encoder as small programs of the same shapes, to time each of them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .flops import head_size, layer_reaches, seen_pairs, time_program

if TYPE_CHECKING:
    from embed_jax.encoders.spec import EncoderSpec
    from embed_jax.types import Params, TokenBatch

PRODUCTS, ATTENTION, ACTIVATION = "matrix products", "attention", "activation"
NORMS, LOOKUP, POOLING = "norms and residuals", "embedding lookup", "pooling"


@dataclasses.dataclass(frozen=True)
class Part:
    """A small program that the whole runs several times.

    Attributes:
        name: of the part of the time that it belongs to.
        function: `(*arguments, *fixed) -> result`.
        arguments: what has a gradient in training.
        fixed: what has none.
        times: how often the whole does it.
        flops: of a run without gradient; 0 where they are not counted.
        shape: in words.
    """

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    fixed: tuple[Any, ...] = ()
    times: int = 1
    flops: float = 0.0
    shape: str = ""

    def seconds(self, repeat: int, *, training: bool) -> float:
        """Returns the time of one run; in training with the gradient of all `arguments`."""
        import jax
        import jax.numpy as jnp

        if not training:
            return time_program(jax.jit(self.function), (*self.arguments, *self.fixed), repeat)

        def both(cotangent, arguments, fixed):
            result, pull = jax.vjp(lambda *inputs: self.function(*inputs, *fixed), *arguments)
            return result, pull(cotangent)

        result = jax.eval_shape(self.function, *self.arguments, *self.fixed)
        cotangent = jnp.ones(result.shape, result.dtype)
        return time_program(jax.jit(both), (cotangent, self.arguments, self.fixed), repeat)


def kernel_shapes(params: Params) -> list[tuple[int, int]]:
    """Returns the shapes of the kernels of all layers."""
    import jax

    return [
        leaf.shape[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"]["layers"])
        if leaf.ndim == 3 and path[-1].key == "kernel"
        for _ in range(leaf.shape[0])
    ]


def list_parts(
    spec: EncoderSpec, params: Params, tokens: TokenBatch, dtype: str, *, training: bool
) -> list[Part]:
    """Lists the parts of encoding one group of packed rows.

    Args:
        spec: of a transformer.
        params: whose shapes are read.
        tokens: the group, leaves `[R, T]`.
        dtype: the compute dtype.
        training: whether there is dropout.
    """
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)

    def draw(*shape: int, of: Any = dtype) -> Any:
        return jax.random.normal(key, shape, jnp.dtype(of))

    config, slots = spec.backbone, tokens.token_ids.size
    parts = _products(params, slots, dtype, draw)
    parts += _attention(config, tokens, draw, key if training else None)
    parts += _activation(config, params, slots, draw)
    parts += _norms(config, params, slots, dtype, draw, key if training else None)
    return parts + _lookups(spec, params, tokens, draw)


def _products(params: Params, slots: int, dtype: str, draw: Callable) -> list[Part]:
    """Returns a part for each shape of the layers' kernels."""
    import jax.numpy as jnp

    from embed_jax.encoders.layers import matrix_product

    def product(x, kernel):
        return matrix_product(x, kernel.astype(jnp.dtype(dtype)))

    return [
        Part(
            PRODUCTS,
            product,
            (draw(slots, inputs), draw(inputs, outputs, of="float32")),
            times=times,
            flops=2.0 * slots * inputs * outputs,
            shape=f"[{slots}, {inputs}] x [{inputs}, {outputs}]",
        )
        for (inputs, outputs), times in Counter(kernel_shapes(params)).items()
    ]


def _attention(config: Any, tokens: TokenBatch, draw: Callable, key: Any) -> list[Part]:
    """Returns a part for each kind of layer by how far its tokens see."""
    import numpy as np

    from embed_jax.encoders.attention import attention, needs_bias
    from embed_jax.encoders.attention_mask import make_mask

    rows, length = tokens.token_ids.shape
    heads, size = config.num_heads, head_size(config)
    shared = getattr(config, "num_kv_heads", heads)
    rate = config.attention_dropout if key is not None else 0.0
    causal = getattr(config, "causal", False)
    lengths = np.bincount(np.asarray(tokens.sentence).ravel(), minlength=tokens.sentences)
    query, key_, value = (draw(rows, length, count, size) for count in (heads, shared, shared))

    def mix(query, key_, value, mask):
        return attention(query, key_, value, mask, dropout_rate=rate, dropout_key=key)

    parts = []
    for reach, times in Counter(layer_reaches(config)).items():
        window = 0 if reach is None else reach + 1
        dense = needs_bias("auto", length)
        mask = make_mask(tokens, dense=dense, windows=(window,), causal=causal)
        pairs = sum(
            seen_pairs(int(own), reach, causal=causal) for own in lengths[: tokens.sentences] if own
        )
        flops = 4.0 * heads * size * pairs
        parts.append(Part(ATTENTION, mix, (query, key_, value), (mask,), times, flops))
    return parts


def _activation(config: Any, params: Params, slots: int, draw: Callable) -> list[Part]:
    from embed_jax.encoders.layers import activation

    function = activation(config.activation)
    inner = draw(slots, config.intermediate_size)
    if "gate" not in params["backbone"]["layers"]:
        return [Part(ACTIVATION, function, (inner,), times=config.num_layers)]

    def gated(gate, inner):
        return function(gate) * inner

    return [Part(ACTIVATION, gated, (inner, inner), times=config.num_layers)]


def _norms(
    config: Any, params: Params, slots: int, dtype: str, draw: Callable, key: Any
) -> list[Part]:
    """Returns the norms, each with the residual before it and the residual's dropout."""
    import jax
    import jax.numpy as jnp

    from embed_jax.encoders.layers import LayerNormalization, RMSNorm, apply_module, dropout

    rate = config.hidden_dropout if key is not None else 0.0
    heads = {"query_norm": config.num_heads}
    heads |= {"key_norm": getattr(config, "num_kv_heads", config.num_heads)}

    def add_and_norm(norm: Any, weights: Params, x: Any, branch: Any) -> Any:
        return apply_module(norm, weights, x + dropout(branch, rate, key))

    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"]):
        if path[-1].key != "scale":
            continue
        name, size = path[-2].key, leaf.shape[-1]
        own = params["backbone"]
        for step in path[:-1]:
            own = own[step.key]
        use_bias = "bias" in own
        if hasattr(config, "rms_norm_eps"):
            norm: Any = RMSNorm(config.rms_norm_eps, jnp.dtype(dtype), config.norm_offset)
        else:
            norm = LayerNormalization(config.layer_norm_eps, jnp.dtype(dtype), use_bias=use_bias)
        names = ("scale", "bias") if use_bias else ("scale",)
        weights = {name: draw(size, of="float32") for name in names}
        times = leaf.shape[0] if leaf.ndim == 2 else 1
        if name in heads:
            x = draw(slots, heads[name], size)
            function: Callable = functools.partial(apply_module, norm)
            parts.append(Part(NORMS, function, (weights, x), times=times))
            continue
        x, function = draw(slots, size), functools.partial(add_and_norm, norm)
        parts.append(Part(NORMS, function, (weights, x, x), times=times))
    return parts


def _lookups(spec: EncoderSpec, params: Params, tokens: TokenBatch, draw: Callable) -> list[Part]:
    """Returns the gathers of tables, scatters in training, and the pooling."""
    import jax
    import jax.numpy as jnp

    from embed_jax.encoders.layers import take_rows
    from embed_jax.encoders.pooling import needs_every_layer, pool

    rows, length = tokens.token_ids.shape
    tokens = jax.tree.map(jnp.asarray, tokens)
    tables = params["backbone"]["embeddings"]
    indices = {"token": tokens.token_ids, "position": tokens.position}
    parts = [
        Part(LOOKUP, take_rows, (draw(*tables[name].shape, of="float32"),), (index,))
        for name, index in indices.items()
        if name in tables
    ]
    if spec.pooling and not needs_every_layer(spec.pooling):
        states = draw(rows, length, spec.backbone.hidden_size)

        def pooled(states, tokens):
            return pool(spec.pooling, states, tokens)

        parts.append(Part(POOLING, pooled, (states,), (tokens,)))
    return parts
