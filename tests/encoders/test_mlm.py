"""Masked language modelling: hidden tokens, transformers' head, the mean over hidden tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.mlm import head_logits, init_head, mask_tokens
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.token_heads import head_tensors, read_head
from embed_jax.encoders.token_objectives import mlm_auxiliary
from embed_jax.encoders.weights import open_tensors
from embed_jax.errors import InputError

VOCAB, MASK, SPECIAL = 60, 4, (0, 1, 2, 3)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


# ---- which tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_exactly_the_share_of_real_tokens_is_hidden(make_batch, rate):
    """Special tokens and padding are never hidden, and all other tokens stay as they are.

    Of the hidden tokens 80 % become the mask, 10 % a random token, and 10 % stay.
    """
    rng = np.random.default_rng(0)
    texts = [np.array([2, *rng.integers(5, VOCAB, n), 3], np.int32) for n in (7, 1, 14, 4, 9)]
    tokens = make_batch(
        [[(4, texts[4]), (1, texts[1])], [(2, texts[2])], [], [(3, texts[3]), (0, texts[0])]],
        slots=20,
    )
    real = (tokens.sentence < 5) & ~np.isin(tokens.token_ids, SPECIAL)
    expected, trials = round(rate * int(real.sum())), 2000

    @jax.vmap
    def hide(key):
        masked, slots, chosen = mask_tokens(
            tokens, key, mask_id=MASK, special_ids=SPECIAL, vocab_size=VOCAB, rate=rate
        )
        return masked.token_ids, jnp.zeros(tokens.token_ids.size, int).at[slots].add(chosen), slots

    keys = jax.random.split(jax.random.key(0), trials)
    ids, counts, slots = map(np.asarray, jax.jit(hide, compiler_options=QUICKLY)(keys))
    assert slots.shape[1] == int(np.ceil(rate * tokens.token_ids.size))
    counts = counts.reshape(ids.shape)
    assert (counts.sum((1, 2)) == expected).all() and counts.max() == 1, (
        "this many slots, each once"
    )
    hidden = counts == 1
    assert not hidden[:, ~real].any()
    np.testing.assert_array_equal(
        ids[~hidden], np.broadcast_to(tokens.token_ids, ids.shape)[~hidden]
    )
    # Every real token is as likely as the others; the kinds come in their shares.
    share = hidden[:, real].mean(0)
    assert np.abs(share - expected / real.sum()).max() < 5 * np.sqrt(0.25 / trials)
    new, old = ids[hidden], np.broadcast_to(tokens.token_ids, ids.shape)[hidden]
    near = 5 * np.sqrt(0.25 / new.size)
    assert abs((new == MASK).mean() - (0.8 + 0.1 / VOCAB)) < near
    assert abs((new == old).mean() - (0.1 + 0.1 / VOCAB)) < near
    others = np.bincount(new[(new != MASK) & (new != old)], minlength=VOCAB)
    assert (np.delete(others, MASK) > 0).all(), "any token of the vocabulary comes"


def test_the_count_is_rounded_as_numbers_are_not_as_float32(make_batch):
    for n in (1, 3, 4, 10, 30, 50, 70, 90, 110, 130):
        tokens = make_batch([[(0, np.full(n, 9))]], slots=130, sentences=1)
        _, _, chosen = mask_tokens(
            tokens, jax.random.key(0), mask_id=MASK, special_ids=(), vocab_size=VOCAB
        )
        assert int(chosen.sum()) == round(0.15 * n)


# ---- the head ------------------------------------------------------------------------------------

HEADS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "electra": "Electra",
    "deberta-v2": "DebertaV2",
    "mpnet": "MPNet",
    "distilbert": "DistilBert",
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mpnet", "distilbert")]


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "deberta-v2", *SLOW])
def test_logits_equal_transformers(name, unpacked, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if name == "distilbert":
        settings = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    settings |= {"vocab_size": VOCAB, "max_position_embeddings": 34}
    settings |= {"embedding_size": 16} if name == "electra" else {}
    if name == "deberta-v2":
        settings |= {"relative_attention": True, "pos_att_type": "c2p|p2c"}
    settings |= {"pad_token_id": 1} if name in ("roberta", "mpnet") else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{HEADS[name]}Config")(**settings)
    model = getattr(transformers, f"{HEADS[name]}ForMaskedLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        model.save_pretrained(tmp_path)
        attends = torch.tensor(np.asarray(unpacked.sentence) < unpacked.sentences)
        expected = model(
            torch.tensor(unpacked.token_ids).long(), attention_mask=attends.long()
        ).logits.numpy()

    saved = read_model(tmp_path)
    encoder = build_encoder(saved.spec)
    shapes = jax.eval_shape(functools.partial(init_head, encoder.config), jax.random.key(0))
    head = read_head(tmp_path, encoder.config, shapes)
    reference = open_tensors(tmp_path)
    for tensor, value in head_tensors(encoder.config, head).items():
        np.testing.assert_array_equal(value, reference[tensor])
    hidden = jax.jit(encoder.hidden, compiler_options=QUICKLY)(saved.params, unpacked, None)
    table = saved.params["backbone"]["embeddings"]["token"]
    logits = head_logits(encoder.config, head, hidden.reshape(-1, 32), table).reshape(
        expected.shape
    )
    real = np.asarray(attends)
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)


# ---- the objective -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(random_spec("tiny", vocab_size=VOCAB), unroll=1)


@pytest.mark.slow
def test_sums_are_those_of_all_logits_of_which_only_the_hidden_tokens_are_computed(encoder, packed):
    auxiliary = mlm_auxiliary(encoder, MASK, SPECIAL, rate=0.3)
    params = auxiliary.init(jax.random.key(0))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    weights = encoder.init(jax.random.key(1))
    apply = jax.jit(auxiliary.apply, compiler_options=QUICKLY)
    total, count, metrics = apply(
        params, weights, packed, None
    )  # without a key the choice is always the same

    masked, slots, chosen = mask_tokens(
        packed, jax.random.key(0), mask_id=MASK, special_ids=SPECIAL, vocab_size=VOCAB, rate=0.3
    )
    hidden = jax.jit(encoder.hidden, compiler_options=QUICKLY)(weights, masked).reshape(
        -1, encoder.config.hidden_size
    )
    logits = head_logits(encoder.config, params, hidden, weights["backbone"]["embeddings"]["token"])
    chosen = np.asarray(slots)[np.asarray(chosen)]
    targets = np.asarray(packed.token_ids).reshape(-1)[chosen]
    assert len(chosen) == count == round(0.3 * np.sum(packed.sentence < packed.sentences))
    np.testing.assert_allclose(total, -jax.nn.log_softmax(logits)[chosen, targets].sum(), rtol=1e-5)
    assert metrics["accuracy"] == np.sum(np.argmax(logits, -1)[chosen] == targets)

    text = str(jax.make_jaxpr(auxiliary.apply)(params, weights, packed, jax.random.key(2)))
    assert f"f32[{len(slots)},{VOCAB}]" in text and len(slots) == int(
        np.ceil(0.3 * packed.token_ids.size)
    )
    assert f"{packed.token_ids.size},{VOCAB}]" not in text and f"16,{VOCAB}]" not in text


@pytest.mark.unchecked
def test_settings_that_make_no_sense(encoder):
    for mask_id, rate, message in [
        (None, 0.15, "mask token"),
        (VOCAB, 0.15, "mask token"),
        (MASK, 0.0, "mlm rate"),
    ]:
        with pytest.raises(InputError, match=message):
            mlm_auxiliary(encoder, mask_id, SPECIAL, rate)
