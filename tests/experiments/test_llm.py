"""Language models as embedders, from the command.

Adapters, instructions, three stages, and refused configs.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import embed_jax
from embed_jax.config_file import load_config
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import find_shape, random_spec
from embed_jax.encoders.write import write_model
from embed_jax.errors import exit_with_one_line
from embed_jax.types import num_params

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, tiny_tokenizer):
    """A directory with a random decoder, in bfloat16."""
    from embed_jax.data.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer, 40)
    spec = random_spec("decoder-tiny", vocab_size=tokenizer.vocab_size, pooling="last_token")
    params = jax.tree.map(
        lambda leaf: leaf.astype("bfloat16"), build_encoder(spec).init(jax.random.key(0))
    )
    directory = tmp_path_factory.mktemp("decoder") / "base"
    write_model(directory, spec, params, tokenizer=tokenizer, max_length=40)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    directory = tmp_path_factory.mktemp("data")
    rows = [f"{sentences[n]}\t{sentences[n + 1]}\t{sentences[n + 2]}" for n in range(0, 72, 3)]
    (directory / "triplets.tsv").write_text("\n".join(["anchor\tpositive\tnegative", *rows]) + "\n")
    (directory / "texts.txt").write_text("\n".join(sentences) + "\n")
    graded = [f"{n % 6}\t{sentences[n]}\t{sentences[n + 1]}" for n in range(12)]
    (directory / "sts.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *graded]) + "\n")
    return directory


@pytest.fixture
def command(decoder, data, tmp_path, tmp_path_factory, monkeypatch, capsys):
    """`command(config, workdir, **fields) -> (status, stdout, stderr)`, run in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import llm

    shared = {
        "model.tokenizer": "",
        "data.max_length": 40,
        "batch.size": 8,
        "batch.row_length": 64,
        "batch.rows": 12,
        "train.steps": STEPS,
        "train.devices": 1,
        "train.log_every": 1,
        "tracking.wandb": "disabled",
    }

    def run(config, workdir, stages=(), **fields):
        settings = shared | {
            "model.name": decoder,
            "data.train": data / "triplets.tsv",
            "eval.retrieval": "",
        }
        staged = {
            f"stages.{stage}.{name}": value
            for stage in stages
            for name, value in shared.items()
            if name != "model.tokenizer"
        }
        settings |= staged | {name.replace("__", "."): value for name, value in fields.items()}
        line = [f"--config.{name}={value}" for name, value in settings.items()]
        monkeypatch.setattr(
            sys, "argv", ["experiments/llm.py", f"--config={config}", f"--workdir={workdir}", *line]
        )
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(llm.main)
        return exit.value.code, *capsys.readouterr()

    return run


E5 = "configs/llm/e5_mistral.py:small"


def test_an_adapter_is_trained_and_saved_alone_with_its_instruction(
    command, decoder, data, tmp_path, sentences
):
    fields = {
        "eval__sts": data / "sts.tsv",
        "eval__test_sts": data / "sts.tsv",
        "eval__sts_instruction": "compare",
    }
    status, out, err = command(
        E5, tmp_path / "run", lora__base="bfloat16", data__pool_prompt=False, **fields
    )
    assert status == 0 and "prompts" not in err, err
    files = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "modules.json"} <= files
    assert "model.safetensors" not in files
    model = embed_jax.load(tmp_path / "run" / "model")
    instruction = "Given a description, retrieve the function that it describes"
    assert (
        model.prompts["query"] == f"Instruct: {instruction}\nQuery: " and not model.include_prompt
    )
    # Nothing but the adapter moved.
    base = embed_jax.load(decoder)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, model.params["backbone"], base.params["backbone"])
    )
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert (
        scores["before/average"] is not None and scores["after/average"] != scores["before/average"]
    )
    adapter = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert sum(leaf.size for leaf in adapter.values()) == num_params(model.params["lora"])
    assert all(np.abs(leaf).max() > 0 for leaf in adapter.values()), "every B has left zero"
    # Merged it is the same model.
    result = model.encode(sentences[:6], prompt_name="query")
    np.testing.assert_allclose(
        model.merged().encode(sentences[:6], prompt_name="query"), result, atol=2e-2
    )
    assert np.abs(result - base.encode(sentences[:6])).max() > 1e-3


@pytest.mark.slow
def test_another_stage_goes_on_with_the_adapter_and_another_adapter_is_refused(
    command, decoder, tmp_path
):
    first = tmp_path / "first"
    status, _, err = command(E5, first)
    assert status == 0, err
    before = load_file(first / "model" / "adapter_model.safetensors")
    status, _, err = command(
        E5, tmp_path / "second", model__name=first / "model", loss__name="own_candidates"
    )
    assert status == 0, err
    after = load_file(tmp_path / "second" / "model" / "adapter_model.safetensors")
    moved = [np.abs(after[name] - before[name]).max() for name in before]
    assert 0 < min(moved) and max(moved) < 0.05, "from where the first stage ended"
    settings = json.loads((tmp_path / "second" / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(decoder)
    status, _, err = command(E5, tmp_path / "third", model__name=first / "model", lora__rank=8)
    assert (
        status == 2 and "config.lora: the model has another adapter" in err and err.count("\n") == 1
    )


@pytest.mark.slow
def test_three_steps_of_llm2vec(command, data, tmp_path):
    texts = {"data__train": data / "texts.txt", "stages__simcse__data__train": data / "texts.txt"}
    texts |= {
        "stages__supervised__data__train": data / "triplets.tsv",
        "stages__supervised__eval__retrieval": "",
    }
    texts |= {"loss__name": "mntp(rate=0.2,mask_token='[MASK]')"}
    status, out, err = command(
        "configs/llm/llm2vec.py:small", tmp_path / "run", ("simcse", "supervised"), **texts
    )
    assert status == 0, err
    directories = [tmp_path / "run", tmp_path / "run" / "simcse", tmp_path / "run" / "supervised"]
    for directory in directories:
        lines = [
            json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
        ]
        assert len(lines) == STEPS and all(np.isfinite(line["loss"]) for line in lines)
        config = json.loads((directory / "model" / "config.json").read_text())
        assert config["is_causal"] is False, "the switch is recorded, for transformers too"
        assert (directory / "model" / "model.safetensors").exists(), "the adapter is merged"
    weights = [load_file(directory / "model" / "model.safetensors") for directory in directories]
    name = "layers.0.self_attn.q_proj.weight"
    assert len({weight[name].tobytes() for weight in weights}) == 3, (
        "each stage changed what the one before left"
    )


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float32", "int8"])
def test_a_run_that_is_resumed_is_the_run_that_was_not(command, tmp_path, base):
    settings = {
        "lora__base": base,
        "checkpoint__every": 1,
        "checkpoint__keep": 9,
        "lora__dropout": 0.1,
    }
    status, _, err = command(E5, tmp_path / "run", **settings)
    assert status == 0, err
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    for step in range(2, STEPS + 1):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / str(step))
    status, _, err = command(E5, tmp_path / "again", **settings)
    assert status == 0, err
    uninterrupted, resumed = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors")
        for name in ("run", "again")
    )
    assert all(uninterrupted[name].tobytes() == resumed[name].tobytes() for name in uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_embedding", "gte_qwen2", "nv_embed"])
def test_the_other_small_cuts_run(command, data, tmp_path, name):
    stages = ("blended",) if name == "nv_embed" else ()
    fields = (
        {
            "stages__blended__data__train": data / "triplets.tsv",
            "stages__blended__eval__retrieval": "",
            "stages__blended__mine__strategy": "",
            "mine__strategy": "",
        }
        if stages
        else {}
    )
    status, _, err = command(f"configs/llm/{name}.py:small", tmp_path / "run", stages, **fields)
    assert status == 0, err
    model = embed_jax.load(
        tmp_path / "run" / "blended" / "model" if stages else tmp_path / "run" / "model"
    )
    assert np.isfinite(model.encode(["a cat"], prompt_name="query")).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data__template": "Instruct: "},
            "config.data.template 'Instruct: ': expected the placeholder {instruction}",
        ),
        ({"data__template": ""}, "config.data.anchor_instruction: needs config.data.template"),
        (
            {"data__anchor_prompt": "query: "},
            "config.data.anchor_instruction: expected none beside anchor_prompt",
        ),
        ({"lora__targets": "q_projection"}, "config.lora.targets: "),
        (
            {"lora__base": "int4"},
            "config.lora.base: expected one of 'float32', 'bfloat16', 'int8', found 'int4'",
        ),
        ({"lora__rank": -1}, "config.lora.rank: expected at least 0, or unset (no adapter"),
        ({"model__attention": "sideways"}, "config.model.attention: expected one of"),
        (
            {"model__token_head": "latents()"},
            "config.model.token_head: unknown token_head 'latents'",
        ),
        ({"model__append_eos": True}, "no end-of-text token"),
        ({"model__name": "{}/cut"}, "model.safetensors: "),
        ({"model__name": "{}/rope"}, "rope_type"),
        ({"model__name": "{}/small"}, "a table of 20 rows for a tokenizer of"),
    ],
)
def test_bad_input_is_one_line(command, decoder, tmp_path, fields, message):
    name = str(fields.get("model__name", ""))
    if name:
        directory = tmp_path / name.removeprefix("{}/")
        shutil.copytree(decoder, directory)
        config = json.loads((directory / "config.json").read_text())
        if "cut" in name:
            weights = directory / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1000])
        elif "rope" in name:
            config["rope_parameters"] = {"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0}
        else:
            spec = random_spec("decoder-tiny", vocab_size=20, pooling="last_token")
            tokenizer = embed_jax.load(decoder).tokenizer
            shutil.rmtree(directory)
            write_model(
                directory,
                spec,
                build_encoder(spec).init(jax.random.key(0)),
                tokenizer=tokenizer,
                max_length=40,
            )
            config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config))
        fields = {"model__name": directory}
    status, _, err = command(E5, tmp_path / "run", **fields)
    assert status == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert not (tmp_path / "run" / "model").exists()


def test_full_size_configs_name_shapes_that_a_plan_knows(monkeypatch):
    from embed_jax.train.memory import shape_of

    monkeypatch.chdir(ROOT)
    for file in sorted((ROOT / "configs" / "llm").glob("*.py")):
        config, _ = load_config(["experiments/llm.py", f"--config={file}"])
        if file.stem != "small_decoder":
            assert find_shape(shape_of(config.model.name))
