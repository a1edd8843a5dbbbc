"""A bag of token vectors: order of tokens, files, and training like any other encoder."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.read import read_model
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.static import MAX_LENGTH, StaticConfig
from embed_jax.encoders.weights import write_safetensors
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder

TEXTS = [
    "the cat plays guitar",
    "",
    "xylophone ☃ 中 zq",
    "[UNK] [SEP] the",
    "Music, music! " * 50,
    "  ",
    "a",
]


@pytest.fixture(scope="module")
def table(tiny_tokenizer):
    size = load_tokenizer(tiny_tokenizer, 40).vocab_size
    return (
        np.random.default_rng(0).normal(0, 0.2, size=(size, 24)).astype(np.float32)
    )  # of length about 1


@pytest.fixture
def make(tiny_tokenizer, table):
    """`(*heads) -> SentenceEncoder` of `table`."""

    def make(*heads, max_length=MAX_LENGTH, **settings):
        config = StaticConfig(vocab_size=len(table), hidden_size=table.shape[1])
        params = {str(n): head.init(jax.random.key(n)) for n, head in enumerate(heads)}
        params = {
            "backbone": {"token": table},
            "heads": {n: head_params for n, head_params in params.items() if head_params},
        }
        tokenizer = load_tokenizer(tiny_tokenizer, max_length, special_tokens=False)
        return SentenceEncoder(
            EncoderSpec(config, "mean", heads), params, tokenizer, EncodingSettings(**settings)
        )

    return make


@pytest.fixture
def sentence_transformer(tiny_tokenizer, table):
    """`(*further modules) -> SentenceTransformer` of `table`."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    from tokenizers import Tokenizer

    def make(*extra_tensors, truncation=0):
        tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
        tokenizer.no_truncation()
        if truncation:
            tokenizer.enable_truncation(truncation)
        first = modules.StaticEmbedding(tokenizer, embedding_weights=table.copy())
        return library.SentenceTransformer(modules=[first, *extra_tensors], device="cpu")

    return make


def test_embeds_two_orders_of_the_same_words_alike_where_a_contextual_encoder_does_not(
    make, tiny_model
):
    orders = ["carrier delayed order", "order delayed carrier"]
    bag, contextual = (
        make(Normalize()).encode(orders),
        embed_jax.load(str(tiny_model)).encode(orders),
    )
    np.testing.assert_allclose(bag[0], bag[1], atol=1e-7)
    assert np.linalg.norm(bag[0]) == pytest.approx(1, abs=1e-6)
    assert np.abs(contextual[0] - contextual[1]).max() > 1e-3


def test_is_the_mean_of_the_tokens_vectors_without_special_tokens(make, table, tiny_tokenizer):
    vocabulary = (tiny_tokenizer / "vocab.txt").read_text().split("\n")
    ids = [vocabulary.index(word) for word in ("the", "cat", "the", "[UNK]", ".")]
    np.testing.assert_allclose(make().encode("The cat the 中."), table[ids].mean(0), atol=1e-6)
    assert not make(Normalize()).encode(["", "  "]).any()


def test_neighbours_in_the_packing_change_nothing(make, sentences):
    model = make(Normalize())
    expected = np.stack([model.encode(text) for text in sentences[:5]])
    np.testing.assert_allclose(model.encode(sentences)[:5], expected, atol=1e-6)


@pytest.mark.parametrize("heads", ["", "normalize", "dense"])
def test_reads_what_sentence_transformers_wrote(sentence_transformer, tmp_path, heads):
    modules = pytest.importorskip("sentence_transformers.models")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    extra_tensors = {
        "": [],
        "normalize": [modules.Normalize()],
        "dense": [modules.Dense(24, 8), modules.Normalize()],
    }[heads]
    reference = sentence_transformer(*extra_tensors)
    reference.save(str(tmp_path / "model"))
    texts = [text for text in TEXTS if text.strip() or heads != "dense"]
    result = embed_jax.load(str(tmp_path / "model"))
    assert result.max_length == MAX_LENGTH
    np.testing.assert_allclose(result.encode(texts), reference.encode(texts), atol=1e-6)


def test_reads_the_layout_of_older_versions_and_a_tokenizer_that_truncates(
    sentence_transformer, tmp_path
):
    reference = sentence_transformer(truncation=5)
    (tmp_path / "0_StaticEmbedding").mkdir()
    reference[0].save(str(tmp_path / "0_StaticEmbedding"))
    kind = "sentence_transformers.models.StaticEmbedding.StaticEmbedding"
    modules = [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": kind}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    result = embed_jax.load(str(tmp_path))
    assert result.max_length == 5
    with pytest.warns(UserWarning, match="cut at the model's limit of 5 tokens"):
        np.testing.assert_allclose(result.encode(TEXTS), reference.encode(TEXTS), atol=1e-6)


def test_reads_model2vec_files(make, table, tmp_path):
    make().save(tmp_path)
    rng = np.random.default_rng(1)
    mapping, weights = (
        rng.integers(0, len(table), len(table)),
        rng.random(len(table)).astype(np.float32),
    )
    for tensors, expected in (
        ({"embeddings": table.astype(np.float16)}, table.astype(np.float16)),
        (
            {"embeddings": table, "mapping": mapping, "weights": weights},
            table[mapping] * weights[:, None],
        ),
    ):
        write_safetensors(tmp_path / "model.safetensors", tensors)
        np.testing.assert_array_equal(read_model(tmp_path).params["backbone"]["token"], expected)


@pytest.mark.filterwarnings("ignore:.*were cut at the model's limit")
@pytest.mark.parametrize("heads", [(), (Dense(24, 8), Normalize())], ids=["plain", "dense"])
@pytest.mark.parametrize("max_length", [MAX_LENGTH, 7])
def test_sentence_transformers_reads_what_is_saved_and_so_does_load(
    make, tmp_path, heads, max_length
):
    library = pytest.importorskip("sentence_transformers")
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    model = make(*heads, max_length=max_length, **prompts)
    texts = [text for text in TEXTS if len(text) < 40 and (text.strip() or not heads)] + [
        "a b c d e f g h"
    ]
    expected = model.encode(texts)
    model.save(tmp_path / "model")
    again = embed_jax.load(str(tmp_path / "model"))
    assert again.max_length == max_length
    np.testing.assert_array_equal(again.encode(texts), expected)
    reference = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(reference.encode(texts), expected, atol=1e-6)
    again.save(tmp_path / "model")
    np.testing.assert_array_equal(embed_jax.load(str(tmp_path / "model")).encode(texts), expected)


def test_what_cannot_be_used_is_refused(make, table, tmp_path):
    with pytest.raises(InputError, match="pooling 'cls': a static encoder has 'mean' only"):
        build_encoder(dataclasses.replace(make().spec, pooling="cls"))
    with pytest.raises(InputError, match="include_prompt False cannot be written"):
        make(include_prompt=False).save(tmp_path / "no")
    make().save(tmp_path)
    for tensors, message in (
        (
            {"embedding.weight": table.astype(np.int8)},
            r"the table is int8 of shape .*; expected floats \[V, D\]",
        ),
        (
            {"embedding.weight": table, "bias": table[0]},
            "found the tensors bias, embedding.weight; expected embedding",
        ),
        (
            {"embeddings": table, "mapping": np.array([0, len(table)])},
            f"mapping names rows from 0 to {len(table)} of",
        ),
        ({"embeddings": table, "weights": table[:3, 0]}, r"weights of shape \(3,\) for"),
    ):
        write_safetensors(tmp_path / "model.safetensors", tensors)
        with pytest.raises(InputError, match=message):
            read_model(tmp_path)
    make().save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json: the tokenizer cannot be read"):
        read_model(tmp_path)


def test_random_weights_of_a_named_shape():
    encoder = build_encoder(random_spec("static", vocab_size=50))
    assert encoder.dim == 256
    assert jax.tree.map(np.shape, encoder.init(jax.random.key(0))["backbone"]) == {
        "token": (50, 256)
    }
