"""A run writes the metrics of each step once, also after interruptions."""

import json
import subprocess
import sys
import types

import pytest

from embed_jax.train.tracking import MetricsFile, Progress, Wandb


def steps_of(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "tail", ["", '{"step": 6, "lo', '{"step": 6}', "\x00\x00", "[1]\n", "\ufffd{}"]
)
@pytest.mark.parametrize(
    ("resume", "steps"), [(-1, []), (0, [0]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_the_file_is_cut_back_to_the_resumed_step_and_off_a_broken_line(
    tmp_path, tail, resume, steps
):
    path = tmp_path / "metrics.jsonl"
    written = MetricsFile(path, -1)
    for step in range(6):
        written.write(step, {"loss": step / 3})
    written.close()
    path.write_text(path.read_text() + tail)
    if resume == 9 and tail == '{"step": 6}':
        steps = [*steps, 6]  # whole except for the end of its line
    resumed = MetricsFile(path, resume)
    assert steps_of(path) == steps
    resumed.write(7, {"loss": float("nan")})
    resumed.close()
    assert steps_of(path) == [*steps, 7]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 7, "loss": None}
    assert [result.name for result in tmp_path.iterdir()] == ["metrics.jsonl"]


class FakeRun:
    def __init__(self, arguments):
        self.arguments, self.logged, self.finished = arguments, [], False

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
    """The runs that `wandb.init` was called for."""
    runs = []

    def init(**arguments):
        runs.append(FakeRun(arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return runs


def test_a_resumed_run_is_the_same_wandb_run_and_no_step_stands_twice(tmp_path, wandb_runs):
    first = Wandb("offline", "project", "", tmp_path, {"seed": 0})
    for step in range(6):
        first.write(step, {"loss": step})
    # Killed without a word; the newest checkpoint is of step 3.
    second = Wandb("offline", "project", "", tmp_path, {"seed": 0})
    for step in range(4, 9):
        second.write(step, {"loss": step})
    second.close()
    first_run, second_run = wandb_runs
    assert (
        first_run.arguments["id"] == second_run.arguments["id"]
        and second_run.arguments["resume"] == "allow"
    )
    assert first_run.arguments["name"] == tmp_path.name
    assert [step for run in wandb_runs for step, _ in run.logged] == list(range(9)), (
        "step 0 among them"
    )
    assert second_run.finished and not first_run.finished


def test_two_work_directories_are_two_wandb_runs(tmp_path, wandb_runs):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Wandb("online", "project", name, tmp_path / name, {})
    assert wandb_runs[0].arguments["id"] != wandb_runs[1].arguments["id"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x"}, "offline"),
    ],
)
def test_auto_is_online_when_logged_in(
    tmp_path, wandb_runs, monkeypatch, capsys, variables, expected
):
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Wandb("auto", "project", "", tmp_path, {})
    assert wandb_runs[0].arguments["mode"] == expected
    assert ("wandb sync" in capsys.readouterr().out) == (expected == "offline")


@pytest.mark.parametrize("mode", ["disabled", "auto"])
def test_disabled_sends_and_leaves_nothing(tmp_path, wandb_runs, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = Wandb(mode, "project", "", tmp_path, {})
    tracker.write(1, {"loss": 1.0})
    tracker.close()
    assert not wandb_runs and not list(tmp_path.iterdir())


def test_real_offline_runs_share_an_id(tmp_path):
    pytest.importorskip("wandb")
    program = (
        "import sys, pathlib; from embed_jax.train.tracking import Wandb\n"
        "tracker = Wandb('offline', 'project', '', pathlib.Path(sys.argv[1]), {'seed': "
        "int(sys.argv[2])})\n"
        "for step in range(int(sys.argv[2]), int(sys.argv[2]) + 4): tracker.write(step, {'loss': 1 "
        "/ (step + 1)})\n"
        "tracker.close()\n"
    )
    for start in (0, 2):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), str(start)],
            check=True,
            capture_output=True,
        )
    logs = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {path.stem for path in logs} == {"run-" + (tmp_path / "wandb_id").read_text()} and len(
        logs
    ) == 2
    assert (tmp_path / "wandb_step").read_text() == "5"


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    progress = Progress(start=2, total=9, log_every=3)
    for step in range(3, 10):
        progress.step(step, loss=0.5, tokens_per_second=1234.5)
    progress.say("a word")
    progress.close()
    result, err = capsys.readouterr()
    *lines, last = result.splitlines()
    assert (
        [line.split()[1] for line in lines] == ["3/9", "6/9", "9/9"]
        and last == "a word"
        and not err
    )
    assert (
        "loss 0.5000" in lines[0]
        and "1,23" in lines[0]
        and "s left" in lines[0]
        and "\r" not in result
    )
