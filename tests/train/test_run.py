"""A run's model at any step equals, bit for bit, the model that training had at that step."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment, Source
from embed_jax.config_file import override, read_run_config
from embed_jax.data.record_source import RecordSource as Records
from embed_jax.data.sources import RecordFields, record_fields
from embed_jax.errors import InputError, RunError
from embed_jax.parallel.mesh import make_mesh
from embed_jax.train.fit import fit
from embed_jax.train.run import load_run

pytest.importorskip("grain")
STEPS = 3
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
SAID += ["matryoshka_dims", "adaptive_layers", "max_length", "compute_dtype"]
ADAPTER = {"lora__rank": 2, "lora__dropout": 0.1, "lora__targets": "query,value"}
INSTRUCTED = {
    "data__template": "Instruct: {instruction}\nQuery: ",
    "data__anchor_instruction": "find the cat",
}
EVERYTHING = {
    "model__mlp": "training",
    "loss__name": "matryoshka(info_nce(), dims='32,8')",
    "loss__similarity": "dot",
    "loss__mlm": 0.1,
    "queue__size": 16,
    "data__candidate_prompt": "read: ",
    "data__pool_prompt": False,
    "data__max_length": 50,
}
RUNS = {
    "everything": EVERYTHING,
    "an adapter": {**ADAPTER, **INSTRUCTED, "lora__base": "bfloat16"},
    "an adapter beside eight bits": {**ADAPTER, "lora__base": "int8"},
    "a merged adapter": {
        **ADAPTER,
        "lora__base": "int8",
        "lora__merge": True,
        "model__mlp": "kept",
    },
    "an adapter of random weights": {**ADAPTER, "lora__dora": True, "model__name": "random:tiny"},
    "tokens only": {"loss__name": "mlm(rate=0.3)", "model__name": "random:tiny"},
    "a mixture": {},
    "a student": {"model__layers": "1", "model__teacher": "TINY", "loss__name": "embedding_mse"},
}
FAST = ("an adapter",)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Use one device: it compiles faster than eight and gives the same results."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("text_model", "train.run"):
            patch.setattr(f"embed_jax.{module}.make_mesh", lambda devices=0: make_mesh(1))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_tokenizer, sentences):
    """`run(name) -> (directory, {step: its parameters, and an embedding})` of one of RUNS.

    Each is run once.
    """
    done = {}

    def of(name):
        if name not in done:
            done[name] = trained(
                name, tmp_path_factory.mktemp("runs") / "run", tiny_model, tiny_tokenizer, sentences
            )
        return done[name]

    return of


def trained(name, directory, tiny_model, tiny_tokenizer, sentences):
    config = Experiment()
    fields = {
        "model__name": str(tiny_model),
        "data__train": "made",
        "data__max_length": 24,
        "batch__size": 8,
        "batch__rows": 12,
        "optim__learning_rate": 1e-2,
        "train__steps": STEPS,
        "train__devices": 1,
        "eval__every": 1,
        "checkpoint__every": 1,
        "checkpoint__keep": 9,
        "tracking__wandb": "disabled",
    } | RUNS[name]
    if fields["model__name"].startswith("random:"):
        fields["model__tokenizer"] = str(tiny_tokenizer)
    fields = {
        field: str(tiny_model) if value == "TINY" else value for field, value in fields.items()
    }
    pairs = [{"anchor": sentences[n], "positive": sentences[n + 1]} for n in range(0, 32, 2)]
    result = {"train": Records(pairs, record_fields(pairs))}
    if name == "tokens only":
        texts = [{"text": text} for text in sentences[:32]]
        result = {"train": Records(texts, RecordFields(lambda record: (record["text"],)))}
    if name == "a mixture":
        config.mixture.sources.first = Source(train="made", max_length=30, anchor_prompt="ask: ")
        config.mixture.sources.second = Source(train="made", loss="info_nce(temperature=0.1)")
        result = dict.fromkeys(("first", "second"), result["train"])
    seen = {}

    def look(encode):
        params = jax.device_get(encode.params)
        seen[len(seen)] = params, encode(["the cat plays music"], prompt="")
        return {"value": float(len(seen))}

    fit(override(config, **fields), directory, sources=result, evaluators={"look": look})
    return directory, seen


def assert_equal_bits(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for ours, reference in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        ours, reference = np.asarray(ours), np.asarray(reference)
        assert ours.dtype == reference.dtype and ours.tobytes() == reference.tobytes()


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_checkpoint_is_the_model_that_the_run_had(run, name):
    directory, seen = run(name)
    assert len(seen) == STEPS + 1
    merged = "merge" in name or name == "an adapter of random weights"
    for step in range(1, STEPS + 1):
        result = embed_jax.load(directory, step=step)
        params, embedding = seen[step]
        if not merged:  # else the run compared the model before
            params = (
                params | {"heads": {}} if name == "everything" else params
            )  # whose head is training's only
            assert_equal_bits(result.params, params)
    again = result.encode(["the cat plays music"], prompt="")
    np.testing.assert_allclose(again, embedding, atol=1e-5 if merged else 0)
    assert not np.allclose(seen[1][1], seen[STEPS][1], atol=1e-4), "steps of one model show nothing"

    written = embed_jax.load(directory)
    for what in SAID:
        assert getattr(result, what) == getattr(written, what), what
    rounded = (
        RUNS[name].get("lora__base") and not merged
    )  # the written model's base is as its files have it
    for part in written.params if not rounded else ("lora", "heads"):
        assert_equal_bits(result.params[part], written.params[part])
    result.save(directory.parent / "again")
    again = embed_jax.load(directory.parent / "again")
    assert_equal_bits(again.params, written.params)
    assert all(getattr(again, what) == getattr(written, what) for what in SAID)


@pytest.mark.slow
def test_a_run_without_a_model_yet_is_its_newest_checkpoint(run, tmp_path):
    directory, seen = run("everything")
    shutil.copytree(directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    (tmp_path / "run" / "checkpoints" / "3.orbax-checkpoint-tmp-9").mkdir()  # a save under way
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(
        UserWarning, match="no model is written yet, this is the checkpoint of step 2"
    ) as caught:
        result = embed_jax.load(str(tmp_path / "run"), max_length=20)
    assert len(caught) == 1
    assert_equal_bits(result.params["backbone"], seen[2][0]["backbone"])
    assert result.max_length == 20
    with pytest.raises(InputError, match="max_length: expected at most 512, the model's positions"):
        embed_jax.load(tmp_path / "run", step=2, max_length=513)
    assert sorted(tmp_path.rglob("*")) == before, "the run is not changed"
    with pytest.raises(InputError, match="run: no checkpoint of step 3; there are 1, 2$"):
        embed_jax.load(tmp_path / "run", step=3)

    for file in (tmp_path / "run" / "checkpoints" / "2").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with pytest.raises(RunError, match="2: the checkpoint cannot be read") as error:
        embed_jax.load(tmp_path / "run", step=2)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match="a run that has saved neither a model nor a checkpoint"):
        load_run(tmp_path / "run")


def test_what_is_no_run_or_another_is_refused(run, tiny_model, tmp_path):
    with pytest.raises(
        InputError,
        match=r"no work directory of a run \(config.json, data.json\), so it has no step 2",
    ):
        embed_jax.load(tiny_model, step=2)
    directory, _ = run("everything")
    shutil.copytree(directory, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    file = tmp_path / "run" / "config.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"model": good["model"] | {"layers": "1"}}, "another architecture"),
        ({"modle": {}}, r"unknown config field 'modle' \(did you mean 'model'\?\)"),
        ({"optim": good["optim"] | {"lr": 1}}, "unknown config field 'optim.lr'"),
        ({"optim": good["optim"] | {"clip_norm": "x"}}, "optim.clip_norm"),
        ({"mixture": []}, "config.json: no settings of a run"),
    ):
        file.write_text(json.dumps(good | change))
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(InputError, match=message) as error,
        ):
            load_run(tmp_path / "run", 1)
        assert "\n" not in str(error.value)


def test_settings_are_read_as_they_were_written(tmp_path):
    from embed_jax.config import to_json

    config = Experiment()
    config.mixture.sources.some__name = Source(train="x.tsv", weight=2.5)
    config.optim.learning_rate, config.data.template = 1e-7, "{instruction}\n"
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_run_config(tmp_path / "config.json") == config
