"""Runs of a table (`ablation_table.py`): plans them, performs them and reads their metrics.

    table = read_ablation_table(Path("configs/simcse/tables/dropout.py"))
    runs = plan_runs(table, rows=None, seeds=[0, 1], overrides={}, workdir=Path("runs/dropout"))
    for run, line in perform_runs(runs):
        print(run.row, line, run.metrics)

`python -m scripts.ablate` does this from the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.atomic import file_lock
from embed_jax.errors import InputError
from embed_jax.evals.by_size import by_size_metrics, read_by_size
from embed_jax.packaged import check_experiment, package
from embed_jax.registry import unknown
from embed_jax.runtime import say
from embed_jax.train.ablation_table import Table

OVER = "ablate.json"  # in a run's directory once it is over: its settings
EVALUATED = "evaluated.json"  # what `scripts.evaluate run` says of its model


@dataclasses.dataclass
class AblationRun:
    """One training run.

    Attributes:
        settings: all fields of its config.
        row: name of its row.
        seed: config.train.seed.
        workdir: its work directory.
        command: the command that trains it.
        evaluate: the command that judges its model afterwards, or empty.
        metrics: its results; empty before it is finished.
        error: why it is not finished, in a line.
    """

    row: str
    seed: int
    workdir: Path
    command: list[str]
    settings: dict[str, Any]
    evaluate: list[str]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""


def plan_runs(
    table: Table,
    rows: Sequence[str] | None,
    seeds: Sequence[int],
    overrides: Mapping[str, str],
    workdir: Path,
    evaluate: Sequence[str] = (),
    *,
    parent: str | None = None,
) -> list[AblationRun]:
    """Plans the runs of rows (None: all); all configs are read before the first run starts.

    Args:
        table: the table.
        rows: names of rows.
        seeds: values of config.train.seed.
        overrides: config fields that the command line sets, for all rows.
        workdir: directory of the runs, as ROW/SEED.
        evaluate: options of `scripts.evaluate run` for each model; empty: not evaluated.
        parent: dotted name before `experiments` and `scripts`, "embed_jax." of an installed package
            or "" in the repository; None: the installed one if there is any.

    Raises:
        InputError: for an unknown row or experiment, or a config that cannot be used.
    """
    from embed_jax.config import flatten
    from embed_jax.config_file import load_config

    if parent is None:
        parent = package("experiments").removesuffix("experiments")
    module = f"{parent}experiments.{table.experiment}"
    try:
        check_experiment(table.experiment)
    except InputError as error:
        raise InputError(f"{table.file}: EXPERIMENT: {error}") from None
    runs = []
    for row in rows or table.rows:
        if row not in table.rows:
            raise InputError("rows: " + unknown("row", row, table.rows))
        for field in sorted(table.rows[row].keys() & overrides.keys()):
            say(
                f"{row}: {field} is {overrides[field]} from the command line instead of "
                f"{table.rows[row][field]}"
            )
        for seed in seeds:
            directory = workdir / row / str(seed)
            fields = {**table.rows[row], **overrides, "train.seed": seed}
            arguments = [f"--config.{field}={value}" for field, value in fields.items()]
            arguments = [f"--config={table.config}", *arguments, f"--workdir={directory}"]
            try:
                config, _ = load_config([f"experiments/{table.experiment}.py", *arguments])
            except InputError as error:
                raise InputError(f"row {row!r}: {error}") from error
            for metric in ("best", "start"):  # fail early: missed only after the runs
                if metric in table.metrics and not config.eval.metric:
                    raise InputError(
                        f"{table.file}: METRICS: {metric!r} is of config.eval.metric, which "
                        f"{table.config} does not set"
                    )
            settings = flatten(config)
            judge = [
                sys.executable,
                "-m",
                f"{parent}scripts.evaluate",
                "run",
                "--model",
                str(directory / "model"),
                *evaluate,
            ]
            judge = [*judge, "--output", str(directory / EVALUATED)] if evaluate else []
            runs.append(
                AblationRun(
                    row,
                    seed,
                    directory,
                    [sys.executable, "-m", module, *arguments],
                    settings,
                    judge,
                )
            )
    for name in ("x", "lines"):
        field = getattr(table, name)
        if field and field not in settings and not (name == "x" and "/" in field):  # a metric
            raise InputError(
                f"{table.file}: {name.upper()}: " + unknown("config field", field, settings)
            )
    return runs


def perform_runs(runs: Sequence[AblationRun]) -> Iterator[tuple[AblationRun, str]]:
    """Performs each run as `perform_run` does, and yields it with a line about it.

    Several processes may perform one table in one directory, also on several hosts that share it:
    each run has a lock, those that another process holds come last, and what it has finished is
    only read.
    """
    left: list[AblationRun] = []
    for run in runs:
        with _run_lock(run, wait=False) as is_mine:
            if is_mine:
                yield run, perform_run(run)
            else:
                left.append(run)
    for run in left:
        with _run_lock(run, wait=True):
            yield run, perform_run(run)


def _run_lock(run: AblationRun, *, wait: bool) -> contextlib.AbstractContextManager[bool]:
    return file_lock(run.workdir.with_name(f"{run.workdir.name}.lock"), wait=wait)


def perform_run(run: AblationRun) -> str:
    """Performs a run unless it is finished, sets metrics or error, and returns a line about it."""
    over, log = run.workdir / OVER, run.workdir.with_name(f"{run.workdir.name}.log")
    settings = json.dumps(run.settings | {"evaluate": run.evaluate[6:-1]}, indent=1) + "\n"
    if (
        over.is_file()
        and over.read_text(encoding="utf-8") == settings
        and (run.workdir / "model").is_dir()
    ):
        done = "finished before"
    else:
        began = time.monotonic()
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            status = run_command(run.command, log)
        except OSError as error:
            raise InputError(f"{log}: cannot be written: {error.strerror}") from None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        # A run that SIGTERM ended saves its state and exits with 0, too, but names no model.
        if status or not any(line.startswith("model: ") for line in lines):
            run.error = last_error(lines) if status else "stopped before its end"
            return f"{run.error} ({log})"
        if run.evaluate and run_command(run.evaluate, log.with_suffix(".evaluate.log")):
            lines = (
                log.with_suffix(".evaluate.log")
                .read_text(encoding="utf-8", errors="replace")
                .splitlines()
            )
            run.error = last_error(lines)
            return f"{run.error} ({log.with_suffix('.evaluate.log')})"
        over.write_text(settings, encoding="utf-8")
        done = f"{time.monotonic() - began:.0f} s"
    run.metrics = read_metrics(
        run.workdir, run.settings["eval.metric"], run.settings["eval.min_gain"]
    )
    best = f", best {run.metrics['best']:.4f}" if "best" in run.metrics else ""
    return done + best


def run_command(command: Sequence[str], log: Path) -> int:
    """Runs a command with its output in a file, and returns its exit status.

    The command ends with this process.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()  # it saves its state
                    process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def last_error(lines: Sequence[str]) -> str:
    """Returns the last line that begins with "error: ", else the last line."""
    solid = [line.strip() for line in lines if line.strip()]
    errors = [line for line in solid if line.startswith("error: ")]
    return (errors or solid or ["error: no output"])[-1]


def read_metrics(workdir: Path, selecting: str, min_gain: float) -> dict[str, float]:
    """Reads the metrics of a finished run; see `python -m scripts.ablate --help`.

    Args:
        workdir: of the run.
        selecting: the config's eval.metric.
        min_gain: the config's eval.min_gain, so that `best` is the value of the saved model.
    """
    metrics: dict[str, Any] = {}
    best = -math.inf
    file = workdir / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        entry = json.loads(line)
        metrics |= entry
        value = entry.get(selecting)
        if value is not None:
            metrics.setdefault("start", value)
        if value is not None and value > best and value >= best + min_gain:
            metrics["best"] = best = value
    for name, prefix in (
        ("comparison.json", "test/"),
        ("results.json", ""),
        ("sparse.json", ""),
        (EVALUATED, "evaluated/"),
    ):
        if (workdir / name).exists():
            content = json.loads((workdir / name).read_text(encoding="utf-8"))
            if name == EVALUATED:
                content = content["metrics"]
            if name == "comparison.json":
                content = {**content["metrics"], **content["metrics"]["after"]}
                del content["after"]
            metrics |= {prefix + metric: value for metric, value in leaves(content)}
    if (workdir / "by_size.json").exists():
        metrics |= by_size_metrics(read_by_size(workdir / "by_size.json")["trained"])
    metrics.pop("step", None)
    return {name: float(value) for name, value in leaves(metrics)}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields ("a/b", number) for each number of a tree."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation (n - 1; nan for a single value) of values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
