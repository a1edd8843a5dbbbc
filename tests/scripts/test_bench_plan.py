"""A plan computes a run's memory from shapes, for the same step that the run compiles."""

import math

import jax
import pytest

from embed_jax.config import Experiment, ParamGroup
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError
from embed_jax.train.memory import local_bytes, plan_run
from embed_jax.types import num_params
from scripts.bench import __main__ as bench

CONFIG = """
from embed_jax.config import Experiment, ParamGroup


def get_config(cut=""):
    config = Experiment()
    config.model.name = "random:decoder-tiny"
    config.lora.rank = 2
    config.lora.base = "bfloat16"
    config.data.max_length = 16
    config.batch.size = 8
    return config
"""


def tiny(**fields):
    config = Experiment()
    config.model.name, config.model.remat = "random:decoder-tiny", "layer"
    config.train.devices = 1
    config.data.max_length, config.batch.size = 16, 8
    for name, value in fields.items():
        part, _, field = name.partition("__")
        setattr(getattr(config, part), field, value)
    return config


@pytest.mark.parametrize("base, size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_frozen_parameters_take_what_their_dtype_takes(base, size):
    run, _ = plan_run(tiny(lora__rank=2, lora__base=base), 2, 16)
    params = jax.eval_shape(build_encoder(random_spec("decoder-tiny")).init, jax.random.key(0))[
        "backbone"
    ]
    kernels = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"])
                  if path[-1].key == "kernel")  # fmt: skip
    rest = num_params(params) - kernels
    frozen = local_bytes(run.state.frozen)
    scales = sum(
        math.prod(leaf.shape[:1] + leaf.shape[2:])
        for leaf in jax.tree.leaves(params["layers"])
        if leaf.ndim == 3
    )
    expected = kernels + 4 * (scales + rest) if base == "int8" else size * num_params(params)
    assert frozen == expected
    moments = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * num_params(run.state.params)


def test_a_frozen_group_has_no_optimiser_state():
    config = tiny(model__mlp="kept")
    config.optim.groups.trunk = ParamGroup("backbone", learning_rate_factor=0.0)
    run, _ = plan_run(config, 2, 16)
    moments = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim]
    trained = num_params(run.state.params) - num_params(run.state.params["encoder"]["backbone"])
    assert sum(leaf.size for leaf in moments) == 2 * trained > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["matryoshka(info_nce(), dims='64,16')", pytest.param("mntp", marks=pytest.mark.slow)]
)
def test_it_compiles_on_a_mesh_for_losses_and_objectives_on_tokens(loss):
    fields = {"loss__name": loss, "model__attention": "bidirectional"}
    whole, _ = plan_run(tiny(**fields), 2, 16)
    two = {"train__devices": 2, "train__fsdp": 2, "batch__groups": 4}
    split, arguments = plan_run(tiny(**fields, **two), 2, 16)
    split.step.lower(*arguments).compile({"xla_backend_optimization_level": 0})
    share = 0.6 if loss != "mntp" else 0.8  # what predicts tokens is whole on every device
    assert local_bytes(split.state) < share * local_bytes(whole.state)


@pytest.mark.slow
def test_the_command_says_whether_it_fits(run, refused, tmp_path, monkeypatch):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    monkeypatch.setattr("scripts.bench.plan.use_cpu_devices", lambda devices: None)
    line = ("memory", "--config", file, "--devices", 2, "--config.train.fsdp=2")
    status, out, err = run(bench, *line, "--memory", 1e-6)
    assert status == 0 and "does not fit 1e-06 GiB" in out and "train.fsdp" in out, err
    assert "2 devices (data 1, fsdp 2, tensor 1), 8 examples in 2 groups" in out
    assert "config.model.name: the shape of 'x/y' is not known; name a shape (--shape)" in refused(
        bench, *line, "--config.model.name=x/y"
    )
    assert "only with memory --config FILE" in refused(bench, "loss", "--config.train.fsdp=2")
    assert "unknown config field" in refused(bench, *line, "--config.lora.rnak=2")


@pytest.mark.parametrize(
    "fields, need",
    [
        ({"loss__name": "cosent"}, "score"),
        ({"loss__name": "embedding_mse", "data__teacher_vectors": "vectors.npy"}, "teacher"),
    ],
)
def test_a_loss_of_more_than_texts_is_refused_in_one_line(fields, need):
    with pytest.raises(InputError, match=f"config.loss.name: .* needs a {need}") as refused:
        plan_run(tiny(**fields), 2, 16)
    assert "\n" not in str(refused.value)
