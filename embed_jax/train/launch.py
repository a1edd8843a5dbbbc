"""An experiment's command: the command line and its stages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from embed_jax.config import Experiment
from embed_jax.config_file import load
from embed_jax.errors import InputError
from embed_jax.parallel.distributed import joined
from embed_jax.runtime import is_first_host, prepare_jax, say
from embed_jax.train import loop
from embed_jax.train.plots import plot_curves, run_title
from embed_jax.train.workdir import launched_by


def launch(run: Callable[[Experiment, Path], loop.Result]) -> None:
    """Runs an experiment's command: reads the command line, runs stage by stage, and says where the model is."""
    config, workdir = load(sys.argv)
    prepare_jax(deterministic=config.train.deterministic)
    with joined(config.hosts), launched_by(Path(inspect.getfile(run))):
        for stage, directory in stages(config, workdir):
            if stage is not config:
                say(f"stage {directory.name}: from {stage.model.name}")
            title = run_title(
                stage
            )  # before the run, which may fill in what the config leaves open
            result = run(stage, directory)
            _draw_curves(directory, title)
            if not result.finished:
                return
            say(f"model: {directory / 'model'}")


def _draw_curves(workdir: Path, title: str) -> None:
    """Writes curves.png on the first host; without matplotlib a line says what to install."""
    if not is_first_host():
        return
    try:
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", title=title)
    except InputError as error:  # a picture is no reason for a finished run to fail
        say(f"no curves.png: {error}")


def stages(config: Experiment, workdir: Path) -> list[tuple[Experiment, Path]]:
    """Returns the run itself and those of `config.stages`, each in a directory of its name and from the model before it.

    A stage with a model name of its own starts from that one.
    """
    runs = [(config, workdir)]
    for name, stage in vars(config.stages).items():
        if not stage.model.name:
            stage.model.name = str(runs[-1][1] / "model")
        runs.append((stage, workdir / name))
    config.stages = SimpleNamespace()  # each is a run of its own
    return runs
