"""Exports are the same model.

Other libraries give equal embeddings, parameters are equal, bytes are reproducible.
"""

import json
import re
import warnings

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment, to_json
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.heads import Dense, Normalize, Truncate
from embed_jax.encoders.lora import init_lora
from embed_jax.encoders.read import read_model
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, LoraSpec
from embed_jax.export.directory import truncate_model
from embed_jax.parallel.mesh import make_mesh
from embed_jax.scores import truncate
from embed_jax.sentence import SentenceEncoder
from embed_jax.train.run import load_run
from scripts import export

PROMPTS = {"query": "find the red ", "document": ""}
# What a model says beside its parameters.
SAID = [
    "spec",
    "prompts",
    "default_prompt_name",
    "include_prompt",
    "similarity_fn_name",
    "lower_case",
    "template",
]
SAID += ["matryoshka_dims", "adaptive_layers", "max_length"]
TEXTS = ["the cat", "a dog plays music in the house", "", "water " * 30]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Use one device: it compiles faster than eight and gives the same results."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("text_model", "cross_encoder", "train.run"):
            patch.setattr(f"embed_jax.{module}.make_mesh", lambda devices=0: make_mesh(1))
        yield


@pytest.fixture(autouse=True)
def no_warning_of_cut_texts():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(texts|pairs) were cut")
        yield


def larger(params):
    """Scales parameters so that different texts have different states."""
    return jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def made(tiny_model, tiny_tokenizer):
    """`made(heads=(), pooling="mean", **recorded)`: a random SentenceEncoder for 20 tokens."""
    tiny = read_model(tiny_model)
    backbone = larger(jax.device_get(tiny.params["backbone"]))

    def make(heads=(), pooling="mean", **recorded):
        keys = jax.random.split(jax.random.key(2), len(heads) + 1)
        params = {
            str(n): jax.tree.map(lambda leaf: 5 * leaf, head.init(keys[n]))
            for n, head in enumerate(heads)
        }
        params = {
            "backbone": backbone,
            "heads": {name: tree for name, tree in params.items() if tree},
        }
        spec = EncoderSpec(tiny.spec.backbone, pooling, heads)
        return SentenceEncoder(
            spec, params, load_tokenizer(tiny_tokenizer, 20), EncodingSettings(**recorded)
        )

    return make


@pytest.fixture(scope="module")
def model(made):
    """Makes a model with everything that its files must keep."""
    recorded = {
        "prompts": PROMPTS,
        "include_prompt": False,
        "matryoshka_dims": (8, 24),
        "similarity": "dot",
    }
    return made((Dense(32, 24), Normalize()), **recorded)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    model.save(directory)
    return directory


@pytest.fixture
def exported(run, tmp_path):
    """`exported(*arguments) -> directory`: what the command writes."""

    def exported(*arguments, name="out"):
        status, _, err = run(export, *arguments, "--output", tmp_path / name)
        assert status == 0, err
        return tmp_path / name

    return exported


def files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def code(directory):
    """Returns the Python blocks of a card, except for configs."""
    blocks = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    return [block for block in blocks if "get_config" not in block]


def executed(block, directory, monkeypatch):
    """Runs a block of the card beside the directory, and returns its variables."""
    monkeypatch.chdir(directory.parent)
    names = {}
    exec(block, names)
    return names


def assert_equal_params(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- embedding models ----------------------------------------------------------------------------


def test_sentence_transformers_gives_the_same_embeddings_and_ours_the_same_parameters(
    exported, saved, model
):
    peer = pytest.importorskip("sentence_transformers")
    out = exported("--model", saved)
    reference, back = peer.SentenceTransformer(str(out), device="cpu"), embed_jax.load(out)
    assert_equal_params(jax.device_get(back.params), jax.device_get(model.params))
    for what in SAID:
        assert getattr(back, what) == getattr(model, what), what
    assert (reference.max_seq_length, reference.similarity_fn_name) == (20, "dot")
    for options in ({"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "the "}):
        expected = reference.encode(TEXTS, show_progress_bar=False, **options)
        assert np.ptp(expected, axis=0).max() > 0.1
        np.testing.assert_allclose(model.encode(TEXTS, **options), expected, atol=1e-5)
        short = reference.encode(
            TEXTS, truncate_dim=8, normalize_embeddings=True, show_progress_bar=False, **options
        )
        np.testing.assert_allclose(model.encode(TEXTS, dim=8, **options), short, atol=1e-5)


def test_the_same_export_has_the_same_bytes_and_replaces_itself_alone(
    exported, run, saved, tmp_path
):
    pytest.importorskip("onnx")
    arguments = ("--model", saved, "--format", "sentence-transformers,onnx", "--license", "mit")
    first = files(exported(*arguments))
    assert files(exported(*arguments)) == first, "again, over itself"
    assert "onnx/sentence_embedding.onnx" in first and "README.md" in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    status, _, err = run(export, "--model", saved, "--output", tmp_path / "out")
    assert (
        status == 2
        and "contains onnx, which this export does not write" in err
        and err.count("\n") == 1
    )
    assert files(tmp_path / "out") == first


@pytest.mark.parametrize("content", ["model", "notes.txt", "file"])
def test_what_is_no_export_is_not_touched(refused, saved, model, tmp_path, content):
    out = tmp_path / "out"
    if content == "model":
        model.save(out)
    elif content == "file":
        out.write_text("mine")
    else:
        (out / "sub").mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    message = refused(export, "--model", saved, "--output", out)
    assert "found a file" in message if content == "file" else "is not an earlier export" in message


def test_nothing_is_left_of_an_export_that_fails(run, saved, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr("embed_jax.export.onnx_run.compare_onnx", lambda *_: 0.01)
    status, _, err = run(
        export,
        "--model",
        saved,
        "--format",
        "sentence-transformers,onnx",
        "--output",
        tmp_path / "o",
    )
    assert status == 1 and "differs from the model by 0.01" in err
    assert list(tmp_path.iterdir()) == []


def test_a_cut_model_is_one_that_gives_cut_embeddings(exported, saved, model, made):
    """A model that ends in a Dense keeps that layer's first columns.

    Another model gets a Dense that takes the first numbers.
    """
    back = embed_jax.load(exported("--model", saved, "--dim", "8"))
    assert (
        back.dim == 8
        and back.params["heads"]["0"]["kernel"].shape == (32, 8)
        and back.matryoshka_dims == (8,)
    )
    expected = model.encode(TEXTS, dim=8, prompt_name="query")
    np.testing.assert_allclose(back.encode(TEXTS, prompt_name="query"), expected, atol=1e-6)
    x = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    for heads in (
        (),
        (Normalize(), Truncate(9)),
        (Dense(32, 32, residual=True),),
        (Dense(32, 16, residual=True),),
    ):
        other = made(heads, "cls")
        expected = truncate(np.array(after_pooling(other, x)), 5)
        np.testing.assert_allclose(after_pooling(truncate_model(other, 5), x), expected, atol=1e-6)


def after_pooling(model, x):
    for number, head in enumerate(model.spec.heads):
        x = head.apply(model.params["heads"].get(str(number), {}), x)
    return x


def test_a_plain_directory_is_the_backbone_with_its_limit(exported, refused, saved, made, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    plain = made((Normalize(),), "cls")
    plain.save(tmp_path / "plain")
    out = exported("--model", tmp_path / "plain", "--format", "huggingface")
    names = {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(files(out)) == names
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 20
    _, about = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not about["unexpected_keys"] and all(
        key.startswith("pooler.") for key in about["missing_keys"]
    )
    assert_equal_params(
        jax.device_get(embed_jax.load(out).params["backbone"]),
        jax.device_get(plain.params["backbone"]),
    )
    card = (out / "README.md").read_text()
    assert "not recorded" in card and "cls, Normalize" in card
    files_before = files(out)
    assert files(exported("--model", tmp_path / "plain", "--format", "huggingface")) == files_before
    message = refused(
        export, "--model", saved, "--format", "huggingface", "--output", tmp_path / "other"
    )
    assert "has Dense after its backbone, which a plain directory cannot hold" in message


def test_an_adapter_leaves_merged_or_alone(exported, refused, tiny_model, tmp_path):
    peft = pytest.importorskip("peft")  # noqa: F841  sentence-transformers reads adapters with it
    peer = pytest.importorskip("sentence_transformers")
    message = refused(
        export, "--model", tiny_model, "--adapter", "separate", "--output", tmp_path / "none"
    )
    assert "--adapter separate: the model has none" in message
    base = embed_jax.load(tiny_model)
    spec = EncoderSpec(
        base.spec.backbone, base.spec.pooling, base.spec.heads, LoraSpec(rank=2, alpha=4.0)
    )
    lora = init_lora(spec, base.params["backbone"], jax.random.key(3))
    lora = jax.tree.map(lambda leaf: leaf + 0.1, lora)  # whose outputs are 0 at first
    adapted = SentenceEncoder(
        spec, {**base.params, "lora": lora}, base.tokenizer, EncodingSettings(base=str(tiny_model))
    )
    adapted.save(tmp_path / "adapted")
    expected = adapted.encode(TEXTS)
    merged = exported("--model", tmp_path / "adapted")
    separate = exported("--model", tmp_path / "adapted", "--adapter", "separate", name="alone")
    assert "model.safetensors" in files(merged) and "adapter_model.safetensors" not in files(merged)
    assert "adapter_model.safetensors" in files(separate) and "model.safetensors" not in files(
        separate
    )
    assert_equal_params(
        jax.device_get(embed_jax.load(merged).params), jax.device_get(adapted.merged().params)
    )
    assert_equal_params(
        jax.device_get(embed_jax.load(separate).params), jax.device_get(adapted.params)
    )
    for out in (merged, separate):
        reference = peer.SentenceTransformer(str(out), device="cpu").encode(
            TEXTS, show_progress_bar=False
        )
        np.testing.assert_allclose(reference, expected, atol=1e-5)
    assert "rank 2, beside its base" in (separate / "README.md").read_text()


# ---- the card's code -----------------------------------------------------------------------------


def test_the_cards_code_runs_and_gives_the_models_embeddings(exported, saved, model, monkeypatch):
    for package in ("sentence_transformers", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    out = exported(
        "--model", saved, "--format", "sentence-transformers,onnx", "--precision", "float32,int8"
    )
    assert {"onnx/sentence_embedding.onnx", "onnx/sentence_embedding_int8.onnx"} <= set(files(out))
    reference, ours, onnx = code(out)
    reference, ours, onnx = (executed(block, out, monkeypatch) for block in (reference, ours, onnx))
    for name in ("queries", "passages", "short"):
        np.testing.assert_allclose(reference[name], ours[name], atol=1e-5)
    assert ours["queries"].shape == (2, 24) and ours["short"].shape == (2, 8)
    texts = ["A dog runs over the field.", "A cat sleeps in the house."]
    np.testing.assert_allclose(
        onnx["embeddings"], model.encode(texts, prompt_name="query"), atol=1e-5
    )


@pytest.mark.parametrize(
    "arguments", [pytest.param((), marks=pytest.mark.slow), ("--format", "huggingface")]
)
def test_the_cards_code_runs_for_a_plain_model(exported, made, tmp_path, monkeypatch, arguments):
    pytest.importorskip("sentence_transformers")
    plain = made((Normalize(),), "mean+max")
    plain.save(tmp_path / "plain")
    out = exported("--model", tmp_path / "plain", *arguments)
    texts = ["A dog runs over the field.", "A cat sleeps in the house."]
    for block in code(out):
        np.testing.assert_allclose(
            executed(block, out, monkeypatch)["embeddings"], plain.encode(texts), atol=1e-5
        )
    assert len(code(out)) == (1 if arguments else 2)


@pytest.mark.slow
def test_onnx_alone_is_enough(exported, made, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    plain = made(lower_case=True, prompts={"all": "the "}, default_prompt_name="all")
    plain.save(tmp_path / "plain")
    out = exported("--model", tmp_path / "plain", "--format", "onnx")
    assert set(files(out)) == {
        "README.md",
        "onnx/sentence_embedding.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    (block,) = code(out)
    texts = ["A dog runs over the field.", "A cat sleeps in the house."]
    np.testing.assert_allclose(
        executed(block, out, monkeypatch)["embeddings"], plain.encode(texts), atol=1e-5
    )


def test_our_own_pooling_is_not_said_to_load_elsewhere(exported, made, tmp_path):
    made(pooling="first_last_mean").save(tmp_path / "own")
    out = exported("--model", tmp_path / "own")
    assert "sentence-transformers cannot load this model" in (out / "README.md").read_text()
    assert len(code(out)) == 1


# ---- cross-encoders ------------------------------------------------------------------------------


def test_a_cross_encoder_is_recognised_and_scores_the_same(
    exported, refused, made, tmp_path, monkeypatch
):
    peer = pytest.importorskip("sentence_transformers")
    from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder

    plain = made()
    spec = make_classifier(plain.spec.backbone)
    params = larger(build_encoder(spec).init(jax.random.key(0)))
    model = CrossEncoder(spec, params, plain.tokenizer, prompt="find ")
    model.save(tmp_path / "saved")
    out = exported("--model", tmp_path / "saved")
    assert_equal_params(
        jax.device_get(load_cross_encoder(str(out)).params), jax.device_get(model.params)
    )
    pairs = [("cat", "a dog"), ("the red house", "music"), ("", "water")]
    expected = peer.CrossEncoder(str(out), device="cpu").predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(
        model.score(*map(list, zip(*pairs, strict=True))), expected, atol=1e-5
    )
    card = (out / "README.md").read_text()
    assert (
        "pipeline_tag: text-ranking" in card and "- cross-encoder\n" in card and "`'find '`" in card
    )
    for block in code(out):
        executed(block, out, monkeypatch)
    assert files(exported("--model", tmp_path / "saved")) == files(out)
    for option, value in (("--dim", "8"), ("--format", "huggingface")):
        message = refused(
            export, "--model", tmp_path / "saved", option, value, "--output", tmp_path / "other"
        )
        assert option in message and "cross-encoder" in message


def test_an_onnx_file_of_a_cross_encoder_gives_its_scores(
    exported, tiny_cross_encoder, tmp_path, monkeypatch
):
    pytest.importorskip("onnxruntime")
    from embed_jax.cross_encoder import load_cross_encoder

    model = load_cross_encoder(str(tiny_cross_encoder()))
    model.prompt = "find "
    model.save(tmp_path / "saved")
    formats = ("--format", "sentence-transformers,onnx", "--precision", "float32,int8")
    out = exported("--model", tmp_path / "saved", *formats)
    assert {"onnx/model.onnx", "onnx/model_int8.onnx", "model.safetensors"} <= set(files(out))
    card = (out / "README.md").read_text()
    assert "- onnx\n" in card and "- `onnx/model_int8.onnx`: int8" in card
    _, ours, onnx = (executed(block, out, monkeypatch) for block in code(out))
    np.testing.assert_allclose(onnx["scores"][:, 0], ours["scores"], atol=1e-5)
    assert ours["ranking"][0]["score"] == pytest.approx(
        max(model.score([ours["queries"][0]] * 2, ours["passages"]))
    )
    only = exported("--model", tmp_path / "saved", "--format", "onnx", name="only")
    (block,) = code(only)
    np.testing.assert_allclose(
        executed(block, only, monkeypatch)["scores"], onnx["scores"], atol=1e-6
    )


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, sentences):
    """A run's directory after four steps, a checkpoint every two."""
    pytest.importorskip("grain")
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    embed_jax.finetune(
        list(zip(sentences[:16], sentences[16:32], strict=True)),
        str(tiny_model),
        workdir=workdir,
        batch__size=8,
        batch__rows=12,
        train__steps=4,
        train__devices=1,
        checkpoint__every=2,
        checkpoint__keep=4,
        optim__learning_rate=1e-3,
        data__anchor_prompt="find ",
        data__max_length=24,
    )
    return workdir


def test_a_trained_model_leaves_with_its_story(exported, trained, sentences, tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    result = {
        "task": "sts",
        "name": "STS-B",
        "model": str(trained / "model"),
        "n": 200,
        "unit": "pairs",
    }
    result |= {"metrics": {"spearman": 0.8123}, "intervals": {"spearman": [0.79, 0.83]}}
    (tmp_path / "sts.json").write_text(json.dumps(result))
    out = exported("--run", trained, "--results", tmp_path / "sts.json")
    model = embed_jax.load(trained / "model")
    texts = sentences[40:60]
    reference = peer.SentenceTransformer(str(out), device="cpu")
    for name in model.prompts:
        expected = reference.encode(texts, prompt_name=name, show_progress_bar=False)
        np.testing.assert_allclose(model.encode(texts, prompt_name=name), expected, atol=1e-5)
    assert_equal_params(jax.device_get(embed_jax.load(out).params), jax.device_get(model.params))
    card = (out / "README.md").read_text()
    for words in (
        "| STS-B | **spearman** | 0.8123 [0.7900, 0.8300] | 200 pairs |",
        "| pairs given in Python |  | 16 | unknown: check before publishing | `info_nce` |",
        "| learning rate | 0.001 |",
        "| steps | 4 |",
        "config.train.steps = 4",
        "| training time | ",
        "this was trained from Python",
    ):
        assert words in card, words
    assert files(exported("--run", trained, "--results", tmp_path / "sts.json")) == files(out)


def test_an_earlier_step_is_exported_as_it_was(exported, refused, trained, tmp_path):
    early = embed_jax.load(exported("--run", trained, "--step", "2"))
    checkpoint = load_run(trained, 2)
    last = embed_jax.load(exported("--run", trained, "--step", "4", name="last"))
    assert_equal_params(
        jax.device_get(last.params), jax.device_get(embed_jax.load(trained / "model").params)
    )
    assert_equal_params(jax.device_get(early.params), jax.device_get(checkpoint.params))
    differ = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), early.params["backbone"], last.params["backbone"]
    )
    assert max(jax.tree.leaves(differ)) > 1e-4
    assert "of step 2" in (tmp_path / "out" / "README.md").read_text()
    assert "no checkpoint of step 3" in refused(
        export, "--run", trained, "--step", "3", "--output", tmp_path / "x"
    )


def test_results_of_another_model_are_pointed_out(run, saved, tmp_path):
    (tmp_path / "sts.json").write_text(
        '{"task": "sts", "data": "stsb", "model": "other", "metrics": {"spearman": 0.8}}'
    )
    status, _, err = run(
        export, "--model", saved, "--results", tmp_path / "sts.json", "--output", tmp_path / "out"
    )
    assert (
        status == 0
        and err == "warning: --results: of the model other; the card shows them as this model's\n"
    )


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --run --model is required"),
        (("--run", "a", "--model", "b"), "not allowed with"),
        (
            ("--model", "m", "--format", "onnx,torch"),
            "--format: expected some of sentence-transformers, huggingface",
        ),
        (("--model", "m", "--format", ","), "found none"),
        (("--model", "m", "--format", "sentence-transformers,huggingface"), "expected one of them"),
        (("--model", "m", "--precision", "int8"), "--precision is for --format onnx"),
        (
            ("--model", "m", "--format", "onnx", "--precision", "int4"),
            "--precision: expected some of float32",
        ),
        (("--model", "m", "--step", "4"), "--step is for --run"),
        (("--model", "m", "--dim", "0"), "expected 1 or more"),
        (("--model", "m", "--adapter", "separate", "--dim", "4"), "--adapter separate"),
        (("--model", "m", "--private"), "are for --push-to-hub"),
        (("--model", "m", "--push-to-hub", "model"), "expected OWNER/NAME"),
        (("--run", "nothing"), "no config.json, so it is not a run's directory"),
        (("--model", "nothing"), "model 'nothing' not found"),
        (("--model", "{saved}", "--dim", "25"), "--dim: expected 1 to 24"),
        (("--model", "{saved}", "--results", "nothing.json"), "nothing.json: no such file"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(refused, saved, tmp_path, arguments, message):
    arguments_with_paths = [argument.format(saved=saved) for argument in arguments]
    assert message in refused(export, *arguments_with_paths, "--output", tmp_path / "out")


def test_a_run_of_which_nothing_is_saved_is_refused(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(Experiment()))
    message = refused(export, "--run", tmp_path / "run", "--output", tmp_path / "out")
    assert "saved neither a model nor a checkpoint" in message


def test_what_is_pushed_is_what_was_written(exported, run, saved, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(
        "embed_jax.export.push.push",
        lambda directory, *about, **options: sent.append((files(directory), about, options)),
    )
    out = exported("--model", saved, "--push-to-hub", "me/model", "--private", "--revision", "v2")
    assert sent == [(files(out), ("me/model",), {"private": True, "revision": "v2"})]
    assert "embed_jax.load('me/model')" in (out / "README.md").read_text()
