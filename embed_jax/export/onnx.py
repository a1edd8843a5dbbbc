"""Writes models as ONNX files, for ONNX Runtime, TensorRT and search engines that read such files.

    write_onnx(load("sentence-transformers/all-MiniLM-L6-v2"), "model.onnx")

Inputs, of which the batch and the length are free:

    input_ids       int64 [batch, length]   tokens of the texts, with prompts before them
    attention_mask  int64 [batch, length]   1 at tokens, 0 at padding
    pooling_mask    int64 [batch, length]   attention_mask without the prompts' tokens; only of a
                                            model that leaves prompts out of pooling
                                            (`include_prompt` False)

Output: `sentence_embedding` float32 [batch, D], equal to `SentenceEncoder.encode`: pooling, heads
and normalisation included, adapters merged. A cross-encoder's output is `logits` float32 [batch,
L], equal to `CrossEncoder.logits`: the activation that makes scores of them is in the metadata. Its
tokens are those of pairs, and where the model tells the two texts apart there is one more input:

    token_type_ids  int64 [batch, length]   1 at tokens of the second text

Padding comes after the texts; of models without absolute positions (rotary, relative) it may come
before them too. The file's metadata has max_length (tokens that a text or a pair is cut to), of an
embedding model similarity, prompts (JSON, by name), default_prompt_name, and template, which makes
a prompt of an instruction; of a cross-encoder num_labels, activation, and prompt, which stands
before each query.

For TensorRT, with the sizes that are to be fast (`pooling_mask` too, where there is one):

    trtexec --onnx=model.onnx --fp16 --saveEngine=model.plan \\
        --minShapes=input_ids:1x1,attention_mask:1x1 \\
        --optShapes=input_ids:32x64,attention_mask:32x64 \\
        --maxShapes=input_ids:256x512,attention_mask:256x512
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from embed_jax import __version__
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.encoders.build import TOKEN_HEAD
from embed_jax.encoders.int8 import dequantize_params
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.pooling import needs_every_layer
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import BEFORE_LAST
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.errors import InputError, require
from embed_jax.export.jaxpr import to_graph
from embed_jax.export.onnx_graph import Graph, Tensor, data_file, write_proto
from embed_jax.export.onnx_run import LOGITS, OUTPUT
from embed_jax.registry import lookup, unknown
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import Params, TokenBatch

PRECISIONS = ("float32", "float16", "int8")


def write_onnx(
    model: SentenceEncoder | CrossEncoder, path: str | Path, *, precision: str = "float32"
) -> None:
    """Writes the model as an ONNX file, whole or not at all; the same model gives the same bytes.

    From 2 GiB on, the weights are in the file `path`.data beside it.

    Args:
        model: an embedding model or a cross-encoder.
        path: the file to write.
        precision: "float32"; "float16": the layers' products and their sums are in float16, but
            norms, softmax, pooling and heads in float32; weights that were trained in bfloat16 may
            give numbers beyond float16's 65,504, which `compare_onnx` shows; "int8": tables are in
            eight bits with a scale for each row, and weights of products with one for each output;
            activations are quantized to eight bits while the model runs (ONNX Runtime's dynamic
            quantisation), so an embedding depends a little on the others of its batch.

    Raises:
        InputError: an unknown precision, a missing package, a model that ONNX cannot express, or
            float16 for weights beyond its range.
    """
    if precision not in PRECISIONS:
        raise InputError(unknown("precision", precision, PRECISIONS))
    for package in ("onnx", *(["onnxruntime"] if precision == "int8" else [])):
        require(package)
    path = Path(path)
    dtype = np.float16 if precision == "float16" else np.float32
    with np.errstate(over="ignore"):  # numbers beyond float16 are reported below
        graph, result = _graph(model, dtype, int8_tables=precision == "int8")
    for array in graph.initializers.values():
        if array.dtype == np.float16 and not np.isfinite(array).all():
            raise InputError(
                "precision 'float16': the model has weights beyond 65,504; use 'float32' or 'int8'"
            )
    output = LOGITS if isinstance(model, CrossEncoder) else OUTPUT
    metadata = {**_metadata(model), "precision": precision}
    written = graph.model({output: result}, "embed-jax", __version__, metadata)
    write_proto(_quantize(written, path.parent) if precision == "int8" else written, path)


def _graph(
    model: SentenceEncoder | CrossEncoder, dtype: Any, int8_tables: bool
) -> tuple[Graph, Tensor]:
    function, params = make_embed_function(model, dtype)
    batch, length = jax.export.symbolic_shape("batch, length")
    inputs = {name: (np.int32, (batch, length)) for name in input_names(model)}

    def apply(params: Params, *arrays: Array) -> Array:
        return function(params, **dict(zip(inputs, arrays, strict=True)))

    return to_graph(apply, inputs, params, int8_tables=int8_tables)


def input_names(model: SentenceEncoder | CrossEncoder) -> list[str]:
    """Returns the names of the inputs of the model's file."""
    names = ["input_ids", "attention_mask"]
    if isinstance(model, CrossEncoder):
        has_types = model.tokenize(["a"], ["a"]).segments is not None
        return [*names, "token_type_ids"] if has_types else names
    return [*names, "pooling_mask"] if has_pooling_mask(model) else names


def has_pooling_mask(model: SentenceEncoder) -> bool:
    """Tells whether the model's file has the input `pooling_mask`."""
    return not model.include_prompt and bool(any(model.prompts.values()) or model.template)


def _metadata(model: SentenceEncoder | CrossEncoder) -> dict[str, str]:
    if isinstance(model, CrossEncoder):
        return {
            "max_length": str(model.max_length),
            "num_labels": str(model.num_labels),
            "activation": model.activation,
            "prompt": model.prompt,
        }
    return {
        "max_length": str(model.max_length),
        "similarity": model.similarity_fn_name,
        "prompts": json.dumps(model.prompts, sort_keys=True),
        "default_prompt_name": model.default_prompt_name or "",
        "template": model.template or "",
    }


# ---- the function that is exported ---------------------------------------------------------------


def make_embed_function(
    model: SentenceEncoder | CrossEncoder, dtype: Any = np.float32
) -> tuple[Callable, Params]:
    """Returns the function that is exported, and its parameters.

    The function is `(params, input_ids, attention_mask, pooling_mask=None, token_type_ids=None) ->
    embeddings [B, D]`, or logits of a cross-encoder. They are those of the model's own encoder for
    a batch with one text in each row.

    Args:
        model: the model.
        dtype: the dtype of the layers' products and activations.
    """
    spec, params = model.spec, jax.device_get(model.params)
    if spec.lora is not None:
        spec, params = merge_lora(spec, params)
    params = jax.device_get(dequantize_params(params))
    tables = jax.tree.map(
        lambda leaf: leaf.astype(dtype, copy=False) if leaf.ndim == 2 else leaf,
        {name: tree for name, tree in params["backbone"].items() if name != "layers"},
    )
    params = {**params, "backbone": {**params["backbone"], **tables}}
    backbone = lookup("backbone", spec.backbone.family).module(
        spec.backbone, dtype=jnp.dtype(dtype), attention="xla"
    )

    def embed(
        params: Params,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"],
        pooling_mask: Int[Array, "B T"] | None = None,
        token_type_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B D"]:
        present = attention_mask > 0
        pooled = present if pooling_mask is None else present & (pooling_mask > 0)
        position = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        # Sentences are told apart within rows only, and a row has one: 0, and 1 for padding.
        sentence = jnp.where(present, 0, 1)
        tokens = TokenBatch(input_ids, sentence, position, pooled, 1, segment=token_type_ids)
        states = _states(spec, backbone, params, tokens)
        vectors = [_pool(name, states, present, pooled) for name in spec.pooling.split("+")]
        x = jnp.concatenate(vectors, axis=-1)
        for index, head in enumerate(spec.heads):
            x = head.apply(params["heads"].get(str(index), {}), x)
        return x

    return embed, params


def _states(
    spec: EncoderSpec, backbone: Any, params: Params, tokens: TokenBatch
) -> Float[Array, "*L B T D"]:
    """Returns the states to pool: the last layer's, or every layer's if the pooling needs them."""
    variables, head = {"params": params["backbone"]}, params.get(TOKEN_HEAD)
    if isinstance(spec.token_head, WeightedLayers):
        every, others = backbone.apply(variables, tokens, None, True, mutable=[BEFORE_LAST])
        return spec.token_head.apply(
            head, jnp.concatenate([others[BEFORE_LAST]["states"], every[-1:]])
        )
    states = backbone.apply(variables, tokens, None, needs_every_layer(spec.pooling))
    token_head = spec.token_head
    if token_head is None:
        return states
    # The head's shapes depend on the number of tokens, which is not known here: apply it to each.
    return jax.vmap(jax.vmap(lambda x: token_head.apply(head, x[None, None])[0, 0]))(states)


def _pool(
    name: str,
    states: Float[Array, "*L B T D"],
    present: Bool[Array, "B T"],
    pooled: Bool[Array, "B T"],
) -> Float[Array, "B D"]:
    """Computes `pooling.pool` of one name for rows with one text each."""
    if states.ndim == 4:
        states = (states[0] + states[-1]) / 2 if name == "first_last_mean" else states[-1]
    states = states.astype(jnp.float32)
    if name == "max":
        highest = jnp.where(pooled[:, :, None], states, -jnp.inf).max(axis=1)
        return jnp.where(highest > -jnp.inf, highest, 0.0)
    weights = _weights(name, present, pooled)
    return jnp.matmul(weights[:, None], states, precision="highest")[:, 0]


def _weights(
    name: str, present: Bool[Array, "B T"], pooled: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Returns the weight of each token in its text's vector."""
    ones = pooled.astype(jnp.int32)
    if name == "cls":
        return (pooled & (jnp.cumsum(ones, axis=1) == 1)).astype(jnp.float32)
    if name == "last_token":
        return (pooled & (jnp.cumsum(ones, axis=1) == ones.sum(axis=1, keepdims=True))).astype(
            jnp.float32
        )
    if name == "weighted_mean":
        ones = jnp.where(pooled, jnp.cumsum(present.astype(jnp.int32), axis=1), 0)
    elif name not in ("mean", "mean_sqrt_len", "first_last_mean"):
        raise InputError(f"ONNX export: pooling {name!r} is not supported")
    weights = ones.astype(jnp.float32)
    total = jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return weights / (jnp.sqrt(total) if name == "mean_sqrt_len" else total)


def _quantize(model: Any, directory: Path) -> Any:
    """Applies ONNX Runtime's dynamic quantisation to products with constants."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=directory) as beside, _silence_warnings():
        source, target = (Path(beside) / name for name in ("float32.onnx", "int8.onnx"))
        write_proto(model, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # Seven bits: where a CPU adds two products in 16 bits (x86 without VNNI), those of
            # eight would not fit.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=data_file(source).is_file(),
        )
        quantized = onnx.load(target)
    quantized.producer_name, quantized.producer_version = (
        model.producer_name,
        model.producer_version,
    )
    return quantized


@contextlib.contextmanager
def _silence_warnings() -> Iterator[None]:
    """Silences the root logger: ONNX Runtime recommends a pass there that changes nothing here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
