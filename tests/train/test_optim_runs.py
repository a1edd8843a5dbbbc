"""Runs with groups, Adafactor, Muon and WSD.

They resume to the same bits, and agree on one device and in four shards.
"""

import functools
import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from embed_jax.config import (
    BatchShape,
    Data,
    Experiment,
    Model,
    Optim,
    ParamGroup,
    as_dict,
    to_json,
)
from embed_jax.config_file import load_config, read_run_config
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.errors import InputError
from embed_jax.export.record import config_source
from embed_jax.parallel.mesh import make_mesh, place_on_mesh, state_shardings, training_specs
from embed_jax.train.checkpoint import Checkpoints
from embed_jax.train.fit import fit
from embed_jax.train.optim import make_optimizer
from embed_jax.train.step import init_state
from embed_jax.train.workdir import open_workdir

STEPS = 4
GROUPS = {
    "trunk": ParamGroup("backbone", learning_rate_factor=0.1, layer_decay=0.5),
    "bottom": ParamGroup("layers", learning_rate_factor=0.0, layers="0"),
    "table": ParamGroup("embeddings", learning_rate_factor=0.0),
}


@pytest.fixture(scope="module")
def records(sentences):
    return [{"anchor": a, "positive": b} for a, b in itertools.pairwise(sentences[:17])]


@pytest.fixture(scope="module")
def train(tiny_model, records):
    """`train(workdir, optim, **settings of config.train) -> result`, on pairs, in batches of 8."""

    def run(workdir, optim, checkpoint_every=2, **settings):
        config = Experiment(
            model=Model(name=str(tiny_model), mlp="kept"),
            data=Data(max_length=24),
            batch=BatchShape(size=8, groups=4, row_length=32, rows=4),
            optim=optim,
        )
        for name, value in {"steps": STEPS, "devices": 1, "log_every": 100, **settings}.items():
            setattr(config.train, name, value)
        config.checkpoint.every, config.checkpoint.keep = checkpoint_every, 10
        config.tracking.wandb = "disabled"
        return fit(
            config,
            Path(workdir),
            sources={"pairs": RecordSource(records, record_fields(records))},
            evaluators={},
        )

    return run


def optim_of(name, groups=(), **fields):
    optim = Optim(name=name, learning_rate=5e-3, weight_decay=0.1, **fields)
    for group in groups:
        setattr(optim.groups, group, GROUPS[group])
    return optim


def tensors_of(workdir):
    files = sorted((workdir / "model").rglob("*.safetensors"))
    return {
        f"{file.parent.name}/{name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def stop_at(workdir, copy, step):
    """Copies a run as it was after a step."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "model")
    for checkpoint in (copy / "checkpoints").glob("[0-9]*"):
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


def assert_same_bits(workdir, reference):
    tensors, expected = tensors_of(workdir), tensors_of(reference)
    assert tensors.keys() == expected.keys() and tensors
    for name in tensors:
        assert tensors[name].tobytes() == expected[name].tobytes(), name


def assert_same_run(workdir, reference):
    """Checks that parameters agree to 1e-6 of their norm."""
    ours, expected = (
        np.concatenate([tensor.ravel() for _, tensor in sorted(tensors_of(run).items())])
        for run in (workdir, reference)
    )
    assert np.linalg.norm(ours - expected) <= 1e-6 * np.linalg.norm(expected)


MUON = {"name": "muon", "groups": GROUPS, "accumulate": 2}
WSD = {"schedule": "wsd", "decay": 0.5}


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """An undisturbed run with Muon, groups, accumulation and WSD.

    Stable for two steps, falling for two.
    """
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(workdir, optim_of(**MUON, **WSD))
    return workdir


@pytest.fixture(scope="module")
def stable(train, tmp_path_factory):
    """The same run up to step 2 at a constant rate."""
    workdir = tmp_path_factory.mktemp("stable") / "run"
    train(workdir, optim_of(**MUON, schedule="constant"), steps=2)
    return workdir


def test_it_resumes_to_the_same_bits(train, whole, tmp_path):
    stop_at(whole, tmp_path / "resumed", 2)
    train(tmp_path / "resumed", optim_of(**MUON, **WSD))
    assert_same_bits(tmp_path / "resumed", whole)


def test_adafactor_with_groups_resumes_to_the_same_bits(train, tmp_path):
    optim = optim_of("adafactor", GROUPS, schedule="cosine")
    train(tmp_path / "whole", optim)
    stop_at(tmp_path / "whole", tmp_path / "resumed", 2)
    train(tmp_path / "resumed", optim)
    assert_same_bits(tmp_path / "resumed", tmp_path / "whole")


def test_it_is_the_same_run_in_shards_of_four_devices(train, whole, tmp_path):
    train(tmp_path / "sharded", optim_of(**MUON, **WSD), devices=4, fsdp=4)
    assert_same_run(tmp_path / "sharded", whole)


def test_what_is_frozen_keeps_its_bits_and_all_else_is_trained(whole, tiny_model):
    trained = {name.partition("/")[2]: tensor for name, tensor in tensors_of(whole).items()}
    for name, tensor in load_file(tiny_model / "model.safetensors").items():
        is_frozen = "embeddings" in name or "layer.0." in name
        assert (trained[name].tobytes() == tensor.tobytes()) == is_frozen, name


def test_a_new_run_goes_on_from_a_checkpoint_with_the_same_bits(train, whole, tmp_path):
    checkpoint = str(whole / "checkpoints/2")
    train(tmp_path / "branch", optim_of(**MUON, **WSD), from_checkpoint=checkpoint)
    assert_same_bits(tmp_path / "branch", whole)
    lines = (tmp_path / "branch/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4]


def test_the_decay_of_wsd_starts_from_a_checkpoint_of_a_stable_run(train, whole, stable, tmp_path):
    """A run at a constant rate, continued with a decay, equals a run with WSD.

    Not to the bit: a rate that is known when the step is compiled is multiplied in another order.
    """
    checkpoint = str(stable / "checkpoints/2")
    train(tmp_path / "branch", optim_of(**MUON, **WSD), from_checkpoint=checkpoint)
    assert_same_run(tmp_path / "branch", whole)


def test_a_start_that_is_no_checkpoint_of_this_run_is_refused_in_one_line(train, stable, tmp_path):
    checkpoint = stable / "checkpoints/2"
    cases = {
        "expected fewer than the run's 2 steps": (MUON, checkpoint, 2),
        "expected a checkpoint, RUN/checkpoints/STEP": (MUON, checkpoint.parent, 4),
        "cannot be read as a state of this config's optimiser": ({"name": "adamw"}, checkpoint, 4),
    }
    for number, (message, (optim, start, steps)) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message) as error:
            workdir = tmp_path / str(number)
            train(workdir, optim_of(**optim), steps=steps, from_checkpoint=str(start))
        assert str(error.value).count("\n") == 0


def test_a_run_is_resumed_with_the_groups_that_it_had(train, whole):
    for groups in ((), ("table", "bottom"), ("trunk", "bottom", "table")):
        optim = optim_of("muon", groups, accumulate=2, **WSD)
        if len(groups) < len(GROUPS):
            with pytest.raises(InputError, match="a run is resumed unchanged"):
                train(whole, optim)
        else:
            assert train(whole, optim).finished


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_checkpoint_holds_the_whole_state_of_an_optimiser(name, tmp_path):
    """Two updates, saved and restored in shards of four devices, and two more updates.

    They equal four updates without a stop, to the bit.
    """
    rng = np.random.default_rng(0)
    draws = [
        {"layers": {"up": {"kernel": rng.standard_normal((2, 128, 160)).astype(np.float32)}},
         "embeddings": {"token": rng.standard_normal((8, 128)).astype(np.float32)}}
        for _ in range(5)
    ]  # fmt: skip
    mesh = make_mesh(4, fsdp=4)
    optimizer = make_optimizer(optim_of(name, ["bottom"], schedule="cosine"), 4)
    state = init_state({"encoder": draws[0]}, optimizer)
    specs = training_specs(state.params, [("layers/up/kernel", (None, "fsdp", None))], mesh)
    shardings = state_shardings(state, optimizer, specs, mesh)
    state = place_on_mesh(state, shardings)

    @functools.partial(jax.jit, out_shardings=shardings)
    def step(state, gradients):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    def train_from(state):
        for gradients in draws[1 + int(state.step) :]:
            state = step(state, {"encoder": gradients})
            if int(state.step) == 2:
                checkpoints.save(2, state, {})
        return state

    with Checkpoints(tmp_path, 2) as checkpoints:
        expected = train_from(state)
        assert checkpoints.latest_step() == 2  # waits until it is written
        restored, _ = checkpoints.restore(state)
    assert int(restored.step) == 2
    for value, other in zip(
        jax.tree.leaves(train_from(restored)), jax.tree.leaves(expected), strict=True
    ):
        assert np.asarray(value).tobytes() == np.asarray(other).tobytes()


def test_a_run_from_before_these_fields_is_resumed(tmp_path):
    """Fields that an old config.json lacks get their defaults."""
    config = Experiment()
    with open_workdir(tmp_path, config) as check_data:
        check_data({})
        (tmp_path / "model").mkdir()
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    for field in ("name", "decay", "groups"):
        del content["optim"][field]
    del content["train"]["from_checkpoint"]
    file.write_text(json.dumps(content))
    with open_workdir(tmp_path, config) as check_data:
        check_data({})
        assert read_run_config(tmp_path / "config.json") == config
    config.optim.name, content["optim"] = "muon", {}
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="optim.name was 'adamw' and is 'muon' now"):
        with open_workdir(tmp_path, config) as check_data:
            check_data({})


def test_groups_are_written_read_and_overridden_as_a_mixtures_sources_are(tmp_path):
    file = tmp_path / "grouped.py"
    file.write_text(
        "from embed_jax.config import Experiment, ParamGroup\n"
        "def get_config(cut=''):\n"
        "    config = Experiment()\n"
        "    config.optim.groups.heads = ParamGroup('heads', learning_rate_factor=100.0)\n"
        "    return config\n"
    )
    field = "--config.optim.groups.heads.learning_rate_factor=10"
    config, _ = load_config(["train", f"--config={file}", field])
    assert config.optim.groups.heads == ParamGroup("heads", 10.0)
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_run_config(tmp_path / "config.json") == config
    written = {}
    exec(config_source(as_dict(config)), written)
    assert written["get_config"]() == config
    with pytest.raises(InputError, match="optim.groups.heads.learning_rate_factor"):
        load_config(["train", f"--config={file}", "--config.optim.groups.heads.factor=2"])
