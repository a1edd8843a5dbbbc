"""Training steps and encode programs are lowered for TPUs and GPUs, on a machine without them."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from embed_jax.config_file import load_config, override
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.mesh import make_mesh
from embed_jax.train.assembly import assemble
from embed_jax.train.data import abstract_batch
from embed_jax.train.memory import plan_run
from scripts.bench import launches

ROOT = Path(__file__).parents[2]
# What `jax.default_backend` says there, and a dtype: of bfloat16 a GPU's attention is cuDNN's,
# which is not lowered without cuDNN; tests/gpu has it.
PLATFORMS = {"tpu": ("tpu", "bfloat16"), "cuda": ("gpu", "float32")}


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
    """Lets code choose what it chooses on such a platform; yields (platform, dtype)."""
    backend, dtype = PLATFORMS[request.param]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    return request.param, dtype


def lowered_text(function, arguments, platform):
    return function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "shape",
    [
        "modernbert-tiny",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tiny", "decoder-tiny")),
    ],
)
def test_an_encode_program_is_lowered_with_its_mesh(shape, platform):
    name, dtype = platform
    encoder = build_encoder(random_spec(shape), compute_dtype=dtype)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    tokens = abstract_batch(8, 1, 4, 2, 16).tokens["encoder"]
    text = lowered_text(sharded_encode(encoder, make_mesh(8)), (params, tokens), name)
    assert "stablehlo.dot_general" in text and "num_partitions = 8" in text


# One of each experiment that trains one encoder on texts, with the mesh of its large runs.
ABSTRACT = {
    "configs/simcse/unsup_bert_base.py": ("tiny", {}),
    "configs/llm/e5_mistral.py": ("decoder-tiny", {"train__fsdp": 4}),
    "configs/retrieval/quickstart.py": ("modernbert-tiny", {"train__fsdp": 2}),
    "configs/mlm/bert_small.py": ("tiny", {"train__tensor": 2}),
}


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[] if "simcse" in file else [pytest.mark.slow]) for file in ABSTRACT],
)
def test_a_config_s_step_is_lowered_with_its_mesh(file, platform):
    name, dtype = platform
    shape, fields = ABSTRACT[file]
    config, _ = load_config(["experiments/x.py", f"--config={ROOT / file}:small"])
    common = {"model__name": f"random:{shape}", "model__compute_dtype": dtype, "batch__size": 16}
    config = override(config, train__devices=8, batch__groups=8, **common, **fields)
    run, arguments = plan_run(config, 2, 16, shape)
    text = lowered_text(run.step, arguments, name)
    assert "stablehlo.dot_general" in text and "num_partitions = 8" in text


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lowering")
    launches.write_material(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("family", launches.FAMILIES)
def test_an_experiment_s_step_is_lowered_for_its_own_batches(
    family, name, material, tmp_path, monkeypatch
):
    pytest.importorskip("bm25s")
    backend, dtype = PLATFORMS[name]
    experiment = importlib.import_module(f"experiments.{family}")
    arguments = {}

    def record(config, workdir, **others):
        arguments.update(others)
        return SimpleNamespace(finished=False, unchanged="")

    monkeypatch.setattr(experiment, "fit", record)
    fields = {"train__steps": 2, "model__compute_dtype": dtype, "train__devices": 2}
    config = launches.small_config(family, material, **fields)
    experiment.run(config, tmp_path)
    options = {key: arguments.get(key) for key in ("model", "objective")}
    run = assemble(config, arguments["sources"], **options)
    _, batch = next(run.data.batches(0, run.state))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    text = lowered_text(run.step, (run.state, batch, jax.random.key(0)), name)
    assert "stablehlo.dot_general" in text and "num_partitions = 2" in text
