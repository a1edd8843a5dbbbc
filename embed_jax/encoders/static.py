"""A static encoder: a text's embedding is the mean of its tokens' vectors, whatever their order.

On disk it is sentence-transformers' StaticEmbedding: `tokenizer.json`, and `model.safetensors` with
the table of vectors. There is no config.json, since the table's shape is the whole configuration.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.family import Family
from embed_jax.encoders.layers import take_rows
from embed_jax.encoders.weights import WEIGHTS, open_tensors, params_from_tensors
from embed_jax.errors import InputError, one_line
from embed_jax.types import Params, Put, TokenBatch

# Tokens; sentence-transformers has no limit here, but a row of packed texts needs one
MAX_LENGTH = 8192
TABLE = "embedding.weight"


@dataclasses.dataclass(frozen=True)
class StaticConfig:
    """The size of a table of token vectors.

    Attributes:
        max_length: tokens after which a text is cut; the tokenizer's own truncation, if it has one.
        initializer_range: standard deviation of the initial vectors.
    """

    family: str = "static"
    vocab_size: int = 30522
    hidden_size: int = 256
    num_layers: int = 0
    max_length: int = MAX_LENGTH
    initializer_range: float = 0.02


SHAPES = {"static": StaticConfig()}  # for runs without weights


class Static(nn.Module):
    """Maps token ids to rows of the table, in float32.

    There is no product that a smaller dtype would make faster. The attributes are those of
    `stack.Stack`, so that every backbone is made in the same way; without layers, attention and
    dropout they change nothing.
    """

    config: StaticConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    read: Any = None
    mask_columns: int = 0

    @nn.compact
    def __call__(
        self, tokens: TokenBatch, key: PRNGKeyArray | None = None, every_layer: bool = False
    ) -> Float[Array, "*L R T D"]:
        """Returns the rows, with a leading axis of one "layer" if `every_layer`."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        table = self.param("token", nn.initializers.normal(self.config.initializer_range), shape)
        rows = take_rows(table, tokens.token_ids)
        return rows[None] if every_layer else rows


STATIC = Family(
    shapes=SHAPES,
    architecture="StaticEmbedding",
    module=Static,
    read_config=None,
    write_config=None,
    tensors={"token": TABLE.removesuffix(".weight")},
    sharding=(("token", (None, "fsdp")),),
    pooling="mean",
)


def read_static(directory: Path, put: Put | None = None) -> tuple[StaticConfig, Params]:
    """Reads the table of a StaticEmbedding or of model2vec.

    The latter is `embeddings[mapping] * weights`, where `mapping` and `weights` are optional.

    Raises:
        InputError: a file is missing or damaged, or has other tensors, or the table is not of
            floats.
    """
    where = directory / WEIGHTS
    tensors = open_tensors(directory)
    names = set(tensors)
    if not (names == {TABLE} or {"embeddings"} <= names <= {"embeddings", "mapping", "weights"}):
        raise InputError(
            f"{where}: found the tensors {', '.join(sorted(names)) or 'none'}; expected {TABLE}, "
            "or model2vec's embeddings with or without mapping and weights"
        )
    table = tensors[TABLE if TABLE in names else "embeddings"]
    if not jnp.issubdtype(table.dtype, jnp.floating) or table.ndim != 2:
        raise InputError(
            f"{where}: the table is {table.dtype.name} of shape {table.shape}; "
            "expected floats [V, D]"
        )
    if "mapping" in tensors:
        mapping = tensors["mapping"].astype(np.int64)
        if mapping.size and not 0 <= mapping.min() <= mapping.max() < len(table):
            raise InputError(
                f"{where}: mapping names rows from {mapping.min()} to {mapping.max()} of "
                f"{len(table)}"
            )
        table = table[mapping]
    if "weights" in tensors:
        if tensors["weights"].shape != table.shape[:1]:
            raise InputError(
                f"{where}: weights of shape {tensors['weights'].shape} for {len(table)} tokens"
            )
        table = table.astype(np.float32) * tensors["weights"].astype(np.float32)[:, None]
    limit = _read_limit(directory / "tokenizer.json")
    config = StaticConfig(vocab_size=len(table), hidden_size=table.shape[1], max_length=limit)
    return config, params_from_tensors(STATIC, {"token": table}, {TABLE: table}, where, put=put)


def _read_limit(path: Path) -> int:
    """Returns the number of tokens after which a tokenizer cuts a text: at most MAX_LENGTH."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no other kind
        raise InputError(f"{path}: the tokenizer cannot be read: {one_line(error)[:200]}") from None
    limit = (tokenizer.truncation or {}).get("max_length") or MAX_LENGTH
    return min(limit, MAX_LENGTH)
