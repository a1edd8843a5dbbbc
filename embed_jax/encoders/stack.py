"""The base class of the backbones' modules: a scan over equal layers with stacked parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PRNGKeyArray

from embed_jax.encoders.attention import needs_bias
from embed_jax.encoders.attention_mask import AttentionMask, make_mask
from embed_jax.encoders.layers import MaskPositions, Queries
from embed_jax.encoders.pooling import pooled_slots
from embed_jax.errors import InputError
from embed_jax.types import TokenBatch

# The collection of an adapter's parameters, beside the collection "params".
ADAPTER = "lora"
# The collection that a caller makes mutable to get the states before the last layer's.
BEFORE_LAST = "before_last"
# What a layer keeps for the backward pass; without a policy it keeps only its input.
POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
REMATS = ("none", "layer", *POLICIES)


class Stack(nn.Module):
    """A backbone's settings, and the parts of its `__call__`.

    Attributes:
        config: the backbone's frozen dataclass.
        dtype: of activations and products.
        remat: "layer" recomputes each layer in the backward pass, "dots" all of it except the
            matrix products with parameters, "none" keeps everything.
        attention: see attention.attention.
        unroll: the number of layers in one iteration of the scan.
        read: maps a layer's parameters as stored (a shard of them) to those to compute with; each
            layer is then recomputed in the backward pass, so that the result is not kept. None:
            parameters are used as stored.
        mask_columns: C: a group's sentences are C columns of examples, and the texts of an example
            have equal dropout masks, position by position; 0: every slot has its own mask.
        pooling: a pooling that reads one slot of each sentence: only the states of these slots are
            computed in the last layer, [S, D] instead of [R, T, D]; "": those of all slots are.
    """

    config: Any
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    read: Callable[[Any], Any] | None = None
    mask_columns: int = 0
    pooling: str = ""

    def split(
        self, key: PRNGKeyArray | None
    ) -> tuple[PRNGKeyArray | None, Key[Array, " L"] | None]:
        """Returns a dropout key for the embeddings, and one for each layer, stacked."""
        if key is None:
            return None, None
        keys = jax.random.split(key, self.config.num_layers + 1)
        return keys[-1], keys[:-1]

    def places(self, tokens: TokenBatch, key: PRNGKeyArray | None) -> MaskPositions | None:
        """Returns the positions by which slots share dropout masks, or None if each has its own.

        Raises:
            InputError: the number of sentences is not a multiple of `mask_columns`.
        """
        if key is None or not self.mask_columns:
            return None
        examples, rest = divmod(tokens.sentences, self.mask_columns)
        if rest:
            raise InputError(
                f"{tokens.sentences} sentences are not {self.mask_columns} columns with one "
                "dropout mask"
            )
        return MaskPositions(jnp.asarray(tokens.sentence) % examples, jnp.asarray(tokens.position))

    def queries(self, tokens: TokenBatch, key: PRNGKeyArray | None) -> tuple[Queries, Queries]:
        """Returns the queries of all layers except the last, and those of the last.

        In the last layer a sentence without a pooled token has any slot.
        """
        every = Queries(jnp.asarray(tokens.sentence), self.places(tokens, key))
        if not self.pooling:
            return every, every
        return every, every.replace(slots=jnp.maximum(pooled_slots(self.pooling, tokens), 0))

    def mask(
        self, tokens: TokenBatch, windows: tuple[int, ...] = (0,), causal: bool = False
    ) -> AttentionMask:
        """Returns the mask of all layers; see `AttentionMask` for `windows` and `causal`."""
        dense = needs_bias(self.attention, tokens.token_ids.shape[-1])
        return make_mask(tokens, dense=dense, windows=windows, causal=causal)

    def scan(
        self,
        layer: type[nn.Module],
        hidden: Float[Array, "R T D"],
        each: Any,
        queries: tuple[Queries, Queries],
        *shared: Any,
        every_layer: bool,
    ) -> Float[Array, "*Q D"]:
        """Returns hidden states after the last layer, or after every layer with a leading axis L.

        Args:
            layer: made as `layer(config, dtype, attention, every_layer)`, called as `(hidden, own,
                queries, *shared)`; returns the next hidden states, and these again with
                `every_layer`, else None.
            hidden: the states that the first layer reads.
            each: the inputs `own` of the layers, stacked: the layer's dropout key, or a tree with
                the key and others.
            queries: see `queries`.
            *shared: inputs that are the same for all layers.
            every_layer: whether to return every layer's states.
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
            # In a loop of one layer XLA cannot merge the recomputation with the forward pass: the
            # barrier against that would only cost fusions.
            layer = nn.remat(layer, prevent_cse=self.unroll > 1, policy=POLICIES.get(self.remat))
        if queries[1].slots is not None:
            return self._scan_pooled(layer, hidden, each, queries, *shared)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, ADAPTER: 0},
            split_rngs={"params": True, ADAPTER: True},
            in_axes=(0, *(nn.broadcast for _ in (queries, *shared))),
            length=self.config.num_layers,
            unroll=self.unroll,
        )(self.config, self.dtype, self.attention, every_layer, name="layers")
        last, every = layers(hidden, each, queries[0], *shared)
        if every_layer and self.is_mutable_collection(BEFORE_LAST):
            # Without the norm that may follow the layers
            self.put_variable(BEFORE_LAST, "states", jnp.concatenate([hidden[None], every[:-1]]))
        return every if every_layer else last

    def _scan_pooled(
        self,
        layer: type[nn.Module],
        hidden: Float[Array, "R T D"],
        each: Any,
        queries: tuple[Queries, Queries],
        *shared: Any,
    ) -> Float[Array, "S D"]:
        """Returns the last layer's states of the pooled slots.

        The layers before it are a loop, as in `scan`, over the same stacked parameters.
        Dropout has the masks of `scan`, except for an adapter's, which draws others.
        """
        stacked: dict[str, Any] = {
            name: self.get_variable(name, "layers")
            for name in ("params", ADAPTER)
            if self.has_variable(name, "layers")
        }
        count = self.config.num_layers
        keys = jax.random.split(self.make_rng(ADAPTER), count) if self.has_rng(ADAPTER) else None

        def run(variables: Any, hidden: Array, own: Any, key: Any, queries: Queries) -> Array:
            module = layer(self.config, self.dtype, self.attention, False, parent=None)
            rngs = {} if key is None else {ADAPTER: key}
            return module.apply(variables, hidden, own, queries, *shared, rngs=rngs)[0]

        def select(index: Any, *trees: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], trees)

        def step(hidden: Array, inputs: Any) -> tuple[Array, None]:
            variables, own, key = inputs
            if not sliced:
                (variables,) = select(variables, stacked)
            return run(variables, hidden, own, key, queries[0]), None

        # In a loop a slice of the parameters would be a copy of most of them; in the backward pass
        # of an unrolled one, without slices each layer would add to the gradients of all of them.
        sliced = self.unroll > 1
        inputs = select(slice(count - 1), stacked if sliced else jnp.arange(count), each, keys)
        hidden, _ = jax.lax.scan(step, hidden, inputs, unroll=max(min(self.unroll, count - 1), 1))
        variables, own, key = select(count - 1, stacked, each, keys)
        return run(variables, hidden, own, key, queries[1])
