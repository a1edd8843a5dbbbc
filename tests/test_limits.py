"""Inputs for which a model's tables have no row are refused.

These are lengths, token ids, and models of another kind.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embed_jax
from embed_jax import sentence
from embed_jax.config import Experiment, Model
from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.layers import take_rows
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder
from embed_jax.train.model import initial_model
from embed_jax.train.objective import frozen_models
from scripts.commands import load_model


def start(model, max_length):
    """Makes the model that a run of texts of this length starts from."""
    config = Experiment(model=model)
    config.data.max_length = max_length
    return initial_model(config)


def one_line(message, call, *arguments, **options):
    with pytest.raises(InputError, match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model(tiny_model):
    return embed_jax.load(tiny_model)


@pytest.fixture(scope="module")
def cross_encoder(model, tmp_path_factory):
    spec = make_classifier(model.spec.backbone)
    params = build_encoder(spec).init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("cross_encoder") / "model"
    CrossEncoder(spec, params, model.tokenizer).save(directory)
    return directory


# ---- lengths -------------------------------------------------------------------------------------


def test_a_length_beyond_the_positions_is_refused(model, tiny_model, tiny_tokenizer):
    positions = model.spec.backbone.max_positions
    message = (
        f"max_length: expected at most {positions}, the model's positions, found {positions + 1}"
    )
    long = load_tokenizer(tiny_tokenizer, positions + 1)

    one_line(message, embed_jax.load, tiny_model, max_length=positions + 1)
    one_line(message, SentenceEncoder, model.spec, model.params, long)
    one_line(message, setattr, model.with_params(model.params), "max_length", positions + 1)
    one_line(message, start, Model(name=str(tiny_model)), positions + 1)
    random = Model(name="random:tiny", tokenizer=str(tiny_tokenizer))
    one_line(message, start, random, positions + 1)
    assert embed_jax.load(tiny_model, max_length=positions).max_length == positions


def test_positions_before_an_offset_are_not_for_texts(model, tiny_tokenizer):
    # RoBERTa and its kin count positions from the padding index + 1.
    backbone = dataclasses.replace(model.spec.backbone, family="roberta", position_offset=2)
    spec, long = (
        dataclasses.replace(model.spec, backbone=backbone),
        load_tokenizer(tiny_tokenizer, 511),
    )

    one_line("max_length: expected at most 510", SentenceEncoder, spec, model.params, long)
    SentenceEncoder(spec, model.params, long.cut_at(510))


def test_a_row_beyond_a_table_is_nan_and_no_other_row():
    table = jnp.arange(6.0).reshape(3, 2)

    rows = take_rows(table, jnp.array([2, 3]))

    np.testing.assert_array_equal(rows, [[4, 5], [np.nan, np.nan]])


# ---- token ids -----------------------------------------------------------------------------------


def add_token(source, directory):
    """Copies a model with one more token in its tokenizer than rows in its table."""
    shutil.copytree(source, directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    size = len(content["model"]["vocab"])
    token = {**content["added_tokens"][0], "id": size, "content": "[NEW]", "special": False}
    content["added_tokens"].append(token)
    path.write_text(json.dumps(content))
    return directory, size


def test_an_added_token_without_a_row_is_refused_in_a_text_only(tiny_model, model, tmp_path):
    directory, size = add_token(tiny_model, tmp_path / "model")
    message = (
        rf"token '\[NEW\]' has no embedding: its id is {size}, the model's table has {size} rows"
    )

    added = embed_jax.load(directory)

    np.testing.assert_array_equal(added.encode(["a cat"]), model.encode(["a cat"]))
    one_line(message + "; found in the text 'a .NEW. cat'", added.encode, ["a dog", "a [NEW] cat"])
    one_line(message, added.tokenizer.cut_at(8).encode, ["[NEW]"])
    added.save(tmp_path / "again")
    one_line(message, embed_jax.load(tmp_path / "again").encode, "[NEW]")


def test_so_in_pairs_and_static_encoders(cross_encoder, tiny_tokenizer, tmp_path):
    directory, size = add_token(cross_encoder, tmp_path / "model")
    one_line("token '.NEW.'", load_cross_encoder(str(directory)).score, ["a cat"], ["the [NEW]"])

    tokenizer = load_tokenizer(tiny_tokenizer, 40, special_tokens=False)
    spec = random_spec("static", vocab_size=tokenizer.vocab_size)
    static = SentenceEncoder(spec, build_encoder(spec).init(jax.random.key(0)), tokenizer)
    static.save(tmp_path / "static")
    directory, size = add_token(tmp_path / "static", tmp_path / "added")
    one_line(f"id is {size}", embed_jax.load(directory).encode, ["a [NEW]"])


def test_a_vocabulary_beyond_the_table_is_another_models(model, tiny_tokenizer):
    backbone = dataclasses.replace(model.spec.backbone, vocab_size=20)
    spec = dataclasses.replace(model.spec, backbone=backbone)

    one_line(
        "a table of 20 rows for a tokenizer of",
        SentenceEncoder,
        spec,
        model.params,
        model.tokenizer,
    )


# ---- cross-encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "load",
    [
        embed_jax.load,
        sentence.load_sentence_encoder,
        load_model,
        lambda name: start(Model(name=name), 16),
        lambda name: frozen_models(Model(teacher=name), 16),
        lambda name: frozen_models(Model(guide=name), 16),
    ],
)
def test_a_cross_encoder_is_no_embedder(load, cross_encoder):
    one_line("a cross-encoder, which scores pairs of texts", load, str(cross_encoder))
