"""Static encoders made of word vectors and of a teacher, and trained."""

import dataclasses

import numpy as np
import pytest

import embed_jax
import embed_jax.static
from embed_jax.encoders.heads import Normalize
from embed_jax.errors import InputError
from embed_jax.static import distil, embed_tokens, sif_weights, static_from_words
from embed_jax.train.finetune import finetune

RNG = np.random.default_rng(0)
WORDS = ["the", "order", "carrier", "delayed", ".", "o", "x"]


@pytest.fixture(scope="module")
def vectors():
    return RNG.normal(size=(len(WORDS), 8)).astype(np.float32)


@pytest.fixture(scope="module")
def word_file(tmp_path_factory, vectors):
    path = tmp_path_factory.mktemp("words") / "vectors.txt"
    lines = (
        f"{word} {' '.join(map(repr, row.tolist()))}\n"
        for word, row in zip(WORDS, vectors, strict=True)
    )
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def teacher(tiny_model):
    return embed_jax.load(str(tiny_model))


def test_a_text_is_the_mean_of_its_known_words(word_file, vectors, tmp_path):
    model = static_from_words(word_file)
    result = model.encode(["The order OF the carrier?", "The order OF the carrier.", "unknown", ""])
    known = vectors[[0, 1, 0, 2]]
    np.testing.assert_allclose(result[0], known.mean(0), atol=1e-6)
    np.testing.assert_allclose(result[1], (known.sum(0) + vectors[4]) / 5, atol=1e-6)
    assert not result[2:].any()
    np.testing.assert_allclose(
        *model.encode(["carrier delayed order", "order delayed carrier"]), atol=1e-7
    )
    np.testing.assert_allclose(
        static_from_words(word_file, lower_case=False).encode("The order OF the carrier?"),
        vectors[[1, 0, 2]].mean(0),
        atol=1e-6,
    )
    cased = tmp_path / "cased.txt"
    cased.write_text(word_file.read_text().replace("order", "Order"))
    np.testing.assert_allclose(
        static_from_words(cased).encode("The Order order"), vectors[1], atol=1e-6
    )


def test_sentence_transformers_agrees_on_words(word_file, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model = static_from_words(word_file, sif=0.1)
    model.save(tmp_path / "model")
    texts = ["the order of the carrier", "Delayed?", "nothing known", "", "x o.ox the"]
    reference = library.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    np.testing.assert_allclose(model.encode(texts), reference, atol=1e-6)
    np.testing.assert_array_equal(
        embed_jax.load(str(tmp_path / "model")).encode(texts), model.encode(texts)
    )


def test_sif_weights():
    result = sif_weights(4, 0.1)
    shares = np.array([12, 6, 4, 3]) / 25
    np.testing.assert_allclose(result, 0.1 / (0.1 + shares), rtol=1e-6)
    assert (sif_weights(3, 0) == 1).all()
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(InputError, match="sif: expected a finite number from 0"):
            sif_weights(3, wrong)


@pytest.fixture(scope="module")
def token_embeddings(teacher):
    return embed_tokens(teacher, teacher.tokenizer.vocab_size)


@pytest.fixture
def embedded_once(token_embeddings, monkeypatch):
    monkeypatch.setattr(embed_jax.static, "embed_tokens", lambda *_: token_embeddings)


def test_each_token_is_embedded_as_the_teacher_embeds_a_text_of_it(
    teacher, token_embeddings, monkeypatch
):
    words = ["cat", "guitar", "!"]
    ids = [teacher.tokenizer.encode([word]).ids[0][1] for word in words]
    np.testing.assert_allclose(token_embeddings[ids], teacher.encode(words), atol=1e-6)
    monkeypatch.setattr(embed_jax.static, "TOKENS_AT_A_TIME", 60)  # the last batch is not full
    np.testing.assert_allclose(
        embed_tokens(teacher, len(token_embeddings)), token_embeddings, atol=1e-6
    )


def test_distilled_vectors_are_the_teachers_but_for_their_weights(teacher, embedded_once):
    vocabulary = teacher.tokenizer.backend.get_vocab()
    model = distil(teacher, 0, sif=0.01)
    table = np.asarray(model.params["backbone"]["token"])
    special = sorted(vocabulary[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    assert np.flatnonzero(~table.any(axis=1)).tolist() == special
    weights = sif_weights(len(table) - 5, 0.01)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1)[5:], weights, rtol=1e-5)
    words = ["cat", "the", "language"]  # one word only: its weight goes with the length
    np.testing.assert_allclose(model.encode(words), teacher.encode(words), atol=1e-5)
    np.testing.assert_allclose(
        model.encode("the 中"), teacher.encode("the"), atol=1e-5
    )  # unknown: no direction


def test_principal_components_keep_distances_and_centre(teacher, embedded_once):
    whole, part = (
        distil(teacher, dim, sif=0).params["backbone"]["token"][5:] for dim in (teacher.dim, 6)
    )
    plain = np.asarray(distil(teacher, 0, sif=0).params["backbone"]["token"][5:])
    np.testing.assert_allclose(np.mean(whole, axis=0), 0, atol=1e-6)
    differences = [
        np.linalg.norm(table[:20, None] - table[None, :20], axis=-1) for table in (whole, plain)
    ]
    np.testing.assert_allclose(*differences, atol=1e-5)
    np.testing.assert_allclose(part, whole[:, :6], atol=1e-5)
    variances = np.var(whole, axis=0)
    assert (np.diff(variances) <= 1e-6).all()
    with pytest.raises(InputError, match=f"dim: expected 0 to {teacher.dim}"):
        distil(teacher, teacher.dim + 1)


def test_ends_as_the_teacher_does(teacher, embedded_once):
    assert distil(teacher, 4).spec.heads == (Normalize(),)
    bare = embed_jax.SentenceEncoder(
        dataclasses.replace(teacher.spec, heads=()), teacher.params, teacher.tokenizer
    )
    assert distil(bare, 4).spec.heads == ()


@pytest.mark.slow
def test_a_table_split_over_devices_is_trained_alike(tiny_tokenizer):
    rows = [("cat", "dog"), ("music", "guitar"), ("red", "blue"), ("city", "country")] * 2
    fields = {
        "model__tokenizer": str(tiny_tokenizer),
        "batch__size": 8,
        "batch__groups": 2,
        "train__steps": 3,
    }
    fields |= {"optim__learning_rate": 0.05}
    whole = finetune(rows, "random:static", **fields, train__devices=1)
    split = finetune(rows, "random:static", **fields, train__devices=2, train__fsdp=2)
    np.testing.assert_allclose(split.encode(rows[0]), whole.encode(rows[0]), atol=1e-5)
    assert whole.dim == 256


def test_what_a_static_encoder_has_not_is_refused(tiny_tokenizer):
    rows, tokenizer = [("cat", "dog"), ("red", "blue")], str(tiny_tokenizer)
    for field, value, message in (
        ("model__dropout", 0.1, "config.model.dropout: a static encoder has none"),
        ("model__pooling", "cls", "pooling 'cls': a static encoder has 'mean' only"),
        (
            "model__layers",
            "0",
            "config.model.layers 0: a backbone of the family 'static' has no layers",
        ),
        ("loss__mlm", 0.1, "config.loss.mlm: the tokenizer has no mask token"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(rows, "random:static", model__tokenizer=tokenizer, **{field: value})


def test_training_pulls_pairs_together_and_moves_only_tokens_that_occur(
    teacher, embedded_once, tmp_path
):
    distil(teacher, 16).save(tmp_path / "start")
    rows = [("cat", "dog"), ("music", "guitar"), ("red", "blue"), ("city", "country")] * 4
    before = embed_jax.load(str(tmp_path / "start"))
    after = finetune(
        rows,
        str(tmp_path / "start"),
        train__steps=20,
        train__devices=1,
        batch__size=4,
        optim__learning_rate=0.05,
        loss__name="matryoshka(info_nce(), dims='16,8')",
    )
    texts = [text for row in rows[:4] for text in row]

    def gain(model):
        similarities = model.encode(texts) @ model.encode(texts).T
        own = np.mean([similarities[2 * n, 2 * n + 1] for n in range(4)])
        return own - similarities.mean()

    assert gain(after) > gain(before) + 0.2
    moved = np.asarray(after.params["backbone"]["token"]) != np.asarray(
        before.params["backbone"]["token"]
    )
    ids = sorted(int(token_ids[0]) for token_ids in before.tokenizer.encode(texts).ids)
    assert np.flatnonzero(moved.any(axis=1)).tolist() == ids
    assert after.max_length == before.max_length
