"""An experiment's command: the command line and its stages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax

from embed_jax.config import Experiment
from embed_jax.config_file import load_config
from embed_jax.errors import InputError, require
from embed_jax.parallel.distributed import joined
from embed_jax.runtime import is_first_host, prepare_jax, say
from embed_jax.train import loop
from embed_jax.train.base_model import compute_dtype
from embed_jax.train.plots import plot_curves, run_title


def launch(run: Callable[[Experiment, Path], loop.Result], experiment: str) -> None:
    """Runs an experiment's command, stage by stage, and prints where the model is.

    Args:
        run: trains one stage: `(config, workdir) -> result`.
        experiment: the name of its module, for run.json and the model's card.
    """
    config, workdir = load_config(sys.argv)
    require("grain")  # fail early: a base install can read a config, too
    prepare_jax(deterministic=config.train.deterministic)
    with joined(config.hosts):
        say(describe_devices(config))
        for stage, directory in stages(config, workdir):
            stage.tracking.experiment = experiment
            if stage is not config:
                say(f"stage {directory.name}: from {stage.model.name}")
            # Before the run, which may fill in what the config leaves open.
            title = run_title(stage)
            result = run(stage, directory)
            _draw_curves(directory, title)
            if not result.finished:
                return
            say(f"model: {directory / 'model'}")


def describe_devices(config: Experiment) -> str:
    """Describes the devices that a run computes on, and the precision."""
    count = config.train.devices or jax.device_count()
    devices = f"{count} of {jax.device_count()} devices" if count > 1 else "1 device"
    hosts = f"{jax.process_count()} host{'s' * (jax.process_count() > 1)}"
    kind = jax.devices()[0].device_kind
    return f"on {devices} ({kind}), {hosts}, in {compute_dtype(config.model.compute_dtype)}"


def _draw_curves(workdir: Path, title: str) -> None:
    """Writes curves.png on the first host; without matplotlib a line says what to install."""
    if not is_first_host():
        return
    try:
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", title=title)
    except InputError as error:  # a picture is not a reason for a finished run to fail
        say(f"no curves.png: {error}")


def stages(config: Experiment, workdir: Path) -> list[tuple[Experiment, Path]]:
    """Returns the run itself and those of `config.stages`.

    Each has a directory of its name and starts from the model before it, unless it names its own.
    """
    runs = [(config, workdir)]
    for name, stage in vars(config.stages).items():
        if not stage.model.name:
            stage.model.name = str(runs[-1][1] / "model")
        runs.append((stage, workdir / name))
    config.stages = SimpleNamespace()  # each is its own run
    return runs
