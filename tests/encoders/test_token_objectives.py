"""Objectives on tokens: transformers' losses and gradients, predicted tokens, and blocks."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.mlm import mask_tokens
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.token_heads import read_head
from embed_jax.encoders.token_objectives import (
    build_predictor,
    build_token_objective,
    token_cross_entropy,
)
from embed_jax.errors import InputError
from embed_jax.types import Encoder

VOCAB, MASK, SPECIAL = 60, 4, (0, 1, 2, 3)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


def tokenizer(mask="[MASK]", words=()):
    """The attributes of a tokenizer that an objective reads."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": MASK, **dict(words)}
    return types.SimpleNamespace(
        mask_token=mask, all_special_ids=list(SPECIAL), get_vocab=lambda: vocabulary
    )


# ---- against transformers ------------------------------------------------------------------------

BERT = ("BertForMaskedLM", "BertConfig", {})
LLAMA = (
    "LlamaForCausalLM",
    "LlamaConfig",
    {"num_key_value_heads": 2, "tie_word_embeddings": False},
)
TIED = ("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True})
# A linear map of the second layer, ours and theirs, and where the head's parameters are.
INNER = {
    "BertForMaskedLM": ("query", "bert.encoder.layer.1.attention.self.query.weight"),
    "LlamaForCausalLM": ("down", "model.layers.1.mlp.down_proj.weight"),
    "Qwen2ForCausalLM": ("down", "model.layers.1.mlp.down_proj.weight"),
}


@pytest.fixture(scope="module")
def torch_pair(tmp_path_factory):
    """`(class, config class, settings) -> (torch model, encoder, its params, head's params)`."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def make(kind, config, settings):
        settings = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": VOCAB,
            "max_position_embeddings": 34,
            **settings,
        }
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        directory = tmp_path_factory.mktemp(kind)
        model.save_pretrained(directory)
        saved = read_model(directory)
        encoder = build_encoder(saved.spec, unroll=1)
        shapes = jax.eval_shape(build_predictor(encoder).init, jax.random.key(0))
        head = read_head(directory, encoder.config, shapes)
        assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, head)
        return model, encoder, saved.params, head

    return make


CASES = {
    "mlm": (BERT, "mlm(rate=0.4)", 0),
    "mntp": (LLAMA, "mntp(rate=0.4, mask_token='[MASK]')", 1),
    "mntp of a tied decoder": (TIED, "mntp(rate=0.9, mask=1.0, random=0.0)", 1),
    "next token": (LLAMA, "next_token()", 1),
    "next token of a tied decoder": (TIED, "next_token", 1),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow)
        if case in ("mntp", "next token of a tied decoder")
        else case
        for case in CASES
    ],
)
def test_loss_and_gradient_equal_transformers(case, torch_pair, packed):
    """Both hide the same tokens; the reference sums torch's cross entropies at shifted places."""
    torch = pytest.importorskip("torch")
    kind, expression, before = CASES[case]
    model, encoder, params, head = torch_pair(*kind)
    objective = build_token_objective(expression)(encoder, tokenizer())
    tokens, flat = packed, np.asarray(packed.token_ids).reshape(-1)
    sentence, position = (
        np.asarray(leaf).reshape(-1) for leaf in (packed.sentence, packed.position)
    )
    seen, counted = flat, (sentence < tokens.sentences) & (position > 0)
    if "next" not in expression:
        chances = (
            {"rate": 0.9, "mask": 1.0, "random": 0.0} if "0.9" in expression else {"rate": 0.4}
        )
        masked, slots, chosen = mask_tokens(
            packed,
            jax.random.key(0),
            mask_id=MASK,
            special_ids=SPECIAL,
            vocab_size=VOCAB,
            first=before,
            **chances,
        )
        seen = np.asarray(masked.token_ids).reshape(-1)
        counted = np.zeros(flat.size, bool)
        counted[np.asarray(slots)[np.asarray(chosen)]] = True

    total = 0.0
    for number in range(tokens.sentences):  # each sentence by itself, in order of position
        here = np.flatnonzero(sentence == number)
        logits = model(torch.tensor(seen[here]).long()[None]).logits[0]
        places = np.flatnonzero(counted[here])
        targets = torch.tensor(flat[here][places]).long()
        total = total + torch.nn.functional.cross_entropy(
            logits[places - before], targets, reduction="sum"
        )
    total.backward()

    def summed(params, head):
        value, count, metrics = objective.apply(head, params, packed, None)
        return value, (count, metrics)

    gradient = jax.jit(jax.value_and_grad(summed, (0, 1), has_aux=True), compiler_options=QUICKLY)
    (value, (count, metrics)), (of_encoder, of_head) = gradient(params, head)
    assert count == counted.sum() and set(metrics) == {"accuracy"}
    assert value == pytest.approx(total.item(), rel=1e-5)
    reference = {name: parameter.grad for name, parameter in model.named_parameters()}
    module, name = INNER[kind[0]]
    pairs = [
        (of_encoder["backbone"]["embeddings"]["token"], model.get_input_embeddings().weight.grad),
        (of_encoder["backbone"]["layers"][module]["kernel"][1].T, reference[name]),
    ]
    if "lm_head" in head:
        pairs.append((of_head["lm_head"], reference["lm_head.weight"]))
    if "dense" in head:
        pairs.append(
            (of_head["dense"]["kernel"].T, reference["cls.predictions.transform.dense.weight"])
        )
        pairs.append((of_head["bias"], reference["cls.predictions.bias"]))
    for ours, expected in pairs:
        expected = expected.numpy()
        assert np.linalg.norm(ours - expected) <= 1e-4 * np.linalg.norm(expected) > 0


# ---- which token, from where ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(packed):
    """`reader(before, causal)`: an encoder whose states name the token this many places later."""

    def make(before, causal=False):
        original = jnp.asarray(packed.token_ids)
        sharp = 50.0 * jax.nn.one_hot(jnp.roll(original, -before, axis=1), VOCAB)
        config = types.SimpleNamespace(
            vocab_size=VOCAB,
            hidden_size=VOCAB,
            num_layers=1,
            tied=True,
            family="llama",
            causal=causal,
        )
        return Encoder(None, None, config, VOCAB, hidden=lambda params, tokens, key: sharp)

    return make


TABLE = {"backbone": {"embeddings": {"token": np.eye(VOCAB, dtype=np.float32)}}}


@pytest.mark.parametrize(
    ("expression", "before"),
    [("mlm(rate=0.5)", 0), ("mntp(rate=0.5)", 1), ("mntp(rate=1.0)", 1), ("next_token()", 1)],
)
def test_the_state_that_predicts_is_the_one_so_many_places_before(
    expression, before, reader, packed
):
    """States name the next token or their own.

    Only the right offset has a loss of zero.
    """
    for planted in (0, 1):
        objective = build_token_objective(expression)(reader(planted, causal=True), tokenizer())
        for key in (None, jax.random.key(5)):
            total, count, metrics = objective.apply({}, TABLE, packed, key)
            if planted == before:
                assert total == 0 and metrics["accuracy"] == count > 10
            else:
                assert total > 20 * count and metrics["accuracy"] < 0.3 * count


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_first_tokens_are_never_hidden_where_nothing_is_before_them(rate, packed):
    first = np.asarray((packed.position == 0) | (packed.sentence == packed.sentences))
    real = np.asarray((packed.sentence < packed.sentences) & (packed.position > 0)).sum()

    @jax.vmap
    def hide(key):
        masked, slots, chosen = mask_tokens(
            packed,
            key,
            mask_id=MASK,
            special_ids=(),
            vocab_size=VOCAB,
            rate=rate,
            mask=1.0,
            random=0.0,
            first=1,
        )
        return masked.token_ids, jnp.zeros(first.size, int).at[slots].add(chosen)

    ids, counts = map(np.asarray, jax.jit(hide)(jax.random.split(jax.random.key(0), 300)))
    hidden = counts.reshape(ids.shape) == 1
    assert (hidden.sum((1, 2)) == round(rate * real)).all() and not hidden[:, first].any()
    assert (ids[hidden] == MASK).all(), "with mask=1 all of them are the mask"
    np.testing.assert_array_equal(
        ids[~hidden], np.broadcast_to(packed.token_ids, ids.shape)[~hidden]
    )
    assert hidden.any(0)[~first].all(), "every other token's turn comes"


# ---- blocks --------------------------------------------------------------------------------------


def test_blocks_give_the_value_and_gradient_of_all_at_once():
    rng = np.random.default_rng(0)
    states, table = (
        rng.normal(size=(50, 8)).astype(np.float32),
        rng.normal(size=(30, 8)).astype(np.float32),
    )
    targets, weights = rng.integers(0, 30, 50), rng.integers(0, 3, 50).astype(np.float32)

    def summed(states, table, block):
        total, correct = token_cross_entropy(
            lambda states: states @ table.T, states, targets, weights, block=block
        )
        return total, correct

    gradient = jax.value_and_grad(summed, (0, 1), has_aux=True)
    with jax.enable_x64(True):
        wide = states.astype(np.float64), table.astype(np.float64)
        logits = wide[0] @ wide[1].T
        picked = logits[np.arange(50), targets]
        expected = float((weights * (np.log(np.exp(logits).sum(1)) - picked)).sum())
        (whole, correct), slopes = gradient(*wide, 50)
        assert whole == pytest.approx(expected, rel=1e-12)
        assert correct == weights[logits.argmax(1) == targets].sum() > 0
        for block in (7, 49):
            (value, same), own = gradient(*wide, block)
            assert value == pytest.approx(expected, rel=1e-12) and same == correct
            for ours, reference in zip(own, slopes, strict=True):
                np.testing.assert_allclose(ours, reference, atol=1e-12)
    text = str(jax.make_jaxpr(lambda s, t: gradient(s, t, 7))(states, table))
    assert "f32[7,30]" in text and "8,7,30]" not in text and "f32[50,30]" not in text, (
        "no logits of all tokens, ever"
    )


def test_a_big_vocabulary_is_never_there_for_all_tokens(monkeypatch, packed):
    """The number of logits in memory is bounded for any vocabulary."""
    from embed_jax.encoders import token_objectives

    monkeypatch.setattr(token_objectives, "BLOCK", 1000)
    encoder = build_encoder(random_spec("decoder-tiny", vocab_size=VOCAB), unroll=1)
    objective = build_token_objective("next_token")(encoder, tokenizer())
    shapes = (
        jax.eval_shape(objective.init, jax.random.key(0)),
        jax.eval_shape(encoder.init, jax.random.key(0)),
    )
    gradient = jax.grad(lambda own, params: objective.apply(own, params, packed, None)[0], (0, 1))
    text = str(jax.make_jaxpr(gradient)(*shapes))
    assert (
        f"f32[{1000 // VOCAB},{VOCAB}]" in text
        and f"f32[{packed.token_ids.size},{VOCAB}]" not in text
    )


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "shape", "options", "message"),
    [
        ("mlm(rate=0)", "tiny", {}, "mlm rate: expected more than 0 and at most 1, found 0"),
        ("mntp(rate='a')", "tiny", {}, "mntp rate: expected more than 0 and at most 1, found 'a'"),
        ("mntp(mask=0.8, random=0.4)", "tiny", {}, "mask and random: expected at most 1 together"),
        ("mlm(mask=True)", "tiny", {}, "mlm mask: expected a number from 0 to 1, found True"),
        (
            "mlm(0.2)",
            "tiny",
            {},
            "expected arguments by name; known: rate, mask, random, mask_token",
        ),
        ("mlm(rat=0.2)", "tiny", {}, "unknown argument of mlm 'rat' (did you mean 'rate'?)"),
        (
            "mlm() + info_nce()",
            "tiny",
            {},
            "expected a single token_objective, of mlm, mntp, next_token",
        ),
        ("mlm(", "tiny", {}, "'(' was never closed"),
        ("mlm", "tiny", {"mask": None}, "the tokenizer has no mask token"),
        (
            "mntp",
            "tiny",
            {"mask": None},
            "mask_token: expected a token of the vocabulary, found '_'",
        ),
        (
            "mntp(mask_token='#')",
            "tiny",
            {},
            "mask_token: expected a token of the vocabulary, found '#'",
        ),
        (
            "mntp",
            "tiny",
            {"mask": None, "words": {"_": 99}},
            "expected a mask token among the model's 60, found 99",
        ),
        ("next_token", "tiny", {}, "expected a causal encoder"),
        ("mlm", "static", {}, "a static encoder has no head that predicts tokens"),
    ],
)
@pytest.mark.unchecked
def test_settings_that_make_no_sense(expression, shape, options, message):
    encoder = build_encoder(random_spec(shape, vocab_size=VOCAB))
    with pytest.raises(InputError) as error:
        build_token_objective(expression)(encoder, tokenizer(**options))
    assert message in str(error.value)


def test_a_decoder_that_sees_ahead_predicts_no_next_token():
    spec = random_spec("decoder-tiny", vocab_size=VOCAB)
    both = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, causal=False))
    with pytest.raises(InputError, match="next_token: expected a causal encoder"):
        build_token_objective("next_token")(build_encoder(both), tokenizer())
    build_token_objective("next_token")(build_encoder(spec), tokenizer())
    build_token_objective("mntp")(build_encoder(both), tokenizer(mask=None, words={"_": 7}))
