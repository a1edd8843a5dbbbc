"""Builds an encoder from its spec: backbone, pooling and heads as pure functions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.attention import IMPLEMENTATIONS
from embed_jax.encoders.int8 import dequantize_params, has_int8
from embed_jax.encoders.latent import SHARDING as LATENT_SHARDING
from embed_jax.encoders.lexical import LexicalWeights
from embed_jax.encoders.lora import SHARDING as LORA_SHARDING
from embed_jax.encoders.lora import init_lora, make_adapter_interceptor
from embed_jax.encoders.pooling import (
    check_pooling,
    needs_every_layer,
    needs_one_slot,
    pool,
    pooled_slots,
    separate,
)
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import ADAPTER, BEFORE_LAST, REMATS
from embed_jax.encoders.vocabulary import SHARDING as VOCABULARY_SHARDING
from embed_jax.encoders.vocabulary import (
    VOCABULARY,
    Splade,
    TokenWeights,
    check_family,
    token_table,
)
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.remembered import remembered
from embed_jax.types import Encoder, Params, TokenBatch

MOST_UNROLLED = 12  # layers
ADAPTER_KEY = 2**20  # the number, beyond any layer's, that gives an adapter's keys
TOKEN_HEAD, TOKEN_HEAD_KEY = "token_head", 2**20 + 1
VOCABULARY_KEY = 2**20 - 1
BRANCH_KEY = 2**19  # and those after it
DENSE, BRANCHES = "dense", "branches"  # an encoder's own output beside others; their parameters
HEADS_KEY = 2**20 + 2  # and those after it: the numbers that give the heads' keys


@remembered
def build_encoder(
    spec: EncoderSpec,
    *,
    compute_dtype: str = "float32",
    remat: str = "none",
    attention: str = "auto",
    unroll: int | None = None,
    same_mask_columns: int = 0,
    vectors_per_text: int | None = None,
) -> Encoder:
    """Builds the encoder that `spec` describes as pure functions, the same ones for an equal spec.

    >>> from embed_jax.encoders.spec import random_spec
    >>> encoder = build_encoder(random_spec("tiny", vocab_size=10))
    >>> params = encoder.init(jax.random.key(0))
    >>> ids = jnp.array([[1, 2, 3]])  # one text of three tokens
    >>> tokens = TokenBatch(ids, 0 * ids, jnp.arange(3)[None], ids > 0, sentences=1)
    >>> encoder.apply(params, tokens).shape
    (1, 32)

    Args:
        spec: the encoder's backbone, pooling and heads.
        compute_dtype: "float32" or "bfloat16", the dtype of activations and products. Parameters,
            norms, softmax, pooling and heads are float32 always.
        remat: "layer" keeps only each layer's input for the backward pass; "dots" the matrix
            products with parameters too; "none" keeps everything.
        attention: "auto", or an implementation by name; see attention.attention.
        unroll: layers per iteration of the scan over layers; None: all of them when training a
            model of at most 12 on CPU (with a dropout key), else 1. A step is a tenth faster there
            without the loop, but takes longer to compile, with 24 layers 14 s instead of 4; parts
            of 4 or 6 layers are slower than either. Without gradients the loop is as fast or
            faster, since no weight is copied.
        same_mask_columns: C, the number of texts of an example, if all of them are to have one
            dropout mask: position by position they lose the same numbers, wherever they are packed
            (SimCSE's "fixed 0.1", Gao et al. 2021, table 3). As in `types.Batch`, sentence c * E +
            e of a group is column c of its e-th example. 0: every slot has its own mask.
        vectors_per_text: L, for a spec without pooling: a text's embedding is {"tokens": [L, D],
            "mask": [L]}, the vectors of its tokens and which of them count. 0: `apply` gives those
            of all slots, [R * T, D], and of a branch with `LexicalWeights` those of all slots,
            [R * T]. None: the pooling's vector. With branches it is theirs without pooling.

    Returns:
        An encoder whose params are {"backbone": tree with layers stacked on the leading axis,
        "heads": {"0": ..., "1": ...}}, and where the spec has them "lora" (see `lora.init_lora`),
        "token_head" (see `latent.LatentAttention.init`), "vocabulary" (see `mlm.init_head`) and
        "branches" (by name, those of each after the backbone).
        Kernels of layers may be `int8.Int8`:
        they are dequantized a layer at a time, and again in the backward pass.

    Raises:
        InputError: for an unknown backbone, pooling, activation, dtype, remat or attention; for
            `same_mask_columns` together with an adapter's dropout, which has its own masks; for a
            token head of another width, of another number of layers, or beside a pooling of
            several layers; and for a sparse encoder with other heads, or of a backbone without a
            masked language model.
    """
    for what, value, known in (
        ("compute_dtype", compute_dtype, ("float32", "bfloat16")),
        ("remat", remat, REMATS),
        ("attention", attention, IMPLEMENTATIONS),
    ):
        if value not in known:
            raise InputError(unknown(what, value, known))
    if vectors_per_text is None:
        check_pooling(spec.pooling)
    elif spec.pooling and not spec.branches:
        raise InputError(
            f"vectors_per_text: expected a spec without pooling, found {spec.pooling!r}"
        )
    config = spec.backbone
    family = lookup("backbone", config.family)
    if family.pooling and spec.pooling != family.pooling:
        raise InputError(
            f"pooling {spec.pooling!r}: a {config.family} encoder has {family.pooling!r} only"
        )
    every_layer = needs_every_layer(spec.pooling)
    if same_mask_columns and spec.lora is not None and spec.lora.dropout:
        raise InputError(
            f"same_mask_columns {same_mask_columns}: an adapter with dropout has its own masks"
        )
    if spec.token_head is not None and every_layer:
        raise InputError(
            f"pooling {spec.pooling!r} reads several layers: a token head is for the last one's "
            "states"
        )
    if spec.token_head is not None and spec.token_head.width != config.hidden_size:
        width, size = spec.token_head.width, config.hidden_size
        raise InputError(
            f"token head: expected the width {size} of the backbone's states, found {width}"
        )
    vocabulary = spec.vocabulary
    if isinstance(vocabulary, Splade):
        check_family(config)
    if vocabulary is not None and (every_layer or spec.heads):
        raise InputError("a sparse encoder has no pooling and no heads of pooled vectors")
    token_head = spec.token_head
    weighted = isinstance(token_head, WeightedLayers)
    if isinstance(token_head, WeightedLayers) and token_head.num_layers != (
        config.num_layers or None
    ):
        raise InputError(
            f"token head: weights for {token_head.num_layers} layers, but a {config.family} "
            f"encoder of {config.num_layers}"
        )

    shared = {"mask_columns": same_mask_columns} if same_mask_columns else {}

    def layers_per_iteration(training: bool, read) -> int:
        # The memory of a layer that is gathered from shards is to be free before the next one.
        whole = training and read is None and jax.default_backend() == "cpu"
        whole = whole and config.num_layers <= MOST_UNROLLED
        return unroll or (config.num_layers if whole else 1)

    def module(training: bool, read=None, **options):
        return family.module(
            config,
            dtype=jnp.dtype(compute_dtype),
            remat=remat,
            attention=attention,
            unroll=layers_per_iteration(training, read),
            read=read,
            **shared,
            **options,
        )

    branches = {
        branch: build_encoder(
            branch.spec(config),
            compute_dtype=compute_dtype,
            vectors_per_text=None if branch.pooling else vectors_per_text or 0,
        )
        for branch in spec.branches
    }
    one_slot = needs_one_slot(spec.pooling) and config.num_layers > 0
    one_slot = one_slot and spec.token_head is None and not branches

    def reads_one_slot(training: bool, read) -> bool:
        """Tells whether the last layer is computed for the pooled slots only.

        On CPU, where sums over segments have a fixed order; and in training if layers are unrolled,
        since a loop over all but the last would copy their parameters.
        """
        unrolled = layers_per_iteration(training, read) >= config.num_layers
        return one_slot and jax.default_backend() == "cpu" and (unrolled or not training)

    def init(key: PRNGKeyArray) -> Params:
        backbone_key = jax.random.split(key, len(spec.heads) + 1)[0]
        backbone = module(training=False).init(backbone_key, _one_token_batch())["params"]
        if isinstance(vocabulary, TokenWeights):
            backbone = jax.tree.map(jnp.ones_like, backbone)
        params = {"backbone": backbone, **init_heads(spec, key)}
        if spec.lora is not None:
            params[ADAPTER] = init_lora(spec, backbone, jax.random.fold_in(key, ADAPTER_KEY))
        return params

    def states(
        params: Params,
        tokens: TokenBatch,
        key: PRNGKeyArray | None,
        read,
        every_layer: bool = False,
        # The embeddings' too, and without a final norm except for the last layer's
        all_states: bool = False,
        **options,
    ) -> Float[Array, "*Q D"]:
        backbone = params["backbone"]
        if has_int8(backbone):
            read = _dequantize_on_read(read, compute_dtype)
        run = functools.partial(
            module(key is not None, read, **options).apply,
            mutable=[BEFORE_LAST] if all_states else False,
        )
        if spec.lora is None:
            output = run({"params": backbone}, tokens, key, every_layer)
        else:
            rngs = {} if key is None else {ADAPTER: jax.random.fold_in(key, ADAPTER_KEY)}
            with nn.intercept_methods(make_adapter_interceptor(spec.lora)):
                output = run(
                    {"params": backbone, ADAPTER: params[ADAPTER]},
                    tokens,
                    key,
                    every_layer,
                    rngs=rngs,
                )
        if not all_states:
            return output
        every, others = output
        return jnp.concatenate([others[BEFORE_LAST]["states"], every[-1:]])

    def apply(
        params: Params, tokens: TokenBatch, key: PRNGKeyArray | None = None, read=None
    ) -> Any:
        if reads_one_slot(key is not None, read):
            vectors = states(params, tokens, key, read, pooling=spec.pooling)
            present = pooled_slots(spec.pooling, tokens) >= 0
            return apply_heads(
                params, jnp.where(present[:, None], vectors, 0).astype(jnp.float32), key
            )
        every = states(params, tokens, key, read, every_layer or weighted, weighted)
        own = finish(params, every, tokens, key)
        if not branches:
            return own
        last, backbone = every[-1] if every.ndim > 3 else every, params["backbone"]
        outputs = {DENSE: own}
        for branch, encoder in branches.items():
            counted = tokens.pooled & (tokens.position > 0) if branch.skip_first else tokens.pooled
            group = tokens.replace(pooled=counted)
            parts = {"backbone": backbone, **params[BRANCHES][branch.name]}
            assert encoder.finish is not None, "`build_encoder` gives an encoder its end"
            outputs[branch.name] = encoder.finish(parts, last, group, key)
        return outputs

    def finish(
        params: Params, x: Float[Array, "*L R T H"], tokens: TokenBatch, key: PRNGKeyArray | None
    ) -> Any:
        if spec.token_head is not None:
            x = spec.token_head.apply(params[TOKEN_HEAD], x)
        if vocabulary is not None:
            own, table = params.get(VOCABULARY, {}), token_table(params)
            if isinstance(vocabulary, LexicalWeights) and vectors_per_text == 0:
                return vocabulary.of_tokens(own, x, tokens).reshape(-1)
            return vocabulary.apply(own, config, x, table, tokens, compute_dtype)
        x = pool(spec.pooling, x, tokens) if spec.pooling else x.astype(jnp.float32)
        x = apply_heads(params, x, key)
        if spec.pooling:
            return x
        return separate(x, tokens, vectors_per_text) if vectors_per_text else x.reshape(-1, dim)

    def apply_heads(
        params: Params, x: Float[Array, "*B E"], key: PRNGKeyArray | None
    ) -> Float[Array, "*B D"]:
        for i, head in enumerate(spec.heads):
            own_key = None if key is None else jax.random.fold_in(key, HEADS_KEY + i)
            x = head.apply(params["heads"].get(str(i), {}), x, own_key)
        return x

    def by_layer(
        params: Params,
        tokens: TokenBatch,
        layer: Int[Array, " K"],
        key: PRNGKeyArray | None = None,
        read=None,
    ) -> Float[Array, "S L D"]:
        if every_layer or weighted:
            what = "weights of layers read" if weighted else f"pooling {spec.pooling!r} reads"
            raise InputError(f"{what} several layers: earlier layers have no such embedding")
        every = states(params, tokens, key, read, every_layer=True)
        chosen = [*(every[number - 1] for number in layer), every[-1]]
        embeddings = [finish(params, each, tokens, key) for each in chosen]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *embeddings)

    def hidden(
        params: Params, tokens: TokenBatch, key: PRNGKeyArray | None = None, read=None
    ) -> Float[Array, "R T H"]:
        return states(params, tokens, key, read)

    dim = config.hidden_size * len(spec.pooling.split("+"))
    for head in spec.heads:
        dim = head.dim(dim)
    dim = dim if vocabulary is None else config.vocab_size
    sharding = (
        *((f"backbone/{pattern}", axes) for pattern, axes in family.sharding),
        *LORA_SHARDING,
        *LATENT_SHARDING,
        *VOCABULARY_SHARDING,
    )
    return Encoder(
        # As one program, from which the compiler drops the forward pass that the module's own
        # initialisation makes.
        init=jax.jit(init),
        apply=apply,
        hidden=hidden,
        by_layer=by_layer,
        finish=finish,
        config=config,
        dim=dim,
        sharding=sharding,
        layers=("backbone", "layers") if config.num_layers else (),
    )


def init_heads(spec: EncoderSpec, key: PRNGKeyArray) -> Params:
    """Returns the initial parameters of all that comes after an encoder's backbone."""
    head_keys = jax.random.split(key, len(spec.heads) + 1)[1:]
    heads = {
        str(i): head.init(own_key)
        for i, (head, own_key) in enumerate(zip(spec.heads, head_keys, strict=True))
    }
    params: Params = {"heads": {name: own for name, own in heads.items() if own}}
    if spec.vocabulary is not None:
        own_key = jax.random.fold_in(key, VOCABULARY_KEY)
        own = spec.vocabulary.init(spec.backbone, own_key)
        params |= {VOCABULARY: own} if own else {}
    if spec.token_head is not None:
        params[TOKEN_HEAD] = spec.token_head.init(jax.random.fold_in(key, TOKEN_HEAD_KEY))
    if spec.branches:
        params[BRANCHES] = {
            branch.name: init_heads(branch.spec(spec.backbone), jax.random.fold_in(key, number))
            for number, branch in enumerate(spec.branches, start=BRANCH_KEY)
        }
    return params


def _dequantize_on_read(read, dtype: str):
    """Returns a function that reads a layer's parameters and dequantizes those in eight bits."""
    return lambda layer: dequantize_params(layer if read is None else read(layer), dtype)


def _one_token_batch() -> TokenBatch:
    slot = np.zeros((1, 1), np.int32)
    return TokenBatch(token_ids=slot, sentence=slot, position=slot, pooled=slot == 0, sentences=1)
