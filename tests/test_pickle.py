"""A loaded model can be pickled for another process; a fork is warned about in one line."""

import dataclasses
import os
import pickle
import warnings

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import LoraSpec, random_spec
from embed_jax.routed import RoutedEncoder
from embed_jax.sentence import SentenceEncoder

TEXTS = ["a cat", "the red house by the river"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return embed_jax.load(tiny_model)


def with_lora(model):
    spec = dataclasses.replace(model.spec, lora=LoraSpec(rank=2, alpha=4))
    return SentenceEncoder(
        spec,
        build_encoder(spec).init(jax.random.key(1)),
        model.tokenizer,
        EncodingSettings(base="tiny"),
    )


def static(directory):
    tokenizer = load_tokenizer(directory, 40, special_tokens=False)
    spec = random_spec("static", vocab_size=tokenizer.vocab_size)
    return SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)


@pytest.mark.parametrize(
    "kind", ["sentence", "lora", "static", "changed", "routed", "cross-encoder"]
)
def test_a_model_computes_the_same_after_pickle(kind, model, tiny_tokenizer):
    made = {
        "sentence": lambda: model,
        "lora": lambda: with_lora(model),
        "static": lambda: static(tiny_tokenizer),
        "changed": lambda: model.with_params(jax.tree.map(lambda leaf: leaf * 0.5, model.params)),
        "routed": lambda: RoutedEncoder(
            {"query": model, "document": model}, settings=EncodingSettings({"query": "find "})
        ),
        "cross-encoder": lambda: CrossEncoder(
            make_classifier(model.spec.backbone),
            build_encoder(make_classifier(model.spec.backbone)).init(jax.random.key(0)),
            model.tokenizer,
            devices=2,
        ),
    }[kind]()

    again = pickle.loads(pickle.dumps(made))

    run = (
        (lambda model: model.score(TEXTS, TEXTS))
        if kind == "cross-encoder"
        else (lambda model: model.encode_query(TEXTS))
    )
    np.testing.assert_array_equal(run(again), run(made))
    assert repr(again) == repr(made)
    if kind != "routed":
        assert again.spec == made.spec and again._mesh.size == made._mesh.size


def test_routes_share_their_parameters_after_pickle(model):
    content = pickle.dumps(RoutedEncoder({"query": model, "document": model}))

    first, second = pickle.loads(content).encoders.values()

    assert len(content) < 1.5 * len(pickle.dumps(model))
    assert all(
        map(lambda a, b: a is b, jax.tree.leaves(first.params), jax.tree.leaves(second.params))
    )


def test_a_forked_process_is_refused_and_does_not_hang(model):
    model.encode(TEXTS)
    content, (reading, writing) = pickle.dumps(model), os.pipe()
    with warnings.catch_warnings(action="ignore"):  # Python and JAX warn of the fork themselves
        child = os.fork()
    if child == 0:
        for call in (lambda: model.encode(TEXTS), lambda: pickle.loads(content)):
            try:
                call()
            except BaseException as error:
                os.write(writing, f"{type(error).__name__}: {error}\n".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as lines:
        first, second = lines.read().splitlines()
    assert first == second and first.startswith(
        f"RunError: process {child} was forked from {os.getpid()}"
    )


# ---- attributes ----------------------------------------------------------------------------------


def test_a_models_repr_says_what_it_is(model):
    assert repr(model) == (
        "SentenceEncoder(bert, 2 layers, pooling='mean', Normalize, dim=32, max_length=40, "
        "similarity='cosine')"
    )
    assert "LoRA rank 2" in repr(with_lora(model))


def test_names_of_sentence_transformers_exist_or_say_what_to_use(model):
    assert model.max_seq_length == model.max_length == 40
    other = model.with_params(model.params)
    other.max_seq_length = 8
    assert (other.max_length, model.max_length) == (8, 40)
    for owner, name, hint in (
        (model, "predict", "load_cross_encoder"),
        (model, "rank", "similarity"),
        (model, "save_pretrained", "`save"),
        (model, "push_to_hub", "scripts.export"),
        (RoutedEncoder({"query": model}), "save_pretrained", "`save"),
        (embed_jax, "SentenceTransformer", "embed_jax.load"),
    ):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match=f"has no attribute '{name}': .*{hint}"):
            getattr(owner, name)
    with pytest.raises(
        AttributeError, match="'SentenceEncoder' object has no attribute 'no_such'$"
    ):
        _ = model.no_such


def test_dir_has_every_public_name():
    assert {*embed_jax.__all__} <= {*dir(embed_jax)}
