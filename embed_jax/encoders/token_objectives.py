"""Objectives that predict an encoder's tokens, hidden or next ones, beside a loss or without one.

    mlm()
    mntp(rate=0.2)
    mntp(rate=0.8, mask=1.0, random=0.0)
    next_token()

Each is a function of its settings that returns a `TokenObjective`, which makes an `Auxiliary` from
an encoder and its tokenizer. Logits are float32, and computed for a block of tokens at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from embed_jax.encoders.mlm import MASKED, RANDOM, head_logits, init_head, mask_tokens
from embed_jax.encoders.vocabulary import token_table
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, called
from embed_jax.types import AnyArray, Auxiliary, Encoder, Params, TokenBatch

TokenObjective = Callable[[Encoder, Any], Auxiliary]
"""`(encoder, tokenizer) -> objective`; transformers' tokenizer has the mask and special tokens."""

EVERY_TIME = 0  # seed of the choice of hidden tokens without a key
BLOCK = 2**26  # logits that exist at once: 256 MB
FINAL_SOFTCAPS = {"gemma2": 30.0}  # c: logits l become c tanh(l / c)
BLANK = "_"  # LLM2Vec's mask token for decoders' tokenizers, which have no mask token


# ---- objectives by name --------------------------------------------------------------------------


def mlm(
    rate: float = 0.15, mask: float = MASKED, random: float = RANDOM, mask_token: str = ""
) -> TokenObjective:
    """Masked language modelling (Devlin et al. 2019): predicts a hidden token from its own state.

    Args:
        rate: the share of the tokens, without special ones, that are predicted.
        mask: the share of these that become the mask token.
        random: the share of these that become a random token; the others stay.
        mask_token: the token that hides others; "": the tokenizer's own mask token.
    """
    return functools.partial(
        _hidden_token_auxiliary,
        rate=rate,
        mask=mask,
        random=random,
        mask_token=mask_token,
        before=0,
    )


def mntp(
    rate: float = 0.2, mask: float = MASKED, random: float = RANDOM, mask_token: str = ""
) -> TokenObjective:
    """Masked next-token prediction (BehnamGhader et al. 2024, "LLM2Vec", section 2.1).

    It predicts a hidden token from the state of the token before it; the first token of a sentence
    is never hidden. The paper's Mistral has rate 0.8 with mask 1.

    Args:
        rate: see `mlm`.
        mask: see `mlm`.
        random: see `mlm`.
        mask_token: the token that hides others; "": the tokenizer's own mask token, or "_" if it
            has none.
    """
    return functools.partial(
        _hidden_token_auxiliary,
        rate=rate,
        mask=mask,
        random=random,
        mask_token=mask_token or None,
        before=1,
    )


def next_token() -> TokenObjective:
    """Causal language modelling: predicts each token of a sentence from the one before it.

    >>> from embed_jax.encoders.build import build_encoder
    >>> from embed_jax.encoders.spec import random_spec
    >>> encoder = build_encoder(random_spec("decoder-tiny", vocab_size=10))
    >>> objective = next_token()(encoder, tokenizer=None)
    >>> jax.eval_shape(objective.init, jax.random.key(0))["lm_head"].shape
    (10, 64)
    """
    return _next_token_auxiliary


def is_token_objective(expression: str) -> bool:
    """Tells whether an expression such as a config's `loss.name` names a token objective.

    >>> is_token_objective("mntp(rate=0.2)"), is_token_objective("info_nce()")
    (True, False)
    """
    return expression.partition("(")[0].strip() in REGISTRY["token_objective"]


def build_token_objective(expression: str) -> TokenObjective:
    """Builds the objective that an expression such as "mntp(rate=0.2)" names.

    >>> build_token_objective("mlm(rate=1)").keywords["rate"]
    1

    Raises:
        InputError: the expression cannot be used; the message says why, and what is accepted.
    """
    return called("token_objective", expression)


# ---- how they are computed -----------------------------------------------------------------------


def mlm_auxiliary(
    encoder: Encoder, mask_id: int, special_ids: Sequence[int], rate: float = 0.15
) -> Auxiliary:
    """Builds masked language modelling of the batch's own texts, for `parallel.gather.global_loss`.

    A group is encoded a second time with tokens hidden. The loss is the mean cross entropy of the
    hidden tokens over the global batch; the metric is "accuracy". Logits are computed for the
    hidden tokens only.

    Args:
        encoder: the encoder, which needs token states.
        mask_id: the mask token's id.
        special_ids: tokens that are never hidden.
        rate: the share of the other tokens that are hidden.

    Raises:
        InputError: for a rate outside (0, 1], a tokenizer without mask token, or an encoder without
            token states.
    """
    return _masked_auxiliary(encoder, mask_id, special_ids, rate, MASKED, RANDOM, before=0)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The output layer of a model that predicts tokens.

    Attributes:
        init: `key -> params`: makes its own parameters.
        logits: `(params, states [K, H], table [V, W]) -> [K, V]`: computes logits.
    """

    init: Callable[[PRNGKeyArray], Params]
    logits: Callable[..., Float[Array, "K V"]]


def build_predictor(encoder: Encoder) -> Predictor:
    """Returns the output layer that fits an encoder.

    For a decoder it is the product with the table of embeddings or with {"lm_head": [V, H]}, for an
    encoder like BERT the head of `mlm.init_head`.

    Raises:
        InputError: for an encoder that has neither.
    """
    config = encoder.config
    if hasattr(config, "tied"):
        return _output_layer(config)
    if not config.num_layers or not hasattr(config, "embedding_size"):
        raise InputError(f"a {config.family} encoder has no head that predicts tokens")
    return Predictor(functools.partial(init_head, config), functools.partial(head_logits, config))


def _output_layer(config: Any) -> Predictor:
    shape, softcap = (config.vocab_size, config.hidden_size), FINAL_SOFTCAPS.get(config.family)

    def init(key: PRNGKeyArray) -> Params:
        return (
            {}
            if config.tied
            else {"lm_head": config.initializer_range * jax.random.normal(key, shape)}
        )

    def logits(
        params: Params, states: Float[Array, "K H"], table: Float[AnyArray, "V H"]
    ) -> Float[Array, "K V"]:
        values = states @ params.get("lm_head", table).astype(jnp.float32).T
        return softcap * jnp.tanh(values / softcap) if softcap else values

    return Predictor(init, logits)


def token_cross_entropy(
    logits: Callable[[Float[Array, "n H"]], Float[Array, "n V"]],
    states: Float[Array, "K H"],
    targets: Int[AnyArray, " K"],
    weights: Float[AnyArray, " K"],
    *,
    block: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the weighted sums of cross entropies and of correct predictions.

    sum_k w_k (logsumexp_v l_kv - l_{k, y_k}) and sum_k w_k [argmax_v l_kv = y_k], for logits l,
    targets y and weights w.

    >>> states = jnp.array([[0.0, 1.0], [0.0, 0.0]])  # which are the logits too
    >>> targets, weights = jnp.array([1, 0]), jnp.array([1.0, 0.0])
    >>> token_cross_entropy(lambda x: x, states, targets, weights, block=1)[1].item()
    1.0

    Args:
        logits: computes the logits of states; its closure is differentiated too.
        states: the states of K tokens.
        targets: the tokens to predict.
        weights: the tokens' weights.
        block: the number of tokens whose logits are in memory at once. If there are more tokens,
            logits are computed again in the backward pass.
    """

    def sums(part):
        states, targets, weights = part
        block_logits = logits(states)
        entropy = (
            jax.nn.logsumexp(block_logits, axis=-1)
            - jnp.take_along_axis(block_logits, targets[:, None], axis=-1)[:, 0]
        )
        correct = jnp.argmax(block_logits, axis=-1) == targets
        return jnp.sum(entropy * weights), jnp.sum(correct * weights)

    everything = states, targets, weights
    if len(targets) <= block:
        return sums(everything)
    blocks = -(-len(targets) // block)
    missing = blocks * block - len(targets)

    def in_blocks(leaf):
        return jnp.pad(leaf, [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]).reshape(
            blocks, block, *leaf.shape[1:]
        )

    return jax.tree.map(jnp.sum, lax.map(jax.checkpoint(sums), jax.tree.map(in_blocks, everything)))


def _hidden_token_auxiliary(
    encoder: Encoder, tokenizer: Any, *, rate, mask, random, mask_token: str | None, before: int
):
    mask_id = _mask_id(tokenizer, mask_token, "mntp" if before else "mlm")
    return _masked_auxiliary(
        encoder, mask_id, tokenizer.all_special_ids, rate, mask, random, before
    )


def _mask_id(tokenizer: Any, mask_token: str | None, name: str) -> int:
    """Returns the mask's id; `mask_token` "": the tokenizer's own; None: that or BLANK."""
    token = mask_token or tokenizer.mask_token or (BLANK if mask_token is None else None)
    if token is None:
        raise InputError(
            f"{name}: the tokenizer has no mask token: name one of its tokens as mask_token"
        )
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise InputError(f"{name}: mask_token: expected a token of the vocabulary, found {token!r}")
    return token_id


def _masked_auxiliary(
    encoder: Encoder,
    mask_id: int,
    special_ids: Sequence[int],
    rate: float,
    mask: float,
    random: float,
    before: int,
) -> Auxiliary:
    """Builds the prediction of hidden tokens from states `before` positions before them."""
    name = "mntp" if before else "mlm"
    for what, value in (("mask", mask), ("random", random)):
        if not _is_number(value) or not 0 <= value <= 1:
            raise InputError(f"{name} {what}: expected a number from 0 to 1, found {value!r}")
    if not _is_number(rate) or not 0 < rate <= 1:
        raise InputError(f"{name} rate: expected more than 0 and at most 1, found {rate!r}")
    if mask + random > 1:
        raise InputError(
            f"{name}: mask and random: expected at most 1 together, found {mask} and {random}"
        )
    size = encoder.config.vocab_size
    if mask_id is None or not 0 <= mask_id < size:
        raise InputError(f"{name}: expected a mask token among the model's {size}, found {mask_id}")
    head = build_predictor(encoder)

    def apply(
        params: Params,
        encoder_params: Params,
        tokens: TokenBatch,
        key: PRNGKeyArray | None,
        read=None,
    ):
        dropout_key, choice_key = (
            (None, jax.random.key(EVERY_TIME)) if key is None else jax.random.split(key)
        )
        chances = {"rate": rate, "mask": mask, "random": random}
        masked, slots, chosen = mask_tokens(
            tokens,
            choice_key,
            mask_id=mask_id,
            special_ids=special_ids,
            vocab_size=size,
            first=before,
            **chances,
        )
        states = _states(encoder, encoder_params, masked, dropout_key, read)[slots - before]
        targets = jnp.asarray(tokens.token_ids).reshape(-1)[slots]
        return _sums(head, params, encoder_params, states, targets, chosen.astype(jnp.float32))

    return Auxiliary(init=head.init, apply=apply)


def _next_token_auxiliary(encoder: Encoder, tokenizer: Any) -> Auxiliary:
    if not getattr(encoder.config, "causal", False):
        raise InputError(
            "next_token: expected a causal encoder, found one whose states depend on later tokens"
        )
    head = build_predictor(encoder)

    def apply(
        params: Params,
        encoder_params: Params,
        tokens: TokenBatch,
        key: PRNGKeyArray | None,
        read=None,
    ):
        states = _states(encoder, encoder_params, tokens, key, read)
        sentence = jnp.asarray(tokens.sentence)
        follows = (sentence == jnp.roll(sentence, -1, axis=1)) & (sentence < tokens.sentences)
        follows = follows.at[:, -1].set(False)
        targets = jnp.roll(jnp.asarray(tokens.token_ids), -1, axis=1).reshape(-1)
        return _sums(
            head, params, encoder_params, states, targets, follows.reshape(-1).astype(jnp.float32)
        )

    return Auxiliary(init=head.init, apply=apply)


def _states(
    encoder: Encoder, encoder_params: Params, tokens: TokenBatch, key, read
) -> Float[Array, "S H"]:
    """Returns the last layer's states of all slots of a group, flat."""
    assert encoder.hidden is not None, "`build_encoder` gives a text encoder its token states"
    hidden = encoder.hidden(encoder_params, tokens, key, **({} if read is None else {"read": read}))
    return hidden.reshape(-1, hidden.shape[-1])


def _sums(
    head: Predictor, params: Params, encoder_params: Params, states, targets, weights
) -> tuple:
    """Returns an auxiliary objective's result: a sum, its weight, and the metrics' sums."""
    table = token_table(encoder_params)
    total, correct = token_cross_entropy(
        lambda states: head.logits(params, states.astype(jnp.float32), table),
        states,
        targets,
        weights,
        block=max(BLOCK // table.shape[0], 1),
    )
    return total, jnp.sum(weights), {"accuracy": correct}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
