"""A killed and resumed run equals the undisturbed run, bit for bit.

Bad input and failures end in one line.
"""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from embed_jax.config import Experiment
from embed_jax.train.workdir import open_workdir

ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture(scope="module")
def simcse(arguments):
    """Starts `python -m experiments.simcse` in its own process."""

    def start(workdir: Path, *overrides: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "experiments.simcse", *arguments(workdir, *overrides)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(simcse_here, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, err = simcse_here(workdir)
    assert status == 0, err
    return workdir


def assert_same_run(workdir: Path, reference: Path) -> None:
    tensors, expected = (
        load_file(path / "model" / "model.safetensors") for path in (workdir, reference)
    )
    assert tensors.keys() == expected.keys()
    for name in tensors:
        assert tensors[name].tobytes() == expected[name].tobytes(), name
    assert [line["step"] for line in lines_of(workdir)] == list(range(1, STEPS + 1))
    for ours, other in zip(lines_of(workdir), lines_of(reference), strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "accuracy", "positive_similarity"):
            assert ours[name] == other[name]


@pytest.mark.parametrize(
    "attempt", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))]
)
def test_killed_at_any_step_and_restarted_it_ends_with_the_same_bits(
    simcse, simcse_here, undisturbed, tmp_path, attempt
):
    chance = random.Random(attempt)
    process = simcse(tmp_path / "run")
    wait_for(process, f"step {chance.randrange(1, STEPS - 4)}/")
    time.sleep(chance.random() * 0.2)  # in the middle of a step or of a save
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert lines_of(tmp_path / "run")[-1]["step"] < STEPS, "it was killed too late to show anything"
    status, err = simcse_here(tmp_path / "run")
    assert status == 0, err
    assert_same_run(tmp_path / "run", undisturbed)


def test_sigterm_saves_and_exits_0(simcse, simcse_here, undisturbed, tmp_path, capsys):
    process = simcse(tmp_path / "run", "--config.checkpoint.every=0")
    wait_for(process, "step 5/")
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 0 and "SIGTERM: saved at step" in out, err
    status, err = simcse_here(tmp_path / "run", "--config.checkpoint.every=0")
    assert status == 0 and "resuming" in capsys.readouterr().out, err
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_second_run_on_a_workdir_in_use_is_refused(simcse_here, tmp_path):
    with open_workdir(tmp_path / "run", Experiment()) as check_data:
        check_data({})
        status, err = simcse_here(tmp_path / "run")
    assert (
        status == 2
        and err.count("\n") == 1
        and f"in use by another run (process {os.getpid()})" in err
    )


def test_a_nan_loss_names_step_and_records_and_leaves_what_was_saved(
    simcse_here, tmp_path, monkeypatch
):
    """The loss turns NaN at step 5 for two of the examples.

    The checkpoint of step 3 and its line stay.
    """
    from embed_jax.losses import in_batch

    original = in_batch.info_nce

    def breaks(own, world, params, **arguments):
        values, weights, metrics = original.on_world(own, world, params, **arguments)
        long_run = (
            own.text_hash[0, :, 0] % 8 == 0
        )  # some texts, and so sooner or later a step, are poisoned
        return values / (1 - long_run), weights, metrics

    monkeypatch.setattr(in_batch, "info_nce", dataclasses.replace(original, compute=breaks))
    status, err = simcse_here(
        tmp_path / "run",
        "--config.checkpoint.every=1",
        "--config.batch.size=2",
        "--config.batch.groups=1",
        "--config.train.seed=3",
    )
    assert status == 1 and err.count("\n") == 1, err
    assert re.search(r"loss.* not finite at step \d+ \(records \d+", err), err
    step = int(re.search(r"at step (\d+)", err).group(1))
    assert step > 1, "the seed was chosen so that the first step is sound"
    assert f"the checkpoint of step {step - 1} is intact" in err
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(1, step))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.optim.learning_rate=0.5", "config.optim.learning_rate was 0.001 and is 0.5 now"),
        ("--config.data.limit=100", "config.data.limit was 2048 and is 100 now"),
        ("--config.optim.lr=1", "unknown config field 'optim.lr'"),
        ("--config.batch.size=2.5", "batch.size"),
        ("--config.batch.size=300", "200 records do not fill a batch of 300"),
        ("--config.data.train=nonexistent.txt", "nonexistent.txt"),
        ("--config.model.name=no/such-model", "no/such-model"),
        ("--config.model.name=random:big", "unknown shape 'big'"),
        ("--workdir=/dev/null/run", "/dev/null/run: cannot be written"),
        ("--config.data.max_length=128", "row_length"),
        ("--config.batch.groups=3", "expected a multiple of the 3 groups"),
        ("--config.loss.name=infonce", "unknown loss 'infonce' (did you mean 'info_nce'?)"),
        ("--config.eval.sts=missing.tsv", "missing.tsv"),
    ],
)
def test_bad_input_is_one_line_with_status_2(simcse_here, undisturbed, tmp_path, override, message):
    finished = " was " in message
    workdir = undisturbed if finished else tmp_path / "run"
    before = {
        path: path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name != "lock"
    }
    status, err = simcse_here(workdir, override)
    assert status == 2 and message in err, (status, err)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in before}
    assert finished == workdir.exists(), "of a run that did not begin nothing is left"


def test_a_budget_of_rows_that_does_not_suffice_names_the_option(simcse_here, tmp_path):
    status, err = simcse_here(tmp_path / "run", "--config.batch.rows=1")
    assert status == 2 and err.count("\n") == 1 and "rows" in err


def test_an_unknown_metric_is_refused_before_training(simcse_here, tmp_path, sentence_file):
    sts = tmp_path / "dev.tsv"
    lines = sentence_file.read_text().splitlines()
    rows = [f"{n % 6}\t{lines[n]}\t{lines[n + 1]}" for n in range(20)]
    sts.write_text("score\tsentence1\tsentence2\n" + "\n".join(rows) + "\n")
    status, err = simcse_here(
        tmp_path / "run", f"--config.eval.sts={sts}", "--config.eval.metric=sts/speerman"
    )
    assert status == 2 and "unknown metric 'sts/speerman' (did you mean 'sts/spearman'?)" in err, (
        err
    )


@pytest.mark.slow
def test_validation_sentences_have_a_loss_of_their_own(simcse_here, tmp_path, sentences):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("\n".join(sentences[:100]) + "\n")
    (tmp_path / "data" / "dev.txt").write_text("\n".join(sentences[100:]) + "\n")
    fields = [
        f"--config.data.train={tmp_path}/data",
        "--config.data.validation_split=dev",
        "--config.train.steps=2",
        "--config.eval.every=2",
    ]
    status, err = simcse_here(tmp_path / "run", *fields)
    assert status == 0, err
    assert [line["step"] for line in lines_of(tmp_path / "run") if "validation/loss" in line] == [
        0,
        2,
    ]
