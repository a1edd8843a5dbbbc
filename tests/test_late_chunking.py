"""Late chunking: chunks as a model sees them that has read the document."""

import dataclasses

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.errors import InputError
from embed_jax.retrieval.text_chunks import chunk_spans
from embed_jax.sentence import SentenceEncoder

TEXTS = [" the cat and the dog. red house by the river. music", "a blue train", ""]


@pytest.fixture(scope="module")
def plain(tiny_model):
    """A model whose embedding is the mean of its tokens' states, with a prompt for documents."""
    model = embed_jax.load(str(tiny_model))
    spec = dataclasses.replace(model.spec, heads=())
    model = SentenceEncoder(spec, model.params, model.tokenizer, model.settings)
    model.prompts = {"document": "the city: "}
    return model


def spans_of(model, text, tokens, overlap=0):
    encoding = model.tokenizer.unlimited.encode(text, add_special_tokens=False)
    return chunk_spans(text, encoding.offsets, tokens, overlap)


def test_one_chunk_has_the_embedding_of_the_document(plain):
    heads = (Dense(32, 8), Normalize())
    spec = dataclasses.replace(plain.spec, heads=heads)
    params = build_encoder(spec).init(jax.random.key(1)) | {"backbone": plain.params["backbone"]}
    model = SentenceEncoder(spec, params, plain.tokenizer, plain.settings)
    for include in (True, False):
        model.include_prompt = include
        chunks = model.encode_chunks(TEXTS, [[(0, len(text))] for text in TEXTS])
        whole = model.encode_document(TEXTS)
        np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)
    (cut,) = model.encode_chunks(TEXTS[:1], [[(0, len(TEXTS[0]))]], dim=4)
    np.testing.assert_allclose(cut, model.encode_document(TEXTS[:1], dim=4), atol=1e-6)


def test_chunks_are_parts_of_the_mean_and_know_the_rest(plain):
    """Their mean, each weighted by its tokens, is the document's embedding."""
    spans = spans_of(plain, TEXTS[0], tokens=7)
    (vectors,) = plain.encode_chunks(TEXTS[:1], [spans])
    assert len(spans) == len(vectors) > 1
    encoding = plain.tokenizer.tokenize(["the city: "], whole=True)[0]
    counts = np.array([
        len(plain.tokenizer.tokenize([TEXTS[0][start:end]], whole=True)[0]) for start, end in spans
    ])  # fmt: skip
    counts[0] += 1 + len(encoding)  # [CLS] and the prompt
    counts[-1] += 1
    mean = counts @ vectors / counts.sum()
    np.testing.assert_allclose(mean, plain.encode_document(TEXTS[0]), atol=1e-5)
    other = TEXTS[0].replace("music", "train")
    (changed,) = plain.encode_chunks([other], [spans_of(plain, other, tokens=7)])
    assert abs(changed[0] - vectors[0]).max() > 1e-3


def test_a_document_over_the_limit_is_read_in_parts(plain):
    text = " ".join(f"{TEXTS[0].strip()}." for _ in range(5))
    spans = spans_of(plain, text, tokens=12, overlap=4)
    (vectors,) = plain.encode_chunks([text], [spans])
    room = plain.max_length - 2 - len(plain.tokenizer.tokenize(["the city: "], whole=True)[0])
    (encoding,) = plain.tokenizer.tokenize([text], whole=True)
    starts = np.array([start for start, _ in encoding.offsets])
    ends = np.searchsorted(starts, [end for _, end in spans])
    count = int((ends <= room).sum())  # chunks that are read together at first
    assert 1 < count < len(spans) == len(vectors)
    part = text[: spans[count - 1][1]]
    (first,) = plain.encode_chunks([part], [spans[:count]])
    np.testing.assert_allclose(vectors[:count], first, atol=1e-6)


def test_what_cannot_be_pooled_is_one_line(plain):
    text = TEXTS[0] + TEXTS[0] + TEXTS[0]
    with pytest.raises(InputError, match="chunk 0: .* tokens, the model has room for"):
        plain.encode_chunks([text], [[(0, len(text))]])
    with pytest.raises(InputError, match="chunk 1:2: no token begins in it"):
        plain.encode_chunks(["a train a"], [[(0, 1), (1, 2), (2, 9)]])
    spec = dataclasses.replace(plain.spec, pooling="cls")
    model = SentenceEncoder(spec, plain.params, plain.tokenizer, plain.settings)
    with pytest.raises(InputError, match="expected a model of mean pooling, found 'cls'"):
        model.encode_chunks(["a"], [[(0, 1)]])
