"""The example of experiments/README.md.

Its objective, optimiser and encoder give the same results on any devices.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.train.assembly import assemble
from embed_jax.train.fit import fit
from embed_jax.train.sources import ONLY

pytest.importorskip("grain")
README = Path(__file__).parents[2] / "experiments" / "README.md"


@pytest.fixture(scope="module")
def example():
    """The names that the README's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    return names


@pytest.fixture(scope="module")
def config(tiny_model):
    def make(devices, **fields):
        shared = {
            "model__name": str(tiny_model),
            "data__max_length": 16,
            "batch__size": 8,
            "batch__groups": 4,
            "batch__rows": 4,
            "batch__row_length": 32,
            "train__steps": 3,
            "train__devices": devices,
            "tracking__wandb": "disabled",
        }
        return override(Experiment(), **shared | fields)

    return make


@pytest.fixture(scope="module")
def sources(sentences):
    records = [{"anchor": sentences[n], "positive": sentences[n + 40]} for n in range(24)]
    return {ONLY: RecordSource(records, record_fields(records))}


def test_devices_and_steps_agree(example, config, sources):
    """The gradient is that of one device; the temperature is the schedule's at each step."""
    gradients = {}
    for devices in (1, 4):
        settings = config(devices)
        run = assemble(
            settings,
            sources,
            model=example["noisy_model"](settings),
            objective=example["objective"],
            optimizer=example["optimizer"],
        )
        batches = run.data.batches(0, run.state)
        _, batch = next(batches)
        batches.close()
        function = jax.jit(jax.value_and_grad(run.loss, has_aux=True))
        key = jax.random.key(1)
        (_, (metrics, _)), gradients[devices] = function(
            run.state.params, batch, key, run.state.frozen, step=jnp.int32(500)
        )
        assert np.abs(gradients[devices]["loss"]["1"]["kernel"]).max() > 1e-4
    four_devices, one_device = (jax.device_get(gradients[devices]) for devices in (4, 1))
    difference = jax.tree.map(np.subtract, four_devices, one_device)
    assert optax.tree.norm(difference) < 1e-6 * optax.tree.norm(one_device)

    fixed = config(1, loss__name=f"info_nce(temperature={float(example['temperature'](500))})")
    plain = assemble(fixed, sources, model=example["noisy_model"](fixed))
    params = {**plain.state.params, "loss": {}}
    expected, _ = jax.jit(plain.loss)(params, batch, key, plain.state.frozen)
    np.testing.assert_allclose(metrics["loss/cooling"], expected, rtol=1e-5)


def test_it_trains(example, config, sources, tmp_path):
    """The example trains and saves a model; its evaluator is a function of embeddings."""
    settings = config(4)
    result = fit(
        settings,
        tmp_path / "run",
        sources=sources,
        evaluators={"norm": lambda encode: {"mean": float(np.linalg.norm(encode(["the cat"])))}},
        model=example["noisy_model"](settings),
        objective=example["objective"],
        optimizer=example["optimizer"],
    )
    assert result.finished and (tmp_path / "run" / "model").is_dir()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "norm/mean" in log and "loss/projected" in log
