"""Late-interaction models: against sentence-transformers, in every layout, and at the edges."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embed_jax
from embed_jax.data.pack import pack_sentences
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, find_shape
from embed_jax.encoders.token_settings import PUNCTUATION, TokenSettings
from embed_jax.errors import EmbedJaxWarning, InputError
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.losses import distillation, in_batch
from embed_jax.maxsim import maxsim_matrix
from embed_jax.token_sides import register_markers
from embed_jax.world import LocalWorld, make_columns

from .conftest import WORDS

QUERIES = ["find music", "how long is the river, and what about the road?", "cat"]
DOCUMENTS = ["the river, is long. and red!", "a cat plays the guitar", "dog", "bread and apple"]
EXPANDED = TokenSettings(
    document_length=12, expansion="fixed", expansion_length=10, skip_words=PUNCTUATION
)
VARIANTS = {
    "fixed": EXPANDED,
    "fixed, attended": dataclasses.replace(EXPANDED, attend=True),
    "min": dataclasses.replace(EXPANDED, expansion="min", expansion_length=6),
    "pooled": dataclasses.replace(EXPANDED, pool_factor=2.0),
}


def make_tokenizer(directory):
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = dict.fromkeys([*special, *WORDS, *PUNCTUATION, "unused", "##0", "##1"])
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    loaded = load_tokenizer(directory, 32)
    return register_markers(loaded, ["[unused0] ", "[unused1] "])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_model(tokenizer, heads=(), texts=EXPANDED):
    backbone = dataclasses.replace(find_shape("tiny"), vocab_size=tokenizer.vocab_size)
    heads = heads or (Dense(32, 8, bias=False, activation="identity"), Normalize())
    spec = EncoderSpec(backbone, "", heads)
    params = build_encoder(spec, vectors_per_text=0).init(jax.random.key(0))
    # Larger than at the start of training, so that tokens differ.
    params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)
    prompts = {"query": "[unused0] ", "document": "[unused1] "}
    settings = EncodingSettings(prompts, similarity="maxsim")
    return LateInteractionEncoder(spec, params, tokenizer, settings, texts)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def values_and_gradients(model, columns, losses, labels):
    """Returns {name: (value, gradient)} of losses `own -> (values, weights, metrics)`.

    The texts of the columns, queries first, are packed, not padded.
    """
    packed = []
    for column, texts in enumerate(columns):
        side = "document" if column else "query"
        tokenized = model.tokenizers[side].encode(texts, model.prompts[side])
        batch = pack_sentences(tokenized.ids, row_length=32, marks=tokenized.marks)
        length = model.tokenizers[side].max_length
        packed.append((build_encoder(model.spec, vectors_per_text=length), batch))

    @jax.jit
    def each(params):
        """The encoder runs forward once for all losses, and backward once for all slopes."""

        def encode(params):
            embeddings = [encoder.apply(params, batch) for encoder, batch in packed]
            return [column["tokens"] for column in embeddings], embeddings

        tokens, pull_back, embeddings = jax.vjp(encode, params, has_aux=True)

        def value(tokens, loss):
            pairs = zip(embeddings, tokens, strict=True)
            embedded = [{**column, "tokens": vectors} for column, vectors in pairs]
            values, weights, _ = loss(make_columns(embedded, score=jnp.asarray(labels)))
            return jnp.sum(values * weights) / jnp.sum(weights)

        results = [jax.value_and_grad(value)(tokens, loss) for loss in losses.values()]
        slopes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(slope for _, slope in results))
        (gradients,) = jax.vmap(pull_back)(slopes)
        return [value for value, _ in results], gradients

    values, gradients = each(model.params)
    return {
        name: (values[number], jax.tree.map(lambda leaf, n=number: leaf[n], gradients))
        for number, name in enumerate(losses)
    }


def on_world(loss, **arguments):
    return lambda own: loss.on_world(own, LocalWorld(own), {}, **arguments)


def assert_same_gradients(gradient, torch_gradients):
    """Compares a head's and a layer's gradient with torch's, {name of the parameter: array}."""
    for ours, name in (
        (gradient["heads"]["0"]["kernel"].T, "1.linear.weight"),
        (gradient["backbone"]["layers"]["up"]["kernel"][0].T, "intermediate.dense.weight"),
    ):
        grad = next(array for key, array in torch_gradients.items() if key.endswith(name))
        scale = np.abs(grad).max()
        assert scale > 1e-3
        np.testing.assert_allclose(ours, grad, atol=1e-4 * max(scale, 1.0))


def assert_equals_sentence_transformers(model, directory):
    MultiVectorEncoder = pytest.importorskip("sentence_transformers").MultiVectorEncoder

    reference = MultiVectorEncoder(str(directory))
    for side, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        encode = getattr(reference, f"encode_{side}")
        expected = encode(texts, convert_to_numpy=True)
        for ours, reference_value in zip(model.encode(texts, task=side), expected, strict=True):
            np.testing.assert_allclose(ours, reference_value, atol=1e-5)
    vectors = reference.encode_query(QUERIES), reference.encode_document(DOCUMENTS)
    ours = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    np.testing.assert_allclose(ours, reference.similarity(*vectors), atol=1e-4)


@pytest.mark.filterwarnings("ignore::embed_jax.errors.EmbedJaxWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_and_scores_equal_sentence_transformers(tokenizer, tmp_path, variant):
    two_layers = (
        Dense(32, 24, activation="gelu"),
        Dense(24, 8, bias=False, activation="identity", residual=True),
        Normalize(),
    )
    model = make_model(tokenizer, two_layers, VARIANTS[variant])
    model.save(tmp_path / "model")
    assert_equals_sentence_transformers(model, tmp_path / "model")
    again = embed_jax.load(tmp_path / "model")
    assert (again.spec, again.texts) == (model.spec, model.texts)
    assert again.settings == dataclasses.replace(model.settings, base=again.settings.base)
    for leaf, other in zip(*map(jax.tree.leaves, (model.params, again.params)), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.filterwarnings("ignore::embed_jax.errors.EmbedJaxWarning")
@pytest.mark.parametrize("layout", ["pylate", "stanford"])
def test_older_layouts_there_and_back(model, tmp_path, layout):
    model.save(tmp_path / "model", layout)
    again = embed_jax.load(tmp_path / "model")
    assert_equals_sentence_transformers(again, tmp_path / "model")
    for side, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        for ours, before in zip(
            again.encode(texts, task=side), model.encode(texts, task=side), strict=True
        ):
            np.testing.assert_allclose(ours, before, atol=1e-6)


@pytest.mark.filterwarnings("ignore::embed_jax.errors.EmbedJaxWarning")
def test_losses_and_gradients_equal_sentence_transformers(model, tmp_path):
    """The losses are those of vectors, with the score MaxSim; the texts are packed, not padded."""
    torch = pytest.importorskip("torch")
    MultiVectorEncoder = pytest.importorskip("sentence_transformers").MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder import losses

    columns = [QUERIES, DOCUMENTS[:3], DOCUMENTS[1:]]
    labels = np.array([[0.9, 0.1], [0.3, 0.5], [0.7, 0.6]], np.float32)
    model.save(tmp_path / "model")
    reference = MultiVectorEncoder(str(tmp_path / "model"))
    cases = {
        "info_nce": (
            losses.MultiVectorMultipleNegativesRankingLoss(reference),
            on_world(
                in_batch.info_nce, similarity="maxsim", temperature=1.0, mask_duplicates=False
            ),
        ),
        "kl": (
            losses.MultiVectorDistillKLDivLoss(
                reference, student_temperature=0.5, teacher_temperature=0.5
            ),
            on_world(distillation.kl, similarity="maxsim", temperature=0.5),
        ),
        "margin_mse": (
            losses.MultiVectorMarginMSELoss(reference),
            on_world(distillation.margin_mse, similarity="maxsim"),
        ),
    }
    ours = {name: loss for name, (_, loss) in cases.items()}
    results = values_and_gradients(model, columns, ours, labels)
    for name, (loss, _) in cases.items():
        reference.zero_grad()
        features = []
        for side, texts in zip(("query", "document", "document"), columns, strict=True):
            made = reference.preprocess(texts, prompt=model.prompts[side], task=side)
            features.append({**made, "task": side})
        expected = loss(features, torch.tensor(labels))
        expected.backward()
        value, gradient = results[name]
        assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5), name
        assert_same_gradients(
            gradient,
            {
                name: parameter.grad.numpy()
                for name, parameter in reference.named_parameters()
                if parameter.grad is not None
            },
        )


# ---- this side -----------------------------------------------------------------------------------


def test_a_query_does_not_depend_on_its_neighbours(model):
    """Tokens that expand a query are seen by none, and fill rows that texts share."""
    together = model.encode_query(QUERIES)
    for text, vectors in zip(QUERIES, together, strict=True):
        by_itself = model.encode_query(text)
        assert by_itself.shape == (10, 8)
        np.testing.assert_allclose(by_itself, vectors, atol=1e-6)


def test_score_and_rank(model):
    scores = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    np.testing.assert_allclose(
        model.score(*zip(*pairs, strict=True)), scores.reshape(-1), rtol=1e-6
    )
    ranked = model.rank(QUERIES[0], DOCUMENTS, top_k=2, return_documents=True)
    order = np.argsort(-scores[0])[:2]
    assert [result["corpus_id"] for result in ranked] == order.tolist()
    assert ranked[0]["text"] == DOCUMENTS[order[0]]
    assert type(ranked[0]["score"]) is float


def test_prefixes_and_pooling_when_encoding(model):
    whole = model.encode_document(DOCUMENTS[0])
    short = model.encode_document(DOCUMENTS[0], dim=3)
    np.testing.assert_allclose(
        short, whole[:, :3] / np.linalg.norm(whole[:, :3], axis=1, keepdims=True), rtol=1e-5
    )
    for factor in (2.0, 3.0):
        pooled = model.encode_document(DOCUMENTS[0], pool_factor=factor)
        assert len(pooled) == 1 + int((len(whole) - 1) // factor)
        np.testing.assert_allclose(pooled[0], whole[0], rtol=1e-5)
    assert len(model.encode_query(QUERIES[0], dim=3)) == 10


def test_a_model_is_pickled(model):
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.encode_query("cat"), model.encode_query("cat"))


def test_empty_texts_and_documents_without_vectors(model):
    """An empty text has its special tokens and its marker; a document without vectors scores 0."""
    (vectors,) = model.encode_document([""])
    assert len(vectors) == 3
    assert len(model.encode_query("")) == 10
    assert model.encode_document([]) == []
    nothing = np.zeros((0, 8), np.float32)
    assert maxsim_matrix([vectors, nothing], [nothing, vectors])[:, 0].tolist() == [0.0, 0.0]
    assert model.similarity([], [vectors]).shape == (0, 1)
    assert model.rank("cat", []) == []


def test_words_that_say_nothing_and_markers_that_no_vocabulary_has(model, tokenizer):
    """A query keeps all its tokens; a document of skipped ones has its special tokens left."""
    assert len(model.encode_query("., !")) == 10
    (vectors,) = model.encode_document(["., !"])
    assert len(vectors) == 3
    # An unknown marker stays text like any prompt.
    assert register_markers(tokenizer, ["[Q] "]) is tokenizer


def test_long_documents_are_cut_with_one_warning(model):
    with pytest.warns(EmbedJaxWarning, match="1 of 2 documents were cut at the limit of 12 tokens"):
        vectors = model.encode_document(["cat " * 40, "cat"])
    assert [len(each) for each in vectors] == [12, 4]


def test_what_is_refused_in_one_line(model, tokenizer, tmp_path):
    with pytest.raises(InputError, match="unknown task 'passage'"):
        model.encode("cat", task="passage")
    with pytest.raises(InputError, match="found 1 and 2"):
        model.score(["cat", "dog"], ["cat"])
    with pytest.raises(InputError, match="the tokenizer has no token '.NO.'"):
        make_model(tokenizer, texts=dataclasses.replace(EXPANDED, expansion_token="[NO]"))
    with pytest.raises(InputError, match="unknown query expansion 'most'"):
        dataclasses.replace(EXPANDED, expansion="most")
    with pytest.raises(InputError, match="unknown layout 'colbert'"):
        model.save(tmp_path / "model", "colbert")
    pooled = make_model(tokenizer, texts=VARIANTS["pooled"])
    with pytest.raises(InputError, match="'pylate': cannot say this model's pool_factor"):
        pooled.save(tmp_path / "model", "pylate")
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="late-interaction model, which gives each token"):
        from embed_jax.sentence import load_sentence_encoder

        load_sentence_encoder(tmp_path / "model")
