"""Several hosts, each in its own process, run like one host.

If one is lost the others end; restarted together they continue exactly.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STEPS = 20
SETTINGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.devices=0",
    "--config.batch.groups=4",
    "--config.batch.shares=2",
    "--config.checkpoint.every=5",
    "--config.loss.name=siglip",  # with its own parameters
)


@pytest.fixture(scope="module")
def launch(arguments, tmp_path_factory):
    """`launch(workdir, hosts, devices)`: the processes of one run, `devices` CPU devices each.

    Args of another run than SimCSE's: `experiment`, and its command line without the hosts,
    `options`; `last` goes to the last host only.
    """
    cache = tmp_path_factory.mktemp("cache")

    def start(
        workdir: Path, hosts: int, devices: int, experiment: str = "simcse", options=(), last=()
    ) -> list[subprocess.Popen]:
        options = options or arguments(workdir, *SETTINGS)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        processes = []
        for index in range(hosts):
            joining = [
                f"--config.hosts.coordinator=localhost:{port}",
                f"--config.hosts.count={hosts}",
            ]
            joining += [f"--config.hosts.index={index}", "--config.hosts.heartbeat_timeout=10"]
            command = [sys.executable, "-m", f"experiments.{experiment}", *options]
            command += last if index == hosts - 1 else ()
            environment = {
                **os.environ,
                "JAX_NUM_CPU_DEVICES": str(devices),
                "PYTHONUNBUFFERED": "1",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
            }
            environment["EMBED_JAX_CACHE"] = str(cache / f"{hosts}-{index}")
            processes.append(
                subprocess.Popen(
                    command + (joining if hosts > 1 else []),
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return processes

    return start


def finish(processes) -> list[tuple[int, str, str]]:
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        ended.append((process.returncode, out, err))
    return ended


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def model_of(workdir: Path) -> np.ndarray:
    tensors = load_file(workdir / "model" / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def two_hosts(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hosts") / "run"
    ended = finish(launch(workdir, hosts=2, devices=2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert f"step {STEPS}/{STEPS}" in ended[0][1]
    assert "step" not in ended[1][1], "one host writes the log"
    return workdir


def test_two_hosts_of_two_devices_are_one_of_four(simcse_here, two_hosts, tmp_path):
    status, err = simcse_here(tmp_path / "run", *SETTINGS, "--config.train.devices=4")
    assert status == 0, err
    ours, reference = model_of(two_hosts), model_of(tmp_path / "run")
    assert np.linalg.norm(ours - reference) <= 1e-6 * np.linalg.norm(reference)
    for mine, other in zip(lines_of(two_hosts), lines_of(tmp_path / "run"), strict=True):
        for name in ("loss", "grad_norm", "scale", "bias", "positive_similarity"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4), (mine["step"], name)


def test_two_hosts_evaluate_and_compare_and_the_first_writes(
    launch, tiny_model, sentences, tmp_path
):
    rows = [{"anchor": " ".join(text.split()[::2]), "positive": text} for text in sentences[:40]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "model.name": tiny_model,
        "data.train": tmp_path / "pairs.jsonl",
        "data.holdout": 0.2,
        "batch.size": 4,
        "batch.rows": 4,
        "batch.clusters": 2,
        "train.steps": 2,
        "eval.every": 1,
        "checkpoint.every": 0,
        "tracking.wandb": "disabled",
    }
    options = [
        f"--config={ROOT}/configs/retrieval/own_data.py:small",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={tmp_path}/run",
    ]
    (first, out, err), (second, other_out, other_err) = finish(
        launch(tmp_path / "run", 2, 1, experiment="retrieval", options=options)
    )
    assert (first, second) == (0, 0), err + other_err
    assert out.count("dopt it") == 1
    assert len(list((tmp_path / "run" / "clusters").iterdir())) == 1
    assert re.sub(r"\[Gloo\].*\n", "", other_out) == "", "the first host speaks for all"
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all({"validation/loss", "retrieval/ndcg@10"} <= line.keys() for line in lines)
    for name in ("comparison.json", "comparison.png", "curves.png", "model/model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.parametrize("which", ["all", "last"])
def test_an_error_of_one_line_is_one_line_on_several_hosts(launch, arguments, tmp_path, which):
    wrong = ("--config.data.train=nowhere.txt",)
    options = [*arguments(tmp_path / "run", *SETTINGS), *(wrong if which == "all" else ())]
    first, second = finish(
        launch(tmp_path / "run", 2, 1, options=options, last=wrong if which == "last" else ())
    )
    assert first[0] == (2 if which == "all" else 1) and second[0] == 2
    assert re.fullmatch("error: .*nowhere.txt.*\n", second[2]), second[2]
    expected = (
        "error: .*nowhere.txt.*\n" if which == "all" else "error: host 1 ended: .*nowhere.txt.*\n"
    )
    assert re.fullmatch(expected, first[2]), first[2]


@pytest.mark.slow
@pytest.mark.parametrize("lost_host", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_lost_host_ends_the_run_and_a_restart_is_exact(launch, two_hosts, tmp_path, lost_host):
    processes = launch(tmp_path / "run", hosts=2, devices=2)
    for line in processes[0].stdout:
        if re.search(r"step (\d+)/", line) and int(re.search(r"step (\d+)/", line).group(1)) >= 8:
            break
    processes[lost_host].send_signal(signal.SIGKILL)
    lost = time.monotonic()
    status, _, err = finish(processes)[1 - lost_host]
    assert time.monotonic() - lost < 60
    assert status != 0
    # Not always the last line: without its coordinator, JAX ends the process and prints the reason.
    expected = f"^error: (.*host {lost_host}.* lost|lost host {lost_host}|.*[Cc]onnection)"
    assert re.search(expected, err, re.MULTILINE), err
    ended = finish(launch(tmp_path / "run", hosts=2, devices=2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "resuming" in ended[0][1]
    assert model_of(tmp_path / "run").tobytes() == model_of(two_hosts).tobytes()
    undisturbed = lines_of(two_hosts)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(1, STEPS + 1))
    for mine, other in zip(lines_of(tmp_path / "run"), undisturbed, strict=True):
        assert [mine[name] for name in ("loss", "scale", "bias")] == [
            other[name] for name in ("loss", "scale", "bias")
        ]


@pytest.mark.slow
def test_pre_emption_of_one_host_stops_all_at_one_step(launch, two_hosts, tmp_path):
    first, second = processes = launch(tmp_path / "run", hosts=2, devices=2)
    for line in first.stdout:
        if "step 4/" in line:
            break
    second.send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "SIGTERM: saved at step" in ended[0][1]
    assert [status for status, _, _ in finish(launch(tmp_path / "run", hosts=2, devices=2))] == [
        0,
        0,
    ]
    assert model_of(tmp_path / "run").tobytes() == model_of(two_hosts).tobytes()


@pytest.mark.parametrize(
    "fields,message",
    [
        (
            ("coordinator=localhost:1",),
            "a coordinator needs a count of hosts and an index below it",
        ),
        (("coordinator=localhost:1", "count=2", "index=2"), "found count 2 and index 2"),
        (("coordinator=auto",), "cannot join"),
        (("coordinator=nowhere", "count=1", "index=0"), "cannot join"),
    ],
)
def test_hosts_that_cannot_join_are_told_in_one_line(simcse_here, tmp_path, fields, message):
    status, err = simcse_here(tmp_path / "run", *(f"--config.hosts.{field}" for field in fields))
    assert status == 2 and err.count("\n") == 1 and message in err, err
