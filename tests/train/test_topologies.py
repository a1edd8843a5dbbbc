"""A checkpoint is independent of the devices on which it was written.

A loss's own parameters are part of it.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

STEPS = 6
# Dropout masks go by groups, so eight groups are the same run on any divisor of eight devices.
SETTINGS = (
    f"--config.train.steps={STEPS}",
    "--config.batch.groups=8",
    "--config.checkpoint.every=3",
)
FIELDS = {
    "siglip": ("scale", "bias", "loss"),
    "info_nce(learn_temperature=True)": ("loss", "grad_norm"),
}


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def model_of(workdir):
    tensors = load_file(workdir / "model" / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


@pytest.fixture
def finished(simcse_here, tmp_path):
    """A finished run on four devices, and its copies as they were after half of the steps."""

    def make(loss, *changes):
        run = tmp_path / "run"
        settings = (*SETTINGS, f"--config.loss.name={loss}", *changes)
        status, err = simcse_here(run, *settings, "--config.train.devices=4")
        assert status == 0, err

        def resume(name, *overrides):
            copy = tmp_path / name
            shutil.copytree(run, copy)
            shutil.rmtree(copy / "checkpoints" / str(STEPS))
            shutil.rmtree(copy / "model")
            status, err = simcse_here(copy, *settings, *overrides)
            assert status == 0, err
            assert len(lines_of(copy)) == STEPS
            return copy

        return run, resume

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["--config.train.devices=1"], marks=pytest.mark.slow),
        ["--config.train.devices=8", "--config.train.fsdp=4"],
    ],
    ids=["one", "eight"],
)
def test_a_checkpoint_of_four_devices_resumes_on_one_and_on_eight_in_shards(finished, overrides):
    run, resume = finished("siglip")
    there = resume("there", *overrides)
    assert np.linalg.norm(model_of(there) - model_of(run)) <= 1e-6 * np.linalg.norm(model_of(run))
    for mine, other in zip(lines_of(there), lines_of(run), strict=True):
        assert [mine[field] for field in FIELDS["siglip"]] == pytest.approx(
            [other[field] for field in FIELDS["siglip"]], rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss", FIELDS)
def test_a_losss_own_parameters_resume_exactly(finished, loss):
    run, resume = finished(loss)
    again = resume("again", "--config.train.devices=4")
    assert model_of(again).tobytes() == model_of(run).tobytes()
    for mine, other in zip(lines_of(again), lines_of(run), strict=True):
        assert [mine[field] for field in FIELDS[loss]] == [other[field] for field in FIELDS[loss]]
    if "scale" in FIELDS[loss]:
        assert lines_of(run)[0]["scale"] != lines_of(run)[-1]["scale"], "it is learnt"
