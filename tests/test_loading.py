"""One way to load a model of any kind, and the settings that each embedding model has."""

import json
import sys
import types

import jax
import pytest

import embed_jax
from embed_jax import EmbeddingModel, EncodingSettings
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY
from embed_jax.routed import RoutedEncoder
from embed_jax.sentence import SentenceEncoder

SETTINGS = EncodingSettings(
    prompts={"query": "find : "},
    default_prompt_name="query",
    include_prompt=False,
    similarity="dot",
    template="Instruct: {instruction} ",
    matryoshka_dims=(8, 32),
    adaptive_layers=True,
    lower_case=True,
)


@pytest.fixture(scope="module")
def model(tiny_model):
    loaded = embed_jax.load(tiny_model)
    return SentenceEncoder(loaded.spec, loaded.params, loaded.tokenizer, SETTINGS)


@pytest.fixture(scope="module")
def directories(model, tmp_path_factory):
    """A directory of each kind of model."""
    root = tmp_path_factory.mktemp("kinds")
    spec = make_classifier(model.spec.backbone)
    params = build_encoder(spec).init(jax.random.key(0))
    kinds = {
        "sentence": model,
        "routed": RoutedEncoder({"query": model, "document": model}, settings=model.settings),
        "cross": CrossEncoder(spec, params, model.tokenizer),
    }
    for name, kind in kinds.items():
        kind.save(root / name)
    return {name: root / name for name in kinds}


def test_a_model_of_any_kind_is_loaded_by_one_function(directories):
    loaded = {name: embed_jax.load_model(directory) for name, directory in directories.items()}
    assert {name: type(model) for name, model in loaded.items()} == {
        "sentence": SentenceEncoder,
        "routed": RoutedEncoder,
        "cross": CrossEncoder,
    }
    embeds = {name: isinstance(model, EmbeddingModel) for name, model in loaded.items()}
    assert embeds == {"sentence": True, "routed": True, "cross": False}
    assert (loaded["sentence"].routes, loaded["routed"].routes) == ((), ("query", "document"))
    with pytest.raises(InputError, match="a cross-encoder, which scores pairs of texts"):
        embed_jax.load(directories["cross"])


def with_type(directory, name):
    directory.mkdir()
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"model_type": name}))
    return directory


@pytest.mark.parametrize("name", ["SparseEncode", "os:system"])
def test_an_unknown_kind_is_refused_and_a_file_names_no_function(tmp_path, name):
    directory = with_type(tmp_path / "model", name)
    for load in (embed_jax.load, embed_jax.load_model):
        with pytest.raises(InputError) as caught:
            load(directory)
        assert f"model_type: unknown kind of model {name!r}" in str(caught.value)
        assert all(kind in str(caught.value) for kind in ("CrossEncoder", "SentenceTransformer"))


def test_a_new_kind_is_one_line_of_the_registry(tmp_path, monkeypatch):
    calls = []
    module = types.SimpleNamespace(load=lambda name, **options: calls.append((name, options)))
    monkeypatch.setitem(sys.modules, "toy_kind", module)
    monkeypatch.setitem(REGISTRY["model"], "ToyEncoder", "toy_kind:load")
    directory = with_type(tmp_path / "model", "ToyEncoder")
    embed_jax.load_model(directory, max_length=8)
    embed_jax.load(directory, compute_dtype="bfloat16")
    assert calls == [
        (directory, {"max_length": 8, "compute_dtype": "float32"}),
        (directory, {"max_length": 0, "compute_dtype": "bfloat16"}),
    ]


def test_settings_are_saved_whole(directories):
    sentence = embed_jax.load(directories["sentence"])
    assert sentence.settings == EncodingSettings(**{**vars(SETTINGS), "base": sentence.base})
    assert sentence.base == str(directories["sentence"])
    routed = embed_jax.load(directories["routed"])
    for encoder in routed.encoders.values():
        assert encoder.settings == EncodingSettings(**{**vars(SETTINGS), "base": encoder.base})


def test_a_setting_is_an_attribute_of_its_model_only(model):
    other = model.with_params(model.params)
    other.similarity_fn_name, other.prompts = "cosine", {"query": "q: "}
    assert (other.settings.similarity, other.settings.prompts) == ("cosine", {"query": "q: "})
    assert model.settings == SETTINGS
    first, second = (
        SentenceEncoder(model.spec, model.params, model.tokenizer, SETTINGS) for _ in range(2)
    )
    first.prompts["query"] = "changed"
    assert second.prompts == SETTINGS.prompts == {"query": "find : "}

    routed = RoutedEncoder({"query": model, "document": model}, settings=SETTINGS)
    routed.similarity_fn_name = "manhattan"
    assert {encoder.similarity_fn_name for encoder in routed.encoders.values()} == {"manhattan"}
    assert model.similarity_fn_name == "dot"
