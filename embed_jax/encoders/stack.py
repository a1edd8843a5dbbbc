"""Shared parts of the backbones' modules.

A scan over equal layers, whose parameters are stacked on a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.layers import MaskPositions
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

ADAPTER = (
    "lora"  # the collection of parameters that an adapter adds, beside the collection "params"
)
BEFORE_LAST = (
    "before_last"  # the collection that a caller asks for to get the states before the last layer's
)
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable
}  # what is kept; others: nothing
REMATS = ("none", "layer", *POLICIES)


class Stack(nn.Module):
    """A backbone's settings, and what its `__call__` is put together from.

    Attributes:
        config: the backbone's frozen dataclass.
        remat: "layer" recomputes each layer in the backward pass, "dots" all of it but the matrix
            products with parameters, "none" keeps everything.
        unroll: how many layers one iteration of the scan holds.
        read: maps a layer's parameters as stored (a shard of them) to those to compute with; each
            layer is then recomputed in the backward pass, so that what was read is not kept. None:
            as stored.
        mask_columns: into how many columns of examples a group's sentences fall whose dropout masks
            are equal, position by position; 0: every slot has its own mask.
    """

    config: Any
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    read: Callable[[Any], Any] | None = None
    mask_columns: int = 0

    def split(self, key: PRNGKeyArray | None) -> tuple[PRNGKeyArray | None, PRNGKeyArray | None]:
        """A dropout key for the embeddings, and one for each layer, stacked."""
        if key is None:
            return None, None
        keys = jax.random.split(key, self.config.num_layers + 1)
        return keys[-1], keys[:-1]

    def places(self, tokens: TokenBatch, key: PRNGKeyArray | None) -> MaskPositions | None:
        """Returns the slots with equal dropout masks, if `mask_columns` is set and there is dropout.

        Raises:
            InputError: the sentences do not fall into this many columns.
        """
        if key is None or not self.mask_columns:
            return None
        examples, rest = divmod(tokens.sentences, self.mask_columns)
        if rest:
            raise InputError(
                f"{tokens.sentences} sentences are not {self.mask_columns} columns with one dropout "
                "mask"
            )
        return MaskPositions(tokens.sentence % examples, tokens.position)

    def scan(
        self,
        layer: type[nn.Module],
        hidden: Float[Array, "R T D"],
        each: Any,
        *shared: Any,
        every_layer: bool,
    ) -> Float[Array, "*L R T D"]:
        """Hidden states after the last layer, or of every layer with a leading axis L.

        Args:
            layer: made as `layer(config, dtype, attention, every_layer)`, called as `(hidden, own,
                *shared)`; gives the next hidden states, and these again if every layer is asked
                for, else None.
            each: what belongs to each layer, stacked: its dropout key, or a tree with its key
                and more.
            shared: what is the same for all layers.
        """
        if self.read is not None:
            read = self.read
            layer = nn.map_variables(
                layer,
                "params",
                trans_in_fn=lambda variables: {"params": read(variables["params"])},
                mutable=False,
            )
        if self.read is not None or self.remat != "none":
            layer = nn.remat(layer, prevent_cse=self.unroll > 1, policy=POLICIES.get(self.remat))
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, ADAPTER: 0},
            split_rngs={"params": True, ADAPTER: True},
            in_axes=(0, *(nn.broadcast for _ in shared)),
            length=self.config.num_layers,
            unroll=self.unroll,
        )(self.config, self.dtype, self.attention, every_layer, name="layers")
        last, every = layers(hidden, each, *shared)
        if every_layer and self.is_mutable_collection(
            BEFORE_LAST
        ):  # as they are, without what follows the layers
            self.put_variable(BEFORE_LAST, "states", jnp.concatenate([hidden[None], every[:-1]]))
        return every if every_layer else last
