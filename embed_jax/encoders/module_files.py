"""Reads and writes the files in the folders of a sentence-transformers model's modules.

The modules are heads (Dense, LayerNorm and Normalize), and those before the pooling
(WeightedLayerPooling and LatentAttention).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from embed_jax.encoders import json_fields
from embed_jax.encoders.heads import Dense, Dropout, Head, LayerNorm, LogitScore, Normalize
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.vocabulary import Splade, TokenWeights
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.encoders.weights import (
    WEIGHTS,
    read_json,
    read_tensors,
    write_json,
    write_safetensors,
)
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import AnyArray, Params, param_dtype

TORCH_ACTIVATIONS = {  # our name -> torch's class
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
}
DENSE_FIELDS = ("in_features", "out_features", "bias", "activation_function", "use_residual")
SPLADE_FIELDS = (
    "pooling_strategy",
    "activation_function",
    "word_embedding_dimension",
    "embedding_dimension",
)
SPLADE_ACTIVATIONS = {"relu": 1, "log1p_relu": 2}
TOKEN_WEIGHT_FIELDS = ("frozen", "path")
NO_SIZES = (*DENSE_FIELDS[2:], "false_token_id", *SPLADE_FIELDS, *TOKEN_WEIGHT_FIELDS)
# Fields from version 5 on: the names of what a module reads and writes
PLACES = ("module_input_name", "module_output_name")
SENTENCE, SCORES, LOGITS = "sentence_embedding", "scores", "causal_logits"
TOKENS = "token_embeddings"
LOGIT_FIELDS = ("true_token_id", "false_token_id")
WEIGHTED_FIELDS = (
    "word_embedding_dimension",
    "embedding_dimension",
    "num_hidden_layers",
    "layer_start",
)
LATENT_TENSORS = {  # our path -> the name in the code that NV-Embed's authors published
    "norm": "cross_attend_blocks.0.norm",
    "latents_norm": "cross_attend_blocks.0.norm_context",
    "query": "cross_attend_blocks.0.fn.to_q",
    "out": "cross_attend_blocks.0.fn.to_out",
    "mlp_norm": "cross_attend_blocks.1.norm",
    "up": "cross_attend_blocks.1.fn.net.0",
    "down": "cross_attend_blocks.1.fn.net.2",
}
KEY_AND_VALUE = "cross_attend_blocks.0.fn.to_kv.weight"


# ---- after the pooling ---------------------------------------------------------------------------


def read_dense(
    directory: Path, output: str = SENTENCE, reads: str = SENTENCE
) -> tuple[Dense, Params]:
    """Reads a Dense head and its parameters.

    Args:
        directory: the module's folder.
        output: the name of what it must give: SENTENCE, TOKENS, or SCORES for a cross-encoder's
            last head.
        reads: the name of what it must read: SENTENCE or TOKENS.

    Raises:
        InputError: a field that is missing or unknown, an unknown activation, a Dense over anything
            else, or tensors that do not fit the config.
    """
    path = directory / "config.json"
    needed = ("in_features", "out_features")
    config = _read_config(path, DENSE_FIELDS, needed, reads=reads, gives=output)
    kind = str(config.get("activation_function", TORCH_ACTIVATIONS["tanh"]))
    names = {name.rsplit(".", 1)[-1]: own_name for own_name, name in TORCH_ACTIVATIONS.items()}
    if not kind.startswith("torch.nn.") or kind.rsplit(".", 1)[-1] not in names:
        raise InputError(
            f"{path}: {unknown('activation_function', kind, TORCH_ACTIVATIONS.values())}"
        )
    head = Dense(
        config["in_features"],
        config["out_features"],
        bool(config.get("bias", True)),
        names[kind.rsplit(".", 1)[-1]],
        bool(config.get("use_residual", False)),
    )
    shapes = jax.eval_shape(lambda: _dense_tensors(head.init(jax.random.key(0))))
    return head, _dense_params(
        _read_exactly(directory, {name: value.shape for name, value in shapes.items()})
    )


def read_layer_norm(directory: Path) -> tuple[LayerNorm, Params]:
    """Reads a LayerNorm head and its parameters.

    Raises:
        InputError: a field that is missing or unknown, or tensors that do not fit the config.
    """
    head = LayerNorm(
        _read_config(directory / "config.json", ("dimension",), ("dimension",))["dimension"]
    )
    tensors = _read_exactly(
        directory, {f"norm.{leaf}": (head.dimension,) for leaf in ("weight", "bias")}
    )
    return head, {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]}


def read_normalize(directory: Path, reads: str = SENTENCE) -> tuple[Normalize, Params]:
    """Reads a Normalize head, whose folder may be missing or empty.

    Args:
        directory: the module's folder.
        reads: the name of what it must read and give.

    Raises:
        InputError: it normalizes anything else.
    """
    if (directory / "config.json").is_file():
        _read_config(directory / "config.json", (), (), reads=reads, gives=reads)
    return Normalize(), {}


def read_dropout(directory: Path) -> tuple[Dropout, Params]:
    """Reads a Dropout head."""
    config = read_json(directory / "config.json", json_fields.MODULE)
    return Dropout(config.get("dropout", 0.2)), {}


def read_logit_score(directory: Path, in_features: int, softcap: float) -> LogitScore:
    """Reads the tokens of a LogitScore, whose weights are the Transformer's.

    Args:
        directory: the module's folder.
        in_features: see LogitScore.
        softcap: see LogitScore.

    Raises:
        InputError: a field that is missing or unknown.
    """
    path = directory / "config.json"
    config = _read_config(path, LOGIT_FIELDS, LOGIT_FIELDS[:1], reads=LOGITS)
    return LogitScore(in_features, config["true_token_id"], config.get("false_token_id"), softcap)


def write_head(
    directory: Path, head: Head, params: Params, output: str = SENTENCE, reads: str = SENTENCE
) -> None:
    """Writes a head's config and weights; a Normalize is an empty folder except for its config.

    Args:
        directory: the module's folder.
        head: the head.
        params: its parameters.
        output: see `read_dense`.
        reads: see `read_dense`.

    Raises:
        InputError: an activation or a norm that sentence-transformers' files cannot name.
    """
    if isinstance(head, LayerNorm):
        if head.eps != LayerNorm.eps or not head.bias:
            raise InputError(
                "cannot save a LayerNorm head: sentence-transformers' has a bias and the eps "
                f"{LayerNorm.eps}, this one eps {head.eps}, bias {head.bias}"
            )
        write_json(directory / "config.json", {"dimension": head.dimension})
        _write(directory, {"norm.weight": params["scale"], "norm.bias": params["bias"]})
        return
    if isinstance(head, Dropout):
        write_json(directory / "config.json", {"dropout": head.rate})
        return
    if isinstance(head, LogitScore):
        tokens = {"true_token_id": head.true_token_id, "false_token_id": head.false_token_id}
        write_json(directory / "config.json", {**tokens, "module_input_name": LOGITS})
        return
    places = dict(zip(PLACES, (reads, output), strict=True))
    places = places if output != SENTENCE else {}
    if not isinstance(head, Dense):
        write_json(directory / "config.json", places)
        return
    if head.activation not in TORCH_ACTIVATIONS:
        raise InputError(
            f"cannot save a Dense head: {unknown('activation', head.activation, TORCH_ACTIVATIONS)}"
        )
    config = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": head.bias,
        "activation_function": TORCH_ACTIVATIONS[head.activation],
        **places,
        **({"use_residual": True} if head.residual else {}),
    }
    write_json(directory / "config.json", config)
    _write(directory, _dense_tensors(params))


def _dense_tensors(params: Params) -> dict[str, Any]:
    names = {"kernel": "linear.weight", "bias": "linear.bias", "residual": "residual.weight"}
    return {names[leaf]: value.T for leaf, value in params.items()}


def _dense_params(tensors: Mapping[str, np.ndarray]) -> Params:
    names = {"linear.weight": "kernel", "linear.bias": "bias", "residual.weight": "residual"}
    return {names[name]: value.T for name, value in tensors.items()}


# ---- before the pooling --------------------------------------------------------------------------


def read_weighted_layers(directory: Path) -> tuple[WeightedLayers, Params]:
    """Reads the config and weights of a WeightedLayerPooling as a WeightedLayers.

    Raises:
        InputError: a field that is missing or unknown, or weights that do not fit the config.
    """
    path = directory / "config.json"
    config = _read_config(path, WEIGHTED_FIELDS, ())
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if width is None:
        raise InputError(f"{path}: missing 'embedding_dimension'")
    try:
        head = WeightedLayers(
            width, config.get("num_hidden_layers", 12), config.get("layer_start", 4)
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    tensors = _read_exactly(directory, {"layer_weights": (head.num_layers + 1 - head.start,)})
    return head, {"weights": tensors["layer_weights"]}


def write_weighted_layers(directory: Path, head: WeightedLayers, params: Params) -> None:
    """Writes the weights, and the config in the form that all versions read."""
    config = dict(
        zip(
            ("word_embedding_dimension", *WEIGHTED_FIELDS[2:]),
            dataclasses.astuple(head),
            strict=True,
        )
    )
    write_json(directory / "config.json", config)
    _write(directory, {"layer_weights": params["weights"]})


def read_latent_attention(directory: Path) -> tuple[LatentAttention, Params]:
    """Reads a LatentAttention and its parameters.

    Raises:
        InputError: fields that are missing, unknown or not sizes, or tensors that do not fit them.
    """
    path = directory / "config.json"
    config = _read_config(
        path, [field.name for field in dataclasses.fields(LatentAttention)], ["width"]
    )
    try:
        head = LatentAttention(**config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    shapes = jax.eval_shape(lambda key: _latent_tensors(head.init(key)), jax.random.key(0))
    tensors = _read_exactly(directory, {name: tensor.shape for name, tensor in shapes.items()})
    params: Params = {"latents": tensors["latents"]}
    for part, module in LATENT_TENSORS.items():
        params[part] = {
            "scale" if part.endswith("norm") else "kernel": tensors[f"{module}.weight"].T
        }
        if f"{module}.bias" in tensors:
            params[part]["bias"] = tensors[f"{module}.bias"]
    for part, weight in zip(("key", "value"), np.split(tensors[KEY_AND_VALUE], 2), strict=True):
        params[part] = {"kernel": weight.T}
    return head, params


def write_latent_attention(directory: Path, head: LatentAttention, params: Params) -> None:
    """Writes a LatentAttention's sizes and weights.

    Tensors are named as in the code of NV-Embed's authors.
    """
    write_json(directory / "config.json", dataclasses.asdict(head))
    _write(directory, _latent_tensors(params))


def _latent_tensors(params: Params) -> dict[str, Any]:
    tensors = {"latents": params["latents"]}
    for part, module in LATENT_TENSORS.items():
        for leaf, value in params[part].items():
            tensors[f"{module}.{'bias' if leaf == 'bias' else 'weight'}"] = value.T
    return tensors | {
        KEY_AND_VALUE: jnp.concatenate([params[name]["kernel"].T for name in ("key", "value")])
    }


# ---- in place of the pooling ---------------------------------------------------------------------


def read_splade(directory: Path) -> Splade:
    """Reads the config of a SpladePooling.

    Raises:
        InputError: a field that is unknown, or a value of one.
    """
    path = directory / "config.json"
    config = _read_config(path, SPLADE_FIELDS, ())
    activation = config.get("activation_function", "relu")
    if activation not in SPLADE_ACTIVATIONS:
        raise InputError(
            f"{path}: {unknown('activation_function', activation, SPLADE_ACTIVATIONS)}"
        )
    try:
        return Splade(config.get("pooling_strategy", "max"), SPLADE_ACTIVATIONS[activation])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_splade(directory: Path, head: Splade, dim: int) -> None:
    """Writes the config of a SpladePooling."""
    names = {logs: name for name, logs in SPLADE_ACTIVATIONS.items()}
    config = dict(zip(SPLADE_FIELDS, (head.pooling, names[head.logs], dim), strict=False))
    write_json(directory / "config.json", config)


def read_token_weights(directory: Path) -> tuple[TokenWeights, Float[np.ndarray, "V 1"]]:
    """Reads a SparseStaticEmbedding: its head, and the weights of the tokens.

    They are in model.safetensors, or by token in the file that config.json names, such as
    OpenSearch's idf.json, which is looked for in the module's folder.

    Raises:
        InputError: a field that is unknown, or weights that cannot be read.
    """
    path = directory / "config.json"
    config = _read_config(path, TOKEN_WEIGHT_FIELDS, ())
    head = TokenWeights(bool(config.get("frozen", False)))
    if config.get("path"):
        return head, _weights_by_token(directory, directory / Path(config["path"]).name)
    weights = read_tensors(directory).get("weight")
    if weights is None or weights.ndim != 1:
        raise InputError(f"{directory / WEIGHTS}: expected the tensor 'weight' [V]")
    return head, np.asarray(weights, np.float32)[:, None]


def _weights_by_token(directory: Path, path: Path) -> Float[np.ndarray, "V 1"]:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    weights = np.zeros((1 + max(vocabulary.values()), 1), np.float32)
    for token, weight in read_json(path).items():
        if token not in vocabulary or type(weight) not in (int, float):
            raise InputError(
                f"{path}: expected a number for each token of the tokenizer, found {weight!r} for "
                f"{token!r}"
            )
        weights[vocabulary[token]] = weight
    return weights


def write_token_weights(directory: Path, head: TokenWeights, table: Float[AnyArray, "V 1"]) -> None:
    """Writes the config and the weights of a SparseStaticEmbedding."""
    write_json(directory / "config.json", {"frozen": head.frozen})
    _write(directory, {"weight": np.asarray(table)[:, 0]})


# ---- both ----------------------------------------------------------------------------------------


def _read_config(
    path: Path,
    fields: Iterable[str],
    needed: Iterable[str],
    *,
    reads: str = SENTENCE,
    gives: str = SENTENCE,
) -> dict[str, Any]:
    """Reads a module's config.json, without its fields PLACES.

    Args:
        path: the file.
        fields: those that may be there.
        needed: those that must be there.
        reads: the name of what the module must read.
        gives: the name of what it must give.

    Raises:
        InputError: a field is unknown or missing, or the module reads or gives anything else.
    """
    config = read_json(path, json_fields.MODULE)
    for name, expected in zip(PLACES, (reads, gives), strict=True):
        place = config.pop(name, None)
        default = SENTENCE if expected == SCORES else expected
        if (place or default) != expected:
            after = ", after the pooling" if expected == SENTENCE else ""
            raise InputError(f"{path}: {name}: expected {expected!r}{after}, found {place!r}")
    for name, value in config.items():
        if name not in fields:
            raise InputError(f"{path}: {unknown('field', name, fields)}")
        if name not in NO_SIZES and (type(value) is not int or value < 0):
            raise InputError(f"{path}: {name}: expected a size, found {value!r}")
    missing = [name for name in needed if name not in config]
    if missing:
        raise InputError(f"{path}: missing {missing[0]!r}")
    return config


def _read_exactly(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    tensors = read_tensors(directory)
    file_shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if file_shapes != shapes:
        raise InputError(f"{directory / WEIGHTS}: found {file_shapes}, expected {shapes}")
    return {
        name: tensor.astype(param_dtype(tensor.dtype), copy=False)
        for name, tensor in tensors.items()
    }


def _write(directory: Path, tensors: Mapping[str, AnyArray]) -> None:
    arrays = {name: np.asarray(value, param_dtype(value.dtype)) for name, value in tensors.items()}
    write_safetensors(directory / WEIGHTS, arrays)
