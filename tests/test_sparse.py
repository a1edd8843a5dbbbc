"""Sparse models: parity with sentence-transformers, layouts there and back, words, refusals."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embed_jax
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.data.window import pack_window
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.vocabulary import VOCABULARY, Splade
from embed_jax.encoders.weights import open_tensors
from embed_jax.errors import InputError
from embed_jax.routed import RoutedEncoder
from embed_jax.sentence import load_sentence_encoder
from embed_jax.sparse import SparseEncoder, bias_change, sparse_statistics, to_csr

torch = pytest.importorskip("torch")
peers = pytest.importorskip("sentence_transformers")
TEXTS = ["the cat and the dog", "red house by the river", "music", "a blue train in the city was"]


@pytest.fixture(scope="module")
def language_model(tiny_tokenizer, tmp_path_factory):
    """A directory with a random BertForMaskedLM, whose logits are far apart."""
    from transformers import BertConfig, BertForMaskedLM

    directory = tmp_path_factory.mktemp("mlm") / "bert"
    shutil.copytree(tiny_tokenizer, directory)
    size = len((tiny_tokenizer / "vocab.txt").read_text().split())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    model = BertForMaskedLM(config)
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=0.5)
    torch.nn.init.normal_(model.cls.predictions.bias, mean=-1.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def layouts(language_model, tmp_path_factory):
    """Directories that sentence-transformers wrote: SPLADE, its sum, and queries by a table."""
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    root = tmp_path_factory.mktemp("layouts")

    def document(*pooling):
        transformer = Transformer(str(language_model), transformer_task="fill-mask")
        return [transformer, SpladePooling(*pooling)]

    first = document()
    weights = torch.rand(len(first[0].tokenizer.get_vocab()))
    table = SparseStaticEmbedding(first[0].tokenizer, weight=weights)
    models = {
        "splade": document("max"),
        "sum": document("sum", "log1p_relu"),
        "table": [Router.for_query_document([table], first)],
    }
    for name, modules in models.items():
        model = peers.SparseEncoder(modules=modules, device="cpu", similarity_fn_name="dot")
        model.prompts = {"query": "the ", "document": ""}
        model.save(str(root / name))
    return root


def peer(directory):
    return peers.SparseEncoder(str(directory), device="cpu")


def assert_alike(model, other):
    for encode in ("encode_query", "encode_document"):
        ours, peer_values = getattr(model, encode)(TEXTS), getattr(other, encode)(TEXTS)
        np.testing.assert_allclose(ours.toarray(), peer_values.to_dense().numpy(), atol=1e-5)
        assert ours.nnz < 0.9 * np.prod(ours.shape)


@pytest.mark.parametrize("name", ["splade", "sum", "table"])
def test_layouts_are_read_and_written(name, layouts, tmp_path):
    model, other = embed_jax.load(layouts / name), peer(layouts / name)
    assert isinstance(model, RoutedEncoder if name == "table" else SparseEncoder)
    assert model.similarity_fn_name == "dot" and model.prompts["query"] == "the "
    assert_alike(model, other)
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    scores = other.similarity(other.encode_query(TEXTS), other.encode_document(TEXTS))
    np.testing.assert_allclose(model.similarity(queries, documents), scores.numpy(), atol=1e-4)
    model.save(tmp_path / "again")
    again = embed_jax.load(tmp_path / "again")
    assert_alike(again, peer(tmp_path / "again"))
    assert (again.encode_document(TEXTS) != documents).nnz == 0
    assert (again.encode_query(TEXTS) != queries).nnz == 0


def test_modernbert_is_read_and_written(tiny_tokenizer, tmp_path):
    """Its head has no biases, and most of its layers see near tokens only."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    directory = shutil.copytree(tiny_tokenizer, tmp_path / "modernbert")
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len((tiny_tokenizer / "vocab.txt").read_text().split()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        local_attention=4,
        pad_token_id=0,
    )
    language_model = ModernBertForMaskedLM(config)
    torch.nn.init.normal_(language_model.model.embeddings.tok_embeddings.weight, std=0.5)
    torch.nn.init.normal_(language_model.decoder.bias, mean=-1.0)
    language_model.save_pretrained(directory)
    modules = [Transformer(str(directory), transformer_task="fill-mask"), SpladePooling("max")]
    other = peers.SparseEncoder(modules=modules, device="cpu", similarity_fn_name="dot")
    other.save(str(tmp_path / "splade"))
    model = embed_jax.load(tmp_path / "splade")
    assert model.spec.backbone.family == "modernbert"
    assert_alike(model, other)
    model.save(tmp_path / "again")
    assert_alike(embed_jax.load(tmp_path / "again"), peer(tmp_path / "again"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "output layer"])
def test_a_decoder_s_weights_are_those_of_its_output_layer(tied, tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(tiny_tokenizer, 32)
    spec = random_spec("decoder-tiny", vocab_size=tokenizer.vocab_size)
    backbone = dataclasses.replace(spec.backbone, tied=tied)
    spec = EncoderSpec(backbone, vocabulary=Splade())
    encoder = build_encoder(spec)
    params = encoder.init(jax.random.key(0))
    assert ("vocabulary" in params) is not tied
    model = SparseEncoder(spec, params, tokenizer, EncodingSettings(similarity="dot"))
    ((_, tokens),) = pack_window(tokenizer.encode(TEXTS[:1]).ids, 0, 64)
    states = jax.jit(encoder.hidden)(params, tokens)[0][: int(np.sum(tokens.pooled))]
    table = params["backbone"]["embeddings"]["token"] if tied else params["vocabulary"]["lm_head"]
    expected = jnp.log1p(jax.nn.relu(states @ table.T)).max(axis=0)
    np.testing.assert_allclose(model.encode(TEXTS[:1]).toarray()[0], expected, atol=1e-5)
    model.save(tmp_path / "decoder")
    again = embed_jax.load(tmp_path / "decoder")
    assert again.spec == spec and (again.encode(TEXTS) != model.encode(TEXTS)).nnz == 0


def test_gradients_are_those_of_sentence_transformers(layouts):
    """Of the sum of the products of all pairs of texts, with weights."""
    other, factors = peer(layouts / "splade"), np.random.default_rng(0).normal(size=(4, 4))
    features = other.preprocess(TEXTS)
    embeddings = other(features)["sentence_embedding"]
    value = (embeddings @ embeddings.T * torch.tensor(factors, dtype=torch.float32)).sum()
    value.backward()
    expected = {name: leaf.grad for name, leaf in other[0].model.named_parameters()}

    model = embed_jax.load(layouts / "splade")
    encoder = build_encoder(model.spec)
    tokenized = model.tokenizer.encode(TEXTS)
    ((numbers, tokens),) = pack_window(tokenized.ids, tokenized.skip, 64)

    def ours(params):
        weights = encoder.apply(params, tokens)[jnp.argsort(jnp.asarray(numbers))]
        return jnp.sum(weights @ weights.T * jnp.asarray(factors, jnp.float32))

    own_value, gradient = jax.jit(jax.value_and_grad(ours))(jax.device_get(model.params))
    assert float(own_value) == pytest.approx(value.item(), rel=1e-4)
    head, backbone = gradient["vocabulary"], gradient["backbone"]
    for ours, name in (
        (backbone["embeddings"]["token"], "bert.embeddings.word_embeddings.weight"),
        (head["dense"]["kernel"].T, "cls.predictions.transform.dense.weight"),
        (head["bias"], "cls.predictions.bias"),
    ):
        peer_values = expected[name].numpy()
        np.testing.assert_allclose(
            ours, peer_values, atol=1e-4 * np.abs(peer_values).max(), err_msg=name
        )


def test_the_largest_weights_and_their_words(layouts):
    model, other = embed_jax.load(layouts / "splade"), peer(layouts / "splade")
    ours = model.encode_document(TEXTS, max_active=5)
    peer_values = other.encode_document(TEXTS, max_active_dims=5)
    np.testing.assert_allclose(ours.toarray(), peer_values.to_dense().numpy(), atol=1e-5)
    words = [[word for word, _ in row] for row in model.decode(ours, top_k=3)]
    expected = [[word for word, _ in row] for row in other.decode(peer_values, top_k=3)]
    assert words == expected and all(len(row) == 3 for row in words)
    first, second = model.encode(TEXTS[0]), model.encode(TEXTS[1])
    shared = model.overlap(first, second)
    peer_values = other.intersection(other.encode(TEXTS[0]), other.encode(TEXTS[1]))
    np.testing.assert_allclose(shared.toarray()[0], peer_values.to_dense().numpy(), atol=1e-5)
    assert shared.sum() == pytest.approx(model.similarity(first, second)[0, 0], rel=1e-5)


def test_max_active_is_saved_and_equal_weights_keep_the_smaller_ids(layouts, tmp_path):
    model = embed_jax.load(layouts / "splade")
    model.max_active = 4
    assert np.diff(model.encode(TEXTS).indptr).tolist() == [4] * 4
    model.save(tmp_path / "model")
    assert embed_jax.load(tmp_path / "model").max_active == 4
    assert peer(tmp_path / "model").max_active_dims == 4
    rows = to_csr(np.array([[1, 2, 2, 0, 2], [0, 0, 3, 0, 0]], np.float32), max_active=2)
    np.testing.assert_array_equal(rows.toarray(), [[0, 2, 2, 0, 0], [0, 0, 3, 0, 0]])


def test_statistics_count_words_and_what_texts_share(layouts):
    model = embed_jax.load(layouts / "splade")
    queries, documents = model.encode(TEXTS[:2], max_active=7), model.encode(TEXTS)
    active = [(rows.toarray() > 0).astype(int) for rows in (queries, documents)]
    shared = (active[0] @ active[1].T).mean()
    statistics = sparse_statistics(queries, documents)
    assert statistics.active_queries == 7
    assert statistics.active_documents == pytest.approx(active[1].sum(axis=1).mean())
    assert statistics.flops == pytest.approx(shared)


@pytest.mark.parametrize("name", ["splade", "sum"])
@pytest.mark.parametrize("words", [1, 5])
def test_a_change_of_the_bias_sets_the_words_of_a_text(name, words, layouts):
    model = embed_jax.load(layouts / name)
    change = bias_change(model, TEXTS, words)
    head = model.params[VOCABULARY]
    params = {**model.params, VOCABULARY: {**head, "bias": head["bias"] + change}}
    assert model.encode(TEXTS, prompt="").nnz != words * len(TEXTS)
    assert model.encode(TEXTS, prompt="", params=params).nnz == words * len(TEXTS)
    with pytest.raises(InputError, match=r"expected 1 to \d+ words of \d+, found 0"):
        bias_change(model, TEXTS, 0)


def test_texts_without_words_are_rows_of_zeros(layouts):
    """The empty text has [CLS] and [SEP] for the transformer, and nothing for the table."""
    model = embed_jax.load(layouts / "table")
    with pytest.warns(UserWarning, match="1 of 3 texts have no weight above 0"):
        queries = model.encode_query(["", "cat", "dog"], prompt="")
    assert np.diff(queries.indptr).tolist() == [0, 1, 1]
    assert model.encode_document([""]).nnz > 0
    assert model.encode_document([]).shape == (0, model.dim)
    unknown = model.encode_query("\N{SNOWMAN}", prompt="")
    (words,) = model.encoder("query").decode(unknown)
    assert [word for word, _ in words] == ["[UNK]"]
    np.testing.assert_array_equal(model.similarity(queries[:1], queries), np.zeros((1, 3)))


def test_idf_by_token_is_read(layouts, tmp_path):
    """OpenSearch's form of a table."""
    directory = shutil.copytree(layouts / "table", tmp_path / "model")
    (folder,) = directory.glob("query_*")
    (folder / "model.safetensors").unlink()
    (folder / "idf.json").write_text(json.dumps({"cat": 2.5, "dog": 0.5}))
    (folder / "config.json").write_text(json.dumps({"path": "elsewhere/idf.json", "frozen": True}))
    model = embed_jax.load(directory)
    assert model.encoder("query").decode(model.encode_query(["a cat"])) == [[("cat", 2.5)]]
    assert model.encoder("query").spec.vocabulary.frozen
    (folder / "idf.json").write_text(json.dumps({"catt": 2.5}))
    with pytest.raises(InputError, match="expected a number for each token"):
        embed_jax.load(directory)


def test_what_does_not_fit_is_refused_in_one_line(layouts, language_model, tiny_model, tmp_path):
    model = embed_jax.load(layouts / "splade")
    rows, dense = model.encode(TEXTS), embed_jax.load(tiny_model)
    headless = shutil.copytree(layouts / "splade", tmp_path / "headless")
    tensors = {
        name: np.array(value)
        for name, value in open_tensors(headless).items()
        if not name.startswith("cls.")
    }
    from safetensors.numpy import save_file

    save_file(tensors, headless / "model.safetensors")
    other_words = shutil.copytree(layouts / "table", tmp_path / "words")
    (folder,) = other_words.glob("query_*")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for call, message in (
        (lambda: model.encode(TEXTS, dim=4), "dim: sparse embeddings have the size"),
        (lambda: model.encode(TEXTS, max_active=-1), "max_active: expected 1 or more"),
        (lambda: dense.encode(TEXTS, max_active=3), "max_active: only sparse embeddings"),
        (lambda: load_sentence_encoder(layouts / "splade"), "a sparse model .embed_jax.load"),
        (lambda: model.decode(rows[:, :5]), "decode: expected embeddings over the model's"),
        (lambda: model.similarity(rows, rows[:, :5]), "over one vocabulary, found"),
        (lambda: model.similarity(rows, rows.toarray()), "sparse embeddings on both sides"),
        (lambda: embed_jax.load(headless), "no weights of a masked language model's head"),
        (lambda: embed_jax.load(other_words), "expected one vocabulary, found that token"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
