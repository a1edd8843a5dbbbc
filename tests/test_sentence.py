"""Encoding equals sentence-transformers', in any order and batch size, in bounded memory."""

import copy
import dataclasses
import itertools
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.data.window import WINDOW
from embed_jax.encoders import modules
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.shrink import keep_first_layers
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError
from embed_jax.routed import RoutedEncoder
from embed_jax.sentence import SentenceEncoder, load_sentence_encoder

WORDS = """a the of to and in is that it was for on are as with they be this from have by one word
cat dog house river music guitar plays quickly red blue city country road train apple bread science
language model learns""".split()
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
    return [
        f"{number} " + " ".join(rng.choice(WORDS, length)) for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_sentence_encoder(str(tiny_model))


# ---- parity --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, pytest.param(970, marks=pytest.mark.slow)])
def test_minilm_equals_sentence_transformers_in_any_order_and_batch_size(count, minilm):
    """The tolerance is 1e-5 for unit vectors in float32.

    It is ten times the rounding error of six layers in two libraries.
    """
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    from embed_jax.encoders.hub import resolve

    longest = made_texts(count // 48, 400, seed=1)
    texts = [*ODD, *made_texts(count, 40), *("word " * 2**n for n in range(5, 10)), *longest]
    reference = SentenceTransformer(str(resolve(minilm)), device="cpu").encode(texts, batch_size=32)
    ours = load_sentence_encoder(minilm)
    with pytest.warns(UserWarning, match="texts were cut at the model's limit of 256 tokens"):
        result = ours.encode(texts)
    assert result.dtype == np.float32 and result.shape == reference.shape
    assert np.abs(result - reference).max() < 1e-5

    order = np.random.default_rng(2).permutation(len(texts))[: min(count, 150)]
    with warnings.catch_warnings(action="ignore"):
        for batch_tokens in (512, 4096):
            shuffled = ours.encode((texts[number] for number in order), batch_tokens=batch_tokens)
            assert np.abs(shuffled - reference[order]).max() < 1e-5
        for number in (0, 3, 5, 11, 20, len(texts) - 1):
            assert np.abs(ours.encode(texts[number]) - reference[number]).max() < 1e-5


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_equal_sentence_transformers(model, tmp_path, include_prompt):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    prompts = {"query": "what is the ", "passage": "read : "}
    prompted = SentenceEncoder(
        model.spec,
        model.params,
        model.tokenizer,
        EncodingSettings(prompts, default_prompt_name="passage", include_prompt=include_prompt),
    )
    prompted.save(tmp_path / "model")
    reference, ours = (
        SentenceTransformer(str(tmp_path / "model"), device="cpu"),
        load_sentence_encoder(str(tmp_path / "model")),
    )
    texts = ["the cat", "", "music", "a red house " * 8]
    for arguments in ({}, {"prompt_name": "query"}, {"prompt": "find : "}, {"prompt": ""}):
        result, expected = ours.encode(texts, **arguments), reference.encode(texts, **arguments)
        assert np.abs(result - expected).max() < 1e-5, arguments
    query = ours.encode("the cat", prompt_name="query")
    assert np.abs(query - ours.encode("the cat")).max() > 1e-3
    assert np.abs(query - ours.encode("the cat", prompt="what is the ")).max() == 0
    joined = np.abs(query - ours.encode("what is the the cat", prompt="")).max()
    assert (joined < 1e-5) == include_prompt


# ---- order, input, output ------------------------------------------------------------------------


def test_a_text_has_one_embedding_whatever_it_is_encoded_with(model):
    texts = [*ODD[:-1], *made_texts(300, 30)]
    expected = np.stack([model.encode(text) for text in texts[:30]])
    assert expected.shape == (30, model.dim) and expected.dtype == np.float32
    result = model.encode(texts)
    np.testing.assert_allclose(result[:30], expected, atol=2e-6)
    order = np.random.default_rng(0).permutation(len(texts))
    for batch_tokens in (64, 1000, 10**5):
        shuffled = model.encode((texts[number] for number in order), batch_tokens=batch_tokens)
        np.testing.assert_allclose(shuffled, result[order], atol=2e-6)


def test_no_text_gives_no_row(model):
    assert model.encode([]).shape == (0, model.dim)
    assert model.encode(iter(())).dtype == np.float32


def test_one_warning_counts_the_texts_that_were_cut(model, monkeypatch):
    monkeypatch.setattr("embed_jax.data.window.WINDOW", 4)  # the texts span several windows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode(["the cat", "dog " * 50, "a", "a", "b", "dog " * 38, "dog " * 39])
    assert [str(warning.message) for warning in caught] == [
        "2 of 7 texts were cut at the model's limit of 40 tokens"
    ]


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (
            ["a"],
            {"prompt_name": "qery"},
            "unknown prompt 'qery' (did you mean 'query'?); known: query",
        ),
        (["a", 3], {}, "a text must be a string, found int"),
        (["a", None], {}, "a text must be a string, found NoneType"),
        (b"abc", {}, "a text must be a string, found int"),
        (
            ["the cat " * 6],
            {"batch_tokens": 8},
            "batch_tokens: expected at least 14, the tokens of one text, found 8",
        ),
        (["a"], {"batch_tokens": -1}, "batch_tokens: expected at least 3"),
        (["\ud800"], {}, "a text is not valid Unicode"),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_encoded_is_said_in_one_line(model, texts, arguments, message):
    prompted = SentenceEncoder(
        model.spec, model.params, model.tokenizer, EncodingSettings({"query": "find : "})
    )
    with pytest.raises(InputError) as caught:
        prompted.encode(texts, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="this model has no prompts: 'query'"):
        model.encode(["a"], prompt_name="query")


# ---- memory, shapes, devices ---------------------------------------------------------------------


def test_blocks_come_before_the_texts_are_read_to_their_end(model):
    read = itertools.count()
    endless = (f"the cat {next(read)}" for _ in itertools.repeat(None))
    blocks = model.encode_blocks(endless, batch_tokens=65536)
    assert len(next(blocks)) == WINDOW
    assert next(read) <= WINDOW + 1


def test_mixed_texts_take_few_compilations(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer, 256)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size, pooling="cls")  # of no other test
    model = SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)
    (program,) = model._programs.values()
    assert program._cache_size() == 0
    with warnings.catch_warnings(action="ignore"):
        model.encode(made_texts(500, 300))
    assert program._cache_size() <= 8
    with warnings.catch_warnings(action="ignore"):
        model.encode(made_texts(500, 300, seed=1))
    few = program._cache_size()
    assert few <= 10, "other texts of the same kind take the same shapes"
    again = SentenceEncoder(spec, model.params, tokenizer)
    with warnings.catch_warnings(action="ignore"):
        again.encode(made_texts(500, 300))
    assert again._programs[2]._cache_size() == few, "an equal model compiles nothing"


def test_requests_of_any_size_share_a_few_compilations(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer, 32)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size, pooling="last_token")  # own
    model = SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)
    texts = made_texts(17, 25)
    whole = model.encode(texts)
    for count in range(1, len(texts)):
        np.testing.assert_allclose(model.encode(texts[:count]), whole[:count], atol=1e-6)
    assert model._programs[spec.backbone.num_layers]._cache_size() <= 4


def test_several_devices_give_what_one_gives(model):
    texts = made_texts(100, 30)
    single_device = SentenceEncoder(
        model.spec, jax.device_get(model.params), model.tokenizer, devices=1
    )
    assert (single_device._mesh.size, model._mesh.size) == (1, 8)
    np.testing.assert_allclose(single_device.encode(texts), model.encode(texts), atol=1e-6)


# ---- saving --------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_to_the_last_bit(model, tmp_path):
    prompted = SentenceEncoder(
        model.spec,
        model.params,
        model.tokenizer.cut_at(20),
        EncodingSettings(
            prompts={"query": "find : "},
            default_prompt_name="query",
            include_prompt=False,
            similarity="dot",
            lower_case=True,
        ),
    )
    prompted.save(tmp_path / "model")
    again = load_sentence_encoder(str(tmp_path / "model"))
    for name in (
        "prompts",
        "default_prompt_name",
        "include_prompt",
        "similarity_fn_name",
        "lower_case",
        "max_length",
        "spec",
    ):
        assert getattr(again, name) == getattr(prompted, name), name
    texts = made_texts(50, 15)
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_array_equal(again.encode(texts), prompted.encode(texts))


# ---- smaller embeddings, fewer layers ------------------------------------------------------------


def test_embeddings_are_cut_made_length_one_and_an_untrained_size_warns_once(tiny_model):
    model = load_sentence_encoder(str(tiny_model))
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
            InputError,
            match=f"dim: expected 1 to {model.dim}, the size of the embeddings, found {dim}",
        ):
            model.encode(["x"], dim=dim)


def test_encoding_stops_at_a_layer(tiny_model):
    """Embeddings after the first layer equal those of a model with one layer.

    Without training for it, the model warns once.
    """
    model = load_sentence_encoder(str(tiny_model))
    texts = made_texts(10, 12)
    spec, params = keep_first_layers(model.spec, model.params, 1)
    shallow = SentenceEncoder(spec, params, model.tokenizer)
    with pytest.warns(
        UserWarning, match="layers 1: this model was trained for all its 2 layers only"
    ):
        result = model.encode(texts, layers=1)
    np.testing.assert_allclose(result, shallow.encode(texts), atol=1e-6)
    assert np.abs(result - model.encode(texts, layers=2)).max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(texts, layers=1)
    with pytest.raises(InputError, match="layers: expected 1 to 2, found 3"):
        model.encode(texts, layers=3)


def test_a_saved_model_carries_what_it_was_trained_for(tiny_model, tmp_path):
    model = load_sentence_encoder(str(tiny_model))
    model.matryoshka_dims, model.adaptive_layers = (8, 32), True
    model.save(tmp_path / "model")
    again = load_sentence_encoder(str(tmp_path / "model"))
    assert again.matryoshka_dims == (8, 32) and again.adaptive_layers
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=8).encode(
        ["a text"]
    )
    ours = again.encode(["a text"], dim=8)
    np.testing.assert_allclose(ours, reference / np.linalg.norm(reference), atol=1e-5)
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(file.read_text().replace("8,", '"x",'))
    with pytest.raises(InputError, match="matryoshka_dims: expected a list of sizes"):
        load_sentence_encoder(str(tmp_path / "model"))


# ---- prompts, instructions -----------------------------------------------------------------------

TEMPLATE = "Instruct: {instruction}\nQuery: "


def prompted(model, **options):
    return SentenceEncoder(model.spec, model.params, model.tokenizer, EncodingSettings(**options))


def warned(function) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def test_a_model_with_prompts_warns_once_when_none_is_given(model):

    def having(**attributes):
        own = copy.copy(model)  # which shares what is compiled
        own._warned, own._prompted = set(), False
        for name, value in attributes.items():
            setattr(own, name, value)
        return own

    some = {"prompts": {"query": "find : ", "document": ""}}
    own = having(**some, template=TEMPLATE)
    message = (
        "this model has prompts (query, document) and a template for instructions, "
        "and none was given"
    )
    (result,) = warned(lambda: own.encode(["a"]))
    assert message in result and "\n" not in result
    assert warned(lambda: own.encode(["a"])) == []
    assert (
        "a template for instructions, and none"
        in warned(lambda: having(template=TEMPLATE).encode(["a"]))[0]
    )
    for options, arguments in (
        (some, {"prompt": ""}),
        (some, {"prompt_name": "document"}),
        ({"template": TEMPLATE}, {"instruction": "find"}),
        (some | {"default_prompt_name": "query"}, {}),
        ({"prompts": {"query": "", "document": ""}}, {}),
        ({}, {}),
    ):
        assert warned(lambda o=options, a=arguments: having(**o).encode(["a"], **a)) == [], (
            options,
            arguments,
        )
    own = having(**some)
    own.encode(["a"], prompt_name="query")
    assert warned(lambda: own.encode(["a"])) == [], (
        "documents after queries, as model cards have it"
    )


@pytest.mark.parametrize("include_prompt", [True, False])
def test_an_instruction_is_the_prompt_that_the_template_makes_of_it(
    model, tmp_path, include_prompt
):
    own = prompted(model, template=TEMPLATE, include_prompt=include_prompt)
    texts = ["the cat", "", "a red house " * 3]
    prompt = "Instruct: find the music\nQuery: "
    result = own.encode(texts, instruction="find the music")
    np.testing.assert_array_equal(result, own.encode(texts, prompt=prompt))
    assert np.abs(result - own.encode(texts, prompt="")).max() > 1e-3
    own.save(tmp_path / "model")
    again = load_sentence_encoder(str(tmp_path / "model"))
    assert again.template == TEMPLATE
    np.testing.assert_array_equal(again.encode(texts, instruction="find the music"), result)
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    reference = SentenceTransformer(
        str(tmp_path / "model"), device="cpu"
    )  # to which the template is nothing
    np.testing.assert_allclose(reference.encode(texts, prompt=prompt), result, atol=1e-5)


def test_instructions_that_cannot_be_given_are_one_line(model):
    own = prompted(model, template=TEMPLATE, prompts={"query": "find : "})
    for arguments, message in (
        (
            {"instruction": "a", "prompt": "b"},
            "expected a prompt or an instruction, found prompt and instruction",
        ),
        ({"instruction": "a", "prompt_name": "query"}, "found prompt_name and instruction"),
    ):
        with pytest.raises(InputError, match=message):
            own.encode(["x"], **arguments)
    with pytest.raises(
        InputError, match="instruction 'a': this model has no template for instructions"
    ):
        model.encode(["x"], instruction="a")
    with pytest.raises(
        InputError,
        match="template 'Query: ': expected the placeholder {instruction} only, found none",
    ):
        prompted(model, template="Query: ")


# ---- families ------------------------------------------------------------------------------------


def test_prompts_of_the_family_serve_a_model_that_records_none(tiny_model, tmp_path):
    """The family is known from the directory's name, or the name in config.json.

    Prompts recorded in files come first.
    """
    directory = shutil.copytree(tiny_model, tmp_path / "bge-small-en-v1.5")
    settings = directory / "config_sentence_transformers.json"
    assert warned(lambda: load_sentence_encoder(str(directory))) == [], (
        "a model of ours records that it has none"
    )
    settings.write_text(
        json.dumps({"prompts": {"query": "", "document": ""}})
    )  # as sentence-transformers writes
    (message,) = warned(lambda: load_sentence_encoder(str(directory)))
    prompt = "Represent this sentence for searching relevant passages: "
    assert (
        f"no prompts are recorded; as in {directory}: prompt query {prompt!r}" in message
        and "\n" not in message
    )
    with warnings.catch_warnings(action="ignore"):
        model = load_sentence_encoder(str(directory))
    assert (model.prompts, model.template, model.include_prompt) == (
        {"query": prompt, "document": ""},
        "",
        True,
    )
    assert model.default_prompt_name is None
    settings.write_text(json.dumps({"prompts": {"query": "mine: "}}))
    assert load_sentence_encoder(str(directory)).prompts == {"query": "mine: "}

    directory = shutil.copytree(tiny_model, tmp_path / "model")
    settings = directory / "config_sentence_transformers.json"
    settings.unlink()
    assert warned(lambda: load_sentence_encoder(str(directory))) == []
    config = directory / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"_name_or_path": "nvidia/NV-Embed-v2"})
    )
    with pytest.warns(UserWarning, match="as in nvidia/NV-Embed-v2.* prompts left out of pooling$"):
        model = load_sentence_encoder(str(directory))
    assert model.template == TEMPLATE and not model.include_prompt
    model.save(tmp_path / "saved")
    assert warned(lambda: load_sentence_encoder(str(tmp_path / "saved"))) == []
    assert load_sentence_encoder(str(tmp_path / "saved")).prompts == model.prompts


def test_eos_of_the_family_is_appended_where_no_module_says_otherwise(tmp_path, bpe_tokenizer):
    tokenizer = load_tokenizer(bpe_tokenizer(), 20)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size)
    made = SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)
    made.save(directory := tmp_path / "e5-mistral-7b-instruct")
    (directory / "config_sentence_transformers.json").unlink()
    with pytest.warns(UserWarning, match="no prompts are recorded") as caught:
        assert load_sentence_encoder(str(directory)).tokenizer.encode(["the cat"]).ids[0][-1] != 2
    assert "end-of-text" not in str(caught[0].message)
    (directory / "modules.json").unlink()
    with pytest.warns(UserWarning, match="an end-of-text token after each text$"):
        model = load_sentence_encoder(str(directory))
    assert model.tokenizer.encode(["the cat"]).ids[0][-1] == 2
    model.save(tmp_path / "saved")
    assert (
        load_sentence_encoder(str(tmp_path / "saved"))
        .tokenizer.encode(["the cat"])
        .ids[0]
        .tolist()[-2:]
        .count(2)
        == 1
    )


# ---- language models -----------------------------------------------------------------------------


def language_model(kind, directory, vocab_size):
    """A random torch model with grouped heads, saved."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(directory)


@pytest.mark.parametrize(
    ("kind", "side", "append_eos", "include_prompt", "pooling"),
    [
        ("Llama", "left", True, False, "last_token"),
        ("Llama", "right", False, True, "last_token"),
        ("Qwen2", "left", False, False, "weighted_mean+last_token+mean"),
        pytest.param("Qwen2", "right", True, False, "mean+weighted_mean", marks=pytest.mark.slow),
    ],
)
def test_language_models_equal_sentence_transformers(
    bpe_tokenizer, tmp_path, kind, side, append_eos, include_prompt, pooling
):
    """Mostly last-token pooling, at either padding side.

    Batches have uneven lengths, prompts and eos.
    """
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    processors = pytest.importorskip("tokenizers.processors")
    bos = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    plain = bpe_tokenizer(
        bos, tokenizer_class="PreTrainedTokenizerFast", padding_side=side, model_max_length=32
    )
    load_tokenizer(plain, 32, append_eos=append_eos).save(tmp_path)
    language_model(kind, tmp_path, load_tokenizer(plain, 32).vocab_size)
    modules.write_pooling(tmp_path / "1_Pooling", pooling, 32, include_prompt)
    modules.write_modules(
        tmp_path, [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    )
    (tmp_path / "2_Normalize").mkdir()
    prompts = {"query": "Instruct: find music\nQuery:", "document": ""}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    reference, ours = (
        SentenceTransformer(str(tmp_path), device="cpu"),
        load_sentence_encoder(str(tmp_path)),
    )
    assert (
        ours.tokenizer.encode(["a"]).ids[0].tolist()[-1:]
        == reference.tokenizer("a")["input_ids"][-1:]
    )
    texts = ["the cat", "", "music " * 40, "a", "dog plays guitar in the city", "one word", "</s>"]
    with warnings.catch_warnings(action="ignore"):
        for arguments in ({}, {"prompt_name": "query"}, {"prompt": "the "}):
            expected = reference.encode(texts, batch_size=3, **arguments)
            assert np.abs(ours.encode(texts, **arguments) - expected).max() < 1e-5, arguments
    assert (
        np.abs(
            ours.encode("the cat", prompt_name="query") - ours.encode("the cat", prompt="")
        ).max()
        > 1e-3
    )


# ---- latent attention ----------------------------------------------------------------------------


def test_a_model_with_latent_attention_is_saved_with_it(model, tmp_path):
    head = LatentAttention(
        model.spec.backbone.hidden_size, latents=6, heads=4, head_size=16, mlp_size=24
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    spec = dataclasses.replace(model.spec, token_head=head)
    own = SentenceEncoder(
        spec, {**jax.device_get(model.params), "token_head": params}, model.tokenizer
    )
    own.save(tmp_path / "model")
    again = load_sentence_encoder(str(tmp_path / "model"))
    assert again.spec == spec
    texts = made_texts(20, 15)
    np.testing.assert_array_equal(again.encode(texts), own.encode(texts))
    assert np.abs(again.encode(texts) - model.encode(texts)).max() > 1e-2
    kinds = [kind for kind, _ in modules.read_modules(tmp_path / "model")]
    assert kinds == ["Transformer", "LatentAttention", "Pooling", "Normalize"]
    config = tmp_path / "model" / "1_LatentAttention" / "config.json"
    for change, message in (
        ({"latents": 7}, "model.safetensors: found"),
        ({"latents": "7"}, "latents: expected a size, found '7'"),
        ({"heads": 0}, "heads: expected 1 or more, found 0"),
        ({"lattents": 7}, "unknown field 'lattents'"),
        ({"width": 16}, "found"),
    ):
        good = config.read_text()
        config.write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(InputError, match=message) as caught:
            load_sentence_encoder(str(tmp_path / "model"))
        assert "\n" not in str(caught.value)
        config.write_text(good)
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    with pytest.raises(Exception, match="LatentAttention"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu")


def test_the_pooler_of_the_base_is_kept_for_transformers(tiny_model, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shutil.copytree(tiny_model, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    rng = np.random.default_rng(0)
    pooler = {
        "pooler.dense.weight": rng.normal(size=(32, 32)).astype(np.float32),
        "pooler.dense.bias": rng.normal(size=32).astype(np.float32),
    }
    save_file(
        {**load_file(weights), **{f"bert.{name}": value for name, value in pooler.items()}}, weights
    )
    model = load_sentence_encoder(str(tmp_path / "base"))

    model.with_params(model.params).save(tmp_path / "saved")
    RoutedEncoder({"query": model, "document": model}).save(tmp_path / "routed")

    written = load_file(tmp_path / "saved" / "model.safetensors")
    routed = load_file(tmp_path / "routed" / "query_0_Transformer" / "model.safetensors")
    for name, value in pooler.items():
        np.testing.assert_array_equal(written[name], value)
        np.testing.assert_array_equal(routed[name], value)
    _, about = transformers.AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
