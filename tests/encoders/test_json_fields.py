"""A JSON field of the wrong type is refused in one line with its file and name."""

import dataclasses
import functools
import json
import shutil

import pytest

from embed_jax.encoders import json_fields
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import known_shapes
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, lookup

WRONG = {  # values that are not of a kind
    json_fields.SIZE: ["64", 1.5, True, [], 0, -1],
    json_fields.COUNT: ["64", 1.5, True, {}, -1],
    json_fields.INDEX: ["64", 1.5, True],
    json_fields.NUMBER: ["1e-12", True, [], float("nan")],
    json_fields.FLAG: ["true", 1, []],
    json_fields.TEXT: [7, True, ["gelu"], {}],
    json_fields.OBJECT: ["x", [], 1],
    json_fields.TEXTS: ["x", [1], {}],
    json_fields.TEXT_OR_TEXTS: [1, [["mean"]], {}],
    json_fields.NAMED_TEXTS: [[], {"a": 1}, "x"],
    json_fields.NAMED_NUMBERS: [[], {"a": "1"}, "x"],
}


def edited(path, **changes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("config.json", json_fields.CONFIG),
        ("tokenizer_config.json", json_fields.TOKENIZER),
        ("config_sentence_transformers.json", json_fields.SETTINGS),
        ("sentence_bert_config.json", json_fields.TEXT_CONFIG),
        ("1_Pooling/config.json", json_fields.POOLING),
    ],
)
def test_a_field_of_another_type_is_named(file, kinds, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(
        b""
    )  # nothing is read before the settings
    if file != "config.json":  # the weights are read before
        shutil.copy(tiny_model / "model.safetensors", tmp_path / "model")
        kinds = {name: kind for name, kind in kinds.items() if name != "modality_config"}
    path = tmp_path / "model" / file
    before = path.read_bytes()
    for name, kind in kinds.items():
        for value in WRONG[kind][: None if file == "config.json" else 1]:
            edited(path, **{name: value})
            with pytest.raises(InputError) as error:
                read_model(tmp_path / "model")
            assert str(error.value).startswith(f"{path}: {name}: expected {kind}, found "), (
                error.value
            )
            assert "\n" not in str(error.value)
        path.write_bytes(before)


@pytest.mark.parametrize("family", [name for name in REGISTRY["backbone"] if name != "static"])
def test_every_field_that_a_family_reads_has_a_type(family):
    # As written for the family: whatever stands in one of its fields, reading ends well or with one
    # line.
    reader = lookup("backbone", family)
    shapes = [
        shape
        for other in map(functools.partial(lookup, "backbone"), REGISTRY["backbone"])
        if other.write_config is reader.write_config
        for shape in other.shapes.values()
    ]
    shape = (shapes or [known_shapes()["tiny"]])[0]
    content = reader.write_config(dataclasses.replace(shape, family=family))
    assert set(content) - {"is_encoder_decoder"} <= set(json_fields.CONFIG)
    for name in content:
        for value in ("64", -3, 7, 1.5, True, [], {}, [1], {"a": 1}, None):
            try:
                checked = json_fields.check_fields(
                    "config.json: ", content | {name: value}, json_fields.CONFIG
                )
                reader.read_config(checked)
            except InputError as error:
                assert "\n" not in str(error)


def test_whole_numbers_as_floats_and_null_are_read():
    checked = json_fields.check_fields(
        "", {"model_max_length": 1e30, "other": "x"}, json_fields.TOKENIZER
    )
    assert checked == {"model_max_length": int(1e30), "other": "x"}
    assert json_fields.check_fields("", {"layer_norm_eps": None}, json_fields.CONFIG) == {
        "layer_norm_eps": None
    }
    assert json_fields.check_fields("", {"layer_norm_eps": 1}, json_fields.CONFIG) == {
        "layer_norm_eps": 1
    }


@pytest.mark.parametrize(
    ("group", "field", "value", "kind"),
    [
        ("processor_kwargs", "model_max_length", "64", json_fields.SIZE),
        ("config_kwargs", "num_hidden_layers", "2", json_fields.SIZE),
        ("config_args", "is_decoder", "no", json_fields.FLAG),
    ],
)
def test_so_in_settings_that_change_other_files(group, field, value, kind, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "sentence_bert_config.json"
    edited(path, **{group: {field: value}})
    with pytest.raises(
        InputError, match=rf"config.json: \w+\.{field}: expected {kind}, found '{value}'"
    ):
        read_model(tmp_path / "model")
