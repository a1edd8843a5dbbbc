"""Adapters in PEFT's format: equal embeddings in both libraries; one line for bad files."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.base import backbone_fingerprint, base_name
from embed_jax.encoders.lora import init_lora
from embed_jax.encoders.modules import write_modules, write_pooling
from embed_jax.encoders.read import read_model
from embed_jax.encoders.read_adapter import read_adapter
from embed_jax.encoders.spec import LoraSpec
from embed_jax.encoders.weights import read_safetensors, write_safetensors
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder, load_sentence_encoder

KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
TARGETS = {"bert": ("query", "dense"), "llama": ("q_proj", "v_proj", "down_proj")}
TEXTS = ["the cat sat", "a train from the city", "science of language models and of apples"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_tokenizer):
    """Returns sentence-transformers directories with random weights, by their family's name."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    vocabulary = load_tokenizer(tiny_tokenizer, 32).vocab_size
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    made = {}
    for name, kind, options in (
        ("bert", "Bert", {}),
        ("llama", "Llama", {"num_key_value_heads": 2}),
        (
            "modernbert",
            "ModernBert",
            {
                "pad_token_id": 0,
                "bos_token_id": 2,
                "eos_token_id": 3,
                "cls_token_id": 2,
                "sep_token_id": 3,
            },
        ),
    ):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes, **options)
        model = getattr(transformers, f"{kind}Model")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        finish(made[name], tiny_tokenizer)
    return made


def finish(directory, tokenizer):
    """Writes the files that sentence-transformers has around a Transformer."""
    load_tokenizer(tokenizer, 32).save(directory)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    write_pooling(directory / "1_Pooling", "mean", 32, True)
    write_modules(directory, [("Transformer", ""), ("Pooling", "1_Pooling")])


def adapted(base, targets, **changes):
    """Returns the model at `base` with a random adapter of which no leaf is zero."""
    model = load_sentence_encoder(str(base))
    spec = dataclasses.replace(model.spec, lora=LoraSpec(4, 6.0, targets=targets, **changes))
    params = jax.device_get(model.params)
    adapter = init_lora(spec, params["backbone"], jax.random.key(1))
    rng = np.random.default_rng(2)
    adapter = jax.tree.map(
        lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), adapter
    )
    return SentenceEncoder(spec, {**params, "lora": adapter}, model.tokenizer, model.settings)


def cases(*fast):
    """Returns all families with all kinds of adapters; those named run in the fast suite."""
    both = [(family, kind) for family in TARGETS for kind in KINDS]
    marks = {case: () if "-".join(case) in fast else pytest.mark.slow for case in both}
    return pytest.mark.parametrize(
        ("family", "kind"), [pytest.param(*case, marks=mark) for case, mark in marks.items()]
    )


@cases("bert-dora", "llama-rslora")
def test_ours_in_peft_and_sentence_transformers(family, kind, bases, tmp_path):
    model = adapted(bases[family], TARGETS[family], **KINDS[kind])
    ours = model.encode(TEXTS)
    assert np.abs(ours - load_sentence_encoder(str(bases[family])).encode(TEXTS)).max() > 0.01
    model.save(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "modules.json",
        "1_Pooling",
    } <= names
    assert not {"config.json", "model.safetensors"} & names

    again = load_sentence_encoder(str(tmp_path / "adapter"))
    np.testing.assert_array_equal(again.encode(TEXTS), ours)
    for loaded, saved in zip(
        *map(jax.tree.leaves, (again.params["lora"], model.params["lora"])), strict=True
    ):
        np.testing.assert_array_equal(loaded, saved)
    again.save(tmp_path / "again")
    assert (tmp_path / "again/adapter_config.json").read_text() == (
        tmp_path / "adapter/adapter_config.json"
    ).read_text()

    reference = sentence_transformer(tmp_path / "adapter")
    np.testing.assert_allclose(reference.encode(TEXTS), ours, atol=1e-4)
    peft_model = peft_from(bases[family], tmp_path / "adapter")
    reference[0].model = peft_model
    np.testing.assert_allclose(reference.encode(TEXTS), ours, atol=1e-4)


def sentence_transformer(directory):
    """Loads a SentenceTransformer on the CPU; it must find every tensor, and no other."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(
        str(directory), device="cpu", local_files_only=True
    )


def peft_from(base, adapter):
    peft = pytest.importorskip("peft")
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing keys
        return peft.PeftModel.from_pretrained(
            transformers.AutoModel.from_pretrained(base), str(adapter)
        ).eval()


@cases("bert-rslora", "llama-dora")
def test_theirs_in_ours(family, kind, bases, tmp_path, tiny_tokenizer):
    """Reads peft's own file, without and with sentence-transformers' modules around it."""
    changes = {f"use_{name}": value for name, value in KINDS[kind].items()}
    expected = by_peft(bases[family], tmp_path, TARGETS[family], **changes)
    read = load_sentence_encoder(str(tmp_path))
    assert read.spec.lora.rank == 4 and read.base == str(bases[family])
    np.testing.assert_allclose(read.encode(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(read.merged().encode(TEXTS), expected, atol=1e-4)
    finish(tmp_path, tiny_tokenizer)
    np.testing.assert_allclose(
        load_sentence_encoder(str(tmp_path)).encode(TEXTS), expected, atol=1e-4
    )
    if (
        kind != "dora"
    ):  # of which transformers' own loader does not find the magnitudes that peft wrote
        np.testing.assert_allclose(
            sentence_transformer(tmp_path).encode(TEXTS), expected, atol=1e-4
        )


def by_peft(base, directory, targets, **changes):
    """Saves a random adapter made by peft, and returns its embeddings."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(targets), **changes)
    model = peft.get_peft_model(transformers.AutoModel.from_pretrained(base), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    whole = sentence_transformer(base)
    whole[0].model = model.eval()
    return whole.encode(TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_of_linear_maps_that_are_one_in_the_files(kind, bases, tmp_path):
    """Each of our parts gets the same A; after more training it can be saved merged only."""
    expected = by_peft(
        bases["modernbert"], tmp_path / "theirs", ("Wqkv", "mlp.Wo"), use_dora=kind == "dora"
    )
    read = load_sentence_encoder(str(tmp_path / "theirs"))
    np.testing.assert_allclose(read.encode(TEXTS), expected, atol=1e-4)
    layers = read.params["lora"]["layers"]
    np.testing.assert_array_equal(layers["query"]["a"], layers["value"]["a"])
    with pytest.raises(
        InputError, match="'key', part 2 of 3 of 'layers.{}.attn.Wqkv', cannot be written in PEFT's"
    ):
        read.save(tmp_path / "ours")
    read.merged().save(tmp_path / "ours")
    np.testing.assert_allclose(
        load_sentence_encoder(str(tmp_path / "ours")).encode(TEXTS), expected, atol=1e-4
    )


def test_an_adapter_of_a_language_model_class(bases, tmp_path):
    """Reads an adapter whose modules are named "model.layers...".

    The output layer's adapter is not part of embeddings.
    """
    peft = pytest.importorskip("peft")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"])
    config = peft.LoraConfig(r=2, target_modules=r".*(q_proj|lm_head)", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    assert any(name.startswith("base_model.model.model.layers.0.") for name in tensors(tmp_path))
    read = load_sentence_encoder(str(tmp_path))
    assert read.spec.lora.targets == ("q_proj",) and set(read.params["lora"]["layers"]) == {"query"}
    a = tensors(tmp_path)["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(read.params["lora"]["layers"]["query"]["a"][1], a.T)


@pytest.mark.slow
def test_as_sentence_transformers_saves_it(bases, tmp_path):
    """Reads and writes an adapter of `SentenceTransformer.add_adapter`.

    Its targets are a regular expression.
    """
    peft = pytest.importorskip("peft")

    reference = sentence_transformer(bases["bert"])
    reference.add_adapter(
        peft.LoraConfig(r=2, target_modules=r".*layer.*output\.dense", init_lora_weights=False)
    )
    reference.eval()
    reference.save_pretrained(str(tmp_path / "theirs"))
    ours = load_sentence_encoder(str(tmp_path / "theirs"))
    np.testing.assert_allclose(ours.encode(TEXTS), reference.encode(TEXTS), atol=1e-4)
    assert set(ours.params["lora"]["layers"]) == {"output", "down"}
    ours.save(tmp_path / "ours")
    again = load_sentence_encoder(str(tmp_path / "ours"))
    assert again.spec == ours.spec and again.base == ours.base == str(bases["bert"])
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} <= names


def test_merged_is_saved_as_a_whole_and_takes_the_adapters_place(bases, tmp_path):
    model = adapted(bases["llama"], ("all-linear",))
    model.save(tmp_path / "model")
    named = json.loads((tmp_path / "model/adapter_config.json").read_text())["target_modules"]
    assert sorted(named) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert load_sentence_encoder(str(tmp_path / "model")).spec.lora == model.spec.lora
    model.merged().save(tmp_path / "model")
    assert not (tmp_path / "model/adapter_config.json").exists()
    merged = load_sentence_encoder(str(tmp_path / "model"))
    assert merged.spec.lora is None and set(merged.params) == {"backbone", "heads"}
    np.testing.assert_allclose(merged.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(merged.encode(TEXTS), model.merged().encode(TEXTS), atol=1e-6)


def changed(model, **fields):
    spec = dataclasses.replace(
        model.spec, backbone=dataclasses.replace(model.spec.backbone, **fields)
    )
    return SentenceEncoder(spec, model.params, model.tokenizer, model.settings)


def test_what_the_backbone_has_other_than_its_base(bases, tmp_path):
    """Fields that differ from the base's config.json are written for sentence-transformers too.

    Except for those that it lacks.
    """
    model = adapted(bases["llama"], ("v_proj",))
    for name, fields, reference in (
        ("norm", {"rms_norm_eps": 0.1}, {"rms_norm_eps": 0.1}),
        ("free", {"causal": False}, {"is_causal": False}),
    ):
        adapter = changed(model, **fields)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            adapter.save(tmp_path / name)
        assert [str(result.message)[:51] for result in caught] == (
            ["sentence-transformers will not see is_causal False:"] if name == "free" else []
        )
        texts = json.loads((tmp_path / name / "sentence_bert_config.json").read_text())
        assert texts["config_kwargs"] == reference
        expected = adapter.encode(TEXTS)
        assert np.abs(expected - model.encode(TEXTS)).max() > 0.01
        again = load_sentence_encoder(str(tmp_path / name))
        assert again.spec == adapter.spec
        np.testing.assert_array_equal(again.encode(TEXTS), expected)
        if name == "norm":
            np.testing.assert_allclose(
                sentence_transformer(tmp_path / name).encode(TEXTS), expected, atol=1e-4
            )
        else:
            adapter.merged().save(tmp_path / name)
            np.testing.assert_allclose(
                sentence_transformer(tmp_path / name).encode(TEXTS), expected, atol=1e-4
            )


def test_a_base_of_another_size_or_without_a_name(bases, tmp_path):
    model = adapted(bases["llama"], ("v_proj",))
    with pytest.raises(
        InputError,
        match="num_layers 1, but its base .* has 2: save the model with the adapter merged",
    ):
        changed(model, num_layers=1).save(tmp_path / "small")
    with pytest.raises(
        InputError, match="whose name is not known: save the model with the adapter merged"
    ):
        SentenceEncoder(model.spec, model.params, model.tokenizer).save(tmp_path / "nameless")
    assert not list(tmp_path.iterdir())


def test_the_base_is_known_by_its_numbers(bases, tmp_path):
    adapted(bases["bert"], ("query",)).save(tmp_path / "adapter")
    saved = read_model(bases["bert"])
    backbone = saved.spec.backbone
    own = backbone_fingerprint(backbone, bases["bert"])
    lora, _ = read_adapter(
        tmp_path / "adapter", backbone, "renamed", bases["bert"]
    )  # the same numbers, another name
    assert lora.targets == ("query",)

    def copied(name, change):
        shutil.copytree(bases["bert"], tmp_path / name)
        write_safetensors(tmp_path / name / "model.safetensors", change(tensors(bases["bert"])))
        return tmp_path / name

    half = copied(
        "half", lambda result: {name: value.astype("bfloat16") for name, value in result.items()}
    )
    prefixed = copied(
        "prefixed", lambda result: {f"bert.{name}": value for name, value in result.items()}
    )
    assert backbone_fingerprint(backbone, half) == backbone_fingerprint(backbone, prefixed) == own
    name = "encoder.layer.1.attention.self.query.weight"
    tuned = copied("tuned", lambda result: result | {name: 1.1 * result[name]})
    with pytest.raises(
        InputError,
        match="made for .*bert.*, and tuned is another model: its fingerprint is [0-9a-f]{12}, ",
    ):
        read_adapter(tmp_path / "adapter", backbone, "tuned", tuned)

    write_safetensors(tmp_path / "adapter/adapter_model.safetensors", tensors(tmp_path / "adapter"))
    with pytest.warns(UserWarning, match="made for .*bert.*, and put on tuned"):
        read_adapter(tmp_path / "adapter", backbone, "tuned", tuned)


def tensors(directory):
    (file,) = directory.glob("*model.safetensors")
    return read_safetensors(file)


def test_what_a_base_is_called(tmp_path):
    assert base_name(tmp_path / "models--org--name/snapshots/0123abc") == "org/name"
    assert base_name(tmp_path / "model") == str(tmp_path / "model")


def test_a_base_beside_the_adapter(bases, tmp_path):
    """A relative name of the base is searched in the adapter's directory first."""
    model = adapted(bases["bert"], ("query",))
    model.save(tmp_path / "adapter")
    shutil.copytree(bases["bert"], tmp_path / "base")
    edit(tmp_path / "adapter", base_model_name_or_path="../base")
    moved = load_sentence_encoder(str(tmp_path / "adapter"))
    assert moved.base == str(tmp_path / "base")
    np.testing.assert_array_equal(moved.encode(TEXTS), model.encode(TEXTS))


def edit(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(old, new):
    return lambda result: {name.replace(old, new): value for name, value in result.items()}


@pytest.fixture(scope="module")
def saved(bases, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "adapter"
    adapted(bases["llama"], ("q_proj",)).save(directory)
    return directory


LAST = "base_model.model.layers.1.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        ({"peft_type": "IA3"}, None, "unknown peft_type 'IA3'; known: LORA"),
        ({"r": None}, None, "r: expected a number, found None"),
        ({"bias": "all"}, None, "bias 'all' is not supported; only 'none' is"),
        (
            {"modules_to_save": ["embed_tokens"]},
            None,
            r"modules_to_save \['embed_tokens'\] is not supported",
        ),
        ({"rank_pattern": {"q_proj": 8}}, None, "rank_pattern .* only one r for all modules is"),
        (
            {"alpha_pattern": {"q_proj": 8}},
            None,
            "alpha_pattern .* only one lora_alpha for all modules is",
        ),
        ({"layers_to_transform": [0]}, None, r"layers_to_transform \[0\] is not supported"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            None,
            "init_lora_weights 'pissa_niter_4' is not supported",
        ),
        (
            {"base_model_name_or_path": None},
            None,
            "base_model_name_or_path: expected the base's name, found None",
        ),
        (
            {"base_model_name_or_path": "/no/such/model"},
            None,
            "adapter_config.json: base_model_name_or_path: model '/no",
        ),
        (
            {"r": 5},
            None,
            r"lora_A.weight' has shape \(4, 32\), the base and adapter_config.json want \(5, 32\)",
        ),
        (
            {"use_dora": True},
            None,
            r"missing tensor '.*layers.0.*lora_magnitude_vector.weight' \(shape \(32,\)\)",
        ),
        (
            {},
            lambda result: result | {LAST: result[LAST][:8]},
            r"lora_B.weight' has shape \(8, 4\), .* want \(32, 4\)",
        ),
        (
            {},
            lambda result: {k: v for k, v in result.items() if k != LAST},
            f"missing tensor '{LAST}'",
        ),
        (
            {},
            lambda result: result | {LAST.replace(".1.", ".2."): result[LAST]},
            "the base has 2 layers",
        ),
        ({}, lambda result: {}, "adapts none of layers.{}.mlp.down_proj, "),
        (
            {},
            rename("q_proj", "qkv"),
            "adapts 'layers.0.self_attn.qkv', which is no linear map of the base's layers",
        ),
        (
            {},
            rename("base_model.model.", ""),
            "unexpected tensor 'layers.0.self_attn.q_proj.lora_A.weight'",
        ),
        ({}, rename("lora_A.weight", "lora_magnitude_vector"), "missing tensor .*lora_A"),
    ],
)
def test_one_line_for_what_cannot_be_read(saved, tmp_path, fields, change, message):
    shutil.copytree(saved, tmp_path / "adapter")
    edit(tmp_path / "adapter", **fields)
    if change:
        write_safetensors(tmp_path / "adapter/adapter_model.safetensors", change(tensors(saved)))
    with pytest.raises(InputError, match=message) as error:
        load_sentence_encoder(str(tmp_path / "adapter"))
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_base(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path=str(saved))
    with pytest.raises(InputError, match="is an adapter, which would have to be merged first"):
        load_sentence_encoder(str(tmp_path / "adapter"))
